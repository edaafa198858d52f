"""Executes instructions fast: a tile's channels are laid out as planes, so that compiled loops run along many pixels.

It must not know time, leases or the host. What is too large, too small or wraps is left to ``kernels``; both give the
same bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from corepool.device.kernels import (
    ADD,
    BLOCK_PITCH,
    COLS,
    CONV,
    DILATION_X,
    DILATION_Y,
    DWCONV,
    FEATURE,
    FIRST,
    HIGH,
    IN_BLOCKS,
    IN_COLS,
    IN_ROWS,
    KERNEL_H,
    KERNEL_W,
    LAST,
    LOAD,
    LOW,
    LUT,
    MASK,
    MODE,
    MUL,
    OPCODE,
    OPTIONS,
    OUT_BLOCKS,
    PAD_VALUE,
    PARAMETER,
    POOL,
    RESIDUAL,
    RESULT,
    ROW_PITCH,
    ROWS,
    SAVE,
    START_X,
    START_Y,
    STRIDE_X,
    STRIDE_Y,
    WEIGHT,
    ZERO_POINT,
    Floats,
    Int,
    Int8s,
    Ints,
    Memories,
    Words,
    finish_value,
    load,
    maximum,
    pointwise,
    save,
    summed,
)
from corepool.jit import PIXELS, multiply_block, njit
from corepool.jit import ROWS as SUMS_AT_ONCE

LEAST_PIXELS = 8  # below, loops along pixels are too short to pay
FEW_PIXELS = 4  # of a CONV: up to here, going from word to word beats the copies that a matrix product needs


class Scratch(NamedTuple):
    """Room for a tile: flat arrays, and the bounds within which this way is taken.

    ``terms``: products of two INT8 values that float32 sums up exactly; ``products``: of one instruction.
    """

    words: Words
    planes: Floats
    sums: Floats
    codes: Int8s
    factors: Floats  # [terms * C]
    places: Ints  # [terms]
    terms: Int
    products: Int


_compiled = njit(**OPTIONS)
_fast = njit(fastmath={"reassoc", "contract"}, **OPTIONS)


class Shape(NamedTuple):
    """How a tile is staged. With strides of 1 all taps look at one copy of the tile, each from a place of its own; else
    every tap has a copy of just what it reads. ``pitch`` pixels from row to row, ``area`` of a plane, ``run`` pixels
    from the first result to the last, in whole blocks (those at the ends of rows beyond ``COLS``, and behind the last,
    mean nothing)."""

    copies: Int
    blocks: Int
    pitch: Int
    height: Int
    area: Int
    run: Int


@_compiled
def _shape_of(op: Ints) -> Shape:
    blocks = op[IN_BLOCKS] if op[OPCODE] == CONV else op[OUT_BLOCKS]
    if op[STRIDE_Y] == 1 and op[STRIDE_X] == 1:
        copies = np.int64(1)
        pitch = op[COLS] + (op[KERNEL_W] - 1) * op[DILATION_X]
        height = op[ROWS] + (op[KERNEL_H] - 1) * op[DILATION_Y]
    else:
        copies, pitch, height = op[KERNEL_H] * op[KERNEL_W], op[COLS], op[ROWS]
    run = (op[ROWS] - 1) * pitch + op[COLS]
    return Shape(copies, blocks, pitch, height, pitch * height, (run + PIXELS - 1) // PIXELS * PIXELS)


@_compiled
def _fits(mem: Memories, op: Ints, shape: Shape, scratch: Scratch) -> Int:
    """Whether an instruction is taken here: 0 no, 1 yes, 2 a library's matrix product is faster."""
    channels = len(mem.lanes)
    kind = op[OPCODE]
    pixels = op[ROWS] * op[COLS]
    few = FEW_PIXELS if kind == CONV else LEAST_PIXELS - 1
    if not op[FIRST] or not op[LAST] or pixels * op[OUT_BLOCKS] > mem.result.shape[1] or pixels <= few:
        return 0
    taps = op[KERNEL_H] * op[KERNEL_W]
    if kind == CONV and taps * op[IN_BLOCKS] * op[OUT_BLOCKS] > mem.weight.shape[1]:
        return 0
    depth = taps * op[IN_BLOCKS] * channels if kind == CONV else taps
    room = (
        pixels >= LEAST_PIXELS
        and depth <= scratch.terms
        and shape.copies * shape.blocks * shape.area * channels + PIXELS <= scratch.planes.size
        and channels * shape.run <= scratch.sums.size
    )
    if kind == CONV and (not room or pixels * depth * op[OUT_BLOCKS] * channels > scratch.products):
        return 2
    return 1 if room else 0


