"""Time: the event loop against a model that steps cycle by cycle, and against numbers worked out by hand.

It must not know data; streams come from random programs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.config import HardwareConfig, preset
from corepool.device import timing
from corepool.device.base import Completion, Lease
from corepool.device.clockwork import Clockwork, CoreProgram
from corepool.device.decode import decode_stream
from corepool.device.simulator import Simulator
from support import programs
from support.cycle_model import LeaseModel

STREAMS_AT = programs.WINDOW - (8 << 10)


def offsets(streams: list[bytes]) -> list[int]:
    places, at = [], STREAMS_AT
    for stream in streams:
        places.append(at)
        at += -(-len(stream) // 64) * 64
    return places


def compare(simulator: Simulator, lease: Lease, completion: Completion, model: LeaseModel) -> None:
    """Every instruction of every core, the fault and the end."""
    model.run()
    if model.fault is None:
        assert completion.fault is None
    else:
        fault = completion.fault
        assert fault is not None
        assert (fault.fault.name, fault.core, fault.instruction_index, fault.address) == model.fault
    assert completion.end_cycle == model.end
    lines = {line.core: line for line in simulator.timeline(lease)}
    for core in model.cores:
        line = lines[core.number]
        ended = [op.ended for op in core.ops]
        assert line.ended.tolist() == ended
        assert [s for s, e in zip(line.started.tolist(), ended, strict=True) if e >= 0] == [
            op.started for op in core.ops if op.ended >= 0
        ]


def random_leases(rng: np.random.Generator, config: HardwareConfig) -> list[list[int]]:
    order = [int(core) for core in rng.permutation(config.cores)]
    leases = []
    while order and len(leases) < 3:
        count = int(rng.integers(1, min(len(order), 6) + 1))
        leases.append(order[:count])
        order = order[count:]
    return leases


@pytest.mark.parametrize("name", ["tiny", "u200"])
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_instruction_as_in_the_cycle_model(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = replace(preset(name), watchdog_cycles=900)
    if name == "tiny" and seed % 3 == 0:
        config = replace(config, load_outstanding=2, save_buffers=1, queue_depth=2, cores=8, fetch_depth=8)
    simulator = Simulator(config, data=False)
    running = []
    for cores in random_leases(rng, config):
        streams = programs.streams(rng, config, cores)
        lease = simulator.open_lease(cores, programs.WINDOW)
        simulator.load_streams(lease, streams, STREAMS_AT)
        running.append((lease, LeaseModel(config, cores, streams, offsets(streams), programs.WINDOW)))
    for lease, _ in running:
        simulator.start(lease)
    for index in rng.permutation(len(running)):
        lease, model = running[int(index)]
        compare(simulator, lease, simulator.wait(lease), model)


def test_a_stream_that_leaves_the_window() -> None:
    """The host cannot place one so; the registers of the hardware could hold it. Same fault, same cycle, same ends."""
    config = preset("tiny")
    window = STREAMS_AT + 640
    writer = programs.Writer(np.random.default_rng(3), config, [0], tokens=0, safe=True)
    code = b"".join(writer.instruction() for _ in range(40))
    model = LeaseModel(config, [1], [code], [STREAMS_AT], window)
    model.run()
    clock = Clockwork(config)
    clock.start(0, [CoreProgram(1, decode_stream(config, np.frombuffer(code, np.uint8)).timing, STREAMS_AT)], window)
    clock.advance(0, None)
    columns = clock.lease(0)
    assert model.fault is not None
    assert model.fault[0] == "WINDOW"
    assert model.fault[3] == window - window % config.fetch_burst_bytes
    assert columns[timing.FAULT] == timing.F_WINDOW
    assert (columns[timing.FAULT_INDEX], columns[timing.FAULT_ADDRESS]) == model.fault[2:]
    assert columns[timing.END] == model.end
