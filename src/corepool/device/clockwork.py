"""Holds the state of the event loop: builds it from a configuration, puts leases into it, reads results out of it.

It must not know data, windows' places or the host protocol; a lease is a number, its cores and their programs here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.device import timing as kernel
from corepool.device.decode import TIMING_COLUMNS

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CoreProgram:
    """What one core is to run: device core number, timing table [n, 11], stream offset in the window (bytes)."""

    core: int
    timing: Ints
    offset: int


@dataclass(frozen=True, eq=False)
class Course:
    """What a run was that a lease had to itself from start to end: its programs, and the cycles it took.

    Runs start at slot periods, when nothing of an earlier run is left in the slots, and data never changes time: the
    same programs on the same cores take the same course whenever nobody else is there.
    """

    programs: tuple[CoreProgram, ...]
    window_bytes: int
    length: int

    def is_of(self, programs: Sequence[CoreProgram], window_bytes: int) -> bool:
        """Whether these are the programs that ran."""
        return (
            self.window_bytes == window_bytes
            and len(programs) == len(self.programs)
            and all(mine is other for mine, other in zip(self.programs, programs, strict=True))
        )


_TIMES = kernel.START, kernel.PROGRESS, kernel.END  # of a lease that is done


class Clockwork:
    """All leases' time. ``now`` is the cycle that every running lease has reached.

    With ``replay`` a run that repeats the one before is not worked out again, see ``Course``.
    """

    def __init__(self, config: HardwareConfig, replay: bool = True) -> None:
        self.config = config
        self.now = 0
        self._replay = replay
        self._alone = False  # nobody else has run since the latest start
        self._courses: dict[int, Course] = {}  # by lease number, of those whose latest run is known as a whole
        self._repeating: Sequence[CoreProgram] | None = None  # programs of a lease that was started to repeat its run
        self._repeater = -1  # its number
        self._late: dict[int, int] = {}  # by lease number: cycles that its instructions' times are behind, see ``rows``
        self._cores: dict[int, tuple[int, ...]] = {}
        self._programs: dict[int, tuple[CoreProgram, ...]] = {}
        self._state = _layout(config)
        self._lease = self._part(kernel.AT_LEASE, config.cores, int(self._state[kernel.LEASE_WIDTH]))
        self._core = self._part(kernel.AT_CORE, config.cores, int(self._state[kernel.CORE_WIDTH]))
        self._core[:, kernel.LEASE] = -1
        self._program = np.zeros((1024, kernel.PROG_COLUMNS), np.int64)
        self._top = 0

    def _part(self, start: int, rows: int, width: int) -> Ints:
        begin = int(self._state[start])
        view: Ints = self._state[begin : begin + rows * width].reshape(rows, width)
        return view

    def start(self, number: int, programs: Sequence[CoreProgram], window_bytes: int) -> int:
        """Let lease ``number`` start at the next slot period; returns that cycle."""
        self._work_out()
        course = self._courses.get(number)
        if course is None or not course.is_of(programs, window_bytes) or self._running():
            return self._start(number, programs, window_bytes)
        # All is as that run left it; what it was is known, only not yet when it ends and who will look.
        begin = -(-self.now // self.config.slot_period) * self.config.slot_period
        lease = self._lease[number]
        by = begin - self._lease.item(number, kernel.START)
        for column in _TIMES:  # one by one: choosing columns by a list takes many times as long
            lease[column] = lease.item(column) + by
        self._late[number] = self._late.get(number, 0) + by
        lease[kernel.STATE] = kernel.RUNNING
        self._repeating, self._repeater = programs, number
        return begin

    def _work_out(self) -> None:
        """Let a run that was to repeat another take its course step by step: somebody wants to see it, or joins in."""
        if self._repeating is not None:
            programs, self._repeating = self._repeating, None
            self._start(self._repeater, programs, int(self._lease[self._repeater, kernel.WINDOW]))

    def _running(self) -> bool:
        return kernel.RUNNING in self._lease[:, kernel.STATE].tolist()

    def _start(self, number: int, programs: Sequence[CoreProgram], window_bytes: int) -> int:
        self.release(number)
        self._alone = self._replay and not self._running()
        period = self.config.slot_period
        begin = -(-self.now // period) * period
        cores = tuple(program.core for program in programs)
        lease = self._lease[number]
        lease[:] = 0
        lease[kernel.STATE] = kernel.RUNNING
        lease[kernel.START] = lease[kernel.PROGRESS] = begin
        lease[kernel.CORES] = len(cores)
        lease[kernel.WINDOW] = window_bytes
        lease[kernel.CORE_MASK] = sum(1 << core for core in cores)
        base = self._place(sum(len(program.timing) for program in programs))
        self._cores[number] = cores
        self._programs[number] = tuple(programs)
        for program in programs:
            count = len(program.timing)
            self._program[base : base + count, :TIMING_COLUMNS] = program.timing
            self._program[base : base + count, TIMING_COLUMNS:] = kernel.UNKNOWN
            self._reset_core(number, program, base, begin)
            base += count
        self._lay_lanes(cores)
        core_next = int(self._state[kernel.AT_CORE_NEXT])
        for core in cores:
            self._state[core_next + core] = begin
            kernel.fetch_ahead(self._state, self._program, core)
        return begin

    def advance(self, number: int, limit: int | None) -> None:
        """Advance time until the lease has stopped, at most to cycle ``limit``."""
        if not self.running(number):
            return
        begin, window = self._lease.item(number, kernel.START), self._lease.item(number, kernel.WINDOW)
        if self._repeating is not None and self._repeater == number:
            length = self._courses[number].length
            if limit is None or begin + length <= limit:
                self._repeating = None
                self._lease[number, kernel.STATE] = kernel.DONE
                self.now = max(self.now, begin + length)
                return
        self._work_out()
        alone, self._alone = self._alone, False
        cycle = kernel.advance(self._state, self._program, number, kernel.NEVER - 1 if limit is None else limit)
        self.now = max(self.now, int(cycle))
        ended = self._lease[number, kernel.STATE] == kernel.DONE and self._lease[number, kernel.RELEASE] == 0
        if alone and ended:
            self._courses[number] = Course(self._programs[number], window, self.now - begin)

    def course(self, number: int) -> Course | None:
        """What the latest run was from start to end, if it is over and that is known."""
        return None if self.running(number) else self._courses.get(number)

    def ask_to_stop(self, number: int, enable: bool, passing: int) -> int:
        """Let a running lease stop at a SYNC, after so many more, or let it run to its end; returns the cycle from
        which this counts."""
        self._work_out()
        self._alone = False
        kernel.ask_to_stop(self._state, self._program, number, self.now, int(enable), passing)
        return self.now

    def syncs(self, number: int) -> int:
        """SYNCs that the lease has passed. One is passed a cycle before the dispatchers go on."""
        self._work_out()
        lease = self._lease[number]
        until = self.now if self.running(number) else int(lease[kernel.END])
        return int(lease[kernel.SYNCS]) + int(0 < lease[kernel.RELEASE] <= until + 1)

    def running(self, number: int) -> bool:
        return self._lease.item(number, kernel.STATE) == kernel.RUNNING

    def until(self, number: int) -> int:
        """The cycle up to which the latest run of a lease has got."""
        self._work_out()
        return self.now if self.running(number) else self._lease.item(number, kernel.END)

    def release(self, number: int) -> None:
        """Take the lease out of the loop, whatever it does, and forget its programs."""
        self._lease[number, kernel.STATE] = kernel.IDLE
        if self._repeater == number:
            self._repeating = None
        self._courses.pop(number, None)
        self._late.pop(number, None)
        self._programs.pop(number, None)
        kernel.halt(self._state)
        for core in self._cores.pop(number, ()):
            self._core[core, [kernel.LEASE, kernel.COUNT]] = -1, 0
        if not self._cores:
            self._top = 0

    def lease(self, number: int) -> Ints:
        """The columns of a lease (a view)."""
        self._work_out()
        view: Ints = self._lease[number]
        return view

    def core(self, core: int) -> Ints:
        """The columns of a core (a view)."""
        self._work_out()
        view: Ints = self._core[core]
        return view

    def traffic(self, number: int) -> Ints:
        """Bytes read and written by a lease in each bank [banks, 2] (a view)."""
        self._work_out()
        banks = self.config.banks
        view: Ints = self._lease[number, kernel.TRAFFIC : kernel.TRAFFIC + 2 * banks].reshape(banks, 2)
        return view

    def rows(self, core: int) -> Ints:
        """The program of a core with its times [n, 14]: see ``timing.LEFT``, ``STARTED``, ``ENDED_AT`` (a view)."""
        self._work_out()
        number = self._core.item(core, kernel.LEASE)
        late = self._late.pop(number, 0)
        if late:
            for each in self._cores[number]:
                times = self._rows(each)[:, TIMING_COLUMNS:]
                np.add(times, late, out=times, where=times != kernel.UNKNOWN)
        return self._rows(core)

    def _rows(self, core: int) -> Ints:
        base, count = self._core.item(core, kernel.BASE), self._core.item(core, kernel.COUNT)
        return self._program[base : base + count]

    def _place(self, total: int) -> int:
        """The first of ``total`` free rows; moves other programs together or gets more room when needed."""
        if self._top + total > len(self._program):
            self._compact(total)
        base = self._top
        self._top += total
        return base

    def _compact(self, extra: int) -> None:
        live = [core for cores in self._cores.values() for core in cores]
        used = sum(int(self._core[core, kernel.COUNT]) for core in live)
        program = np.zeros((max(2 * (used + extra), 1024), kernel.PROG_COLUMNS), np.int64)
        top = 0
        for core in live:
            rows = self.rows(core)
            program[top : top + len(rows)] = rows
            self._move(core, top - int(self._core[core, kernel.BASE]))
            top += len(rows)
        self._top = top
        self._program = program

    def _move(self, core: int, shift: int) -> None:
        """A core's program has moved: correct every place that holds a row."""
        state, columns = self._state, self._core[core]
        columns[kernel.BASE] += shift
        for column in (kernel.L_CURRENT, kernel.C_CURRENT, kernel.S_CURRENT):
            if columns[column] >= 0:
                columns[column] += shift
        ends = int(state[kernel.IN_ENDS])
        columns[ends : ends + int(state[kernel.ENDS_RING])] += shift
        queues, loads = int(state[kernel.IN_QUEUES]), int(state[kernel.IN_LOADS])
        columns[queues : queues + 3 * kernel.PLACE * self.config.queue_depth : kernel.PLACE] += shift
        tags = columns[loads + kernel.R_TAG : loads + kernel.REQUEST * self.config.load_outstanding : kernel.REQUEST]
        tags[tags >= 0] += shift

    def _reset_core(self, number: int, program: CoreProgram, base: int, begin: int) -> None:
        columns = self._core[program.core]
        columns[:] = 0
        columns[kernel.LEASE], columns[kernel.BASE], columns[kernel.COUNT] = number, base, len(program.timing)
        columns[kernel.STREAM] = columns[kernel.F_BYTE] = program.offset
        columns[kernel.F_STOP] = program.offset + kernel.INSTRUCTION * len(program.timing)
        columns[kernel.F_LAST] = columns[kernel.D_LAST] = begin - 1
        columns[[kernel.L_CURRENT, kernel.C_CURRENT, kernel.S_CURRENT]] = -1
        columns[kernel.BAD_TIME] = kernel.NEVER
        columns[kernel.L_FREE] = begin

    def _lay_lanes(self, cores: tuple[int, ...]) -> None:
        """Which slot carries whose writes: a core's own in its bank, in others that of the core with index i mod k."""
        config = self.config
        lanes, users = int(self._state[kernel.IN_LANES]), int(self._state[kernel.IN_WRITERS])
        in_bank = [[core for core in sorted(cores) if config.bank_of(core) == bank] for bank in range(config.banks)]
        for core in sorted(cores):
            index = in_bank[config.bank_of(core)].index(core)
            for bank, there in enumerate(in_bank):
                lane = there[index % len(there)] if there else -1
                self._core[core, lanes + bank] = lane
                if there:
                    self._core[lane, users + self._core[lane, kernel.WRITERS]] = core
                    self._core[lane, kernel.WRITERS] += 1


