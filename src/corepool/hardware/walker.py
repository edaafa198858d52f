"""Walks the blocks and rows of a transfer through DDR and cuts them into bursts, one a cycle.

It must not know what a burst is for; load and save unit have one each.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.decode import get
from corepool.hardware.interfaces import ADDRESS_BITS, INSTRUCTION_BITS
from corepool.isa.table import Opcode, Target

WORDS_BITS = 33  # of a run's words; longer ones leave every window before they end, so they are cut to this

# A byte address in the window, and whether it has passed 4 GiB.
_Place = data.StructLayout({"address": ADDRESS_BITS, "beyond": 1})


class Walker(wiring.Component):
    """``start`` in cycle s with the ``instruction``; from s + 2 on ``first`` (byte), ``words`` and ``last``
    describe the next burst, until ``advance``, which moves on to the one behind it in the following cycle.
    ``block_words`` is the number
    of words of a channel block, from s + 1 on."""

    def __init__(self, config: HardwareConfig, opcode: Opcode) -> None:
        self.config, self._opcode = config, opcode
        self.burst_words = config.burst_bytes // config.word_bytes
        super().__init__(
            {
                "start": In(1),
                "instruction": In(INSTRUCTION_BITS),
                "advance": In(1),
                "first": Out(_Place),
                "words": Out(range(self.burst_words + 1)),
                "last": Out(1),
                "block_words": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = self.config.word_bytes
        shift = word.bit_length() - 1

        def field(name: str) -> Value:
            return get(self.instruction, self._opcode, name)

        rows, blocks, pixels = Signal(16), Signal(16), Signal(16)
        row_stride, block_stride = Signal(32), Signal(32)
        block_words = self.block_words
        rows_touch = Signal()
        few = Signal()  # blocks of so few words are never joined on the way to the feature memory
        setup = Signal()
        m.d.sync += setup.eq(self.start)
        here, row_place, block_place = Signal(_Place), Signal(_Place), Signal(_Place)
        with m.If(self.start):
            for target, name in ((rows, "rows"), (blocks, "blocks"), (pixels, "pixels")):
                m.d.sync += target.eq(field(name))
            m.d.sync += [row_stride.eq(field("row_stride")), block_stride.eq(field("block_stride"))]
            m.d.sync += block_words.eq(field("rows") * field("pixels"))
            m.d.sync += rows_touch.eq((field("rows") == 1) | (field("row_stride") == field("pixels")))
            for place in (here, row_place, block_place):
                m.d.sync += [place.address.eq(field("address")), place.beyond.eq(0)]
            if self._opcode is Opcode.LOAD:
                m.d.sync += few.eq(field("target") == Target.FEATURE)

        run, left = Signal(WORDS_BITS), Signal(WORDS_BITS)
        inner, outer, inner_left = Signal(16), Signal(16), Signal(16)
        blocks_touch, whole, chosen = Signal(), Signal(48), Signal(WORDS_BITS)
        small = few & (block_words < joined_words(self.config))
        m.d.comb += blocks_touch.eq(rows_touch & ((blocks == 1) | ((block_stride == block_words) & ~small)))
        m.d.comb += whole.eq(block_words * Mux(blocks_touch, blocks, 1))
        m.d.comb += chosen.eq(Mux(rows_touch, Mux(whole[WORDS_BITS - 1 :].any(), 1 << (WORDS_BITS - 1), whole), pixels))
        with m.If(setup):
            m.d.sync += [run.eq(chosen), left.eq(chosen)]
            m.d.sync += [inner.eq(Mux(rows_touch, 1, rows)), inner_left.eq(Mux(rows_touch, 1, rows))]
            m.d.sync += outer.eq(Mux(blocks_touch, 1, blocks))

        space = Signal(range(self.burst_words + 1))
        ends_run = Signal()
        m.d.comb += space.eq(self.burst_words - here.address[shift : self.config.burst_bytes.bit_length() - 1])
        m.d.comb += [ends_run.eq(left <= space), self.words.eq(Mux(ends_run, left, space)), self.first.eq(here)]
        m.d.comb += self.last.eq(ends_run & (inner_left == 1) & (outer == 1))

        def moved(place: Value, words: Value) -> Value:
            total = Signal(ADDRESS_BITS + 8)
            m.d.comb += total.eq(place.address + (words << shift))
            result = Signal(_Place)
            m.d.comb += [result.address.eq(total), result.beyond.eq(place.beyond | total[ADDRESS_BITS:].any())]
            return result

        next_row, next_block = moved(row_place, row_stride), moved(block_place, block_stride)
        onward = moved(here, space)
        with m.If(self.advance):
            m.d.sync += left.eq(Mux(ends_run, run, left - space))
            with m.If(~ends_run):
                m.d.sync += here.eq(onward)
            with m.Elif(inner_left != 1):
                m.d.sync += [here.eq(next_row), row_place.eq(next_row), inner_left.eq(inner_left - 1)]
            with m.Else():
                m.d.sync += [here.eq(next_block), row_place.eq(next_block), block_place.eq(next_block)]
                m.d.sync += [inner_left.eq(inner), outer.eq(outer - 1)]
        return m


def joined_words(config: HardwareConfig) -> int:
    """Blocks of fewer words do not become one run on their way into the feature memory.

    Words of small blocks meet in few feature banks; joined, they would arrive faster than those banks can take them.
    """
    return 4 * config.pixels
