"""Second-level dispatch: it keeps what its queues and token counters ask for, goes in order, arrives only as told.

It must not assume anything of units, stream or lease. With the proof of the queue this closes the circle: what that one
assumes is shown here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Assert, Cat, Cover, Module, Signal

from corepool.config import preset
from corepool.hardware import dispatch
from corepool.hardware.decode import get, is_opcode, undefined
from corepool.isa.table import Opcode
from support.formal import implies, mutant, prove, quiet_reset

CONFIG = replace(preset("tiny"), queue_depth=2)
QUEUES = ("load_queue", "compute_queue", "save_queue")
COUNTERS = ("tokens_lc", "tokens_cl", "tokens_cs", "tokens_sc")


def harness(module: Any) -> Any:
    class Proof(module.Dispatcher):  # type: ignore[name-defined,misc]
        """All inputs are free."""

        def elaborate(self, platform: object) -> Module:
            m = super().elaborate(platform)
            quiet_reset(m)
            queues = [getattr(m.submodules, name) for name in QUEUES]
            counters = [getattr(m.submodules, name) for name in COUNTERS]
            for queue in queues:
                m.d.comb += [
                    Assert(queue.level <= CONFIG.queue_depth),
                    Assert(implies(queue.push, queue.level != CONFIG.queue_depth)),
                    Assert(implies(queue.pop, queue.level != 0)),
                    Assert(implies(queue.push, queue.input.instruction == self.instruction.payload)),
                    Assert(implies(queue.push, queue.input.index == self.index)),
                ]
            for counter in counters:
                m.d.comb += Assert(implies(counter.taken, counter.available))
            self._leaving(m, queues)
            self._meeting(m, queues)
            return m

        def _leaving(self, m: Module, queues: list[Any]) -> None:
            """One instruction a cycle, in order, counted, each into one queue; none that is undefined."""
            pushed = Cat(queue.push for queue in queues)
            left = self.instruction.valid & self.instruction.ready
            bad = Signal()
            m.d.comb += bad.eq(undefined(self.instruction.payload, CONFIG))
            before, went, emptied = Signal.like(self.index), Signal(), Signal()
            known = Signal()
            m.d.sync += [before.eq(self.index), went.eq(left), emptied.eq(self.reset), known.eq(1)]
            m.d.comb += [
                Assert((pushed & (pushed - 1)) == 0),
                Assert(implies(pushed != 0, left & ~bad & self.run)),
                Assert(implies(left & (pushed == 0), is_opcode(self.instruction.payload, Opcode.SYNC) & self.release)),
                Assert(implies(left, ~bad & self.run)),
                Assert(implies(self.go != 0, self.run)),
                Assert(implies(known, self.index == Cat(before + went)[:32]) | (known & emptied & (self.index == 0))),
                Assert(implies(self.run & self.instruction.valid & bad, self.fault & (self.fault_code == 1))),
                Cover(queues[0].push & (queues[0].level == 1)),
            ]

        def _meeting(self, m: Module, queues: list[Any]) -> None:
            """A core arrives at SYNCs of its own lease only, with nothing left to do unless the SYNC is early."""
            word = self.instruction.payload
            idle = (Cat(queue.level != 0 for queue in queues) == 0) & self.drained
            early = get(word, Opcode.SYNC, "early")
            own = is_opcode(word, Opcode.SYNC) & (get(word, Opcode.SYNC, "cores") == self.lease_cores)
            here = self.run & self.instruction.valid
            m.d.comb += [
                Assert(implies(self.arrived, here & own)),
                Assert(implies(self.arrived & self.drain, idle)),
                Assert(implies(here & own & idle & ~self.release & ~undefined(word, CONFIG), self.arrived)),
                Assert(implies(self.ended, here & is_opcode(word, Opcode.END) & idle)),
                Assert(~(self.arrived & self.ended)),
                Assert(implies(here & is_opcode(word, Opcode.SYNC) & ~own, self.fault)),
                Cover(self.arrived & ~idle & (early == 2)),
                Cover(self.ended & (self.index == 3)),
            ]

    return Proof(CONFIG)


def test_dispatch_keeps_order_queues_and_tokens(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(harness(dispatch), tmp_path / "prove", formal_tools)


def test_dispatch_can_do_all_that_is_proved(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(harness(dispatch), tmp_path / "cover", formal_tools, mode="cover", depth=8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" & (queue.level != queue.depth)", ""),
        ("self.run & (queue.level != 0) & self.free", "self.run & self.free"),
        ("~wanted | counter.available", "wanted | counter.available"),
        ("self.arrived.eq(sync & ~foreign & ", "self.arrived.eq(sync & "),
        ("soon.eq(~self.drain & ((few & quiet) | had))", "soon.eq((few & quiet) | had)"),
        ("self.ended.eq(end & empty & self.drained)", "self.ended.eq(end & empty)"),
        ("present & ~bad & is_unit(word, unit)", "present & is_unit(word, unit)"),
        ("self.index.eq(self.index + self.instruction.ready)", "self.index.eq(self.index + queue.push)"),
    ],
)
def test_mutants_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.dispatch", old, new)
    assert not prove(harness(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=4)
