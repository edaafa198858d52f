"""Attacks on a device's isolation: one lease tries to break out while its neighbour's bytes and cycles are watched.

It must not know tenants, keys or servers. Only cores that it is given are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from corepool.config import HardwareConfig
from corepool.device.base import Device, Fault, Lease
from corepool.isa.codec import encode
from corepool.isa.table import Opcode, Target

WINDOW_BYTES = 1 << 15
STREAMS_AT = WINDOW_BYTES // 2
ROUNDS = 40
END = encode(Opcode.END)
SEED = 5

Lend = Callable[[], AbstractContextManager[Device]]


@dataclass(frozen=True)
class Verdict:
    """What became of one attack. ``detail`` says what was seen."""

    attack: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Attack:
    """``stream`` of the attacker's only core, and how its lease has to end (empty: without a fault)."""

    name: str
    what: str
    stream: bytes
    faults: frozenset[Fault]


def _transfers(count: int, pixels: int, bank: int) -> bytes:
    load = encode(Opcode.LOAD, target=int(Target.FEATURE), rows=1, blocks=1, pixels=pixels, address=0)
    save = encode(Opcode.SAVE, banks=1 << bank, rows=1, blocks=1, pixels=pixels, address=WINDOW_BYTES // 4)
    return (load + save) * count


def attacks(attacker: int, victim: int, bank: int, foreign_bank: int | None) -> list[Attack]:
    """For an attacker with one core, in a bank that the victim uses too."""
    one = {"rows": 1, "blocks": 1, "pixels": 8}
    over = {"rows": 1, "blocks": 1, "pixels": 64}  # begins within the window, ends behind it
    far = {"rows": 2, "blocks": 1, "pixels": 8, "row_stride": (1 << 32) - 1}
    body, window = _transfers(2, 8, bank), frozenset({Fault.WINDOW})
    made = [
        Attack("out-of-window", "reads behind its window",
               body + encode(Opcode.LOAD, address=WINDOW_BYTES - 64, **over) + END, window),
        Attack("out-of-window", "reads far behind its window",
               body + encode(Opcode.LOAD, address=64, **far) + END, window),
        Attack("out-of-window", "writes behind its window",
               body + encode(Opcode.SAVE, banks=1 << bank, address=WINDOW_BYTES - 64, **over) + END, window),
        Attack("foreign lease", "waits for a core of its neighbour",
               body + encode(Opcode.SYNC, cores=1 << attacker | 1 << victim) + END, frozenset({Fault.FOREIGN_SYNC})),
        Attack("runaway stream", "has no end", body, frozenset({Fault.STREAM_END, Fault.UNDEFINED})),
        Attack("runaway stream", "waits for what never comes",
               body + encode(Opcode.LOAD, wait_next=1, **one) + END, frozenset({Fault.WATCHDOG})),
        Attack("bank flood", "moves as much as it can", _transfers(4 * ROUNDS, 512, bank) + END, frozenset()),
    ]  # fmt: skip
    if foreign_bank is not None:
        save = encode(Opcode.SAVE, banks=1 << foreign_bank, address=256, **one)
        made.append(Attack("foreign lease", "writes into a bank that it has no window in", body + save + END, window))
    return made


def run_attacks(lend: Lend, config: HardwareConfig, victim: int = 0, attacker: int = 1) -> list[Verdict]:
    """One verdict for each attack. It passes if the attacker ends as it must, and its neighbour's bytes and cycles are
    those of a run alone. The device is lent for each attack anew, so that others come to it in between. Raises
    DeviceError for a device without these cores."""
    bank = config.bank_of(attacker)
    foreign = next((each for each in range(config.banks) if each not in (bank, config.bank_of(victim))), None)

    def watch(aggressor: int | None, stream: bytes) -> _Seen:
        with lend() as device:
            return _watch(device, victim, aggressor, stream)

    alone = watch(None, b"")
    verdicts = []
    for attack in attacks(attacker, victim, bank, foreign):
        seen = watch(attacker, attack.stream)
        wrong = []
        if seen.fault not in attack.faults if attack.faults else seen.fault is not None:
            wrong.append(f"the attacker ended with {seen.fault.name if seen.fault else 'no fault'}")
        if seen.data != alone.data:
            wrong.append("its neighbour's memory changed")
        if seen.cycles != alone.cycles:
            wrong.append(f"its neighbour took {seen.cycles} cycles instead of {alone.cycles}")
        good = f"stopped by {seen.fault.name}" if seen.fault else "it ran"
        detail = "; ".join(wrong) or f"{good}, its neighbour is unmoved: same bytes, {alone.cycles} cycles"
        verdicts.append(Verdict(attack.name, not wrong, f"{attack.what}: {detail}"))
    return verdicts


@dataclass(frozen=True)
class _Seen:
    data: bytes
    cycles: int
    fault: Fault | None


def _watch(device: Device, victim: int, attacker: int | None, stream: bytes) -> _Seen:
    """Run the victim's stream, beside an attacker's if there is one."""
    leases: list[Lease] = []
    try:
        mine = _open(device, victim, _transfers(ROUNDS, 64, device.config.bank_of(victim)) + END, leases)
        other = None if attacker is None else _open(device, attacker, stream, leases)
        if other is not None:
            device.start(other)
        device.start(mine)
        completion = device.wait(mine)
        fault = None
        if other is not None:
            ended = device.wait(other)
            fault = None if ended.fault is None else ended.fault.fault
        return _Seen(device.read(mine, 0, STREAMS_AT).tobytes(), completion.cycles, fault)
    finally:
        for lease in leases:
            device.close_lease(lease)


def _open(device: Device, core: int, stream: bytes, leases: list[Lease]) -> Lease:
    lease = device.open_lease((core,), STREAMS_AT + max(STREAMS_AT, -(-len(stream) // 4096) * 4096))
    leases.append(lease)
    words: Sequence[int] = np.random.default_rng(SEED + core).integers(0, 256, STREAMS_AT // 2).tolist()
    device.write(lease, 0, bytes(words))
    device.load_streams(lease, [stream], STREAMS_AT)
    return lease
