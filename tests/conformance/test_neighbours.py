"""Who shares the compiled hardware with a faulty or hostile lease notices nothing: same bytes, same cycles as alone.

On ``tiny`` a fault at each of 256 cycles; on ``u200`` (slow) attacks of every kind from the same banks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from corepool.config import HardwareConfig, preset
from corepool.device.base import Fault, Lease
from corepool.device.rtl import RtlDevice
from corepool.errors import DeviceError
from corepool.isa.codec import encode
from corepool.isa.table import INSTRUCTION_BYTES, Opcode, PoolMode, Target
from support.campaign import Case, Tenant, observe, orderly, outcome, place

TINY = preset("tiny")
UNDEFINED = b"\xff" * INSTRUCTION_BYTES
END = encode(Opcode.END)
OFFSETS = 256


def tenants(config: HardwareConfig, leases: list[tuple[int, ...]], rounds: int, largest: int) -> list[Tenant]:
    """Programs free of races for some leases, long enough to be disturbed."""
    rng = np.random.default_rng(11)
    return [orderly(rng, config, cores, (rounds, rounds + 1), largest) for cores in leases]


def alone(device: RtlDevice, victims: list[Tenant]) -> list[tuple[Any, ...]]:
    """Each victim's outcome with nobody beside it."""
    return [observe(device, Case((victim,)))[0] for victim in victims]


def pass_time(device: RtlDevice, lease: Lease, cycles: int) -> None:
    """Let so many cycles pass while the lease runs."""
    with pytest.raises(DeviceError, match="still running"):
        device.wait(lease, cycles)


def faulty(taps: int) -> Tenant:
    """A stream with an undefined word behind more poolings than a queue holds, the first of so many taps."""
    fields = dict.fromkeys(("rows", "cols", "out_blocks", "kernel_w", "stride_y", "stride_x", "dilation_y"), 1)
    fields |= {"dilation_x": 1, "in_rows": 1, "in_cols": 1, "first": 1, "last": 1, "mode": int(PoolMode.MAX)}
    words = [encode(Opcode.POOL, kernel_h=number, **fields) for number in (taps, 1, 1, 1, 1, 1, 1)]
    return Tenant((1,), 1 << 13, (b"".join([*words, UNDEFINED, END]),), b"", orderly=False)


def test_a_fault_at_each_of_256_cycles() -> None:
    """The attacker's core shares a bank with a victim; its fault comes a cycle later in each run.

    Leases start at multiples of the slot period; the cycles between are reached by streams that fault later.
    """
    device, period = RtlDevice(TINY), TINY.slot_period
    victims = tenants(TINY, [(0,), (2, 3)], rounds=4, largest=200)
    expected = alone(device, victims)
    delays: dict[int, tuple[int, Tenant]] = {}  # by remainder: cycles from start to fault, and who does it
    for taps in range(40, 48):
        cycles = alone(device, [faulty(taps)])[0][0]
        delays.setdefault(cycles % period, (cycles, faulty(taps)))
    assert len(delays) == period
    first, at = max(cycles for cycles, _ in delays.values()), []
    for offset in range(OFFSETS):
        cycles, attacker = delays[(first + offset) % period]
        leases = [place(device, victim) for victim in victims]
        hostile = place(device, attacker)
        begin = [device.start(lease) for lease in leases]
        pass_time(device, leases[0], first + offset - cycles + 1)
        device.start(hostile)
        fault = device.wait(hostile).fault
        assert fault is not None
        assert fault.fault is Fault.UNDEFINED
        at.append(fault.cycle - begin[0])
        assert device.running(leases[0])
        assert [outcome(device, *pair) for pair in zip(victims, leases, strict=True)] == expected
        for lease in (*leases, hostile):
            device.close_lease(lease)
    assert at == list(range(at[0], at[0] + OFFSETS))
    assert device.errors() == 0


