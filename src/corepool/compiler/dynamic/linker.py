"""The dynamic compiler: a model package and some cores become one instruction stream for each core, in well under a
millisecond.

It must not know ONNX or the static compiler. It deals packages, drops loads that neighbours share, assigns buffers and
tokens, chooses the banks that each result is written to, and puts SYNCs between layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.deal import deal
from corepool.compiler.model import ModelPackage
from corepool.compiler.tables import (
    CONSUMER_COLUMNS,
    IFP_COLUMNS,
    LAYER_COLUMNS,
    MAX_CORES,
    STEP_COLUMNS,
    TILING_COLUMNS,
)
from corepool.config import HardwareConfig
from corepool.errors import LinkError
from corepool.isa.table import INSTRUCTION_BYTES, Opcode, field_of

Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

(FIRST, WEIGHTS, FEATURES, OPERANDS, COMPUTES, SAVES, WEIGHT_KEY, FEATURE_KEY) = range(len(STEP_COLUMNS))
(
    FIRST_STEP, STEPS, LATENCY, OUT_ROW, OUT_ROW_END, OUT_BLOCK, OUT_BLOCK_END, IN_ROW, IN_ROW_END, IN_BLOCK,
    IN_BLOCK_END,
    OPERAND_ROW, OPERAND_ROW_END, OPERAND_BLOCK, OPERAND_BLOCK_END, FLAT_START, WIDTH,
) = range(len(IFP_COLUMNS))  # fmt: skip
(FIRST_TILING, TILINGS, RESULT_BUFFERS, IS_OUTPUT, FIRST_CONSUMER, CONSUMERS) = range(len(LAYER_COLUMNS))
(CONSUMER, AS_OPERAND) = range(len(CONSUMER_COLUMNS))
(FIRST_IFP, IFPS) = range(len(TILING_COLUMNS))

# Where the linker patches instructions: 64-bit word and shift, from the field table.
_WAIT_PREV, _WAIT_NEXT, _RAISE_PREV, _RAISE_NEXT = (
    np.uint64(1 << field_of(Opcode.CONV, name).shift) for name in ("wait_prev", "wait_next", "raise_prev", "raise_next")
)
_LOCAL = np.uint64(field_of(Opcode.LOAD, "local").shift)
_FEATURE = np.uint64(field_of(Opcode.CONV, "feature").shift)
_WEIGHT = np.uint64(field_of(Opcode.CONV, "weight").shift)
_RESULT = np.uint64(field_of(Opcode.CONV, "result").shift)
_PARAMETER = np.uint64(field_of(Opcode.CONV, "parameter").shift)
_LUT_SLOT = np.uint64(field_of(Opcode.CONV, "lut_slot").shift)
_OPERAND = np.uint64(field_of(Opcode.ADD, "operand").shift)
_BANKS = np.uint64(field_of(Opcode.SAVE, "banks").shift)
_BANKS_CLEAR = np.uint64(((1 << 64) - 1) ^ (0xFF << field_of(Opcode.SAVE, "banks").shift))
_ROWS, _PIXELS = (np.uint64(field_of(Opcode.SAVE, name).shift) for name in ("rows", "pixels"))
_ROW_STRIDE, _ADDRESS = (np.uint64(field_of(Opcode.SAVE, name).shift) for name in ("row_stride", "address"))
_BLOCK_SKIP, _MASK16 = np.uint64(field_of(Opcode.SAVE, "block_skip").shift), np.uint64(0xFFFF)
_ROWS_CLEAR, _PIXELS_CLEAR = (
    np.uint64(((1 << 64) - 1) ^ (0xFFFF << field_of(Opcode.SAVE, name).shift)) for name in ("rows", "pixels")
)
_TARGET = np.uint64(field_of(Opcode.LOAD, "target").shift)
_SYNC_LAYER = np.uint64(field_of(Opcode.SYNC, "layer").shift)
_SYNC_CORES = np.uint64(field_of(Opcode.SYNC, "cores").shift)
_SYNC, _END = np.uint64(int(Opcode.SYNC)), np.uint64(int(Opcode.END))
_DWCONV, _ADD = np.uint64(int(Opcode.DWCONV)), np.uint64(int(Opcode.ADD))


NOWHERE = 1 << 30


@dataclass(frozen=True)
class Linked:
    """One stream for each core, in the order of ``cores``; ``instructions`` [n, 4] holds them all one after the other.

    ``layer_starts`` [cores, layers - first_layer]: number of the first instruction of each layer within its core's
    stream.
    ``dealt`` [layers, cores + 1]: which packages of the layer's tiling each core got.
    """

    cores: tuple[int, ...]
    instructions: Words
    bounds: IntArray
    layer_starts: Int32Array
    dealt: IntArray

    @property
    def streams(self) -> list[npt.NDArray[np.uint8]]:
        """Bytes of each core's stream (views)."""
        raw = self.instructions.view(np.uint8).reshape(-1)
        cuts = self.bounds * INSTRUCTION_BYTES
        return [raw[cuts[i] : cuts[i + 1]] for i in range(len(self.cores))]

    @property
    def instruction_count(self) -> int:
        return int(self.bounds[-1])

    @property
    def stream_bytes(self) -> int:
        return self.instruction_count * INSTRUCTION_BYTES


