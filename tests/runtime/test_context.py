"""Inferences that are stopped after a layer and go on on other cores: same outputs, and a state no larger than needed.

Of streams it must know nothing but where their SYNCs are.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from corepool.compiler.dynamic import link
from corepool.compiler.model import ModelPackage
from corepool.compiler.static.compile import compile_graph
from corepool.config import preset
from corepool.device.base import Boundary
from corepool.device.decode import decode_stream
from corepool.device.simulator import Simulator
from corepool.errors import DeviceError
from corepool.isa.table import Opcode
from corepool.runtime.session import Session
from support.graphs import random_graph, random_input

TINY = preset("tiny")
CORES = ((0,), (3,), (1, 2), (2, 3, 0), (0, 1, 2, 3))


@cache
def network(seed: int, layers: int) -> tuple[ModelPackage, dict[str, np.ndarray]]:
    """A random graph of all kinds of layers, compiled for `tiny`, and inputs for it."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, layers, size=14)
    return compile_graph(graph, TINY).package, random_input(rng, graph)


def sync_layers(package: ModelPackage, cores: tuple[int, ...], first_layer: int = 0) -> list[int]:
    """The layers that are at their end at each SYNC: some layers need none, some two."""
    fields = decode_stream(TINY, link(package, cores, TINY, first_layer).streams[0])
    return [int(layer) for layer in fields.column("layer")[fields.column("opcode") == Opcode.SYNC]]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_layer_from_any_cores_to_any(seed: int) -> None:
    package, inputs = network(seed, 7)
    rng = np.random.default_rng(seed)
    with Session(Simulator(TINY), package, (0,)) as session:
        whole = session.run(inputs)
    others = 0
    for number in range(len(package.layers) - 1):
        origin, target = (CORES[int(i)] for i in rng.integers(0, len(CORES), 2))
        met = sync_layers(package, origin)
        passing = min(number, len(met) - 1)
        layer = met[passing]
        with Session(Simulator(TINY), package, origin) as session:
            session.start(inputs)
            session.stop(passing=passing)
            saved = session.suspend()
            assert saved is not None
            assert saved.next_layer == layer + 1
            with pytest.raises(DeviceError, match="on no cores"):
                session.finish()
            switch = session.resume(saved, target)
            assert session.cores == target
            assert session.finish().raw == whole.raw
            assert switch.saved_bytes == saved.bytes > 0
            assert switch.loaded_bytes >= saved.bytes // 2
            others += len(target) != len(origin)
            assert session.run(inputs).raw == whole.raw  # and from the beginning again
    assert others > 0


def test_an_inference_can_move_after_every_layer() -> None:
    package, inputs = network(1, 7)
    with Session(Simulator(TINY), package, (0,)) as session:
        whole = session.run(inputs)
        session.start(inputs)
        following, cores = 0, (0,)
        while met := sync_layers(package, cores, following):
            session.stop()
            saved = session.suspend()
            assert saved is not None
            assert saved.next_layer == met[0] + 1 > following
            following, cores = saved.next_layer, CORES[saved.next_layer % len(CORES)]
            session.resume(saved, cores)
        session.stop()
        assert session.suspend() is None  # no SYNC is left
        assert session.finish().raw == whole.raw


def test_only_what_later_layers_load_is_saved() -> None:
    """A chain of layers: between two of them exactly one map is alive."""
    package, inputs = network(1, 7)
    sizes = [int(np.prod([-(-shape[0] // TINY.channels) * TINY.channels, *shape[1:]]))
             for shape in (layer["output"] for layer in package.meta["layers"])]  # fmt: skip
    for passing, layer in enumerate(sync_layers(package, (0, 1))):
        size = sizes[layer]
        with Session(Simulator(TINY), package, (0, 1)) as session:
            session.start(inputs)
            session.stop(passing=passing)
            saved = session.suspend()
            assert saved is not None
            assert saved.bytes <= sum(sizes[: layer + 1]) + sum(port.bytes for port in session.inputs)
            assert saved.bytes >= min(size, TINY.word_bytes)


def test_states_are_of_one_model() -> None:
    package, inputs = network(1, 7)
    other, _ = network(2, 7)
    other.meta["model"] = "another"
    with Session(Simulator(TINY), package, (0,)) as session:
        session.start(inputs)
        session.stop()
        saved = session.suspend()
    assert saved is not None
    with Session(Simulator(TINY), other, (0,)) as session:
        session.release()
        with pytest.raises(DeviceError, match="'another'"):
            session.resume(saved, (0,))


def test_a_stopped_inference_has_no_outputs_yet() -> None:
    package, inputs = network(1, 7)
    with Session(Simulator(TINY), package, (0, 1)) as session:
        session.start(inputs)
        session.stop()
        with pytest.raises(DeviceError, match="stopped after layer 0"):
            session.finish()
        session.start(inputs)
        session.stop(Boundary.TASK)
        assert session.finish().raw


def test_timing_alone_switches_as_well() -> None:
    package, inputs = network(1, 7)
    seen = []
    for data in (True, False):
        with Session(Simulator(TINY, data=data), package, (0, 1), data=data) as session:
            session.start(inputs if data else None)
            session.advance(500)
            session.stop()
            saved = session.suspend()
            assert saved is not None
            session.resume(saved, (1, 2, 3))
            seen.append((saved.next_layer, saved.bytes, saved.cycles, session.finish().completion.cycles))
    assert seen[0] == seen[1]
