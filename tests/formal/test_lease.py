"""A lease's run depends on its own cores alone: two copies that see different foreign cores do the same, for ever.

It must not assume anything of cores or host but that the owner registers stand still.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Assert, Cover, Fragment, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from corepool.config import preset
from corepool.hardware import lease
from corepool.hardware.library import ports
from corepool.hardware.registers import State
from support.formal import constant, implies, mutant, prove, quiet_reset, registers

CONFIG = replace(preset("tiny"), sync_cycles=5)
CORES = CONFIG.cores
MASKS = ("ready", "quiet", "arrived", "ended", "completed", "faulty")  # a bit for each core of the device


class Twins(wiring.Component):
    """What the lease's own cores do is the same for both, what others do is free for each."""

    def __init__(self, module: Any) -> None:
        self.copies = [module.Lease(CONFIG), module.Lease(CONFIG)]
        self.inputs = {name: len(signal) for name, is_input, signal in ports(self.copies[0]) if is_input}
        foreign = {f"foreign_{name}": In(width) for name, width in self.inputs.items() if self._by_core(name)}
        super().__init__({name: In(width) for name, width in self.inputs.items()} | foreign)

    @staticmethod
    def _by_core(name: str) -> bool:
        return name in MASKS or name.startswith("codes")

    def elaborate(self, platform: object) -> Module:
        m = Module()
        quiet_reset(m)
        fragments = [Fragment.get(copy, None) for copy in self.copies]
        m.submodules.one, m.submodules.two = fragments
        one, two = ({name: signal for name, _, signal in ports(copy)} for copy in self.copies)
        for name in self.inputs:
            mine = getattr(self, name)
            m.d.comb += one[name].eq(mine)
            if not self._by_core(name):
                m.d.comb += two[name].eq(mine)
                continue
            other = getattr(self, f"foreign_{name}")
            if name in MASKS:
                m.d.comb += two[name].eq((mine & self.cores) | (other & ~self.cores))
            else:
                core = int(name.rpartition("__")[2])
                with m.If(self.cores[core]):
                    m.d.comb += two[name].eq(mine)
                with m.Else():
                    m.d.comb += two[name].eq(other)
        constant(m, self.cores)
        self._same(m, fragments, one, two)
        self._rules(m)
        return m

    def _same(self, m: Module, fragments: list[Fragment], one: dict[str, Any], two: dict[str, Any]) -> None:
        states = [registers(fragment) for fragment in fragments]
        assert len(states[0]) > 15
        for name, signal in states[0].items():
            different = signal ^ states[1][name]
            m.d.comb += Assert((different & self.cores if name == "before" else different) == 0)
        for name, is_input, signal in ports(self.copies[0]):
            if not is_input:
                m.d.comb += Assert(signal == two[name])

    def _rules(self, m: Module) -> None:
        """One copy stands for both."""
        copy = self.copies[0]
        here = (self.arrived | ~self.cores).all() & (self.cores != 0)
        over, stopped = Signal(), Signal()
        m.d.sync += over.eq(copy.over & here & ~(self.faulty & self.cores).any())
        stopped = (copy.state == State.DRAINING) & (copy._how_ended == State.STOPPED)
        known = Signal()
        m.d.sync += known.eq(stopped)
        m.d.comb += [
            Assert(implies(copy.release, copy.live & here)),
            Assert(implies(copy.begin, (copy.state == State.RUNNING) & copy.live)),
            Assert(implies(stopped & ~known, over)),
            Assert(copy.live == (copy.state == State.RUNNING)),
            Assert((copy._how_ended == 0) | (copy._how_ended >= State.DONE)),
            Cover(copy.release & (self.cores == 0b0101) & (self.foreign_arrived == 0b1010)),
            Cover((copy.state == State.STOPPED) & (copy.syncs == 1)),
            Cover((copy.state == State.FAULTED) & (copy.fault_core == 3) & (copy.code == 5)),
            Cover((copy.state == State.FAULTED) & (copy.code == 6)),
            Cover((copy.state == State.DONE) & (copy.syncs == 1)),
        ]


def test_foreign_cores_change_nothing(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(Twins(lease), tmp_path / "prove", formal_tools)


def test_a_lease_can_end_in_every_way(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(Twins(lease), tmp_path / "cover", formal_tools, mode="cover", depth=20)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("faulty.eq(self.faulty & self.cores)", "faulty.eq(self.faulty)"),
        ("going.eq(self.cores & ~self.ended)", "going.eq(~self.ended)"),
        ("(progress & self.cores).any()", "progress.any()"),
        ("((self.ready | ~self.cores).all())", "self.ready.all()"),
        ("(self.quiet | ~self.cores).all()", "self.quiet.all()"),
        ("halted = self._barrier.met & self._asked.any()", "halted = self._asked.any()"),
        ("m.d.sync += [self.state.eq(State.DRAINING), self.live.eq(0)", "m.d.sync += [self.state.eq(State.DRAINING)"),
    ],
)
def test_mutants_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.lease", old, new)
    assert not prove(Twins(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=8)