@numba.njit(cache=True, nogil=True)
def _deal_all(
    layers: Int32Array, choice: Int32Array, tilings: Int32Array, ifps: Int32Array, first_layer: int,
    bank_of: IntArray, dealt: IntArray,
    boxes: IntArray,
) -> None:  # fmt: skip
    """Deal every layer, and find the region that the cores of each bank read: ``boxes`` [layers, 2, banks, 4]."""
    cores = len(bank_of)
    latency = np.empty(len(ifps), np.int64)
    for layer in range(first_layer, len(layers)):
        tiling = layers[layer, FIRST_TILING] + choice[layer, cores - 1]
        begin = tilings[tiling, FIRST_IFP]
        end = begin + tilings[tiling, IFPS]
        for p in range(begin, end):
            latency[p] = ifps[p, LATENCY]
        deal(latency, begin, end, cores, dealt[layer])
        for operand in range(2):
            base = OPERAND_ROW if operand else IN_ROW
            for bank in range(boxes.shape[2]):
                boxes[layer, operand, bank, 0] = boxes[layer, operand, bank, 2] = NOWHERE
                boxes[layer, operand, bank, 1] = boxes[layer, operand, bank, 3] = 0
            for core in range(cores):
                bank = bank_of[core]
                row, row_end, block, block_end = NOWHERE, 0, NOWHERE, 0
                for p in range(dealt[layer, core], dealt[layer, core + 1]):
                    row, row_end = min(row, ifps[p, base]), max(row_end, ifps[p, base + 1])
                    block, block_end = min(block, ifps[p, base + 2]), max(block_end, ifps[p, base + 3])
                boxes[layer, operand, bank, 0] = min(boxes[layer, operand, bank, 0], row)
                boxes[layer, operand, bank, 1] = max(boxes[layer, operand, bank, 1], row_end)
                boxes[layer, operand, bank, 2] = min(boxes[layer, operand, bank, 2], block)
                boxes[layer, operand, bank, 3] = max(boxes[layer, operand, bank, 3], block_end)


@numba.njit(cache=True, nogil=True)
def _readers(layer: int, layers: Int32Array, consumers: Int32Array, boxes: IntArray, home: int, reach: IntArray) -> int:
    """The regions of a layer's result that banks need: fills ``reach`` [n, 5] with bank, rows, rows end, blocks, blocks
    end; returns n."""
    count = 0
    if layers[layer, IS_OUTPUT]:  # the host reads all of it
        reach[0, 0], reach[0, 1], reach[0, 2], reach[0, 3], reach[0, 4] = home, 0, NOWHERE, 0, NOWHERE
        count = 1
    first = layers[layer, FIRST_CONSUMER]
    for c in range(first, first + layers[layer, CONSUMERS]):
        reader, operand = consumers[c, CONSUMER], consumers[c, AS_OPERAND]
        for bank in range(boxes.shape[2]):
            if boxes[reader, operand, bank, 0] < boxes[reader, operand, bank, 1]:
                reach[count, 0] = bank
                for i in range(4):
                    reach[count, i + 1] = boxes[reader, operand, bank, i]
                count += 1
    return count


