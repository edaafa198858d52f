"""What instructions do to the physical memories of the cores and to DDR: compiled loops, bit-exact as in the manual.

This is the plain way, which takes everything; ``planes`` does what is usual, and faster. It must not know time, leases
or the host. Addresses are taken as they come: on-chip ones wrap, DDR's were checked.
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
Words = npt.NDArray[np.uint64]  # or uint32
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
    turn: Ints  # [4]: factor of a pixel's row in its feature bank, pixels of a step; log2 of 2P, 2P - 1
    # [cores, 3]: weight words that a float copy was made from (first, count), and whether they changed since
    stale: Ints
    sums: Int32s  # [C], room for one word of sums
    padding: Int8s  # [C], likewise
    # The same memories in words of C bytes, each of K chunks: what is only moved is moved in chunks.
    ddr_words: Words  # [banks, words, K]
    feature_words: Words  # [cores, lines, 2P, K]
    result_words: Words  # [cores, words, K]
    # Compiled code knows the lengths of tuples, so loops over the bytes of a word have a fixed number of rounds.
    lanes: tuple[Int, ...]  # C of them
    chunks: tuple[Int, ...]  # K times the number that has 1 in each byte


# Nothing is allocated here, so arrays need no counting of references: it would take most of the time of a small tile.
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
_compiled = njit(**OPTIONS)


@_compiled
def _copy_wrapped(source: Int8s, start: Int, size: Int, memory: Int8s, place: Int) -> None:
    """Copy ``size`` bytes into a memory of its own size, round its end as often as needed."""
    whole = memory.shape[0]
    place %= whole
    done = 0
    while done < size:
        step = min(size - done, whole - place)
        for n in range(step):
            memory[np.uint64(place + n)] = source[np.uint64(start + done + n)]
        done += step
        place = 0 if place + step == whole else place + step


@_compiled
def _load_features(mem: Memories, c: Int, op: Ints, bank: Int, start: Int) -> None:
    source, memory = mem.ddr_words[bank], mem.feature_words[c]
    lines, bits, mask = memory.shape[0], mem.turn[2], mem.turn[3]
    for b in range(op[BLOCKS]):
        for r in range(op[ROWS]):
            at = start // len(mem.lanes) + b * op[BLOCK_STRIDE] + r * op[ROW_STRIDE]
            line = (op[LOCAL] + b * op[BLOCK_PITCH] + r * op[ROW_PITCH]) % lines
            turn = mem.turn[0] * (op[FIRST_ROW] + r)
            for x in range(op[PIXELS]):
                place = line + (x >> bits)
                if place >= lines:
                    place %= lines
                for k in range(len(mem.chunks)):
                    word = source[np.uint64(at + x), np.uint64(k)]
                    memory[np.uint64(place), np.uint64((x + turn) & mask), np.uint64(k)] = word


@_compiled
def load(mem: Memories, c: Int, op: Ints, bank: Int, base: Int) -> None:
    """LOAD from a bank in which the window begins at ``base``."""
    start = base + op[ADDRESS]
    target = op[TARGET]
    if target == TO_FEATURE:
        _load_features(mem, c, op, bank, start)
        return
    channels = len(mem.lanes)
    source = mem.ddr[bank]
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
def save(mem: Memories, c: Int, op: Ints, bank: Int, base: Int) -> None:
    """SAVE to a bank in which the window begins at ``base``."""
    memory, target = mem.result_words[c], mem.ddr_words[bank]
    words = memory.shape[0]
    start = (base + op[ADDRESS]) // len(mem.lanes)
    place = op[LOCAL] % words
    for b in range(op[BLOCKS]):
        for r in range(op[ROWS]):
            at = start + b * op[BLOCK_STRIDE] + r * op[ROW_STRIDE]
            for x in range(op[PIXELS]):
                for k in range(len(mem.chunks)):
                    target[at + x, k] = memory[place, k]
                place += 1
                if place == words:
                    place = 0
        place = (place + op[BLOCK_SKIP]) % words


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
def finish_value(mem: Memories, c: Int, op: Ints, word: Int, o: Int, value: Int) -> None:
    """Bring a value through table and residual as the instruction says, into lane ``o`` of a result word."""
    if op[LUT] != 0 and op[LUT_AFTER_ADD] == 0:
        value = _look_up(mem, c, op, value)
    if op[RESIDUAL]:
        constants = mem.parameter[c, (op[PARAMETER] + op[OUT_BLOCKS]) % mem.parameter.shape[1]]
        value = _combine(value, np.int64(mem.result[c, word, o]), constants, False)
    if op[LUT] != 0 and op[LUT_AFTER_ADD] != 0:
        value = _look_up(mem, c, op, value)
    mem.result[c, word, o] = np.int8(value)


@_compiled
def _put(mem: Memories, c: Int, op: Ints, parameter: Int, word: Int, sums: Int32s) -> None:
    """Requantise a word of sums, with table and residual as the instruction says, into result word ``word``."""
    constants = mem.parameter[c, parameter % mem.parameter.shape[1]]
    word %= mem.result.shape[1]
    for o in range(len(mem.lanes)):
        scale = np.int64(constants[2 * o + 1])
        value = (np.int64(sums[o]) + np.int64(constants[2 * o])) * (scale & 0xFFFF)
        value = _clamp(_shift(value, scale >> 16) + op[ZERO_POINT], op[LOW], op[HIGH])
        finish_value(mem, c, op, word, o, value)


@_compiled
def _inside(op: Ints, iy: Int, ix: Int) -> Any:
    return 0 <= iy < op[IN_ROWS] and 0 <= ix < op[IN_COLS]


@_compiled
def _spot(mem: Memories, op: Ints, block: Int, y: Int, x: Int) -> tuple[Int, Int]:
    """Line and bank of tile pixel (x, y) of a channel block; it must lie inside."""
    line = op[FEATURE] + block * op[BLOCK_PITCH] + y * op[ROW_PITCH] + (x >> mem.turn[2])
    return line % mem.feature.shape[1], (x + mem.turn[0] * y) & mem.turn[3]


@_compiled
def _conv_sums(mem: Memories, c: Int, op: Ints, g: Int, oy: Int, ox: Int, sums: Int32s) -> None:
    """Add a pixel's products to its sums, tap by tap."""
    channels = len(mem.lanes)
    words = mem.weight.shape[1]
    padding = mem.padding
    padding[:] = op[PAD_VALUE]
    at = op[WEIGHT] + g * op[KERNEL_H] * op[KERNEL_W] * op[IN_BLOCKS]
    for ky in range(op[KERNEL_H]):
        iy = op[START_Y] + oy * op[STRIDE_Y] + ky * op[DILATION_Y]
        for kx in range(op[KERNEL_W]):
            ix = op[START_X] + ox * op[STRIDE_X] + kx * op[DILATION_X]
            inside = _inside(op, iy, ix)
            for b in range(op[IN_BLOCKS]):
                line, bank = _spot(mem, op, b, iy, ix) if inside else (np.int64(0), np.int64(0))
                feature = mem.feature[c, line, bank] if inside else padding
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
                line, bank = _spot(mem, op, g, iy, ix)
                for o in range(len(mem.lanes)):
                    sums[o] += np.int32(mem.feature[c, line, bank, o]) * np.int32(weight[kx, o])
            else:
                for o in range(len(mem.lanes)):
                    sums[o] += np.int32(op[PAD_VALUE]) * np.int32(weight[kx, o])


