"""Instructions as the linker writes them: copied from a package, and patched where buffers, tokens or banks come in.

It must not know why an instruction goes where.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from corepool.compiler.dynamic.compiled import hot, inlined, one_by_one
from corepool.compiler.dynamic.rows import LANE, LANE_MASK, Rows
from corepool.isa.table import Opcode, Target, field_of

# Where instructions are patched: 64-bit word and shift, from the field table.
WAIT_PREV, WAIT_NEXT, RAISE_PREV, RAISE_NEXT = (
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
_TARGET, _TARGET_MASK = np.uint64(field_of(Opcode.LOAD, "target").shift), 7
assert [target >> 1 for target in (Target.WEIGHT, Target.PARAMETER, Target.LUT)] == [0, 1, 2]  # their lanes
_SYNC_LAYER, _SYNC_EARLY, _SYNC_CORES = (
    np.uint64(field_of(Opcode.SYNC, name).shift) for name in ("layer", "early", "cores")
)
_SYNC, _END = np.uint64(int(Opcode.SYNC)), np.uint64(int(Opcode.END))
_OPCODE, _DWCONV, _ADD = np.uint64(15), np.uint64(int(Opcode.DWCONV)), np.uint64(int(Opcode.ADD))
MOST_BEHIND = (1 << field_of(Opcode.SYNC, "early").width) - 2


@inlined
def _load(code: Rows, source: int, out: Rows, at: int, move: np.uint64) -> None:
    given, made = code[np.uint64(source)], out[np.uint64(at)]
    word0, word1, word2, word3 = given.word0, given.word1, given.word2, given.word3
    made.word0, made.word1, made.word2, made.word3 = word0, word1, word2 + move, word3


@inlined
def copy_loads(code: Rows, source: int, count: int, out: Rows, at: int, local: int) -> None:
    """Copy loads (one or more) that all go to one memory, moved by ``local`` places."""
    move = np.uint64(local) << _LOCAL
    _load(code, source, out, at, move)
    for i in range(1, count):  # seldom: what follows a loop that mostly runs once is hard to foresee for a processor
        _load(code, source + i, out, at + i, move)
        one_by_one()


@inlined
def copy_group(code: Rows, source: int, count: int, out: Rows, at: int, places: int) -> None:
    """Copy the loads of weights, parameters and tables to their places (lanes, see ``rows``)."""
    for i in range(count):
        target = np.int64(code[np.uint64(source + i)].word0 >> _TARGET) & _TARGET_MASK
        _load(code, source + i, out, at + i, np.uint64(places >> LANE * (target >> 1) & LANE_MASK) << _LOCAL)
        one_by_one()


@inlined
def _compute(
    code: Rows, source: int, out: Rows, at: int, flags: np.uint64, constants: np.uint64, operand: np.uint64,
    places: np.uint64, weights: np.uint64,
) -> None:  # fmt: skip
    given, made = code[np.uint64(source)], out[np.uint64(at)]
    word0, word1, word2, word3 = given.word0, given.word1, given.word2, given.word3
    opcode = word0 & _OPCODE
    word1 += np.uint64(opcode >= _ADD) * operand  # ADD and MUL
    word3 += places + np.uint64(opcode <= _DWCONV) * weights  # CONV and DWCONV
    made.word0, made.word1, made.word2, made.word3 = word0 | flags, word1, word2 + constants, word3


@inlined
def copy_computes(
    code: Rows, source: int, count: int, out: Rows, at: int, group: int, feature: int, result: int, tokens: np.uint64
) -> None:
    """Copy compute instructions (one or more) and point them at the places of their step, with the weights, parameters
    and table of its ``group`` (lanes, see ``rows``); the first gets ``tokens``."""
    slot = np.uint64(group >> 2 * LANE) << _LUT_SLOT
    constants = np.uint64(group >> LANE & LANE_MASK) << _PARAMETER
    operand, weights = np.uint64(result) << _OPERAND, np.uint64(group & LANE_MASK) << _WEIGHT
    places = (np.uint64(feature) << _FEATURE) + (np.uint64(result) << _RESULT)
    _compute(code, source, out, at, slot | tokens, constants, operand, places, weights)
    for i in range(1, count):
        _compute(code, source + i, out, at + i, slot, constants, operand, places, weights)
        one_by_one()


@inlined
def _save(code: Rows, source: int, out: Rows, at: int, local: np.uint64, flags: np.uint64) -> None:
    given, made = code[np.uint64(source)], out[np.uint64(at)]
    word0, word1, word2, word3 = given.word0, given.word1, given.word2, given.word3
    made.word0, made.word1, made.word2, made.word3 = (word0 & _BANKS_CLEAR) | flags, word1, word2 + local, word3


@inlined
def copy_saves(code: Rows, source: int, count: int, out: Rows, at: int, move: int, mask: int) -> None:
    """Copy saves (one or more) of whole tiles, with their source moved by ``move`` words, with their bank mask. The
    first waits for the computation."""
    local, banks = np.uint64(move) << _LOCAL, np.uint64(mask) << _BANKS
    _save(code, source, out, at, local, banks | WAIT_PREV)
    for i in range(1, count):
        _save(code, source + i, out, at + i, local, banks)
        one_by_one()


@inlined
def copy_part(ifp: Any, code: Rows, source: int, out: Rows, at: int, move: int, part: Any, word_bytes: int) -> None:
    """Copy a save, with its source moved by ``move`` words, for some rows of its tile, with their bank mask."""
    given, made = code[np.uint64(source)], out[np.uint64(at)]
    word0, word1, word3 = given.word0, given.word1, given.word3
    row, row_end = part.row, part.row_end
    if row != ifp.out_row or row_end != ifp.out_row_end:
        rows, pixels = np.int64((word0 >> _ROWS) & _MASK16), np.int64((word1 >> _PIXELS) & _MASK16)
        if ifp.flat_start >= 0:  # one long row: cut it at the true rows
            begin = max(row * ifp.width - ifp.flat_start, 0)
            end = min(row_end * ifp.width - ifp.flat_start, pixels)
            address, taken = begin, end - begin
            word1 = (word1 & _PIXELS_CLEAR) | np.uint64(taken) << _PIXELS
            skip, first = pixels - taken, begin
        else:
            address = (row - ifp.out_row) * np.int64(word1 >> _ROW_STRIDE)
            word0 = (word0 & _ROWS_CLEAR) | np.uint64(row_end - row) << _ROWS
            skip, first = (rows - (row_end - row)) * pixels, (row - ifp.out_row) * pixels
        move += first
        word0 += np.uint64(address * word_bytes) << _ADDRESS
        word3 |= np.uint64(skip) << _BLOCK_SKIP
    made.word0, made.word1 = (word0 & _BANKS_CLEAR) | (np.uint64(part.mask) << _BANKS), word1
    made.word2, made.word3 = given.word2 + (np.uint64(move) << _LOCAL), word3


@hot
def copy_parts(
    ifps: Rows, package: int, code: Rows, source: int, saves: int, out: Rows, at: int, move: int, parts: Rows,
    count: int, word_bytes: int,
) -> None:  # fmt: skip
    """Copy a package's saves, each in so many parts. The first waits for the computation."""
    ifp, first = ifps[np.uint64(package)], at
    for i in range(saves):
        for j in range(count):
            copy_part(ifp, code, source + i, out, at, move, parts[np.uint64(j)], word_bytes)
            at += 1
            one_by_one()
    out[np.uint64(first)].word0 |= WAIT_PREV


@inlined
def write_sync(out: Rows, at: int, layer: int, cores: int, behind: int) -> None:
    """A SYNC at which the latest ``behind`` saves may still be to come."""
    made = out[np.uint64(at)]
    made.word0 = (
        _SYNC
        | (np.uint64(min(behind, MOST_BEHIND) + 1) << _SYNC_EARLY)
        | (np.uint64(layer) << _SYNC_LAYER)
        | (np.uint64(cores) << _SYNC_CORES)
    )
    made.word1 = made.word2 = made.word3 = 0


@inlined
def write_end(out: Rows, at: int) -> None:
    made = out[np.uint64(at)]
    made.word0 = _END
    made.word1 = made.word2 = made.word3 = 0
