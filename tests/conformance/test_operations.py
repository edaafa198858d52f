"""Every instruction on every device, against the numerics: random sizes, places, paddings, shapes and tables.

It must not know how a device works; a device is a function from a configuration to something behind the protocol.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool import numerics
from corepool.config import HardwareConfig, preset
from corepool.device.base import Device
from corepool.device.rtl import RtlDevice
from corepool.device.simulator import Simulator
from corepool.isa.codec import encode
from corepool.isa.table import Opcode, PoolMode, Target
from support.bench import (
    Array,
    Bench,
    blocks_of,
    pack_constants,
    pack_depthwise,
    pack_map,
    pack_requantisation,
    pack_weights,
)

DEVICES: dict[str, tuple[str, Callable[[HardwareConfig], Device]]] = {
    "tiny": ("tiny", Simulator),
    "u200": ("u200", Simulator),
    "tiny-rtl": ("tiny", RtlDevice),
}
seeds = st.integers(0, 2**32 - 1)
everywhere = pytest.mark.parametrize(("name", "make"), DEVICES.values(), ids=DEVICES.keys())


def between(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def int8s(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(-128, 128, shape, dtype=np.int8)


class Window:
    """A random window operation over a random map: sizes, strides, dilation, padding, and the fields that say so."""

    def __init__(self, rng: np.random.Generator, config: HardwareConfig, widest: int = 4) -> None:
        self.kernel = (between(rng, 1, 4), between(rng, 1, widest))
        self.stride = (between(rng, 1, 4), between(rng, 1, 4))
        self.dilation = (between(rng, 1, 2), between(rng, 1, 2))
        self.padding = tuple(between(rng, 0, 3) for _ in range(4))
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        height = max(reach[0] - self.padding[0] - self.padding[2], 1) + between(rng, 0, 6)
        width = max(reach[1] - self.padding[1] - self.padding[3], 1) + between(rng, 0, 9)
        self.channels = between(rng, 1, 2 * config.channels)
        self.pad_value = between(rng, -128, 127)
        self.x = int8s(rng, self.channels, height, width)
        top, left, bottom, right = self.padding
        self.rows = numerics.out_size(height, self.kernel[0], self.stride[0], top, bottom, self.dilation[0])
        self.cols = numerics.out_size(width, self.kernel[1], self.stride[1], left, right, self.dilation[1])
        self.fields = {
            "kernel_h": self.kernel[0], "kernel_w": self.kernel[1],
            "stride_y": self.stride[0], "stride_x": self.stride[1],
            "dilation_y": self.dilation[0], "dilation_x": self.dilation[1], "rows": self.rows, "cols": self.cols,
            "start_y": -top, "start_x": -left, "in_rows": height, "in_cols": width, "pad_value": self.pad_value,
        }  # fmt: skip

    @property
    def options(self) -> dict[str, object]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "pad_value": self.pad_value}


class Scaling:
    """Random requantisation of some channels, and a random table or none."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self.bias = rng.integers(-20000, 20000, count)
        self.multiplier = rng.integers(1 << 15, 1 << 16, count)
        self.shift = rng.integers(17, 25, count)
        self.zero = between(rng, -128, 127)
        self.low, self.high = sorted((between(rng, -128, 127), between(rng, -128, 127)))
        self.table = int8s(rng, 256) if rng.random() < 0.5 else None
        self.slot = between(rng, 0, 1)
        self.fields = {"zero_point": self.zero, "low": self.low, "high": self.high}
        if self.table is not None:
            self.fields |= {"lut": 1, "lut_slot": self.slot}

    def requantise(self, acc: Array) -> Array:
        return numerics.requantise(acc, self.bias, self.multiplier, self.shift, self.zero, self.low, self.high)

    def look_up(self, x: Array) -> Array:
        return x if self.table is None else numerics.lut(x, self.table)

    def load(self, bench: Bench) -> None:
        if self.table is not None:
            bench.load_words(Target.LUT, self.table, self.slot)


