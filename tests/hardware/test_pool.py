"""The pool with stand-in cores against the model that steps cycle by cycle: times, bytes, faults, isolation, switches.

It must not know the pool's insides; it speaks to registers and looks at memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from corepool.config import HardwareConfig, preset
from corepool.hardware.pool import Pool
from corepool.hardware.registers import State
from corepool.isa.codec import encode
from corepool.isa.table import Opcode
from support.cycle_model import FAULTS, LeaseModel
from support.rtl import Host, Memory, StandIn, simulate

WINDOW = 1 << 15
STREAMS_AT = WINDOW - (8 << 10)
TINY = preset("tiny")


@dataclass
class Tenant:
    """A lease of the test: number, cores, first page, streams."""

    number: int
    cores: list[int]
    page: int
    streams: list[bytes]

    @property
    def offsets(self) -> list[int]:
        places, at = [], STREAMS_AT
        for stream in self.streams:
            places.append(at)
            at += -(-len(stream) // 64) * 64
        return places

    def place(self, config: HardwareConfig, memories: list[Memory]) -> None:
        for core, stream, offset in zip(self.cores, self.streams, self.offsets, strict=True):
            memories[config.bank_of(core)].load(self.page * 4096 + offset, stream)

    async def open(self, host: Host) -> None:
        await host.open(self.number, self.cores, self.page, WINDOW, self.streams, self.offsets)

    def model(self, config: HardwareConfig, streams: list[bytes] | None = None) -> LeaseModel:
        model = LeaseModel(config, self.cores, streams or self.streams, self.offsets, WINDOW)
        model.run()
        return model


def mask_of(cores: list[int]) -> int:
    return sum(1 << core for core in cores)


def load(pixels: int, address: int) -> bytes:
    return encode(Opcode.LOAD, target=0, rows=1, blocks=1, pixels=pixels, address=address)


def save(pixels: int, address: int, banks: int) -> bytes:
    return encode(Opcode.SAVE, rows=1, blocks=1, pixels=pixels, address=address, banks=banks)


def stretch(rng: np.random.Generator, config: HardwareConfig, banks: list[int]) -> list[bytes]:
    """At most one LOAD and one SAVE, which the stand-in understands, anywhere in the lower half of the window."""
    program = []
    if rng.random() < 0.8:
        program.append(load(int(rng.integers(1, 400)), int(rng.integers(0, 2000)) * config.word_bytes))
    if rng.random() < 0.8:
        mask = mask_of([bank for bank in banks if rng.random() < 0.6]) or 1 << banks[0]
        program.append(save(int(rng.integers(1, 300)), int(rng.integers(0, 2000)) * config.word_bytes, mask))
    rng.shuffle(program)
    return program


def tenant(rng: np.random.Generator, config: HardwareConfig, number: int, cores: list[int], page: int) -> Tenant:
    banks = sorted({config.bank_of(core) for core in cores})
    programs: list[list[bytes]] = [[] for _ in cores]
    for layer in range(int(rng.integers(1, 5))):
        for program in programs:
            program += stretch(rng, config, banks)
            program += [encode(Opcode.SYNC, cores=mask_of(cores), layer=layer)] * int(rng.integers(1, 6))
        longest = max(len(program) for program in programs)
        for program in programs:
            program += [encode(Opcode.SYNC, cores=mask_of(cores), layer=layer)] * (longest - len(program))
    for program in programs:
        equalise(programs, mask_of(cores))
        program.append(encode(Opcode.END))
    return Tenant(number, cores, page, [b"".join(program) for program in programs])


def equalise(programs: list[list[bytes]], mask: int) -> None:
    """Let all programs have equally many SYNCs."""

    def syncs(program: list[bytes]) -> int:
        return sum(word[0] & 15 == Opcode.SYNC for word in program)

    most = max(syncs(program) for program in programs)
    for program in programs:
        program += [encode(Opcode.SYNC, cores=mask)] * (most - syncs(program))


async def wait(ctx: Any, host: Host, limit: int = 60_000) -> None:
    for _ in range(limit // 20):
        await ctx.tick().repeat(20)
        if not await host.get("POOL_ACTIVE"):
            return
    raise AssertionError("the leases did not come to an end")


def run(config: HardwareConfig, tenants: list[Tenant], rng: np.random.Generator | None = None) -> tuple[Any, ...]:
    """Start all tenants in one cycle; returns outcomes, memories and the counters of each tenant's cores."""
    memories = [Memory(config, rng) for _ in range(config.banks)]
    outcomes: list[Any] = []
    counters: list[Any] = []
    for one in tenants:
        one.place(config, memories)

    async def bench(ctx: Any, host: Host) -> None:
        for one in tenants:
            await one.open(host)
        await host.set("POOL_START", mask_of([one.number for one in tenants]))
        await wait(ctx, host)
        assert await host.get("POOL_ERRORS") == 0
        assert await host.get("POOL_INTERRUPT") == mask_of([one.number for one in tenants])
        for one in tenants:
            outcomes.append(await host.outcome(one.number))
            names = ("INSTRUCTIONS", "BYTES_READ", "BYTES_WRITTEN")
            counters.append([[await host.get(f"CORE_{name}", core) for name in names] for core in one.cores])

    simulate(Pool(config, StandIn), memories, bench)
    return outcomes, memories, counters


