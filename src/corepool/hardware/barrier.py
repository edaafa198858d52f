"""The meeting point of a lease's cores at a SYNC.

It must not know what cores do; it lets all of them go on at once, and only when every single one has arrived.
"""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig

SHORTEST = 3  # cycles: the arrival is seen one cycle after it happened, the release comes one before its effect


class Barrier(wiring.Component):
    """cores: the lease's. arrived: levels, one cycle after the event. enable: the lease runs. hold: it shall not go on.

    met: all have arrived. release: pulse in cycle last arrival + sync_cycles - 1.
    """

    def __init__(self, config: HardwareConfig) -> None:
        if config.sync_cycles < SHORTEST:
            raise ValueError(f"a SYNC takes at least {SHORTEST} cycles, not {config.sync_cycles}")
        self.config = config
        self.passed = Signal(range(config.sync_cycles - 1))  # cycles for which all have been there
        super().__init__(
            {
                "cores": In(config.cores),
                "arrived": In(config.cores),
                "enable": In(1),
                "hold": In(1),
                "met": Out(1),
                "release": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        last = self.config.sync_cycles - 2
        m.d.comb += [
            self.met.eq(self.enable & (self.cores != 0) & (self.arrived | ~self.cores).all()),
            self.release.eq(self.met & ~self.hold & (self.passed == last)),
        ]
        with m.If(self.met & ~self.hold & ~self.release):
            m.d.sync += self.passed.eq(self.passed + 1)
        with m.Else():
            m.d.sync += self.passed.eq(0)
        return m