@numba.njit(cache=True, nogil=True, inline="always")
def _split_rows(
    p: int, ifps: Int32Array, reach: IntArray, regions: int, own: int, spans: IntArray, parts: IntArray
) -> int:
    """Which banks need which rows of a package's result: fills ``parts`` [3, 3] with row, row end, bank mask; returns
    their number.

    Rows that only one more bank needs (halos) are saved apart, so that the others are not written there. ``spans``
    [banks, 2] is scratch. Rows that nobody reads go to the core's ``own`` bank.
    """
    first_row, last_row = np.int64(ifps[p, OUT_ROW]), np.int64(ifps[p, OUT_ROW_END])
    block, block_end = np.int64(ifps[p, OUT_BLOCK]), np.int64(ifps[p, OUT_BLOCK_END])
    whole, partly = 0, 0  # banks that need all rows, and some
    for r in range(regions):
        low, high = max(first_row, reach[r, 1]), min(last_row, reach[r, 2])
        if low < high and block < reach[r, 4] and reach[r, 3] < block_end:
            bank = reach[r, 0]
            bit = 1 << bank
            if low == first_row and high == last_row:
                whole |= bit
            elif partly & bit:
                spans[bank, 0], spans[bank, 1] = min(spans[bank, 0], low), max(spans[bank, 1], high)
            else:
                spans[bank, 0], spans[bank, 1] = low, high
                partly |= bit
    partly &= ~whole
    count = 0
    if partly:
        row = first_row
        while row < last_row:
            mask, end = whole, last_row
            for bank in range(len(spans)):
                if partly >> bank & 1:
                    if spans[bank, 0] <= row < spans[bank, 1]:
                        mask |= 1 << bank
                        end = min(end, spans[bank, 1])
                    elif spans[bank, 0] > row:
                        end = min(end, spans[bank, 0])
            if mask == 0:
                mask = 1 << own
            if count and parts[count - 1, 2] == mask:
                parts[count - 1, 1] = end
            elif count == 3:
                count = 0
                break
            else:
                parts[count, 0], parts[count, 1], parts[count, 2] = row, end, mask
                count += 1
            row = end
    if count == 0:  # alike, or more than three parts: all rows to all banks that need any
        mask = whole | partly
        parts[0, 0], parts[0, 1], parts[0, 2] = first_row, last_row, mask if mask else 1 << own
        count = 1
    return count


@numba.njit(cache=True, nogil=True, inline="always")
def _copy_save(
    p: int, ifps: Int32Array, code: Words, source: int, out: Words, at: int, move: int, row: int, row_end: int,
    mask: int,
    word_bytes: int,
) -> None:  # fmt: skip
    """Copy a save, with its source moved by ``move`` words, for some rows of its tile, with its bank mask."""
    word0, word1, word2 = code[source, 0], code[source, 1], code[source, 2]
    out[at, 3] = code[source, 3]
    if row != ifps[p, OUT_ROW] or row_end != ifps[p, OUT_ROW_END]:
        rows, pixels = np.int64((word0 >> _ROWS) & _MASK16), np.int64((word1 >> _PIXELS) & _MASK16)
        if ifps[p, FLAT_START] >= 0:  # one long row: cut it at the true rows
            begin = max(row * ifps[p, WIDTH] - ifps[p, FLAT_START], 0)
            end = min(row_end * ifps[p, WIDTH] - ifps[p, FLAT_START], pixels)
            address, taken = begin, end - begin
            word1 = (word1 & _PIXELS_CLEAR) | np.uint64(taken) << _PIXELS
            skip, first = pixels - taken, begin
        else:
            address = (row - ifps[p, OUT_ROW]) * np.int64(word1 >> _ROW_STRIDE)
            word0 = (word0 & _ROWS_CLEAR) | np.uint64(row_end - row) << _ROWS
            skip, first = (rows - (row_end - row)) * pixels, (row - ifps[p, OUT_ROW]) * pixels
        move += first
        word0 += np.uint64(address * word_bytes) << _ADDRESS
        out[at, 3] |= np.uint64(skip) << _BLOCK_SKIP
    out[at, 0] = (word0 & _BANKS_CLEAR) | (np.uint64(mask) << _BANKS)
    out[at, 1] = word1
    out[at, 2] = word2 + (np.uint64(move) << _LOCAL)


