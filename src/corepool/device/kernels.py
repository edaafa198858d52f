"""What instructions do to the physical memories of the cores and to DDR: compiled loops, bit-exact as in the manual.

It must not know time, leases or the host. Addresses are taken as they come: on-chip ones wrap, DDR's were checked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from corepool.jit import njit

Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Int8s = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]
Int = Any  # a machine integer: Python's outside, an int64 in compiled code
Word = Any  # int8 [C], a view

# Columns of an operation. Compiled code keeps their numbers, so they stand here and not in another module.
NAMES = (
    "opcode", "target", "banks", "address", "rows", "pixels", "blocks", "row_stride", "block_stride", "local",
    "row_pitch", "block_pitch", "first_row", "shape", "first", "last", "lut", "lut_slot", "lut_after_add",
    "residual", "mode", "in_blocks", "out_blocks", "kernel_h", "kernel_w", "stride_y", "stride_x", "dilation_y",
    "dilation_x", "cols", "pad_value", "start_y", "start_x", "in_rows", "in_cols", "zero_point", "low", "high",
    "parameter", "feature", "weight", "result", "operand", "block_skip",
)  # fmt: skip
(OPCODE, TARGET, MASK, ADDRESS, ROWS, PIXELS, BLOCKS, ROW_STRIDE, BLOCK_STRIDE, LOCAL, ROW_PITCH,
 BLOCK_PITCH, FIRST_ROW, SHAPE, FIRST, LAST, LUT, LUT_SLOT, LUT_AFTER_ADD, RESIDUAL, MODE, IN_BLOCKS,
 OUT_BLOCKS, KERNEL_H, KERNEL_W, STRIDE_Y, STRIDE_X, DILATION_Y, DILATION_X, COLS, PAD_VALUE,
 START_Y, START_X, IN_ROWS, IN_COLS, ZERO_POINT, LOW, HIGH, PARAMETER, FEATURE, WEIGHT, RESULT,
 OPERAND, BLOCK_SKIP) = range(44)  # fmt: skip

LOAD, SAVE, CONV, DWCONV, POOL, ADD, MUL = range(1, 8)
TO_FEATURE, TO_WEIGHT, TO_PARAMETER, TO_RESULT, TO_LUT = range(5)


class Memories(NamedTuple):
    """Memories of all cores, and the banks. Some arrays are views of others."""

    ddr: Int8s  # [banks, bytes]
    feature: Int8s  # [cores, lines, 2P, C]
    weight: Int8s  # [cores, words, C, C]
    weight_bytes: Int8s  # [cores, bytes], the same memory
    parameter: Int32s  # [cores, words, 2C]
    parameter_bytes: Int8s  # [cores, bytes], the same memory
    result: Int8s  # [cores, words, C]
    result_bytes: Int8s  # [cores, bytes], the same memory
    table: Int8s  # [cores, slots * 256]
    accumulator: Int32s  # [cores, P, C]
    turn: Ints  # [2]: factor of a pixel's row in its feature bank, pixels of a step
    stale: (
        Ints  # [cores, 3]: weight words that a float copy was made from (first, count), and whether they changed since
    )


class Scratch(NamedTuple):
    """Room for a small CONV as a matrix product: flat arrays, the most terms of a sum that float32 counts exactly, and
    the most products in all."""

    features: Floats
    weights: Floats
    sums: Floats
    terms: Int
    products: Int


_compiled = njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def _copy_wrapped(source: Int8s, start: Int, size: Int, memory: Int8s, place: Int) -> None:
    """Copy ``size`` bytes into a memory of its own size, round its end as often as needed."""
    whole = memory.shape[0]
    place %= whole
    done = 0
    while done < size:
        step = min(size - done, whole - place)
        memory[place : place + step] = source[start + done : start + done + step]
        done += step
        place = 0 if place + step == whole else place + step


@_compiled
def _load_features(mem: Memories, c: Int, op: Ints, source: Int8s, start: Int) -> None:
    lines, width, channels = mem.feature.shape[1], mem.feature.shape[2], mem.feature.shape[3]
    memory = mem.feature[c]
    factor = mem.turn[0]
    for b in range(op[BLOCKS]):
        for r in range(op[ROWS]):
            at = start + (b * op[BLOCK_STRIDE] + r * op[ROW_STRIDE]) * channels
            line = op[LOCAL] + b * op[BLOCK_PITCH] + r * op[ROW_PITCH]
            turn = factor * (op[FIRST_ROW] + r)
            for x in range(op[PIXELS]):
                place = memory[(line + x // width) % lines, (x + turn) % width]
                for i in range(channels):
                    place[i] = source[at + i]
                at += channels


@_compiled
def _load(mem: Memories, c: Int, op: Ints, source: Int8s, base: Int) -> None:
    start = base + op[ADDRESS]
    target = op[TARGET]
    if target == TO_FEATURE:
        _load_features(mem, c, op, source, start)
        return
    channels = mem.feature.shape[3]
    row_bytes = op[PIXELS] * channels
    if target == TO_WEIGHT:
        memory, place = mem.weight_bytes[c], op[LOCAL] * channels * channels
        first, words = op[LOCAL], op[BLOCKS] * op[ROWS] * op[PIXELS] // channels + 1
        stale = mem.stale[c]
        if first + words > mem.weight.shape[1] or (first < stale[0] + stale[1] and stale[0] < first + words):
            stale[2] = 1
    elif target == TO_PARAMETER:
        memory, place = mem.parameter_bytes[c], op[LOCAL] * channels * 8
    elif target == TO_RESULT:
        memory, place = mem.result_bytes[c], op[LOCAL] * channels
    else:
        memory, place = mem.table[c], op[LOCAL] * 256
    for b in range(op[BLOCKS]):
        for r in range(op[ROWS]):
            at = start + (b * op[BLOCK_STRIDE] + r * op[ROW_STRIDE]) * channels
            _copy_wrapped(source, at, row_bytes, memory, place)
            place += row_bytes


@_compiled
def _save(mem: Memories, c: Int, op: Ints, target: Int8s, base: Int) -> None:
    words, channels = mem.result.shape[1], mem.result.shape[2]
    memory = mem.result[c]
    place = op[LOCAL]
    for b in range(op[BLOCKS]):
        for r in range(op[ROWS]):
            at = base + op[ADDRESS] + (b * op[BLOCK_STRIDE] + r * op[ROW_STRIDE]) * channels
            for _ in range(op[PIXELS]):
                word = memory[place % words]
                for i in range(channels):
                    target[at + i] = word[i]
                at += channels
                place += 1
        place += op[BLOCK_SKIP]


@_compiled
def _clamp(value: Int, low: Int, high: Int) -> Int:
    return min(max(value, low), high)


@_compiled
def _shift(value: Int, amount: Int) -> Int:
    """Rounding right shift; the amount has six bits, and 0 counts as 1."""
    amount = max(amount & 63, 1)
    return (value + (np.int64(1) << (amount - 1))) >> amount


@_compiled
def _combine(f: Int, o: Int, words: Int32s, product: bool) -> Int:
    """ADD or MUL of two values with the constants of a parameter word."""
    a, b, c = np.int64(words[0]), np.int64(words[1]), np.int64(words[2])
    rest = np.int64(words[3])
    if product:  # zero points are INT8: only their low byte counts
        value = (f - np.int64(np.int8(a))) * (o - np.int64(np.int8(b))) * c
    else:
        value = f * a + o * b + c
    zero_point, low, high = np.int8(rest >> 8), np.int8(rest >> 16), np.int8(rest >> 24)
    return _clamp(_shift(value, rest) + zero_point, low, high)


@_compiled
def _look_up(mem: Memories, c: Int, op: Ints, value: Int) -> Int:
    return np.int64(mem.table[c, op[LUT_SLOT] * 256 + value + 128])


@_compiled
def _put(mem: Memories, c: Int, op: Ints, parameter: Int, word: Int, sums: Int32s) -> None:
    """Requantise a word of sums, with table and residual as the instruction says, into result word ``word``."""
    words = mem.parameter.shape[1]
    constants = mem.parameter[c, parameter % words]
    place = mem.result[c, word % mem.result.shape[1]]
    before = op[LUT] != 0 and op[LUT_AFTER_ADD] == 0
    for o in range(sums.shape[0]):
        scale = np.int64(constants[2 * o + 1])
        value = (np.int64(sums[o]) + np.int64(constants[2 * o])) * (scale & 0xFFFF)
        value = _clamp(_shift(value, scale >> 16) + op[ZERO_POINT], op[LOW], op[HIGH])
        if before:
            value = _look_up(mem, c, op, value)
        if op[RESIDUAL]:
            value = _combine(
                value, np.int64(place[o]), mem.parameter[c, (op[PARAMETER] + op[OUT_BLOCKS]) % words], False
            )
        if op[LUT] != 0 and not before:
            value = _look_up(mem, c, op, value)
        place[o] = np.int8(value)


@_compiled
def _inside(op: Ints, iy: Int, ix: Int) -> Any:
    return 0 <= iy < op[IN_ROWS] and 0 <= ix < op[IN_COLS]


@_compiled
def _word(mem: Memories, c: Int, op: Ints, block: Int, y: Int, x: Int) -> Word:
    """The word of tile pixel (x, y) of a channel block; it must lie inside."""
    lines, width = mem.feature.shape[1], mem.feature.shape[2]
    line = op[FEATURE] + block * op[BLOCK_PITCH] + y * op[ROW_PITCH] + x // width
    return mem.feature[c, line % lines, (x + mem.turn[0] * y) % width]


@_compiled
def _conv_sums(mem: Memories, c: Int, op: Ints, g: Int, oy: Int, ox: Int, sums: Int32s) -> None:
    """Add a pixel's products to its sums, tap by tap."""
    channels = sums.shape[0]
    words = mem.weight.shape[1]
    padding = np.full(channels, op[PAD_VALUE], np.int8)
    at = op[WEIGHT] + g * op[KERNEL_H] * op[KERNEL_W] * op[IN_BLOCKS]
    for ky in range(op[KERNEL_H]):
        iy = op[START_Y] + oy * op[STRIDE_Y] + ky * op[DILATION_Y]
        for kx in range(op[KERNEL_W]):
            ix = op[START_X] + ox * op[STRIDE_X] + kx * op[DILATION_X]
            inside = _inside(op, iy, ix)
            for b in range(op[IN_BLOCKS]):
                feature = _word(mem, c, op, b, iy, ix) if inside else padding
                weight = mem.weight[c, at % words]
                for o in range(channels):
                    total = np.int32(0)
                    for i in range(channels):
                        total += np.int32(feature[i]) * np.int32(weight[o, i])
                    sums[o] += total
                at += 1


