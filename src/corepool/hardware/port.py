"""The gate between a core and everything outside of it: fetching, window checks, writes, control, counters.

It must not trust the core: addresses are checked before they become requests, and what stops a lease stops it here.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, fifo, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from corepool.config import HardwareConfig
from corepool.hardware.axi import BUS_ADDRESS_BITS
from corepool.hardware.bank import SlotPort, WriterPort
from corepool.hardware.fetch import COUNT_BITS, Fetcher
from corepool.hardware.interfaces import ADDRESS_BITS, INDEX_BITS, CoreSignature, length_bits
from corepool.hardware.registers import Fault
from corepool.hardware.window import PAGE_BITS, WindowCheck, assign_request, request_layout

COUNTER_BITS = 48
COUNTERS = (
    "load_busy",
    "compute_busy",
    "save_busy",
    "steps",
    "instructions",
    "bytes_read",
    "bytes_written",
)


class RunSignature(wiring.Signature):
    """What a lease tells each of its cores: see Lease for begin, live, over, release, drain; mates: its cores."""

    def __init__(self, config: HardwareConfig) -> None:
        super().__init__(
            {
                "begin": Out(1),
                "live": Out(1),
                "over": Out(1),
                "release": Out(1),
                "drain": Out(1),
                "mates": Out(config.cores),
            }
        )


def record_layout() -> data.StructLayout:
    """A fault: its code (0: none), the instruction's index, the address with whether 2^32 must be added to it."""
    return data.StructLayout({"code": 3, "index": INDEX_BITS, "address": ADDRESS_BITS, "beyond": 1})


