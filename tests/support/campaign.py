"""Cases for devices to agree on: several leases at once, with random streams, and all that can be seen of them.

It must not know which devices there are. Cases are drawn through hypothesis, choice by choice, so that what fails
shrinks to few short instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
from hypothesis import strategies as st

from corepool.config import HardwareConfig
from corepool.device.base import STREAM_ALIGNMENT, Completion, Device, Fault, Lease
from corepool.errors import InstructionError
from corepool.isa.codec import Decoded, decode, encode
from corepool.isa.listing import line
from corepool.isa.table import INSTRUCTION_BYTES, Opcode
from support import core_programs, programs

COMPUTING = (Opcode.CONV, Opcode.DWCONV, Opcode.POOL, Opcode.ADD, Opcode.MUL)
WATCHDOG = 3000  # cycles; the longest instruction that is drawn takes less
MISTAKES = ("", "noise", "no end", "foreign sync", "tokens", "stuck")
_SYNC = Opcode.SYNC

Draw = Callable[[st.SearchStrategy[Any]], Any]


@lru_cache(4096)
def _whole(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


class Drawn:
    """Answers as a generator of NumPy does, but every number is hypothesis's choice; all shrink to the first."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def integers(self, low: int, high: int | None = None, size: int | None = None, dtype: Any = np.int64) -> Any:
        first, last = (0, int(low) - 1) if high is None else (int(low), int(high) - 1)
        if size is None:
            return self._draw(_whole(first, last))
        if (first, last) == (0, 255):
            return np.frombuffer(self._draw(st.binary(min_size=size, max_size=size)), np.uint8).astype(dtype)
        return np.array([self._draw(_whole(first, last)) for _ in range(size)], dtype)

    def random(self) -> float:
        return 0.999 - int(self._draw(_whole(0, 999))) / 1000

    def choice(self, values: Sequence[Any]) -> Any:
        return values[self._draw(_whole(0, len(values) - 1))]


Random = Drawn | np.random.Generator


@dataclass(frozen=True)
class Tenant:
    """A lease of a case. ``orderly`` streams are free of races, so that bytes are compared, too."""

    cores: tuple[int, ...]
    window_bytes: int
    streams: tuple[bytes, ...]
    content: bytes = field(repr=False)
    orderly: bool

    def __str__(self) -> str:
        parts = [f"lease of cores {self.cores}, window {self.window_bytes}, {'orderly' if self.orderly else 'wild'}"]
        for core, stream in zip(self.cores, self.streams, strict=True):
            for word, same in groupby(_words(stream)):
                parts.append(f"  core {core}: {sum(1 for _ in same)} x {_told(word)}")
        return "\n".join(parts)


