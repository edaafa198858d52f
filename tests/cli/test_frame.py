"""The command as a process: help, usage errors, pipes and signals; every error is one line, and never a traceback.

It must not know what the verbs compute.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corepool.cli.output import cell, one_line

SRC = Path(__file__).resolve().parents[2] / "src"
VERBS = ("zoo", "compile", "inspect", "run", "relink", "demo")


def corepool(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command and return what it said."""
    env = {key: value for key, value in os.environ.items() if key != "COREPOOL_DEBUG"} | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, "-m", "corepool", *map(str, arguments)]
    settings = {"capture_output": True, "text": True, "check": False, "timeout": 120, "env": env} | options
    return subprocess.run(command, **settings)  # type: ignore[call-overload, no-any-return]


def refused(*arguments: str | Path, **options: object) -> str:
    """The one line that a command says when it refuses."""
    done = corepool(*arguments, **options)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("corepool: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_help_and_version() -> None:
    for arguments in ((), ("--help",), ("-h",)):
        done = corepool(*arguments)
        assert done.returncode == 0
        assert all(f"\n  {verb} " in done.stdout for verb in VERBS)
    for verb in VERBS:
        done = corepool(verb, "--help")
        assert done.returncode == 0
        assert "--json" in done.stdout
    assert corepool("--version").stdout.startswith("corepool 0.")


def test_help_loads_nothing_heavy() -> None:
    heavy = "('numpy', 'onnx', 'numba', 'matplotlib')"
    code = f"import sys, corepool.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SRC)}
    )
    assert done.stdout.strip() == "[]"


USAGE = {
    "unknown verb": (("fly",), "fly"),
    "unknown option": (("zoo", "--fast"), "--fast"),
    "missing argument": (("zoo",), "NAME"),
    "missing output": (("zoo", "vgg16"), "--output"),
    "unknown network": (("zoo", "alexnet", "-o", "x.onnx"), "alexnet"),
    "not a number": (("zoo", "mobilenet_v2", "-o", "x.onnx", "--seed", "much"), "--seed"),
    "too many arguments": (("zoo", "vgg16", "resnet50", "-o", "x.onnx"), "resnet50"),
    "compile without output": (("compile", "x.onnx"), "--output"),
    "compile nothing": (("compile",), "MODEL.onnx"),
    "missing model": (("compile", "none.onnx", "-o", "x.cpk"), "none.onnx"),
    "unknown configuration": (("compile", "none.onnx", "-o", "x.cpk", "--config", "big"), "u200"),
    "run without cores": (("run", "none.cpk"), "--cores"),
    "missing package": (("run", "none.cpk", "--cores", "4"), "none.cpk"),
    "inspect a missing package": (("inspect", "none.cpk"), "none.cpk"),
    "relink a missing package": (("relink", "none.cpk"), "none.cpk"),
    "relink never": (("relink", "none.cpk", "--repeat", "0"), "--repeat"),
    "unknown device": (("demo", "--device", "moon"), "moon"),
    "card of one core": (("demo", "--config", "large"), "several tenants"),
    "no frames": (("demo", "--frames", "0"), "--frames"),
}


@pytest.mark.parametrize(("arguments", "names"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage_is_one_line_that_names_it(tmp_path: Path, arguments: tuple[str, ...], names: str) -> None:
    assert names in refused(*arguments, cwd=tmp_path)
    assert names in refused(*arguments, "--json", cwd=tmp_path) or arguments == ("fly",)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    assert "folder" in refused("zoo", "mobilenet_v2", "-o", tmp_path)
    assert "folder" in refused("zoo", "mobilenet_v2", "-o", tmp_path / "none" / "x.onnx")
    assert "/dev/null" in refused("zoo", "mobilenet_v2", "-o", "/dev/null")
    assert Path("/dev/null").is_char_device()
    file = tmp_path / "file"
    file.write_text("")
    assert "folder" in refused("zoo", "mobilenet_v2", "-o", file / "x.onnx")
    assert "File exists" in refused("demo", "-o", file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    # Root may write everywhere, so the command gives up being root, with everything loaded that root alone may read.
    code = (
        "import contextlib, io, os, sys; from corepool.cli.main import invoke\n"
        "with contextlib.redirect_stdout(io.StringIO()): invoke(['zoo', '--help'])\n"
        "os.geteuid() or os.setuid(65534); sys.exit(invoke(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "zoo", "mobilenet_v2", "-o", str(tmp_path / "x.onnx")]
    env = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "x.onnx" in done.stderr
    assert "ermission denied" in done.stderr or "may not be written to" in done.stderr


def test_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = corepool("--version", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert done.stderr.count("\n") == 1


def test_closed_pipe_is_quiet(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = corepool("--version", stdout=pipe, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_do_no_harm(tmp_path: Path, closed: str) -> None:
    path = tmp_path / "m.onnx"
    command = f"{sys.executable} -m corepool zoo mobilenet_v2 -o {path} --json {closed}"
    env = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run(["/bin/sh", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert path.stat().st_size > 14_000_000


def test_json_of_zoo_is_one_object(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    done = corepool("zoo", "mobilenet_v2", "-o", path, "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert (report["name"], report["bytes"]) == ("mobilenet_v2", path.stat().st_size)


def test_debugging_shows_where(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(SRC), "COREPOOL_DEBUG": "1"}
    done = corepool("inspect", tmp_path / "none.cpk", env=env)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_writing_leaves_nothing_and_no_traceback(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "corepool", "zoo", "vgg16", "-o", str(tmp_path / "m.onnx")]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(SRC)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(1.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (out, err.count("\n")) == ("", 1)
    assert err in ("corepool: interrupted\n", "corepool: terminated\n")
    assert list(tmp_path.iterdir()) == []


def test_lines_stay_one_line_and_harmless() -> None:
    assert one_line("a\n  b\tc\x1b[2Jd") == "a b c\\x1b[2Jd"
    assert one_line("über – ok") == "über – ok"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0.000123456, "0.000123"),
        (0.25, "0.2500"),
        (512.25, "512.2"),
        (1e6, "1,000,000"),
        (0.0, "0"),
        (None, "-"),
        (True, "yes"),
        ("x", "x"),
    ],
)
def test_cells_are_readable(value: object, text: str) -> None:
    assert cell(value) == text
