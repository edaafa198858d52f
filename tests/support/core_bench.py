"""A pool in plain Python around one core in RTL: fetcher, slot, DDR and write buffers, as the manual times them.

It must not know how the core works inside; it drives and watches the core's signature only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.sim import Simulator

from corepool.config import HardwareConfig
from corepool.hardware.core import Core
from corepool.hardware.interfaces import LINE_LEAD

UNITS = ("LOAD", "COMPUTE", "SAVE")


@dataclass
class Burst:
    first: int
    behind: int
    requested: int
    data: bytes = b""
    left: int = 0


@dataclass
class Outcome:
    """What came of a run: end, fault (code, index), cycles in which instructions of each unit ended, and requests."""

    end: int = -1
    fault: tuple[int, int] | None = None
    ended: dict[str, list[int]] = field(default_factory=lambda: {unit: [] for unit in UNITS})
    busy: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UNITS, 0))
    steps: int = 0
    window: npt.NDArray[np.uint8] | None = None


class CoreBench:
    """Core 0 of a lease of one core that starts in cycle 0, its window in bank 0."""

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        self.core = Core(config)
        self._simulator = Simulator(self.core)
        self._simulator.add_clock(1e-6)
        self._simulator.add_testbench(self._bench)
        self._first = True

    def run(
        self, window: npt.NDArray[np.uint8], stream: bytes, offset: int, limit: int = 20000, stop_at: int = -1
    ) -> Outcome:
        """Run a stream that stands at ``offset`` of the window; the window is changed.

        With ``stop_at`` a first run, on a copy, is halted in that cycle; then the core is cleared and starts anew.
        """
        self.window, self.stream, self.offset, self.limit = window, stream, offset, limit
        self.stop_at = stop_at
        self.outcome = Outcome()
        if not self._first:
            self._simulator.reset()
        self._first = False
        self._simulator.run()
        self.outcome.window = self.window
        return self.outcome

    async def _bench(self, ctx: Any) -> None:
        if self.stop_at >= 0:
            kept, self.window = self.window, self.window.copy()
            await self._once(ctx, self.stop_at)
            await self._stop(ctx)
            self.window, self.outcome = kept, Outcome()
        await self._once(ctx, -1)

    async def _stop(self, ctx: Any) -> None:
        """Halt the core, let what comes late come, and clear it."""
        core = self.core
        for signal in (core.instruction.valid, core.read_complete, core.writes_pending, core.stream_end):
            ctx.set(signal, 0)
        ctx.set(core.halt, 1)
        ctx.set(core.read_line.valid, 1)  # a line that was on its way
        await ctx.tick()
        ctx.set(core.read_line.valid, 0)
        for _ in range(5):
            assert not ctx.get(core.read_request.valid) | ctx.get(core.write_begin) | ctx.get(core.done)
            assert not ctx.get(core.sync_arrived) | ctx.get(core.fault.valid) | ctx.get(core.busy)
            await ctx.tick()
        ctx.set(core.clear, 1)
        await ctx.tick()
        ctx.set(core.clear, 0)
        cycles = 0
        while not ctx.get(core.cleared):
            await ctx.tick()
            cycles += 1
        assert cycles <= self.config.feature_lines + 1
        ctx.set(core.halt, 0)

    async def _once(self, ctx: Any, stop_at: int) -> None:
        core, config = self.core, self.config
        self._prepare()
        ctx.set(core.lease_cores, 1)
        ctx.set(core.write_room, (1 << config.banks) - 1)
        ctx.set(core.start, 1)
        await ctx.tick()
        ctx.set(core.start, 0)
        release = -1
        for t in range(self.limit):
            if t == stop_at:
                return
            self._drive(ctx, t)
            ctx.set(core.release, int(t == release))
            self._watch(ctx, t)
            if ctx.get(core.fault.valid):
                self.outcome.fault = ctx.get(core.fault.code), ctx.get(core.fault.index)
                self.outcome.end = t - 1
                return
            if ctx.get(core.end_arrived):
                self.outcome.end = t - 1
                return
            if ctx.get(core.sync_arrived) and release < t - 1:
                release = t - 1 + config.sync_cycles - 1
            self._serve(t)
            assert not ctx.get(core.placer.overrun), "lines came faster than they could be placed"
            await ctx.tick()
        raise AssertionError("the core did not come to an end")

    def _prepare(self) -> None:
        self.fetch_at, self.fetched, self.left, self.left_before = self.offset, 0, 0, 0
        self.fetches: deque[tuple[int, int]] = deque()  # complete at, instructions then
        self.queues: list[deque[Burst]] = [deque(), deque(), deque()]
        self.turn, self.busy, self.busy_kind = 0, None, 0
        self.lines: dict[int, bytes] = {}
        self.completes: set[int] = set()
        self.begun: deque[Burst] = deque()
        self.room: list[int] = []  # when the buffers in use become free; -1: not known
        self.acks: list[int] = []
        self.open_writes = 0

    def _drive(self, ctx: Any, t: int) -> None:
        core, config = self.core, self.config
        while self.fetches and self.fetches[0][0] <= t:
            self.fetched = self.fetches.popleft()[1]
        place = self.left * 32
        valid = self.left < self.fetched
        ctx.set(core.instruction.valid, int(valid))
        if valid:
            ctx.set(core.instruction.payload, int.from_bytes(self.stream[place : place + 32], "little"))
        ctx.set(core.stream_end, int(place >= len(self.stream)))
        line = self.lines.pop(t, None)
        ctx.set(core.read_line.valid, int(line is not None))
        if line is not None:
            ctx.set(core.read_line.data, int.from_bytes(line, "little"))
        ctx.set(core.read_complete, int(t in self.completes))
        self.room = [free for free in self.room if free < 0 or free > t]
        ctx.set(core.write_room, (1 << config.banks) - 2 + int(len(self.room) < config.save_buffers))
        self.acks = [ack for ack in self.acks if ack > t]
        ctx.set(core.writes_pending, int(bool(self.acks) or self.open_writes > 0))

    def _watch(self, ctx: Any, t: int) -> None:
        core, config = self.core, self.config
        for unit, name in enumerate(UNITS):
            if ctx.get(core.done) >> unit & 1:
                self.outcome.ended[name].append(t - 1)
            self.outcome.busy[name] += ctx.get(core.busy) >> unit & 1
        self.outcome.steps += ctx.get(core.step)
        if ctx.get(core.read_request.valid):
            burst = ctx.get(core.read_request.payload)
            assert not burst.beyond
            assert burst.address + burst.length <= len(self.window)
            self.queues[1].append(Burst(burst.address, burst.address + burst.length, t))
        if ctx.get(core.write_word.valid):
            word = ctx.get(core.write_word.data).to_bytes(config.word_bytes, "little")
            target = self.begun[0]
            assert ctx.get(core.write_word.first) == (not target.data)
            target.data += word
            whole = len(target.data) == target.behind - target.first
            assert ctx.get(core.write_word.last) == whole
            if whole:
                self.begun.popleft()
                target.requested = t
                self.queues[2].append(target)
        if ctx.get(core.write_begin):
            burst = ctx.get(core.write_burst)
            assert ctx.get(core.write_banks) == 1
            assert not burst.beyond
            assert burst.address + burst.length <= len(self.window)
            self.begun.append(Burst(burst.address, burst.address + burst.length, -1))
            self.room.append(-1)
            self.open_writes += 1
        self._fetch(t)
        if ctx.get(core.instruction.ready) and self.left < self.fetched:
            self.left += 1

    def _fetch(self, t: int) -> None:
        """As the manual has it: one request a cycle while there is room for what is asked for and has not left."""
        end, size = self.offset + len(self.stream), self.config.fetch_burst_bytes
        left, self.left_before = self.left, self.left
        if self.fetch_at >= end:
            return
        behind = min(end, self.fetch_at - self.fetch_at % size + size)
        if (behind - self.offset) // 32 - left > self.config.fetch_depth:
            return
        self.queues[0].append(Burst(self.fetch_at, behind, t))
        self.fetch_at = behind

    def _serve(self, t: int) -> None:
        ddr, n = self.config.ddr, self.config.cores_per_bank
        if self.busy is None:
            for step in range(3):
                kind = (self.turn + step) % 3
                if self.queues[kind] and self.queues[kind][0].requested < t:
                    self.busy, self.busy_kind = self.queues[kind].popleft(), kind
                    self.busy.left = (self.busy.behind - 1) // ddr.line_bytes - self.busy.first // ddr.line_bytes + 1
                    self.turn = (kind + 1) % 3
                    break
        burst = self.busy
        if burst is None or t % n or t // n % ddr.period_rounds >= ddr.active_rounds:
            return
        burst.left -= 1
        if self.busy_kind == 1:
            last = (burst.behind - 1) // ddr.line_bytes - burst.left
            start = last * ddr.line_bytes
            self.lines[t + ddr.read_latency - LINE_LEAD] = self.window[start : start + ddr.line_bytes].tobytes()
        if burst.left:
            return
        self.busy = None
        if self.busy_kind == 0:
            self.fetches.append((t + ddr.read_latency, (burst.behind - self.offset) // 32))
        elif self.busy_kind == 1:
            self.completes.add(t + ddr.read_latency)
        else:
            self.window[burst.first : burst.behind] = np.frombuffer(burst.data, np.uint8)
            self.room[self.room.index(-1)] = t + 1
            self.acks.append(t + ddr.write_latency)
            self.open_writes -= 1
