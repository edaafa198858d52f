"""Sessions on the simulator: answers equal to the numerics on any cores, before and after moving, alone or not.

It must not know how streams look.
"""

from itertools import pairwise
from typing import Protocol

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from corepool.compiler.model import ModelPackage
from corepool.compiler.static import reference
from corepool.compiler.static.graph import Graph
from corepool.config import HardwareConfig, preset
from corepool.device.simulator import Simulator
from corepool.errors import DeviceError, InputError, LinkError, PackageError
from corepool.runtime.session import Session, redeal
from corepool.runtime.sharing import Tenant, serve, shares


class Small(Protocol):
    """The network of conftest.py."""

    def graph(self) -> Graph: ...
    def package(
        self, config: HardwareConfig, tail: bytes = b"", tail_outputs: tuple[str, ...] = ()
    ) -> ModelPackage: ...
    def image(self, seed: int = 0) -> np.ndarray: ...


TINY = preset("tiny")


@pytest.fixture(scope="module")
def tiny(small: Small) -> ModelPackage:
    return small.package(TINY)


@pytest.fixture(scope="module")
def expected(small: Small) -> np.ndarray:
    graph = small.graph()
    return reference.outputs(graph, reference.execute(graph, {"image": small.image()}))["scores"]


@pytest.mark.parametrize("cores", [(0,), (3,), (0, 1), (1, 2), (3, 0, 2), (0, 1, 2, 3)])
def test_answers_are_those_of_the_numerics_on_any_cores(
    small: Small, tiny: ModelPackage, expected: np.ndarray, cores: tuple[int, ...]
) -> None:
    with Session(Simulator(TINY), tiny, cores) as session:
        result = session.run({"image": small.image()})
        assert np.array_equal(result.outputs["scores"], expected)
        assert result.outputs["scores"].dtype == np.float32
        assert result.completion.cycles > 0
        assert result.ddr_bytes > tiny.weights.nbytes
        again = session.run({"image": small.image()})
        assert (again.raw, again.completion.cycles) == (result.raw, result.completion.cycles)
        other = session.run({"image": small.image(1)})
        assert other.raw != result.raw


def test_moving_keeps_answers_and_frees_cores(small: Small, tiny: ModelPackage, expected: np.ndarray) -> None:
    device = Simulator(TINY)
    with Session(device, tiny, (0, 1)) as session:
        before = session.run({"image": small.image()})
        placement = session.move((2, 3, 1))
        assert session.cores == placement.cores == (2, 3, 1)
        assert placement.upload_bytes == 2 * tiny.weights.nbytes + placement.stream_bytes
        assert placement.link_ms > 0
        assert placement.upload_ms > 0
        assert session.run({"image": small.image()}).raw == before.raw
        with Session(device, tiny, (0,)) as neighbour:
            assert np.array_equal(neighbour.run({"image": small.image()}).outputs["scores"], expected)
        with pytest.raises(DeviceError, match="belongs to another lease"):
            Session(device, tiny, (1,))
    Session(device, tiny, (0, 1, 2, 3)).close()


def test_tenants_swap_cores_while_others_go_on(small: Small, tiny: ModelPackage) -> None:
    device = Simulator(TINY)
    sessions = [Session(device, tiny, cores) for cores in ((0, 1), (2,), (3,))]
    images = [{"image": small.image(seed)} for seed in range(3)]
    before = [session.run(each) for session, each in zip(sessions, images, strict=True)]
    placements = redeal(sessions[:2], [(2,), (0, 1)])
    assert [placement.cores for placement in placements] == [(2,), (0, 1)]
    after = [session.run(each) for session, each in zip(sessions, images, strict=True)]
    assert [result.raw for result in after] == [result.raw for result in before]
    assert after[2].completion.cycles == before[2].completion.cycles