class Constants:
    """Random constants of an addition or a product."""

    def __init__(self, rng: np.random.Generator, product: bool) -> None:
        if product:
            self.abc = between(rng, -128, 127), between(rng, -128, 127), between(rng, 1 << 14, 1 << 16)
        else:
            self.abc = between(rng, -20000, 20000), between(rng, -20000, 20000), between(rng, -(1 << 20), 1 << 20)
        self.shift = between(rng, 12, 22)
        self.low, self.high = sorted((between(rng, -128, 127), between(rng, -128, 127)))
        self.zero = between(rng, -128, 127)
        self.all = (*self.abc, self.shift, self.zero, self.low, self.high)


@everywhere
@settings(max_examples=40)
@given(seed=seeds)
def test_conv(name: str, make: Callable[[HardwareConfig], Device], seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = preset(name)
    bench = Bench(make(config))
    window, outputs = Window(rng, config), between(rng, 1, 2 * config.channels)
    blocks = blocks_of(config, outputs)
    weight = int8s(rng, outputs, window.channels, *window.kernel)
    scaling, constants = Scaling(rng, outputs), Constants(rng, product=False)
    residual, after = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    geometry = bench.load_map(
        window.x, between(rng, 0, config.feature_lines - 1), between(rng, 0, window.x.shape[1]), between(rng, 0, 2)
    )
    at, result = between(rng, 0, config.weight_words - 1), between(rng, 0, config.result_words - 1)
    parameter = between(rng, 0, config.parameter_words - 1)
    bench.load_words(Target.WEIGHT, pack_weights(config, weight), at)
    bench.load_words(
        Target.PARAMETER,
        pack_requantisation(config, scaling.bias, scaling.multiplier, scaling.shift)
        + pack_constants(config, *constants.all),
        parameter,
    )
    shortcut = int8s(rng, outputs, window.rows, window.cols)
    bench.load_words(Target.RESULT, pack_map(config, shortcut), result)
    scaling.load(bench)
    bench.ready()
    bench.add(
        Opcode.CONV, wait_prev=1, raise_next=1, first=1, last=1, shape=between(rng, 0, 2), weight=at,
        parameter=parameter,
        in_blocks=blocks_of(config, window.channels), out_blocks=blocks, result=result, residual=residual,
        lut_after_add=after, **geometry, **window.fields, **scaling.fields,
    )  # fmt: skip
    place = bench.save(blocks, window.rows, window.cols, result)
    assert bench.run().fault is None
    expected = scaling.requantise(numerics.conv2d(window.x, weight, **window.options))
    if not after:
        expected = scaling.look_up(expected)
    if residual:
        expected = numerics.add(expected, shortcut, *constants.all)
    if after:
        expected = scaling.look_up(expected)
    np.testing.assert_array_equal(bench.fetch(place, blocks, window.rows, window.cols, outputs), expected)


@everywhere
@settings(max_examples=25)
@given(seed=seeds)
def test_depthwise(name: str, make: Callable[[HardwareConfig], Device], seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = preset(name)
    bench = Bench(make(config))
    window = Window(rng, config, widest=config.channels)
    blocks = blocks_of(config, window.channels)
    weight, scaling = int8s(rng, window.channels, *window.kernel), Scaling(rng, window.channels)
    geometry = bench.load_map(window.x, between(rng, 0, 50), 1)
    bench.load_words(Target.WEIGHT, pack_depthwise(config, weight), 3)
    bench.load_words(Target.PARAMETER, pack_requantisation(config, scaling.bias, scaling.multiplier, scaling.shift), 2)
    scaling.load(bench)
    bench.ready()
    bench.add(
        Opcode.DWCONV, wait_prev=1, raise_next=1, first=1, last=1, out_blocks=blocks, weight=3, parameter=2, result=7,
        **geometry, **window.fields, **scaling.fields,
    )  # fmt: skip
    place = bench.save(blocks, window.rows, window.cols, 7)
    assert bench.run().fault is None
    sums = numerics.conv2d(window.x, weight[:, None], groups=window.channels, **window.options)
    expected = scaling.look_up(scaling.requantise(sums))
    np.testing.assert_array_equal(bench.fetch(place, blocks, window.rows, window.cols, window.channels), expected)


@everywhere
@settings(max_examples=25)
@given(seed=seeds)
def test_pool(name: str, make: Callable[[HardwareConfig], Device], seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = preset(name)
    bench = Bench(make(config))
    window, scaling = Window(rng, config), Scaling(rng, 1)
    blocks = blocks_of(config, window.channels)
    mode = PoolMode(between(rng, 0, 1))
    geometry = bench.load_map(window.x, 5)
    same = [np.repeat(values, config.channels) for values in (scaling.bias, scaling.multiplier, scaling.shift)]
    bench.load_words(Target.PARAMETER, pack_requantisation(config, *same), 6)
    scaling.load(bench)
    bench.ready()
    bench.add(
        Opcode.POOL, wait_prev=1, raise_next=1, first=1, last=1, mode=mode, out_blocks=blocks, parameter=6, result=1,
        **geometry, **window.fields, **scaling.fields,
    )  # fmt: skip
    place = bench.save(blocks, window.rows, window.cols, 1)
    assert bench.run().fault is None
    if mode is PoolMode.SUM:
        expected = scaling.requantise(numerics.pool_sum(window.x, window.kernel, **window.options))
    else:
        expected = numerics.pool_max(window.x, window.kernel, **window.options).clip(scaling.low, scaling.high)
    got = bench.fetch(place, blocks, window.rows, window.cols, window.channels)
    np.testing.assert_array_equal(got, scaling.look_up(expected.astype(np.int8)))


@everywhere
@pytest.mark.parametrize("opcode", [Opcode.ADD, Opcode.MUL])
@settings(max_examples=20)
@given(seed=seeds)
def test_pointwise(name: str, make: Callable[[HardwareConfig], Device], opcode: Opcode, seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = preset(name)
    bench = Bench(make(config))
    channels, rows, cols = between(rng, 1, 2 * config.channels), between(rng, 1, 5), between(rng, 1, 9)
    blocks = blocks_of(config, channels)
    vector = opcode is Opcode.MUL and rng.random() < 0.5
    x = int8s(rng, channels, rows, cols)
    other = int8s(rng, channels, 1, 1) if vector else int8s(rng, channels, rows, cols)
    constants, scaling = Constants(rng, opcode is Opcode.MUL), Scaling(rng, 1)
    geometry = bench.load_map(x, 9, rows // 2)
    bench.load_words(Target.RESULT, pack_map(config, other), 11)
    bench.load_words(Target.PARAMETER, pack_constants(config, *constants.all), 4)
    scaling.load(bench)
    bench.ready()
    result = 11 if rng.random() < 0.5 and not vector else 150  # results may take the operand's place
    table = {key: value for key, value in scaling.fields.items() if key.startswith("lut")}
    mode = {"mode": int(vector)} if opcode is Opcode.MUL else {}
    bench.add(
        opcode, wait_prev=1, raise_next=1, out_blocks=blocks, rows=rows, cols=cols, operand=11, parameter=4,
        result=result,
        **mode, **geometry, **table,
    )  # fmt: skip
    place = bench.save(blocks, rows, cols, result)
    assert bench.run().fault is None
    expected = (numerics.mul if opcode is Opcode.MUL else numerics.add)(x, other, *constants.all)
    np.testing.assert_array_equal(bench.fetch(place, blocks, rows, cols, channels), scaling.look_up(expected))


@everywhere
def test_sums_go_on_over_several_instructions(
    name: str, make: Callable[[HardwareConfig], Device], rng: np.random.Generator
) -> None:
    """A fully connected layer in three parts, and a sum over a map in two."""
    config = preset(name)
    bench = Bench(make(config))
    c = config.channels
    x, weight, scaling = int8s(rng, 3 * c, 1, 1), int8s(rng, c, 3 * c, 1, 1), Scaling(rng, c)
    geometry = bench.load_map(x)
    bench.load_words(Target.WEIGHT, pack_weights(config, weight))
    bench.load_words(Target.PARAMETER, pack_requantisation(config, scaling.bias, scaling.multiplier, scaling.shift))
    scaling.load(bench)
    bench.ready()
    ones = {
        "kernel_h": 1, "kernel_w": 1, "stride_y": 1, "stride_x": 1, "dilation_y": 1, "dilation_x": 1,
        "rows": 1, "cols": 1,
        "in_rows": 1, "in_cols": 1, "out_blocks": 1, **scaling.fields,
    }  # fmt: skip
    for part in range(3):
        line = geometry["feature"] + part * geometry["block_pitch"]
        bench.add(
            Opcode.CONV, wait_prev=part == 0, first=part == 0, last=part == 2, raise_next=part == 2, in_blocks=1,
            weight=part, **{**geometry, "feature": line}, **ones,
        )  # fmt: skip
    place = bench.save(1, 1, 1, 0)
    for part in range(2):
        bench.add(
            Opcode.POOL, mode=1, first=part == 0, last=part == 1, raise_next=part == 1, result=1,
            **{**geometry, "feature": part * geometry["block_pitch"]}, **ones,
        )  # fmt: skip
    pooled = bench.save(1, 1, 1, 1)
    assert bench.run().fault is None
    expected = scaling.look_up(scaling.requantise(numerics.conv2d(x, weight)))
    np.testing.assert_array_equal(bench.fetch(place, 1, 1, 1, c), expected)
    sums = x[:c].astype(np.int32) + x[c : 2 * c]
    np.testing.assert_array_equal(bench.fetch(pooled, 1, 1, 1, c), scaling.look_up(scaling.requantise(sums)))


@everywhere
def test_strided_save_into_several_banks(
    name: str, make: Callable[[HardwareConfig], Device], rng: np.random.Generator
) -> None:
    """Only the banks of the mask get the tile, and only the words of the tile."""
    config = preset(name)
    first, second = 0, config.cores_per_bank
    bench = Bench(make(config), (first, second))
    skip = 3
    words = int8s(rng, 2 * (3 * 4 + skip), config.channels)
    at = config.result_words - 5
    bench.load_words(Target.RESULT, words, at, raise_next=1)
    bench.add(Opcode.ADD, wait_prev=1, raise_next=1, out_blocks=1, rows=1, cols=1, result=at - 9)  # hands the token on
    size = 2 * 64 * config.word_bytes
    places = [bench.room(size) for _ in range(3)]
    for mask, place in zip((1, 2, 3), places, strict=True):
        bench.add(
            Opcode.SAVE, wait_prev=mask == 1, banks=mask, address=place + config.word_bytes, blocks=2, rows=3, pixels=4,
            row_stride=7, block_stride=40, local=at, block_skip=skip,
        )  # fmt: skip
    assert bench.run(encode(Opcode.END)).fault is None
    expected = np.zeros((2 * 64, config.channels), np.int8)
    for block in range(2):
        for row in range(3):
            first_word = 1 + block * 40 + row * 7
            expected[first_word : first_word + 4] = words.reshape(2, 12 + skip, -1)[block, row * 4 : row * 4 + 4]
    for mask, place in zip((1, 2, 3), places, strict=True):
        for bank in range(2):
            got = bench.device.read(bench.lease, place, size, bank).view(np.int8).reshape(-1, config.channels)
            wanted = expected if mask >> bank & 1 else np.zeros_like(expected)
            np.testing.assert_array_equal(got, wanted)


@everywhere
def test_a_core_reads_behind_sync_what_another_wrote(
    name: str, make: Callable[[HardwareConfig], Device], rng: np.random.Generator
) -> None:
    """One core writes into the other's bank; behind the SYNC that one loads it and writes it elsewhere."""
    config = preset(name)
    writer, reader = config.cores_per_bank, 0  # the home bank is the reader's
    bench = Bench(make(config), (reader, writer))
    words = int8s(rng, 40, config.channels)
    source, middle, target = bench.data(words), bench.room(words.nbytes), bench.room(words.nbytes)
    sync = encode(Opcode.SYNC, cores=1 << reader | 1 << writer)

    def move(origin: int, place: int, bank: int) -> list[bytes]:
        size = {"rows": 1, "blocks": 1, "pixels": 40}
        return [
            encode(Opcode.LOAD, target=Target.RESULT, address=origin, raise_next=1, **size),
            encode(Opcode.ADD, wait_prev=1, raise_next=1, out_blocks=1, rows=1, cols=1, result=100),
            encode(Opcode.SAVE, wait_prev=1, banks=1 << bank, address=place, **size),
        ]

    bench.code = [sync, *move(middle, target, 0)]
    assert bench.run(b"".join([*move(source, middle, 0), sync, encode(Opcode.END)])).fault is None
    got = bench.device.read(bench.lease, target, words.nbytes).view(np.int8).reshape(words.shape)
    np.testing.assert_array_equal(got, words)
    assert not bench.device.read(bench.lease, middle, words.nbytes, bank=1).any()
