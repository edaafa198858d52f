"""The compiled hardware against the simulator: random programs, equal bytes, cycles, faults and counters.

It must not know the insides of either; `tiny` is compiled once and kept in the user's cache.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.config import preset
from corepool.device.base import Completion, Device, Lease
from corepool.device.rtl import RtlDevice
from corepool.device.simulator import Simulator
from corepool.errors import DeviceError
from corepool.isa.codec import encode
from corepool.isa.table import Opcode, PoolMode, Shape, Target
from support import programs
from support.core_programs import OUTPUT, WINDOW, ProgramMaker, random_window

TINY = replace(preset("tiny"), watchdog_cycles=3000)
OPCODES = (Opcode.CONV, Opcode.DWCONV, Opcode.POOL, Opcode.ADD, Opcode.MUL)
DEVICES = (Simulator, RtlDevice)
seeds = st.integers(0, 2**32 - 1)
WINDOWED = {  # a kernel of one tap over a row of eight words
    **{"kernel_h": 1, "kernel_w": 1, "stride_y": 1, "stride_x": 1, "dilation_y": 1, "dilation_x": 2},
    **{"in_rows": 1, "in_cols": 8, "first": 1, "last": 1},
}


def told(completion: Completion) -> tuple[int, Any]:
    """Cycles and fault, counted from the start."""
    fault = completion.fault
    return completion.cycles, fault and replace(fault, cycle=fault.cycle - completion.start_cycle)


def one_core(device: Device, core: int, seed: int, rounds: int | None = None) -> tuple[Any, ...]:
    """A program free of races, of so many rounds or a random number: everything that can be seen of it."""
    rng = np.random.default_rng(seed)
    window = random_window(rng)
    code = ProgramMaker(rng, TINY, OPCODES).program(window, rounds or int(rng.integers(1, 6)))
    return alone(device, core, window, code)


def alone(device: Device, core: int, window: npt.NDArray[np.uint8], code: bytes) -> tuple[Any, ...]:
    """Cycles, fault, counters and the window's bytes after a stream on a lease of its own."""
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


def test_programs_behind_each_other() -> None:
    """One device for all, so that a program finds what the one before left; 7, 152 and 279 have shown mistakes."""
    simulator, hardware = (make(TINY) for make in DEVICES)
    wrong = [seed for seed in range(301) if one_core(simulator, 0, seed, 4) != one_core(hardware, 0, seed, 4)]
    assert wrong == []


@pytest.mark.parametrize(
    ("before", "fields"),
    [
        (Opcode.ADD, {}),
        (Opcode.MUL, {}),
        (Opcode.CONV, WINDOWED | {"shape": int(Shape.COLUMN), "in_blocks": 1, "dilation_x": 1, "in_cols": 1}),
    ],
)
def test_dilated_pooling_behind_other_places_of_pixels(before: Opcode, fields: dict[str, int]) -> None:
    """The second pixel's taps follow from its column, which instructions of other shapes place elsewhere."""
    window = random_window(np.random.default_rng(1))
    load = encode(Opcode.LOAD, target=int(Target.FEATURE), rows=1, blocks=1, pixels=8, raise_next=1)
    first = encode(before, rows=1, cols=1, out_blocks=1, result=8, wait_prev=1, **fields)
    size = {"rows": 1, "cols": TINY.pixels, "out_blocks": 1}
    pool = encode(Opcode.POOL, mode=int(PoolMode.MAX), low=-128, high=127, raise_next=1, **size, **WINDOWED)
    save = encode(Opcode.SAVE, banks=1, address=OUTPUT, rows=1, blocks=1, pixels=TINY.pixels, wait_prev=1)
    code = load + first + pool + save + encode(Opcode.END)
    expected, seen = (alone(make(TINY), 0, window, code) for make in DEVICES)
    assert seen == expected
    count = TINY.pixels * TINY.word_bytes
    assert seen[2][OUTPUT : OUTPUT + count] == window[:count].tobytes()


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
    undisturbed = one_core(device, 0, 5)
    neighbour = device.open_lease((1, 3), 1 << 15)
    sync = encode(Opcode.SYNC, cores=10)
    load = encode(Opcode.LOAD, rows=1, blocks=1, pixels=500)
    device.load_streams(neighbour, [(load * 20 + sync) * 4 + encode(Opcode.END)] * 2, 1 << 13)
    device.start(neighbour)
    assert one_core(device, 0, 5) == undisturbed
    assert device.running(neighbour)
    assert device.wait(neighbour).fault is None
    assert one_core(device, 0, 5) == undisturbed
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