@numba.njit(cache=True, nogil=True, inline="always")
def _copy_load(code: Words, source: int, out: Words, at: int, moves: Words) -> None:
    """Copy a load and move it into its buffer: ``moves`` [8] is what to add to ``local``, in place, by target."""
    word = code[source, 0]
    out[at, 0], out[at, 1], out[at, 3] = word, code[source, 1], code[source, 3]
    out[at, 2] = code[source, 2] + moves[(word >> _TARGET) & np.uint64(7)]


@numba.njit(cache=True, nogil=True, inline="always")
def _set_moves(
    weight_buffer: int, feature_buffer: int, result_buffer: int, halves: IntArray, result_size: int, moves: Words
) -> None:
    """What loads add to ``local`` for the current buffers. ``halves`` is the size of a buffer by target."""
    moves[0] = np.uint64(feature_buffer * halves[0]) << _LOCAL
    moves[1] = np.uint64(weight_buffer * halves[1]) << _LOCAL
    moves[2] = np.uint64(weight_buffer * halves[2]) << _LOCAL
    moves[3] = np.uint64(result_buffer * result_size) << _LOCAL
    moves[4] = np.uint64(weight_buffer * halves[4]) << _LOCAL


@numba.njit(cache=True, nogil=True, inline="always")
def _copy_compute(
    code: Words, source: int, out: Words, at: int, weight_buffer: int, feature_buffer: int, result_buffer: int,
    halves: IntArray, result_size: int
) -> None:  # fmt: skip
    """Copy a compute instruction and point it at the buffers of its step."""
    word = code[source, 0]
    opcode = word & np.uint64(15)
    weighted = np.uint64(opcode <= _DWCONV)  # CONV and DWCONV
    operand = np.uint64(opcode >= _ADD)  # ADD and MUL
    result = np.uint64(result_buffer * result_size)
    out[at, 0] = word | np.uint64(weight_buffer) << _LUT_SLOT
    out[at, 1] = code[source, 1] + ((operand * result) << _OPERAND)
    out[at, 2] = code[source, 2] + (np.uint64(weight_buffer * halves[2]) << _PARAMETER)
    out[at, 3] = (
        code[source, 3]
        + (np.uint64(feature_buffer * halves[0]) << _FEATURE)
        + (result << _RESULT)
        + ((weighted * np.uint64(weight_buffer * halves[1])) << _WEIGHT)
    )


