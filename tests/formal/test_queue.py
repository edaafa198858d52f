"""The queue keeps its order and its level for ever; the fetcher never overruns its buffer and takes no offer back.

It must not know who uses them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Assert, Assume, Cover, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from corepool.config import preset
from corepool.hardware import fetch, queues
from corepool.hardware.fetch import INSTRUCTION_SHIFT
from support.formal import constant, implies, mutant, prove, quiet_reset

DEPTH = 3
SMALL = replace(preset("tiny"), fetch_depth=8, fetch_burst_bytes=64)


class Proof(wiring.Component):
    """Any pushes, pops and clearings that the queue allows; one push, chosen freely, is followed to its end."""

    def __init__(self, module: Any) -> None:
        self.module = module
        super().__init__({"push": In(1), "pop": In(1), "clear": In(1), "input": In(4), "choose": In(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        quiet_reset(m)
        level, ahead, watched, value = Signal(range(DEPTH + 1)), Signal(range(DEPTH + 1)), Signal(), Signal(4)
        watched_at, stored = Signal(range(2 * DEPTH)), Signal(4)

        class Spied(self.module.Queue):  # type: ignore[name-defined,misc]
            """The queue, with a second look at its storage."""

            def elaborate(self, platform: object) -> Module:
                inner = super().elaborate(platform)
                port = inner.submodules.storage.read_port(domain="comb")
                inner.d.comb += [port.addr.eq(watched_at), stored.eq(port.data)]
                return inner

        m.submodules.queue = queue = Spied(4, DEPTH)
        place = queue.first + ahead
        m.d.comb += [
            watched_at.eq(Mux(place >= DEPTH, place - DEPTH, place)),
            level.eq(queue.level),
            queue.push.eq(self.push),
            queue.pop.eq(self.pop),
            queue.clear.eq(self.clear),
            queue.input.eq(self.input),
            Assume(implies(queue.level == DEPTH, ~self.push)),
            Assume(implies(queue.level == 0, ~self.pop)),
            Assert(level <= DEPTH),
            Assert(implies(watched, level > ahead)),
            Assert(implies(watched & (ahead == 0), queue.head == value)),
            Cover(watched & (ahead == 0) & (value == 9) & (level == DEPTH)),
            Cover(self.clear & (level == DEPTH) & self.pop),
        ]
        # What makes it inductive: the places agree with the level, and the followed entry stands where it should.
        end = queue.first + level
        m.d.comb += [
            Assert((queue.first < DEPTH) & (queue.behind < DEPTH)),
            Assert(queue.behind == Mux(end >= DEPTH, end - DEPTH, end)),
            Assert(implies(watched, stored == value)),
        ]
        with m.If(watched & self.pop):
            m.d.sync += [ahead.eq(ahead - 1), watched.eq(ahead != 0)]
        with m.If(self.push & self.choose & ~watched):
            m.d.sync += [watched.eq(1), value.eq(self.input), ahead.eq(level - self.pop)]
        with m.If(self.clear):
            m.d.sync += watched.eq(0)
        return m


def offers(module: Any) -> Any:
    class Offers(module.Fetcher):  # type: ignore[name-defined,misc]
        """Slot, memory and core are free, but a burst is complete only after its grant; it runs from a start on."""

        def elaborate(self, platform: object) -> Module:
            m = super().elaborate(platform)
            quiet_reset(m)
            constant(m, self.offset, self.count)
            waiting, begun, first, stop = Signal(), Signal(), Signal(40), Signal(40)
            size = SMALL.fetch_burst_bytes // 32
            m.d.sync += [waiting.eq(self.instruction.valid & ~self.instruction.ready & ~self.start)]
            with m.If(self.start):
                m.d.sync += begun.eq(1)
            m.d.comb += [
                first.eq(self.offset >> INSTRUCTION_SHIFT),
                stop.eq(first + self.count),
                Assume(implies(self.enable, begun)),
                Assume(implies(self.complete, begun & (self.complete_to != self.granted))),
                Assume(implies(self.request.take, self.request.pending)),
                Assert(implies(waiting & self.enable, self.instruction.valid)),
                Assert(implies(self.ended & begun, ~self.instruction.valid)),
                Assert(implies(begun, self.held <= SMALL.fetch_depth)),
                Cover(self.instruction.valid & waiting & (self.left == first + 3)),
                Cover(begun & self.ended & (self.count == 3)),
                Cover(self.held == SMALL.fetch_depth),
            ]
            # What makes it inductive: the pointers keep their order, and bursts end where others begin.
            asked, granted, complete, left = self.asked, self.granted, self.complete_to, self.left
            order = (first <= left) & (left <= complete) & (complete <= granted) & (granted <= asked) & (asked <= stop)
            for pointer in (asked, granted, complete):
                edge = (pointer % size == 0) | (pointer == stop) | (pointer == first)
                m.d.comb += Assert(implies(begun, edge))
            m.d.comb += [Assert(implies(begun, order)), Assert(implies(begun, self.held == asked - left))]
            return m

    return Offers(SMALL)


def test_a_queue_keeps_its_order(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(Proof(queues), tmp_path / "prove", formal_tools)
    assert prove(Proof(queues), tmp_path / "cover", formal_tools, mode="cover", depth=10)


def test_what_the_fetcher_offers_stays_and_fits(tmp_path: Path, formal_tools: Path) -> None:
    assert prove(offers(fetch), tmp_path / "prove", formal_tools)
    assert prove(offers(fetch), tmp_path / "cover", formal_tools, mode="cover", depth=14)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("behind.eq(after(behind))", "behind.eq(behind + 1)"),
        ("first.eq(after(first))", "first.eq(behind)"),
        ("self.level + self.push - self.pop", "self.level + self.push"),
        ("[first.eq(0), behind.eq(0), self.level.eq(0)]", "[first.eq(0), self.level.eq(0)]"),
    ],
)
def test_mutants_of_the_queue_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.queues", old, new)
    assert not prove(Proof(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=14)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("head.valid.eq(self.enable & (left != complete))",
         "head.valid.eq(self.enable & (left != complete) & ~self.line_valid)"),
        ("(held + amount <= self.config.fetch_depth)", "(held <= self.config.fetch_depth)"),
        ("m.d.sync += complete.eq(self._behind(complete))", "m.d.sync += complete.eq(complete + 2)"),
    ],
)  # fmt: skip
def test_mutants_of_the_fetcher_are_refuted(old: str, new: str, tmp_path: Path, formal_tools: Path) -> None:
    changed = mutant("corepool.hardware.fetch", old, new)
    assert not prove(offers(changed), tmp_path / "mutant", formal_tools, mode="bmc", depth=12)
