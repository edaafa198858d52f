"""The main job as a process: four tenants, real photos, a live re-deal, and the files that it leaves.

It must not know how any of it is done.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SRC = Path(__file__).resolve().parents[2] / "src"
ANSWERS = {"cat": 285, "coffee": 967, "photographer": 872, "officer": 457}  # as zoo/photos/SOURCES.md says


def test_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "corepool", "demo", "--frames", "1", "--json", "-o", str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    before, after = (phase["tenants"] for phase in report["phases"])
    assert [len(tenant["cores"]) for tenant in before] == [4, 4, 4, 4]
    assert [tenant["cores"] for tenant in after] == [list(range(8)), [8, 9, 10, 11], [12, 13], [14, 15]]
    for one, two in zip(before, after, strict=True):
        assert one["top3"] == two["top3"]
        assert one["photo"] == two["photo"]
        shares = [best["probability"] for best in one["top3"]]
        assert shares == sorted(shares, reverse=True)
        assert one["top3"][0]["class"] == ANSWERS[one["photo"]]
    assert len({tenant["photo"] for tenant in before}) == 4
    assert len({tenant["latency_ms"] for tenant in before}) == 1  # equal shares, equal speed
    assert after[0]["fps"] > 1.4 * before[0]["fps"]
    assert after[1]["fps"] == before[1]["fps"]  # whoever keeps four cores notices nothing
    assert after[2]["fps"] < 0.7 * before[2]["fps"]
    assert report["byte_equal"] is True
    assert all(0 < tenant["link_ms"] < 50 for tenant in report["redeal"]["tenants"])
    assert report["first_result_s"] < 120
    check_files(tmp_path / "out", report)


def check_files(folder: Path, report: dict[str, str]) -> None:
    picture = Image.open(report["picture"])
    assert picture.size[0] > 800
    colours = len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0))
    assert colours > 8
    events = json.loads(Path(report["trace"]).read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) > 1000
    names = {entry.name for entry in folder.iterdir()}
    assert {"cores.png", "trace.json", "mobilenet_v2.onnx", "mobilenet_v2.cpk"} <= names
    assert not any(name.endswith(".tmp") for name in names)
