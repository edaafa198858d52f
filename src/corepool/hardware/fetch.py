"""The fetcher of a core: reads its instruction stream ahead into a buffer and offers it in order.

It must not know what instructions mean; nor when a slot serves it.
"""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, Value
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.interfaces import ADDRESS_BITS, INSTRUCTION_BITS
from corepool.hardware.window import RequestSignature, assign_request, line_shift

INSTRUCTION_SHIFT = 5  # 32 bytes
COUNT_BITS = ADDRESS_BITS - INSTRUCTION_SHIFT


class Fetcher(wiring.Component):
    """Fetches ``count`` instructions from ``offset`` (bytes, a multiple of 32) of the window that ends at ``last``.

    start: pulse in the cycle before the lease's first. enable: requests are made. request: at the core's own slot.
    line, line_valid: the stream's lines in order; complete: in the cycle before a burst is complete. instruction: the
    stream's head; ended: all have left. fault: a burst would leave the window, at fault_address, first instruction
    fault_index.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        # Instructions up to these have been asked for, granted, are complete, have left; and how many places are taken.
        self.asked, self.granted = self._place("asked"), self._place("granted")
        self.complete_to, self.left = self._place("complete_to"), self._place("left")
        self.held = Signal(range(config.fetch_depth + 1))
        super().__init__(
            {
                "start": In(1),
                "enable": In(1),
                "offset": In(ADDRESS_BITS),
                "count": In(COUNT_BITS),
                "last": In(ADDRESS_BITS),
                "request": Out(RequestSignature(config)),
                "line": In(8 * config.ddr.line_bytes),
                "line_valid": In(1),
                "complete": In(1),
                "instruction": Out(stream.Signature(INSTRUCTION_BITS)),
                "ended": Out(1),
                "fault": Out(1),
                "fault_address": Out(ADDRESS_BITS + 1),
                "fault_index": Out(COUNT_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        first = Signal(COUNT_BITS)
        self._stop = Signal(COUNT_BITS + 1)
        m.d.comb += [first.eq(self.offset >> INSTRUCTION_SHIFT), self._stop.eq(first + self.count)]
        left = self._ahead(m, first)
        self._buffer(m, first, left)
        return m

    def _place(self, name: str) -> Signal:
        """A place in the stream, counted in instructions from the window's start."""
        return Signal(COUNT_BITS + 1, name=name)

    def _behind(self, place: Value) -> Value:
        """Where the burst that begins at ``place`` ends."""
        size = self.config.fetch_burst_bytes.bit_length() - 1 - INSTRUCTION_SHIFT
        edge = ((place >> size) + 1) << size
        return Mux(edge < self._stop, edge, self._stop)

    def _ahead(self, m: Module, first: Value) -> Signal:
        """Ask for bursts while the buffer has room for them; returns the instruction that leaves next."""
        asked, granted, left, held = self.asked, self.granted, self.left, self.held
        behind = self._place("behind")
        bad, failed = Signal(), Signal()
        amount = Signal(range(self.config.fetch_burst_bytes // 32 + 1))
        end = Signal(ADDRESS_BITS + 2)
        leave = self.instruction.valid & self.instruction.ready
        wish = self.enable & ~failed & (asked != self._stop)
        room = wish & (held + amount <= self.config.fetch_depth)
        m.d.comb += [
            behind.eq(self._behind(asked)),
            amount.eq(behind - asked),
            end.eq(behind << INSTRUCTION_SHIFT),
            bad.eq(end > self.last + 1),
            self.fault.eq(room & bad),
            self.fault_address.eq(asked << INSTRUCTION_SHIFT),
            self.fault_index.eq(asked - first),
            self.ended.eq(left == self._stop),
        ]
        make = room & ~bad
        m.d.sync += [held.eq(held + Mux(make, amount, 0) - leave), left.eq(left + leave)]
        with m.If(make):
            m.d.sync += asked.eq(behind)
        with m.If(self.fault):
            m.d.sync += failed.eq(1)
        self._grant(m, asked, granted)
        with m.If(self.start):
            m.d.sync += [asked.eq(first), granted.eq(first), left.eq(first), held.eq(0), failed.eq(0)]
        return left

    def _grant(self, m: Module, asked: Signal, granted: Signal) -> None:
        """What was asked for is granted in the same pieces."""
        length = Signal(range(self.config.fetch_burst_bytes + 1))
        after, address = self._place("after"), Signal(ADDRESS_BITS)
        m.d.comb += [
            after.eq(self._behind(granted)),
            length.eq((after - granted) << INSTRUCTION_SHIFT),
            address.eq(granted << INSTRUCTION_SHIFT),
            self.request.pending.eq(self.enable & (granted != asked)),
        ]
        m.d.comb += assign_request(self.config, self.request.payload, address, length)
        with m.If(self.request.take):
            m.d.sync += granted.eq(after)

    def _buffer(self, m: Module, first: Value, left: Signal) -> None:
        """A ring of lines, indexed by address; twice the depth, so that unasked parts of lines overwrite nothing."""
        config = self.config
        per_line = config.ddr.line_bytes // 32
        depth = 2 * max(config.fetch_depth // per_line, 1)
        m.submodules.ring = ring = memory.Memory(shape=8 * config.ddr.line_bytes, depth=depth, init=[])
        write, read = ring.write_port(), ring.read_port()
        shift = line_shift(config) - INSTRUCTION_SHIFT
        arriving, complete, following = Signal(range(depth)), self.complete_to, self._place("following")
        part = Signal(range(max(2, per_line)))
        head = self.instruction
        m.d.comb += [
            write.addr.eq(arriving),
            write.data.eq(self.line),
            write.en.eq(self.line_valid),
            following.eq(left + (head.valid & head.ready)),
            read.addr.eq(following >> shift),
            head.valid.eq(self.enable & (left != complete)),
            head.payload.eq(Array(read.data.word_select(place, INSTRUCTION_BITS) for place in range(per_line))[part]),
        ]
        m.d.sync += part.eq(following[:shift])
        with m.If(self.line_valid):
            m.d.sync += arriving.eq(arriving + 1)
        with m.If(self.complete):
            m.d.sync += complete.eq(self._behind(complete))
        with m.If(self.start):
            m.d.sync += [arriving.eq(first >> shift), complete.eq(first)]
