"""Write buffers: a core's bursts on their way into one bank, from the first word until the bank acknowledged the last.

It must not know slots' times or windows; what begins here has been checked, and what was requested will be written.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.interfaces import ADDRESS_BITS, burst_layout, length_bits
from corepool.hardware.window import RequestSignature, assign_request, line_shift

OPEN_BITS = 6  # lines of a core that a bank may leave unacknowledged: 63, above write_latency / cores_per_bank


class WriteStream(wiring.Signature):
    """Words from a core to a bank, seen from the core: ``begin`` with ``burst``, then its words, the last marked.

    A begin can come in the cycle of the last word. ``drop``: level; the burst that is under way, or whose last word
    comes now, is forgotten, and none begins.
    """

    def __init__(self, config: HardwareConfig) -> None:
        super().__init__(
            {
                "begin": Out(1),
                "burst": Out(burst_layout(config)),
                "valid": Out(1),
                "last": Out(1),
                "data": Out(8 * config.word_bytes),
                "drop": Out(1),
            }
        )


class WriteBuffer(wiring.Component):
    """``save_buffers`` bursts of one core for one bank.

    words: the stream; ``begin`` only for bursts that this bank takes. room: a buffer is free (combinational from
    ``serve``). request: at the core's lane. serve: a line is taken; ``data`` and ``strobe`` (a bit per byte) follow in
    the next cycle and stay until the next serve; final: it is the burst's last line. issue: the line goes to the bank;
    ack: the bank acknowledged one. full: no more lines may be issued. pending: something is not acknowledged.
    """

    def __init__(self, config: HardwareConfig) -> None:
        if config.save_buffers < 1:
            raise ValueError(f"a core needs at least one write buffer per bank, not {config.save_buffers}")
        self.config = config
        super().__init__(
            {
                "words": In(WriteStream(config)),
                "room": Out(1),
                "request": Out(RequestSignature(config)),
                "serve": In(1),
                "final": In(1),
                "issue": In(1),
                "ack": In(1),
                "data": Out(8 * config.ddr.line_bytes),
                "strobe": Out(config.ddr.line_bytes),
                "full": Out(1),
                "pending": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        buffers = self.config.save_buffers
        entry = data.StructLayout({"address": ADDRESS_BITS, "length": length_bits(self.config)})
        bursts = [Signal(entry, name=f"burst{number}") for number in range(buffers)]
        active = self._accept(m, bursts)
        self._fill(m, bursts, active)
        self._ask(m, bursts, active)
        self._drain(m, bursts)
        opened = Signal(OPEN_BITS)
        m.d.sync += opened.eq(opened + self.issue - self.ack)
        m.d.comb += [self.full.eq(opened.all()), self.pending.eq((self._held != 0) | (opened != 0))]
        return m

    def _pointer(self, name: str) -> Signal:
        return Signal(range(self.config.save_buffers), name=name)

    def _after(self, pointer: Signal, step: int = 1) -> Value:
        end, to = (self.config.save_buffers - 1, 0) if step == 1 else (0, self.config.save_buffers - 1)
        return Mux(pointer == end, to, (pointer + step)[: len(pointer)])

    def _accept(self, m: Module, bursts: list[Any]) -> Signal:
        """Give each burst a buffer; returns whether the words that come now belong to one."""
        words, place, active = self.words, self._pointer("place"), Signal()
        held = self._held = Signal(range(self.config.save_buffers + 1))
        take = words.begin & ~words.drop
        lost = active & words.drop
        freed = self.serve & self.final
        m.d.comb += self.room.eq((held != self.config.save_buffers) | freed)
        m.d.sync += held.eq(held + take - freed - lost)
        with m.If(words.drop | (words.valid & words.last)):
            m.d.sync += active.eq(0)
        with m.If(take):
            m.d.sync += [active.eq(1), place.eq(self._after(place))]
        with m.Elif(lost):
            m.d.sync += place.eq(self._after(place, -1))
        for number, burst in enumerate(bursts):
            with m.If(take & (place == number)):
                m.d.sync += [burst.address.eq(words.burst.address), burst.length.eq(words.burst.length)]
        return active

    def _fill(self, m: Module, bursts: list[Any], active: Signal) -> None:
        """Put words where they belong in their lines, one cycle after they came."""
        config, words = self.config, self.words
        lanes = config.ddr.line_bytes // config.word_bytes
        depth = config.save_buffers * config.burst_bytes // config.ddr.line_bytes
        m.submodules.store = store = memory.Memory(
            shape=8 * config.ddr.line_bytes, depth=max(depth, 2), init=[], attrs={"ram_style": "distributed"}
        )
        write = store.write_port(granularity=8 * config.word_bytes)
        self._read = store.read_port()
        fresh, final, start, word = Signal(), Signal(), Signal(init=1), Signal(8 * config.word_bytes)
        fill = self._pointer("fill")
        here = Signal(range(config.burst_bytes // config.word_bytes))
        following = Signal.like(here)
        shift = line_shift(config)
        word_shift = config.word_bytes.bit_length() - 1
        first_lane = Array(burst.address[word_shift:shift] for burst in bursts)[fill]
        m.d.sync += [fresh.eq(words.valid & active & ~words.drop), final.eq(words.last), word.eq(words.data)]
        m.d.comb += [
            here.eq(Mux(start, first_lane, following)),
            write.addr.eq(Cat(here[shift - word_shift :], fill)),
            write.data.eq(word.replicate(lanes)),
            write.en.eq(Mux(fresh, 1 << here[: shift - word_shift], 0)),
        ]
        with m.If(words.drop):
            m.d.sync += start.eq(1)
        with m.If(fresh):
            m.d.sync += [following.eq(here + 1), start.eq(final | words.drop)]
            with m.If(final):
                m.d.sync += fill.eq(self._after(fill))

    def _ask(self, m: Module, bursts: list[Any], active: Signal) -> None:
        """Request whole bursts, in order."""
        words, request = self.words, self.request
        asked, head = Signal.like(self._held), self._pointer("head")
        done = words.valid & words.last & active & ~words.drop
        burst = [Array(burst.address for burst in bursts)[head], Array(burst.length for burst in bursts)[head]]
        address, length = Signal(ADDRESS_BITS), Signal(length_bits(self.config))
        m.d.comb += [request.pending.eq(asked != 0), address.eq(burst[0]), length.eq(burst[1])]
        m.d.comb += assign_request(self.config, request.payload, address, length)
        m.d.sync += asked.eq(asked + done - request.take)
        with m.If(request.take):
            m.d.sync += head.eq(self._after(head))

    def _drain(self, m: Module, bursts: list[Any]) -> None:
        """Hand lines out; a strobe leaves out what lies before the first and behind the last word."""
        config, read = self.config, self._read
        shift, word_shift = line_shift(config), config.word_bytes.bit_length() - 1
        lanes = config.ddr.line_bytes // config.word_bytes
        tail, line = self._pointer("tail"), Signal(range(max(2, config.burst_bytes // config.ddr.line_bytes)))
        address = Array(burst.address for burst in bursts)[tail]
        behind = Signal(range(2 * config.ddr.line_bytes))
        first, final, mask = Signal(lanes), Signal(lanes), Signal(lanes)
        everything = (1 << lanes) - 1
        end = Signal(range(lanes))
        m.d.comb += [
            behind.eq(address[:shift] + Array(burst.length for burst in bursts)[tail][:shift]),
            end.eq((behind - 1)[word_shift:shift]),
            first.eq(Mux(line == 0, everything << address[word_shift:shift], everything)),
            final.eq(Mux(self.final, everything >> (end ^ (lanes - 1)), everything)),
            read.addr.eq(Cat(line[: shift_of(config)], tail)),
            read.en.eq(self.serve),
            self.data.eq(read.data),
            self.strobe.eq(Cat(bit.replicate(config.word_bytes) for bit in mask)),
        ]
        with m.If(self.serve):
            m.d.sync += [line.eq(line + 1), mask.eq(first & final)]
            with m.If(self.final):
                m.d.sync += [line.eq(0), tail.eq(self._after(tail))]


def shift_of(config: HardwareConfig) -> int:
    """Bits of a line's number within a buffer."""
    return (config.burst_bytes // config.ddr.line_bytes).bit_length() - 1