def _layout(config: HardwareConfig) -> Ints:
    """The state array with its head filled in and nothing running."""
    cores, banks, ddr = config.cores, config.banks, config.ddr
    head = {
        kernel.SLOTS: config.cores_per_bank,
        kernel.ACTIVE: ddr.active_rounds,
        kernel.PERIOD: ddr.period_rounds,
        kernel.LINE_BITS: ddr.line_bytes.bit_length() - 1,
        kernel.READ_LATENCY: ddr.read_latency,
        kernel.WRITE_LATENCY: ddr.write_latency,
        kernel.DEPTH: config.fetch_depth,
        kernel.FETCH_BURST: config.fetch_burst_bytes,
        kernel.BURST: config.burst_bytes,
        kernel.OUTSTANDING: config.load_outstanding,
        kernel.BUFFERS: config.save_buffers,
        kernel.QUEUE: config.queue_depth,
        kernel.SETUP: config.setup_cycles,
        kernel.SYNC_CYCLES: config.sync_cycles,
        kernel.WATCHDOG: config.watchdog_cycles,
        kernel.WORD: config.word_bytes,
        kernel.N_CORES: cores,
        kernel.BANKS: banks,
        kernel.LEASE_WIDTH: kernel.TRAFFIC + 2 * banks,
        kernel.FETCH_RING: config.fetch_depth + 2,
        kernel.ENDS_RING: config.load_outstanding + 2,
        kernel.WRITE_WIDTH: kernel.W_BUFFERS + kernel.BUFFER * config.save_buffers,
    }
    place = kernel.IN_FETCHES + kernel.REQUEST * head[kernel.FETCH_RING]
    for part, size in (
        (kernel.IN_LOADS, kernel.REQUEST * config.load_outstanding),
        (kernel.IN_ENDS, head[kernel.ENDS_RING]),
        (kernel.IN_WRITES, banks * head[kernel.WRITE_WIDTH]),
        (kernel.IN_QUEUES, 3 * kernel.PLACE * config.queue_depth),
        (kernel.IN_LANES, banks),
        (kernel.IN_WRITERS, cores),
        (kernel.CORE_WIDTH, 0),
    ):
        head[part] = place
        place += size
    place = kernel.HEAD
    for part, size in (
        (kernel.AT_SLOT_NEXT, cores),
        (kernel.AT_CORE_NEXT, cores),
        (kernel.AT_LEASE, cores * head[kernel.LEASE_WIDTH]),
        (kernel.AT_CORE, cores * head[kernel.CORE_WIDTH]),
    ):
        head[part] = place
        place += size
    state = np.zeros(place, np.int64)
    for part, value in head.items():
        state[part] = value
    state[kernel.NEXT_RELEASE] = kernel.NEVER
    state[kernel.HEAD : kernel.HEAD + 2 * cores] = kernel.NEVER
    return state
