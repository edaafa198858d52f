"""Streams to columns of numbers, many instructions at once, with the verdict on each and what its timing depends on.

It must not know devices or memories; the places of fields come from the instruction table alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.isa.table import (
    INSTRUCTION_BYTES,
    INSTRUCTIONS,
    OPCODE,
    Opcode,
    Shape,
    Target,
    Unit,
    fields_of,
    reserved_mask,
)

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# Columns of the decoded table: every field name of the instruction table, in a fixed order.
NAMES: tuple[str, ...] = tuple(dict.fromkeys(spec.name for opcode in INSTRUCTIONS for spec in fields_of(opcode)))
COLUMN: dict[str, int] = {name: number for number, name in enumerate(NAMES)}

# Columns of the timing table.
KIND, TOKENS, DURATION, ADDRESS, OUTER, OUTER_STRIDE, INNER, INNER_STRIDE, RUN_BYTES, MASK, STEPS = range(11)
TIMING_COLUMNS = 11

# Values of KIND: the unit's number for 0..2, then
KIND_SYNC, KIND_END, KIND_UNDEFINED = 3, 4, 5

LONGEST = 1 << 60  # cycles; durations of senseless instructions are cut here, far beyond every watchdog


@dataclass(frozen=True)
class Decoded:
    """A stream in columns: ``fields`` [n, len(NAMES)] (zero where an opcode lacks a field), ``timing`` [n, 11]."""

    fields: Ints
    timing: Ints

    def __len__(self) -> int:
        return len(self.fields)

    def column(self, name: str) -> Ints:
        return self.fields[:, COLUMN[name]]


@cache
def _reserved_words(opcode: Opcode) -> tuple[int, ...]:
    mask = reserved_mask(opcode)
    return tuple((mask >> (64 * word)) & ((1 << 64) - 1) for word in range(INSTRUCTION_BYTES // 8))


def writes_into(program: Decoded, word_bytes: int, begin: int, end: int) -> bool:
    """Whether a SAVE may write into bytes ``begin .. end`` of the window: false only if none can."""
    saves = program.fields[program.column("opcode") == Opcode.SAVE]
    get = {name: saves[:, column] for name, column in COLUMN.items()}
    rows, blocks = get["rows"] - 1, get["blocks"] - 1
    words = blocks * get["block_stride"] + rows * get["row_stride"] + get["pixels"]
    first, last = get["address"], get["address"] + words * word_bytes
    return bool(((first < end) & (last > begin)).any())


def decode_stream(config: HardwareConfig, stream: npt.NDArray[np.uint8]) -> Decoded:
    """Decode a stream of whole instructions (uint8 [32 n]). Garbage is fine: it becomes UNDEFINED."""
    words = np.ascontiguousarray(stream).view("<u8").reshape(-1, INSTRUCTION_BYTES // 8)
    fields = np.zeros((len(words), len(NAMES)), np.int64)
    numbers = (words[:, 0] & np.uint64((1 << OPCODE.width) - 1)).astype(np.int64)
    fields[:, COLUMN["opcode"]] = numbers
    undefined = np.ones(len(words), np.bool_)
    for opcode in INSTRUCTIONS:
        rows = np.flatnonzero(numbers == int(opcode))
        if rows.size:
            undefined[rows] = _decode_kind(opcode, words[rows], rows, fields)
    _check_meaning(config, fields, undefined)
    return Decoded(fields, _timing_table(config, fields, undefined))


def _decode_kind(opcode: Opcode, words: npt.NDArray[np.uint64], rows: npt.NDArray[np.intp], fields: Ints) -> Flags:
    """Fill the rows of one opcode; returns which of them the field table calls undefined."""
    bad = np.zeros(len(rows), np.bool_)
    for number, mask in enumerate(_reserved_words(opcode)):
        if mask:
            bad |= (words[:, number] & np.uint64(mask)) != 0
    for spec in fields_of(opcode):
        raw = (words[:, spec.word] >> np.uint64(spec.shift)) & np.uint64((1 << spec.width) - 1)
        value = raw.astype(np.int64)
        if spec.signed:
            value = np.where(value >> (spec.width - 1) != 0, value - (1 << spec.width), value)
        if spec.positive:
            bad |= value == 0
        fields[rows, COLUMN[spec.name]] = value
    return bad


def _check_meaning(config: HardwareConfig, fields: Ints, undefined: Flags) -> None:
    """Add what is undefined beyond the field table: combinations that no unit can execute."""

    def get(name: str) -> Ints:
        return fields[:, COLUMN[name]]

    opcode = get("opcode")
    transfer = (opcode == Opcode.LOAD) | (opcode == Opcode.SAVE)
    conv, depthwise, pool = opcode == Opcode.CONV, opcode == Opcode.DWCONV, opcode == Opcode.POOL
    undefined |= transfer & (get("address") % config.word_bytes != 0)
    undefined |= (opcode == Opcode.LOAD) & (get("target") > max(Target))
    undefined |= conv & (get("shape") > max(Shape))
    undefined |= depthwise & (get("kernel_w") > config.channels)
    undefined |= (get("lut") != 0) & (get("lut_slot") >= config.lut_slots)
    partial = (conv | depthwise | pool) & ((get("first") == 0) | (get("last") == 0))
    shape_rows, shape_cols = _shape_sizes(config, np.where(conv, get("shape"), Shape.ROW))
    several = (get("out_blocks") > 1) | (get("rows") > shape_rows) | (get("cols") > shape_cols)
    undefined |= partial & (several | (pool & (get("mode") == 0)))


def shape_size(config: HardwareConfig, shape: int) -> tuple[int, int]:
    """Rows and columns of the P output pixels of a step."""
    pixels = config.pixels
    side = round(pixels**0.5)
    square = (side, side) if side * side == pixels else (2, pixels // 2)
    return {Shape.ROW: (1, pixels), Shape.SQUARE: square, Shape.COLUMN: (pixels, 1)}.get(Shape(shape), (1, pixels))


def _shape_sizes(config: HardwareConfig, shape: Ints) -> tuple[Ints, Ints]:
    sizes = np.array([shape_size(config, number) for number in Shape] + [(1, config.pixels)], np.int64)
    return sizes[shape, 0], sizes[shape, 1]


@cache
def conflict(config: HardwareConfig, shape: int, stride_y: int, stride_x: int) -> int:
    """The largest number of a step's pixels that lie in one feature bank: cycles that a CONV needs for each tap."""
    rows, cols = shape_size(config, shape)
    counts = np.zeros(config.feature_banks, np.int64)
    for y in range(rows):
        for x in range(cols):
            counts[(x * stride_x + max(config.pixels - 1, 1) * y * stride_y) % config.feature_banks] += 1
    return int(counts.max())


