"""What hardware tests share: a memory behind the banks, a host on the register bus, and a stand-in for the core.

It must not know the pool's insides; it sees its ports.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.sim import Simulator

from corepool.config import HardwareConfig
from corepool.hardware.axi import OKAY, SLVERR
from corepool.hardware.bank import READ_OVERHEAD, WRITE_OVERHEAD
from corepool.hardware.interfaces import CoreSignature
from corepool.hardware.registers import Fault, State, address
from corepool.isa.table import Opcode, field_of
from support.axi import Axi4Rules, LiteRules, watch


class StandIn(wiring.Component):
    """A core that moves data but computes nothing, exact in time for streams that it understands.

    Between two SYNCs at most one LOAD and one SAVE, each one row of one block, without tokens. A LOAD folds what it
    reads into a checksum; words of a SAVE are their DDR word address xor that checksum. Other opcodes fault as
    UNDEFINED.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        super().__init__(CoreSignature(config))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word, opcode = self.instruction.payload, Signal(4)
        self._field = lambda op, name: word[field_of(op, name).lsb :][: field_of(op, name).width]
        m.d.comb += opcode.eq(word[:4])
        self._run = Signal()
        with m.If(self.start):
            m.d.sync += self._run.eq(1)
        with m.Elif(self.halt):
            m.d.sync += self._run.eq(0)
        live = self._run & ~self.halt
        head = self.instruction.valid & live & ~self.fault.valid
        self._sum = Signal(8 * self.config.word_bytes)
        load_idle = self._load(m, head & (opcode == Opcode.LOAD))
        save_idle = self._save(m, head & (opcode == Opcode.SAVE))
        self._system(m, head, opcode, load_idle & save_idle)
        m.d.sync += self.cleared.eq(1)
        with m.If(self.clear):
            m.d.sync += [self.cleared.eq(0), self._sum.eq(0)]
        return m

    def _burst(self, m: Module, place: Signal, left: Signal) -> Signal:
        """Bytes of the burst at ``place``."""
        size = self.config.burst_bytes
        length, edge = Signal(range(size + 1)), Signal(range(size + 1))
        m.d.comb += [edge.eq(size - (place & (size - 1))), length.eq(Mux(left < edge, left, edge))]
        return length

    def _load(self, m: Module, take: Any) -> Any:
        config, request = self.config, self.read_request
        place, left, wait, index = Signal(34), Signal(32), Signal(3), Signal(32)
        open_, busy = Signal(8), Signal()
        length = self._burst(m, place, left)
        make = busy & (wait == 0) & (left != 0) & (open_ - self.read_complete < config.load_outstanding)
        m.d.comb += [
            request.valid.eq(make & ~self.halt),
            request.payload.address.eq(place),
            request.payload.beyond.eq(place[32:] != 0),
            request.payload.length.eq(length),
            request.payload.index.eq(index),
        ]
        m.d.sync += [open_.eq(open_ + make - self.read_complete), self.done[0].eq(0)]
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.If(make):
            m.d.sync += [place.eq(place + length), left.eq(left - length)]
        over = busy & (wait == 0) & (left == 0) & (open_ - self.read_complete == 0)
        with m.If(over):
            m.d.sync += [busy.eq(0), self.done[0].eq(1)]
        with m.If(take & ~busy):
            m.d.comb += self.instruction.ready.eq(1)
            m.d.sync += [
                busy.eq(1),
                wait.eq(config.setup_cycles),
                place.eq(self._field(Opcode.LOAD, "address")),
                left.eq(self._field(Opcode.LOAD, "pixels") * config.word_bytes),
                index.eq(self.reached),
            ]
        with m.If(self.read_line.valid):
            words = config.ddr.line_bytes // config.word_bytes
            total = self._sum
            for number in range(words):
                total = total ^ self.read_line.data.word_select(number, 8 * config.word_bytes)
            m.d.sync += self._sum.eq(total)
        with m.If(self.start):
            m.d.sync += [busy.eq(0), open_.eq(0)]
        return ~busy | over

    def _save(self, m: Module, take: Any) -> Any:
        config = self.config
        place, left, wait = Signal(34), Signal(32), Signal(3)
        busy, sending = Signal(), Signal(16)
        length = self._burst(m, place, left)
        room = (self.write_banks[: config.banks] & ~self.write_room) == 0
        free = (sending == 0) | ((sending == 1) & self.write_word.valid)
        begin = busy & (wait == 0) & (left != 0) & free & room
        first = Signal()
        kept = Signal.like(self.write_burst)
        at = Signal(34)
        m.d.comb += [self.write_begin.eq(begin & ~self.halt), self.write_burst.eq(kept)]
        with m.If(begin):
            m.d.comb += [
                self.write_burst.address.eq(place),
                self.write_burst.beyond.eq(place[32:] != 0),
                self.write_burst.length.eq(length),
                self.write_burst.index.eq(kept.index),
            ]
            m.d.sync += [kept.eq(self.write_burst), place.eq(place + length), left.eq(left - length)]
            m.d.sync += [sending.eq(length // config.word_bytes), first.eq(1), at.eq(place // config.word_bytes)]
        with m.Elif(sending != 0):
            m.d.sync += [sending.eq(sending - 1), first.eq(0), at.eq(at + 1)]
        m.d.comb += [
            self.write_word.valid.eq(sending != 0),
            self.write_word.first.eq(first),
            self.write_word.last.eq(sending == 1),
            self.write_word.data.eq(at ^ self._sum),
        ]
        over = busy & (wait == 0) & (left == 0) & (sending <= 1)
        m.d.sync += self.done[2].eq(over)
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.If(over):
            m.d.sync += busy.eq(0)
        with m.If(take & ~busy):
            m.d.comb += self.instruction.ready.eq(1)
            m.d.sync += [
                busy.eq(1),
                wait.eq(config.setup_cycles),
                place.eq(self._field(Opcode.SAVE, "address")),
                left.eq(self._field(Opcode.SAVE, "pixels") * config.word_bytes),
                kept.index.eq(self.reached),
                self.write_banks.eq(self._field(Opcode.SAVE, "banks")),
            ]
        with m.If(self.start):
            m.d.sync += [busy.eq(0), sending.eq(0)]
        return ~busy | over

    def _system(self, m: Module, head: Any, opcode: Signal, idle: Any) -> None:
        """SYNC, END and faults; ``reached`` counts what has left."""
        left = Signal(32)
        leave = self.instruction.valid & self.instruction.ready
        m.d.comb += self.reached.eq(left)
        m.d.sync += left.eq(left + leave)
        arrive = head & idle & ~self.writes_pending
        foreign = self._field(Opcode.SYNC, "cores") != self.lease_cores
        known = Signal()
        m.d.comb += known.eq(
            (opcode == Opcode.LOAD) | (opcode == Opcode.SAVE) | (opcode == Opcode.SYNC) | (opcode == Opcode.END)
        )
        with m.If(head & (opcode == Opcode.SYNC)):
            with m.If(foreign):
                m.d.sync += [self.fault.valid.eq(1), self.fault.code.eq(Fault.FOREIGN_SYNC), self.fault.index.eq(left)]
            with m.Elif(arrive):
                m.d.sync += [self.sync_arrived.eq(1), self.sync_layer.eq(self._field(Opcode.SYNC, "layer"))]
            with m.If(self.release):
                m.d.comb += self.instruction.ready.eq(1)
                m.d.sync += self.sync_arrived.eq(0)
        with m.Elif(arrive & (opcode == Opcode.END)):
            m.d.sync += self.end_arrived.eq(1)
        with m.Elif(head & ~known):
            m.d.sync += [self.fault.valid.eq(1), self.fault.code.eq(Fault.UNDEFINED), self.fault.index.eq(left)]
        with m.Elif(self.stream_end & ~self.fault.valid):
            m.d.sync += [self.fault.valid.eq(1), self.fault.code.eq(Fault.STREAM_END), self.fault.index.eq(left)]
        with m.If(self.start):
            m.d.sync += [self.sync_arrived.eq(0), self.end_arrived.eq(0), self.fault.valid.eq(0), left.eq(0)]


class Memory:
    """A bank's memory: takes a line a cycle, answers after fixed latencies.

    With ``rng`` it answers late, with pauses on all five channels, and in any order but that of each ID. A line in
    ``broken`` is answered with an error. ``rules`` watch its bus.
    """

    def __init__(self, config: HardwareConfig, rng: np.random.Generator | None = None) -> None:
        self.config, self.rng = config, rng
        self.bytes: dict[int, int] = {}
        self.rules = Axi4Rules(config.ddr.line_bytes)
        self.broken: set[int] = set()
        self.reads: list[tuple[int, int, int]] = []  # cycle of AR, id, address
        self.writes: list[tuple[int, int, int]] = []

    def load(self, start: int, content: bytes) -> None:
        self.bytes.update({start + place: value for place, value in enumerate(content)})

    def get(self, start: int, size: int) -> bytes:
        return bytes(self.bytes.get(start + place, 0) for place in range(size))

    def _response(self, place: int) -> int:
        return SLVERR if place in self.broken else OKAY

    def _choose(self, waiting: list[tuple[int, ...]], cycle: int) -> tuple[int, ...] | None:
        """Take what is answered now: the oldest, or with ``rng`` the oldest of any ID, or nothing yet."""
        first: dict[int, tuple[int, ...]] = {}
        for entry in waiting:
            first.setdefault(entry[1] if self.rng is not None else 0, entry)
        due = [entry for entry in first.values() if entry[0] <= cycle]
        if not due or (self.rng is not None and self.rng.random() < 0.2):
            return None
        chosen = due[0 if self.rng is None else int(self.rng.integers(len(due)))]
        waiting.remove(chosen)
        return chosen

    async def run(self, ctx: Any, bus: Any) -> None:
        """A process on one AXI4 master port."""
        config, line = self.config, self.config.ddr.line_bytes
        read_gap, write_gap = config.ddr.read_latency - READ_OVERHEAD, config.ddr.write_latency - WRITE_OVERHEAD
        reads: list[tuple[int, ...]] = []  # due, ID, response, data
        answers: list[tuple[int, ...]] = []
        aw: deque[tuple[int, int]] = deque()
        w: deque[tuple[int, int]] = deque()
        ports = [bus.arvalid, bus.arready, bus.arid, bus.araddr, bus.awvalid, bus.awready, bus.awid, bus.awaddr]
        ports += [bus.wvalid, bus.wready, bus.wdata, bus.wstrb, bus.rvalid, bus.rready, bus.bvalid, bus.bready]
        ctx.set(bus.arready, 1)
        ctx.set(bus.awready, 1)
        ctx.set(bus.wready, 1)
        ctx.set(bus.rlast, 1)
        cycle = 0
        async for _, _, *values in ctx.tick().sample(*ports):
            (arv, arr, arid, ara, awv, awr, awid, awa, wv, wr, wd, ws, rv, rr, bv, br) = values
            late = 0 if self.rng is None else int(self.rng.integers(0, 6))
            if arv and arr:
                self.reads.append((cycle, arid, ara))
                content = int.from_bytes(self.get(ara, line), "little")
                reads.append((cycle + read_gap + late, arid, self._response(ara), content))
            if awv and awr:
                aw.append((awid, awa))
            if wv and wr:
                w.append((wd, ws))
            if aw and w:
                (ident, place), (content, strobe) = aw.popleft(), w.popleft()
                self.writes.append((cycle, ident, place))
                for byte in range(line):
                    if strobe >> byte & 1:
                        self.bytes[place + byte] = content >> 8 * byte & 255
                answers.append((cycle + write_gap + late, ident, self._response(place)))
            cycle += 1
            if rv and rr:
                ctx.set(bus.rvalid, 0)
            chosen = self._choose(reads, cycle) if not rv or rr else None
            if chosen is not None:
                for port, value in zip((bus.rid, bus.rresp, bus.rdata, bus.rvalid), (*chosen[1:], 1), strict=True):
                    ctx.set(port, value)
            if bv and br:
                ctx.set(bus.bvalid, 0)
            chosen = self._choose(answers, cycle) if not bv or br else None
            if chosen is not None:
                for port, value in zip((bus.bid, bus.bresp, bus.bvalid), (*chosen[1:], 1), strict=True):
                    ctx.set(port, value)
            if self.rng is not None:
                for ready in (bus.arready, bus.awready, bus.wready):
                    ctx.set(ready, int(self.rng.random() < 0.7))


class Host:
    """Register accesses over AXI4-Lite, from a testbench."""

    def __init__(self, ctx: Any, bus: Any, interrupt: Any = None) -> None:
        self.ctx, self.bus, self.interrupt = ctx, bus, interrupt

    async def write(self, place: int, value: int) -> int:
        """Returns the response (0: done)."""
        ctx, bus = self.ctx, self.bus
        for port, what in ((bus.awaddr, place), (bus.wdata, value), (bus.wstrb, 15)):
            ctx.set(port, what)
        for port in (bus.awvalid, bus.wvalid, bus.bready):
            ctx.set(port, 1)
        await ctx.tick().until(bus.awready)
        ctx.set(bus.awvalid, 0)
        ctx.set(bus.wvalid, 0)
        (response,) = await ctx.tick().sample(bus.bresp).until(bus.bvalid)
        return int(response)

    async def read(self, place: int) -> int:
        ctx, bus = self.ctx, self.bus
        ctx.set(bus.araddr, place)
        ctx.set(bus.arvalid, 1)
        ctx.set(bus.rready, 1)
        await ctx.tick().until(bus.arready)
        ctx.set(bus.arvalid, 0)
        value, response = await ctx.tick().sample(bus.rdata, bus.rresp).until(bus.rvalid)
        assert response == 0
        return int(value)

    async def set(self, name: str, value: int, index: int = 0) -> None:
        assert await self.write(address(name, index), value) == 0, name

    async def get(self, name: str, index: int = 0, words: int = 1) -> int:
        value = await self.read(address(name, index))
        if words == 2:
            value |= await self.read(address(name, index) + 4) << 32
        return value

    async def open(
        self, lease: int, cores: Sequence[int], page: int, window: int, streams: Sequence[bytes], offsets: Sequence[int]
    ) -> None:
        """Give cores to a lease and point them at their streams."""
        for core, stream, offset in zip(cores, streams, offsets, strict=True):
            await self.set("CORE_OWNER", lease | 256, core)
            await self.set("CORE_WINDOW_PAGE", page, core)
            await self.set("CORE_WINDOW_LAST", window - 1, core)
            await self.set("CORE_STREAM_OFFSET", offset, core)
            await self.set("CORE_STREAM_COUNT", len(stream) // 32, core)

    async def outcome(self, lease: int) -> tuple[State, int, tuple[int, int, int, int] | None]:
        """State, cycles, and (code, core, index, address) of a fault."""
        state = State(await self.get("LEASE_STATE", lease))
        begin, end = await self.get("LEASE_BEGIN", lease, 2), await self.get("LEASE_END", lease, 2)
        fault = None
        if state is State.FAULTED:
            told = await self.get("LEASE_FAULT", lease)
            core = told >> 8
            place = await self.get("CORE_FAULT_ADDRESS", core) if told & 7 == Fault.WINDOW else 0
            fault = (told & 7, core, await self.get("CORE_FAULT_INDEX", core), place)
        return state, end - begin, fault


def simulate(pool: Any, memories: Sequence[Memory], testbench: Any, vcd: str | None = None) -> None:
    """Run ``testbench(ctx, host)`` on a pool with a memory at each bank; the rules of AXI are checked on every port."""
    simulator = Simulator(pool)
    simulator.add_clock(1e-6)

    async def main(ctx: Any) -> None:
        await testbench(ctx, Host(ctx, pool.host, pool.interrupt))

    def memory_at(bank: int) -> Any:
        async def process(ctx: Any) -> None:
            await memories[bank].run(ctx, pool.bus[bank])

        return process

    def watching(bus: Any, rules: Axi4Rules | LiteRules) -> Any:
        async def process(ctx: Any) -> None:
            await watch(ctx, bus, rules)

        return process

    for bank in range(len(memories)):
        simulator.add_testbench(memory_at(bank), background=True)
        simulator.add_testbench(watching(pool.bus[bank], memories[bank].rules), background=True)
    simulator.add_testbench(watching(pool.host, LiteRules()), background=True)
    simulator.add_testbench(main)
    if vcd is None:
        simulator.run()
    else:
        with simulator.write_vcd(vcd):
            simulator.run()
