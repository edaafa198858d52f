"""The rules of the buses: planted violations are found, and the pool keeps them whatever the memory does.

It must not know how the pool works inside.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.sim import Simulator

from corepool.config import preset
from corepool.hardware import pool
from corepool.hardware.axi import LiteBridge
from corepool.hardware.pool import Pool
from corepool.hardware.registers import Fault, State
from corepool.isa.codec import encode
from corepool.isa.table import Opcode
from support.axi import Axi4Rules, LiteRules, StreamRules, watch
from support.axi_traces import GOOD, LIMITS, LITE_PLANTED, LITE_QUIET, PLANTED, QUIET, Cycle
from support.formal import mutant
from support.rtl import Memory, StandIn, simulate

TINY = preset("tiny")
LINE = TINY.ddr.line_bytes


def judge(cycles: list[Cycle]) -> Axi4Rules:
    rules = Axi4Rules(LINE, LIMITS)
    for cycle in cycles:
        rules.see(QUIET | cycle)
    return rules


def test_what_keeps_the_rules_passes() -> None:
    rules = judge(GOOD)
    rules.at_rest()
    assert rules.seen == {"arvalid": 1, "awvalid": 1, "wvalid": 2, "rvalid": 2, "bvalid": 1}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_violations_are_found(name: str) -> None:
    cycles, message = PLANTED[name]
    judge(cycles[:-1])
    with pytest.raises(AssertionError, match=message):
        judge(cycles)


@pytest.mark.parametrize("cut", range(1, len(GOOD) - 1))
def test_what_is_left_open_is_found(cut: int) -> None:
    with pytest.raises(AssertionError, match="left"):
        judge(GOOD[1 : cut + 1]).at_rest()


@pytest.mark.parametrize("name", LITE_PLANTED)
def test_planted_violations_on_the_register_port_are_found(name: str) -> None:
    rules = LiteRules()
    for cycle in LITE_PLANTED[name][:-1]:
        rules.see(LITE_QUIET | cycle)
    with pytest.raises(AssertionError):
        rules.see(LITE_QUIET | LITE_PLANTED[name][-1])


@pytest.mark.parametrize(("second", "found"), [((1, 3), False), ((1, 4), True), ((0, 3), True)])
def test_stream_rules_find_what_is_taken_back(second: tuple[int, int], found: bool) -> None:
    rules = StreamRules()
    offers = [(1, 3), second]

    class Link(wiring.Component):
        """Nothing but a stream."""

        def __init__(self) -> None:
            super().__init__({"out": wiring.In(stream.Signature(4))})

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.d.comb += self.out.ready.eq(self.take)
            m.d.sync += self.seen.eq(self.out.valid)
            return m

        take, seen = Signal(), Signal()

    block = Link()

    async def feed(ctx: Any) -> None:
        for number, (valid, payload) in enumerate(offers):
            ctx.set(block.out.valid, valid)
            ctx.set(block.out.payload, payload)
            ctx.set(block.take, number)
            await ctx.tick()

    async def observe(ctx: Any) -> None:
        await rules.watch(ctx, block.out)

    simulator = Simulator(block)
    simulator.add_clock(1e-6)
    simulator.add_testbench(feed)
    simulator.add_testbench(observe, background=True)
    if found:
        with pytest.raises(AssertionError, match="before ready came"):
            simulator.run()
    else:
        simulator.run()
        assert rules.taken == [3]


@pytest.mark.parametrize("seed", range(3))
def test_the_register_port_under_back_pressure(seed: int) -> None:
    """Address and data come apart, answers are taken late, reads and writes overlap: each is answered once."""
    rng = np.random.default_rng(seed)
    block, rules = LiteBridge(), LiteRules()
    bus = block.host
    writes = [
        (int(rng.integers(1 << 14)) * 4, int(rng.integers(1 << 32)), int(rng.choice([15, 15, 7]))) for _ in range(40)
    ]
    reads = [int(rng.integers(1 << 14)) * 4 for _ in range(40)]
    stored: list[tuple[int, int]] = []
    answers: list[int] = []
    read: list[tuple[int, int]] = []

    async def registers(ctx: Any) -> None:
        """Even addresses of words are there; they read as their own address."""
        port, late = block.registers, (0, 0)  # data come two cycles after their address
        async for _, _, write, at, data, ask, where in ctx.tick().sample(
            port.write, port.write_address, port.write_data, port.read, port.read_address
        ):
            if write:
                stored.append((at, data))
            ctx.set(port.write_error, int(bool(write) and at % 8 != 0))
            ctx.set(port.read_error, int(bool(late[0]) and late[1] % 8 != 0))
            ctx.set(port.read_data, late[1])
            late = ask, where

    async def offer(ctx: Any, valid: Any, ready: Any, signals: list[Any], values: list[tuple[int, ...]]) -> None:
        for each in values:
            await ctx.tick().repeat(int(rng.integers(1, 6)))
            for signal, value in zip(signals, each, strict=True):
                ctx.set(signal, value)
            ctx.set(valid, 1)
            await ctx.tick().until(ready)
            ctx.set(valid, 0)

    async def take(ctx: Any, valid: Any, ready: Any, sampled: list[Any], seen: Callable[..., None], count: int) -> None:
        while count:
            ctx.set(ready, int(rng.random() < 0.4))
            _, _, offered, taken, *values = await ctx.tick().sample(valid, ready, *sampled)
            if offered and taken:
                seen(*values)
                count -= 1
        ctx.set(ready, 0)

    async def addresses(ctx: Any) -> None:
        await offer(ctx, bus.awvalid, bus.awready, [bus.awaddr], [(at,) for at, _, _ in writes])

    async def contents(ctx: Any) -> None:
        await offer(
            ctx, bus.wvalid, bus.wready, [bus.wdata, bus.wstrb], [(value, strobe) for _, value, strobe in writes]
        )

    async def asks(ctx: Any) -> None:
        await offer(ctx, bus.arvalid, bus.arready, [bus.araddr], [(at,) for at in reads])

    async def take_answers(ctx: Any) -> None:
        await take(ctx, bus.bvalid, bus.bready, [bus.bresp], answers.append, len(writes))

    async def take_data(ctx: Any) -> None:
        await take(ctx, bus.rvalid, bus.rready, [bus.rdata, bus.rresp], lambda *pair: read.append(pair), len(reads))

    async def observe(ctx: Any) -> None:
        await watch(ctx, bus, rules)

    simulator = Simulator(block)
    simulator.add_clock(1e-6)
    for bench in (addresses, contents, asks, take_answers, take_data):
        simulator.add_testbench(bench)
    for bench in (registers, observe):
        simulator.add_testbench(bench, background=True)
    simulator.run()
    whole = [(at, value) for at, value, strobe in writes if strobe == 15]
    assert stored == whole
    assert answers == [0 if strobe == 15 and at % 8 == 0 else 2 for at, _, strobe in writes]
    assert read == [(at, 0 if at % 8 == 0 else 2) for at in reads]
    assert rules.seen["bvalid"] == len(writes)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("free = ~bus.arvalid | bus.arready", "free = 1", "changed before arready came"),
        ("with m.If(bus.awready):", "with m.If(1):", "awvalid fell"),
        ("bus.wlast.eq(1)", "bus.wlast.eq(0)", "wlast is 0"),
    ],
)
def test_planted_mistakes_of_the_hardware_are_found(
    old: str, new: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "Bank", mutant("corepool.hardware.bank", old, new).Bank)
    with pytest.raises(AssertionError, match=message):
        busy_pool()
    gc.collect()  # what the broken-off simulation leaves complains as it goes


def test_every_burst_of_a_busy_pool_keeps_the_rules() -> None:
    for memory in busy_pool():
        memory.rules.at_rest()
        assert memory.rules.seen["rvalid"] > 100
        assert memory.rules.seen["bvalid"] > 60


def busy_pool() -> list[Memory]:
    """Loads and saves of two leases against a memory that answers late and out of order."""
    window = 1 << 15
    rng = np.random.default_rng(5)
    memories = [Memory(TINY, rng) for _ in range(TINY.banks)]
    programs = {}
    for core in range(TINY.cores):
        mask = 0b101 if core in (0, 2) else 0b1010
        code = b""
        for _ in range(3):
            code += encode(Opcode.LOAD, rows=1, blocks=1, pixels=150, address=int(rng.integers(2000)) * 4)
            code += encode(Opcode.SAVE, rows=1, blocks=1, pixels=90, address=int(rng.integers(2000)) * 4, banks=3)
            code += encode(Opcode.SYNC, cores=mask)
        programs[core] = code + encode(Opcode.END)

    async def bench(ctx: Any, host: Any) -> None:
        for lease, cores in ((0, (0, 2)), (1, (1, 3))):
            page = 16 * (lease + 1)
            for core in cores:
                memories[TINY.bank_of(core)].load(page * 4096 + (16 << 10) + 1024 * core, programs[core])
            streams = [programs[core] for core in cores]
            await host.open(lease, cores, page, window, streams, [(16 << 10) + 1024 * core for core in cores])
        await host.set("POOL_START", 3)
        for _ in range(2000):
            await ctx.tick().repeat(20)
            if not await host.get("POOL_ACTIVE"):
                break
        assert [await host.get("LEASE_STATE", lease) for lease in range(2)] == [State.DONE] * 2
        assert await host.get("POOL_ERRORS") == 0

    simulate(Pool(TINY, StandIn), memories, bench)
    return memories


@pytest.mark.parametrize("opcode", [Opcode.LOAD, Opcode.SAVE], ids=lambda o: o.name)
def test_an_error_of_the_memory_stops_its_lease_alone(opcode: Opcode) -> None:
    memories = [Memory(TINY) for _ in range(TINY.banks)]
    page = 8
    extra = {"banks": 1} if opcode is Opcode.SAVE else {}
    code = encode(opcode, rows=1, blocks=1, pixels=30, address=256, **extra) + encode(Opcode.SYNC, cores=1)
    code += encode(Opcode.END)
    memories[0].load(page * 4096 + 1024, code)
    calm = code.replace(encode(Opcode.SYNC, cores=1), encode(Opcode.SYNC, cores=2))
    memories[0].load((page + 4) * 4096 + 1024, calm)
    memories[0].broken = {page * 4096 + 256 + LINE}

    async def bench(ctx: Any, host: Any) -> None:
        await host.open(0, [0], page, 1 << 12, [code], [1024])
        await host.set("POOL_START", 1)
        await host.open(1, [1], page + 4, 1 << 12, [calm], [1024])
        await host.set("POOL_START", 2)
        await ctx.tick().repeat(700)
        state, _, fault = await host.outcome(0)
        assert state is State.FAULTED
        assert fault is not None
        assert fault[:2] == (Fault.BUS, 0)
        assert (await host.outcome(1))[0] is State.DONE
        assert await host.get("POOL_ERRORS") == 2
        await host.set("POOL_ERRORS", 2)
        assert await host.get("POOL_ERRORS") == 0

    simulate(Pool(TINY, StandIn), memories, bench)