@numba.njit(cache=True, nogil=True)
def _emit_core(
    core: int, first_layer: int, layers: Int32Array, tilings: Int32Array, ifps: Int32Array, steps: Int32Array,
    code: Words,
    consumers: Int32Array, dealt: IntArray, boxes: IntArray, bank_of: IntArray, halves: IntArray, result_words: int,
    word_bytes: int,
    sync_cores: int, out: Words, at: int, starts: Int32Array,
) -> int:  # fmt: skip
    """Write one core's stream from ``out[at]`` on; returns the place behind it."""
    begin_of_stream = at
    moves = np.zeros(8, np.uint64)
    spans, parts = np.empty((boxes.shape[2], 2), np.int64), np.empty((3, 3), np.int64)
    reach = np.empty((len(consumers) * boxes.shape[2] + 1, 5), np.int64)
    weight_buffer, feature_buffer = 1, 1
    weight_key, feature_key = -1, -1
    hoisted = False  # weights of the layer's first step were loaded before the SYNC
    last_layer = len(layers) - 1
    for layer in range(first_layer, len(layers)):
        starts[layer - first_layer] = at - begin_of_stream
        begin, end = dealt[layer, core], dealt[layer, core + 1]
        buffers = layers[layer, RESULT_BUFFERS]
        result_size = result_words // buffers
        save_count = 0
        for p in range(begin, end):
            for s in range(ifps[p, FIRST_STEP], ifps[p, FIRST_STEP] + ifps[p, STEPS]):
                if steps[s, SAVES]:
                    save_count += 1
        regions = _readers(layer, layers, consumers, boxes, bank_of[0], reach)
        k, saved = 0, 0
        compute1, compute2 = -1, -1  # last compute instructions of the steps one and two back, in this layer
        feature_key = -1  # features never survive a SYNC
        if not hoisted:
            weight_key = -1
        for p in range(begin, end):
            parts_count = _split_rows(p, ifps, reach, regions, bank_of[core], spans, parts)
            for s in range(ifps[p, FIRST_STEP], ifps[p, FIRST_STEP] + ifps[p, STEPS]):
                source = steps[s, FIRST]
                loads = 0
                first_load = at
                count = steps[s, WEIGHTS]
                if count and steps[s, WEIGHT_KEY] != weight_key:
                    weight_buffer ^= 1
                    weight_key = steps[s, WEIGHT_KEY]
                    _set_moves(weight_buffer, feature_buffer, saved % buffers, halves, result_size, moves)
                    for i in range(count):
                        _copy_load(code, source + i, out, at, moves)
                        at += 1
                    loads += count
                source += count
                count = steps[s, FEATURES]
                if count and steps[s, FEATURE_KEY] != feature_key:
                    feature_buffer ^= 1
                    feature_key = steps[s, FEATURE_KEY]
                    _set_moves(weight_buffer, feature_buffer, saved % buffers, halves, result_size, moves)
                    for i in range(count):
                        _copy_load(code, source + i, out, at, moves)
                        at += 1
                    loads += count
                source += count
                result_buffer = saved % buffers
                count = steps[s, OPERANDS]
                if count:
                    _set_moves(weight_buffer, feature_buffer, result_buffer, halves, result_size, moves)
                    for i in range(count):
                        _copy_load(code, source + i, out, at, moves)
                        at += 1
                    loads += count
                source += count
                if loads and compute2 >= 0:
                    out[first_load, 0] |= _WAIT_NEXT
                    out[compute2, 0] |= _RAISE_PREV
                if loads:
                    out[at - 1, 0] |= _RAISE_NEXT
                first_compute = at
                for i in range(steps[s, COMPUTES]):
                    _copy_compute(
                        code, source + i, out, at, weight_buffer, feature_buffer, result_buffer, halves, result_size
                    )
                    at += 1
                source += steps[s, COMPUTES]
                if loads or (k == 0 and hoisted):
                    out[first_compute, 0] |= _WAIT_PREV
                compute2 = compute1
                compute1 = at - 1
                if steps[s, SAVES]:
                    out[compute1, 0] |= _RAISE_NEXT
                    if saved >= 2:
                        out[first_compute, 0] |= _WAIT_NEXT
                    first_save = at
                    for i in range(steps[s, SAVES]):
                        for j in range(parts_count):
                            _copy_save(
                                p,
                                ifps,
                                code,
                                source + i,
                                out,
                                at,
                                result_buffer * result_size,
                                parts[j, 0],
                                parts[j, 1],
                                parts[j, 2],
                                word_bytes,
                            )
                            at += 1
                    out[first_save, 0] |= _WAIT_PREV
                    if saved + 2 < save_count:
                        out[at - 1, 0] |= _RAISE_PREV
                    saved += 1
                k += 1
        if layer == last_layer:
            out[at, 0], out[at, 1], out[at, 2], out[at, 3] = _END, 0, 0, 0
            at += 1
            break
        # Weights do not depend on this layer: the next layer's first ones are fetched before the SYNC.
        hoisted = False
        next_begin = dealt[layer + 1, core]
        if dealt[layer + 1, core + 1] > next_begin:
            s = ifps[next_begin, FIRST_STEP]
            count = steps[s, WEIGHTS]
            if count:
                weight_buffer ^= 1
                weight_key = steps[s, WEIGHT_KEY]
                _set_moves(weight_buffer, feature_buffer, 0, halves, 0, moves)
                if compute2 >= 0:
                    out[compute2, 0] |= _RAISE_PREV
                for i in range(count):
                    _copy_load(code, steps[s, FIRST] + i, out, at, moves)
                    if i == 0 and compute2 >= 0:
                        out[at, 0] |= _WAIT_NEXT
                    at += 1
                hoisted = True
                if steps[s, FEATURES] == 0 and steps[s, OPERANDS] == 0:
                    out[at - 1, 0] |= _RAISE_NEXT
        out[at, 1], out[at, 2], out[at, 3] = 0, 0, 0
        out[at, 0] = _SYNC | (np.uint64(layer) << _SYNC_LAYER) | (np.uint64(sync_cores) << _SYNC_CORES)
        at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _link(
    layers: Int32Array, choice: Int32Array, tilings: Int32Array, ifps: Int32Array, steps: Int32Array, code: Words,
    consumers: Int32Array,
    first_layer: int, bank_of: IntArray, halves: IntArray, result_words: int, word_bytes: int, sync_cores: int,
    out: Words, bounds: IntArray,
    starts: Int32Array, dealt: IntArray, boxes: IntArray,
) -> None:  # fmt: skip
    cores = len(bank_of)
    _deal_all(layers, choice, tilings, ifps, first_layer, bank_of, dealt, boxes)
    at = 0
    for core in range(cores):
        bounds[core] = at
        at = _emit_core(
            core, first_layer, layers, tilings, ifps, steps, code, consumers, dealt, boxes, bank_of, halves,
            result_words,
            word_bytes, sync_cores, out, at, starts[core],
        )  # fmt: skip
    bounds[cores] = at