@_compiled
def _depthwise_sums(mem: Memories, c: Int, op: Ints, g: Int, oy: Int, ox: Int, sums: Int32s) -> None:
    words = mem.weight.shape[1]
    for ky in range(op[KERNEL_H]):
        iy = op[START_Y] + oy * op[STRIDE_Y] + ky * op[DILATION_Y]
        weight = mem.weight[c, (op[WEIGHT] + g * op[KERNEL_H] + ky) % words]
        for kx in range(op[KERNEL_W]):
            ix = op[START_X] + ox * op[STRIDE_X] + kx * op[DILATION_X]
            if _inside(op, iy, ix):
                feature = _word(mem, c, op, g, iy, ix)
                for o in range(sums.shape[0]):
                    sums[o] += np.int32(feature[o]) * np.int32(weight[kx, o])
            else:
                for o in range(sums.shape[0]):
                    sums[o] += np.int32(op[PAD_VALUE]) * np.int32(weight[kx, o])


@_compiled
def _pool_sums(mem: Memories, c: Int, op: Ints, g: Int, oy: Int, ox: Int, sums: Int32s) -> None:
    for ky in range(op[KERNEL_H]):
        iy = op[START_Y] + oy * op[STRIDE_Y] + ky * op[DILATION_Y]
        for kx in range(op[KERNEL_W]):
            ix = op[START_X] + ox * op[STRIDE_X] + kx * op[DILATION_X]
            if _inside(op, iy, ix):
                feature = _word(mem, c, op, g, iy, ix)
                for o in range(sums.shape[0]):
                    sums[o] += np.int32(feature[o])
            else:
                for o in range(sums.shape[0]):
                    sums[o] += np.int32(op[PAD_VALUE])


