"""SYNC: a lease's cores go on if and only if all of them have arrived, and no foreign core takes part.

It must not know leases' states or cores' programs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.hdl import Assert, Cover, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from corepool.config import preset
from corepool.hardware import barrier
from support.formal import implies, mutant, prove, quiet_reset

CONFIG = replace(preset("tiny"), sync_cycles=5)
CORES = CONFIG.cores


class Proof(wiring.Component):
    """Two barriers see the same lease; what cores outside of it do is different."""

    def __init__(self, module: object) -> None:
        self.module = module
        super().__init__(
            {"cores": In(CORES), "arrived": In(CORES), "foreign": In(CORES), "enable": In(1), "hold": In(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        quiet_reset(m)
        m.submodules.one = one = self.module.Barrier(CONFIG)  # type: ignore[attr-defined]
        m.submodules.two = two = self.module.Barrier(CONFIG)  # type: ignore[attr-defined]
        mine = self.arrived & self.cores
        for part, outside in ((one, self.arrived), (two, self.foreign)):
            m.d.comb += [
                part.cores.eq(self.cores),
                part.arrived.eq(mine | (outside & ~self.cores)),
                part.enable.eq(self.enable),
                part.hold.eq(self.hold),
            ]
        here = Signal()
        waited = Signal(4)
        m.d.comb += here.eq(self.enable & (self.cores != 0) & (mine == self.cores))
        # ``waited`` counts, apart from the barrier, for how long all have been there without a reason to stay.
        with m.If(here & ~self.hold & (waited != CONFIG.sync_cycles - 2)):
            m.d.sync += waited.eq(waited + 1)
        with m.Else():
            m.d.sync += waited.eq(0)
        count_one, count_two = self._counts(m)
        m.d.comb += [
            Assert(implies(one.release, here & ~self.hold)),
            Assert(one.met == here),
            Assert(one.release == (here & ~self.hold & (waited == CONFIG.sync_cycles - 2))),
            Assert(one.release == two.release),
            Assert(one.met == two.met),
            Assert(count_one == waited),
            Assert(count_two == waited),
            Cover(one.release & (self.cores == 0b1010) & (self.foreign == 0b1111)),
            Cover(one.release & (self.cores == 0b1111)),
            Cover(one.met & self.hold),
        ]
        return m

    def _counts(self, m: Module) -> tuple[Signal, Signal]:
        """The barriers' counters, which an induction must know to be equal to our own."""
        counters = []
        for name in ("one", "two"):
            part = getattr(m.submodules, name)
            counters.append(part.passed)
        return counters[0], counters[1]


def test_release_if_and_only_if_all_have_arrived(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(Proof(barrier), tmp_path / "prove", formal_tools)
    assert prove(Proof(barrier), tmp_path / "cover", formal_tools, mode="cover", depth=8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(self.arrived | ~self.cores).all()", "(self.arrived & self.cores).any()"),
        ("(self.arrived | ~self.cores).all()", "self.arrived.all()"),
        ("self.release.eq(self.met & ~self.hold & ", "self.release.eq(self.met & "),
        ("& (self.cores != 0) &", "&"),
        ("(self.passed == last)", "(self.passed >= last - 1)"),
    ],
)
def test_mutants_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.barrier", old, new)
    assert not prove(Proof(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=8)