@_compiled
def _pool_sums(mem: Memories, c: Int, op: Ints, g: Int, oy: Int, ox: Int, sums: Int32s) -> None:
    """Add the values of a window. Several bytes of a chunk are added at once, each in 16 bits of its own, with 128 more
    than they are, so that none is negative: 16 bits hold the sum of 256 of them."""
    each = len(mem.lanes) // len(mem.chunks)
    memory, lines = mem.feature_words[c], mem.feature_words.shape[1]
    bits, mask = mem.turn[2], mem.turn[3]
    low, flip = mem.chunks[0] // 257, mem.chunks[0] * 128  # every other byte; the sign of every byte
    x = op[START_X] + ox * op[STRIDE_X]
    for ky in range(op[KERNEL_H]):
        iy = op[START_Y] + oy * op[STRIDE_Y] + ky * op[DILATION_Y]
        line, turn = op[FEATURE] + g * op[BLOCK_PITCH] + iy * op[ROW_PITCH], mem.turn[0] * iy
        for begin in range(0, op[KERNEL_W], 256):
            end = min(begin + 256, op[KERNEL_W])
            for k in range(len(mem.chunks)):
                even = odd = np.uint64(0)
                outside = np.int64(0)
                for kx in range(begin, end):
                    ix = x + kx * op[DILATION_X]
                    if not _inside(op, iy, ix):
                        outside += 1
                        continue
                    place = line + (ix >> bits)
                    if place >= lines:
                        place %= lines
                    word = np.uint64(memory[np.uint64(place), np.uint64((ix + turn) & mask), k]) ^ np.uint64(flip)
                    even += word & np.uint64(low * 255)
                    odd += (word >> np.uint64(8)) & np.uint64(low * 255)
                more = outside * op[PAD_VALUE] - (end - begin - outside) * 128
                for i in range(0, each, 2):
                    shift = np.uint64(8 * i)
                    sums[k * each + i] += np.int64((even >> shift) & np.uint64(0xFFFF)) + more
                    sums[k * each + i + 1] += np.int64((odd >> shift) & np.uint64(0xFFFF)) + more


