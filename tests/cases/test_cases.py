"""Golden cases: every folder here with a case.toml is compiled, run, and compared with the outputs that it holds."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from corepool.compiler.static import compile_model
from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.runtime.session import Session

HERE = Path(__file__).parent
CASES = sorted(path.parent.name for path in HERE.glob("*/case.toml"))


def test_there_are_cases():
    assert len(CASES) >= 6


def step(values: np.ndarray) -> float:
    """The quantisation step of a dequantised output: the smallest difference between two of its values."""
    different = np.unique(values)
    return float(np.diff(different).min()) if len(different) > 1 else 1.0


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    folder = HERE / name
    case = tomllib.loads((folder / "case.toml").read_text())
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "outputs.npz") as outputs:
        given, expected = dict(inputs), dict(outputs)
    calibration = folder / "calibration.npz"
    for config in map(preset, case["configs"]):
        made = compile_model(folder / "model.onnx", config, calibration if calibration.exists() else None)
        seen = []
        for cores in {min(count, config.cores) for count in case["cores"]}:
            with Session(Simulator(config), made.package, range(cores)) as session:
                seen.append(session.run(given).outputs)
        for name, values in expected.items():
            for answer in seen:
                np.testing.assert_array_equal(answer[name], seen[0][name])
            np.testing.assert_allclose(seen[0][name], values, rtol=0, atol=case["steps"] * step(values) * 1.001)
            assert np.ptp(values) > 0, "an output that is constant tests nothing"
