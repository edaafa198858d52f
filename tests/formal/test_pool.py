"""Containment of the whole pool, with cores that do whatever they like, and the lock on the owner registers.

It must not assume anything of cores, host or memory but what is said at each assumption.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from amaranth.asserts import AnySeq
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Signal, Value
from amaranth.lib import wiring

from corepool.config import HardwareConfig, preset
from corepool.hardware import bank, pool
from corepool.hardware.interfaces import CoreSignature
from corepool.hardware.library import ports
from corepool.hardware.window import PAGE_BITS
from support.formal import implies, mutant, prove, quiet_reset

CONFIG = preset("tiny")


class FreeCore(wiring.Component):
    """Every output is anything in any cycle."""

    def __init__(self, config: HardwareConfig) -> None:
        super().__init__(CoreSignature(config))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for _, is_input, signal in ports(self):
            if not is_input:
                m.d.comb += signal.eq(AnySeq(len(signal)))
        return m


class Checks:
    """Owners, windows and host accesses are free; windows do not reach over 2^32."""

    config: HardwareConfig

    def elaborate(self, platform: object) -> Module:
        m: Module = super().elaborate(platform)  # type: ignore[misc]
        quiet_reset(m)
        for port in self._ports:
            m.d.comb += Assume(~(((port.page << PAGE_BITS) | Signal(33)) + port.last)[32])
        for number in range(self.config.banks):
            self._bank(m, number)
        self._locks(m)
        return m

    def _bank(self, m: Module, number: int) -> None:
        """A line that is new on a bus lies in the window, as set when the line was issued, of the slot's core."""
        bus, size = self.bus[number], self.config.cores_per_bank
        fresh, written = Signal(name=f"fresh{number}"), Signal(name=f"fresh_write{number}")
        m.d.sync += [fresh.eq(~bus.arvalid | bus.arready), written.eq(~bus.awvalid | bus.awready)]
        good_write = []
        for core in range(number * size, (number + 1) * size):
            port = self._ports[core]
            base, top = self._before(m, core, number)
            inside = (bus.araddr >= base) & (bus.araddr <= top)
            m.d.comb += Assert(implies(fresh & bus.arvalid & (bus.arid == core), inside))
            m.d.comb += Cover(bus.arvalid & (bus.arid == core) & (port.page == 5)) if core == 2 else []
            good_write.append((bus.awaddr >= base) & (bus.awaddr <= top))
        here = Cat(bus.arid == core for core in range(number * size, (number + 1) * size)).any()
        m.d.comb += [Assert(implies(fresh & bus.arvalid, here))]
        m.d.comb += [Assert(implies(written & bus.awvalid, Cat(good_write).any()))]

    def _before(self, m: Module, core: int, number: int) -> tuple[Value, Value]:
        port = self._ports[core]
        base, top = Signal(33, name=f"base{core}_{number}"), Signal(33, name=f"top{core}_{number}")
        first = (port.page << PAGE_BITS) | Signal(33)
        m.d.sync += [base.eq(first), top.eq(first + port.last)]
        return base, top

    def _locks(self, m: Module) -> None:
        """Owner and window of a core stay while its lease waits, runs or drains, and the lease does not grow."""
        known = Signal()
        m.d.sync += known.eq(1)
        owners = self._owners
        for core, port in enumerate(self._ports):
            setting = Cat(owners.owner[core], owners.owned[core], port.page, port.last)
            kept, busy = Signal(len(setting), name=f"kept{core}"), Signal(name=f"busy{core}")
            active = [lease.active & cores[core] for lease, cores in zip(self._leases, owners.cores, strict=True)]
            m.d.sync += [kept.eq(setting), busy.eq(Cat(active).any())]
            m.d.comb += Assert(implies(known & busy, setting == kept))
        for number, lease in enumerate(self._leases):
            before, was = Signal(self.config.cores, name=f"cores{number}"), Signal(name=f"was{number}")
            m.d.sync += [before.eq(owners.cores[number]), was.eq(lease.active)]
            m.d.comb += Assert(implies(known & was, before == owners.cores[number]))
        self._lanes(m)

    def _lanes(self, m: Module) -> None:
        """A lane lies in the writer's own lease; no core has two leases."""
        owners, size = self._owners, self.config.cores_per_bank
        for core in range(self.config.cores):
            m.d.comb += Assert(implies(owners.owned[core], owners.mates[core][core]))
            for bank_number in range(self.config.banks):
                lane: Any = owners.lane[core * self.config.banks + bank_number]
                for place in range(size):
                    slot_core = bank_number * size + place
                    used = owners.held[core][bank_number] & (lane == place)
                    m.d.comb += Assert(implies(used, owners.mates[core][slot_core]))
                    m.d.comb += Assert(owners.mates[core][slot_core] == owners.mates[slot_core][core])
                    sees = self._ports[core].run.mates[slot_core]
                    m.d.comb += Assert(sees == owners.mates[core][slot_core])


def harness(module: Any, config: HardwareConfig = CONFIG) -> Any:
    class Proof(Checks, module.Pool):
        pass

    return Proof(config, FreeCore)


def test_cores_that_do_anything_reach_only_their_windows(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(harness(pool), tmp_path / "prove", formal_tools, depth=2)


@pytest.mark.slow
def test_sixteen_cores_that_do_anything_reach_only_their_windows(tmp_path: Path, formal_tools: Path) -> None:
    """The cores and banks of `u200`; what a line holds and how many fit into a buffer does not matter here."""
    sixteen = replace(CONFIG, cores=preset("u200").cores, banks=preset("u200").banks)
    assert prove(harness(pool, sixteen), tmp_path / "prove", formal_tools, depth=2, seconds=3600)


def test_the_pool_can_be_brought_to_read(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(harness(pool), tmp_path / "cover", formal_tools, mode="cover", depth=18)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".eq(busy | foreign)", ".eq(foreign)"),
        (".eq(busy | foreign)", ".eq(busy)"),
        (
            "connect(m, bank.slots[local], self._ports[core].slot)",
            "connect(m, bank.slots[local], self._ports[core ^ 1].slot)",
        ),
    ],
)
def test_mutants_of_the_pool_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.pool", old, new)
    assert not prove(harness(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=18)


@pytest.mark.slow
def test_a_pool_without_its_checks_is_refuted(
    tmp_path: Path, formal_tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two guards stand one behind the other: either alone contains, so both must go."""
    slots = mutant("corepool.hardware.slots", "self.serve & (line <= self.last[shift:])", "self.serve")
    port = mutant("corepool.hardware.port", "core.read_request.valid & check.inside & ", "core.read_request.valid & ")
    monkeypatch.setattr(bank, "Slot", slots.Slot)
    monkeypatch.setattr(pool, "CorePort", port.CorePort)
    assert not prove(harness(pool), tmp_path / "mutant", formal_tools, mode="bmc", depth=18)