def _ceil_div(a: Ints, b: Ints | int) -> Ints:
    result: Ints = -(-a // b)
    return result


def _durations(config: HardwareConfig, fields: Ints) -> tuple[Ints, Ints]:
    """Cycles of compute instructions (0 for others), and cycles in which the array takes operands."""

    def get(name: str) -> Ints:
        return fields[:, COLUMN[name]]

    opcode = get("opcode")
    pixels = config.pixels
    conv = opcode == Opcode.CONV
    window = (opcode == Opcode.DWCONV) | (opcode == Opcode.POOL)
    pointwise = (opcode == Opcode.ADD) | (opcode == Opcode.MUL)
    shape = np.where(conv & (get("shape") <= max(Shape)), get("shape"), Shape.ROW)
    shape_rows, shape_cols = _shape_sizes(config, shape)
    clash = np.ones(len(fields), np.int64)
    keys = (shape * 16 + get("stride_y")) * 16 + get("stride_x")
    for key in np.unique(keys[conv]):
        clash[conv & (keys == key)] = conflict(config, int(key) >> 8, int(key) >> 4 & 15, int(key) & 15)
    groups = get("out_blocks") * _ceil_div(get("rows"), shape_rows) * _ceil_div(get("cols"), shape_cols)
    taps = get("kernel_h") * get("kernel_w") * get("in_blocks") * clash
    reach = (np.minimum(pixels, get("cols")) - 1) * get("stride_x") + (get("kernel_w") - 1) * get("dilation_x") + 1
    taps = np.where(window, get("kernel_h") * _ceil_div(reach, 2 * pixels), taps)
    fill = config.compute_latency
    long = groups.astype(np.float64) * np.maximum(taps, pixels) > LONGEST / 2
    safe = np.where(long, 0, groups)
    duration = np.where(get("last") != 0, safe * np.maximum(taps, pixels) + pixels + fill, taps + fill)
    words = get("out_blocks") * get("rows") * get("cols")
    duration = np.where(pointwise, words + pixels + fill, np.where(long, LONGEST, duration))
    steps = np.where(pointwise, words, safe * taps)
    compute = conv | window | pointwise
    return np.where(compute, duration, 0), np.where(compute, steps, 0)


def _timing_table(config: HardwareConfig, fields: Ints, undefined: Flags) -> Ints:
    def get(name: str) -> Ints:
        return fields[:, COLUMN[name]]

    opcode, word = get("opcode"), config.word_bytes
    table = np.zeros((len(fields), TIMING_COLUMNS), np.int64)
    kinds = np.full(16, KIND_UNDEFINED, np.int64)
    for number, instruction in INSTRUCTIONS.items():
        kinds[int(number)] = int(instruction.unit)
    kinds[int(Opcode.SYNC)], kinds[int(Opcode.END)] = KIND_SYNC, KIND_END
    assert kinds[int(Opcode.LOAD)] == int(Unit.LOAD)
    table[:, KIND] = np.where(undefined, KIND_UNDEFINED, kinds[opcode])
    for bit, name in enumerate(("wait_prev", "wait_next", "raise_prev", "raise_next")):
        table[:, TOKENS] |= get(name) << bit
    table[:, DURATION], table[:, STEPS] = _durations(config, fields)
    rows, pixels, blocks = get("rows"), get("pixels"), get("blocks")
    rows_touch = (rows == 1) | (get("row_stride") == pixels)
    blocks_touch = rows_touch & ((blocks == 1) | (get("block_stride") == rows * pixels))
    small = (opcode == Opcode.LOAD) & (get("target") == Target.FEATURE) & (rows * pixels < 4 * config.pixels)
    blocks_touch &= ~small | (blocks == 1)
    table[:, ADDRESS] = get("address")
    table[:, OUTER] = np.where(opcode == Opcode.SYNC, get("early"), np.where(blocks_touch, 1, blocks))
    table[:, OUTER_STRIDE] = get("block_stride") * word
    table[:, INNER] = np.where(rows_touch, 1, rows)
    table[:, INNER_STRIDE] = get("row_stride") * word
    table[:, RUN_BYTES] = pixels * np.where(rows_touch, rows, 1) * np.where(blocks_touch, blocks, 1) * word
    table[:, MASK] = np.where(opcode == Opcode.SYNC, get("cores"), get("banks"))
    return table
