"""The window check says yes exactly if every byte of a burst lies in the window.

It must not know where windows lie.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from amaranth.hdl import Assert, Assume, Cover, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from corepool.hardware import window
from support.formal import implies, mutant, prove, quiet_reset

BITS = 11


class Proof(wiring.Component):
    """Any burst, and any byte of it."""

    def __init__(self, module: object) -> None:
        self.module = module
        super().__init__({"address": In(32), "beyond": In(1), "length": In(BITS), "last": In(32), "byte": In(BITS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        quiet_reset(m)
        m.submodules.check = check = self.module.WindowCheck(BITS)  # type: ignore[attr-defined]
        place, end = Signal(40), Signal(40)
        m.d.comb += [
            check.address.eq(self.address),
            check.beyond.eq(self.beyond),
            check.length.eq(self.length),
            check.last.eq(self.last),
            place.eq(self.address + (self.beyond << 32) + self.byte),
            end.eq(self.address + (self.beyond << 32) + self.length - 1),
            Assume((self.length != 0) & (self.byte < self.length)),
            Assert(implies(check.inside, place <= self.last)),
            Assert(implies(end <= self.last, check.inside)),
            Cover(check.inside & (self.byte == self.length - 1) & (place == self.last) & (self.length > 64)),
            Cover(~check.inside & (self.address < self.last)),
        ]
        return m


def test_inside_if_and_only_if_every_byte_is(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(Proof(window), tmp_path / "prove", formal_tools)
    assert prove(Proof(window), tmp_path / "cover", formal_tools, mode="cover", depth=2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("behind = Signal(ADDRESS_BITS + 1)", "behind = Signal(ADDRESS_BITS)"),
        ("~self.beyond & (behind", "(behind"),
        ("behind <= self.last + 1", "behind <= self.last + 2"),
        ("behind <= self.last + 1", "behind <= self.last"),
    ],
)
def test_mutants_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.window", old, new)
    assert not prove(Proof(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=2)
