"""Blocks of a core one by one against plain Python.

It must not know the simulator; golden models are written out here or come from the cycle model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Const, Module, Signal, signed
from amaranth.lib import wiring

from corepool.config import preset
from corepool.hardware.arithmetic import bounded_shift, joined, plain_product, split_product
from corepool.hardware.decode import undefined
from corepool.hardware.dispatch import MOST_TOKENS, TokenCounter
from corepool.hardware.queues import Queue
from corepool.hardware.sums import PairSums, Sums
from corepool.hardware.walker import Walker
from corepool.isa.codec import decode, encode
from corepool.isa.table import Opcode
from support.blocks import simulate
from support.cycle_model import bursts, defined
from support.programs import streams

TINY = preset("tiny")


def test_two_pixels_share_multiplications(rng: np.random.Generator) -> None:
    """Sums of eight products for each of two pixels, the worst ones among them; and the largest features."""
    block = PairSums(preset("u200"), 2)
    corners = [-128, -1, 0, 1, 127]
    cases = [([[a] * 8, [b] * 8], [w] * 8) for a in corners for b in corners for w in corners]
    cases += [(rng.integers(-128, 128, (2, 8)).tolist(), rng.integers(-128, 128, 8).tolist()) for _ in range(200)]
    sums, largest = [0, 0], [-128, -128]
    expected = []
    for number, (features, weights) in enumerate(cases):
        begins = number % 3 == 0
        for p in range(2):
            step = sum(a * w for a, w in zip(features[p], weights, strict=True))
            sums[p] = step if begins else sums[p] + step
            largest[p] = max(features[p]) if begins else max(largest[p], *features[p])
        expected.append((*sums, *largest))

    async def bench(ctx: Any) -> None:
        for number in range(len(cases) + Sums.DELAY):
            late = number - Sums.DELAY
            ctx.set(block.valid, late >= 0)
            ctx.set(block.begins, late % 3 == 0)
            if number < len(cases):
                features, weights = cases[number]
                for i in range(8):
                    ctx.set(block.weights[i], weights[i])
                    for p in range(2):
                        ctx.set(block.features[p][i][0], features[p][i])
            if late >= 0:
                got = [ctx.get(port) for port in (*block.sums, *block.maxima)]
                assert tuple(got) == expected[late], (late, cases[late])
            await ctx.tick()

    simulate(block, bench)


class _Products(wiring.Component):
    """Both ways to multiply without a wide multiplier."""

    def __init__(self) -> None:
        io = {"wide": wiring.In(signed(32)), "narrow": wiring.In(signed(9))}
        super().__init__(io | {"plain": wiring.Out(signed(41)), "split": wiring.Out(signed(41))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.plain.eq(plain_product(self.wide, self.narrow))
        m.d.comb += self.split.eq(joined(*split_product(m, self.wide, self.narrow, "split")))
        return m


def test_products_without_multipliers(rng: np.random.Generator) -> None:
    block = _Products()

    async def bench(ctx: Any) -> None:
        for wide in [-(1 << 31), (1 << 31) - 1, 0, -1, *(int(v) for v in rng.integers(-(1 << 31), 1 << 31, 100))]:
            for narrow in [-256, 255, *(int(v) for v in rng.integers(-256, 256, 5))]:
                ctx.set(block.wide, wide)
                ctx.set(block.narrow, narrow)
                assert ctx.get(block.plain) == ctx.get(block.split) == wide * narrow

    simulate(block, bench, clock=False)


class _Shift(wiring.Component):
    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__({"value": wiring.In(signed(bits)), "by": wiring.In(6), "result": wiring.Out(signed(10))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.result.eq(bounded_shift(m, self.value, self.by, 10, "shift"))
        return m


@pytest.mark.parametrize("bits", [43, 51])
def test_shifts_with_a_bound(bits: int, rng: np.random.Generator) -> None:
    block = _Shift(bits)

    async def bench(ctx: Any) -> None:
        for by in range(64):
            for power in range(bits):
                edge = 1 << power
                for value in (edge - 1, -edge, int(rng.integers(-edge, edge)), int(rng.integers(-edge, edge))):
                    ctx.set(block.value, value)
                    ctx.set(block.by, by)
                    assert ctx.get(block.result) == max(-512, min(511, value >> by)), (value, by)

    simulate(block, bench, clock=False)


@pytest.mark.parametrize("opcode", [Opcode.LOAD, Opcode.SAVE], ids=lambda o: o.name)
def test_walker_cuts_transfers_as_the_manual_says(opcode: Opcode, rng: np.random.Generator) -> None:
    block = Walker(TINY, opcode)
    extra = {"target": 0} if opcode is Opcode.LOAD else {"banks": 1}
    words = []
    for number in range(60):
        rows, blocks, pixels = (int(v) for v in rng.integers(1, (5, 4, 150)))
        row_stride = int(rng.choice([pixels, pixels, pixels + 1, 0]))
        values = {"rows": rows, "blocks": blocks, "pixels": pixels, "row_stride": row_stride}
        values["block_stride"] = int(rng.choice([rows * pixels, rows * row_stride + 7]))
        if extra.get("target") is not None:
            extra["target"] = number % 2
        words.append(encode(opcode, address=int(rng.integers(0, 1 << 20)) * TINY.word_bytes, **values, **extra))

    async def bench(ctx: Any) -> None:
        for word in words:
            expected = bursts(TINY, decode(word))
            ctx.set(block.instruction, int.from_bytes(word, "little"))
            ctx.set(block.start, 1)
            await ctx.tick()
            ctx.set(block.start, 0)
            await ctx.tick()
            for number, (first, behind) in enumerate(expected):
                for _ in range(int(rng.integers(0, 2))):
                    await ctx.tick()
                place = ctx.get(block.first)
                assert (place.address, place.beyond) == (first, 0)
                assert ctx.get(block.words) * TINY.word_bytes == behind - first
                assert ctx.get(block.last) == (number == len(expected) - 1)
                ctx.set(block.advance, 1)
                await ctx.tick()
                ctx.set(block.advance, 0)

    simulate(block, bench)


def test_walker_tells_what_lies_beyond_4_gib() -> None:
    block = Walker(TINY, Opcode.SAVE)
    word = encode(Opcode.SAVE, banks=1, rows=3, blocks=1, pixels=1, row_stride=3 << 28, address=0)

    async def bench(ctx: Any) -> None:
        ctx.set(block.instruction, int.from_bytes(word, "little"))
        ctx.set(block.start, 1)
        await ctx.tick()
        ctx.set(block.start, 0)
        await ctx.tick()
        ctx.set(block.advance, 1)
        for row in range(3):
            place = ctx.get(block.first)
            assert place.beyond << 32 | place.address == row * (3 << 30)
            await ctx.tick()

    simulate(block, bench)


class _Verdict(wiring.Component):
    def __init__(self) -> None:
        super().__init__({"word": wiring.In(256), "bad": wiring.Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.bad.eq(undefined(self.word, TINY))
        return m


def test_undefined_words_are_those_of_the_codec(rng: np.random.Generator) -> None:
    block = _Verdict()
    stream = b"".join(streams(rng, TINY, [0], 20, 1.0)[0] for _ in range(6))
    words = [stream[at : at + 32] for at in range(0, len(stream), 32)]
    for word in words[:]:  # one bit turned round
        bit = int(rng.integers(0, 256))
        words.append((int.from_bytes(word, "little") ^ 1 << bit).to_bytes(32, "little"))

    def is_bad(word: bytes) -> bool:
        try:
            return not defined(TINY, decode(word))
        except Exception:
            return True

    async def bench(ctx: Any) -> None:
        for word in words:
            ctx.set(block.word, int.from_bytes(word, "little"))
            assert ctx.get(block.bad) == is_bad(word), decode(word)

    assert len(words) / 10 < sum(map(is_bad, words)) < len(words) * 0.9
    simulate(block, bench, clock=False)


def test_a_queue_keeps_order_and_level(rng: np.random.Generator) -> None:
    block = Queue(8, 3)

    async def bench(ctx: Any) -> None:
        held: list[int] = []
        for number in range(300):
            assert ctx.get(block.level) == len(held)
            push, pop = bool(rng.integers(2)) and len(held) < 3, bool(rng.integers(2)) and bool(held)
            if pop:
                assert ctx.get(block.head) == held[0]
            ctx.set(block.push, push)
            ctx.set(block.input, number % 256)
            ctx.set(block.pop, pop)
            held = held[int(pop) :] + [number % 256] * int(push)
            await ctx.tick()

    simulate(block, bench)


def test_tokens_can_be_taken_as_they_come_and_overflow() -> None:
    block = TokenCounter()

    async def bench(ctx: Any) -> None:
        assert not ctx.get(block.available)
        ctx.set(block.raised, 1)
        assert ctx.get(block.available)
        for _ in range(MOST_TOKENS):
            assert not ctx.get(block.overflow)
            await ctx.tick()
        ctx.set(block.taken, 1)
        assert ctx.get(block.overflow)  # even if one is taken in the same cycle

    simulate(block, bench)


def test_plain_product_of_a_single_sign_bit() -> None:
    product = plain_product(Signal(4), Const(-1, signed(1)))
    assert product.shape().signed