def link(package: ModelPackage, cores: Sequence[int], config: HardwareConfig, first_layer: int = 0) -> Linked:
    """Deal a model's packages to ``cores`` (numbers of the device's cores) and make one stream for each.

    ``first_layer`` begins in the middle, for a lease that stopped after layer ``first_layer - 1``. Raises LinkError for
    a number of cores outside 1 .. 16, repeated or unknown cores, or a layer that does not exist.
    """
    count = len(cores)
    if not 1 <= count <= MAX_CORES:
        raise LinkError(f"a model runs on 1 to {MAX_CORES} cores, not {count}")
    if len(set(cores)) != count or min(cores) < 0 or max(cores) >= config.cores:
        raise LinkError(f"cores {list(cores)} are not {count} different cores of 0..{config.cores - 1}")
    layers = package.layers
    if not 0 <= first_layer < len(layers):
        raise LinkError(f"layer {first_layer} is not one of 0..{len(layers) - 1}")
    bank_of = np.array([config.bank_of(core) for core in cores], np.int64)
    halves = np.array(
        [config.feature_lines // 2, config.weight_words // 2, config.parameter_words // 2, 0, 1], np.int64
    )  # indexed by Target
    left = len(layers) - first_layer
    out = np.empty((int(package.stream_bound[count - 1]), 4), np.uint64)
    bounds, starts = np.empty(count + 1, np.int64), np.empty((count, left), np.int32)
    dealt, boxes = np.zeros((len(layers), count + 1), np.int64), np.empty((len(layers), 2, config.banks, 4), np.int64)
    sync_cores = sum(1 << core for core in cores)
    _link(
        layers, package.choice, package.tilings, package.ifps, package.steps, package.code, package.consumers,
        first_layer, bank_of,
        halves, config.result_words, config.word_bytes, sync_cores, out, bounds, starts, dealt, boxes,
    )  # fmt: skip
    return Linked(tuple(cores), out[: bounds[-1]], bounds, starts, dealt)
