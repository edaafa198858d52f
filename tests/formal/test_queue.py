"""The queue keeps its order and its level, and the fetcher's stream does not take back what it offered.

It must not know who uses them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.hdl import Assert, Assume, Cover, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from corepool.config import preset
from corepool.hardware import fetch, queues
from support.formal import constant, implies, mutant, prove, quiet_reset

DEPTH = 3
SMALL = replace(preset("tiny"), fetch_depth=8, fetch_burst_bytes=64)


class Proof(wiring.Component):
    """Any pushes and pops that the queue allows; one push, chosen freely, is followed to its end."""

    def __init__(self, module: object) -> None:
        self.module = module
        super().__init__({"push": In(1), "pop": In(1), "input": In(4), "choose": In(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        quiet_reset(m)
        m.submodules.queue = queue = self.module.Queue(4, DEPTH)  # type: ignore[attr-defined]
        ahead, watched, value = Signal(range(DEPTH + 1)), Signal(), Signal(4)
        m.d.comb += [
            queue.push.eq(self.push),
            queue.pop.eq(self.pop),
            queue.input.eq(self.input),
            Assume(implies(queue.level == DEPTH, ~self.push)),
            Assume(implies(queue.level == 0, ~self.pop)),
            Assert(queue.level <= DEPTH),
            Assert(implies(watched, queue.level > ahead)),
            Assert(implies(watched & (ahead == 0), queue.head == value)),
            Cover(watched & (ahead == 0) & (value == 9) & (queue.level == DEPTH)),
        ]
        with m.If(watched & self.pop):
            m.d.sync += [ahead.eq(ahead - 1), watched.eq(ahead != 0)]
        with m.If(self.push & self.choose & ~watched):
            m.d.sync += [watched.eq(1), value.eq(self.input), ahead.eq(queue.level - self.pop)]
        return m


def offers(module: object) -> object:
    class Offers(module.Fetcher):  # type: ignore[name-defined]
        """Slot, memory and core are free, but bursts complete only as often as they were granted."""

        def elaborate(self, platform: object) -> Module:
            m = super().elaborate(platform)
            quiet_reset(m)
            constant(m, self.offset, self.count)
            waiting, open_ = Signal(), Signal(4)
            m.d.comb += Assume(implies(self.complete, open_ != 0) & implies(self.request.take, self.request.pending))
            m.d.sync += open_.eq(open_ + self.request.take - self.complete)
            m.d.sync += waiting.eq(self.instruction.valid & ~self.instruction.ready & ~self.start)
            with m.If(self.start):
                m.d.sync += open_.eq(0)
            m.d.comb += [
                Assume((open_ != 15) & (self.offset < 1024) & (self.count < 64)),
                Assert(implies(waiting & self.enable, self.instruction.valid)),
                Assert(implies(self.ended, ~self.instruction.valid)),
                Cover(self.instruction.valid & waiting),
            ]
            return m

    return Offers(SMALL)


def test_a_queue_keeps_its_order(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(Proof(queues), tmp_path / "bmc", formal_tools, mode="bmc", depth=14)
    assert prove(Proof(queues), tmp_path / "cover", formal_tools, mode="cover", depth=10)


def test_what_the_fetcher_offers_stays(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(offers(fetch), tmp_path / "bmc", formal_tools, mode="bmc", depth=9)
    assert prove(offers(fetch), tmp_path / "cover", formal_tools, mode="cover", depth=8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("behind.eq(after(behind))", "behind.eq(behind + 1)"),
        ("first.eq(after(first))", "first.eq(behind)"),
        ("self.level + self.push - self.pop", "self.level + self.push"),
    ],
)
def test_mutants_of_the_queue_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.queues", old, new)
    assert not prove(Proof(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=14)


def test_a_fetcher_that_takes_back_is_refuted(tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.fetch", "head.valid.eq(self.enable & (left != complete))",
                     "head.valid.eq(self.enable & (left != complete) & ~self.line_valid)")  # fmt: skip
    assert not prove(offers(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=12)
