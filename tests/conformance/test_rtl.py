"""The compiled hardware against the simulator: random programs, equal bytes, cycles, faults and counters.

It must not know the insides of either; `tiny` is compiled once and kept in the user's cache.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.config import preset
from corepool.device.base import Completion, Device, Lease
from corepool.device.rtl import RtlDevice
from corepool.device.simulator import Simulator
from corepool.errors import DeviceError
from corepool.isa.codec import encode
from corepool.isa.table import Opcode
from support import programs
from support.core_programs import WINDOW, ProgramMaker, random_window

TINY = replace(preset("tiny"), watchdog_cycles=3000)
OPCODES = (Opcode.CONV, Opcode.DWCONV, Opcode.POOL, Opcode.ADD, Opcode.MUL)
DEVICES = (Simulator, RtlDevice)
seeds = st.integers(0, 2**32 - 1)


def told(completion: Completion) -> tuple[int, Any]:
    """Cycles and fault, counted from the start."""
    fault = completion.fault
    return completion.cycles, fault and replace(fault, cycle=fault.cycle - completion.start_cycle)


def one_core(device: Device, core: int, seed: int) -> tuple[Any, ...]:
    """A program free of races: everything that can be seen of it."""
    rng = np.random.default_rng(seed)
    window = random_window(rng)
    code = ProgramMaker(rng, TINY, OPCODES).program(window, int(rng.integers(1, 6)))
    lease = device.open_lease((core,), WINDOW + len(code))
    device.write(lease, 0, window)
    device.load_streams(lease, [code], WINDOW)
    completion = device.run(lease)
    seen = told(completion), device.counters(lease), device.read(lease, 0, WINDOW).tobytes()
    device.close_lease(lease)
    return seen


@settings(max_examples=100)
@given(seed=seeds)
def test_programs_of_one_core(seed: int) -> None:
    expected, seen = (one_core(make(TINY), 0, seed) for make in DEVICES)
    assert seen == expected


def many_cores(device: Device, cores: tuple[int, ...], seed: int) -> tuple[Lease, tuple[Any, ...]]:
    rng = np.random.default_rng(seed)
    streams = programs.streams(rng, TINY, list(cores), length=12, mistakes=0.3)
    lease = device.open_lease(cores, programs.WINDOW)
    device.load_streams(lease, streams, programs.WINDOW - (8 << 10))
    completion = device.run(lease)
    counters = device.counters(lease)
    return lease, (*told(completion), counters if completion.fault is None else counters.cycles)


@settings(max_examples=100)
@given(seed=seeds)
def test_times_of_many_cores(seed: int) -> None:
    """Programs with tokens, SYNCs and mistakes, not free of races, so only times, faults and counters are compared."""
    rng = np.random.default_rng(seed)
    cores = tuple(int(core) for core in rng.permutation(TINY.cores)[: rng.integers(1, TINY.cores + 1)])
    expected, seen = (many_cores(make(TINY), cores, seed)[1] for make in DEVICES)
    if seen[1] is not None and seen[1].address >= 1 << 32:
        expected = (expected[0], replace(expected[1], address=1 << 32 | expected[1].address & 0xFFFFFFFF), expected[2])
    assert seen == expected


def test_two_leases_in_turn_and_at_once() -> None:
    """The first core's program means the same beside another lease, and again behind it."""
    device = RtlDevice(TINY)
    alone = one_core(device, 0, 5)
    neighbour = device.open_lease((1, 3), 1 << 15)
    sync = encode(Opcode.SYNC, cores=10)
    load = encode(Opcode.LOAD, rows=1, blocks=1, pixels=500)
    device.load_streams(neighbour, [(load * 20 + sync) * 4 + encode(Opcode.END)] * 2, 1 << 13)
    device.start(neighbour)
    assert one_core(device, 0, 5) == alone
    assert device.running(neighbour)
    assert device.wait(neighbour).fault is None
    assert one_core(device, 0, 5) == alone
    assert device.errors() == 0


def test_a_running_lease_can_be_closed() -> None:
    device = RtlDevice(TINY)
    lease = device.open_lease((0, 1), 1 << 15)
    load = encode(Opcode.LOAD, rows=1, blocks=1, pixels=500)
    device.load_streams(lease, [load * 50 + encode(Opcode.END)] * 2, 1 << 13)
    device.start(lease)
    assert device.running(lease)
    device.close_lease(lease)
    assert one_core(device, 0, 7) == one_core(Simulator(TINY), 0, 7)
    with pytest.raises(DeviceError, match="closed"):
        device.running(lease)