@_compiled
def _summed(mem: Memories, c: Int, op: Ints) -> None:
    """CONV, DWCONV and POOL of sums, pixel by pixel; accumulators carry over where ``first`` or ``last`` is missing."""
    kind = op[OPCODE]
    _, shape_cols = _shape(mem.turn[1], op[SHAPE] if kind == CONV else 0)
    sums = np.zeros(mem.feature.shape[3], np.int32)
    for g in range(op[OUT_BLOCKS]):
        for oy in range(op[ROWS]):
            for ox in range(op[COLS]):
                lane = mem.accumulator[c, (oy * shape_cols + ox) % mem.turn[1]]
                sums[:] = 0
                if not op[FIRST]:
                    sums[:] = lane
                if kind == CONV:
                    _conv_sums(mem, c, op, g, oy, ox, sums)
                elif kind == DWCONV:
                    _depthwise_sums(mem, c, op, g, oy, ox, sums)
                else:
                    _pool_sums(mem, c, op, g, oy, ox, sums)
                if op[LAST]:
                    parameter = op[PARAMETER] + (0 if kind == POOL else g)
                    _put(mem, c, op, parameter, op[RESULT] + (g * op[ROWS] + oy) * op[COLS] + ox, sums)
                else:
                    lane[:] = sums
    if op[LAST]:
        mem.accumulator[c] = 0
    elif op[FIRST]:
        for lane_number in range(mem.turn[1]):  # pixels outside the map hold nothing
            if lane_number // shape_cols >= op[ROWS] or lane_number % shape_cols >= op[COLS]:
                mem.accumulator[c, lane_number] = 0


