"""The default device: executes instruction streams to the same bytes in the same cycles as the hardware.

It must not know networks or how streams were made. Time first, since data never changes it; then data in order of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.device.base import (
    STREAM_ALIGNMENT,
    Bytes,
    BytesLike,
    Completion,
    Counters,
    Device,
    Fault,
    FaultReport,
    Lease,
    as_bytes,
    check_cores,
)
from corepool.device.decode import KIND, KIND_SYNC, STEPS, Decoded, decode_stream
from corepool.device.memory import Banks, Windows
from corepool.device.timeline import CoreTimeline
from corepool.errors import DeviceError
from corepool.isa.table import INSTRUCTION_BYTES

if TYPE_CHECKING:
    from corepool.device.execute import DataPass

Ints = npt.NDArray[np.int64]


@dataclass
class _Held:
    """What the device keeps about an open lease."""

    lease: Lease
    bases: dict[int, int]  # bank: first byte of the window
    streams: list[tuple[int, Bytes]] = field(default_factory=list)  # per core: offset, bytes
    programs: list[Decoded] = field(default_factory=list)
    ever_started: bool = False
    settled: int = -1  # instructions that ended up to this cycle have taken effect


class Simulator(Device):
    """Simulates a pool. With ``data=False`` only time passes: memory holds nothing, cycles and faults are the same."""

    def __init__(self, config: HardwareConfig, data: bool = True) -> None:
        from corepool.device import timing  # numba is slow to import; only who simulates pays
        from corepool.device.clockwork import Clockwork

        self.config = config
        self.data = data
        self._kernel = timing
        self._clock = Clockwork(config)
        self._held: dict[int, _Held] = {}
        self._epoch = 0
        self._windows = [Windows(config.bank_bytes) for _ in range(config.banks)]
        self._banks: Banks | None = None
        self._pass: DataPass | None = None
        if data:
            from corepool.device.execute import DataPass

            self._banks = Banks(config.banks, config.bank_bytes)
            self._pass = DataPass(config, self._banks)

    @property
    def cycle(self) -> int:
        return self._clock.now

    def open_lease(self, cores: Sequence[int], window_bytes: int) -> Lease:
        chosen = check_cores(self.config, cores)
        for held in self._held.values():
            taken = sorted(set(chosen) & set(held.lease.cores))
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
        self._held[number] = _Held(lease, bases)
        self._zero(self._held[number])
        return lease

    def close_lease(self, lease: Lease) -> None:
        held = self._get(lease)
        self._clock.release(lease.number)
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
        placed: list[tuple[int, Bytes]] = []
        for stream in streams:
            flat = as_bytes(stream)
            if flat.size % INSTRUCTION_BYTES:
                raise DeviceError(
                    f"a stream of {flat.size} bytes does not hold whole instructions of {INSTRUCTION_BYTES}"
                )
            self._check_range(lease, offset, flat.size)
            placed.append((offset, flat.copy()))
            offset += -(-flat.size // STREAM_ALIGNMENT) * STREAM_ALIGNMENT
        for core, (start, flat) in zip(lease.cores, placed, strict=True):
            self.write(lease, start, flat, [self.config.bank_of(core)])
        held.streams = placed
        held.programs = [decode_stream(self.config, flat) for _, flat in placed]
        return offset

    def start(self, lease: Lease) -> int:
        from corepool.device.clockwork import CoreProgram

        held = self._get(lease)
        if self.running(lease):
            raise DeviceError("the lease is already running; wait for it")
        if not held.streams:
            raise DeviceError("no streams are loaded; call load_streams first")
        self._settle(held)
        self._refresh(held)
        programs = [
            CoreProgram(core, program.timing, offset)
            for core, program, (offset, _) in zip(lease.cores, held.programs, held.streams, strict=True)
        ]
        held.ever_started = True
        begin = self._clock.start(lease.number, programs, lease.window_bytes)
        held.settled = begin - 1
        return begin

    def wait(self, lease: Lease, timeout_cycles: int | None = None) -> Completion:
        held = self._get(lease)
        if not held.ever_started:
            raise DeviceError("the lease was never started")
        limit = None if timeout_cycles is None else self._clock.now + timeout_cycles
        self._clock.advance(lease.number, limit)
        if self.running(lease):
            raise DeviceError(f"the lease is still running after {timeout_cycles} cycles")
        self._settle(held)
        return self._completion(lease)

    def running(self, lease: Lease) -> bool:
        self._get(lease)
        return self._clock.running(lease.number)

    def counters(self, lease: Lease) -> Counters:
        held = self._get(lease)
        kernel, clock = self._kernel, self._clock
        if not held.ever_started:
            none = (0,) * len(lease.cores)
            return Counters(0, none, none, none, none, none, (0,) * self.config.banks, (0,) * self.config.banks)
        columns, until = clock.lease(lease.number), self._until(lease)
        done = [self._ended(core, until) for core in lease.cores]
        traffic = clock.traffic(lease.number)
        return Counters(
            cycles=max(until - int(columns[kernel.START]), 0),
            compute_busy=tuple(int(clock.core(core)[kernel.BUSY_COMPUTE]) for core in lease.cores),
            load_busy=tuple(int(clock.core(core)[kernel.BUSY_LOAD]) for core in lease.cores),
            save_busy=tuple(int(clock.core(core)[kernel.BUSY_SAVE]) for core in lease.cores),
            steps=tuple(int(clock.rows(core)[rows, STEPS].sum()) for core, rows in zip(lease.cores, done, strict=True)),
            instructions=tuple(len(rows) for rows in done),
            bytes_read=tuple(traffic[:, 0].tolist()),
            bytes_written=tuple(traffic[:, 1].tolist()),
        )

    def clear(self, lease: Lease) -> None:
        held = self._get(lease)
        if self.running(lease):
            raise DeviceError("a running lease cannot be cleared; wait for it")
        self._settle(held)
        self._zero(held)

    def timeline(self, lease: Lease) -> list[CoreTimeline]:
        """When each instruction of the latest run started and ended, for traces."""
        held = self._get(lease)
        if not held.ever_started:
            return []
        kernel, until = self._kernel, self._until(lease)
        lines = []
        for core, program in zip(lease.cores, held.programs, strict=True):
            rows = self._clock.rows(core)
            ended = np.where(rows[:, kernel.ENDED_AT] <= until, rows[:, kernel.ENDED_AT], -1)
            lines.append(CoreTimeline(core, program, rows[:, kernel.STARTED].copy(), ended))
        return lines

    def _get(self, lease: Lease) -> _Held:
        held = self._held.get(lease.number)
        if held is None or held.lease != lease:
            raise DeviceError(f"lease {lease.number} of epoch {lease.epoch} is closed; open a new one")
        return held

    def _check_range(self, lease: Lease, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > lease.window_bytes:
            raise DeviceError(f"bytes {offset}..{offset + size} leave the window of {lease.window_bytes} bytes")

    def _check_bank(self, lease: Lease, bank: int) -> None:
        if bank not in lease.banks:
            raise DeviceError(f"the lease has no core in bank {bank}, only in {list(lease.banks)}")

    def _zero(self, held: _Held) -> None:
        if self._banks is not None and self._pass is not None:
            for bank, base in held.bases.items():
                self._banks.zero(bank, base, held.lease.window_bytes)
            for core in held.lease.cores:
                self._pass.clear(core)

    def _refresh(self, held: _Held) -> None:
        """Decode streams anew that were written over since they were loaded."""
        if self._banks is None:
            return
        for index, (core, (offset, flat)) in enumerate(zip(held.lease.cores, held.streams, strict=True)):
            bank = self.config.bank_of(core)
            start = held.bases[bank] + offset
            now = self._banks.array[bank, start : start + flat.size].view(np.uint8)
            if not np.array_equal(now, flat):
                held.streams[index] = (offset, now.copy())
                held.programs[index] = decode_stream(self.config, held.streams[index][1])

    def _until(self, lease: Lease) -> int:
        """The cycle up to which the latest run has got."""
        columns = self._clock.lease(lease.number)
        return self._clock.now if self._clock.running(lease.number) else int(columns[self._kernel.END])

    def _ended(self, core: int, until: int, since: int = -1) -> npt.NDArray[np.intp]:
        ended = self._clock.rows(core)[:, self._kernel.ENDED_AT]
        return np.flatnonzero((ended > since) & (ended <= until))

    def _settle(self, held: _Held) -> None:
        """Let everything take effect that ended since the last time, in order of end, core, unit and place."""
        if self._pass is None or not held.ever_started:
            return
        until = self._until(held.lease)
        if until <= held.settled:
            return
        kernel = self._kernel
        keys, fields = [], []
        for core, program in zip(held.lease.cores, held.programs, strict=True):
            rows = self._clock.rows(core)
            done = self._ended(core, until, held.settled)
            done = done[rows[done, KIND] < KIND_SYNC]
            keys.append(np.stack([done, rows[done, KIND], np.full(len(done), core), rows[done, kernel.ENDED_AT]]))
            fields.append(program.fields[done])
        held.settled = until
        order_keys = np.concatenate(keys, axis=1)
        order = np.lexsort(order_keys)
        bases = np.zeros(self.config.banks, np.int64)
        bases[list(held.bases)] = list(held.bases.values())
        self._pass.run(bases, order_keys[2][order], np.concatenate(fields)[order])

    def _completion(self, lease: Lease) -> Completion:
        kernel, columns = self._kernel, [int(value) for value in self._clock.lease(lease.number)]
        fault = None
        if columns[kernel.STATE] == kernel.FAULTED:
            fault = FaultReport(
                Fault(columns[kernel.FAULT]),
                columns[kernel.FAULT_CORE],
                columns[kernel.FAULT_INDEX],
                columns[kernel.FAULT_ADDRESS],
                columns[kernel.END],
            )
        return Completion(
            columns[kernel.END] - columns[kernel.START], columns[kernel.START], columns[kernel.END], fault
        )
