"""A bank's controller: its slots in their turns, the write buffers of all cores, and the way back of what was read.

It must not know leases beyond each slot's window and each core's lane; every slot is alone with its lease.

Times, seen from outside: a line that is served in cycle e (machine.md) stands on AR, or on AW and W, in cycle e + 2.
Data accepted on R in cycle a reach the core in cycle a + 1. An answer accepted on B in cycle a counts from a + 1 on. A
memory that lets R follow AR by read_latency - READ_OVERHEAD cycles, and B follow AW and W by write_latency -
WRITE_OVERHEAD, is exactly on time; a slower one, or one that is not always ready, only delays.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from corepool.config import HardwareConfig
from corepool.hardware.axi import BUS_ADDRESS_BITS, INCR, Axi4Signature, id_bits, size_code
from corepool.hardware.interfaces import ADDRESS_BITS, LINE_LEAD
from corepool.hardware.library import share
from corepool.hardware.returns import Returns
from corepool.hardware.slots import Slot
from corepool.hardware.window import PAGE_BITS, RequestSignature, request_layout
from corepool.hardware.writes import WriteBuffer, WriteStream

READ_OVERHEAD = 3 + LINE_LEAD  # cycles from serving to AR, from R to the core, and the core's own
WRITE_OVERHEAD = 3  # cycles from serving to AW and W, and from B to the count of open lines


class SlotPort(wiring.Signature):
    """What a slot and the core whose it is exchange, seen from the bank.

    restart, page, last: see Slot. fetch, load: requests. fetch_line, load_line: ``line`` of the bank is one of that
    kind. fetch_complete comes in the cycle before the burst is complete, load_complete in the very cycle. read_bytes,
    write_bytes: of the burst granted a cycle ago, else 0. busy: bursts or lines are under way. guard: a line was held
    back because it lies outside of the window. bad: the memory answered a line of this slot with an error, a cycle ago.
    """

    def __init__(self, config: HardwareConfig) -> None:
        size = request_layout(config)["bytes"].width
        super().__init__(
            {
                "restart": In(1),
                "page": In(BUS_ADDRESS_BITS - PAGE_BITS),
                "last": In(ADDRESS_BITS),
                "fetch": In(RequestSignature(config)),
                "load": In(RequestSignature(config)),
                "fetch_line": Out(1),
                "load_line": Out(1),
                "fetch_complete": Out(1),
                "load_complete": Out(1),
                "read_bytes": Out(size),
                "write_bytes": Out(size),
                "busy": Out(1),
                "guard": Out(1),
                "bad": Out(1),
            }
        )


class WriterPort(wiring.Signature):
    """What a core exchanges with a bank that it writes to, seen from the bank.

    words: bursts for this bank. lane: which of the bank's slots carries them; held: one does. room, pending: see
    WriteBuffer. bad: the memory acknowledged a line of this core with an error, a cycle ago.
    """

    def __init__(self, config: HardwareConfig) -> None:
        super().__init__(
            {
                "words": In(WriteStream(config)),
                "lane": In(range(max(2, config.cores_per_bank))),
                "held": In(1),
                "room": Out(1),
                "pending": Out(1),
                "bad": Out(1),
            }
        )


class Bank(wiring.Component):
    """The controller of one bank.

    first_core: number of the bank's first core, a constant. slot, active: the core that is served in this cycle, and
    whether data move at all. slots, writers: a port for each core of the bank and for each core of the device. line:
    data read. bus: to the memory. error: the memory answered with an error.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        super().__init__(
            {
                "first_core": In(id_bits(config)),
                "slot": In(range(max(2, config.cores_per_bank))),
                "active": In(1),
                "slots": Out(SlotPort(config)).array(config.cores_per_bank),
                "writers": Out(WriterPort(config)).array(config.cores),
                "line": Out(8 * config.ddr.line_bytes),
                "bus": Out(Axi4Signature(config)),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._slots = [Slot(self.config) for _ in range(self.config.cores_per_bank)]
        self._buffers = [WriteBuffer(self.config) for _ in range(self.config.cores)]
        self._returns = [Returns(self.config) for _ in range(self.config.cores_per_bank)]
        for number, slot in enumerate(self._slots):
            m.submodules[f"slot{number}"] = share(platform, slot, "corepool_slot")
        for number, back in enumerate(self._returns):
            m.submodules[f"returns{number}"] = share(platform, back, "corepool_returns")
        for number, buffer in enumerate(self._buffers):
            m.submodules[f"buffer{number}"] = share(platform, buffer, "corepool_write_buffer")
        self._connect_slots(m)
        self._connect_writers(m)
        self._drive_reads(m)
        self._drive_writes(m)
        self._take_answers(m)
        return m

    def _connect_slots(self, m: Module) -> None:
        """Turns come a cycle late: see slots.py."""
        for number, (slot, port) in enumerate(zip(self._slots, self.slots, strict=True)):
            mine = Signal(name=f"turn{number}")
            m.d.sync += mine.eq(self.active & (self.slot == number))
            m.d.comb += [
                slot.turn.eq(mine),
                slot.restart.eq(port.restart),
                slot.page.eq(port.page),
                slot.last.eq(port.last),
                port.guard.eq(slot.serve & ~slot.issue),
            ]
            connect(m, slot.fetch, flipped(port.fetch))
            connect(m, slot.load, flipped(port.load))
            granted = Signal.like(port.read_bytes, name=f"granted{number}")
            written = Signal(name=f"written{number}")
            m.d.sync += [granted.eq(0), written.eq(slot.grant_write)]
            with m.If(slot.grant):
                m.d.sync += granted.eq(slot.grant_request.bytes)
            with m.If(written):
                m.d.comb += port.write_bytes.eq(granted)
            with m.Else():
                m.d.comb += port.read_bytes.eq(granted)

    def _connect_writers(self, m: Module) -> None:
        """A core's bursts are requested at its lane only."""
        for core, (buffer, port) in enumerate(zip(self._buffers, self.writers, strict=True)):
            connect(m, buffer.words, flipped(port.words))
            m.d.comb += [port.room.eq(buffer.room), port.pending.eq(buffer.pending)]
            taken = 0
            for number, slot in enumerate(self._slots):
                mine = port.held & (port.lane == number)
                m.d.comb += [
                    slot.writes[core].pending.eq(buffer.request.pending & mine),
                    slot.writes[core].payload.eq(buffer.request.payload),
                ]
                taken |= slot.writes[core].take
            m.d.comb += buffer.request.take.eq(taken)

    def _drive_reads(self, m: Module) -> None:
        bus, config = self.bus, self.config
        m.d.comb += [bus.arlen.eq(0), bus.arsize.eq(size_code(config)), bus.arburst.eq(INCR)]
        free = ~bus.arvalid | bus.arready
        with m.If(bus.arready):
            m.d.sync += bus.arvalid.eq(0)
        for number, slot in enumerate(self._slots):
            m.d.comb += slot.read_ready.eq(free)
            with m.If(slot.issue & ~slot.write):
                m.d.sync += [bus.arvalid.eq(1), bus.arid.eq(self.first_core + number), bus.araddr.eq(slot.address)]

    def _drive_writes(self, m: Module) -> None:
        bus, config = self.bus, self.config
        m.d.comb += [bus.awlen.eq(0), bus.awsize.eq(size_code(config)), bus.awburst.eq(INCR), bus.wlast.eq(1)]
        free = (~bus.awvalid | bus.awready) & (~bus.wvalid | bus.wready)
        with m.If(bus.awready):
            m.d.sync += bus.awvalid.eq(0)
        with m.If(bus.wready):
            m.d.sync += bus.wvalid.eq(0)
        for slot in self._slots:
            full = Array(buffer.full for buffer in self._buffers)[slot.writer]
            m.d.comb += slot.write_ready.eq(free & ~full)
            with m.If(slot.issue & slot.write):
                m.d.sync += [bus.awvalid.eq(1), bus.wvalid.eq(1), bus.awid.eq(slot.writer), bus.awaddr.eq(slot.address)]
        served = [(slot, slot.serve & slot.write) for slot in self._slots]
        for core, buffer in enumerate(self._buffers):
            mine = [(slot, moved & (slot.writer == core)) for slot, moved in served]
            m.d.comb += [
                buffer.serve.eq(Cat(moved for _, moved in mine).any()),
                buffer.final.eq(Cat(moved & slot.final for slot, moved in mine).any()),
                buffer.issue.eq(Cat(moved & slot.issue for slot, moved in mine).any()),
                buffer.ack.eq(bus.bvalid & (bus.bid == core)),
            ]
        with m.Switch(bus.awid):
            for core, buffer in enumerate(self._buffers):
                with m.Case(core):
                    m.d.comb += [bus.wdata.eq(buffer.data), bus.wstrb.eq(buffer.strobe)]
        m.d.comb += bus.bready.eq(1)

    def _take_answers(self, m: Module) -> None:
        """Lines go to whom their slot's bursts say; a slot that just had one lets the next one wait."""
        bus, accepted, ready = self.bus, Signal(), 0
        for number, (slot, back, port) in enumerate(zip(self._slots, self._returns, self.slots, strict=True)):
            mine = bus.rid == self.first_core + number
            ready |= mine & back.ready
            m.d.comb += [
                back.grant.eq(slot.grant & ~slot.grant_write),
                back.load.eq(slot.grant_load),
                back.more.eq(slot.grant_request.more),
                back.take.eq(accepted & mine),
                port.fetch_line.eq(back.fetch_line),
                port.load_line.eq(back.load_line),
                port.fetch_complete.eq(back.fetch_complete),
                port.load_complete.eq(back.load_complete),
                port.busy.eq(slot.busy | back.busy),
            ]
            m.d.sync += port.bad.eq(accepted & mine & bus.rresp[1])
        for core, writer in enumerate(self.writers):
            m.d.sync += writer.bad.eq(bus.bvalid & bus.bready & bus.bresp[1] & (bus.bid == core))
        m.d.comb += [bus.rready.eq(ready), accepted.eq(bus.rvalid & bus.rready)]
        with m.If(accepted):
            m.d.sync += self.line.eq(bus.rdata)
        m.d.sync += self.error.eq((accepted & bus.rresp[1]) | (bus.bvalid & bus.bresp[1]))
