"""Modules that a design holds many times, written out once: 16 cores are one module with 16 instances.

It must not know any block. In simulation nothing changes; only who emits a design passes a Library as its platform.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal, Value, ValueCastable
from amaranth.lib import wiring
from amaranth.lib.wiring import In

DSP48E2_BITS = 27  # the longer operand of a multiplier of UltraScale+


def ports(component: wiring.Component) -> Iterator[tuple[str, bool, Value]]:
    """Name, whether it is an input, and signal of every port, as they are called in Verilog."""
    for path, member, value in component.signature.flatten(component):
        signal = Value.cast(value) if isinstance(value, ValueCastable) else value
        yield "__".join(map(str, path)), member.flow == In, signal


class Library:
    """The modules of a design by name. Two components of one name must be the same hardware.

    Modules called as in ``outside`` are left out: their ports become ports of the design, ``name{number}__{port}``.
    ``multiplier_bits`` is how wide the longer operand of the device's multipliers may be.
    """

    def __init__(self, outside: Collection[str] = (), multiplier_bits: int = DSP48E2_BITS) -> None:
        self.modules: dict[str, wiring.Component] = {}
        self.multiplier_bits = multiplier_bits
        self._outside: dict[str, list[wiring.Component]] = {name: [] for name in outside}

    def instance(self, component: wiring.Component, name: str) -> Instance | Module:
        """An instance of module ``name`` on the signals of ``component``; only the first of a name is elaborated."""
        if name in self._outside:
            self._outside[name].append(component)
        elif self.modules.setdefault(name, component) is component:
            return self._connected(component, name)
        component._MustUse__used = True  # only its ports are used; Amaranth would warn of a forgotten submodule
        return Module() if name in self._outside else self._connected(component, name)

    @staticmethod
    def _connected(component: wiring.Component, name: str) -> Instance:
        connections: dict[str, Any] = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        for port, is_input, signal in ports(component):
            connections[f"{'i' if is_input else 'o'}_{port}"] = signal
        return Instance(name, **connections)

    def openings(self) -> Iterator[tuple[str, Value]]:
        """Name and signal of every port that leads to a module that was left out."""
        for name, components in self._outside.items():
            for number, component in enumerate(components):
                for port, _, signal in ports(component):
                    yield f"{name}{number}__{port}", signal


def share(platform: object, component: wiring.Component, name: str) -> Any:
    """What to add as a submodule: the component itself, or an instance of it if the design is being emitted."""
    if isinstance(platform, Library):
        return platform.instance(component, name)
    return component


def multiplier_bits(platform: object) -> int:
    """How wide the longer operand of a multiplier may be; a DSP48E2's where nobody says."""
    return int(getattr(platform, "multiplier_bits", DSP48E2_BITS))
