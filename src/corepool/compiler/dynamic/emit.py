"""The emission of instruction streams in compiled code: one core's part of one layer at a time.

It must not know what instructions mean beyond the fields that it patches: buffers, tokens, bank masks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot, inlined
from corepool.compiler.tables import CONSUMER_COLUMNS, IFP_COLUMNS, LAYER_COLUMNS, STEP_COLUMNS
from corepool.isa.table import Opcode, field_of

Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]
Int32Row = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint64]

(
    FIRST, WEIGHTS, FEATURES, OPERANDS, COMPUTES, SAVES, WEIGHT_KEY, FEATURE_KEY, WEIGHT_WORDS, PARAMETER_WORDS, TABLES,
) = range(len(STEP_COLUMNS))  # fmt: skip
(
    FIRST_STEP, STEPS, LATENCY, OUT_ROW, OUT_ROW_END, OUT_BLOCK, OUT_BLOCK_END, IN_ROW, IN_ROW_END, IN_BLOCK,
    IN_BLOCK_END,
    OPERAND_ROW, OPERAND_ROW_END, OPERAND_BLOCK, OPERAND_BLOCK_END, FLAT_START, WIDTH, FLAT_END,
) = range(len(IFP_COLUMNS))  # fmt: skip
(FIRST_TILING, TILINGS, RESULT_BUFFERS, IS_OUTPUT, FIRST_CONSUMER, CONSUMERS, PRODUCER) = range(len(LAYER_COLUMNS))
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
_SYNC_EARLY = np.uint64(field_of(Opcode.SYNC, "early").shift)
MOST_BEHIND = (1 << field_of(Opcode.SYNC, "early").width) - 2
WORD_CYCLES = 6  # about: a weight word from DDR, when three of a core's four slots move data
FURTHEST = 3  # layers whose weights are fetched ahead
FEW_WORDS = 64  # weight words of a package so small that those of a whole layer are fetched ahead
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
    sizes: IntArray  # [4]: weight words, parameter words, tables, feature lines
    result_words: int
    word_bytes: int
    sync_cores: int


# What a core's stream carries from step to step (``State.memory``). Positions are those of instructions in ``out``, -1
# for none. The weight memory, the parameter memory and the table slots are rings; a *group* is what the loads of one
# step put into them.
(
    FEATURE_BUFFER, FEATURE_USE, FEATURE_USE1, FULLY, COMPUTE1, COMPUTE2, WAITED, SAVE1, SAVE2, SLOT, SLOTS, TAIL,
    NEXT, GROUP, AHEAD, SAVED1, SAVED2, SAVED3,
) = range(18)  # fmt: skip
MEMORY = 18

# A group: where it begins and how much it takes in the three rings, and the last compute instruction that reads it.
G_WEIGHT, G_PARAMETER, G_TABLE, G_WEIGHTS, G_PARAMETERS, G_TABLES, G_USE, G_LAYER, G_KEY = range(9)
GROUPS = 16
UNUSED = 1 << 40  # G_USE of a group that no instruction has read yet


class State(NamedTuple):
    """What one core's stream carries from layer to layer (``memory``, ``groups``), and scratch space."""

    memory: IntArray  # [MEMORY]
    groups: IntArray  # [GROUPS, 9], a ring
    moves: Words  # [8]
    spans: IntArray  # [banks, 2]
    parts: IntArray  # [3, 3]
    reach: IntArray  # [regions, 5]


def new_state(consumers: int, banks: int) -> State:
    """Scratch space for emitting streams; ``emit_core`` resets what it carries."""
    return State(
        np.zeros(MEMORY, np.int64),
        np.zeros((GROUPS, 9), np.int64),
        np.zeros(8, np.uint64),
        np.empty((banks, 2), np.int64),
        np.empty((3, 3), np.int64),
        np.empty((consumers * banks + 1, 5), np.int64),
    )


