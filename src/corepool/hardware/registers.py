# ruff: noqa: E501  (a table: one entry a line reads better)
"""The pool's register map: ONE table from which decoder, driver constants and docs/registers.md come.

It must not know how registers are built or who reads them; no Amaranth here, so that drivers can import it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from enum import Enum, IntEnum
from itertools import pairwise
from pathlib import Path

MAGIC = 0x4C4F5043  # "CPOL", little-endian
MAP_VERSION = 1
MAP_BYTES = 1 << 16


class Access(Enum):
    """What the host may do."""

    READ = "r"
    WRITE = "w"  # a command; reads as zero
    BOTH = "rw"
    CLEAR = "rw1c"  # writing ones clears these bits


class Scope(Enum):
    """What there is one register of: the first byte of the first block, and the bytes from one block to the next."""

    POOL = (0x0000, 0x1000)
    LEASE = (0x1000, 0x0040)
    CORE = (0x2000, 0x0080)
    BANK = (0x4000, 0x0010)

    @property
    def base(self) -> int:
        return self.value[0]

    @property
    def stride(self) -> int:
        return self.value[1]


class State(IntEnum):
    """State of a lease, as its STATE register tells. WAITING to RUNNING are one run; the rest say how it ended."""

    IDLE = 0
    WAITING = 1  # started, but its cores are not cleared yet or the slot period has not come
    RUNNING = 2
    DRAINING = 3  # stopped, but reads or writes are still under way
    DONE = 4
    FAULTED = 5
    STOPPED = 6  # at a SYNC, as asked
    KILLED = 7


class Fault(IntEnum):
    """Codes of the FAULT registers; of several in one cycle the lowest of the lowest core counts."""

    UNDEFINED = 1
    WINDOW = 2
    FOREIGN_SYNC = 3
    STREAM_END = 4
    TOKENS = 5
    WATCHDOG = 6
    BUS = 7


@dataclass(frozen=True)
class Part:
    """Some bits of a register."""

    name: str
    lsb: int
    width: int
    meaning: str


@dataclass(frozen=True)
class Register:
    """One 32-bit register at byte ``offset`` of each block of its scope.

    ``words`` 2: a 64-bit counter; reading its lower half keeps the upper half still until that is read.
    ``stopped``: writable only while the core's (or lease's) run is over; else the write is refused with an error.
    """

    scope: Scope
    name: str
    offset: int
    access: Access
    meaning: str
    parts: tuple[Part, ...] = ()
    words: int = 1
    stopped: bool = False

    def address(self, index: int = 0) -> int:
        """Byte address in block ``index``."""
        return self.scope.base + index * self.scope.stride + self.offset


def _counters(*names_and_meanings: tuple[str, str]) -> tuple[Register, ...]:
    return tuple(
        Register(Scope.CORE, name, 0x30 + 8 * place, Access.READ, meaning + ", since the start", words=2)
        for place, (name, meaning) in enumerate(names_and_meanings)
    )


_P, _L, _C, _B = Scope.POOL, Scope.LEASE, Scope.CORE, Scope.BANK

REGISTERS: tuple[Register, ...] = (
    Register(_P, "MAGIC", 0x00, Access.READ, f"{MAGIC:#x}"),
    Register(_P, "VERSION", 0x04, Access.READ, "version of this map"),
    Register(
        _P, "SHAPE", 0x08, Access.READ, "what was built",
        (Part("cores", 0, 8, "cores"), Part("banks", 8, 8, "banks"), Part("pixels", 16, 8, "pixel lanes"), Part("channels", 24, 8, "channels")),
    ),
    Register(_P, "CYCLE", 0x10, Access.READ, "clock cycles since reset", words=2),
    Register(_P, "INTERRUPT", 0x18, Access.CLEAR, "a bit per lease: a run of it has ended"),
    Register(_P, "INTERRUPT_ENABLE", 0x1C, Access.BOTH, "a bit per lease: its bit above raises the interrupt line"),
    Register(_P, "START", 0x20, Access.WRITE, "a bit per lease: start it; leases started by one write start in one cycle"),
    Register(_P, "KILL", 0x24, Access.WRITE, "a bit per lease: stop it at once"),
    Register(_P, "CLEAR", 0x28, Access.WRITE, "a bit per core that is not in a run: zero its memories"),
    Register(_P, "CLEARED", 0x2C, Access.READ, "a bit per core: its memories are zeroed since its owner last changed"),
    Register(_P, "ACTIVE", 0x30, Access.READ, "a bit per lease: it waits, runs or drains"),
    Register(_P, "WATCHDOG", 0x34, Access.BOTH, "cycles without any instruction completed after which a lease is stopped"),
    Register(
        _P, "ERRORS", 0x38, Access.CLEAR, "what went wrong at the pool's edge",
        (Part("refused", 0, 1, "a register access was refused"), Part("bus", 1, 1, "a bank answered with an error"),
         Part("guard", 2, 1, "the last guard held back a line that an earlier check should have found")),
    ),
    Register(_P, "FINGERPRINT", 0x40, Access.READ, "first 64 bits of the configuration's fingerprint, first digits highest", words=2),
    Register(_L, "STATE", 0x00, Access.READ, "how the lease stands: " + ", ".join(f"{int(s)} {s.name}" for s in State)),
    Register(_L, "CORES", 0x04, Access.READ, "its cores, a bit each: those that OWNER gives to it"),
    Register(
        _L, "STOP", 0x08, Access.BOTH, "stop at a SYNC instead of going on",
        (Part("after", 0, 16, "how many SYNCs to pass before; counts down"), Part("enable", 16, 1, "1: stop; 0 after the run")),
    ),
    Register(
        _L, "FAULT", 0x0C, Access.READ, "why the latest run was stopped",
        (Part("code", 0, 3, "0 none, " + ", ".join(f"{int(f)} {f.name}" for f in Fault)), Part("core", 8, 5, "which core; details are in its block")),
    ),
    Register(_L, "SYNCS", 0x10, Access.READ, "SYNCs passed since the start"),
    Register(_L, "BEGIN", 0x18, Access.READ, "cycle in which the latest run began", words=2),
    Register(_L, "END", 0x20, Access.READ, "cycle in which it ended", words=2),
    Register(
        _C, "OWNER", 0x00, Access.BOTH, "whose core it is; writing it has the core's memories cleared before its next start",
        (Part("lease", 0, 5, "number of the lease"), Part("owned", 8, 1, "0: nobody's")), stopped=True,
    ),
    Register(_C, "WINDOW_PAGE", 0x04, Access.BOTH, "first byte of the window in the core's bank, in pages of 4096 bytes", stopped=True),
    Register(_C, "WINDOW_LAST", 0x08, Access.BOTH, "offset of the window's last byte", stopped=True),
    Register(_C, "STREAM_OFFSET", 0x0C, Access.BOTH, "first byte of the stream, an offset in the window, a multiple of 32", stopped=True),
    Register(_C, "STREAM_COUNT", 0x10, Access.BOTH, "instructions of the stream, at most 2^27 - 1", stopped=True),
    Register(_C, "LAYER", 0x14, Access.READ, "layer of the SYNC that the core arrived at last"),
    Register(_C, "FAULT_INDEX", 0x18, Access.READ, "instruction at fault, or that stood at the dispatcher when the run ended"),
    Register(_C, "FAULT_ADDRESS", 0x1C, Access.READ, "WINDOW: offset of the burst's first byte, lower 32 bits"),
    Register(
        _C, "FAULT_CODE", 0x20, Access.READ, "fault of this very core",
        (Part("code", 0, 3, "as in FAULT"), Part("beyond", 8, 1, "the address lies at 2^32 or beyond")),
    ),
    *_counters(
        ("LOAD_BUSY", "cycles in which the load unit worked"),
        ("COMPUTE_BUSY", "cycles in which the compute unit worked"),
        ("SAVE_BUSY", "cycles in which the save unit worked"),
        ("STEPS", "cycles in which the array took operands"),
        ("INSTRUCTIONS", "LOAD, COMPUTE and SAVE instructions that ended"),
        ("BYTES_READ", "bytes read through the core's slot"),
        ("BYTES_WRITTEN", "bytes written through the core's slot, for any core of its lease"),
    ),
    Register(_B, "LINES_READ", 0x00, Access.READ, "lines read since reset", words=2),
    Register(_B, "LINES_WRITTEN", 0x08, Access.READ, "lines written since reset", words=2),
)  # fmt: skip


def _index() -> dict[str, Register]:
    """Registers by SCOPE_NAME. Raises ValueError where two overlap or one leaves its block or the map."""
    names: dict[str, Register] = {}
    taken: dict[tuple[Scope, int], str] = {}
    for register in REGISTERS:
        key = f"{register.scope.name}_{register.name}"
        if key in names or register.offset % 4 or register.offset + 4 * register.words > register.scope.stride:
            raise ValueError(f"{key} stands twice or outside of its block")
        for word in range(register.words):
            other = taken.setdefault((register.scope, register.offset + 4 * word), key)
            if other != key:
                raise ValueError(f"{key} overlaps {other}")
        names[key] = register
    ranges = sorted((scope.base, scope.base + scope.stride * (1 if scope is Scope.POOL else 32)) for scope in Scope)
    if any(low[1] > high[0] for low, high in pairwise(ranges)) or ranges[-1][1] > MAP_BYTES:
        raise ValueError("blocks of the register map overlap or leave it")
    return names


BY_NAME = _index()


def address(name: str, index: int = 0) -> int:
    """Byte address of a register, e.g. ``address("CORE_OWNER", 3)``. Raises KeyError."""
    return BY_NAME[name].address(index)


def part(name: str, field: str) -> Part:
    """Bits of a register. Raises KeyError."""
    for candidate in BY_NAME[name].parts:
        if candidate.name == field:
            return candidate
    raise KeyError(f"{name} has no part {field!r}")


_HEAD = f"""# Registers