def test_wrong_use_is_refused(small: Small, tiny: ModelPackage) -> None:
    device = Simulator(TINY)
    with pytest.raises(LinkError):
        Session(device, tiny, ())
    with pytest.raises(LinkError):
        Session(device, tiny, (4,))
    session = Session(device, tiny, (0,))
    with pytest.raises(InputError, match="'image' is missing; expected: 'image' float32"):
        session.run({})
    with pytest.raises(DeviceError, match="still on its cores"):
        session.place(session.prepare((1,)))
    session.close()
    session.close()
    with pytest.raises(DeviceError, match="on no cores"):
        session.run({"image": small.image()})
    assert session.place(session.prepare((1,))).cores == (1,)


def test_timing_alone_takes_the_same_cycles(small: Small, tiny: ModelPackage) -> None:
    with Session(Simulator(TINY), tiny, (0, 2)) as session:
        full = session.run({"image": small.image()})
    with Session(Simulator(TINY, data=False), tiny, (0, 2), data=False) as session:
        timed = session.run(None)
    assert timed.completion.cycles == full.completion.cycles
    assert timed.counters == full.counters
    assert timed.outputs == timed.raw == {}


def test_the_tail_runs_on_the_host(small: Small, expected: np.ndarray) -> None:
    node = helper.make_node("Softmax", ["scores"], ["chances"], axis=1)
    graph = helper.make_graph(
        [node],
        "tail",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 5, 12, 10])],
        [helper.make_tensor_value_info("chances", TensorProto.FLOAT, [1, 5, 12, 10])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    package = small.package(TINY, model.SerializeToString(), ("chances",))
    with Session(Simulator(TINY), package, (0,)) as session:
        result = session.run({"image": small.image()})
    powers = np.exp(expected - expected.max(axis=1, keepdims=True))
    assert set(result.outputs) == {"chances"}
    assert np.allclose(result.outputs["chances"], powers / powers.sum(axis=1, keepdims=True), atol=1e-6)
    broken = small.package(TINY, b"not a model", ("chances",))
    with pytest.raises(PackageError, match="host's part"):
        Session(Simulator(TINY), broken, (0,))


def test_frames_follow_each_other_without_gaps(small: Small, tiny: ModelPackage) -> None:
    device = Simulator(TINY)
    tenants = [
        Tenant("A", Session(device, tiny, (0, 1)), {"image": small.image(1)}, 1000),  # far from the true length
        Tenant("B", Session(device, tiny, (2,)), {"image": small.image(2)}, 1_000_000),
    ]
    seen: list[str] = []
    frames = serve(tenants, frames=3, seen=lambda frame: seen.append(frame.tenant))
    assert sorted(seen) == list("AAABBB")
    for tenant in "AB":
        own = [frame for frame in frames if frame.tenant == tenant]
        assert len({frame.result.completion.cycles for frame in own}) == 1
        assert len({tuple(frame.result.raw.items()) for frame in own}) == 1
    own = [frame for frame in frames if frame.tenant == "A"]
    gaps = [later.start_cycle - earlier.end_cycle for earlier, later in pairwise(own[1:])]
    assert all(0 <= gap < TINY.slot_period for gap in gaps)
    length = max(frame.end_cycle for frame in frames) - min(frame.start_cycle for frame in frames)
    more = serve(tenants, horizon_cycles=length)
    assert {frame.tenant for frame in more} == {"A", "B"}
    assert max(frame.end_cycle for frame in more) - min(frame.start_cycle for frame in more) <= 1.05 * length
    with pytest.raises(ValueError, match="either"):
        serve(tenants)


@pytest.mark.parametrize(("cores", "before", "after"), [(16, [4] * 4, [8, 4, 2, 2]), (4, [2, 2], [3, 1])])
def test_two_ways_to_share(cores: int, before: list[int], after: list[int]) -> None:
    for dealt, sizes in zip(shares(cores), (before, after), strict=True):
        assert [len(each) for each in dealt] == sizes
        assert [core for each in dealt for core in each] == list(range(cores))


@pytest.mark.parametrize("cores", [1, 2, 3, 6, 10])
def test_too_few_cores_to_share(cores: int) -> None:
    with pytest.raises(ValueError, match="cannot be dealt"):
        shares(cores)
