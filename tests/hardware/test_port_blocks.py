"""The gate beside a core against a model in plain Python: a core, a slot and buffers that do what they like.

It must not know the core or the banks; the fetcher's own tests are elsewhere, here its lines pass through the port.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from corepool.config import preset
from corepool.hardware.port import COUNTERS, CorePort
from corepool.hardware.registers import Fault
from support.blocks import simulate

TINY = preset("tiny")
LINE, WORD = TINY.ddr.line_bytes, TINY.word_bytes
LAST = 3 * 4096 + 151  # of the window, which ends within a burst
BANKS = range(TINY.banks)
HELD = 0b01  # banks in which the lease has a core
STREAM, COUNT = 2048, 20  # where the stream lies, and its instructions
Told = tuple[int, int, int]  # code, index, address (with 2^32)


def inside(address: int, length: int) -> bool:
    return address + length <= LAST + 1


def request(address: int, length: int) -> tuple[int, int, int]:
    """Line, lines behind it, and bytes."""
    return address // LINE, (address + length - 1) // LINE - address // LINE, length


@dataclass
class Model:
    """What passes the gate: loads inside the window in order, saves inside it into banks of the lease."""

    loads: deque[tuple[int, int, int]] = field(default_factory=deque)
    fault: Told | None = None  # that is told in this cycle: those of the one before

    def step(self, load: Any, save: Any, core_fault: Told | None, bus: bool) -> None:
        """One cycle's events: bursts are (address, length, index), saves with a mask of banks."""
        window: Told | None = None
        if load is not None:
            if inside(*load[:2]):
                self.loads.append(request(*load[:2]))
            else:
                window = (Fault.WINDOW, load[2], load[0])
        if save is not None and not self.good(save):
            window = (Fault.WINDOW, save[2], save[0])
        told = [fault for fault in (window, core_fault, (Fault.BUS, 0, 0) if bus else None) if fault is not None]
        self.fault = min(told, key=lambda fault: fault[0], default=None)

    @staticmethod
    def good(save: Any) -> bool:
        return inside(*save[:2]) and not save[3] & ~HELD


async def start(ctx: Any, block: CorePort, count: int = 0, offset: int = STREAM) -> None:
    """A lease's run begins. ``count`` 0: a core without a stream."""
    port = block.run
    for signal, value in (
        (block.last, LAST), (block.held, HELD), (block.stream_offset, offset), (block.stream_count, count),
        (port.mates, 5), (port.over, 0), (port.live, 0), (block.slot.load.take, 0), (block.slot.fetch.take, 0),
    ):  # fmt: skip
        ctx.set(signal, value)
    ctx.set(port.begin, 1)
    assert ctx.get(block.core.start) == 1
    assert ctx.get(block.slot.restart) == 1
    await ctx.tick()
    ctx.set(port.begin, 0)
    ctx.set(port.live, 1)
    assert ctx.get(block.core.halt) == 0
    assert ctx.get(block.core.lease_cores) == 5


def set_burst(ctx: Any, signal: Any, burst: Any) -> None:
    address, length, index = burst[:3] if burst is not None else (0, 0, 0)
    ctx.set(signal.address, address & 0xFFFFFFFF)
    ctx.set(signal.beyond, address >> 32)
    ctx.set(signal.length, length)
    ctx.set(signal.index, index)


def ask(ctx: Any, block: CorePort, load: Any = None, save: Any = None) -> None:
    """What the core wants in this cycle."""
    ctx.set(block.core.read_request.valid, int(load is not None))
    set_burst(ctx, block.core.read_request.payload, load)
    ctx.set(block.core.write_begin, int(save is not None))
    set_burst(ctx, block.core.write_burst, save)
    ctx.set(block.core.write_banks, save[3] if save is not None else 0)


def told(ctx: Any, block: CorePort) -> Told | None:
    fault = ctx.get(block.fault)
    if not fault.code:
        return None
    return fault.code, fault.index, fault.address + (fault.beyond << 32)


