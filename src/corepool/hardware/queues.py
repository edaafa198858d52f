"""A small queue whose head is seen without delay, with its fill level.

It must not know what it holds.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, ShapeLike, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from corepool.errors import ConfigError


class Queue(wiring.Component):
    """First in, first out; what is pushed in cycle t is at the head in t + 1 at the earliest.

    ``push`` with ``input`` must not come when ``level == depth``, ``pop`` not when ``level == 0``. ``clear``
    empties it.
    ``head`` is valid while ``level != 0``; what it is otherwise means nothing.
    """

    def __init__(self, shape: ShapeLike, depth: int) -> None:
        if depth < 1:
            raise ConfigError(f"a queue has at least one place, not {depth}")
        self.depth = depth
        self.first, self.behind = Signal(range(depth)), Signal(range(depth))  # places of the head, and of the next push
        self._shape = shape
        super().__init__(
            {
                "push": In(1),
                "input": In(shape),
                "pop": In(1),
                "head": Out(shape),
                "level": Out(range(depth + 1)),
                "clear": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.storage = storage = memory.Memory(shape=self._shape, depth=self.depth, init=[])
        write, read = storage.write_port(), storage.read_port(domain="comb")
        first, behind = self.first, self.behind

        def after(place: Signal) -> Mux:
            return Mux(place == self.depth - 1, 0, place + 1)

        m.d.comb += [write.addr.eq(behind), write.data.eq(self.input), write.en.eq(self.push)]
        m.d.comb += [read.addr.eq(first), self.head.eq(read.data)]
        with m.If(self.push):
            m.d.sync += behind.eq(after(behind))
        with m.If(self.pop):
            m.d.sync += first.eq(after(first))
        m.d.sync += self.level.eq(self.level + self.push - self.pop)
        with m.If(self.clear):
            m.d.sync += [first.eq(0), behind.eq(0), self.level.eq(0)]
        return m
