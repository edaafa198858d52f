"""Experiments on a toy network, the list of them, and the command as a process.

It must not know what figures to expect of real networks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from corepool.errors import InputError
from corepool.evaluation import compile_cost, experiment, multi_task, resources, single_task, switch_cost
from corepool.evaluation.lab import Lab
from corepool.evaluation.report import render
from corepool.evaluation.results import VERDICTS, Outcome, plain
from corepool.hardware.areas import MEASURED

SRC = Path(__file__).resolve().parents[2] / "src"


def quiet(what: str, share: float) -> None:
    assert what
    assert 0 <= share <= 1.0001


def sound(outcome: Outcome) -> dict:
    """The data as JSON gives it back; every table is rectangular, every claim has a verdict."""
    for table in outcome.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert {claim.verdict for claim in outcome.claims} <= set(VERDICTS)
    assert all(plot.png.startswith(b"\x89PNG") for plot in outcome.plots)
    return json.loads(json.dumps(plain(outcome.data), allow_nan=False))


def test_choose() -> None:
    names = [each.name for each in experiment.choose(["all"])]
    assert names == [each.name for each in experiment.EXPERIMENTS]
    assert [each.name for each in experiment.choose(["resources", "isolation"])] == ["isolation", "resources"]
    with pytest.raises(InputError, match=r"no experiment is called 'speed'; there are public-splits, .*, and all"):
        experiment.choose(["isolation", "speed"])


def test_each_has_its_file() -> None:
    assert all(callable(each.run) for each in experiment.EXPERIMENTS)


def test_carry_out(lab: Lab, tmp_path: Path) -> None:
    shares: list[float] = []
    chosen = experiment.choose(["resources"])
    (finding,) = experiment.carry_out(chosen, lab, tmp_path, lambda what, share: shares.append(share))
    kept = {path.stem for path in MEASURED.glob("*.json")}
    assert set(json.loads((tmp_path / "resources.json").read_text())["data"]["synthesis"]) == kept
    assert shares == sorted(shares)
    assert "Areas" in render([finding], "")


def test_area_that_was_not_synthesised_is_not_there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise InputError(name)

    monkeypatch.setattr(resources, "load", load)
    outcome = resources.run(lab, lambda what, share: None)
    assert [claim.verdict for claim in outcome.claims] == ["open"]
    assert outcome.data["synthesis"] == {}
    assert any("no result of synthesis called u200" in note for note in outcome.notes)


def test_single_task(lab: Lab) -> None:
    data = sound(single_task.run(lab, quiet))
    (rows,) = data["cores"].values()
    assert rows["1"]["speed_up"] == 1
    for n, row in rows.items():
        assert row["scaling"] == pytest.approx(rows["1"]["cycles"] / row["cycles"] / int(n))
        assert 0 < row["share_of_peak"] <= row["array_active"] * 8
    (ways,) = data["tilings"].values()
    assert set(ways) == {"width", "channel", "paper", "height", "grid", "best"}


def test_compile_cost(lab: Lab) -> None:
    data = sound(compile_cost.run(lab, quiet))
    (row,) = data["networks"].values()
    static = row["static"]
    assert static["seconds"] == static["import_s"] + static["compile_s"]
    assert static["compile_cpu_s"] > 0
    assert 0 < static["weight_bytes"] < static["package_bytes"]
    for times in row["dynamic"].values():
        assert 0 < times["p50_ms"] <= times["p99_ms"] <= times["max_ms"]
        assert times["stream_bytes"] == 32 * times["instructions"]


def test_multi_task(lab: Lab) -> None:
    outcome = multi_task.run(lab, quiet)
    data = sound(outcome)
    for by_design in data["share_of_peak"].values():
        for n, rate in by_design["static multi-core"].items():
            assert rate == pytest.approx(int(n) * by_design["static multi-core"]["1"], rel=1e-3)
        single = by_design["static 16x16x16"]
        assert max(single.values()) == pytest.approx(min(single.values()), rel=1e-3)
        assert by_design["private-even"]["16"] == pytest.approx(by_design["static multi-core"]["16"], rel=0.05)
    for by_design in data["arrivals"]["points"].values():
        for name, row in by_design.items():
            for point in row.values():
                assert 0 <= point["deadlines"] <= 1
                if name == "private-deadline" and point["p50_ms"] is None:
                    continue  # the toy is done sooner than cores can be moved: all are refused
                assert 0 < point["p50_ms"] <= point["p99_ms"]
                assert 1 / 8 <= point["fairness"] <= 1.0001


def test_switch_cost(lab: Lab) -> None:
    data = sound(switch_cost.run(lab, quiet))
    (row,) = data["networks"].values()
    assert row["layer"]["wait_us"]["mean"] <= row["task"]["wait_us"]["mean"]
    assert row["task"]["wait_us"]["max"] <= row["inference_us"] * 1.01
    for switching in ("task", "layer"):
        least = row["clear_us"] + row["relink_us"]
        assert row[switching]["newcomer_us"]["mean"] >= least + row[switching]["wait_us"]["mean"]
    for moved in row["carried"]["switches"]:
        assert 0 < moved["next_layer"] <= 8
        assert 0 <= moved["drain_cycles"] < moved["undisturbed"]
        assert 0 < moved["state_bytes"] <= moved["loaded_bytes"]  # the new cores are in two banks
        # A part on all cores and the rest on half of them.
        assert moved["undisturbed"] * 0.95 < moved["cycles"] < moved["half"] * 1.05


def corepool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "corepool", *arguments]
    env = os.environ | {"PYTHONPATH": str(SRC)}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env, cwd=cwd)


def test_command(tmp_path: Path) -> None:
    done = corepool("evaluate", "resources", "--quick", "--json", "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["report"] == "out/report.html"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.md", "resources.json"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "corepool evaluate resources --quick" in page


def test_unknown_experiment(tmp_path: Path) -> None:
    done = corepool("evaluate", "speed", "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("corepool: error: no experiment is called 'speed'")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
