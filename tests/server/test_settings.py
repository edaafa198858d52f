"""Settings: one set of names for file, environment and flags; what is wrong is named."""

import os
import tomllib
from pathlib import Path

import pytest

from corepool.cli.main import invoke
from corepool.cli.serve import parse_flags
from corepool.errors import ConfigError, InputError
from corepool.server.settings import HIDDEN, Settings, as_toml, keys, load_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("COREPOOL_")]:
        monkeypatch.delenv(name)


def test_flag_before_environment_before_file_before_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "s.toml"
    file.write_text("rest_port = 1\ngrpc_port = 2\nmetrics_port = 3\n[limits]\nheaders = 4\n", encoding="utf-8")
    monkeypatch.setenv("COREPOOL_GRPC_PORT", "20")
    monkeypatch.setenv("COREPOOL_METRICS_PORT", "30")
    monkeypatch.setenv("COREPOOL_LIMITS__BODY_BYTES", "50")
    found = load_settings(file, {("metrics_port",): "300", ("log", "level"): "debug"})
    assert (found.rest_port, found.grpc_port, found.metrics_port) == (1, 20, 300)
    assert (found.limits.headers, found.limits.body_bytes, found.log.level) == (4, 50, "debug")
    assert found.limits.in_flight == Settings().limits.in_flight


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1", "colour: there is no such setting"),
        ("[limits]\nbodies = 1", "limits.bodies: there is no such setting"),
        ("rest_port = 70000", "rest_port"),
        ("rest_port = 'x'", "rest_port"),
        ("device = 'fpga'", "device"),
        ("limits = 3", "limits"),
        ("[limits]\nbody_bytes = 0", "limits.body_bytes"),
        ("[limits", "not a TOML file"),
        ("rest_port = 1\nrest_port = 2", "not a TOML file"),
        ("rest_port = true", "rest_port"),
        ("[limits]\nin_flight = true", "limits.in_flight"),
        ("[limits]\nbody_timeout_s = true", "limits.body_timeout_s"),
        ("[limits]\nbody_bytes = 99999999999999999999", "limits.body_bytes"),
        ("[limits]\nbody_timeout_s = nan", "limits.body_timeout_s"),
        ("state_dir = ''", "state_dir"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=named) as caught:
        load_settings(file)
    assert str(file) in str(caught.value)


def test_empty_variables_set_nothing_that_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREPOOL_DATABASE_URL", "")
    monkeypatch.setenv("COREPOOL_MODEL_REPOSITORY", "")
    assert (load_settings().database_url, load_settings().model_repository) == (None, None)
    monkeypatch.setenv("COREPOOL_STATE_DIR", "")
    with pytest.raises(ConfigError, match="state_dir"):
        load_settings()


def test_unknown_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREPOOL_REST_PROT", "1")
    with pytest.raises(ConfigError, match="COREPOOL_REST_PROT"):
        load_settings()


def test_what_is_printed_is_a_file_with_the_same_settings(tmp_path: Path) -> None:
    made = load_settings(None, {("rest_port",): "5", ("metrics", "nv_names"): "true", ("host",): 'a"\\b'})
    file = tmp_path / "s.toml"
    file.write_text(as_toml(made), encoding="utf-8")
    assert load_settings(file) == made
    printed = tomllib.loads(as_toml(made))
    flat = {(name,): value for name, value in printed.items() if not isinstance(value, dict)}
    flat |= {
        (table, name): v for table, values in printed.items() if isinstance(values, dict) for name, v in values.items()
    }
    assert set(flat) == {key.path for key in keys()} - {("database_url",), ("model_repository",)}


def test_secrets_are_not_printed() -> None:
    made = load_settings(None, {("database_url",): "postgresql://u:secret@h/d"})
    assert "secret" not in as_toml(made)
    assert "secret" not in repr(made)
    assert HIDDEN in as_toml(made)


def test_every_setting_has_a_flag_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    known = list(keys())
    assert len({key.flag for key in known}) == len(known) == len({key.variable for key in known})
    given = parse_flags([part for key in known if not key.is_flag for part in (key.flag, "7")], known)
    assert set(given) == {key.path for key in known if not key.is_flag}
    for key in known:
        if isinstance(key.default, int) and not key.is_flag and "port" not in key.path[0]:
            monkeypatch.setenv(key.variable, str(key.default + 1))
    changed = load_settings()
    assert changed.limits.body_bytes == Settings().limits.body_bytes + 1
    assert changed.compilation.files == Settings().compilation.files + 1


def test_flags_that_are_none_are_refused() -> None:
    known = list(keys())
    assert parse_flags(["--metrics-nv-names", "--rest-port=3"], known) == {
        ("metrics", "nv_names"): "true",
        ("rest_port",): "3",
    }
    assert parse_flags(["--no-metrics-nv-names"], known) == {("metrics", "nv_names"): "false"}
    for wrong in (["--colour", "1"], ["x"], ["--rest-port"], ["--no-rest-port"]):
        with pytest.raises(InputError):
            parse_flags(wrong, known)


def test_command_prints_settings_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["serve", "--print-config", "--rest-port", "0", "--limits-headers=9"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert (printed["rest_port"], printed["limits"]["headers"]) == (0, 9)
    assert invoke(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(key.flag in shown for key in keys())
    assert invoke(["serve", "--settings", "/nonexistent.toml"]) == 2
    assert "/nonexistent.toml" in capsys.readouterr().err