def expected(model: LeaseModel) -> tuple[State, int, Any]:
    if model.fault is None:
        return State.DONE, model.end, None
    kind, core, index, address = model.fault
    return State.FAULTED, model.end, (FAULTS.index(kind) + 1, core, index, address)


def split(rng: np.random.Generator, config: HardwareConfig) -> list[list[int]]:
    order = [int(core) for core in rng.permutation(config.cores)]
    count = int(rng.integers(1, 4))
    cuts = sorted(int(cut) for cut in rng.choice(np.arange(1, config.cores), count - 1, replace=False))
    return [sorted(order[low:high]) for low, high in zip([0, *cuts], [*cuts, config.cores], strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_random_leases_take_the_models_cycles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = TINY if seed % 3 else replace(TINY, load_outstanding=2, save_buffers=1, fetch_depth=8)
    groups = split(rng, config)
    tenants = [tenant(rng, config, number, cores, 16 * (number + 1)) for number, cores in enumerate(groups)]
    outcomes, memories, counters = run(config, tenants)
    for one, outcome, counts in zip(tenants, outcomes, counters, strict=True):
        model = one.model(config)
        assert outcome == expected(model)
        assert [count[0] for count in counts] == [len(stream) // 32 for stream in one.streams]
    for memory in memories:
        assert memory.reads
        for _, ident, place in memory.reads + memory.writes:
            owner = next(one for one in tenants if ident in one.cores)
            assert owner.page * 4096 <= place < owner.page * 4096 + WINDOW


def test_what_is_saved_arrives_in_every_bank_of_the_mask_and_nowhere_else() -> None:
    cores, word = [0, 3], TINY.word_bytes
    program = [save(77, 12, 0b11), encode(Opcode.SYNC, cores=mask_of(cores)), encode(Opcode.END)]
    other = [save(5, 4000, 0b10), encode(Opcode.SYNC, cores=mask_of(cores)), encode(Opcode.END)]
    one = Tenant(3, cores, 5, [b"".join(program), b"".join(other)])
    _, memories, counters = run(TINY, [one])
    base = one.page * 4096
    for bank, memory in enumerate(memories):
        wanted = {base + 12 + place: value for place, value in enumerate(pattern(12, 77 * word))}
        if bank == 1:
            wanted |= {base + 4000 + place: value for place, value in enumerate(pattern(4000, 5 * word))}
        written = {place: value for place, value in memory.bytes.items() if place < base + STREAMS_AT}
        assert written == wanted
    assert [count[2] for count in counters[0]] == [77 * word, 77 * word + 5 * word]


def pattern(address: int, size: int) -> bytes:
    word = TINY.word_bytes
    return b"".join((place // word).to_bytes(word, "little") for place in range(address, address + size, word))


def test_a_slow_and_jittery_memory_changes_times_but_not_bytes() -> None:
    rng = np.random.default_rng(100)
    tenants = [tenant(rng, TINY, 0, [0, 2], 8), tenant(rng, TINY, 1, [1, 3], 16)]
    exact, first, counts = run(TINY, tenants)
    late, second, again = run(TINY, tenants, np.random.default_rng(7))
    assert [outcome[0] for outcome in late] == [State.DONE, State.DONE]
    assert sum(outcome[1] for outcome in late) > sum(outcome[1] for outcome in exact)
    assert counts == again
    # Contents of SAVEs depend on what loads read before, which races with saves of other cores; places do not.
    assert [sorted(memory.bytes) for memory in first] == [sorted(memory.bytes) for memory in second]


SYNC = encode(Opcode.SYNC, cores=1)
END = encode(Opcode.END)


FAULTY = [
    b"",
    SYNC,
    SYNC * 20,
    bytes(32) + END,
    SYNC + b"\xff" * 32 + END,
    encode(Opcode.SYNC, cores=3) + END,
    load(9, WINDOW - 32) + SYNC + END,
    load(100, WINDOW - 300) + SYNC + END,
    save(9, WINDOW - 32, 1) + SYNC + END,
    save(70, WINDOW - 4, 1) + SYNC + END,
    save(4, 0, 2) + SYNC + END,
    save(4, 0, 128) + SYNC + END,
]


def test_faults_name_the_same_place_in_the_same_cycle_and_leave_others_alone() -> None:
    config = replace(TINY, watchdog_cycles=600)
    tenants = [Tenant(1, [0], 4, [stream]) for stream in FAULTY]
    tenants.append(Tenant(1, [0], 4, [SYNC * 600 + END]))
    assert len(tenants[-1].streams[0]) + tenants[-1].offsets[0] > WINDOW
    calm = tenant(np.random.default_rng(3), config, 0, [1, 2], 32)
    memories = [Memory(config) for _ in range(config.banks)]
    outcomes: list[Any] = []
    calm.place(config, memories)

    async def bench(ctx: Any, host: Host) -> None:
        await calm.open(host)
        for number, one in enumerate(tenants):
            one.place(config, memories)
            await one.open(host)
            await host.set("POOL_START", 0b11 if number == 0 else 0b10)
            while await host.get("POOL_ACTIVE") & 0b10:
                pass
            outcomes.append(await host.outcome(1))
        await wait(ctx, host)
        outcomes.append(await host.outcome(0))

    simulate(Pool(config, StandIn), memories, bench)
    for one, outcome in zip([*tenants, calm], outcomes, strict=True):
        assert outcome == expected(one.model(config)), one.streams[0][:64].hex()
    assert {outcome[2][0] for outcome in outcomes[:-1]} == {1, 2, 3, 4}


def test_the_watchdog_stops_a_lease_whose_cores_do_not_meet() -> None:
    config = replace(TINY, watchdog_cycles=300)
    sync = encode(Opcode.SYNC, cores=0b101)
    one = Tenant(2, [0, 2], 4, [load(30, 0) + sync + sync + END, sync + END])
    outcomes, _, _ = run(config, [one])
    assert outcomes == [expected(one.model(config))]
    assert outcomes[0][2][0] == 6


def joined(layers: list[list[bytes]]) -> bytes:
    return b"".join(word for layer in layers for word in layer)


def test_a_lease_stops_at_a_layer_and_goes_on_with_other_cores() -> None:
    """Layer-level switch: stop at the second SYNC, read the layer, resume the rest on another core."""
    layers = [[save(40, 1000 * layer, 1), encode(Opcode.SYNC, cores=1, layer=layer + 10)] for layer in range(4)]
    whole = Tenant(0, [0], 8, [joined(layers) + END])
    resumed = [save(40, 1000 * layer, 1) + encode(Opcode.SYNC, cores=2, layer=layer + 10) for layer in (2, 3)]
    later = Tenant(0, [1], 8, [b"".join(resumed) + END])
    memories = [Memory(TINY) for _ in range(TINY.banks)]
    whole.place(TINY, memories)
    seen: list[Any] = []

    async def bench(ctx: Any, host: Host) -> None:
        await whole.open(host)
        await host.set("LEASE_STOP", 1 << 16 | 1, 0)
        await host.set("POOL_START", 1)
        await wait(ctx, host)
        seen.append((await host.outcome(0), await host.get("CORE_LAYER", 0), await host.get("LEASE_STOP", 0)))
        await host.set("CORE_OWNER", 0, 0)
        later.place(TINY, memories)
        await later.open(host)
        await host.set("POOL_START", 1)
        await wait(ctx, host)
        seen.append(await host.outcome(0))

    simulate(Pool(TINY, StandIn), memories, bench)
    (state, cycles, _), layer, stop = seen[0]
    assert (state, layer, stop) == (State.STOPPED, 11, 0)
    first_half = Tenant(0, [0], 8, [joined(layers[:2]) + END])
    assert cycles == first_half.model(TINY).end - TINY.sync_cycles
    assert seen[1][0] is State.DONE
    for layer in range(4):
        assert memories[0].get(8 * 4096 + 1000 * layer, 160) == pattern(1000 * layer, 160)


def test_neither_registers_nor_commands_touch_a_running_lease() -> None:
    sync = encode(Opcode.SYNC, cores=1)
    one = Tenant(0, [0], 8, [sync * 30 + END])
    memories = [Memory(TINY) for _ in range(TINY.banks)]
    one.place(TINY, memories)

    async def bench(ctx: Any, host: Host) -> None:
        from corepool.hardware.registers import address

        await one.open(host)
        await host.set("POOL_START", 1)
        await ctx.tick().repeat(60)
        assert await host.get("LEASE_STATE", 0) == State.RUNNING
        for name in ("OWNER", "WINDOW_PAGE", "WINDOW_LAST", "STREAM_OFFSET", "STREAM_COUNT"):
            assert await host.write(address(f"CORE_{name}", 0), 0) != 0
        assert await host.write(address("CORE_OWNER", 1), 1 << 8) != 0  # must not join a lease that runs
        assert await host.write(address("CORE_OWNER", 1), 1 << 8 | 1) == 0
        assert await host.write(0x0F00, 1) != 0
        await host.set("POOL_CLEAR", 1)
        assert await host.get("POOL_CLEARED") & 1
        assert await host.get("POOL_ERRORS") == 1
        await host.set("POOL_ERRORS", 1)
        assert await host.get("POOL_ERRORS") == 0
        await wait(ctx, host)
        assert await host.outcome(0) == expected(one.model(TINY))
        await host.set("POOL_INTERRUPT_ENABLE", 1)
        assert ctx.get(host.interrupt) == 1
        await host.set("POOL_INTERRUPT", 1)
        assert ctx.get(host.interrupt) == 0

    simulate(Pool(TINY, StandIn), memories, bench)


def test_the_host_can_kill_a_lease() -> None:
    one = Tenant(1, [3], 8, [load(400, 0) + encode(Opcode.SYNC, cores=8) + END])
    memories = [Memory(TINY) for _ in range(TINY.banks)]
    one.place(TINY, memories)

    async def bench(ctx: Any, host: Host) -> None:
        await one.open(host)
        for _ in range(2):  # the second run starts although the first left loads unfinished
            await host.set("POOL_START", 2)
            await ctx.tick().repeat(100)
            await host.set("POOL_KILL", 2)
            await wait(ctx, host)
            assert await host.get("LEASE_STATE", 1) == State.KILLED
        await host.set("POOL_START", 2)
        await wait(ctx, host)
        assert await host.outcome(1) == expected(one.model(TINY))

    simulate(Pool(TINY, StandIn), memories, bench)
