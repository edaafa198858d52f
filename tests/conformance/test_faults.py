"""Faults stop one lease, tell why and where, and leave every other lease exact to the byte and the cycle.

It must not know how a device works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.config import HardwareConfig, preset
from corepool.device.base import Completion, Device, Fault
from corepool.device.rtl import RtlDevice
from corepool.device.simulator import Simulator
from corepool.errors import DeviceError
from corepool.isa.codec import encode
from corepool.isa.table import Opcode, Target, fields_of
from support import programs
from support.bench import STREAMS_AT, Bench

DEVICES: dict[str, Callable[[HardwareConfig], Device]] = {"simulator": Simulator, "rtl": RtlDevice}
every_device = pytest.mark.parametrize("make", DEVICES.values(), ids=DEVICES.keys())
TINY = replace(preset("tiny"), watchdog_cycles=3000)
WINDOW = 1 << 15
END = encode(Opcode.END)
ONE = {"rows": 1, "blocks": 1, "pixels": 8}

WRONG = {
    "opcode 0": (bytes(32), Fault.UNDEFINED, 1, 0),
    "reserved bit": (bytes([9, 1]) + bytes(30), Fault.UNDEFINED, 1, 0),
    "zero where zero is undefined": (bytes([1]) + bytes(31), Fault.UNDEFINED, 1, 0),
    "address within a word": (encode(Opcode.LOAD, address=2, **ONE), Fault.UNDEFINED, 1, 0),
    "no such memory": (encode(Opcode.LOAD, target=7, **ONE), Fault.UNDEFINED, 1, 0),
    "load behind the window": (encode(Opcode.LOAD, address=WINDOW - 28, **ONE), Fault.WINDOW, 1, WINDOW),
    "load far behind the window": (
        encode(Opcode.LOAD, address=64, rows=2, blocks=1, pixels=8, row_stride=(1 << 32) - 1),
        Fault.WINDOW, 1, 64 + ((1 << 32) - 1) * 4,
    ),
    "save behind the window": (encode(Opcode.SAVE, banks=1, address=WINDOW - 28, **ONE), Fault.WINDOW, 1, WINDOW),
    "save into a foreign bank": (encode(Opcode.SAVE, banks=2, address=256, **ONE), Fault.WINDOW, 1, 256),
    "save into no bank at all": (encode(Opcode.SAVE, banks=1 << 7, address=256, **ONE), Fault.WINDOW, 1, 256),
    "sync with another's core": (encode(Opcode.SYNC, cores=3), Fault.FOREIGN_SYNC, 1, 0),
    "sync without oneself": (encode(Opcode.SYNC, cores=2), Fault.FOREIGN_SYNC, 1, 0),
    "a token that never comes": (encode(Opcode.LOAD, wait_next=1, **ONE), Fault.WATCHDOG, 2, 0),
}  # fmt: skip


def run(device: Device, code: list[bytes], cores: tuple[int, ...] = (0,)) -> Completion:
    lease = device.open_lease(cores, WINDOW)
    device.load_streams(lease, [b"".join(code)] * len(cores), STREAMS_AT)
    return device.run(lease)


@every_device
@pytest.mark.parametrize("case", WRONG)
def test_fault(make: Callable[[HardwareConfig], Device], case: str) -> None:
    instruction, fault, index, address = WRONG[case]
    first = encode(Opcode.LOAD, target=Target.WEIGHT, **ONE)
    completion = run(make(TINY), [first, instruction, END])
    assert completion.fault is not None
    report = completion.fault
    if make is RtlDevice and address >= 1 << 32:  # its registers hold the lower bits, and that there are more
        address = 1 << 32 | address & 0xFFFFFFFF
    assert (report.fault, report.core, report.instruction_index, report.address) == (fault, 0, index, address)
    assert report.cycle == completion.end_cycle


@every_device
def test_of_two_windows_in_one_cycle_the_save_is_told(make: Callable[[HardwareConfig], Device]) -> None:
    """A load asks for a burst a cycle; the one behind the window comes just before, with, or behind a save's first."""
    save, good_save = (encode(Opcode.SAVE, banks=1, address=at, **ONE) for at in (WINDOW, 0))
    seen = []
    for good in range(4):
        address = WINDOW - 64 * good
        load = encode(Opcode.LOAD, address=address, rows=good + 1, blocks=1, pixels=8, row_stride=16)
        alone, both = run(make(TINY), [load, good_save, END]).fault, run(make(TINY), [load, save, END]).fault
        assert alone is not None
        assert both is not None
        assert both.fault is Fault.WINDOW
        seen.append((alone.cycle - both.cycle, both.instruction_index))
    assert seen == [(0, 0), (0, 1), (1, 1), (2, 1)]