@_compiled
def _shape(pixels: Int, shape: Int) -> tuple[Int, Int]:
    if shape == 0:
        return 1, pixels
    if shape == 2:
        return pixels, 1
    side = int(np.sqrt(pixels) + 0.5)
    if side * side == pixels:
        return side, side
    return 2, pixels // 2


@_compiled
def _maximum(mem: Memories, c: Int, op: Ints) -> None:
    channels, words = mem.feature.shape[3], mem.result.shape[1]
    best = np.zeros(channels, np.int64)
    for g in range(op[OUT_BLOCKS]):
        for oy in range(op[ROWS]):
            for ox in range(op[COLS]):
                best[:] = -128
                for ky in range(op[KERNEL_H]):
                    iy = op[START_Y] + oy * op[STRIDE_Y] + ky * op[DILATION_Y]
                    for kx in range(op[KERNEL_W]):
                        ix = op[START_X] + ox * op[STRIDE_X] + kx * op[DILATION_X]
                        if _inside(op, iy, ix):
                            feature = _word(mem, c, op, g, iy, ix)
                            for o in range(channels):
                                best[o] = max(best[o], np.int64(feature[o]))
                        else:
                            for o in range(channels):
                                best[o] = max(best[o], op[PAD_VALUE])
                place = mem.result[c, (op[RESULT] + (g * op[ROWS] + oy) * op[COLS] + ox) % words]
                for o in range(channels):
                    value = _clamp(best[o], op[LOW], op[HIGH])
                    place[o] = np.int8(_look_up(mem, c, op, value) if op[LUT] else value)
    mem.accumulator[c] = 0