def test_the_window_table_is_closed_while_a_core_runs() -> None:
    device = RtlDevice(TINY)
    (victim,) = tenants(TINY, [(0, 1)], rounds=4, largest=200)
    (expected,) = alone(device, [victim])
    lease = place(device, victim)
    device.start(lease)
    names = ("CORE_WINDOW_PAGE", "CORE_WINDOW_LAST", "CORE_OWNER", "CORE_STREAM_OFFSET", "CORE_STREAM_COUNT")
    before = [device._read(name, core) for name in names for core in lease.cores]
    for name in names:
        for core in lease.cores:
            for value in (0, 1, 0xFFFFFFFF):
                with pytest.raises(DeviceError, match=f"to register {name} was answered with 2"):
                    device._write(name, value, core)
    assert device.running(lease)
    assert [device._read(name, core) for name in names for core in lease.cores] == before
    assert outcome(device, victim, lease) == expected
    device._write("CORE_WINDOW_LAST", 0, 0)  # the run is over
    assert device._read("CORE_WINDOW_LAST", 0) == 0


U200 = replace(preset("u200"), watchdog_cycles=4000)
ATTACKERS = (3, 4, 15)  # in the banks of all victims
VICTIMS = [(0,), (1, 5, 6), (2, 7, 12, 13)]
WINDOW = 1 << 16


def transfers(count: int, pixels: int, banks: int, address: int) -> list[bytes]:
    """Loads and saves of as much as goes, side by side."""
    load = encode(Opcode.LOAD, target=int(Target.FEATURE), rows=1, blocks=1, pixels=pixels, address=address)
    save = encode(Opcode.SAVE, banks=banks, rows=1, blocks=1, pixels=pixels, address=address)
    return [load, save] * count


def attacks() -> Iterator[tuple[str, tuple[bytes, ...], Fault | None]]:
    """Name, a stream for each core, and how the lease ends."""
    lease, banks = sum(1 << core for core in ATTACKERS), 0b1011
    sync = encode(Opcode.SYNC, cores=lease)
    far = encode(Opcode.LOAD, rows=2, blocks=1, pixels=8, row_stride=WINDOW // 8 - 4)
    edge = encode(Opcode.SAVE, banks=banks, rows=1, blocks=1, pixels=16, address=WINDOW - 64)
    elsewhere = encode(Opcode.SAVE, banks=0b0100, rows=1, blocks=1, pixels=16, address=WINDOW // 2)
    body = transfers(4, 1024, banks, WINDOW // 2)
    for name, last in (("load beyond", far), ("save beyond", edge), ("foreign bank", elsewhere)):
        yield name, (b"".join([*body, last, END]),) * 3, Fault.WINDOW
    flood = b"".join([*transfers(120, 500, banks, WINDOW // 2), END])
    yield "flood", (flood,) * 3, None
    yield "no sync", (b"".join([*body, sync, END]), b"".join([*body, sync, END]), END), Fault.WATCHDOG
    foreign = encode(Opcode.SYNC, cores=lease | 1)
    yield "foreign sync", (b"".join([*body, foreign, END]),) * 3, Fault.FOREIGN_SYNC
    noise = np.random.default_rng(3).integers(0, 256, (3, 64 * INSTRUCTION_BYTES), np.uint8)
    yield "noise", tuple(UNDEFINED + each.tobytes() for each in noise), Fault.UNDEFINED


@pytest.mark.slow
def test_attacks_on_the_whole_card() -> None:
    """Three leases on the hardware of u200, a fourth that attacks, starting anew as often as it is stopped."""
    device = RtlDevice(U200)
    victims = tenants(U200, VICTIMS, rounds=6, largest=800)
    expected = alone(device, victims)
    for name, streams, ending in attacks():
        attacker = Tenant(ATTACKERS, WINDOW, streams, b"", orderly=False)
        hostile, leases = place(device, attacker), [place(device, victim) for victim in victims]
        device.start(hostile)
        for lease in leases:
            device.start(lease)
        rounds = 0
        while any(device.running(lease) for lease in leases):
            fault = device.wait(hostile).fault
            assert (fault and fault.fault) == ending, name
            rounds += 1
            device.start(hostile)
        assert rounds > 0, name
        assert [outcome(device, *pair) for pair in zip(victims, leases, strict=True)] == expected, name
        for lease in (*leases, hostile):
            device.close_lease(lease)
    assert device.errors() == 0