@every_device
def test_stream_without_end(make: Callable[[HardwareConfig], Device]) -> None:
    completion = run(make(TINY), [encode(Opcode.LOAD, **ONE)])
    assert completion.fault is not None
    assert (completion.fault.fault, completion.fault.instruction_index) == (Fault.STREAM_END, 1)
    empty = run(make(TINY), [])
    assert empty.fault is not None
    assert (empty.fault.fault, empty.cycles) == (Fault.STREAM_END, 0)


@every_device
def test_too_many_tokens(make: Callable[[HardwareConfig], Device]) -> None:
    """255 tokens fit into a counter; the 256th instruction that raises one faults."""
    load = encode(Opcode.LOAD, target=Target.WEIGHT, raise_next=1, **ONE)
    assert run(make(TINY), [load] * 255 + [END]).fault is None
    completion = run(make(TINY), [load] * 256 + [encode(Opcode.LOAD, wait_next=1, **ONE), END])
    assert completion.fault is not None
    assert (completion.fault.fault, completion.fault.instruction_index) == (Fault.TOKENS, 255)


@every_device
def test_watchdog_counts_from_the_last_completion(make: Callable[[HardwareConfig], Device]) -> None:
    """A SYNC that one of two cores never reaches: the fault comes a watchdog's time after the last end."""
    device = make(TINY)
    lease = device.open_lease((0, 1), WINDOW)
    sync = encode(Opcode.SYNC, cores=3)
    device.load_streams(lease, [END, sync + END], STREAMS_AT)
    completion = device.run(lease)
    assert completion.fault is not None
    alone = run(make(TINY), [END])  # the core that ends does so as if alone
    assert completion.fault.fault is Fault.WATCHDOG
    assert completion.cycles == alone.cycles + TINY.watchdog_cycles
    assert (completion.fault.core, completion.fault.instruction_index) == (1, 0)


@every_device
def test_what_is_not_complete_takes_no_effect(make: Callable[[HardwareConfig], Device]) -> None:
    """A save that ends before the fault is in DDR, one behind it is not."""
    device = make(TINY)
    bench = Bench(device)
    early, late = bench.room(64), bench.room(64)
    bench.load_words(Target.RESULT, np.full(32, 7, np.int8), 0, raise_next=1)
    add = {"out_blocks": 1, "rows": 1, "cols": 1, "result": 100, "raise_next": 1}
    bench.add(Opcode.ADD, wait_prev=1, **add)
    bench.add(Opcode.SAVE, wait_prev=1, banks=1, address=early, raise_prev=1, **ONE)
    bench.add(Opcode.ADD, wait_next=1, **add)
    bench.add(Opcode.SAVE, wait_prev=1, banks=1, address=bench.lease.window_bytes - 4, raise_prev=1, **ONE)
    bench.add(Opcode.SAVE, banks=1, address=late, **ONE)
    completion = bench.run()
    assert completion.fault is not None
    assert (completion.fault.fault, completion.fault.instruction_index) == (Fault.WINDOW, 4)
    assert (device.read(bench.lease, early, 32) == 7).all()
    assert not device.read(bench.lease, late, 32).any()


def busy_code(rng: np.random.Generator, cores: tuple[int, ...]) -> list[bytes]:
    return programs.streams(rng, TINY, list(cores), length=14, mistakes=0)


def outcome(device: Device, cores: tuple[int, ...], code: list[bytes], seed: int) -> tuple[object, list[bytes]]:
    """Run a victim; returns its cycles and fault relative to its start, its counters, and all bytes of its windows."""
    rng = np.random.default_rng(seed)
    lease = device.open_lease(cores, WINDOW)
    device.write(lease, 0, rng.integers(0, 256, WINDOW, dtype=np.uint8))
    device.load_streams(lease, code, WINDOW - (8 << 10))
    completion = device.run(lease)
    fault = completion.fault and replace(completion.fault, cycle=completion.fault.cycle - completion.start_cycle)
    windows = [device.read(lease, 0, WINDOW, bank).tobytes() for bank in lease.banks]
    return (completion.cycles, fault, device.counters(lease)), windows


