"""A bank's controller: containment on the bus, the bus's rules, and timing that does not depend on neighbours.

It must not assume anything of cores and leases but that windows and lanes stand still while a run is on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Assert, Assume, Cat, Cover, Fragment, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from corepool.config import preset
from corepool.hardware import bank as bank_module
from corepool.hardware.bank import Bank
from corepool.hardware.library import ports
from corepool.hardware.window import PAGE_BITS
from support.formal import constant, implies, mutant, prove, quiet_reset, registers

CONFIG = replace(
    preset("tiny"), burst_bytes=64, fetch_burst_bytes=64, fetch_depth=4, save_buffers=1, load_outstanding=1
)
SLOTS = CONFIG.cores_per_bank
VICTIM = 0  # the slot; core VICTIM is its own core, core WRITER sits in the other bank and writes through it
WRITER = 2
OWN = (f"turn{VICTIM}", f"granted{VICTIM}", f"written{VICTIM}")  # registers of the bank that are the victim's alone


def window(port: Any) -> tuple[Value, Value]:
    """First and last byte of a slot's window, 33 bits."""
    base = (port.page << PAGE_BITS) | Signal(33)
    return base, base + port.last


def containment(module: Any) -> wiring.Component:
    class Proof(module.Bank):
        """Requests, words and memory are free."""

        def elaborate(self, platform: object) -> Module:
            m = super().elaborate(platform)
            quiet_reset(m)
            lanes = Cat(Cat(port.lane, port.held) for port in self.writers)
            constant(m, lanes, self.first_core, *(Cat(port.page, port.last) for port in self.slots))
            m.d.comb += Assume((self.first_core == 0) | (self.first_core == SLOTS))
            for port in self.slots:
                m.d.comb += Assume(~window(port)[1][32])
            self._contain(m)
            self._rules(m)
            return m

        def _contain(self, m: Module) -> None:
            bus = self.bus
            for number, (slot, port) in enumerate(zip(self._slots, self.slots, strict=True)):
                base, top = window(port)
                mine = Cat(
                    (slot.writer == core) & writer.held & (writer.lane == number)
                    for core, writer in enumerate(self.writers)
                ).any()
                read = bus.arvalid & (bus.arid == self.first_core + number)
                m.d.comb += [
                    Assert(implies(slot.busy & slot.write, mine)),
                    Assert(implies(read, (bus.araddr >= base) & (bus.araddr <= top))),
                    Cover(read & bus.arready & (port.last < 4096)),
                ]
                for core, writer in enumerate(self.writers):
                    written = bus.awvalid & (bus.awid == core) & (writer.lane == number)
                    m.d.comb += Assert(implies(written, writer.held & (bus.awaddr >= base) & (bus.awaddr <= top)))
            m.d.comb += Assert(implies(bus.arvalid, (bus.arid == self.first_core) | (bus.arid == self.first_core + 1)))
            m.d.comb += [Cover(bus.awvalid & bus.wvalid & (bus.awid == 3)), Cover(self.slots[1].load_complete)]

        def _rules(self, m: Module) -> None:
            """What is offered and not accepted stays as it is."""
            bus, known = self.bus, Signal()
            m.d.sync += known.eq(1)
            channels = {
                "ar": (bus.arvalid, bus.arready, Cat(bus.araddr, bus.arid)),
                "aw": (bus.awvalid, bus.awready, Cat(bus.awaddr, bus.awid)),
                "w": (bus.wvalid, bus.wready, Cat(bus.wdata, bus.wstrb)),
            }
            for name, (valid, ready, payload) in channels.items():
                waiting, before = Signal(name=f"{name}_waiting"), Signal(len(payload), name=f"{name}_before")
                m.d.sync += [waiting.eq(valid & ~ready), before.eq(payload)]
                m.d.comb += Assert(implies(known & waiting, valid & (payload == before)))

    return Proof(CONFIG)


