"""MobileNetV2 with trained weights changes cores between two layers: the answer stays the same to the byte.

It must not know how the state is found.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corepool import zoo
from corepool.compiler.static import compile_model
from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.runtime.session import Session
from corepool.zoo import photos

U200 = preset("u200")
PHOTOS = Path(photos.__file__).parent
CORES = ((3,), tuple(range(4)), (1, 4, 9), tuple(range(5, 16)), tuple(range(16)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """The package, and a photo as its input."""
    path = tmp_path_factory.mktemp("zoo") / "mobilenet_v2.onnx"
    zoo.write("mobilenet_v2", path)
    package = compile_model(path, U200, PHOTOS).package
    name = package.meta["inputs"][0]["name"]
    return package, {name: photos.preprocess(photos.load("cat")).astype(np.float32)}


def test_sampled_layers_of_a_real_network(model) -> None:  # type: ignore[no-untyped-def]
    package, inputs = model
    with Session(Simulator(U200), package, range(16)) as session:
        whole = session.run(inputs)
    rng = np.random.default_rng(1)
    assert whole.raw
    layers = []
    last = whole.completion.syncs - 2  # most SYNCs lie in the second half of the layers
    for passing in (0, 1, *(int(number) for number in np.linspace(2, last, 5))):
        origin, target = (CORES[int(number)] for number in rng.choice(len(CORES), 2, replace=False))
        with Session(Simulator(U200), package, origin) as session:
            session.start(inputs)
            session.stop(passing=passing)
            saved = session.suspend()
            if saved is None:  # this many SYNCs there are not
                continue
            switch = session.resume(saved, target)
            assert session.finish().raw == whole.raw
        layers.append(saved.next_layer)
        # One map is alive, and in a residual block a second one; the largest has 96 channels of 112 x 112.
        assert 0 < switch.saved_bytes <= 2 * 96 * 112 * 112
        assert switch.loaded_bytes >= switch.saved_bytes // 2
        assert switch.clear_cycles == U200.feature_lines
    assert len(set(layers)) >= 4
    assert max(layers) > len(package.layers) // 2


def test_a_request_at_any_moment_is_met_within_a_layer(model) -> None:  # type: ignore[no-untyped-def]
    """Time alone: the drain never takes longer than the longest stretch between two SYNCs, and the halves of a switched
    inference take little more than the whole."""
    package, _ = model
    device = Simulator(U200, data=False)
    with Session(device, package, range(8), data=False) as session:
        whole = session.run(None).completion.cycles
        rng = np.random.default_rng(2)
        drains = []
        for moment in rng.integers(0, whole * 9 // 10, 30).tolist():
            session.start(None)
            session.advance(moment)
            session.stop()
            saved = session.suspend()
            assert saved is not None
            drains.append(saved.drain_cycles)
            session.resume(saved, range(8))
            second = session.finish().completion.cycles
            assert abs(saved.cycles + second - whole) <= whole * 0.05
            session.release()
            session.place(session.prepare(range(8)))
    assert 0 < max(drains) < whole // 4
