"""Blocks of first-level dispatch one by one: a lease's state machine and its watchdog, against plain Python.

It must not know the pool around them; times are those of events as the manual counts them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from corepool.config import preset
from corepool.hardware.lease import Lease, Watchdog
from corepool.hardware.owners import Owners
from corepool.hardware.registers import Fault, State
from support.blocks import simulate

TINY = preset("tiny")
SYNC = TINY.sync_cycles


@dataclass
class Script:
    """What happens to a lease, in cycles from its first: arrivals of each core at each SYNC (counted from the release
    before), a request to stop (cycle of the write, SYNCs to pass), a fault (cycle, core, code), a kill."""

    cores: int
    arrivals: list[dict[int, int]]
    stop: tuple[int, int] | None = None
    fault: tuple[int, int, int] | None = None
    kill: int | None = None
    events: dict[str, Any] = field(default_factory=dict)


def golden(script: Script) -> tuple[State, int, int]:
    """State, end (cycles) and SYNCs passed."""
    time, passed = 0, 0  # time: the dispatchers go on
    ends: list[tuple[int, int, State]] = []  # of several in one cycle the lowest number counts
    if script.fault is not None:
        ends.append((script.fault[0], 0, State.FAULTED))
    if script.kill is not None:
        ends.append((script.kill - 1, 4, State.KILLED))
    left = None
    for number, arrivals in enumerate(script.arrivals):
        last = time + max(arrivals.values())
        if number == len(script.arrivals) - 1:
            ends.append((last, 1, State.DONE))
            break
        going = last + SYNC
        if script.stop is not None and script.stop[0] < going - 1:  # it counts from the next cycle on
            left = script.stop[1] - sum(script.stop[0] + 1 < each for each in script.events["released"])
            if left <= 0:
                ends.append((max(last, script.stop[0] + 1), 2, State.STOPPED))
                break
        script.events["released"].append(going)
        time = going
    end, _, state = min(ends)
    passed = sum(each - 1 <= end for each in script.events["released"])
    return state, end, passed


def scripts(rng: np.random.Generator) -> Script:
    cores = int(rng.integers(1, 1 << TINY.cores))
    mine = [core for core in range(TINY.cores) if cores >> core & 1]
    arrivals = [{core: int(rng.integers(0, 25)) for core in mine} for _ in range(int(rng.integers(1, 5)))]
    script = Script(cores, arrivals, events={"released": []})
    length = sum(max(each.values()) + SYNC for each in arrivals)
    if rng.random() < 0.6:
        script.stop = int(rng.integers(0, length)), int(rng.choice([0, 0, 1, 2]))
    if rng.random() < 0.25:
        script.fault = int(rng.integers(0, length)), int(rng.choice(mine)), int(rng.integers(1, 6))
    if rng.random() < 0.15:
        script.kill = int(rng.integers(1, length))
    return script


async def play(ctx: Any, dut: Lease, script: Script, clock: list[int]) -> tuple[State, int, int, int, int]:
    """Let a lease run; returns state, end, SYNCs, fault code and core as the host reads them."""

    async def tick() -> None:
        clock[0] += 1
        await ctx.tick()
        ctx.set(dut.cycle, clock[0])

    ctx.set(dut.cores, script.cores)
    ctx.set(dut.start, 1)
    await tick()
    ctx.set(dut.start, 0)
    for _ in range(int(clock[0]) % 5):
        assert ctx.get(dut.state) == State.WAITING
        await tick()
    ctx.set(dut.early, 1)
    await tick()
    ctx.set(dut.early, 0)
    assert ctx.get(dut.begin)
    assert ctx.get(dut.state) == State.RUNNING
    await tick()
    assert ctx.get(dut.begin_cycle) == clock[0]
    going, number, arrived, ended = 0, 0, 0, 0
    for now in range(400):
        seen = now - 1  # events are seen a cycle after they happened
        here = script.arrivals[number]
        mask = sum(1 << core for core, at in here.items() if going + at <= seen)
        final = number == len(script.arrivals) - 1
        arrived, ended = (0, mask) if final else (mask, 0)
        stranger = ~script.cores & 15 if now % 3 else 0  # other leases' cores do what they like
        ctx.set(dut.arrived, arrived | stranger)
        ctx.set(dut.ended, ended | stranger)
        ctx.set(dut.completed, 1 if now % 7 == 0 else stranger)
        ctx.set(dut.quiet, 0)
        if script.fault is not None and seen == script.fault[0]:
            ctx.set(dut.faulty, 1 << script.fault[1] | stranger)
            ctx.set(dut.codes[script.fault[1]], script.fault[2])
        ctx.set(dut.kill, int(now == script.kill))
        asked = script.stop is not None and now == script.stop[0]
        ctx.set(dut.set_stop, int(asked))
        if asked and script.stop is not None:
            ctx.set(dut.stop_after, script.stop[1])
            ctx.set(dut.stop_enable, 1)
        if ctx.get(dut.over):
            break
        if ctx.get(dut.release):
            assert arrived == script.cores
            going, number = now + 1, number + 1
        await tick()
    await tick()
    for signal in (dut.arrived, dut.ended, dut.faulty, dut.kill, dut.set_stop, dut.completed):
        ctx.set(signal, 0)
    assert ctx.get(dut.state) == State.DRAINING
    assert ctx.get(dut.active)
    ctx.set(dut.quiet, (1 << TINY.cores) - 1)
    await tick()
    assert ctx.get(dut.finished)
    assert not ctx.get(dut.active)
    end = ctx.get(dut.end_cycle) - ctx.get(dut.begin_cycle)
    told = State(ctx.get(dut.state)), end, ctx.get(dut.syncs), ctx.get(dut.code), ctx.get(dut.fault_core)
    for _ in range(3):
        await tick()
    return told


@pytest.mark.parametrize("seed", range(3))
def test_random_runs_of_a_lease(seed: int) -> None:
    """One after the other on one lease, so that nothing is left over from a run."""
    rng = np.random.default_rng(seed)
    dut = Lease(TINY)
    states: list[State] = []

    async def bench(ctx: Any) -> None:
        ctx.set(dut.limit, 300)
        ctx.set(dut.ready, (1 << TINY.cores) - 1)
        clock = [0]
        for _ in range(60):
            script = scripts(rng)
            state, end, syncs = golden(script)
            told = await play(ctx, dut, script, clock)
            assert told[:3] == (state, end, syncs), script
            if state is State.FAULTED and script.fault is not None:
                assert told[3:] == (script.fault[2], script.fault[1])
            if script.stop is not None and script.stop[0] <= end:
                assert not ctx.get(dut.stopping), "a request outlived its run"
            ctx.set(dut.set_stop, 1)  # what came too late is taken back by who starts the next run
            ctx.set(dut.stop_enable, 0)
            await ctx.tick()
            clock[0] += 1
            ctx.set(dut.cycle, clock[0])
            ctx.set(dut.set_stop, 0)
            states.append(state)

    simulate(dut, bench)
    assert {State.DONE, State.STOPPED, State.FAULTED} <= set(states)


def test_a_request_in_every_cycle_of_a_run() -> None:
    """Around each SYNC there is a last cycle in which a request still counts for it."""
    dut = Lease(TINY)
    arrivals = [{0: 3, 1: 7}, {0: 9, 1: 2}, {0: 4, 1: 4}]
    length = sum(max(each.values()) + SYNC for each in arrivals)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.limit, 300)
        ctx.set(dut.ready, 15)
        clock = [0]
        seen = []
        for at in range(length - SYNC):
            script = Script(0b11, arrivals, stop=(at, 0), events={"released": []})
            state, end, syncs = golden(script)
            assert (await play(ctx, dut, script, clock))[:3] == (state, end, syncs), at
            seen.append((state, syncs))
            ctx.set(dut.set_stop, 1)
            ctx.set(dut.stop_enable, 0)
            await ctx.tick()
            clock[0] += 1
            ctx.set(dut.set_stop, 0)
            ctx.set(dut.cycle, clock[0])
        assert set(seen) == {(State.STOPPED, 0), (State.STOPPED, 1), (State.DONE, 2)}

    simulate(dut, bench)


def test_a_lease_waits_for_clean_cores_and_the_slot_period() -> None:
    dut = Lease(TINY)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.cores, 0b0110)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for ready, early in ((0b1011, 1), (0b1101, 1), (0b0110, 0), (0b0111, 0)):
            ctx.set(dut.ready, ready)
            ctx.set(dut.early, early)
            await ctx.tick()
            assert not ctx.get(dut.begin)
            assert ctx.get(dut.state) == State.WAITING
        ctx.set(dut.early, 1)
        await ctx.tick()
        assert ctx.get(dut.begin)
        ctx.set(dut.cores, 0)

    simulate(dut, bench)


@pytest.mark.parametrize("limit", [4, 11])
def test_the_watchdog_barks_after_so_many_cycles_without_progress(limit: int) -> None:
    """Progress at p is seen at p + 1; nothing until p + limit is seen, so it barks, at p + limit + 1."""
    dut = Watchdog()

    async def bench(ctx: Any) -> None:
        ctx.set(dut.limit, limit)
        ctx.set(dut.enable, 1)
        ctx.set(dut.restart, 1)
        await ctx.tick()
        ctx.set(dut.restart, 0)
        last = 0  # the first cycle of the run counts as progress
        rng = np.random.default_rng(limit)
        barks = 0
        for now in range(300):
            progress = now > 0 and rng.random() < 1.2 / limit
            ctx.set(dut.progress, int(progress))
            expected = now > 0 and not progress and now - 1 >= last + limit
            assert ctx.get(dut.bark) == expected, now
            barks += expected
            if progress:
                last = now - 1
            await ctx.tick()
        assert barks > 3

    simulate(dut, bench)


def lanes(owner: list[int | None]) -> list[list[int | None]]:
    """For every core and bank the core whose slot carries its writes there, as the manual says."""
    size, result = TINY.cores_per_bank, []
    for core, mine in enumerate(owner):
        row: list[int | None] = []
        for bank in range(TINY.banks):
            there = [c for c in range(bank * size, (bank + 1) * size) if mine is not None and owner[c] == mine]
            home = TINY.bank_of(core)
            at_home = [c for c in range(home * size, (home + 1) * size) if mine is not None and owner[c] == mine]
            if bank == home:
                row.append(core if mine is not None else None)
            else:
                row.append(there[at_home.index(core) % len(there)] if there else None)
        result.append(row)
    return result


def test_owners_and_lanes_of_every_way_to_share_four_cores() -> None:
    dut = Owners(TINY)
    size = TINY.cores_per_bank

    async def bench(ctx: Any) -> None:
        for number in range(5**TINY.cores):
            owner: list[int | None] = []
            for core in range(TINY.cores):
                lease = number // 5**core % 5
                owner.append(None if lease == 4 else lease)
                ctx.set(dut.owner[core], lease % 4)
                ctx.set(dut.owned[core], int(lease != 4))
            for lease in range(TINY.cores):
                expected = sum(1 << core for core, each in enumerate(owner) if each == lease)
                assert ctx.get(dut.cores[lease]) == expected
            for core, row in enumerate(lanes(owner)):
                mates = sum(1 << c for c, each in enumerate(owner) if each is not None and each == owner[core])
                assert ctx.get(dut.mates[core]) == mates
                for bank, lane in enumerate(row):
                    held = ctx.get(dut.held[core]) >> bank & 1
                    assert held == (lane is not None)
                    if lane is not None:
                        assert ctx.get(dut.lane[core * TINY.banks + bank]) == lane % size

    simulate(dut, bench, clock=False)


def test_faults_name_the_lowest_core() -> None:
    dut = Lease(TINY)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.limit, 1000)
        ctx.set(dut.ready, 15)
        ctx.set(dut.cores, 0b1110)
        for signal in (dut.start, dut.early):
            ctx.set(signal, 1)
        await ctx.tick().repeat(4)
        ctx.set(dut.start, 0)
        for core, code in ((0, Fault.TOKENS), (2, Fault.WINDOW), (3, Fault.UNDEFINED)):
            ctx.set(dut.codes[core], code)
        ctx.set(dut.faulty, 0b1101)  # core 0 is another lease's
        await ctx.tick()
        assert (ctx.get(dut.code), ctx.get(dut.fault_core)) == (Fault.WINDOW, 2)

    simulate(dut, bench)