class Twins(wiring.Component):
    """Two banks with the same victim: its slot, and the cores that write through it. Everything else is free in each.

    The memory is always ready and answers the victim alike; a memory that stalls stalls everyone.
    """

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.banks = [make(CONFIG), make(CONFIG)]
        members: dict[str, Any] = {}
        self.inputs = [(name, len(signal)) for name, is_input, signal in ports(self.banks[0]) if is_input]
        for name, width in self.inputs:
            members |= {f"one_{name}": In(width), f"two_{name}": In(width)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        quiet_reset(m)
        banks = self.banks
        fragments = [Fragment.get(bank, None) for bank in banks]
        m.submodules.one, m.submodules.two = fragments
        views = [{name: signal for name, _, signal in ports(bank)} for bank in banks]
        for name, _ in self.inputs:
            for copy, view in zip(("one", "two"), views, strict=True):
                source = getattr(self, f"{copy}_{name}")
                if self._shared(name):
                    source = getattr(self, f"one_{name}")
                m.d.comb += view[name].eq(1 if name in ("bus__arready", "bus__awready", "bus__wready") else source)
        for bank in banks:
            self._lanes(m, bank)
        self._answers(m, views)
        self._same(m, fragments, views)
        one = banks[0]
        m.d.comb += [
            Cover(one.bus.arvalid & (one.bus.arid == VICTIM) & ~banks[1].slots[1].busy & one.slots[1].busy),
            Cover(one.bus.awvalid & (one.bus.awid == WRITER)),
            Cover(one.slots[VICTIM].load_complete),
        ]
        return m

    def _shared(self, name: str) -> bool:
        mine = (f"slots__{VICTIM}__", f"writers__{VICTIM}__", f"writers__{WRITER}__")
        return name.startswith(mine) or name in ("slot", "active", "first_core")

    def _lanes(self, m: Module, bank: Any) -> None:
        """The victim's cores have its slot as their lane, the others have not."""
        m.d.comb += Assume((bank.first_core == 0) & (bank.slot < SLOTS))
        for core, writer in enumerate(bank.writers):
            mine = writer.held & (writer.lane == VICTIM)
            m.d.comb += Assume(mine if core in (VICTIM, WRITER) else ~mine)

    def _answers(self, m: Module, views: list[dict[str, Any]]) -> None:
        one, two = views
        for valid, ident, cores in (("rvalid", "rid", (VICTIM,)), ("bvalid", "bid", (VICTIM, WRITER))):
            for core in cores:
                m.d.comb += Assume(
                    (one[f"bus__{valid}"] & (one[f"bus__{ident}"] == core))
                    == (two[f"bus__{valid}"] & (two[f"bus__{ident}"] == core))
                )
                resp = f"bus__{ident[0]}resp"
                m.d.comb += Assume(implies(one[f"bus__{ident}"] == core, one[resp] == two[resp]))

    def _same(self, m: Module, fragments: list[Fragment], views: list[dict[str, Any]]) -> None:
        """All state of the victim, and all that it sees, is the same in both."""
        ours = (f"slot{VICTIM}.", f"returns{VICTIM}.", f"buffer{VICTIM}.", f"buffer{WRITER}.")
        states = [registers(fragment) for fragment in fragments]
        names = [name for name in states[0] if name.startswith(ours) or name in OWN]
        assert len(names) > 30
        for bank in self.banks:
            for number, slot in enumerate(bank._slots):
                mine = (slot.writer == VICTIM) | (slot.writer == WRITER)
                m.d.comb += Assert(implies(slot.busy & slot.write, mine == (number == VICTIM)))
        for name in names:
            m.d.comb += Assert(states[0][name] == states[1][name])
        outputs = [name for name, is_input, _ in ports(self.banks[0]) if not is_input]
        for name in outputs:
            if name.startswith((f"slots__{VICTIM}__", f"writers__{VICTIM}__", f"writers__{WRITER}__")):
                m.d.comb += Assert(views[0][name] == views[1][name])
        for kind, ident in (("ar", VICTIM), ("aw", VICTIM), ("aw", WRITER)):
            seen = [view[f"bus__{kind}valid"] & (view[f"bus__{kind}id"] == ident) for view in views]
            m.d.comb += Assert(seen[0] == seen[1])
            m.d.comb += Assert(implies(seen[0], views[0][f"bus__{kind}addr"] == views[1][f"bus__{kind}addr"]))


def test_no_address_outside_of_its_window_is_on_the_bus(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(containment(bank_module), tmp_path / "prove", formal_tools)
    assert prove(containment(bank_module), tmp_path / "cover", formal_tools, mode="cover", depth=14)


def test_neighbours_change_nothing_for_a_victim(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(Twins(Bank), tmp_path / "prove", formal_tools)
    assert prove(Twins(Bank), tmp_path / "cover", formal_tools, mode="cover", depth=14)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mine = port.held & (port.lane == number)", "mine = port.held"),
        ("slot.page.eq(port.page)", "slot.page.eq(0)"),
        ("slot.last.eq(port.last)", "slot.last.eq(-1)"),
        ("bus.arid.eq(self.first_core + number)", "bus.arid.eq(self.first_core)"),
        ("free = ~bus.arvalid | bus.arready", "free = 1"),
    ],
)
def test_mutants_of_containment_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.bank", old, new)
    assert not prove(containment(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=9)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.slot == number)", "(self.slot == number) | ~self._slots[1 - number].busy)"),
        ("ready |= mine & back.ready", "ready = back.ready"),
        (
            "buffer.serve.eq(Cat(moved for _, moved in mine).any())",
            "buffer.serve.eq(Cat(moved for _, moved in served).any())",
        ),
    ],
)
def test_mutants_of_isolation_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.bank", old, new)
    assert not prove(Twins(changed.Bank), tmp_path / "mutant", formal_tools, mode="bmc", depth=9)