def any_burst(rng: np.random.Generator, wild: float) -> tuple[int, int, int]:
    """Within one piece of burst_bytes. Mostly inside of the window; wild ones lie about its end, or far away."""
    size = TINY.burst_bytes
    first = int(rng.integers(0, size // WORD)) * WORD
    length = int(rng.integers(1, (size - first) // WORD + 1)) * WORD
    piece = int(rng.integers(0, LAST // size))
    if rng.random() < wild:
        end = LAST // size
        piece = int(rng.choice([end, end, end, end + 1, (1 << 32) // size - 1, (1 << 32) // size + piece]))
    return piece * size + first, length, int(rng.integers(1 << 32))


@pytest.mark.parametrize("seed", range(3))
def test_what_leaves_the_window_does_not_pass_and_is_told(seed: int) -> None:
    """Loads and saves at random; the slot takes loads late and in order; buffers are seen through the gate."""
    rng = np.random.default_rng(seed)
    block, seen = CorePort(TINY), {"loads": 0, "saves": 0, "stopped": 0}

    async def bench(ctx: Any) -> None:
        await start(ctx, block)
        model = Model()
        for _ in range(500):
            load = any_burst(rng, 0.3) if rng.random() < 0.4 and len(model.loads) < TINY.load_outstanding else None
            save = (*any_burst(rng, 0.3), int(rng.choice([1, 1, 1, 2, 3, 1 << 7]))) if rng.random() < 0.3 else None
            ask(ctx, block, load, save)
            room = int(rng.integers(1 << TINY.banks))
            words = {name: int(rng.integers(2)) for name in ("valid", "last")} | {"data": int(rng.integers(1 << 30))}
            for name, value in words.items():
                ctx.set(getattr(block.core.write_word, name), value)
            for bank in BANKS:
                ctx.set(block.writers[bank].room, room >> bank & 1)
            assert told(ctx, block) == model.fault
            assert ctx.get(block.core.write_room) == room | (1 << TINY.banks) - 1 & ~HELD
            good = save is not None and model.good(save)
            for bank in BANKS:
                stream = block.writers[bank].words
                assert ctx.get(stream.begin) == (good and save is not None and bool(save[3] >> bank & 1))
                assert {name: ctx.get(getattr(stream, name)) for name in words} == words
                assert not ctx.get(stream.drop)
                assert ctx.get(block.writers[bank].held) == HELD >> bank & 1
                if good and save is not None:
                    assert (ctx.get(stream.burst.address), ctx.get(stream.burst.length)) == save[:2]
            pending = bool(ctx.get(block.slot.load.pending))
            assert pending == bool(model.loads)
            take = pending and rng.random() < 0.4
            ctx.set(block.slot.load.take, int(take))
            if take:
                wanted = ctx.get(block.slot.load.payload)
                assert (wanted.line, wanted.more, wanted.bytes) == model.loads.popleft()
                seen["loads"] += 1
            model.step(load, save, None, False)
            seen["saves"] += good
            seen["stopped"] += model.fault is not None
            await ctx.tick()

    simulate(block, bench)
    assert min(seen.values()) > 30


def test_of_faults_in_one_cycle_the_lowest_is_told(rng: np.random.Generator) -> None:
    """The core's own, the window's (SAVE before LOAD) and the memory's, in all mixtures; the record keeps it."""
    block = CorePort(TINY)
    outside = LAST // TINY.burst_bytes * TINY.burst_bytes + TINY.burst_bytes
    events = [
        (load, save, code, bus)
        for load in (None, (outside, WORD, 11))
        for save in (None, (outside + WORD, WORD, 12, HELD))
        for code in (None, *Fault)
        if code not in (Fault.WINDOW, Fault.WATCHDOG, Fault.BUS)
        for bus in (None, block.slot.bad, block.writers[0].bad, block.writers[1].bad)
    ]

    async def bench(ctx: Any) -> None:
        for load, save, code, bus in events:
            await start(ctx, block)
            await ctx.tick()
            ask(ctx, block, load, save)
            await ctx.tick()
            ask(ctx, block)
            model, index = Model(), int(rng.integers(1 << 32))
            model.step(load, save, None if code is None else (code, index, 0), bus is not None)
            ctx.set(block.core.fault.valid, int(code is not None))  # the core tells its faults a cycle late, as all do
            ctx.set(block.core.fault.code, code or 0)
            ctx.set(block.core.fault.index, index)
            ctx.set(block.core.reached, 99)
            if bus is not None:
                ctx.set(bus, 1)
            assert told(ctx, block) == model.fault
            ctx.set(block.run.over, 1)
            await ctx.tick()
            ctx.set(block.run.over, 0)
            ctx.set(block.run.live, 0)
            ctx.set(block.core.fault.valid, 0)
            ctx.set(block.core.fault.code, 0)
            if bus is not None:
                ctx.set(bus, 0)
            kept = ctx.get(block.record)
            expected = model.fault or (0, 99, 0)
            if expected[0] == Fault.BUS:
                expected = (Fault.BUS, 99, 0)  # who asked is not known: the instruction at the dispatcher is told
            assert (kept.code, kept.index, kept.address) == expected
            await ctx.tick()

    simulate(block, bench)


def test_the_stream_passes_from_lines_to_the_core(rng: np.random.Generator) -> None:
    block = CorePort(TINY)
    memory = [int.from_bytes(rng.bytes(32), "little") for _ in range(STREAM // 32 + COUNT)]
    per_line = LINE // 32

    async def bench(ctx: Any) -> None:
        await start(ctx, block, COUNT)
        lines: deque[tuple[int, bool]] = deque()
        taken: list[int] = []
        closing, ended = 0, False
        for _ in range(800):
            ctx.set(block.core.instruction.ready, int(rng.random() < 0.5))
            if ctx.get(block.core.instruction.valid) and ctx.get(block.core.instruction.ready):
                taken.append(ctx.get(block.core.instruction.payload))
            take = bool(ctx.get(block.slot.fetch.pending)) and rng.random() < 0.4
            ctx.set(block.slot.fetch.take, int(take))
            if take:
                burst = ctx.get(block.slot.fetch.payload)
                lines += [(burst.line + place, place == burst.more) for place in range(burst.more + 1)]
            now = lines.popleft() if lines and not closing and rng.random() < 0.5 else None
            ctx.set(block.slot.fetch_complete, int(closing == 1))
            closing = max(closing - 1, 0)
            if now is not None:
                words = memory[now[0] * per_line : (now[0] + 1) * per_line]
                ctx.set(block.line, sum(word << 256 * place for place, word in enumerate(words)))
                closing = 2 if now[1] else 0
            ctx.set(block.slot.fetch_line, int(now is not None))
            assert ctx.get(block.core.stream_end) == ended
            ended = len(taken) == COUNT
            await ctx.tick()
        assert taken == memory[STREAM // 32 :]
        assert ctx.get(block.core.stream_end)

    simulate(block, bench)


@pytest.mark.parametrize("over", [1, 3, TINY.fetch_depth])
def test_a_stream_beyond_the_window_is_told_with_its_first_instruction_there(over: int) -> None:
    """The burst that would leave the window is told, not the instruction that lies outside."""
    block = CorePort(TINY)
    size = TINY.fetch_burst_bytes
    count = TINY.fetch_depth  # all of it fits the buffer
    first = (LAST // 32 + over - count) * 32  # so many instructions lie behind the window, wholly or in part
    beyond = first
    while min((beyond // size + 1) * size, first + count * 32) <= LAST + 1:
        beyond = (beyond // size + 1) * size

    async def bench(ctx: Any) -> None:
        await start(ctx, block, count, first)
        for _ in range(40):
            if told(ctx, block) is not None:
                break
            await ctx.tick()
        assert told(ctx, block) == (Fault.WINDOW, (beyond - first) // 32, beyond)

    simulate(block, bench)


@pytest.mark.parametrize("how", ["over", "live"])
def test_nothing_passes_a_stopped_gate(how: str, rng: np.random.Generator) -> None:
    """From the cycle on in which the run is over: no requests, whatever waits is forgotten, words are dropped."""
    block = CorePort(TINY)
    good = (64, WORD, 1)

    async def bench(ctx: Any) -> None:
        for count in (0, COUNT):
            await start(ctx, block, count)
            await ctx.tick()
            ask(ctx, block, good)
            await ctx.tick()
            await ctx.tick()
            assert ctx.get(block.slot.load.pending)
            assert ctx.get(block.slot.fetch.pending) == (count > 0)
            ctx.set(block.run.over, int(how == "over"))
            ctx.set(block.run.live, int(how == "over"))
            for _ in range(5):
                ask(ctx, block, good)
                assert ctx.get(block.core.halt)
                assert not ctx.get(block.slot.load.pending)
                assert not ctx.get(block.slot.fetch.pending)
                assert not ctx.get(block.core.instruction.valid)
                assert all(ctx.get(block.writers[bank].words.drop) for bank in BANKS)
                await ctx.tick()
            ask(ctx, block)
            ctx.set(block.run.over, 0)
            await start(ctx, block)
            await ctx.tick()
            assert not ctx.get(block.slot.load.pending)  # nothing is left of the run before

    simulate(block, bench)


def test_counters_begin_with_the_run_and_stay_behind_it(rng: np.random.Generator) -> None:
    block = CorePort(TINY)
    core = block.core

    async def bench(ctx: Any) -> None:
        for _ in range(3):
            await start(ctx, block)
            counts, end_before, released = dict.fromkeys(COUNTERS, 0), 0, 0
            for number in range(80):
                busy, done, step = (int(rng.integers(n)) for n in (8, 8, 2))
                read, written, release = (int(rng.integers(n)) for n in (64, 64, 2))
                for signal, value in (
                    (core.busy, busy), (core.done, done), (core.step, step), (core.end_arrived, int(number > 60)),
                    (block.slot.read_bytes, read), (block.slot.write_bytes, written), (block.run.release, release),
                ):  # fmt: skip
                    ctx.set(signal, value)
                assert ctx.get(core.release) == release
                assert ctx.get(block.completed) == (done != 0)
                if number:  # reports come a cycle late, so that there are none in the first
                    ended = int(number > 60) - end_before
                    amounts = [busy & 1, busy >> 1 & 1, busy >> 2, step, done.bit_count() + released + ended]
                    for name, amount in zip(COUNTERS, [*amounts, read, written], strict=True):
                        counts[name] += amount
                end_before, released = int(number > 60), release
                await ctx.tick()
            assert {name: ctx.get(getattr(block, name)) for name in COUNTERS} == counts
            ctx.set(block.run.live, 0)
            await ctx.tick()
            before = {name: ctx.get(getattr(block, name)) for name in COUNTERS}
            for _ in range(5):
                await ctx.tick()
            assert {name: ctx.get(getattr(block, name)) for name in COUNTERS} == before
            ctx.set(core.end_arrived, 0)
            await ctx.tick()

    simulate(block, bench)


def test_clearing_quiet_and_lines_pass_through(rng: np.random.Generator) -> None:
    block = CorePort(TINY)

    async def bench(ctx: Any) -> None:
        for _ in range(60):
            clear, busy, line = int(rng.integers(2)), int(rng.integers(2)), int(rng.integers(1 << 60))
            fetch, load, complete = (int(rng.integers(2)) for _ in range(3))
            pending = [int(rng.random() < 0.3) for _ in BANKS]
            for signal, value in (
                (block.clear, clear), (block.slot.busy, busy), (block.line, line), (block.slot.fetch_line, fetch),
                (block.slot.load_line, load), (block.slot.load_complete, complete),
                *((block.writers[bank].pending, pending[bank]) for bank in BANKS),
            ):  # fmt: skip
                ctx.set(signal, value)
            assert ctx.get(block.core.clear) == clear
            assert ctx.get(block.core.read_line.valid) == load
            assert ctx.get(block.core.read_line.data) == line
            assert ctx.get(block.core.read_complete) == complete
            assert ctx.get(block.core.writes_pending) == any(pending)
            assert ctx.get(block.quiet) == (not busy and not any(pending))
            await ctx.tick()

    simulate(block, bench)
