"""The emission of instruction streams in compiled code: one core's part of one layer at a time.

It must not know what instructions mean beyond the fields that it patches: buffers, tokens, bank masks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot, inlined
from corepool.compiler.dynamic.deal import NOWHERE
from corepool.compiler.tables import CONSUMER_COLUMNS, IFP_COLUMNS, LAYER_COLUMNS, STEP_COLUMNS
from corepool.isa.table import Opcode, field_of

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


class Tables(NamedTuple):
    """The tables of a package, with the columns of ``compiler.tables``."""

    layers: Int32Array
    choice: Int32Array
    tilings: Int32Array
    ifps: Int32Array
    steps: Int32Array
    code: Words
    consumers: Int32Array


class Place(NamedTuple):
    """The cores that a model is linked for, and the sizes of their memories."""

    bank_of: IntArray  # [cores]
    halves: IntArray  # [5]: size of a buffer by load target
    result_words: int
    word_bytes: int
    sync_cores: int


class State(NamedTuple):
    """What one core's stream carries from layer to layer (``memory``), and scratch space."""

    memory: IntArray  # weight buffer, feature buffer, weight key, whether the next layer's first weights are loaded
    moves: Words  # [8]
    spans: IntArray  # [banks, 2]
    parts: IntArray  # [3, 3]
    reach: IntArray  # [regions, 5]


def new_state(consumers: int, banks: int) -> State:
    """Scratch space for emitting streams; ``emit_core`` resets what it carries."""
    return State(
        np.zeros(4, np.int64),
        np.zeros(8, np.uint64),
        np.empty((banks, 2), np.int64),
        np.empty((3, 3), np.int64),
        np.empty((consumers * banks + 1, 5), np.int64),
    )


@hot
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


@inlined
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


@inlined
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


@inlined
def _copy_load(code: Words, source: int, out: Words, at: int, moves: Words) -> None:
    """Copy a load and move it into its buffer: ``moves`` [8] is what to add to ``local``, in place, by target."""
    word = code[source, 0]
    out[at, 0], out[at, 1], out[at, 3] = word, code[source, 1], code[source, 3]
    out[at, 2] = code[source, 2] + moves[(word >> _TARGET) & np.uint64(7)]


@inlined
def _set_moves(
    weight_buffer: int, feature_buffer: int, result_buffer: int, halves: IntArray, result_size: int, moves: Words
) -> None:
    """What loads add to ``local`` for the current buffers. ``halves`` is the size of a buffer by target."""
    moves[0] = np.uint64(feature_buffer * halves[0]) << _LOCAL
    moves[1] = np.uint64(weight_buffer * halves[1]) << _LOCAL
    moves[2] = np.uint64(weight_buffer * halves[2]) << _LOCAL
    moves[3] = np.uint64(result_buffer * result_size) << _LOCAL
    moves[4] = np.uint64(weight_buffer * halves[4]) << _LOCAL


@inlined
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


@inlined
def _saving_steps(ifps: Int32Array, steps: Int32Array, begin: int, end: int) -> int:
    count = 0
    for p in range(begin, end):
        for s in range(ifps[p, FIRST_STEP], ifps[p, FIRST_STEP] + ifps[p, STEPS]):
            if steps[s, SAVES]:
                count += 1
    return count


