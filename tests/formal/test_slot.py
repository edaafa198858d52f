"""Containment at its last guard: whatever is asked of a slot, no line outside its window leaves it.

It must not assume anything of requesters.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.hdl import Assert, Assume, Cover, Module, Signal

from corepool.config import preset
from corepool.hardware import slots
from corepool.hardware.window import PAGE_BITS
from support.formal import implies, mutant, prove, quiet_reset

CONFIG = replace(preset("tiny"), cores=2, banks=1)


def harness(module: object) -> object:
    class Proof(module.Slot):  # type: ignore[name-defined]
        """All inputs are free; the window does not reach over 2^32."""

        def elaborate(self, platform: object) -> Module:
            m = super().elaborate(platform)
            quiet_reset(m)
            base, top = Signal(33), Signal(33)
            m.d.comb += [base.eq(self.page << PAGE_BITS), top.eq(base + self.last)]
            m.d.comb += [
                Assume(~top[32]),
                Assert(implies(self.issue, (self.address >= base) & (self.address <= top))),
                Assert(implies(self.issue, self.turn & self.busy)),
                Assert(implies(self.issue & self.write, self.write_ready)),
                Assert(implies(self.issue & ~self.write, self.read_ready)),
                Cover(self.issue & self.write & (self.writer == 1) & self.final),
                Cover(self.issue & ~self.write & ~self.final & (self.last < 4096)),
                Cover(self.serve & ~self.issue),
            ]
            return m

    return Proof(CONFIG)


def test_no_line_leaves_the_window(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(harness(slots), tmp_path / "prove", formal_tools)
    assert prove(harness(slots), tmp_path / "cover", formal_tools, mode="cover", depth=8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.serve & (line <= self.last[shift:])", "self.serve"),
        ("line <= self.last[shift:]", "line <= self.last[shift:] + 1"),
        ("(self.page << PAGE_BITS) + (line << shift)", "line << shift"),
        ("self.turn & self.busy & Mux(", "self.busy & Mux("),
    ],
)
def test_mutants_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.slots", old, new)
    assert not prove(harness(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=5)
