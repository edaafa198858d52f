"""A slot: a core's share of its bank. It grants one burst at a time by round robin and moves lines in its own cycles.

It must not know other slots, nor what lines carry. Whatever is asked for, a line outside the window never leaves it.

The grant of cycle t happens in cycle t; the line of cycle t is served in cycle t + 1, so that choosing a burst and
addressing its line are two steps. ``turn`` therefore comes one cycle late, and machine.md's times hold.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.axi import BUS_ADDRESS_BITS, id_bits
from corepool.hardware.interfaces import ADDRESS_BITS
from corepool.hardware.window import PAGE_BITS, RequestSignature, line_shift, request_layout

FETCH, LOAD, FIRST_WRITER = 0, 1, 2


class Slot(wiring.Component):
    """One slot of a bank.

    restart: the round robin begins at fetch again. turn: the slot served a cycle ago, and active. read_ready,
    write_ready: the bank's outputs take a line now. page, last: the window. fetch, load, writes: requesters; a writer
    is a core of the device.
    grant: a burst is taken now; grant_write, grant_load, grant_request tell which.
    serve: a line is moved now (write, writer, final say which); issue: serve, and inside of the window; address: its
    first byte in the bank. busy: a burst is under way.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        requester = RequestSignature(config)
        super().__init__(
            {
                "restart": In(1),
                "turn": In(1),
                "read_ready": In(1),
                "write_ready": In(1),
                "page": In(BUS_ADDRESS_BITS - PAGE_BITS),
                "last": In(ADDRESS_BITS),
                "fetch": In(requester),
                "load": In(requester),
                "writes": In(requester).array(config.cores),
                "grant": Out(1),
                "grant_write": Out(1),
                "grant_load": Out(1),
                "grant_request": Out(request_layout(config)),
                "serve": Out(1),
                "issue": Out(1),
                "write": Out(1),
                "writer": Out(id_bits(config)),
                "final": Out(1),
                "address": Out(BUS_ADDRESS_BITS),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        chosen = self._choose(m)
        left = Signal.like(self.grant_request.more)
        line = Signal.like(self.grant_request.line)
        shift = line_shift(self.config)
        m.d.comb += [
            self.serve.eq(self.turn & self.busy & Mux(self.write, self.write_ready, self.read_ready)),
            self.final.eq(left == 0),
            self.issue.eq(self.serve & (line <= self.last[shift:])),
            self.address.eq((self.page << PAGE_BITS) + (line << shift)),
            self.grant.eq((chosen != 0) & (~self.busy | (self.serve & self.final))),
            self.grant_write.eq(chosen[FIRST_WRITER:].any()),
            self.grant_load.eq(chosen[LOAD]),
        ]
        with m.If(self.serve):
            m.d.sync += [line.eq(line + 1), left.eq(left - 1)]
            with m.If(self.final):
                m.d.sync += self.busy.eq(0)
        with m.If(self.grant):
            m.d.sync += [
                self.busy.eq(1),
                self.write.eq(self.grant_write),
                line.eq(self.grant_request.line),
                left.eq(self.grant_request.more),
            ]
            for core in range(self.config.cores):
                with m.If(chosen[FIRST_WRITER + core]):
                    m.d.sync += self.writer.eq(core)
        return m

    def _choose(self, m: Module) -> Signal:
        """The requester whose turn it is, one-hot: the first pending one behind the one granted last."""
        requesters = [self.fetch, self.load, *self.writes]
        count = len(requesters)
        pending, late, chosen = Signal(count), Signal(count), Signal(count)
        behind = Signal(count)  # ones for the requesters behind the one granted last
        m.d.comb += [
            pending.eq(Cat(requester.pending for requester in requesters)),
            late.eq(pending & behind),
            chosen.eq(Mux(late != 0, late & -late, pending & -pending)),
        ]
        payload = 0
        for place, requester in enumerate(requesters):
            m.d.comb += requester.take.eq(self.grant & chosen[place])
            payload |= Mux(chosen[place], requester.payload.as_value(), 0)
        m.d.comb += self.grant_request.as_value().eq(payload)
        with m.If(self.restart):
            m.d.sync += behind.eq(0)
        with m.Elif(self.grant):
            m.d.sync += behind.eq(~(chosen | (chosen - 1)))
        return chosen
