"""The dispatcher against a model in plain Python, with units, stream and lease that do what they like; and its faults.

It must not know the units: whether they are free, and what they raise, is drawn at random.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from corepool.config import preset
from corepool.hardware.dispatch import Dispatcher
from corepool.hardware.registers import Fault
from corepool.isa.codec import Decoded, decode, encode
from corepool.isa.table import INSTRUCTIONS, Opcode, PoolMode, Unit, fields_of
from support.blocks import simulate
from support.cycle_model import defined

CONFIG = replace(preset("tiny"), queue_depth=2)
CORES = 0b1010
UNITS = (Unit.LOAD, Unit.COMPUTE, Unit.SAVE)
# Counters of tokens in the order of the manual: input that raises, input that tells who, unit that takes, its flag.
COUNTERS = (
    ("load_raise", "load_index", 1, "wait_prev"),
    ("compute_raise_prev", "compute_index", 0, "wait_next"),
    ("compute_raise_next", "compute_index", 2, "wait_prev"),
    ("save_raise", "save_index", 1, "wait_next"),
)
MOST = 255
KERNEL = dict.fromkeys(("kernel_h", "kernel_w", "stride_y", "stride_x", "dilation_y", "dilation_x", "in_rows"), 1)
SMALL = {"rows": 1, "blocks": 1, "pixels": 1}
MAP = {"rows": 1, "cols": 1, "out_blocks": 1}
WORDS = {
    Opcode.LOAD: SMALL,
    Opcode.SAVE: SMALL | {"banks": 1},
    Opcode.ADD: MAP,
    Opcode.POOL: MAP | KERNEL | {"in_cols": 1, "mode": int(PoolMode.MAX), "first": 1, "last": 1},
}
UNDEFINED = bytes([15]) + bytes(31)


def sync(early: int = 0, layer: int = 0, cores: int = CORES) -> bytes:
    return encode(Opcode.SYNC, cores=cores, early=early, layer=layer)


def transfer(opcode: Opcode, **flags: int) -> bytes:
    return encode(opcode, **WORDS[opcode], **flags)


def random_word(rng: np.random.Generator) -> bytes:
    """Mostly instructions of units, with any tokens."""
    kind = rng.random()
    if kind < 0.12:
        return sync(int(rng.integers(0, 4)), int(rng.integers(1 << 16)))
    opcode = list(WORDS)[rng.integers(len(WORDS))]
    names = ("wait_prev", "wait_next", "raise_prev", "raise_next")
    has = {spec.name for spec in fields_of(opcode)}
    return transfer(opcode, **{name: int(rng.integers(2)) for name in names if name in has})


def meant(word: bytes) -> Decoded | None:
    """What the manual says of a word; None: undefined."""
    try:
        op = decode(word)
    except Exception:
        return None
    return op if defined(CONFIG, op) else None


@dataclass
class Model:
    """The manual's paragraphs on dispatch, tokens, SYNC and END, a cycle at a time."""

    queues: list[deque[tuple[int, Decoded]]] = field(default_factory=lambda: [deque(), deque(), deque()])
    tokens: list[int] = field(default_factory=lambda: [0] * 4)
    index: int = 0
    stays: bool = False  # a core that has arrived early stays arrived
    just_in_time: int = 0  # tokens that were taken in the cycle in which they came, in the latest step

    def starts(self, now: dict[str, Any]) -> list[bool]:
        """Which units start: at the head of its queue, unit free, all tokens there (one raised now counts)."""
        result = []
        for unit, queue in enumerate(self.queues):
            may = bool(queue) and now["free"][unit]
            for number, (raises, _, taker, flag) in enumerate(COUNTERS):
                if taker == unit and queue and queue[0][1].values[flag]:
                    may = may and (self.tokens[number] > 0 or bool(now[raises]))
            result.append(may)
        return result

    def step(self, now: dict[str, Any]) -> dict[str, Any]:
        """What is seen in this cycle; then the state behind it."""
        go = self.starts(now)
        heads = [queue[0] if queue else None for queue in self.queues]
        word: bytes | None = now["word"]
        op = meant(word) if word is not None else None
        is_sync = op is not None and op.opcode is Opcode.SYNC
        foreign = is_sync and op.values["cores"] != CORES
        everything = not any(self.queues) and now["drained"]
        few = is_sync and op.values["early"] > len(self.queues[2])
        soon = not now["drain"] and ((few and now["free"][2] and not go[2] and now["written"]) or self.stays)
        seen: dict[str, Any] = {"go": go, "index": self.index, "ready": False, "fault": None}
        seen["heads"] = [head[0] if head and started else None for head, started in zip(heads, go, strict=True)]
        seen["arrived"] = is_sync and not foreign and not now["release"] and (everything or soon)
        seen["layer"] = op.values["layer"] if seen["arrived"] else None
        seen["ended"] = op is not None and op.opcode is Opcode.END and everything
        unit = INSTRUCTIONS[op.opcode].unit if op is not None else None
        if unit in UNITS:
            seen["ready"] = len(self.queues[UNITS.index(unit)]) < CONFIG.queue_depth
        elif is_sync:
            seen["ready"] = now["release"]
        if word is not None and op is None:
            seen["fault"] = (Fault.UNDEFINED, self.index)
        elif foreign:
            seen["fault"] = (Fault.FOREIGN_SYNC, self.index)
        elif word is None and now["stream_end"]:
            seen["fault"] = (Fault.STREAM_END, self.index)
        else:
            for number, (raises, who, _, _) in reversed(list(enumerate(COUNTERS))):
                if now[raises] and self.tokens[number] == MOST:
                    seen["fault"] = (Fault.TOKENS, now[who])
        self._after(now, seen, op, unit, is_sync and soon)
        return seen

    def _after(self, now: dict[str, Any], seen: dict[str, Any], op: Any, unit: Any, early: bool) -> None:
        self.just_in_time = 0
        for number, (raises, _, taker, flag) in enumerate(COUNTERS):
            taken = seen["go"][taker] and self.queues[taker][0][1].values[flag]
            self.just_in_time += bool(taken) and self.tokens[number] == 0
            self.tokens[number] += int(now[raises]) - int(taken)
        for queue, started in zip(self.queues, seen["go"], strict=True):
            if started:
                queue.popleft()
        if seen["ready"]:
            if unit in UNITS:
                self.queues[UNITS.index(unit)].append((self.index, op))
            self.index += 1
        self.stays = (self.stays or early) and not now["release"]


