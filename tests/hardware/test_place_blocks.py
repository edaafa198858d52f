"""The placer against plain Python: every word of every load where the manual says, in order, and in time.

It must not know how words wait or meet; lines come as fast as DDR can bring them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from corepool.config import HardwareConfig, preset
from corepool.hardware.interfaces import LINE_LEAD
from corepool.hardware.memories import columns
from corepool.hardware.place import Placer
from corepool.isa.codec import Decoded, decode, encode
from corepool.isa.table import Opcode, Target
from support.blocks import simulate
from support.cycle_model import bursts

TINY = preset("tiny")
CONFIGS = {
    "tiny": TINY,
    "one pixel": replace(TINY, pixels=1, cores=8),
    "window wider than the channels": replace(TINY, pixels=4, cores=8, banks=2),
    "window narrower than the channels": replace(TINY, channels=8, parameter_bytes=2048, feature_bytes=1 << 14),
}
# Compute reads features three cycles after the load is complete, at the earliest; operands of additions much later.
IN_TIME = dict.fromkeys(Target, LINE_LEAD + 3) | {Target.RESULT: LINE_LEAD + 8, Target.PARAMETER: LINE_LEAD + 2}

Place = tuple[int, int, int]  # memory, column, address


def load(rng: np.random.Generator, config: HardwareConfig, target: Target) -> bytes:
    """A LOAD that meets itself in few banks, often: narrow rows, several blocks that touch in DDR."""
    pixels = int(rng.integers(1, 2 * config.feature_banks + 2)) if rng.random() < 0.8 else int(rng.integers(1, 90))
    rows, blocks = int(rng.integers(1, 12)), int(rng.integers(1, 5))
    if rng.random() < 0.2:  # many words of the same few banks
        pixels, blocks = int(rng.integers(1, 4)), 30
    row_stride = pixels + int(rng.random() < 0.2)
    values = {"rows": rows, "blocks": blocks, "pixels": pixels, "row_stride": row_stride}
    values["block_stride"] = rows * row_stride + (3 if rng.random() < 0.2 else 0)
    values["address"] = int(rng.integers(0, 1 << 12)) * config.word_bytes
    values["local"] = int(rng.integers(0, config.lut_slots if target is Target.LUT else 40))
    if target is Target.FEATURE:
        values |= {name: int(rng.integers(1, 40)) for name in ("row_pitch", "block_pitch", "first_row")}
    return encode(Opcode.LOAD, target=int(target), **values)


def places(config: HardwareConfig, op: Decoded) -> list[Place]:
    """Where the words go, in their order in DDR, by the manual's formulas."""
    v, made = op.values, []
    target, banks, factor = Target(v["target"]), config.feature_banks, max(config.pixels - 1, 1)
    cut = columns(config)[target]
    sizes = {Target.WEIGHT: config.channels, Target.PARAMETER: 8, Target.RESULT: 1, Target.LUT: 256 // config.channels}
    for block in range(v["blocks"]):
        for row in range(v["rows"]):
            for x in range(v["pixels"]):
                if target is Target.FEATURE:
                    bank = (x + factor * (v["first_row"] + row)) % banks
                    line = v["local"] + block * v["block_pitch"] + row * v["row_pitch"] + x // banks
                    made.append((int(target), bank, line % cut.depth))
                else:
                    word = v["local"] * sizes[target] + len(made)
                    made.append((int(target), word % cut.count, word // cut.count % cut.depth))
    return made


def lines_of(config: HardwareConfig, op: Decoded) -> list[list[list[int]]]:
    """Of each burst its lines, each a list of ``(place in the line)`` in order."""
    word, line, made = config.word_bytes, config.ddr.line_bytes, []
    for first, behind in bursts(config, op):
        cut: list[list[int]] = []
        for address in range(first, behind, word):
            if not cut or address % line == 0:
                cut.append([])
            cut[-1].append(address % line // word)
        made.append(cut)
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_every_word_comes_to_its_place_in_time(name: str) -> None:
    config, rng = CONFIGS[name], np.random.default_rng(len(name))
    block, ddr = Placer(config), config.ddr
    kinds = [Target.FEATURE] * 9 + [target for target in Target if target is not Target.FEATURE] * 2
    words = [load(rng, config, Target(int(rng.choice(kinds)))) for _ in range(30)]
    wanted: dict[Place, int] = {}
    parts: deque[tuple[bytes | None, dict[str, int]]] = deque()  # the instruction if it begins here, the burst
    lines: deque[tuple[int, int, list[int]]] = deque()  # number of the burst, content, values of its words
    limits: list[tuple[Target, list[int]]] = []  # of each burst the values of its words
    value = 0
    for word in words:
        op = decode(word)
        where, cuts = iter(places(config, op)), lines_of(config, op)
        for number, cut in enumerate(cuts):
            first, last = number == 0, number == len(cuts) - 1
            count = sum(map(len, cut))
            parts.append((word if first else None, {"skip": cut[0][0], "words": count, "first": first, "last": last}))
            limits.append((Target(op.values["target"]), []))
            for line in cut:
                content = 0
                for at in line:
                    value += 1
                    wanted[next(where)] = value
                    content |= value << 8 * config.word_bytes * at
                    limits[-1][1].append(value)
                lines.append((len(limits) - 1, content, [value - len(line) + 1 + n for n in range(len(line))]))
        assert next(where, None) is None

    async def bench(ctx: Any) -> None:
        memory: dict[Place, int] = {}
        written: dict[int, int] = {}  # value to cycle
        came: dict[int, int] = {}  # burst to the cycle of its last line
        told = results = now = 0
        while lines or now < max(came.values()) + 30:
            for signal in (block.plan, block.part, block.line_valid):
                ctx.set(signal, 0)
            head = lines[0][0] if lines else told
            if parts and told < head + config.load_outstanding:
                word, part = parts.popleft()
                ctx.set(block.part, 1)
                ctx.set(block.burst, part)
                if word is not None:
                    ctx.set(block.plan, 1)
                    ctx.set(block.instruction, int.from_bytes(word, "little"))
                told += 1
            slot, place = divmod(now, config.cores_per_bank)
            serves = now > 5 and place == 0 and slot % ddr.period_rounds < ddr.active_rounds
            if lines and serves and head < told - 1 + (not parts):
                number, content, _ = lines.popleft()
                ctx.set(block.line_valid, 1)
                ctx.set(block.line, content)
                came[number] = now
            for write in block.writes:
                if ctx.get(write.valid):
                    target, column = ctx.get(write.target), ctx.get(write.column)
                    assert (target, column) != (Target.RESULT, results), "compute writes there"
                    address = ctx.get(write.address) % columns(config)[Target(target)].depth
                    memory[target, column, address] = ctx.get(write.data)
                    written[ctx.get(write.data)] = now
            taken = rng.random() < 0.8
            results = results_of(ctx, block, now) if taken else -1
            ctx.set(block.result_taken, int(taken))
            await ctx.tick()
            now += 1
        assert not ctx.get(block.overrun)
        assert memory == wanted
        for number, (target, values) in enumerate(limits):
            late = max(written[each] for each in values) - came[number]
            assert late <= IN_TIME[target], (number, target, late)

    simulate(block, bench)


def results_of(ctx: Any, block: Placer, now: int) -> int:
    """The compute unit writes results one after the other."""
    column = now % (1 << len(block.result_column))
    ctx.set(block.result_column, column)
    return column