@hot
def _readers(
    layer: int, layers: Int32Array, ifps: Int32Array, consumers: Int32Array, dealt: IntArray, boxes: IntArray,
    home: int, reach: IntArray
) -> tuple[int, int]:  # fmt: skip
    """The banks that need all of a layer's result, as a mask, and the regions that others need: fills ``reach`` [n, 5]
    with bank, rows, rows end, blocks, blocks end; returns mask and n."""
    count, everything = 0, 0
    first_tile, last_tile = dealt[layer, 0], dealt[layer, dealt.shape[1] - 1] - 1
    if layers[layer, IS_OUTPUT]:  # the host reads all of it
        everything = 1 << home
    first = layers[layer, FIRST_CONSUMER]
    for c in range(first, first + layers[layer, CONSUMERS]):
        reader, operand = consumers[c, CONSUMER], consumers[c, AS_OPERAND]
        for bank in range(boxes.shape[2]):
            if everything >> bank & 1:
                continue
            if (
                boxes[reader, operand, bank, 0] <= ifps[first_tile, OUT_ROW]
                and boxes[reader, operand, bank, 1] >= ifps[last_tile, OUT_ROW_END]
                and boxes[reader, operand, bank, 2] <= ifps[first_tile, OUT_BLOCK]
                and boxes[reader, operand, bank, 3] >= ifps[last_tile, OUT_BLOCK_END]
            ):
                everything |= 1 << bank
            elif boxes[reader, operand, bank, 0] < boxes[reader, operand, bank, 1]:
                reach[count, 0] = bank
                for i in range(4):
                    reach[count, i + 1] = boxes[reader, operand, bank, i]
                count += 1
    return everything, count


@inlined
def _split_rows(
    p: int, ifps: Int32Array, everything: int, reach: IntArray, regions: int, own: int, spans: IntArray, parts: IntArray
) -> int:
    """Which banks need which rows of a package's result: fills ``parts`` [3, 3] with row, row end, bank mask; returns
    their number.

    Rows that only one more bank needs (halos) are saved apart, so that the others are not written there. ``spans``
    [banks, 2] is scratch. Rows that nobody reads go to the core's ``own`` bank.
    """
    first_row, last_row = np.int64(ifps[p, OUT_ROW]), np.int64(ifps[p, OUT_ROW_END])
    block, block_end = np.int64(ifps[p, OUT_BLOCK]), np.int64(ifps[p, OUT_BLOCK_END])
    whole, partly = everything, 0  # banks that need all rows, and some
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
def _copy_compute(
    code: Words, source: int, out: Words, at: int, weight: int, parameter: int, table: int, feature: int, result: int
) -> None:
    """Copy a compute instruction and point it at the places of its step."""
    word = code[source, 0]
    opcode = word & np.uint64(15)
    weighted = np.uint64(opcode <= _DWCONV)  # CONV and DWCONV
    operand = np.uint64(opcode >= _ADD)  # ADD and MUL
    out[at, 0] = word | np.uint64(table) << _LUT_SLOT
    out[at, 1] = code[source, 1] + ((operand * np.uint64(result)) << _OPERAND)
    out[at, 2] = code[source, 2] + (np.uint64(parameter) << _PARAMETER)
    out[at, 3] = (
        code[source, 3]
        + (np.uint64(feature) << _FEATURE)
        + (np.uint64(result) << _RESULT)
        + ((weighted * np.uint64(weight)) << _WEIGHT)
    )


@inlined
def forget(memory: IntArray) -> None:
    """Begin a stream: nothing is on chip, nothing is under way."""
    memory[:] = -1
    memory[FEATURE_BUFFER], memory[SLOT], memory[SLOTS] = 1, 1, 2
    memory[TAIL] = memory[NEXT] = 0
    memory[SAVED1] = memory[SAVED2] = memory[SAVED3] = 0


@hot
def take(memory: IntArray, groups: IntArray, step: Int32Row, sizes: IntArray, latest: int) -> int:
    """Take room for a step's group behind the newest one, giving up the oldest ones. Returns the position of the
    compute instruction that has to end before it is filled (-1: none), or UNUSED, and nothing is taken, if there is no
    room or it would be one behind ``latest``.
    """
    weights, parameters, tables = np.int64(step[WEIGHT_WORDS]), np.int64(step[PARAMETER_WORDS]), np.int64(step[TABLES])
    tail, following = memory[TAIL], memory[NEXT]
    at_weight, at_parameter, at_table = 0, 0, 0
    used_weights, used_parameters, used_tables = 0, 0, 0
    if following > tail:
        last, oldest = groups[(following - 1) % GROUPS], groups[tail % GROUPS]
        at_weight, at_parameter = last[G_WEIGHT] + last[G_WEIGHTS], last[G_PARAMETER] + last[G_PARAMETERS]
        at_table = last[G_TABLE] + last[G_TABLES]
        used_weights, used_parameters = at_weight - oldest[G_WEIGHT], at_parameter - oldest[G_PARAMETER]
        used_tables = at_table - oldest[G_TABLE]
    wait = -1
    while tail < following and (
        used_weights + weights > sizes[0]
        or used_parameters + parameters > sizes[1]
        or used_tables + tables > sizes[2]
        or following - tail == GROUPS
    ):
        oldest = groups[tail % GROUPS]
        if oldest[G_USE] == UNUSED:
            return UNUSED
        wait = max(wait, oldest[G_USE])
        used_weights -= oldest[G_WEIGHTS]
        used_parameters -= oldest[G_PARAMETERS]
        used_tables -= oldest[G_TABLES]
        tail += 1
    if wait > latest:
        return UNUSED
    memory[TAIL], memory[NEXT] = tail, following + 1
    group = groups[following % GROUPS]
    # Places grow without end; they count modulo the memories' sizes.
    group[G_WEIGHT], group[G_PARAMETER], group[G_TABLE] = at_weight, at_parameter, at_table
    group[G_WEIGHTS], group[G_PARAMETERS], group[G_TABLES] = weights, parameters, tables
    group[G_USE], group[G_KEY] = UNUSED, step[WEIGHT_KEY]
    return wait