IDLE: dict[str, Any] = {
    "word": None, "free": [False] * 3, "drained": False, "written": False, "drain": False, "release": False,
    "stream_end": False, "load_raise": 0, "compute_raise_prev": 0, "compute_raise_next": 0, "save_raise": 0,
    "load_index": 0, "compute_index": 0, "save_index": 0,
}  # fmt: skip


def put(ctx: Any, block: Dispatcher, now: dict[str, Any]) -> None:
    ctx.set(block.instruction.valid, int(now["word"] is not None))
    ctx.set(block.instruction.payload, int.from_bytes(now["word"] or b"", "little"))
    ctx.set(block.free, sum(int(free) << unit for unit, free in enumerate(now["free"])))
    for name in set(IDLE) - {"word", "free"}:
        ctx.set(getattr(block, name), int(now[name]))


def look(ctx: Any, block: Dispatcher) -> dict[str, Any]:
    go = [bool(ctx.get(block.go) >> unit & 1) for unit in range(3)]
    arrived = bool(ctx.get(block.arrived))
    fault = (Fault(ctx.get(block.fault_code)), ctx.get(block.fault_index)) if ctx.get(block.fault) else None
    return {
        "go": go,
        "heads": [ctx.get(block.heads[unit].index) if started else None for unit, started in enumerate(go)],
        "index": ctx.get(block.index),
        "ready": bool(ctx.get(block.instruction.ready)),
        "arrived": arrived,
        "layer": ctx.get(block.layer) if arrived else None,
        "ended": bool(ctx.get(block.ended)),
        "fault": fault,
    }


async def begin(ctx: Any, block: Dispatcher) -> Model:
    """Empty and running, with the model of that."""
    put(ctx, block, IDLE)
    ctx.set(block.lease_cores, CORES)
    ctx.set(block.run, 0)
    ctx.set(block.reset, 1)
    await ctx.tick()
    ctx.set(block.reset, 0)
    ctx.set(block.run, 1)
    return Model()


async def both(ctx: Any, block: Dispatcher, model: Model, now: dict[str, Any]) -> dict[str, Any]:
    """One cycle of block and model, which must look alike."""
    put(ctx, block, now)
    expected = model.step(now)
    assert look(ctx, block) == expected
    await ctx.tick()
    return expected


