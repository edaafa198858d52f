"""Neighbours of a victim on a card: silent, busy with networks of their own, or doing their worst.

They must not know the victim beyond which cores it leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from corepool.compiler.model import ModelPackage
from corepool.config import HardwareConfig
from corepool.device.base import Device, Lease
from corepool.errors import DeviceError
from corepool.isa.codec import encode
from corepool.isa.table import Opcode, Target
from corepool.runtime.session import Session

WINDOW_BYTES = 1 << 20
STREAMS_OFFSET = WINDOW_BYTES // 2
MOST = (1 << 16) - 1  # rows and blocks of one transfer: endless for all that matters here

KINDS = ("loads", "saves", "both", "fetches", "faults", "no sync")


@dataclass(frozen=True)
class Attack:
    """What hostile neighbours run: rows of ``pixels`` words (of 8 bytes), ``stride`` words apart from ``address`` on.

    Leases have ``group`` cores; ``phase`` cycles pass before the victim starts.
    """

    kind: str
    pixels: int = 512
    stride: int = 512
    address: int = 0
    group: int = 4
    phase: int = 0

    def mutated(self, random: Random) -> Attack:
        """The attack with one of its parameters drawn anew."""
        name = random.choice(("kind", "pixels", "stride", "address", "group", "phase"))
        draw: dict[str, Callable[[], int | str]] = {
            "kind": lambda: random.choice(KINDS),
            "pixels": lambda: random.choice((1, 7, 8, 9, 16, 127, 128, 129, 512, 4096)),
            "stride": lambda: random.choice((0, 1, 8, 9, 127, 128, 129, 512, 4096)),
            "address": lambda: 8 * random.randrange(512),
            "group": lambda: random.choice((1, 2, 4, 16)),
            "phase": lambda: random.randrange(2000),
        }
        return replace(self, **{name: draw[name]()})  # type: ignore[arg-type]  # each draw fits its field

    def stream(self, place: int, cores: Sequence[int], banks: Sequence[int]) -> bytes:
        """The instructions of the core ``place`` of a lease."""
        mask = sum(1 << bank for bank in banks)
        # Rows walk a few thousand times over the window's first part: ``rows`` keeps them inside, ``blocks`` repeats.
        rows = max(1, min(MOST, (STREAMS_OFFSET - self.address - 8 * self.pixels) // (8 * max(self.stride, 1))))
        sizes = {"blocks": MOST, "rows": rows, "pixels": self.pixels, "row_stride": self.stride, "block_stride": 0}
        load = encode(Opcode.LOAD, target=Target.WEIGHT, address=self.address, **sizes)
        save = encode(Opcode.SAVE, banks=mask, address=self.address, **sizes)
        end = encode(Opcode.END)
        if self.kind == "loads":
            return load + end
        if self.kind == "saves":
            return save + end
        if self.kind == "both":
            return load + save + end
        if self.kind == "fetches":
            tiny = encode(Opcode.ADD, out_blocks=1, rows=1, cols=1)
            return tiny * 900 + end
        if self.kind == "faults":
            short = encode(Opcode.LOAD, target=Target.WEIGHT, address=0, blocks=1, rows=1, pixels=64)
            outside = encode(Opcode.LOAD, target=Target.WEIGHT, address=WINDOW_BYTES, blocks=1, rows=1, pixels=64)
            return short * (1 + place) + (outside if place % 2 else bytes(32)) + end
        # no sync: the first core waits for ever, for others that never come
        sync = encode(Opcode.SYNC, layer=0, cores=sum(1 << core for core in cores))
        return (sync if place == 0 else load) + end


class Neighbours:
    """Leases beside the victim's; ``poke`` starts again those that have ended or were stopped by a fault."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.sessions: list[Session] = []
        self.leases: list[Lease] = []
        self.restarts = 0

    @classmethod
    def busy(cls, device: Device, cores: Sequence[int], packages: Sequence[ModelPackage]) -> Neighbours:
        """Networks in turn, on up to four cores each."""
        made = cls(device)
        for number, group in enumerate(grouped(cores, 4, device.config)):
            made.sessions.append(Session(device, packages[number % len(packages)], group, data=False))
        return made

    @classmethod
    def idle(cls, device: Device, cores: Sequence[int]) -> Neighbours:
        """Leases on which nothing runs."""
        made = cls(device)
        made.leases = [device.open_lease(group, WINDOW_BYTES) for group in grouped(cores, 4, device.config)]
        return made

    @classmethod
    def hostile(cls, device: Device, cores: Sequence[int], attack: Attack) -> Neighbours:
        """Leases of the attack's size, each with its streams."""
        made = cls(device)
        for group in grouped(cores, attack.group, device.config):
            lease = device.open_lease(group, WINDOW_BYTES)
            streams = [attack.stream(place, group, lease.banks) for place in range(len(group))]
            device.load_streams(lease, [np.frombuffer(each, np.uint8) for each in streams], STREAMS_OFFSET)
            made.leases.append(lease)
        return made

    def poke(self, idle: bool = False) -> None:
        """Start everything that does not run."""
        if idle:
            return
        for session in self.sessions:
            if not session.running:
                session.start(None)
                self.restarts += 1
        for lease in self.leases:
            if not self.device.running(lease):
                self.device.start(lease)
                self.restarts += 1

    def pass_time(self, cycles: int) -> None:
        """Let neighbours run alone for so many cycles, at most until the first has ended."""
        for session in self.sessions[:1]:
            session.advance(cycles)
        for lease in self.leases[:1]:
            if self.device.running(lease) and cycles:
                try:
                    self.device.wait(lease, cycles)
                except DeviceError:
                    if not self.device.running(lease):
                        raise

    def moved_bytes(self, banks: Sequence[int]) -> int:
        """Bytes that the latest runs asked of these banks."""
        counters = [self.device.counters(lease) for lease in self.leases]
        return sum(each.bytes_read[bank] + each.bytes_written[bank] for each in counters for bank in banks)

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        for lease in self.leases:
            self.device.close_lease(lease)


def grouped(cores: Sequence[int], most: int, config: HardwareConfig) -> list[tuple[int, ...]]:
    """Cores in groups of at most so many, those of one bank together where a group fits into a bank."""
    groups: list[list[int]] = []
    for core in cores:
        last = groups[-1] if groups else []
        same = most > config.cores_per_bank or not last or config.bank_of(last[-1]) == config.bank_of(core)
        if last and len(last) < most and same:
            last.append(core)
        else:
            groups.append([core])
    return [tuple(group) for group in groups]
