"""The core's arithmetic block by block, against whole numbers of Python and the formulas of the manual.

It must not know how products are packed or shifts are built.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Fragment
from amaranth.sim import Simulator

from corepool.config import preset
from corepool.hardware.operands import folds
from corepool.hardware.requant import Requantiser
from corepool.hardware.sums import Sums
from corepool.isa.codec import encode
from corepool.isa.table import Opcode

TINY = preset("tiny")
CHANNELS = TINY.channels


def run(block: Any, bench: Any) -> None:
    simulator = Simulator(block)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def wrapped(value: int, bits: int) -> int:
    """The value in so many bits, signed."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def scaled(value: int, shift: int, zero: int, low: int, high: int) -> int:
    """Rounding shift, zero point and bounds."""
    shift = max(shift & 63, 1)
    return min(max(((value + (1 << (shift - 1))) >> shift) + zero, low), high)


def corners(rng: np.random.Generator, bits: int) -> int:
    """A number of so many bits, often one at the edge."""
    if rng.random() < 0.3:
        return int(rng.choice([-(1 << bits - 1), (1 << bits - 1) - 1, 0, -1, 1]))
    return int(rng.integers(-(1 << bits - 1), 1 << bits - 1)) >> int(rng.integers(0, bits))


@dataclass(frozen=True)
class Device:
    """A platform whose multipliers take so many bits."""

    multiplier_bits: int