@every_device
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_neighbours_change_nothing(make: Callable[[HardwareConfig], Device], seed: int) -> None:
    """A victim's bytes, cycles and counters with neighbours idle, busy, and faulting: equal."""
    rng = np.random.default_rng(seed)
    code = busy_code(rng, (0, 2))
    alone = outcome(make(TINY), (0, 2), code, seed)
    for kind in ("busy", "faulty"):
        device = make(TINY)
        neighbour = device.open_lease((3, 1), WINDOW)
        streams = busy_code(rng, (3, 1))
        if kind == "faulty":
            place = 32 * int(rng.integers(0, len(streams[0]) // 32))
            bad = encode(Opcode.SAVE, banks=3, address=WINDOW - 28, **ONE)
            streams[0] = streams[0][:place] + bad + streams[0][place:]
        device.load_streams(neighbour, streams, WINDOW - (8 << 10))
        device.start(neighbour)
        assert outcome(device, (0, 2), code, seed) == alone
        device.wait(neighbour)


def garbage(rng: np.random.Generator, count: int) -> bytes:
    """Instructions whose fields are anything at all, or bytes that are not even that."""
    code = []
    for _ in range(count):
        if rng.random() < 0.05:
            code.append(bytes(rng.integers(0, 256, 32, dtype=np.uint8)))
            continue
        opcode = Opcode(
            int(rng.choice([1, 2, 3, 3, 4, 5, 6, 7, 9], p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.04, 0.04, 0.02]))
        )
        values = {}
        for spec in fields_of(opcode):
            if spec.name == "opcode":
                continue
            pick = rng.random()
            high = min(spec.high, max(spec.low, 6)) if pick < 0.6 else spec.high
            values[spec.name] = spec.high if pick > 0.9 else int(rng.integers(spec.low, high + 1))
            if spec.name == "address":
                values[spec.name] &= 0x7FFC
        code.append(encode(opcode, **values))
    return b"".join(code)


@every_device
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_garbage_ends(make: Callable[[HardwareConfig], Device], seed: int) -> None:
    """Streams of anything end, by themselves or with a fault, and leave a neighbour's window as it is."""
    rng = np.random.default_rng(seed)
    device = make(TINY)
    neighbour = device.open_lease((1,), WINDOW)
    device.write(neighbour, 0, np.full(WINDOW, 0x5A, np.uint8))
    lease = device.open_lease((0, 2), WINDOW)
    device.write(lease, 0, rng.integers(0, 256, WINDOW, dtype=np.uint8))
    device.load_streams(lease, [garbage(rng, 12), garbage(rng, 12)], WINDOW - 2048)
    completion = device.run(lease)
    assert completion.cycles <= 30 * TINY.watchdog_cycles
    assert (device.read(neighbour, 0, WINDOW) == 0x5A).all()


@every_device
def test_protocol_refusals(make: Callable[[HardwareConfig], Device]) -> None:
    device = make(TINY)
    for cores in ((), (0, 0), (4,), (-1,), tuple(range(17))):
        with pytest.raises(DeviceError):
            device.open_lease(cores, WINDOW)
    with pytest.raises(DeviceError, match="room"):
        device.open_lease((0,), TINY.bank_bytes + 1)
    lease = device.open_lease((0, 2), WINDOW)
    with pytest.raises(DeviceError, match="belongs"):
        device.open_lease((1, 2), WINDOW)
    for offset, size in ((-1, 4), (WINDOW - 3, 4), (WINDOW + 64, 0)):
        with pytest.raises(DeviceError, match="window"):
            device.read(lease, offset, size)
        with pytest.raises(DeviceError, match="window"):
            device.write(lease, offset, bytes(size))
    with pytest.raises(DeviceError, match="bank"):
        device.read(lease, 0, 4, bank=7)
    with pytest.raises(DeviceError, match="streams"):
        device.start(lease)
    with pytest.raises(DeviceError, match="streams"):
        device.load_streams(lease, [END], 0)
    with pytest.raises(DeviceError, match="whole instructions"):
        device.load_streams(lease, [END, END + b"x"], 0)
    with pytest.raises(DeviceError, match="never started"):
        device.wait(lease)
    device.load_streams(lease, [END, END], 0)
    device.start(lease)
    for call in (lambda: device.start(lease), lambda: device.clear(lease), lambda: device.wait(lease, 5)):
        with pytest.raises(DeviceError, match="running"):
            call()
    assert device.running(lease)
    assert device.wait(lease).fault is None
    assert not device.running(lease)
    device.close_lease(lease)
    for stale in (lambda: device.running(lease), lambda: device.close_lease(lease), lambda: device.read(lease, 0, 4)):
        with pytest.raises(DeviceError, match="closed"):
            stale()
    assert device.open_lease((0, 2), WINDOW).epoch != lease.epoch


@every_device
def test_nothing_is_left_for_the_next_tenant(make: Callable[[HardwareConfig], Device]) -> None:
    """Window and on-chip memories are zero for whoever comes next."""
    device = make(TINY)
    bench = Bench(device)
    bench.load_words(Target.RESULT, np.full(64, 9, np.int8))
    assert bench.run().fault is None
    device.close_lease(bench.lease)
    bench = Bench(device)
    assert not device.read(bench.lease, 0, bench.lease.window_bytes).any()
    bench.add(Opcode.SAVE, banks=1, address=0, **ONE)
    device.write(bench.lease, 0, bytes([1]) * 64)
    assert bench.run().fault is None
    assert not device.read(bench.lease, 0, 32).any()
    assert device.read(bench.lease, 32, 32).all()
    device.clear(bench.lease)
    assert not device.read(bench.lease, 32, 32).any()