@dataclass(frozen=True)
class Case:
    """Leases that run at the same time, started one after the other."""

    tenants: tuple[Tenant, ...]

    def opcodes(self) -> set[Opcode]:
        """Of all instructions that are defined."""
        words = [word for tenant in self.tenants for stream in tenant.streams for word in _words(stream)]
        return {found.opcode for found in map(_defined, words) if found is not None}

    def __repr__(self) -> str:
        return "\n" + "\n".join(map(str, self.tenants))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints of a case that fails."""
        printer.text(repr(self))


def _words(stream: bytes) -> list[bytes]:
    return [stream[at : at + INSTRUCTION_BYTES] for at in range(0, len(stream), INSTRUCTION_BYTES)]


def _told(word: bytes) -> str:
    return f"undefined {word.hex()}" if _defined(word) is None else line(word)


def _decoded(word: bytes) -> tuple[Opcode, dict[str, int]]:
    found = decode(word)
    return found.opcode, dict(found.values)


@st.composite
def cases(draw: Draw, config: HardwareConfig, mistake: str = "") -> Case:
    """One to three leases that share out some of the cores in any way; some streams make the ``mistake``."""
    free = draw(st.permutations(range(config.cores)))
    tenants = []
    for _ in range(draw(_whole(1, 3))):
        if not free:
            break
        count = draw(_whole(1, len(free)))
        cores, free = tuple(free[:count]), free[count:]
        rng = Drawn(draw)
        tenants.append(orderly(rng, config, cores) if draw(st.booleans()) else _wild(rng, config, cores, mistake))
    return Case(tuple(tenants))


def _wild(rng: Random, config: HardwareConfig, cores: tuple[int, ...], likely: str) -> Tenant:
    """Races, tokens, mistakes; the window may end just before or behind something that is asked for."""
    streams = list(programs.streams(rng, config, list(cores), length=6, mistakes=0.5))  # type: ignore[arg-type]
    for index, stream in enumerate(streams):
        words, mistake = _words(stream), likely if rng.random() < 0.5 else ""
        place = int(rng.integers(0, len(words)))
        if mistake == "noise":
            words[place] = bytes(rng.integers(0, 256, INSTRUCTION_BYTES, np.uint8))
        elif mistake == "no end":
            words.pop()
        elif mistake == "foreign sync":
            words[place] = encode(_SYNC, cores=int(rng.integers(1, 1 << config.cores)))
        elif mistake == "tokens":
            words[:0] = [encode(Opcode.LOAD, rows=1, blocks=1, pixels=1, raise_next=1)] * 256
        elif mistake == "stuck":
            words.insert(place, encode(Opcode.LOAD, rows=1, blocks=1, pixels=1, wait_next=1))
        streams[index] = b"".join(words)
    room = _room(streams)
    streams = [b"".join(_moved(word, room) for word in _words(stream)) for stream in streams]
    ends = [_end(*_decoded(word), config) for stream in streams for word in _words(stream) if _transfers(word)]
    window = room + programs.WINDOW
    if ends and rng.random() < 0.3:
        window = min(max(int(rng.choice(ends)) + int(rng.choice((0, -1, 1, -64, 63))), room + 1), 1 << 20)
    return Tenant(cores, window, tuple(streams), b"", orderly=False)


def _room(streams: Sequence[bytes]) -> int:
    """Bytes that streams take in a window."""
    return sum(-(-len(stream) // STREAM_ALIGNMENT) * STREAM_ALIGNMENT for stream in streams)


def _moved(word: bytes, distance: int) -> bytes:
    """The word with its address, if it has one, so much higher: streams that stand below are not written over."""
    if not _transfers(word):
        return word
    opcode, values = _decoded(word)
    return encode(opcode, **values | {"address": values["address"] + distance})


def _defined(word: bytes) -> Decoded | None:
    try:
        return decode(word)
    except InstructionError:
        return None


def _transfers(word: bytes) -> bool:
    found = _defined(word)
    return found is not None and found.opcode in (Opcode.LOAD, Opcode.SAVE)


def _end(opcode: Opcode, values: dict[str, int], config: HardwareConfig) -> int:
    """The first byte behind a transfer."""
    words = (values["blocks"] - 1) * values["block_stride"] + (values["rows"] - 1) * values["row_stride"]
    return values["address"] + (words + values["pixels"]) * config.word_bytes


def orderly(
    rng: Random, config: HardwareConfig, cores: tuple[int, ...], rounds: tuple[int, int] = (1, 3), largest: int = 60
) -> Tenant:
    """A race-free program for each core in a part of the window of its own; SYNCs as many as the most has.

    ``rounds``: from, and below, how many; ``largest``: steps of a computation.
    """
    data = np.random.default_rng(int(rng.integers(0, 1 << 16)))
    banks = sorted({config.bank_of(core) for core in cores})
    lease, part = sum(1 << core for core in cores), core_programs.WINDOW
    programs_, content = [], []
    for index in range(len(cores)):
        window = core_programs.random_window(data)
        maker = core_programs.ProgramMaker(rng, config, COMPUTING, largest=largest, fill=data)  # type: ignore[arg-type]
        words = [_decoded(word) for word in _words(maker.program(window, int(rng.integers(*rounds))))]
        for opcode, values in words:
            if opcode in (Opcode.LOAD, Opcode.SAVE):
                values["address"] += index * part
            if opcode is Opcode.SAVE:
                values["banks"] = sum(1 << bank for bank in banks if rng.random() < 0.5) or 1 << banks[0]
            if opcode is _SYNC:
                values["cores"] = lease
        programs_.append(words)
        content.append(window.tobytes())
    most = max(sum(opcode is _SYNC for opcode, _ in words) for words in programs_)
    streams = []
    for words in programs_:
        missing = most - sum(opcode is _SYNC for opcode, _ in words)
        words[-1:-1] = [(_SYNC, {"cores": lease})] * missing
        streams.append(b"".join(encode(opcode, **values) for opcode, values in words))
    return Tenant(cores, len(cores) * part, tuple(streams), b"".join(content), orderly=True)


def place(device: Device, tenant: Tenant) -> Lease:
    """A lease for the tenant, with its content and streams."""
    behind = _room(tenant.streams) if tenant.orderly else 0
    lease = device.open_lease(tenant.cores, tenant.window_bytes + behind)
    if tenant.content:
        device.write(lease, 0, tenant.content)
    device.load_streams(lease, tenant.streams, tenant.window_bytes if tenant.orderly else 0)
    return lease


def outcome(device: Device, tenant: Tenant, lease: Lease) -> tuple[Any, ...]:
    """Waits, and tells what can be seen: cycles, fault, counters, bytes of all banks."""
    completion = device.wait(lease)
    whole = completion.fault is None
    counters = device.counters(lease)
    content = [device.read(lease, 0, tenant.window_bytes, bank).tobytes() for bank in lease.banks]
    return (*told(completion), counters if whole else counters.cycles, content if whole and tenant.orderly else None)


def observe(device: Device, case: Case) -> list[tuple[Any, ...]]:
    """Run all leases of a case at once; for each its outcome."""
    leases = [place(device, tenant) for tenant in case.tenants]
    for lease in leases:
        device.start(lease)
    seen = [outcome(device, tenant, lease) for tenant, lease in zip(case.tenants, leases, strict=True)]
    for lease in leases:
        device.close_lease(lease)
    return seen


def told(completion: Completion) -> tuple[int, Any]:
    """Cycles and fault, counted from the start; addresses beyond 4 GiB as far as registers hold them."""
    fault = completion.fault
    if fault is None:
        return completion.cycles, None
    address = fault.address
    if fault.fault is Fault.WINDOW and address >= 1 << 32:
        address = 1 << 32 | address & 0xFFFFFFFF
    return completion.cycles, replace(fault, cycle=fault.cycle - completion.start_cycle, address=address)