@_compiled
def summed(mem: Memories, c: Int, op: Ints) -> None:
    """CONV, DWCONV and POOL of sums, pixel by pixel; accumulators carry over where ``first`` or ``last`` is missing."""
    kind = op[OPCODE]
    _, shape_cols = _shape(mem.turn[1], op[SHAPE] if kind == CONV else 0)
    sums = mem.sums
    for g in range(op[OUT_BLOCKS]):
        for oy in range(op[ROWS]):
            for ox in range(op[COLS]):
                lane = mem.accumulator[c, (oy * shape_cols + ox) % mem.turn[1]]
                for o in range(len(mem.lanes)):
                    sums[o] = 0 if op[FIRST] else lane[o]
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
                    for o in range(len(mem.lanes)):
                        lane[o] = sums[o]
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
def maximum(mem: Memories, c: Int, op: Ints) -> None:
    channels, words = len(mem.lanes), mem.result.shape[1]
    best = mem.sums
    for g in range(op[OUT_BLOCKS]):
        for oy in range(op[ROWS]):
            for ox in range(op[COLS]):
                best[:] = -128
                for ky in range(op[KERNEL_H]):
                    iy = op[START_Y] + oy * op[STRIDE_Y] + ky * op[DILATION_Y]
                    for kx in range(op[KERNEL_W]):
                        ix = op[START_X] + ox * op[STRIDE_X] + kx * op[DILATION_X]
                        if _inside(op, iy, ix):
                            line, bank = _spot(mem, op, g, iy, ix)
                            for o in range(channels):
                                best[o] = max(best[o], np.int32(mem.feature[c, line, bank, o]))
                        else:
                            for o in range(channels):
                                best[o] = max(best[o], np.int32(op[PAD_VALUE]))
                place = mem.result[c, (op[RESULT] + (g * op[ROWS] + oy) * op[COLS] + ox) % words]
                for o in range(channels):
                    value = _clamp(np.int64(best[o]), op[LOW], op[HIGH])
                    place[o] = np.int8(_look_up(mem, c, op, value) if op[LUT] else value)
    mem.accumulator[c] = 0


@_compiled
def pointwise(mem: Memories, c: Int, op: Ints) -> None:
    words, channels = mem.result.shape[1], len(mem.lanes)
    product = op[OPCODE] == MUL
    constants = mem.parameter[c, op[PARAMETER] % mem.parameter.shape[1]]
    number = 0
    for g in range(op[OUT_BLOCKS]):
        for y in range(op[ROWS]):
            for x in range(op[COLS]):
                line, bank = _spot(mem, op, g, y, x)
                operand = mem.result[c, (op[OPERAND] + (g if product and op[MODE] else number)) % words]
                place = mem.result[c, (op[RESULT] + number) % words]
                for o in range(channels):
                    value = _combine(np.int64(mem.feature[c, line, bank, o]), np.int64(operand[o]), constants, product)
                    place[o] = np.int8(_look_up(mem, c, op, value) if op[LUT] else value)
                number += 1


@_compiled
def gather(mem: Memories, c: Int, op: Ints, first: Int, matrix: Floats) -> None:
    """Fill ``matrix`` [pixels, kernel_h * kernel_w * in_blocks * C] with what lies under pixels ``first``..."""
    lines, width, channels = mem.feature.shape[1], mem.feature.shape[2], len(mem.lanes)
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
    words, channels = mem.weight.shape[1], len(mem.lanes)
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
    channels = len(mem.lanes)
    pixels = op[ROWS] * op[COLS]
    sums = mem.sums
    for g in range(op[OUT_BLOCKS]):
        for pixel in range(count):
            for o in range(channels):
                sums[o] = np.int32(parts[0, pixel, g * channels + o])
            for part in range(1, parts.shape[0]):
                for o in range(channels):
                    sums[o] += np.int32(parts[part, pixel, g * channels + o])
            _put(mem, c, op, op[PARAMETER] + g, op[RESULT] + g * pixels + first + pixel, sums)