def any_cycle(rng: np.random.Generator, tokens: list[int], word: bytes | None, busy: float) -> dict[str, Any]:
    """Units that are free with some chance and raise few tokens but where there are none, so that these are waited for;
    and a lease that releases now and then."""
    chance = {name: bool(rng.random() < busy) for name in ("drained", "written")}
    for (raises, *_), there in zip(COUNTERS, tokens, strict=True):
        chance[raises] = bool(rng.random() < (0.02 if there else 0.2))
    indices = {name: int(rng.integers(1 << 32)) for name in ("load_index", "compute_index", "save_index")}
    free = [bool(rng.random() < busy) for _ in range(3)]
    drain, release = bool(rng.random() < 0.2), bool(rng.random() < 0.15)
    return IDLE | chance | indices | {"word": word, "free": free, "drain": drain, "release": release}


@pytest.mark.parametrize("busy", [0.2, 0.5, 0.9])
def test_every_cycle_is_as_the_manual_says(busy: float, rng: np.random.Generator) -> None:
    """Streams of good instructions, among them SYNCs of every kind, that end in END, a mistake, or nothing."""
    block, seen, faults = Dispatcher(CONFIG), Counter[str](), Counter[Fault]()

    async def bench(ctx: Any) -> None:
        for last in (encode(Opcode.END), UNDEFINED, sync(cores=CORES | 1), transfer(Opcode.LOAD)[:31] + b"\1", None):
            model = await begin(ctx, block)
            stream = deque([*(random_word(rng) for _ in range(40)), *([last] if last is not None else [])])
            for _ in range(600):
                shown = stream[0] if stream and rng.random() < 0.8 else None
                now = any_cycle(rng, model.tokens, shown, busy) | {"stream_end": not stream}
                happened = await both(ctx, block, model, now)
                if happened["ready"]:
                    stream.popleft()
                seen.update(name for name in ("arrived", "ended") if happened[name])
                seen["go"] += sum(happened["go"])
                seen["taken as it came"] += model.just_in_time
                if happened["fault"] is not None:
                    faults[happened["fault"][0]] += 1
                    break
                if happened["ended"]:
                    break

    simulate(block, bench)
    assert seen["ended"] == 1
    assert seen["arrived"] > 5
    assert seen["go"] > 100
    assert seen["taken as it came"] > 3
    assert faults == {Fault.UNDEFINED: 2, Fault.FOREIGN_SYNC: 1, Fault.STREAM_END: 1}


@pytest.mark.parametrize("number", range(4))
def test_a_token_too_many_is_told_with_who_raised_it(number: int, rng: np.random.Generator) -> None:
    """The 256th, even if one is taken in the same cycle; below that no number of tokens is a fault."""
    raises, who, taker, flag = COUNTERS[number]
    opcode = (Opcode.LOAD, Opcode.ADD, Opcode.SAVE)[taker]
    block = Dispatcher(CONFIG)

    async def bench(ctx: Any) -> None:
        model = await begin(ctx, block)
        await both(ctx, block, model, IDLE | {"word": transfer(opcode, **{flag: 1})})
        for _ in range(MOST):
            assert (await both(ctx, block, model, IDLE | {raises: 1}))["fault"] is None
        free = [unit == taker for unit in range(3)]
        index = int(rng.integers(1 << 32))
        last = await both(ctx, block, model, IDLE | {raises: 1, who: index, "free": free})
        assert last["go"][taker]
        assert last["fault"] == (Fault.TOKENS, index)

    simulate(block, bench)


def test_of_tokens_too_many_in_one_cycle_the_first_unit_is_told() -> None:
    """Of instructions that end in one cycle the order is that of their units."""
    block = Dispatcher(CONFIG)
    raises = dict.fromkeys((name for name, *_ in COUNTERS), 1)
    indices = {"load_index": 5, "compute_index": 6, "save_index": 7}

    async def bench(ctx: Any) -> None:
        for first, index in (("load_raise", 5), ("compute_raise_prev", 6), ("compute_raise_next", 6)):
            model = await begin(ctx, block)
            late = dict(list(raises.items())[list(raises).index(first) :])
            for _ in range(MOST):
                assert (await both(ctx, block, model, IDLE | late))["fault"] is None
            assert (await both(ctx, block, model, IDLE | late | indices))["fault"] == (Fault.TOKENS, index)

    simulate(block, bench)


