"""The protocol that host code is written against: leases, memory windows, streams, runs, faults, counters.

It must not know how a device executes streams; the simulator and the Verilated hardware implement it elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.errors import DeviceError

Bytes = npt.NDArray[np.uint8]
BytesLike = bytes | bytearray | memoryview | npt.NDArray[Any]

STREAM_ALIGNMENT = 64  # bytes; streams of several cores stand one after the other at multiples of it
MAX_LEASE_CORES = 16
MAX_PASSING = 0xFFFF  # SYNCs: 16 bits of the register
WINDOW_ALIGNMENT = 4096  # bytes; every window begins on such a boundary, so bursts do not depend on where it lies


class Fault(Enum):
    """Why a lease was stopped; the numbers are those of the fault register. The order is the order of reporting.

    BUS: a memory answered with an error, which only real memory does.
    """

    UNDEFINED = 1
    WINDOW = 2
    FOREIGN_SYNC = 3
    STREAM_END = 4
    TOKENS = 5
    WATCHDOG = 6
    BUS = 7


class Boundary(Enum):
    """Where a running lease can be stopped so that it can go on later."""

    LAYER = "layer"  # at a SYNC, where all that its cores have made is in their banks
    TASK = "task"  # at the end of the streams, as it would anyhow


@dataclass(frozen=True)
class FaultReport:
    """What a stopped lease tells: the fault, the device's core, the instruction's index in that core's stream.

    ``address`` is a byte offset in the lease's window (WINDOW only, else 0); ``cycle`` is device time.
    """

    fault: Fault
    core: int
    instruction_index: int
    address: int
    cycle: int

    def __str__(self) -> str:
        where = f" at address {self.address}" if self.fault is Fault.WINDOW else ""
        return f"{self.fault.name} on core {self.core}, instruction {self.instruction_index}{where}, cycle {self.cycle}"


@dataclass(frozen=True)
class Position:
    """Where a run was stopped on request: at a SYNC, which it did not pass; ``layer`` is its number as the first core's
    SYNC carries it. What comes behind that SYNC is left to do."""

    layer: int


@dataclass(frozen=True)
class Completion:
    """The end of a run: cycles that it took, device time of start and end, the SYNCs that it passed, and the fault, if
    one stopped it, or the position, if a request did."""

    cycles: int
    start_cycle: int
    end_cycle: int
    fault: FaultReport | None = None
    syncs: int = 0
    stopped: Position | None = None


@dataclass(frozen=True)
class Counters:
    """What the latest run of a lease did so far. Per core in the lease's order, per bank in the device's order.

    Busy times are cycles between start and end of instructions (LOAD: until the unit is free for the next one);
    ``steps`` are cycles in which the array takes operands; bytes are those asked for, fetches included.
    """

    cycles: int
    compute_busy: tuple[int, ...]
    load_busy: tuple[int, ...]
    save_busy: tuple[int, ...]
    steps: tuple[int, ...]
    instructions: tuple[int, ...]
    bytes_read: tuple[int, ...]
    bytes_written: tuple[int, ...]


@dataclass(frozen=True)
class Lease:
    """A handle: some cores and a window of the same size in each of their banks. The device refuses it once closed."""

    number: int
    epoch: int
    cores: tuple[int, ...]
    banks: tuple[int, ...]
    home_bank: int
    window_bytes: int


class Device(ABC):
    """A pool of cores with their memory banks. Every method raises DeviceError for a stale lease or a bad argument."""

    config: HardwareConfig

    @property
    @abstractmethod
    def cycle(self) -> int:
        """Device time in clock cycles: how far all running leases have got."""

    def warm(self) -> None:  # noqa: B027
        """Do now what a first run would have to wait for, while nobody has a lease."""

    @abstractmethod
    def open_lease(self, cores: Sequence[int], window_bytes: int) -> Lease:
        """Lease free cores and a zeroed window of ``window_bytes`` in each bank that holds one of them.

        Raises DeviceError for no or more than 16 cores, unknown, repeated or taken cores, or a full bank.
        """

    @abstractmethod
    def close_lease(self, lease: Lease) -> None:
        """Stop the lease, clear its windows and its cores' memories, and free them."""

    @abstractmethod
    def write(self, lease: Lease, offset: int, data: BytesLike, banks: Sequence[int] | None = None) -> None:
        """Copy bytes to ``offset`` of the lease's window in ``banks`` (default: all banks of the lease)."""

    @abstractmethod
    def read(self, lease: Lease, offset: int, size: int, bank: int | None = None) -> Bytes:
        """A copy of ``size`` bytes at ``offset`` of the window in ``bank`` (default: the bank of the first core)."""

    @abstractmethod
    def load_streams(self, lease: Lease, streams: Sequence[BytesLike], offset: int) -> int:
        """Write one instruction stream per core (lease order), each into its core's bank, and point the cores at them.

        The first stands at ``offset`` (bytes, a multiple of 64), the others behind it at multiples of 64.
        Returns the offset behind the last one. Raises DeviceError if they do not fit or are no whole instructions.
        """

    @abstractmethod
    def start(self, lease: Lease) -> int:
        """Start all cores of the lease at the next slot period; returns that cycle. Time does not advance."""

    @abstractmethod
    def wait(self, lease: Lease, timeout_cycles: int | None = None) -> Completion:
        """Advance time, for all running leases, until this one is done or stopped, on request or by a fault.

        Raises DeviceError if it was never started, or is still running after ``timeout_cycles``.
        """

    @abstractmethod
    def stop(self, lease: Lease, after: Boundary = Boundary.LAYER, passing: int = 0) -> int:
        """Ask a running lease to stop ``after`` its layer: at the first SYNC that is not passed yet, or ``passing``
        (0..65535) SYNCs later; or after its task, which takes an earlier request back. ``wait`` says where it stopped.

        Returns the device cycle from which this counts. A lease whose cores have met at a SYNC stops there as long as
        they have not gone on; one that meets no SYNC any more runs to its end. A request ends with its run. For a run
        that is over nothing happens. Raises DeviceError if there was none, or for a number that is out of range.
        """

    @abstractmethod
    def running(self, lease: Lease) -> bool:
        """True from ``start`` until the lease is done, faulted or stopped."""

    @abstractmethod
    def counters(self, lease: Lease) -> Counters:
        """Counters of the latest run."""

    @abstractmethod
    def clear(self, lease: Lease) -> None:
        """Zero the window in every bank and the on-chip memories of the lease's cores. The lease must be stopped."""

    def run(self, lease: Lease) -> Completion:
        """Start and wait."""
        self.start(lease)
        return self.wait(lease)


def check_cores(config: HardwareConfig, cores: Sequence[int]) -> tuple[int, ...]:
    """The cores as a tuple. Raises DeviceError for none, too many, repeated or unknown ones."""
    chosen = tuple(int(core) for core in cores)
    if not 1 <= len(chosen) <= MAX_LEASE_CORES:
        raise DeviceError(f"a lease has 1 to {MAX_LEASE_CORES} cores, not {len(chosen)}")
    for core in chosen:
        if not 0 <= core < config.cores:
            raise DeviceError(f"core {core} does not exist; {config.name} has cores 0..{config.cores - 1}")
    if len(set(chosen)) != len(chosen):
        raise DeviceError(f"cores {list(chosen)} name a core twice")
    return chosen


def as_bytes(data: BytesLike) -> Bytes:
    """Any bytes-like object or array as a flat uint8 array, without a copy where possible."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return np.frombuffer(data, dtype=np.uint8)