@inlined
def _load_group(
    step: Int32Row, group: IntArray, sizes: IntArray, code: Words, out: Words, at: int, moves: Words
) -> int:  # fmt: skip
    """Write the loads of a step's group; returns the place behind."""
    moves[1] = np.uint64(group[G_WEIGHT] % sizes[0]) << _LOCAL
    moves[2] = np.uint64(group[G_PARAMETER] % sizes[1]) << _LOCAL
    moves[4] = np.uint64(group[G_TABLE] % sizes[2]) << _LOCAL
    for i in range(step[WEIGHTS]):
        _copy_load(code, step[FIRST] + i, out, at, moves)
        at += 1
    return at


@inlined
def _sync(out: Words, at: int, layer: int, cores: int, behind: int) -> None:
    """A SYNC at which the latest ``behind`` saves may still be to come."""
    out[at, 0] = (
        _SYNC
        | (np.uint64(min(behind, MOST_BEHIND) + 1) << _SYNC_EARLY)
        | (np.uint64(layer) << _SYNC_LAYER)
        | (np.uint64(cores) << _SYNC_CORES)
    )
    out[at, 1], out[at, 2], out[at, 3] = 0, 0, 0


@inlined
def emit_layer(
    layer: int, core: int, layers: Int32Array, ifps: Int32Array, steps: Int32Array, code: Words, consumers: Int32Array,
    bank_of: IntArray, sizes: IntArray, result_words: int, word_bytes: int, sync_cores: int, again: int,
    dealt: IntArray, boxes: IntArray, memory: IntArray, groups: IntArray,
    moves: Words, spans: IntArray, parts: IntArray, reach: IntArray, out: Words, at: int,
) -> int:  # fmt: skip
    """Write one core's packages of one layer to ``out[at]`` and on; returns the place behind.

    ``again``: the cores meet again behind the first package of each. ``dealt`` [layers, cores + 1], ``boxes`` [layers,
    2, banks, 4] as ``deal_layer`` makes them. ``sizes`` [4]: weight words, parameter words, tables, feature lines.
    """
    begin, end = dealt[layer, core], dealt[layer, core + 1]
    if again and end == begin:
        _sync(out, at, layer - 1, sync_cores, 0)
        return at + 1
    buffers = np.int64(layers[layer, RESULT_BUFFERS])
    result_size = result_words // buffers
    half = sizes[3] // 2
    everything, regions = _readers(layer, layers, ifps, consumers, dealt, boxes, bank_of[0], reach)
    # What changes with every step is kept in variables while the layer is written.
    feature_buffer, number = memory[FEATURE_BUFFER], memory[GROUP]
    feature_uses, feature_uses1 = memory[FEATURE_USE], memory[FEATURE_USE1]
    compute1, compute2, waited = memory[COMPUTE1], memory[COMPUTE2], memory[WAITED]
    save1, save2, slot, slots = memory[SAVE1], memory[SAVE2], memory[SLOT], memory[SLOTS]
    weight, parameter, table, used = 0, 0, 0, -1
    weight_key = np.int64(-1)
    ahead, behind = memory[TAIL], memory[NEXT]  # the next group that may have been fetched ahead
    feature_key = np.int64(-1)  # features never survive a SYNC
    for p in range(begin, end):
        parts_count = _split_rows(p, ifps, everything, reach, regions, bank_of[core], spans, parts)
        save_count = 0
        for s in range(ifps[p, FIRST_STEP], ifps[p, FIRST_STEP] + ifps[p, STEPS]):
            step = steps[s]
            source = np.int64(step[FIRST])
            first_load = at
            wait = -1
            if step[WEIGHTS] and step[WEIGHT_KEY] != weight_key:
                weight_key = np.int64(step[WEIGHT_KEY])
                if used >= 0:
                    groups[number % GROUPS, G_USE] = used
                    used = -1
                while ahead < behind and groups[ahead % GROUPS, G_LAYER] < layer:
                    ahead += 1
                here = (
                    ahead < behind
                    and groups[ahead % GROUPS, G_LAYER] == layer
                    and groups[ahead % GROUPS, G_KEY] == weight_key
                )
                if here:
                    number = ahead
                    ahead += 1
                else:
                    number = memory[NEXT]
                    wait = take(memory, groups, step, sizes, UNUSED)
                    groups[number % GROUPS, G_LAYER] = layer
                    at = _load_group(step, groups[number % GROUPS], sizes, code, out, at, moves)
                group = groups[number % GROUPS]
                weight, parameter = group[G_WEIGHT] % sizes[0], group[G_PARAMETER] % sizes[1]
                table = group[G_TABLE] % sizes[2]
            source += step[WEIGHTS]
            if step[FEATURES] and step[FEATURE_KEY] != feature_key:
                feature_key = np.int64(step[FEATURE_KEY])
                feature_buffer = 1 - feature_buffer
                wait = max(wait, feature_uses1 if feature_buffer else feature_uses)
                moves[0] = np.uint64(feature_buffer * half) << _LOCAL
                for i in range(step[FEATURES]):
                    _copy_load(code, source + i, out, at, moves)
                    at += 1
            source += step[FEATURES]
            if step[SAVES]:  # the next result buffer, never one that meets that of the save before
                slot = (slot + 1) % buffers if slots == buffers else 1 - slot // 2 if buffers == 2 else 2 * (1 - slot)
                slots = buffers
            result = slot * result_size
            if step[OPERANDS]:
                wait = max(wait, compute2)  # it has waited for the save that used the buffer before
                moves[3] = np.uint64(result) << _LOCAL
                for i in range(step[OPERANDS]):
                    _copy_load(code, source + i, out, at, moves)
                    at += 1
            source += step[OPERANDS]
            loaded = at > first_load
            if loaded:
                if wait > waited:  # no earlier load has waited for it or a later one
                    out[first_load, 0] |= _WAIT_NEXT
                    out[wait, 0] |= _RAISE_PREV
                    waited = wait
                out[at - 1, 0] |= _RAISE_NEXT
            first_compute = at
            for i in range(step[COMPUTES]):
                _copy_compute(code, source + i, out, at, weight, parameter, table, feature_buffer * half, result)
                at += 1
            source += step[COMPUTES]
            if loaded:
                out[first_compute, 0] |= _WAIT_PREV
            compute2 = compute1
            compute1 = at - 1
            if feature_buffer:
                feature_uses1 = compute1
            else:
                feature_uses = compute1
            if step[WEIGHTS]:
                used = compute1
            if step[SAVES]:
                out[compute1, 0] |= _RAISE_NEXT
                if save2 >= 0:
                    out[first_compute, 0] |= _WAIT_NEXT
                    out[save2, 0] |= _RAISE_PREV
                first_save = at
                for i in range(step[SAVES]):
                    for j in range(parts_count):
                        row, row_end, mask = parts[j, 0], parts[j, 1], parts[j, 2]
                        _copy_save(p, ifps, code, source + i, out, at, result, row, row_end, mask, word_bytes)
                        at += 1
                out[first_save, 0] |= _WAIT_PREV
                save2 = save1
                save1 = at - 1
                save_count += at - first_save
        memory[SAVED3], memory[SAVED2], memory[SAVED1] = memory[SAVED2], memory[SAVED1], save_count
        if again and p == begin:
            _sync(out, at, layer - 1, sync_cores, save_count)
            at += 1
    if used >= 0:
        groups[number % GROUPS, G_USE] = used
    memory[FEATURE_BUFFER], memory[GROUP] = feature_buffer, number
    memory[FEATURE_USE], memory[FEATURE_USE1] = feature_uses, feature_uses1
    memory[COMPUTE1], memory[COMPUTE2], memory[WAITED] = compute1, compute2, waited
    memory[SAVE1], memory[SAVE2], memory[SLOT], memory[SLOTS] = save1, save2, slot, slots
    return at