def test_of_faults_in_one_cycle_the_first_of_the_table_is_told() -> None:
    block = Dispatcher(CONFIG)

    async def bench(ctx: Any) -> None:
        for word, code in ((UNDEFINED, Fault.UNDEFINED), (sync(cores=1), Fault.FOREIGN_SYNC), (None, Fault.STREAM_END)):
            model = await begin(ctx, block)
            await both(ctx, block, model, IDLE | {"word": transfer(Opcode.LOAD)})
            for _ in range(MOST):
                await both(ctx, block, model, IDLE | {"load_raise": 1})
            end = {"word": word, "stream_end": word is None, "load_raise": 1, "load_index": 77}
            assert (await both(ctx, block, model, IDLE | end))["fault"] == (code, 1)

    simulate(block, bench)


def test_mistakes_are_found_while_queues_are_full_and_units_busy() -> None:
    """A full queue holds what is meant for it, and all behind it, but no fault waits for a queue."""
    block = Dispatcher(CONFIG)

    async def bench(ctx: Any) -> None:
        for last, code in ((UNDEFINED, Fault.UNDEFINED), (sync(cores=2), Fault.FOREIGN_SYNC)):
            model = await begin(ctx, block)
            for _ in range(CONFIG.queue_depth):
                assert (await both(ctx, block, model, IDLE | {"word": transfer(Opcode.SAVE)}))["ready"]
            for _ in range(3):
                assert not (await both(ctx, block, model, IDLE | {"word": transfer(Opcode.SAVE)}))["ready"]
            assert (await both(ctx, block, model, IDLE | {"word": last}))["fault"] == (code, CONFIG.queue_depth)

    simulate(block, bench)


def test_an_early_sync_waits_for_saves_alone_and_stays_arrived() -> None:
    block = Dispatcher(CONFIG)
    save, quiet = transfer(Opcode.SAVE), {"free": [False, False, True], "written": True}

    async def bench(ctx: Any) -> None:
        model = await begin(ctx, block)
        for word in (transfer(Opcode.LOAD), save, save):
            await both(ctx, block, model, IDLE | {"word": word})
        at = {"word": sync(early=2, layer=9)}
        calm = IDLE | at | {"written": True}
        assert not (await both(ctx, block, model, calm))["arrived"]  # two saves wait; one may
        started = await both(ctx, block, model, IDLE | at | quiet)
        assert started["go"] == [False, False, True]
        assert not started["arrived"]  # the unit starts one
        assert not (await both(ctx, block, model, calm))["arrived"]  # and works on it
        assert not (await both(ctx, block, model, IDLE | at | {"free": [False, False, True]}))["go"][0]
        assert model.stays is False
        one_left = await both(ctx, block, model, IDLE | at | {"free": [True, False, False], "written": True})
        assert one_left["go"] == [True, False, False]  # loads go on meanwhile
        assert not one_left["arrived"]

    simulate(block, bench)


def test_an_early_arrival_holds_until_the_lease_is_to_drain() -> None:
    block = Dispatcher(CONFIG)
    at = {"word": sync(early=1, layer=5)}

    async def bench(ctx: Any) -> None:
        model = await begin(ctx, block)
        await both(ctx, block, model, IDLE | {"word": transfer(Opcode.LOAD)})
        met = await both(ctx, block, model, IDLE | at | {"free": [False, False, True], "written": True})
        assert (met["arrived"], met["layer"]) == (True, 5)
        assert (await both(ctx, block, model, IDLE | at))["arrived"]  # writes are under way again: it stays
        assert not (await both(ctx, block, model, IDLE | at | {"drain": True}))["arrived"]  # the load is in its queue
        assert (await both(ctx, block, model, IDLE | at | {"drain": True, "free": [True] * 3}))["go"][0]
        assert not (await both(ctx, block, model, IDLE | at | {"drain": True}))["arrived"]
        assert (await both(ctx, block, model, IDLE | at | {"drain": True, "drained": True}))["arrived"]
        gone = await both(ctx, block, model, IDLE | at | {"release": True})
        assert (gone["ready"], gone["arrived"]) == (True, False)
        assert not (await both(ctx, block, model, IDLE | at))["arrived"]  # the next one begins anew

    simulate(block, bench)