@pytest.mark.parametrize(("pixels", "bits"), [(1, 27), (2, 27), (4, 27), (2, 18), (4, 18)])
def test_sums_of_random_groups(pixels: int, bits: int) -> None:
    """Groups of any length, with steps that do not count, and groups that go on from the one before."""
    rng = np.random.default_rng(pixels)
    config = replace(TINY, pixels=pixels, cores=4)
    block, fold = Sums(config), folds(config)
    steps = []
    for _ in range(40):
        length, keep = int(rng.integers(1, 6)), bool(rng.integers(2))
        for number in range(length):
            extreme = rng.random() < 0.2
            features = rng.integers(-128, 128, (pixels, CHANNELS, CHANNELS, fold))
            features[..., 1:] = 0  # of folded lanes only one carries a value
            if extreme:
                features[..., 0] = rng.choice([-128, 127])
            weights = np.full((CHANNELS, CHANNELS), -128) if extreme else rng.integers(-128, 128, (CHANNELS, CHANNELS))
            steps.append((features, weights, rng.random() < 0.8 or number == 0, number == 0, keep))
    wanted: list[np.ndarray] = []
    total = np.zeros((pixels, CHANNELS), np.int64)
    for features, weights, valid, begins, keep in steps:
        if valid:
            start = 0 if begins and not keep else total
            total = start + np.einsum("poif,oi->po", features, weights)
        wanted.append(total)

    async def bench(ctx: Any) -> None:
        for now in range(len(steps) + block.DELAY):
            if now < len(steps):
                features, weights, *_ = steps[now]
                for place in np.ndindex(features.shape):
                    signal = block.features
                    for index in place:
                        signal = signal[index]
                    ctx.set(signal, int(features[place]))
                for output in range(CHANNELS):
                    for number in range(CHANNELS):
                        ctx.set(block.weights[output][number], int(weights[output, number]))
            at = now - block.DELAY
            ctx.set(block.valid, int(at >= 0 and steps[at][2]))
            if at >= 0:
                ctx.set(block.begins, int(steps[at][3]))
                ctx.set(block.keep, int(steps[at][4]))
                if steps[at][2]:
                    seen = [[ctx.get(block.sums[p][o]) for o in range(CHANNELS)] for p in range(pixels)]
                    assert seen == [[wrapped(int(v), 32) for v in row] for row in wanted[at]], at
            await ctx.tick()

    design = Fragment.get(block, Device(bits))
    assert len(design.subfragments) == CHANNELS * (pixels if bits < 27 else max(pixels // 2, 1))
    run(design, bench)


def test_maxima_of_random_groups() -> None:
    rng = np.random.default_rng(9)
    block, fold = Sums(TINY), folds(TINY)
    steps = [
        (rng.integers(-128, 128, (TINY.pixels, CHANNELS)), rng.random() < 0.8, rng.random() < 0.3) for _ in range(80)
    ]
    steps[0] = (steps[0][0], True, True)
    best = steps[0][0]
    wanted = []
    for values, valid, begins in steps:
        if valid:
            best = values if begins else np.maximum(best, values)
        wanted.append(best)

    async def bench(ctx: Any) -> None:
        for now in range(len(steps) + block.DELAY):
            if now < len(steps):
                for p in range(TINY.pixels):
                    for output in range(CHANNELS):
                        for lane in range(CHANNELS):
                            for part in range(fold):  # a lane without a tap repeats one that is there
                                ctx.set(block.features[p][output][lane][part], int(steps[now][0][p, output]))
            at = now - block.DELAY
            ctx.set(block.valid, int(at >= 0 and steps[at][1]))
            if at >= 0:
                ctx.set(block.begins, int(steps[at][2]))
                if steps[at][1]:
                    seen = [[ctx.get(block.maxima[p][o]) for o in range(CHANNELS)] for p in range(TINY.pixels)]
                    assert seen == wanted[at].tolist(), at
            await ctx.tick()

    run(block, bench)


@dataclass
class Case:
    """An instruction's constants, and what it makes of a sum."""

    rng: np.random.Generator
    kind: str

    def __post_init__(self) -> None:
        rng = self.rng
        self.flags = {name: int(rng.integers(2)) for name in ("lut", "residual", "lut_after_add")}
        self.zero, self.low, self.high = (int(v) for v in rng.integers(-128, 128, 3))
        self.a, self.b, self.c = (corners(rng, 32) for _ in range(3))
        self.shift = int(rng.integers(0, 45))
        self.second = tuple(int(v) for v in rng.integers(-128, 128, 3))  # zero point and bounds of the constants
        self.table = [int(v) for v in rng.permutation(np.arange(-128, 128))]

    @property
    def opcode(self) -> Opcode:
        return {"conv": Opcode.CONV, "add": Opcode.ADD, "mul": Opcode.MUL}.get(self.kind, Opcode.POOL)

    def word(self) -> int:
        fields = {"lut": self.flags["lut"]}
        if self.kind == "conv":
            fields |= self.flags
        if self.kind in ("conv", "sum", "maximum"):
            fields |= {"zero_point": self.zero, "low": self.low, "high": self.high}
        return int.from_bytes(encode(self.opcode, **fields, **_GEOMETRY[self.opcode]), "little")

    def look_up(self, value: int) -> int:
        return self.table[value + 128] if self.flags["lut"] else value

    def added(self, feature: int, operand: int) -> int:
        return scaled(feature * self.a + operand * self.b + self.c, self.shift, *self.second)

    def result(self, total: int, bias: int, multiplier: int, shift: int, operand: int) -> int:
        feature = wrapped(total, 8)
        if self.kind == "add":
            return self.look_up(self.added(feature, operand))
        if self.kind == "mul":
            product = (feature - wrapped(self.a, 8)) * (operand - wrapped(self.b, 8)) * self.c
            return self.look_up(scaled(product, self.shift, *self.second))
        if self.kind == "maximum":
            return self.look_up(min(max(feature, self.low), self.high))
        made = scaled((total + bias) * multiplier, shift, self.zero, self.low, self.high)
        if self.kind == "sum" or not (self.flags["residual"] or self.flags["lut_after_add"]):
            return self.look_up(made)
        if not self.flags["lut_after_add"]:
            return self.added(self.look_up(made), operand)
        return self.look_up(self.added(made, operand) if self.flags["residual"] else made)


_WINDOWED = dict.fromkeys(("kernel_h", "kernel_w", "stride_y", "stride_x", "dilation_y", "dilation_x", "in_rows",
                           "in_cols", "first", "last"), 1)  # fmt: skip
_SIZE = {"rows": 1, "cols": 1, "out_blocks": 1}
_GEOMETRY = {
    Opcode.CONV: _SIZE | _WINDOWED | {"in_blocks": 1},
    Opcode.POOL: _SIZE | _WINDOWED,
    Opcode.ADD: _SIZE,
    Opcode.MUL: _SIZE,
}


@pytest.mark.parametrize("kind", ["conv", "sum", "maximum", "add", "mul"])
def test_results_of_random_sums(kind: str) -> None:
    """A pixel a cycle; the constants stay while an instruction's results pass."""
    rng = np.random.default_rng(len(kind) + ord(kind[0]))
    block = Requantiser(TINY)

    async def one(ctx: Any, case: Case) -> None:
        ctx.set(block.op, case.word())
        for name in ("conv", "pool", "maximum", "add", "mul"):
            here = name == kind or (name == "pool" and kind in ("sum", "maximum"))
            ctx.set(getattr(block.plan, name), int(here))
        for name in ("a", "b", "c", "shift"):
            ctx.set(getattr(block.constants, name), getattr(case, name))
        for name, value in zip(("zero_point", "low", "high"), case.second, strict=True):
            ctx.set(getattr(block.constants, name), value)
        pixels = 12
        expected: deque[list[int]] = deque()
        asked = [0] * CHANNELS
        for now in range(pixels + block.DELAY):
            if now < pixels:
                row, operands = [], 0
                for number in range(CHANNELS):
                    total, bias = corners(rng, 32), corners(rng, 32)
                    if kind == "sum" or kind == "conv":
                        bias = max(min(bias, (1 << 31) - 1 - total), -(1 << 31) - total)
                    multiplier, shift = int(rng.integers(1 << 16)), int(rng.integers(0, 48))
                    operand = int(rng.integers(-128, 128))
                    ctx.set(block.sums[number], total)
                    for name, value in (("bias", bias), ("multiplier", multiplier), ("shift", shift)):
                        ctx.set(getattr(block.channels[number], name), value)
                    operands |= (operand & 255) << 8 * number
                    row.append(case.result(total, bias, multiplier, shift, operand))
                ctx.set(block.operand, operands)
                expected.append(row)
            for number in range(CHANNELS):  # the tables answer a cycle later
                ctx.set(block.entry[number], case.table[wrapped(asked[number], 8) + 128] & 255)
            asked = [ctx.get(index) for index in block.index]
            if now >= block.DELAY:
                word = ctx.get(block.result)
                assert [wrapped(word >> 8 * n, 8) for n in range(CHANNELS)] == expected.popleft(), case
            await ctx.tick()

    async def bench(ctx: Any) -> None:
        for _ in range(14):
            await one(ctx, Case(rng, kind))

    run(block, bench)
