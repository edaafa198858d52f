"""The load unit: turns LOAD instructions into requests, and says when each of them is complete.

It must not know the dispatcher or memories; what arrives is placed by the placer, which it tells what comes.
"""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.decode import get
from corepool.hardware.interfaces import INDEX_BITS, INSTRUCTION_BITS, burst_layout
from corepool.hardware.place import part_layout
from corepool.hardware.queues import Queue
from corepool.hardware.walker import Walker
from corepool.isa.table import Opcode

_OPEN = data.StructLayout({"last": 1, "raise_next": 1, "index": INDEX_BITS})


class LoadUnit(wiring.Component):
    """``start`` in cycle s with ``instruction`` and ``index``, while ``free``. Requests leave from s + setup_cycles on.

    ``done`` in the cycle in which the last burst of an instruction is complete, with its ``done_raise`` and
    ``done_index``; ``idle``: nothing is requested or awaited, what completes in this very cycle not counted.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "instruction": In(INSTRUCTION_BITS),
                "index": In(INDEX_BITS),
                "free": Out(1),
                "request": Out(1),
                "burst": Out(burst_layout(config)),
                "part": Out(part_layout(config)),
                "complete": In(1),
                "done": Out(1),
                "done_raise": Out(1),
                "done_index": Out(INDEX_BITS),
                "idle": Out(1),
                "reset": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.walker = walker = Walker(config, Opcode.LOAD)
        m.submodules.open = open_ = Queue(_OPEN, config.load_outstanding)
        busy, wait, begun = Signal(), Signal(range(config.setup_cycles + 1)), Signal()
        raise_next, index = Signal(), Signal(INDEX_BITS)
        shift = config.word_bytes.bit_length() - 1
        last_request = Signal()
        m.d.comb += [walker.start.eq(self.start), walker.instruction.eq(self.instruction)]
        m.d.comb += self.request.eq(busy & (wait == 0) & ((open_.level != config.load_outstanding) | self.complete))
        m.d.comb += [walker.advance.eq(self.request), last_request.eq(self.request & walker.last)]
        m.d.comb += [
            self.burst.address.eq(walker.first.address),
            self.burst.beyond.eq(walker.first.beyond),
            self.burst.length.eq(walker.words << shift),
            self.burst.index.eq(index),
            self.part.skip.eq(walker.first.address[shift:]),
            self.part.words.eq(walker.words),
            self.part.first.eq(~begun),
            self.part.last.eq(walker.last),
        ]
        m.d.comb += [open_.push.eq(self.request), open_.pop.eq(self.complete), open_.clear.eq(self.reset)]
        m.d.comb += [
            open_.input.last.eq(walker.last),
            open_.input.raise_next.eq(raise_next),
            open_.input.index.eq(index),
        ]
        m.d.comb += [
            self.free.eq(~busy),
            self.done.eq(self.complete & open_.head.last),
            self.done_raise.eq(self.done & open_.head.raise_next),
            self.done_index.eq(open_.head.index),
            self.idle.eq(~busy & ((open_.level == 0) | ((open_.level == 1) & self.complete))),
        ]
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.If(self.request):
            m.d.sync += begun.eq(1)
        with m.If(last_request):
            m.d.sync += busy.eq(0)
        with m.If(self.start):
            m.d.sync += [busy.eq(1), begun.eq(0), wait.eq(config.setup_cycles - 1), index.eq(self.index)]
            m.d.sync += raise_next.eq(get(self.instruction, Opcode.LOAD, "raise_next"))
        with m.If(self.reset):
            m.d.sync += busy.eq(0)
        return m
