"""The way back: says whose each line is that a bank read for a slot, and when a burst is complete.

It must not know what lines hold, nor other slots.
"""

from __future__ import annotations

from itertools import pairwise

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.interfaces import LINE_LEAD
from corepool.hardware.window import request_layout


def most_open(config: HardwareConfig) -> int:
    """Bursts of one slot that can be granted and not yet complete: loads, and what the fetch buffer has room for."""
    return config.load_outstanding + -(-config.fetch_depth * 32 // config.fetch_burst_bytes) + 2


class Returns(wiring.Component):
    """One slot's open reads.

    grant: a read burst was granted, for a load or else for the fetcher, of ``more`` + 1 lines. take: a line is accepted
    from the memory; only while ``ready``, which keeps lines ``cores_per_bank`` cycles apart. fetch_line, load_line: the
    line accepted a cycle ago is one of that kind. fetch_complete comes LINE_LEAD - 1, load_complete LINE_LEAD cycles
    behind the last line of a burst. busy: something is open.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        super().__init__(
            {
                "grant": In(1),
                "load": In(1),
                "more": In(request_layout(config)["more"].width),
                "take": In(1),
                "ready": Out(1),
                "fetch_line": Out(1),
                "load_line": Out(1),
                "fetch_complete": Out(1),
                "load_complete": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spacing = self.config.cores_per_bank
        got, rest = Signal.like(self.more), Signal(range(max(2, spacing)))
        final, ended = Signal(), Signal()
        stages, loads = Signal(LINE_LEAD), Signal(LINE_LEAD)
        head, level = self._bursts(m, final)
        m.d.comb += [
            self.ready.eq(rest == 0),
            final.eq(self.take & (got == head.more)),
            self.busy.eq((level != 0) | self.load_line | self.fetch_line | ended | stages.any()),
            self.load_complete.eq(stages[LINE_LEAD - 1] & loads[LINE_LEAD - 1]),
            self.fetch_complete.eq(stages[LINE_LEAD - 2] & ~loads[LINE_LEAD - 2]),
        ]
        m.d.sync += [
            self.load_line.eq(self.take & head.load),
            self.fetch_line.eq(self.take & ~head.load),
            ended.eq(final),
            stages.eq(Cat(ended, stages)),
            loads.eq(Cat(self.load_line, loads)),
        ]
        with m.If(self.take):
            m.d.sync += [got.eq(Mux(final, 0, got + 1)), rest.eq(spacing - 1)]
        with m.Elif(rest != 0):
            m.d.sync += rest.eq(rest - 1)
        return m

    def _bursts(self, m: Module, final: Signal) -> tuple[data.View[data.StructLayout], Signal]:
        """Open bursts in order, the oldest at place 0; returns that one and how many there are."""
        layout = data.StructLayout({"load": 1, "more": self.more.shape()})
        depth = most_open(self.config)
        places = [Signal(layout, name=f"open{place}") for place in range(depth)]
        level = Signal(range(depth + 1))
        m.d.sync += level.eq(level + self.grant - final)
        with m.If(final):
            m.d.sync += [place.eq(behind) for place, behind in pairwise(places)]
        with m.If(self.grant):
            entry = Array(place.as_value() for place in places)[level - final]
            m.d.sync += entry.eq(Cat(self.load, self.more))
        return places[0], level
