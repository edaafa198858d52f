"""Compiled networks through sessions: the hardware gives the bytes of the numerics in the simulator's cycles.

It must not know streams.
"""

from __future__ import annotations

import numpy as np
import pytest

from corepool.compiler.static import reference
from corepool.compiler.static.compile import compile_graph
from corepool.config import preset
from corepool.device.rtl import RtlDevice
from corepool.device.simulator import Simulator
from corepool.runtime.session import Session
from support.graphs import random_graph, random_input

TINY = preset("tiny")


@pytest.mark.parametrize("seed", range(4))
def test_networks_on_both_devices(seed: int) -> None:
    """Random networks of every kind of layer, on 1 to 4 cores, moved between them; then two at once."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, layers=5, size=12)
    inputs = random_input(rng, graph)
    package = compile_graph(graph, TINY).package
    expected = reference.outputs(graph, reference.execute(graph, inputs))
    hardware, simulator = RtlDevice(TINY), Simulator(TINY)
    for cores in ((seed,), (2, 1), (0, 1, 2, 3)):
        with Session(hardware, package, cores) as here, Session(simulator, package, cores) as there:
            seen, simulated = here.run(inputs), there.run(inputs)
        assert seen.raw == simulated.raw
        assert seen.completion.cycles == simulated.completion.cycles
        assert seen.counters == simulated.counters
        for name, value in expected.items():
            assert np.array_equal(seen.outputs[name], value), (name, cores)
    with Session(hardware, package, (0, 2)) as first, Session(hardware, package, (3, 1)) as second:
        first.start(inputs)
        second.start(inputs)
        results = first.finish(), second.finish()
    for cores, result in zip(((0, 2), (3, 1)), results, strict=True):
        with Session(simulator, package, cores) as alone:
            simulated = alone.run(inputs)
        assert (result.raw, result.completion.cycles) == (simulated.raw, simulated.completion.cycles)
    assert hardware.errors() == 0
