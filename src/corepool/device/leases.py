"""The host's side of leases, which all devices share: who holds which cores, windows in the banks, checked access.

It must not know how streams are executed: a device says what is to happen when a lease is opened, pointed or closed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from corepool.config import HardwareConfig
from corepool.device.base import (
    MAX_PASSING,
    STREAM_ALIGNMENT,
    Bytes,
    BytesLike,
    Counters,
    Device,
    Lease,
    as_bytes,
    check_cores,
)
from corepool.device.memory import Banks, Windows
from corepool.errors import DeviceError
from corepool.isa.table import INSTRUCTION_BYTES

Placed = list[tuple[int, Bytes]]  # of each core: where its stream stands in the window, and its bytes


@dataclass
class Held:
    """What a device keeps about an open lease."""

    lease: Lease
    bases: dict[int, int]  # bank: first byte of the window
    loaded: bool = False
    ever_started: bool = False


H = TypeVar("H", bound=Held)


class LeasingDevice(Device, Generic[H]):
    """Leases on banks that are memory of this process; ``banks`` is None where no data is kept."""

    def __init__(self, config: HardwareConfig, banks: Banks | None) -> None:
        self.config = config
        self._banks = banks
        self._held: dict[int, H] = {}
        self._epoch = 0
        self._windows = [Windows(config.bank_bytes) for _ in range(config.banks)]

    @abstractmethod
    def _hold(self, lease: Lease, bases: dict[int, int]) -> H:
        """What is to be kept about a new lease; its cores are made ready for it."""

    @abstractmethod
    def _give_back(self, held: H) -> None:
        """The lease ends: whatever it does, it does no more when this returns."""

    @abstractmethod
    def _point(self, held: H, placed: Placed) -> None:
        """The cores' streams stand in the window now."""

    def _settle(self, held: H) -> None:
        """Called before the window is looked at or changed: what has happened in it must be there."""

    def _written(self, held: H, offset: int, size: int) -> None:
        """The host has written to these bytes of the window."""

    def _clear_cores(self, held: H) -> None:
        """Zero the on-chip memories of the lease's cores."""

    def open_lease(self, cores: Sequence[int], window_bytes: int) -> Lease:
        chosen = check_cores(self.config, cores)
        for other in self._held.values():
            taken = sorted(set(chosen) & set(other.lease.cores))
            if taken:
                raise DeviceError(f"core {taken[0]} belongs to another lease; close that first")
        if window_bytes < 1:
            raise DeviceError(f"a window has at least 1 byte, not {window_bytes}")
        banks = tuple(sorted({self.config.bank_of(core) for core in chosen}))
        bases: dict[int, int] = {}
        try:
            for bank in banks:
                bases[bank] = self._windows[bank].take(window_bytes)
        except DeviceError:
            for bank, base in bases.items():
                self._windows[bank].free(base)
            raise
        self._epoch += 1
        number = next(index for index in range(self.config.cores) if index not in self._held)
        lease = Lease(number, self._epoch, chosen, banks, self.config.bank_of(chosen[0]), int(window_bytes))
        self._held[number] = self._hold(lease, bases)
        self._zero(self._held[number])
        return lease

    def close_lease(self, lease: Lease) -> None:
        held = self._get(lease)
        self._give_back(held)
        self._zero(held)
        for bank, base in held.bases.items():
            self._windows[bank].free(base)
        del self._held[lease.number]

    def write(self, lease: Lease, offset: int, data: BytesLike, banks: Sequence[int] | None = None) -> None:
        held = self._get(lease)
        flat = as_bytes(data)
        self._check_range(lease, offset, flat.size)
        targets = lease.banks if banks is None else tuple(banks)
        for bank in targets:
            self._check_bank(lease, bank)
        self._settle(held)
        if self._banks is not None:
            for bank in targets:
                start = held.bases[bank] + offset
                self._banks.array[bank, start : start + flat.size] = flat.view(np.int8)
        self._written(held, offset, flat.size)

    def read(self, lease: Lease, offset: int, size: int, bank: int | None = None) -> Bytes:
        held = self._get(lease)
        self._check_range(lease, offset, size)
        source = lease.home_bank if bank is None else bank
        self._check_bank(lease, source)
        self._settle(held)
        if self._banks is None:
            return np.zeros(size, np.uint8)
        start = held.bases[source] + offset
        return self._banks.array[source, start : start + size].view(np.uint8).copy()

    def load_streams(self, lease: Lease, streams: Sequence[BytesLike], offset: int) -> int:
        held = self._get(lease)
        if len(streams) != len(lease.cores):
            raise DeviceError(f"{len(lease.cores)} cores need as many streams, not {len(streams)}")
        if offset % STREAM_ALIGNMENT:
            raise DeviceError(f"streams start at a multiple of {STREAM_ALIGNMENT} bytes, not at {offset}")
        if self.running(lease):
            raise DeviceError("streams cannot change while the lease is running; wait for it")
        placed: Placed = []
        for stream in streams:
            flat = as_bytes(stream)
            if flat.size % INSTRUCTION_BYTES:
                raise DeviceError(
                    f"a stream of {flat.size} bytes does not hold whole instructions of {INSTRUCTION_BYTES}"
                )
            self._check_range(lease, offset, flat.size)
            placed.append((offset, flat))
            offset += -(-flat.size // STREAM_ALIGNMENT) * STREAM_ALIGNMENT
        for core, (start, flat) in zip(lease.cores, placed, strict=True):
            self.write(lease, start, flat, [self.config.bank_of(core)])
        self._point(held, placed)
        held.loaded = True
        return offset

    def clear(self, lease: Lease) -> None:
        held = self._get(lease)
        if self.running(lease):
            raise DeviceError("a running lease cannot be cleared; wait for it")
        self._settle(held)
        self._clear_cores(held)
        self._zero(held)

    def _startable(self, lease: Lease) -> H:
        held = self._get(lease)
        if self.running(lease):
            raise DeviceError("the lease is already running; wait for it")
        if not held.loaded:
            raise DeviceError("no streams are loaded; call load_streams first")
        return held

    def _stoppable(self, lease: Lease, passing: int) -> H:
        if not 0 <= passing <= MAX_PASSING:
            raise DeviceError(f"a lease can pass 0..{MAX_PASSING} SYNCs before it stops, not {passing}")
        return self._started(lease)

    def _started(self, lease: Lease) -> H:
        held = self._get(lease)
        if not held.ever_started:
            raise DeviceError("the lease was never started")
        return held

    def _get(self, lease: Lease) -> H:
        held = self._held.get(lease.number)
        if held is None or (held.lease is not lease and held.lease != lease):
            raise DeviceError(f"lease {lease.number} of epoch {lease.epoch} is closed; open a new one")
        return held

    def _check_range(self, lease: Lease, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > lease.window_bytes:
            raise DeviceError(f"bytes {offset}..{offset + size} leave the window of {lease.window_bytes} bytes")

    def _check_bank(self, lease: Lease, bank: int) -> None:
        if bank not in lease.banks:
            raise DeviceError(f"the lease has no core in bank {bank}, only in {list(lease.banks)}")

    def _zero(self, held: H) -> None:
        if self._banks is not None:
            for bank, base in held.bases.items():
                self._banks.zero(bank, base, held.lease.window_bytes)

    def _no_counters(self, lease: Lease) -> Counters:
        """Of a lease that has not run yet."""
        none, banks = (0,) * len(lease.cores), (0,) * self.config.banks
        return Counters(0, none, none, none, none, none, banks, banks)
