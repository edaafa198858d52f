"""The option `--device`: the hardware's Verilog gives the simulator's bytes and cycles; what is missing is named.

It must not know how the hardware is compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from corepool.compiler.static.compile import compile_graph
from corepool.config import preset
from support.graphs import random_graph, random_input

SRC = Path(__file__).resolve().parents[2] / "src"
ANSWERS = {"cat": 285, "coffee": 967}  # as zoo/photos/SOURCES.md says, at 96 x 96 pixels, too


def corepool(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "COREPOOL_DEBUG"}
    command = [sys.executable, "-m", "corepool", *map(str, arguments)]
    env |= {"PYTHONPATH": str(SRC), **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600, env=env)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package for ``tiny`` and inputs for it."""
    folder = tmp_path_factory.mktemp("devices")
    rng = np.random.default_rng(2)
    graph = random_graph(rng, layers=3, size=12)
    compile_graph(graph, preset("tiny")).save(folder / "net.cpk")
    np.savez(folder / "in.npz", **random_input(rng, graph))
    return folder / "net.cpk", folder / "in.npz"


def test_run_on_both_devices(files: tuple[Path, Path]) -> None:
    model, inputs = files
    reports, outputs = [], []
    for device in ("simulator", "rtl"):
        target = model.with_name(f"{device}.npz")
        done = corepool("run", model, "--cores", 3, "--input", inputs, "--output", target, "--device", device, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        reports.append(json.loads(done.stdout))
        with np.load(target) as found:
            outputs.append({name: found[name] for name in found.files})
    assert [each["device"] for each in reports] == ["simulator", "rtl"]
    for name in ("cycles", "instructions", "ddr_bytes", "config", "outputs"):
        assert reports[0][name] == reports[1][name], name
    assert outputs[0].keys() == outputs[1].keys()
    assert all(np.array_equal(value, outputs[1][name]) for name, value in outputs[0].items())


def test_what_cannot_be_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, inputs = files
    told = {
        "there is no device 'fpga'; there are: simulator, rtl": ["--device", "fpga"],
        "--trace needs --device simulator": ["--device", "rtl", "--trace", tmp_path / "t.json"],
    }
    for text, more in told.items():
        done = corepool("run", model, "--cores", 1, "--input", inputs, *more)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"corepool: error: {text}")
        assert done.stderr.count("\n") == 1
    for wrong in (("--side", 100), ("--side", 256), ("--device", "fpga"), ("--frames", 0)):
        done = corepool("demo", "--config", "tiny", "-o", tmp_path / "out", *wrong)
        assert done.returncode == 2
        assert str(wrong[1]) in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_missing_compiler_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, inputs = files
    nothing = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = corepool("run", model, "--cores", 1, "--input", inputs, "--device", "rtl", "--json", **nothing)
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs a C++ compiler; install g++" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_demo_on_the_hardware(tmp_path: Path) -> None:
    """MobileNetV2 with 96 x 96 pixels on the Verilog of ``tiny``: two tenants, whose cores are dealt anew."""
    done = corepool("demo", "--device", "rtl", "--config", "tiny", "--json", "-o", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["device"], report["side"], report["byte_equal"]) == ("rtl", 96, True)
    assert report["simulator"] == {"frames": 4, "byte_equal": True, "most_cycles_apart": 0}
    for phase in report["phases"]:
        for tenant in phase["tenants"]:
            assert tenant["top3"][0]["class"] == ANSWERS[tenant["photo"]]
    assert Path(report["picture"]).is_file()
    assert "trace" not in report