@_compiled
def _pointwise(mem: Memories, c: Int, op: Ints) -> None:
    words, channels = mem.result.shape[1], mem.result.shape[2]
    product = op[OPCODE] == MUL
    constants = mem.parameter[c, op[PARAMETER] % mem.parameter.shape[1]]
    number = 0
    for g in range(op[OUT_BLOCKS]):
        for y in range(op[ROWS]):
            for x in range(op[COLS]):
                feature = _word(mem, c, op, g, y, x)
                operand = mem.result[c, (op[OPERAND] + (g if product and op[MODE] else number)) % words]
                place = mem.result[c, (op[RESULT] + number) % words]
                for o in range(channels):
                    value = _combine(np.int64(feature[o]), np.int64(operand[o]), constants, product)
                    place[o] = np.int8(_look_up(mem, c, op, value) if op[LUT] else value)
                number += 1


@_compiled
def _is_plain(mem: Memories, op: Ints) -> Any:
    """Whether a CONV is complete in itself, and neither its weights nor its results wrap into themselves."""
    weights = op[OUT_BLOCKS] * op[KERNEL_H] * op[KERNEL_W] * op[IN_BLOCKS]
    results = op[OUT_BLOCKS] * op[ROWS] * op[COLS]
    fits = weights <= mem.weight.shape[1] and results <= mem.result.shape[1]
    return fits and op[FIRST] != 0 and op[LAST] != 0


@_compiled
def gather(mem: Memories, c: Int, op: Ints, first: Int, matrix: Floats) -> None:
    """Fill ``matrix`` [pixels, kernel_h * kernel_w * in_blocks * C] with what lies under pixels ``first``..."""
    lines, width, channels = mem.feature.shape[1], mem.feature.shape[2], mem.feature.shape[3]
    memory = mem.feature[c]
    factor = mem.turn[0]
    oy, ox = first // op[COLS], first % op[COLS]
    for pixel in range(matrix.shape[0]):
        row = matrix[pixel]
        at = 0
        for ky in range(op[KERNEL_H]):
            iy = op[START_Y] + oy * op[STRIDE_Y] + ky * op[DILATION_Y]
            for kx in range(op[KERNEL_W]):
                ix = op[START_X] + ox * op[STRIDE_X] + kx * op[DILATION_X]
                if not _inside(op, iy, ix):
                    row[at : at + op[IN_BLOCKS] * channels] = op[PAD_VALUE]
                    at += op[IN_BLOCKS] * channels
                    continue
                line = op[FEATURE] + iy * op[ROW_PITCH] + ix // width
                bank = (ix + factor * iy) % width
                for b in range(op[IN_BLOCKS]):
                    word = memory[(line + b * op[BLOCK_PITCH]) % lines, bank]
                    if channels == 8:  # a fixed number of rounds is unrolled
                        for i in range(8):
                            row[at + i] = word[i]
                    else:
                        for i in range(channels):
                            row[at + i] = word[i]
                    at += channels
        ox += 1
        if ox == op[COLS]:
            ox = 0
            oy += 1


@_compiled
def spread_weights(mem: Memories, c: Int, op: Ints, matrix: Floats) -> None:
    """Fill ``matrix`` [out_blocks * C, kernel_h * kernel_w * in_blocks * C] with the weights of a CONV."""
    words, channels = mem.weight.shape[1], mem.weight.shape[2]
    depth = op[KERNEL_H] * op[KERNEL_W] * op[IN_BLOCKS]
    at = op[WEIGHT]
    for g in range(op[OUT_BLOCKS]):
        for tap in range(depth):
            word = mem.weight[c, at % words]
            at += 1
            for o in range(channels):
                for i in range(channels):
                    matrix[g * channels + o, tap * channels + i] = word[o, i]


