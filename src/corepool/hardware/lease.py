"""First-level dispatch of one lease: start, SYNC, stop, faults, watchdog, and what the host may read about it.

It must not know the cores' programs or memory; it sees levels and pulses that come one cycle after their events.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.axi import id_bits
from corepool.hardware.barrier import Barrier
from corepool.hardware.registers import Fault, State

CYCLE_BITS = 48
STOP_BITS = 16


class Watchdog(wiring.Component):
    """Barks when nothing was completed for ``limit`` cycles.

    progress: something was, a cycle ago. restart: the next cycle is the first. pause: a release is to come.
    """

    def __init__(self) -> None:
        super().__init__(
            {"limit": In(32), "progress": In(1), "restart": In(1), "pause": In(1), "enable": In(1), "bark": Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count, paused = Signal(32, name="count"), Signal(name="paused")
        soon, now = Signal(name="soon"), Signal(name="now")
        # The first cycle of a run, or behind a release, counts as progress; like all progress it is seen a cycle later.
        m.d.sync += [paused.eq(self.pause), soon.eq(self.restart), now.eq(soon | (paused & ~self.pause))]
        m.d.comb += self.bark.eq(self.enable & ~self.pause & ~self.progress & ~now & (count >= self.limit))
        with m.If(self.restart | self.pause):
            m.d.sync += count.eq(0)
        with m.Elif(self.progress | now):
            m.d.sync += count.eq(1)
        with m.Else():
            m.d.sync += count.eq(count + 1)
        return m


class Lease(wiring.Component):
    """One lease's state machine. Everything per core is a mask over the device's cores.

    start, kill: commands. early: the next cycle but one is the first of a slot period. cycle: number of this cycle.
    cores: the lease's. ready: cores that are cleared and quiet. quiet: cores with nothing under way. limit: of the
    watchdog. set_stop, stop_after, stop_enable: written by the host; stopping, syncs_left: what it reads back.
    arrived, ended: levels of SYNC and END. completed: pulses. faulty: levels, with codes.
    begin: pulse in the cycle before the first. over: the run's end is seen, one cycle after it. live: from begin to
    over. release: see Barrier. drain: the lease shall stop at its next SYNC, which then waits for everything. active:
    WAITING to DRAINING. state, code, fault_core, syncs, begin_cycle, end_cycle: of the latest run. finished: pulse.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        mask = config.cores
        super().__init__(
            {
                "start": In(1), "kill": In(1), "early": In(1), "cycle": In(CYCLE_BITS), "limit": In(32),
                "set_stop": In(1), "stop_after": In(STOP_BITS), "stop_enable": In(1),
                "stopping": Out(1), "syncs_left": Out(STOP_BITS),
                "cores": In(mask), "ready": In(mask), "quiet": In(mask),
                "arrived": In(mask), "ended": In(mask), "completed": In(mask), "faulty": In(mask),
                "codes": In(3).array(mask),
                "begin": Out(1), "live": Out(1), "over": Out(1), "release": Out(1), "drain": Out(1),
                "active": Out(1), "finished": Out(1), "state": Out(3),
                "code": Out(3), "fault_core": Out(id_bits(config)),
                "syncs": Out(32), "begin_cycle": Out(CYCLE_BITS), "end_cycle": Out(CYCLE_BITS),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.barrier = self._barrier = Barrier(self.config)
        m.submodules.watchdog = self._watchdog = Watchdog()
        self._seen = Signal()  # reports of this run are there: from its first cycle on
        self._how = Signal(3)  # how the run ended
        self._asked = Signal(2)  # the host wanted a stop one and two cycles ago
        self._meet(m)
        self._watch(m)
        self._end(m)
        self._go(m)
        return m

    def _meet(self, m: Module) -> None:
        """SYNC: go on, or stop there if the host asked for it."""
        barrier, wish = self._barrier, Signal()
        m.d.comb += [
            barrier.cores.eq(self.cores),
            barrier.arrived.eq(self.arrived),
            barrier.enable.eq(self.live & self._seen),
            wish.eq(self.stopping & (self.syncs_left == 0)),
            barrier.hold.eq(wish | self._asked.any()),
            self.release.eq(barrier.release),
            self.drain.eq(wish | self._asked[0]),
        ]
        # Arrivals are seen a cycle after they happened, and those that were early are taken back in the first cycle of
        # a wish; so that of cycle s ends a run in s at the earliest, and what happens until its last cycle counts.
        m.d.sync += self._asked.eq(Cat(wish, self._asked))
        # A SYNC of the cycle in which the run's end is seen comes too late; one of the cycle of a request still counts.
        with m.If(self.release & ~self.over):
            m.d.sync += self.syncs.eq(self.syncs + 1)
        with m.If(self.set_stop):
            m.d.sync += [self.syncs_left.eq(self.stop_after), self.stopping.eq(self.stop_enable)]
        with m.Elif(self.over):
            m.d.sync += self.stopping.eq(0)
        with m.Elif(self.release & self.stopping):
            m.d.sync += self.syncs_left.eq(self.syncs_left - 1)

    def _watch(self, m: Module) -> None:
        watchdog = self._watchdog
        before = Signal.like(self.ended)
        m.d.sync += before.eq(self.ended)
        progress = self.completed | (self.ended & ~before)
        m.d.comb += [
            watchdog.limit.eq(self.limit),
            watchdog.progress.eq((progress & self.cores).any()),
            watchdog.restart.eq(self.begin),
            watchdog.pause.eq(self._barrier.met),
            watchdog.enable.eq(self.live & self._seen),
        ]

    def _end(self, m: Module) -> None:
        """Everything that ends a run, in the cycle after it happened."""
        faulty, going = Signal.like(self.faulty), Signal.like(self.cores)
        m.d.comb += [faulty.eq(self.faulty & self.cores), going.eq(self.cores & ~self.ended)]
        halted = self._barrier.met & self._asked.any()
        watch = self.live & self._seen
        with m.If(watch & (faulty != 0)):
            m.d.comb += [self.over.eq(1), self._how.eq(State.FAULTED)]
        with m.Elif(watch & (going == 0)):
            m.d.comb += [self.over.eq(1), self._how.eq(State.DONE)]
        with m.Elif(watch & halted):
            m.d.comb += [self.over.eq(1), self._how.eq(State.STOPPED)]
        with m.Elif(self._watchdog.bark):
            m.d.comb += [self.over.eq(1), self._how.eq(State.FAULTED)]
        with m.Elif(self.live & self.kill):
            m.d.comb += [self.over.eq(1), self._how.eq(State.KILLED)]
        culprit, code = _lowest(Mux(faulty != 0, faulty, going), self.codes)
        with m.If(self.over):
            m.d.sync += self.end_cycle.eq(self.cycle - 1)
            with m.If(self._how == State.FAULTED):
                m.d.sync += [self.fault_core.eq(culprit), self.code.eq(Mux(faulty != 0, code, Fault.WATCHDOG))]

    def _go(self, m: Module) -> None:
        """Wait for the cores and for the slot period; run; drain."""
        after = self._how_ended = Signal(3)
        m.d.sync += self._seen.eq(self.live)
        m.d.comb += self.active.eq(
            (self.state == State.WAITING) | (self.state == State.RUNNING) | (self.state == State.DRAINING)
        )
        able = (self.cores != 0) & ((self.ready | ~self.cores).all())
        go = (self.state == State.WAITING) & able & self.early & ~self.kill
        m.d.sync += [self.begin.eq(go), self.finished.eq(0)]
        with m.If(go):
            m.d.sync += [self.state.eq(State.RUNNING), self.live.eq(1), self.begin_cycle.eq(self.cycle + 2)]
            m.d.sync += [self.code.eq(0), self.fault_core.eq(0), self.syncs.eq(0)]
        with m.Elif(self.over):
            m.d.sync += [self.state.eq(State.DRAINING), self.live.eq(0), after.eq(self._how)]
        with m.Elif((self.state == State.DRAINING) & (self.quiet | ~self.cores).all()):
            m.d.sync += [self.state.eq(after), self.finished.eq(1)]
        with m.Elif((self.state == State.WAITING) & self.kill):
            m.d.sync += [self.state.eq(State.KILLED), self.finished.eq(1)]
        with m.Elif(self.start & ~self.active):
            m.d.sync += self.state.eq(State.WAITING)


def _lowest(mask: Value, codes: list[Value]) -> tuple[Value, Value]:
    """Number of the lowest set bit, and the code that belongs to it."""
    number, code = Value.cast(0), Value.cast(0)
    for place in reversed(range(len(mask))):
        number, code = Mux(mask[place], place, number), Mux(mask[place], codes[place], code)
    return number, code