@inlined
def emit_layer(
    layer: int, core: int, layers: Int32Array, ifps: Int32Array, steps: Int32Array, code: Words, consumers: Int32Array,
    bank_of: IntArray, halves: IntArray, result_words: int, word_bytes: int, dealt: IntArray, boxes: IntArray,
    memory: IntArray,
    moves: Words, spans: IntArray, parts: IntArray, reach: IntArray, out: Words, at: int,
) -> tuple[int, int]:  # fmt: skip
    """Write one core's packages of one layer to ``out[at]`` and on; returns the place behind, and that of the last
    compute instruction but one step (-1 if there is none), for which the weights of the next layer have to wait.

    ``dealt`` [layers, cores + 1], ``boxes`` [layers, 2, banks, 4] as ``deal_layer`` makes them.
    """
    begin, end = dealt[layer, core], dealt[layer, core + 1]
    buffers = layers[layer, RESULT_BUFFERS]
    result_size = result_words // buffers
    save_count = _saving_steps(ifps, steps, begin, end)
    regions = _readers(layer, layers, consumers, boxes, bank_of[0], reach)
    weight_buffer, feature_buffer, weight_key = memory[0], memory[1], memory[2]
    hoisted = memory[3] != 0
    feature_key = -1  # features never survive a SYNC
    if not hoisted:
        weight_key = -1
    k, saved = 0, 0
    compute1, compute2 = -1, -1  # last compute instructions of the steps one and two back
    for p in range(begin, end):
        parts_count = _split_rows(p, ifps, reach, regions, bank_of[core], spans, parts)
        for s in range(ifps[p, FIRST_STEP], ifps[p, FIRST_STEP] + ifps[p, STEPS]):
            source = steps[s, FIRST]
            result_buffer = saved % buffers
            first_load = at
            wanted = 0
            if steps[s, WEIGHTS] and steps[s, WEIGHT_KEY] != weight_key:
                weight_buffer ^= 1
                weight_key = steps[s, WEIGHT_KEY]
                wanted |= 1
            if steps[s, FEATURES] and steps[s, FEATURE_KEY] != feature_key:
                feature_buffer ^= 1
                feature_key = steps[s, FEATURE_KEY]
                wanted |= 2
            _set_moves(weight_buffer, feature_buffer, result_buffer, halves, result_size, moves)
            if wanted & 1:
                for i in range(steps[s, WEIGHTS]):
                    _copy_load(code, source + i, out, at, moves)
                    at += 1
            source += steps[s, WEIGHTS]
            if wanted & 2:
                for i in range(steps[s, FEATURES]):
                    _copy_load(code, source + i, out, at, moves)
                    at += 1
            source += steps[s, FEATURES]
            for i in range(steps[s, OPERANDS]):
                _copy_load(code, source + i, out, at, moves)
                at += 1
            source += steps[s, OPERANDS]
            if at > first_load:
                if compute2 >= 0:
                    out[first_load, 0] |= _WAIT_NEXT
                    out[compute2, 0] |= _RAISE_PREV
                out[at - 1, 0] |= _RAISE_NEXT
            first_compute = at
            for i in range(steps[s, COMPUTES]):
                _copy_compute(
                    code, source + i, out, at, weight_buffer, feature_buffer, result_buffer, halves, result_size
                )
                at += 1
            source += steps[s, COMPUTES]
            if first_compute > first_load or (k == 0 and hoisted):
                out[first_compute, 0] |= _WAIT_PREV
            compute2 = compute1
            compute1 = at - 1
            if steps[s, SAVES]:
                out[compute1, 0] |= _RAISE_NEXT
                if saved >= 2:
                    out[first_compute, 0] |= _WAIT_NEXT
                first_save = at
                move = result_buffer * result_size
                for i in range(steps[s, SAVES]):
                    for j in range(parts_count):
                        row, row_end, mask = parts[j, 0], parts[j, 1], parts[j, 2]
                        _copy_save(p, ifps, code, source + i, out, at, move, row, row_end, mask, word_bytes)
                        at += 1
                out[first_save, 0] |= _WAIT_PREV
                if saved + 2 < save_count:
                    out[at - 1, 0] |= _RAISE_PREV
                saved += 1
            k += 1
    memory[0], memory[1], memory[2], memory[3] = weight_buffer, feature_buffer, weight_key, 0
    return at, compute2


@inlined
def _hoist_weights(
    s: int, compute2: int, steps: Int32Array, code: Words, halves: IntArray, memory: IntArray, moves: Words,
    out: Words, at: int
) -> int:  # fmt: skip
    """Fetch the weights of step ``s``, the next layer's first, ahead of the SYNC: they do not depend on this layer."""
    count = steps[s, WEIGHTS]
    if count:
        memory[0] ^= 1
        memory[2] = steps[s, WEIGHT_KEY]
        memory[3] = 1
        _set_moves(memory[0], memory[1], 0, halves, 0, moves)
        first = at
        for i in range(count):
            _copy_load(code, steps[s, FIRST] + i, out, at, moves)
            at += 1
        if compute2 >= 0:
            out[compute2, 0] |= _RAISE_PREV
            out[first, 0] |= _WAIT_NEXT
        if steps[s, FEATURES] == 0 and steps[s, OPERANDS] == 0:
            out[at - 1, 0] |= _RAISE_NEXT
    return at


@hot
def emit_core(
    core: int, first_layer: int, t: Tables, where: Place, state: State, dealt: IntArray, boxes: IntArray, out: Words,
    at: int,
    starts: Int32Array,
) -> int:  # fmt: skip
    """Write one core's stream from ``out[at]`` on, and each layer's first instruction into ``starts``; returns the
    place
    behind."""
    # Arrays are taken out of their tuples once: each time costs a reference count.
    layers, ifps, steps, code, consumers = t.layers, t.ifps, t.steps, t.code, t.consumers
    bank_of, halves = where.bank_of, where.halves
    begin_of_stream = at
    memory, moves, spans, parts, reach = state.memory, state.moves, state.spans, state.parts, state.reach
    memory[0], memory[1], memory[2], memory[3] = 1, 1, -1, 0
    for layer in range(first_layer, len(layers)):
        starts[core, layer - first_layer] = at - begin_of_stream
        at, compute2 = emit_layer(
            layer, core, layers, ifps, steps, code, consumers, bank_of, halves, where.result_words, where.word_bytes,
            dealt, boxes, memory, moves, spans, parts, reach, out, at,
        )  # fmt: skip
        if layer == len(layers) - 1:
            out[at, 0], out[at, 1], out[at, 2], out[at, 3] = _END, 0, 0, 0
            return at + 1
        if dealt[layer + 1, core + 1] > dealt[layer + 1, core]:
            s = ifps[dealt[layer + 1, core], FIRST_STEP]
            at = _hoist_weights(s, compute2, steps, code, halves, memory, moves, out, at)
        out[at, 1], out[at, 2], out[at, 3] = 0, 0, 0
        out[at, 0] = _SYNC | (np.uint64(layer) << _SYNC_LAYER) | (np.uint64(where.sync_cores) << _SYNC_CORES)
        at += 1
    return at
