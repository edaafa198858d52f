"""Stopping at a layer's end and going on: the compiled hardware against the simulator, cycle by cycle.

It must not know the insides of either; the simulator is asked at the cycle at which the hardware says that it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.config import HardwareConfig, preset
from corepool.device.base import Boundary, Completion, Device, Lease, Position
from corepool.device.rtl import RtlDevice
from corepool.device.simulator import Simulator
from corepool.errors import DeviceError
from corepool.isa.codec import encode
from corepool.isa.table import Opcode
from support import programs

TINY = replace(preset("tiny"), watchdog_cycles=3000)
DEVICES: dict[str, Callable[[HardwareConfig], Device]] = {"simulator": Simulator, "rtl": RtlDevice}
everywhere = pytest.mark.parametrize("make", DEVICES.values(), ids=DEVICES.keys())
seeds = st.integers(0, 2**32 - 1)
END = encode(Opcode.END)


def pass_time(device: Device, lease: Lease, cycles: int) -> None:
    """Let so many cycles pass, or fewer if the run is over sooner."""
    if cycles > 0 and device.running(lease):
        try:
            device.wait(lease, cycles)
        except DeviceError:
            if not device.running(lease):
                raise


def told(completion: Completion) -> tuple[Any, ...]:
    """All of it, with cycles counted from the start."""
    fault = completion.fault
    relative = fault and replace(fault, cycle=fault.cycle - completion.start_cycle)
    return completion.cycles, relative, completion.syncs, completion.stopped


def opened(device: Device, cores: tuple[int, ...], streams: list[bytes]) -> Lease:
    lease = device.open_lease(cores, programs.WINDOW)
    device.load_streams(lease, streams, programs.WINDOW - (8 << 10))
    return lease


Requests = list[tuple[int, Boundary, int]]  # cycle from the start, and what is asked then


def both(cores: tuple[int, ...], streams: list[bytes], requests: Requests) -> tuple[Completion, Completion]:
    """The same requests at the same cycles; returns what the simulator and the hardware tell."""
    hardware, simulator = RtlDevice(TINY), Simulator(TINY)
    lease = opened(hardware, cores, streams)
    begin = hardware.start(lease)
    asked: Requests = []
    for at, after, passing in requests:
        pass_time(hardware, lease, begin + at - hardware.cycle)
        if hardware.running(lease):
            asked.append((hardware.stop(lease, after, passing) - begin, after, passing))
    seen = hardware.wait(lease)
    lease = opened(simulator, cores, streams)
    begin = simulator.start(lease)
    for at, after, passing in asked:
        pass_time(simulator, lease, begin + at - simulator.cycle)
        simulator.stop(lease, after, passing)
    return simulator.wait(lease), seen


@settings(max_examples=150)
@given(seed=seeds)
def test_requests_at_any_time(seed: int) -> None:
    """Random programs, with mistakes and SYNCs that do not wait for everything; one request, or two in a row."""
    rng = np.random.default_rng(seed)
    cores = tuple(int(core) for core in rng.permutation(TINY.cores)[: rng.integers(1, TINY.cores + 1)])
    streams = programs.streams(rng, TINY, list(cores), length=12, mistakes=0.2)
    simulator = Simulator(TINY)
    whole = simulator.run(opened(simulator, cores, streams))
    requests = []
    for at in sorted(int(cycle) for cycle in rng.integers(0, whole.cycles + 1, int(rng.integers(1, 3)))):
        after = Boundary.LAYER if rng.random() < 0.8 else Boundary.TASK
        requests.append((at, after, int(rng.choice([0, 0, 0, 1, 2]))))
    expected, seen = both(cores, streams, requests)
    fault = seen.fault
    if fault is not None and fault.address >= 1 << 32 and expected.fault is not None:
        expected = replace(
            expected, fault=replace(expected.fault, address=1 << 32 | expected.fault.address & 0xFFFFFFFF)
        )
    assert told(seen) == told(expected)


LAYERS = 4


def layered(cores: tuple[int, ...]) -> list[bytes]:
    """Loads of different lengths on every core between SYNCs of layers 10, 11, ..."""
    mask = sum(1 << core for core in cores)
    return [
        b"".join(
            encode(Opcode.LOAD, rows=1, blocks=1, pixels=60 + 50 * place + 20 * layer)
            + encode(Opcode.SYNC, cores=mask, layer=10 + layer)
            for layer in range(LAYERS)
        )
        + END
        for place in range(len(cores))
    ]


def test_every_cycle_around_a_layers_end() -> None:
    """A request counts for a SYNC until the dispatchers go on behind it."""
    cores = (0, 3)
    simulator = Simulator(TINY)
    lease = opened(simulator, cores, layered(cores))
    begin = simulator.start(lease)
    simulator.stop(lease, passing=1)
    stopped = simulator.wait(lease)
    arrived = stopped.end_cycle - begin
    assert (stopped.stopped, stopped.syncs) == (Position(11), 1)
    layers = set()
    for at in range(arrived - 12, arrived + TINY.sync_cycles + 4):
        expected, seen = both(cores, layered(cores), [(at, Boundary.LAYER, 0)])
        assert told(seen) == told(expected), at
        assert seen.stopped is not None
        layers.add(seen.stopped.layer)
        if seen.stopped.layer == 11:
            assert seen.cycles >= arrived
            assert seen.syncs == 1
    assert layers == {11, 12}


@everywhere
def test_where_it_stopped_and_what_is_left(make: Callable[[HardwareConfig], Device]) -> None:
    device = make(TINY)
    cores = (1, 2)
    lease = opened(device, cores, layered(cores))
    with pytest.raises(DeviceError, match="never started"):
        device.stop(lease)
    for passing in range(LAYERS):
        device.start(lease)
        for wrong in (-1, 1 << 16):
            with pytest.raises(DeviceError, match=r"0\.\.65535"):
                device.stop(lease, passing=wrong)
        device.stop(lease, passing=passing)
        completion = device.wait(lease)
        assert completion.stopped == Position(10 + passing)
        assert (completion.syncs, completion.fault) == (passing, None)
        assert not device.running(lease)
        assert device.counters(lease).instructions == (1 + 2 * passing,) * 2
    device.start(lease)
    device.stop(lease, passing=LAYERS)  # there are no more SYNCs: the run goes to its end, and the request with it
    assert (device.wait(lease).stopped, device.wait(lease).syncs) == (None, LAYERS)
    device.stop(lease)  # nothing runs
    assert device.run(lease).stopped is None
    device.start(lease)
    device.stop(lease)
    device.stop(lease, Boundary.TASK)
    assert device.wait(lease).stopped is None


@everywhere
def test_neighbours_do_not_notice(make: Callable[[HardwareConfig], Device]) -> None:
    """A lease beside one that is stopped again and again takes the cycles that it takes alone."""
    device = make(TINY)
    calm, busy = opened(device, (0, 2), layered((0, 2))), opened(device, (1, 3), layered((1, 3)))
    alone = device.run(calm)
    device.start(calm)
    while device.running(calm):
        if not device.running(busy):
            device.start(busy)
            device.stop(busy)
        pass_time(device, calm, 20)
    assert told(device.wait(calm)) == told(alone)