@_compiled
def _stage(mem: Memories, c: Int, op: Ints, shape: Shape, scratch: Scratch) -> None:
    """Fill the planes [copy, block, channel, row, column] with the tile's values, padding included."""
    chunks = len(mem.chunks)
    for copy in range(shape.copies):
        y = op[START_Y] + (copy // op[KERNEL_W]) * op[DILATION_Y]
        x = op[START_X] + (copy % op[KERNEL_W]) * op[DILATION_X]
        for b in range(shape.blocks):
            at = (copy * shape.blocks + b) * chunks * shape.area
            for row in range(shape.height):
                _stage_row(mem, c, op, b, y + row * op[STRIDE_Y], x, shape, scratch.words, at + row * shape.pitch)
    _spread(mem, scratch, shape.copies * shape.blocks, shape.area)


@_compiled
def _stage_row(
    mem: Memories, c: Int, op: Ints, b: Int, iy: Int, ix: Int, shape: Shape, words: Words, at: Int
) -> None:  # fmt: skip
    """Copy ``pitch`` words of a row from column ``ix`` on, ``STRIDE_X`` apart; chunks of a word ``area`` apart."""
    chunks = len(mem.chunks)
    memory = mem.feature_words[c]
    lines = memory.shape[0]
    pitch, step = shape.pitch, op[STRIDE_X]
    outside = mem.chunks[0] * np.uint8(op[PAD_VALUE])  # the byte in every place
    begin, end = np.int64(0), np.int64(0)  # columns inside the tile
    if 0 <= iy < op[IN_ROWS]:
        begin = min(max(-(ix // step), np.int64(0)), pitch)
        end = max(min((op[IN_COLS] - 1 - ix) // step + 1, pitch), begin)
    for k in range(chunks):
        for x in range(begin):
            words[at + k * shape.area + x] = outside
        for x in range(end, pitch):
            words[at + k * shape.area + x] = outside
    if begin == end:
        return
    start = op[FEATURE] + b * op[BLOCK_PITCH] + iy * op[ROW_PITCH]
    turn, bits, mask = mem.turn[0] * iy, mem.turn[2], mem.turn[3]
    column = ix + begin * step
    behind = (start + (column >> bits)) % lines - (column >> bits)
    for k in range(chunks):
        place = np.uint64(at + k * shape.area + begin)
        for x in range(end - begin):
            here = column + x * step
            line = behind + (here >> bits)
            if line >= lines:
                line %= lines
            words[place + np.uint64(x)] = memory[np.uint64(line), np.uint64((here + turn) & mask), np.uint64(k)]


@_compiled
def _spread(mem: Memories, scratch: Scratch, count: Int, area: Int) -> None:
    """Turn ``count`` times the words of an area into planes of their bytes."""
    each = len(mem.lanes) // len(mem.chunks)  # bytes of a chunk
    for plane in range(count * len(mem.chunks)):
        words = scratch.words[plane * area : (plane + 1) * area]
        for i in range(each):
            place = scratch.planes[(plane * each + i) * area : (plane * each + i + 1) * area]
            shift = np.uint64(8 * i)
            for x in range(area):
                place[x] = np.float32(np.int8(words[x] >> shift))


@_fast
def _add_4(planes: Floats, p0: Int, p1: Int, p2: Int, p3: Int, w: Floats, sums: Floats) -> None:
    """Add to ``sums`` what stands at four places times a weight each."""
    f0, f1, f2, f3 = planes[p0:], planes[p1:], planes[p2:], planes[p3:]
    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
    for x in range(sums.shape[0]):
        sums[x] += (f0[x] * w0 + f1[x] * w1) + (f2[x] * w2 + f3[x] * w3)


@_compiled
def _place(op: Ints, shape: Shape, tap: Int, block: Int, channels: Int) -> Int:
    """Where the first channel of a block stands as a tap sees it."""
    if shape.copies > 1:
        return (tap * shape.blocks + block) * channels * shape.area
    y, x = (tap // op[KERNEL_W]) * op[DILATION_Y], (tap % op[KERNEL_W]) * op[DILATION_X]
    return block * channels * shape.area + y * shape.pitch + x


@_compiled
def _convolve(mem: Memories, c: Int, op: Ints, shape: Shape, scratch: Scratch, g: Int) -> None:
    """Sums of CONV, output block ``g``."""
    channels = len(mem.lanes)
    weights = mem.weight.shape[1]
    factors, places = scratch.factors, scratch.places
    taps = op[KERNEL_H] * op[KERNEL_W]
    count = np.int64(0)
    for tap in range(taps):
        for b in range(op[IN_BLOCKS]):
            at = _place(op, shape, tap, b, channels)
            word = mem.weight[c, (op[WEIGHT] + (g * taps + tap) * op[IN_BLOCKS] + b) % weights]
            for i in range(channels):
                some = np.int64(0)
                for o in range(channels):
                    some |= np.int64(word[o, i])
                    factors[count * channels + o] = word[o, i]
                places[count] = at + i * shape.area
                count += some != 0  # padded channels have no weights
    for x in range(0, shape.run, PIXELS):
        for o in range(0, channels, SUMS_AT_ONCE):
            multiply_block(
                scratch.planes, places, count, np.int64(x), factors, np.int64(o), np.int64(channels), scratch.sums,
                shape.run,
            )  # fmt: skip


@_compiled
def _window(mem: Memories, c: Int, op: Ints, shape: Shape, scratch: Scratch, g: Int) -> None:
    """Sums of DWCONV or POOL, channel block ``g``."""
    channels = len(mem.lanes)
    weights = mem.weight.shape[1]
    w, p = scratch.factors, scratch.places
    taps = op[KERNEL_H] * op[KERNEL_W]
    for o in range(channels):
        sums = scratch.sums[o * shape.run : (o + 1) * shape.run]
        for tap in range(0, taps, 4):
            for n in range(4):
                if tap + n >= taps:
                    p[n], w[n] = p[0], 0
                    continue
                p[n] = _place(op, shape, tap + n, g, channels) + o * shape.area
                w[n] = 1
                if op[OPCODE] == DWCONV:
                    ky, kx = (tap + n) // op[KERNEL_W], (tap + n) % op[KERNEL_W]
                    w[n] = mem.weight[c, (op[WEIGHT] + g * op[KERNEL_H] + ky) % weights, kx, o]
            _add_4(scratch.planes, p[0], p[1], p[2], p[3], w, sums)


@_compiled
def _requantise(mem: Memories, c: Int, op: Ints, parameter: Int, run: Int, scratch: Scratch) -> None:
    """Codes of all sums of a block, before table and residual."""
    constants = mem.parameter[c, parameter % mem.parameter.shape[1]]
    zero_point = np.float64(op[ZERO_POINT])
    low, high = np.float64(op[LOW]), np.float64(op[HIGH])
    for o in range(len(mem.lanes)):
        bias, scale = np.float64(constants[2 * o]), np.int64(constants[2 * o + 1])
        shift = max(scale >> 16 & 63, np.int64(1))
        # A sum has 33 bits with its bias, the factor 16: float64 holds the product, scaled by a power of two, exactly,
        # and with a half too up to a shift of 51; behind larger ones nothing is left but the half.
        factor = np.float64(scale & 0xFFFF) / np.float64(np.uint64(1) << np.uint64(shift))
        sums, codes = scratch.sums[o * run : (o + 1) * run], scratch.codes[o * run : (o + 1) * run]
        for x in range(run):
            value = np.floor((np.float64(sums[x]) + bias) * factor + 0.5) + zero_point
            codes[x] = np.int8(np.int32(min(max(value, low), high)))


@_compiled
def _put(mem: Memories, c: Int, op: Ints, g: Int, shape: Shape, scratch: Scratch) -> None:
    """Bring a block's codes into result words, through table and residual if the instruction says so."""
    plain = op[LUT] == 0 and op[RESIDUAL] == 0
    channels, chunks = len(mem.lanes), len(mem.chunks)
    each = channels // chunks
    memory, words = mem.result_words[c], mem.result.shape[1]
    place = (op[RESULT] + g * op[ROWS] * op[COLS]) % words
    for oy in range(op[ROWS]):
        begin = oy * shape.pitch
        if plain:
            for k in range(chunks):
                _join(scratch.codes[(k * each) * shape.run + begin :], shape.run, each, op[COLS], scratch.words)
                at = place
                for x in range(op[COLS]):
                    memory[at, k] = scratch.words[x]
                    at += 1
                    if at == words:
                        at = 0
        else:
            at = place
            for x in range(op[COLS]):
                for o in range(channels):
                    finish_value(mem, c, op, at, o, np.int64(scratch.codes[o * shape.run + begin + x]))
                at += 1
                if at == words:
                    at = 0
        place = (place + op[COLS]) % words


@_compiled
def _join(codes: Int8s, run: Int, each: Int, count: Int, words: Words) -> None:
    """Words of ``each`` bytes, of which the planes stand ``run`` apart."""
    for x in range(count):
        words[x] = np.uint8(codes[x])
    for i in range(1, each):
        plane = codes[i * run :]
        shift = np.uint64(8 * i)
        for x in range(count):
            words[x] |= np.uint64(np.uint8(plane[x])) << shift


@_compiled
def _tile(mem: Memories, c: Int, op: Ints, shape: Shape, scratch: Scratch) -> None:
    """CONV, DWCONV, or POOL of sums."""
    _stage(mem, c, op, shape, scratch)
    size = len(mem.lanes) * shape.run
    for g in range(op[OUT_BLOCKS]):
        if op[OPCODE] == CONV:
            _convolve(mem, c, op, shape, scratch, g)
        else:
            scratch.sums[:size] = 0
            _window(mem, c, op, shape, scratch, g)
        parameter = op[PARAMETER] + (0 if op[OPCODE] == POOL else g)
        _requantise(mem, c, op, parameter, shape.run, scratch)
        _put(mem, c, op, g, shape, scratch)
    mem.accumulator[c] = 0


@_compiled
def execute(mem: Memories, bases: Ints, home: Ints, cores: Ints, ops: Ints, number: Int, scratch: Scratch) -> Int:
    """Execute operations from ``number`` on, up to a CONV that a matrix product does faster; returns its number.

    ``bases`` [banks]: first byte of the window; ``home`` [cores]: bank of a core; ``cores`` [n], ``ops`` [n, 44].
    """
    while number < len(ops):
        op = ops[number]
        c = cores[number]
        kind = op[OPCODE]
        if kind == LOAD:
            load(mem, c, op, home[c], bases[home[c]])
        elif kind == SAVE:
            for b in range(bases.shape[0]):
                if op[MASK] >> b & 1:
                    save(mem, c, op, b, bases[b])
        elif kind == POOL and op[MODE] == 0:
            maximum(mem, c, op)
        elif kind in (ADD, MUL):
            pointwise(mem, c, op)
        elif kind in (CONV, DWCONV, POOL):
            shape = _shape_of(op)
            way = _fits(mem, op, shape, scratch)
            if way == 2:
                return number
            if way == 1:
                _tile(mem, c, op, shape, scratch)
            else:
                summed(mem, c, op)
        number += 1
    return number