@_compiled
def finish(mem: Memories, c: Int, op: Ints, first: Int, count: Int, parts: Floats) -> None:
    """Requantise ``count`` pixels of partial sums ``parts`` [parts, pixels, out_blocks * C], exact, into results."""
    channels = mem.feature.shape[3]
    pixels = op[ROWS] * op[COLS]
    sums = np.zeros(channels, np.int32)
    for g in range(op[OUT_BLOCKS]):
        for pixel in range(count):
            for o in range(channels):
                sums[o] = np.int32(parts[0, pixel, g * channels + o])
            for part in range(1, parts.shape[0]):
                for o in range(channels):
                    sums[o] += np.int32(parts[part, pixel, g * channels + o])
            _put(mem, c, op, op[PARAMETER] + g, op[RESULT] + g * pixels + first + pixel, sums)


@_compiled
def _fits(mem: Memories, op: Ints, scratch: Scratch) -> Any:
    """Whether a CONV is small enough to be multiplied here: a library's product would gain less than its call costs."""
    channels = mem.feature.shape[3]
    pixels, outputs = op[ROWS] * op[COLS], op[OUT_BLOCKS] * channels
    depth = op[KERNEL_H] * op[KERNEL_W] * op[IN_BLOCKS] * channels
    return (
        depth <= scratch.terms
        and pixels * depth <= scratch.features.size
        and outputs * depth <= scratch.weights.size
        and pixels * outputs <= scratch.sums.size
        and pixels * outputs * depth <= scratch.products
    )


_multiplied = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})


@_multiplied
def _product(features: Floats, weights: Floats, sums: Floats) -> None:
    """``sums`` [pixels, outputs] of ``features`` [pixels, depth] and ``weights`` [outputs, depth]: whole numbers that
    float32 counts exactly, so their order does not matter."""
    for pixel in range(features.shape[0]):
        row = features[pixel]
        for o in range(weights.shape[0]):
            weight = weights[o]
            total = np.float32(0)
            for i in range(row.shape[0]):
                total += row[i] * weight[i]
            sums[pixel, o] = total


@_compiled
def _multiply(mem: Memories, c: Int, op: Ints, scratch: Scratch) -> None:
    """A CONV that fits the scratch, as a matrix product."""
    channels = mem.feature.shape[3]
    pixels, outputs = op[ROWS] * op[COLS], op[OUT_BLOCKS] * channels
    depth = op[KERNEL_H] * op[KERNEL_W] * op[IN_BLOCKS] * channels
    features = scratch.features[: pixels * depth].reshape(pixels, depth)
    weights = scratch.weights[: outputs * depth].reshape(outputs, depth)
    sums = scratch.sums[: pixels * outputs].reshape(1, pixels, outputs)
    gather(mem, c, op, 0, features)
    spread_weights(mem, c, op, weights)
    _product(features, weights, sums[0])
    finish(mem, c, op, 0, pixels, sums)
    mem.accumulator[c] = 0


@_compiled
def execute(
    mem: Memories, bases: Ints, home: Ints, cores: Ints, ops: Ints, number: Int, few: Int, scratch: Scratch
) -> Int:  # fmt: skip
    """Execute operations from ``number`` on, up to a CONV that a matrix product does faster; returns its number.

    ``bases`` [banks]: first byte of the window; ``home`` [cores]: bank of a core; ``cores`` [n], ``ops`` [n, 44];
    ``few``: a CONV of at most so many output pixels is done here, and so is one that fits the ``scratch``.
    """
    while number < len(ops):
        op = ops[number]
        c = cores[number]
        kind = op[OPCODE]
        if kind == LOAD:
            _load(mem, c, op, mem.ddr[home[c]], bases[home[c]])
        elif kind == SAVE:
            for b in range(bases.shape[0]):
                if op[MASK] >> b & 1:
                    _save(mem, c, op, mem.ddr[b], bases[b])
        elif kind == CONV and op[ROWS] * op[COLS] > few and _is_plain(mem, op):
            if not _fits(mem, op, scratch):
                return number
            _multiply(mem, c, op, scratch)
        elif kind == POOL and op[MODE] == 0:
            _maximum(mem, c, op)
        elif kind in (ADD, MUL):
            _pointwise(mem, c, op)
        elif kind in (CONV, DWCONV, POOL):
            _summed(mem, c, op)
        number += 1
    return number