Generated by `python -m corepool.hardware.registers docs/registers.md`; do not edit. Version {MAP_VERSION}.

The host reaches the pool by AXI4-Lite: 32-bit data, 16-bit byte addresses. An access to an address that is not listed, a write
without all four strobes, or one that is refused, is answered with SLVERR. Access: r read, w command, rw both, rw1c cleared by
writing ones. A register marked "stopped" is writable only while no run of its lease is on; OWNER also not to a lease that has one.
Registers of 8 bytes are counters of 48 bits; reading the lower half keeps the upper half still until it is read.
"""


def manual() -> str:
    """The text of docs/registers.md."""
    lines = [_HEAD]
    for scope in Scope:
        place = (
            f"{scope.base:#06x}"
            if scope is Scope.POOL
            else f"{scope.base:#06x} + {scope.stride:#x} x {scope.name.lower()}"
        )
        lines.append(f"\n## {scope.name.capitalize()}: {place}\n")
        lines.append("| offset | register | access | bits | meaning |\n|---|---|---|---|---|")
        for register in REGISTERS:
            if register.scope is not scope:
                continue
            access = register.access.value + (", stopped" if register.stopped else "")
            lines.append(
                f"| {register.offset:#04x} | `{register.name}` | {access} | {32 * register.words} | {register.meaning} |"
            )
            lines += [f"| | `{p.name}` | | {p.lsb + p.width - 1}:{p.lsb} | {p.meaning} |" for p in register.parts]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the manual, or with ``--check`` return 1 if the file differs from it."""
    parser = argparse.ArgumentParser(description="write docs/registers.md from the register table")
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true", help="only say whether the file is fresh")
    options = parser.parse_args(arguments)
    text = manual()
    if not options.check:
        options.file.write_text(text)
        return 0
    if options.file.is_file() and options.file.read_text() == text:
        return 0
    sys.stderr.write(f"{options.file} is stale: run python -m corepool.hardware.registers {options.file}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
