"""The default device: executes instruction streams to the same bytes in the same cycles as the hardware.

It must not know networks or how streams were made. Time first, since data never changes it; then data in order of time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.device.base import (
    WINDOW_ALIGNMENT,
    Boundary,
    Completion,
    Counters,
    Fault,
    FaultReport,
    Lease,
    Position,
)
from corepool.device.decode import KIND, KIND_SYNC, STEPS, Decoded, decode_stream, writes_into
from corepool.device.leases import Held, LeasingDevice, Placed
from corepool.device.memory import Banks
from corepool.device.timeline import CoreTimeline
from corepool.errors import DeviceError
from corepool.isa.codec import encode
from corepool.isa.table import Opcode

if TYPE_CHECKING:
    from corepool.device.clockwork import CoreProgram, Course
    from corepool.device.execute import DataPass

Ints = npt.NDArray[np.int64]


@dataclass
class _Held(Held):
    """What the device keeps about an open lease."""

    windows: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [banks]: where they begin
    streams: Placed = field(default_factory=list)
    programs: list[Decoded] = field(default_factory=list)
    core_programs: list[CoreProgram] = field(default_factory=list)
    settled: int = -1  # instructions that ended up to this cycle have taken effect
    constant: bool = False  # no instruction can write where the streams stand
    streams_begin: int = 0  # bytes of the window
    streams_end: int = 0
    written: bool = False  # the host has written there since they were last looked at
    # Of a course that a run took from start to end: cores and operations in order of time; counters.
    effects: tuple[Course, Ints, Ints] | None = None
    counted: tuple[Course, Counters] | None = None


class Simulator(LeasingDevice[_Held]):
    """Simulates a pool. With ``data=False`` only time passes: memory holds nothing, cycles and faults are the same.

    ``replay``: what is known from an earlier run of the same streams is not worked out again; it changes no result.
    """

    def __init__(self, config: HardwareConfig, data: bool = True, replay: bool = True) -> None:
        from corepool.device import timing  # numba is slow to import; only who simulates pays
        from corepool.device.clockwork import Clockwork

        super().__init__(config, Banks(config.banks, config.bank_bytes) if data else None)
        self.data = data
        self._kernel = timing
        self._clock = Clockwork(config, replay)
        self._pass: DataPass | None = None
        if self._banks is not None:
            from corepool.device.execute import DataPass

            self._pass = DataPass(config, self._banks)

    def warm(self) -> None:
        stream = encode(Opcode.END)
        lease = self.open_lease([0], WINDOW_ALIGNMENT)
        self.load_streams(lease, [stream], 0)
        self.start(lease)
        self.stop(lease)
        self.wait(lease)
        self.close_lease(lease)
        if self._pass is not None:
            self._pass.warm()

    @property
    def cycle(self) -> int:
        return self._clock.now

    def _hold(self, lease: Lease, bases: dict[int, int]) -> _Held:
        held = _Held(lease, bases, windows=np.array([bases.get(bank, 0) for bank in range(self.config.banks)]))
        self._clear_cores(held)
        return held

    def _give_back(self, held: _Held) -> None:
        self._clock.release(held.lease.number)
        self._clear_cores(held)

    def _clear_cores(self, held: _Held) -> None:
        if self._pass is not None:
            for core in held.lease.cores:
                self._pass.clear(core)

    def _point(self, held: _Held, placed: Placed) -> None:
        held.streams = [(start, flat.copy()) for start, flat in placed]
        held.programs = [decode_stream(self.config, flat) for _, flat in held.streams]
        held.written = False
        self._programmed(held)

    def _programmed(self, held: _Held) -> None:
        """The programs are others than before."""
        from corepool.device.clockwork import CoreProgram

        held.core_programs = [
            CoreProgram(core, program.timing, offset)
            for core, program, (offset, _) in zip(held.lease.cores, held.programs, held.streams, strict=True)
        ]
        begin = min(offset for offset, _ in held.streams)
        end = max(offset + flat.size for offset, flat in held.streams)
        word = self.config.word_bytes
        held.constant = not any(writes_into(program, word, begin, end) for program in held.programs)
        held.streams_begin, held.streams_end = begin, end

    def _written(self, held: _Held, offset: int, size: int) -> None:
        held.written |= offset < held.streams_end and offset + size > held.streams_begin

    def clear(self, lease: Lease) -> None:
        super().clear(lease)
        self._get(lease).written = True

    def start(self, lease: Lease) -> int:
        held = self._startable(lease)
        self._settle(held)
        self._refresh(held)
        held.ever_started = True
        begin = self._clock.start(lease.number, held.core_programs, lease.window_bytes)
        held.settled = begin - 1
        return begin

    def wait(self, lease: Lease, timeout_cycles: int | None = None) -> Completion:
        held = self._started(lease)
        limit = None if timeout_cycles is None else self._clock.now + timeout_cycles
        self._clock.advance(lease.number, limit)
        if self.running(lease):
            raise DeviceError(f"the lease is still running after {timeout_cycles} cycles")
        self._settle(held)
        return self._completion(lease)

    def stop(self, lease: Lease, after: Boundary = Boundary.LAYER, passing: int = 0) -> int:
        self._stoppable(lease, passing)
        return self._clock.ask_to_stop(lease.number, after is Boundary.LAYER, passing)

    def running(self, lease: Lease) -> bool:
        self._get(lease)
        return self._clock.running(lease.number)

    def counters(self, lease: Lease) -> Counters:
        held = self._get(lease)
        kernel, clock = self._kernel, self._clock
        if not held.ever_started:
            return self._no_counters(lease)
        course = clock.course(lease.number)
        if course is not None and held.counted is not None and held.counted[0] is course:
            return held.counted[1]
        columns, until = clock.lease(lease.number), clock.until(lease.number)
        done = [self._ended(core, until) for core in lease.cores]
        traffic = clock.traffic(lease.number)
        made = Counters(
            cycles=max(until - int(columns[kernel.START]), 0),
            compute_busy=tuple(int(clock.core(core)[kernel.BUSY_COMPUTE]) for core in lease.cores),
            load_busy=tuple(int(clock.core(core)[kernel.BUSY_LOAD]) for core in lease.cores),
            save_busy=tuple(int(clock.core(core)[kernel.BUSY_SAVE]) for core in lease.cores),
            steps=tuple(int(clock.rows(core)[rows, STEPS].sum()) for core, rows in zip(lease.cores, done, strict=True)),
            instructions=tuple(len(rows) for rows in done),
            bytes_read=tuple(traffic[:, 0].tolist()),
            bytes_written=tuple(traffic[:, 1].tolist()),
        )
        held.counted = None if course is None else (course, made)
        return made

    def timeline(self, lease: Lease) -> list[CoreTimeline]:
        """When each instruction of the latest run started and ended, for traces."""
        held = self._get(lease)
        if not held.ever_started:
            return []
        kernel, until = self._kernel, self._clock.until(lease.number)
        lines = []
        for core, program in zip(lease.cores, held.programs, strict=True):
            rows = self._clock.rows(core)
            ended = np.where(rows[:, kernel.ENDED_AT] <= until, rows[:, kernel.ENDED_AT], -1)
            lines.append(CoreTimeline(core, program, rows[:, kernel.STARTED].copy(), ended))
        return lines

    def _refresh(self, held: _Held) -> None:
        """Decode streams anew that were written over since they were loaded."""
        if self._banks is None or (held.constant and not held.written):
            return
        held.written = False
        changed = False
        for index, (core, (offset, flat)) in enumerate(zip(held.lease.cores, held.streams, strict=True)):
            bank = self.config.bank_of(core)
            start = held.bases[bank] + offset
            now = self._banks.array[bank, start : start + flat.size].view(np.uint8)
            if not np.array_equal(now, flat):
                held.streams[index] = (offset, now.copy())
                held.programs[index] = decode_stream(self.config, held.streams[index][1])
                changed = True
        if changed:
            self._programmed(held)

    def _ended(self, core: int, until: int, since: int = -1) -> npt.NDArray[np.intp]:
        ended = self._clock.rows(core)[:, self._kernel.ENDED_AT]
        return np.flatnonzero((ended > since) & (ended <= until))

    def _settle(self, held: _Held) -> None:
        """Let everything take effect that ended since the last time, in order of end, core, unit and place."""
        if self._pass is None or not held.ever_started:
            return
        until = self._clock.until(held.lease.number)
        if until <= held.settled:
            return
        bases = held.windows
        course = self._clock.course(held.lease.number)
        whole = course is not None and held.settled < int(self._clock.lease(held.lease.number)[self._kernel.START])
        if whole and held.effects is not None and held.effects[0] is course:
            held.settled = until
            self._pass.run(bases, *held.effects[1:])
            return
        cores, fields = self._ended_since(held, until)
        ops = self._pass.operations(fields)
        held.settled = until
        if course is not None and whole:
            held.effects = course, cores, ops
        self._pass.run(bases, cores, ops)

    def _ended_since(self, held: _Held, until: int) -> tuple[Ints, Ints]:
        """Device cores and decoded fields of what ended since the last time, in order."""
        kernel = self._kernel
        keys, fields = [], []
        for core, program in zip(held.lease.cores, held.programs, strict=True):
            rows = self._clock.rows(core)
            done = self._ended(core, until, held.settled)
            done = done[rows[done, KIND] < KIND_SYNC]
            keys.append(np.stack([done, rows[done, KIND], np.full(len(done), core), rows[done, kernel.ENDED_AT]]))
            fields.append(program.fields[done])
        order_keys = np.concatenate(keys, axis=1)
        order = np.lexsort(order_keys)
        return order_keys[2][order], np.concatenate(fields)[order]

    def _position(self, lease: Lease) -> Position:
        program = self._held[lease.number].programs[0]
        index = int(self._clock.core(lease.cores[0])[self._kernel.D_INDEX])
        return Position(int(program.column("layer")[index]))

    def _completion(self, lease: Lease) -> Completion:
        kernel, columns = self._kernel, self._clock.lease(lease.number).tolist()
        fault = None
        if columns[kernel.STATE] == kernel.FAULTED:
            fault = FaultReport(
                Fault(columns[kernel.FAULT]),
                columns[kernel.FAULT_CORE],
                columns[kernel.FAULT_INDEX],
                columns[kernel.FAULT_ADDRESS],
                columns[kernel.END],
            )
        begin, end = columns[kernel.START], columns[kernel.END]
        stopped = self._position(lease) if columns[kernel.STATE] == kernel.STOPPED else None
        return Completion(end - begin, begin, end, fault, self._clock.syncs(lease.number), stopped)