class CorePort(wiring.Component):
    """Stands beside one core.

    core: the core. run: its lease. page, last, stream_offset, stream_count: the host's settings. held, lanes: see
    Owners. clear: pulse. slot: its slot in its own bank; line: the bank's data. writers: its way into every bank.
    fault: of this core, a cycle after the event. record: kept when the run is over. completed: an instruction was, a
    cycle ago. quiet: nothing is under way. Counters run from the run's begin to its end.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        counters = {name: Out(COUNTER_BITS) for name in COUNTERS}
        super().__init__(
            {
                "core": In(CoreSignature(config)),
                "run": In(RunSignature(config)),
                "page": In(BUS_ADDRESS_BITS - PAGE_BITS),
                "last": In(ADDRESS_BITS),
                "stream_offset": In(ADDRESS_BITS),
                "stream_count": In(COUNT_BITS),
                "held": In(config.banks),
                "lanes": In(range(max(2, config.cores_per_bank))).array(config.banks),
                "clear": In(1),
                "slot": In(SlotPort(config)),
                "line": In(8 * config.ddr.line_bytes),
                "writers": In(WriterPort(config)).array(config.banks),
                "fault": Out(record_layout()),
                "record": Out(record_layout()),
                "completed": Out(1),
                "quiet": Out(1),
                **counters,
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._halt, seen = Signal(), Signal()
        self._watch = Signal()
        m.d.sync += seen.eq(self.run.live)
        m.d.comb += [self._halt.eq(~self.run.live | self.run.over), self._watch.eq(self.run.live & seen)]
        self._control(m)
        fetch = self._fetch(m)
        load_bad = self._load(m)
        save_bad = self._save(m)
        self._faults(m, fetch, load_bad, save_bad)
        self._count(m)
        return m

    def _control(self, m: Module) -> None:
        core, run, slot = self.core, self.run, self.slot
        m.d.comb += [
            core.start.eq(run.begin),
            core.release.eq(run.release),
            core.drain.eq(run.drain),
            core.lease_cores.eq(run.mates),
            core.halt.eq(self._halt),
            core.clear.eq(self.clear),
            slot.restart.eq(run.begin),
            slot.page.eq(self.page),
            slot.last.eq(self.last),
            self.quiet.eq(~slot.busy & ~Cat(writer.pending for writer in self.writers).any()),
        ]

    def _fetch(self, m: Module) -> Fetcher:
        m.submodules.fetcher = fetcher = Fetcher(self.config)
        m.d.comb += [
            fetcher.start.eq(self.run.begin),
            fetcher.enable.eq(self._watch & ~self._halt),
            fetcher.offset.eq(self.stream_offset),
            fetcher.count.eq(self.stream_count),
            fetcher.last.eq(self.last),
            fetcher.line.eq(self.line),
            fetcher.line_valid.eq(self.slot.fetch_line),
            fetcher.complete.eq(self.slot.fetch_complete),
            self.core.stream_end.eq(fetcher.ended & fetcher.enable),
        ]
        connect(m, fetcher.request, flipped(self.slot.fetch))
        connect(m, fetcher.instruction, flipped(self.core.instruction))
        return fetcher

    def _load(self, m: Module) -> Signal:
        """Requests inside the window wait for their slot; returns whether one is outside."""
        config, core, slot = self.config, self.core, self.slot
        m.submodules.load_check = check = WindowCheck(length_bits(config))
        layout = request_layout(config)
        queue = fifo.SyncFIFO(width=layout.size, depth=config.load_outstanding)
        m.submodules.loads = ResetInserter(self._halt)(queue)
        burst, entry, bad = core.read_request.payload, Signal(layout), Signal()
        m.d.comb += assign_request(config, entry, burst.address, burst.length)
        m.d.comb += [
            check.address.eq(burst.address),
            check.beyond.eq(burst.beyond),
            check.length.eq(burst.length),
            check.last.eq(self.last),
            bad.eq(core.read_request.valid & ~check.inside),
            queue.w_data.eq(entry),
            queue.w_en.eq(core.read_request.valid & check.inside & ~self._halt),
            queue.r_en.eq(slot.load.take),
            slot.load.payload.eq(queue.r_data),
            slot.load.pending.eq(queue.r_rdy & ~self._halt),
            core.read_line.valid.eq(slot.load_line),
            core.read_line.data.eq(self.line),
            core.read_complete.eq(slot.load_complete),
        ]
        return bad

    def _save(self, m: Module) -> Signal:
        """Words go to the banks of a burst's mask; returns whether a burst must not begin."""
        config, core = self.config, self.core
        m.submodules.save_check = check = WindowCheck(length_bits(config))
        burst, good, bad = core.write_burst, Signal(), Signal()
        banks = core.write_banks
        foreign = (banks[: config.banks] & ~self.held).any() | banks[config.banks :].any()
        m.d.comb += [
            check.address.eq(burst.address),
            check.beyond.eq(burst.beyond),
            check.length.eq(burst.length),
            check.last.eq(self.last),
            good.eq(core.write_begin & check.inside & ~foreign),
            bad.eq(core.write_begin & ~good),
            core.writes_pending.eq(Cat(writer.pending for writer in self.writers).any()),
        ]
        for bank, writer in enumerate(self.writers):
            m.d.comb += [
                writer.words.begin.eq(good & core.write_banks[bank]),
                writer.words.burst.eq(burst),
                writer.words.valid.eq(core.write_word.valid),
                writer.words.last.eq(core.write_word.last),
                writer.words.data.eq(core.write_word.data),
                writer.words.drop.eq(self._halt),
                writer.lane.eq(self.lanes[bank]),
                writer.held.eq(self.held[bank]),
                core.write_room[bank].eq(writer.room | ~self.held[bank]),
            ]
        return bad

    def _faults(self, m: Module, fetcher: Fetcher, load_bad: Signal, save_bad: Signal) -> None:
        """The lowest code of a cycle counts; among windows SAVE before LOAD before the fetcher.

        An error of the memory is told with the instruction at the dispatcher: which one asked for the line is not kept.
        """
        core, fault = self.core, self.fault
        guard = Signal(record_layout())
        burst = Mux(save_bad, core.write_burst.as_value(), core.read_request.payload.as_value())
        chosen = Signal.like(core.write_burst)
        m.d.comb += chosen.eq(burst)
        m.d.sync += guard.code.eq(0)
        with m.If(save_bad | load_bad):
            m.d.sync += [guard.code.eq(Fault.WINDOW), guard.index.eq(chosen.index)]
            m.d.sync += [guard.address.eq(chosen.address), guard.beyond.eq(chosen.beyond)]
        with m.Elif(fetcher.fault):
            m.d.sync += [guard.code.eq(Fault.WINDOW), guard.index.eq(fetcher.fault_index)]
            m.d.sync += Cat(guard.address, guard.beyond).eq(fetcher.fault_address)
        with m.If((guard.code != 0) & ~(core.fault.valid & (core.fault.code < Fault.WINDOW))):
            m.d.comb += fault.eq(guard)
        with m.Elif(core.fault.valid):
            m.d.comb += [fault.code.eq(core.fault.code), fault.index.eq(core.fault.index)]
        with m.Elif(self.slot.bad | Cat(writer.bad for writer in self.writers).any()):
            m.d.comb += fault.code.eq(Fault.BUS)
        with m.If(self.run.over):
            m.d.sync += self.record.eq(fault)
            with m.If((fault.code == 0) | (fault.code == Fault.BUS)):
                m.d.sync += self.record.index.eq(core.reached)

    def _count(self, m: Module) -> None:
        """Reports come a cycle after their events, so those of the run's last cycle are seen while ``over`` is high."""
        core = self.core
        before, released, done = Signal(), Signal(), Signal(range(6))
        m.d.sync += [before.eq(core.end_arrived), released.eq(self.run.release)]
        m.d.comb += [
            done.eq(core.done[0] + core.done[1] + core.done[2] + released + (core.end_arrived & ~before)),
            self.completed.eq(core.done.any()),
        ]
        amounts = [*core.busy, core.step, done, self.slot.read_bytes, self.slot.write_bytes]
        for name, amount in zip(COUNTERS, amounts, strict=True):
            counter = getattr(self, name)
            with m.If(self.run.begin):
                m.d.sync += counter.eq(0)
            with m.Elif(self._watch):
                m.d.sync += counter.eq(counter + amount)
