"""Modules that a design holds many times, written out once: 16 cores are one module with 16 instances.

It must not know any block. In simulation nothing changes; only who emits a design passes a Library as its platform.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from amaranth.hdl import ClockSignal, Instance, ResetSignal, Value, ValueCastable
from amaranth.lib import wiring
from amaranth.lib.wiring import In


def ports(component: wiring.Component) -> Iterator[tuple[str, bool, Value]]:
    """Name, whether it is an input, and signal of every port, as they are called in Verilog."""
    for path, member, value in component.signature.flatten(component):
        signal = Value.cast(value) if isinstance(value, ValueCastable) else value
        yield "__".join(map(str, path)), member.flow == In, signal


class Library:
    """The modules of a design by name. Two components of one name must be the same hardware."""

    def __init__(self) -> None:
        self.modules: dict[str, wiring.Component] = {}

    def instance(self, component: wiring.Component, name: str) -> Instance:
        """An instance of module ``name`` on the signals of ``component``; only the first of a name is elaborated."""
        if self.modules.setdefault(name, component) is not component:
            component._MustUse__used = True  # only its ports are used; Amaranth would warn of a forgotten submodule
        connections: dict[str, Any] = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        for port, is_input, signal in ports(component):
            connections[f"{'i' if is_input else 'o'}_{port}"] = signal
        return Instance(name, **connections)


def share(platform: object, component: wiring.Component, name: str) -> Any:
    """What to add as a submodule: the component itself, or an instance of it if the design is being emitted."""
    if isinstance(platform, Library):
        return platform.instance(component, name)
    return component