@hot
def _fetch_step(
    step: Int32Row, layer: int, latest: int, code: Words, sizes: IntArray, memory: IntArray, groups: IntArray,
    moves: Words, out: Words, at: int
) -> int:  # fmt: skip
    """Fetch the weights of a step of a later layer; returns the place behind, or -1 if there is no room for them."""
    number = memory[NEXT]
    wait = take(memory, groups, step, sizes, latest)
    if wait == UNUSED:
        return -1
    groups[number % GROUPS, G_LAYER] = layer
    first = at
    at = _load_group(step, groups[number % GROUPS], sizes, code, out, at, moves)
    if wait > memory[WAITED]:
        out[first, 0] |= _WAIT_NEXT
        out[wait, 0] |= _RAISE_PREV
        memory[WAITED] = wait
    return at


@hot
def _fetch_ahead(
    layer: int, core: int, behind_layer: int, ifps: Int32Array, steps: Int32Array, code: Words, dealt: IntArray,
    sizes: IntArray, memory: IntArray, groups: IntArray, moves: Words, out: Words, at: int
) -> int:  # fmt: skip
    """Behind a layer: fetch the first weights of the next one ahead of its SYNC, and those of layers behind it as long
    as there is room, all weights before them are there, and the packages at the end of this layer take long enough.

    A step's weights raise no token of their own: its features come later, and loads are complete in order.
    """
    begin, end = dealt[layer, core], dealt[layer, core + 1]
    time = np.int64(0)
    for p in range(max(begin, end - 4), end):
        time += ifps[p, LATENCY]
    following = layer + 1
    memory[AHEAD], memory[FULLY] = max(memory[AHEAD], layer), max(memory[FULLY], layer)
    while following < behind_layer and following <= layer + FURTHEST:
        begin, end = dealt[following, core], dealt[following, core + 1]
        if end > begin and memory[FULLY] < following:
            if memory[AHEAD] == following:  # only some of its weights are there
                return at
            weight_key, feature_key = np.int64(-1), np.int64(-1)
            first = np.int64(ifps[begin, FIRST_STEP])
            for s in range(first, ifps[end - 1, FIRST_STEP] + ifps[end - 1, STEPS]):
                step = steps[s]
                if step[WEIGHTS] and step[WEIGHT_KEY] != weight_key:
                    if step[FEATURES] == 0 or step[FEATURE_KEY] == feature_key:
                        return at
                    if s > first and step[WEIGHT_WORDS] > FEW_WORDS:
                        return at
                    time -= np.int64(step[WEIGHT_WORDS]) * WORD_CYCLES
                    if following > layer + 1 and time < 0:
                        return at
                    latest = UNUSED if following == layer + 1 else memory[COMPUTE2]
                    after = _fetch_step(step, following, latest, code, sizes, memory, groups, moves, out, at)
                    if after < 0:
                        return at
                    at = after
                    weight_key = np.int64(step[WEIGHT_KEY])
                    memory[AHEAD] = following
                feature_key = np.int64(step[FEATURE_KEY])
        memory[AHEAD], memory[FULLY] = max(memory[AHEAD], following), max(memory[FULLY], following)
        following += 1
    return at


