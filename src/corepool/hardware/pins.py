"""The pool behind a handful of pins, for a device whose package has fewer than the pool has signals.

It must not know what the signals mean; it only makes every input controllable and every output observable.
"""

from __future__ import annotations

from amaranth.hdl import Cat, ClockDomain, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from corepool.hardware.library import ports, share


class Pins(wiring.Component):
    """A component called ``name`` between two scan chains.

    With ``shift`` the input chain takes ``data_in`` at its upper end and the output chain moves on towards
    ``data_out``; with ``capture`` the output chain takes all outputs. So each input bit is a flip-flop that anybody
    can set and each output bit can be read: nothing of the component can be optimised away for want of a user.
    ``inputs`` and ``outputs`` are the lengths of the chains in bits.
    """

    def __init__(self, component: wiring.Component, name: str) -> None:
        self._component, self._name = component, name
        self._inputs = [signal for _, is_input, signal in ports(component) if is_input]
        self._outputs = [signal for _, is_input, signal in ports(component) if not is_input]
        self.inputs, self.outputs = sum(map(len, self._inputs)), sum(map(len, self._outputs))
        super().__init__({"shift": In(1), "capture": In(1), "data_in": In(1), "data_out": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.inner = share(platform, self._component, self._name)
        given, seen = Signal(self.inputs), Signal(self.outputs)
        m.d.comb += [Cat(*self._inputs).eq(given), self.data_out.eq(seen[0])]
        with m.If(self.shift):
            m.d.sync += [given.eq(Cat(given[1:], self.data_in)), seen.eq(seen[1:])]
        with m.Elif(self.capture):
            m.d.sync += seen.eq(Cat(*self._outputs))
        return m


class Chip(wiring.Component):
    """Pins with their clock, and with their reset on the net that an ECP5 has for that alone.

    Nearly every flip-flop is reset to what it holds after configuration. As a signal like others the reset would take
    a wire in every tile, and one of the two reset nets that a tile can tell apart. The device's global reset reaches
    all flip-flops without either; SGSR releases it with the clock.
    """

    def __init__(self, pins: Pins, name: str) -> None:
        self.pins, self._name = pins, name
        super().__init__({"clk": In(1), "rst": In(1), **pins.signature.members})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = domain = ClockDomain()
        m.d.comb += [domain.clk.eq(self.clk), domain.rst.eq(0)]
        m.submodules.pins = share(platform, self.pins, self._name)
        m.submodules.reset = Instance("SGSR", i_CLK=self.clk, i_GSR=~self.rst)
        for port, member in self.pins.signature.members.items():
            outside, inside = getattr(self, port), getattr(self.pins, port)
            m.d.comb += inside.eq(outside) if member.flow is In else outside.eq(inside)
        return m
