"""The save unit: reads words of the result memory and sends them, burst by burst, to the banks of a mask.

It must not know how words reach DDR; the pool has the buffers.
"""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.decode import get
from corepool.hardware.interfaces import INDEX_BITS, INSTRUCTION_BITS, burst_layout
from corepool.hardware.memories import bits_for
from corepool.hardware.walker import Walker
from corepool.isa.table import Opcode


class SaveUnit(wiring.Component):
    """``start`` in cycle s with ``instruction`` and ``index``, while ``free``. Bursts begin from s + setup_cycles on.

    A burst that begins in cycle b reads ``address`` in b, b + 1, ...; ``word_valid`` with ``word_first`` and
    ``word_last`` is high one cycle later, when the memory's word is there. ``done`` in the cycle in which the last
    burst is requested, with ``done_raise`` and ``done_index``; the unit is free then.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "instruction": In(INSTRUCTION_BITS),
                "index": In(INDEX_BITS),
                "free": Out(1),
                "room": In(config.banks),
                "begin": Out(1),
                "burst": Out(burst_layout(config)),
                "banks": Out(8),
                "address": Out(bits_for(config.result_words)),
                "word_valid": Out(1),
                "word_first": Out(1),
                "word_last": Out(1),
                "done": Out(1),
                "done_raise": Out(1),
                "done_index": Out(INDEX_BITS),
                "reset": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.walker = walker = Walker(config, Opcode.SAVE)
        busy, wait, ending = Signal(), Signal(range(config.setup_cycles + 1)), Signal()
        banks, index, raise_prev = Signal(8), Signal(INDEX_BITS), Signal()
        left = Signal(range(walker.burst_words + 1))  # words still to be read of the burst that has begun
        place = Signal(bits_for(config.result_words))
        block_left, block_skip, fresh = Signal(32), Signal(14), Signal()
        m.d.sync += fresh.eq(self.start)
        kept = Signal(burst_layout(config))
        now = Signal(burst_layout(config))
        shift = config.word_bytes.bit_length() - 1
        m.d.comb += [walker.start.eq(self.start), walker.instruction.eq(self.instruction)]
        m.d.comb += [
            now.address.eq(walker.first.address),
            now.beyond.eq(walker.first.beyond),
            now.length.eq(walker.words << shift),
            now.index.eq(index),
        ]
        blocked = (banks[: config.banks] & ~self.room).any()
        m.d.comb += self.begin.eq(busy & ~ending & (wait == 0) & (left == 0) & ~blocked)
        m.d.comb += [walker.advance.eq(self.begin), self.banks.eq(banks), self.burst.eq(kept)]
        with m.If(self.begin):
            m.d.comb += self.burst.eq(now)
        reading = self.begin | (left != 0)
        m.d.comb += self.address.eq(place)
        m.d.sync += [self.word_valid.eq(reading), self.word_first.eq(self.begin)]
        m.d.sync += self.word_last.eq((self.begin & (walker.words == 1)) | (left == 1))
        m.d.comb += [
            self.done.eq(busy & ending & (left == 0)),
            self.done_raise.eq(self.done & raise_prev),
            self.done_index.eq(index),
            self.free.eq(~busy | self.done),
        ]
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.If(reading):
            m.d.sync += [place.eq(place + 1), block_left.eq(block_left - 1)]
            with m.If(block_left == 1):
                m.d.sync += [place.eq(place + 1 + block_skip), block_left.eq(walker.block_words)]
        with m.If(fresh):
            m.d.sync += block_left.eq(walker.block_words)
        with m.If(self.begin):
            m.d.sync += [left.eq(walker.words - 1), kept.eq(now), ending.eq(walker.last)]
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.If(self.done):
            m.d.sync += busy.eq(0)
        with m.If(self.start):
            m.d.sync += [busy.eq(1), ending.eq(0), wait.eq(config.setup_cycles - 1), index.eq(self.index)]
            m.d.sync += [banks.eq(get(self.instruction, Opcode.SAVE, "banks"))]
            m.d.sync += raise_prev.eq(get(self.instruction, Opcode.SAVE, "raise_prev"))
            m.d.sync += block_skip.eq(get(self.instruction, Opcode.SAVE, "block_skip"))
            m.d.sync += place.eq(get(self.instruction, Opcode.SAVE, "local"))
        with m.If(self.reset):
            m.d.sync += [busy.eq(0), left.eq(0), self.word_valid.eq(0)]
        return m