@hot
def emit_core(
    core: int, first_layer: int, behind_layer: int, t: Tables, where: Place, state: State, dealt: IntArray,
    boxes: IntArray, holds: IntArray, out: Words, at: int, starts: Int32Array,
) -> int:  # fmt: skip
    """Write one core's stream from ``out[at]`` on, for layers ``first_layer .. behind_layer``, and each layer's first
    instruction into ``starts``; returns the place behind. ``holds`` as ``plan_syncs`` makes it."""
    # Arrays are taken out of their tuples once: each time costs a reference count.
    layers, ifps, steps, code, consumers = t.layers, t.ifps, t.steps, t.code, t.consumers
    bank_of, sizes = where.bank_of, where.sizes
    begin_of_stream = at
    memory, groups, moves = state.memory, state.groups, state.moves
    spans, parts, reach = state.spans, state.parts, state.reach
    forget(memory)
    for layer in range(first_layer, behind_layer):
        hold = holds[layer, core]
        if hold >= 0:
            behind = np.int64(0)
            for i in range(min(hold, 3)):
                behind += memory[SAVED1 + i]
            _sync(out, at, layer - 1, where.sync_cores, behind)
            at += 1
        starts[core, layer - first_layer] = at - begin_of_stream
        at = emit_layer(
            layer, core, layers, ifps, steps, code, consumers, bank_of, sizes, where.result_words, where.word_bytes,
            where.sync_cores, holds[layer, len(bank_of)], dealt, boxes, memory, groups, moves, spans, parts, reach, out,
            at,
        )  # fmt: skip
        if layer < behind_layer - 1:
            at = _fetch_ahead(
                layer, core, behind_layer, ifps, steps, code, dealt, sizes, memory, groups, moves, out, at
            )  # fmt: skip
    out[at, 0], out[at, 1], out[at, 2], out[at, 3] = _END, 0, 0, 0
    return at + 1
