"""Instruction fields as slices of a 256-bit signal, and the verdict on undefined words, straight from the field table.

It must not know what instructions do beyond which combinations cannot be executed.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Value

from corepool.config import HardwareConfig
from corepool.isa.table import (
    INSTRUCTIONS,
    OPCODE,
    Opcode,
    PoolMode,
    Shape,
    Target,
    Unit,
    field_of,
    fields_of,
    reserved_mask,
)


def get(word: Value, opcode: Opcode, name: str) -> Value:
    """The field ``name`` of an instruction word [256], as it lies for ``opcode``; signed fields as signed values."""
    spec = field_of(opcode, name)
    piece = word[spec.lsb : spec.lsb + spec.width]
    return piece.as_signed() if spec.signed else piece


def opcode_of(word: Value) -> Value:
    return word[OPCODE.lsb : OPCODE.lsb + OPCODE.width]


def is_opcode(word: Value, *opcodes: Opcode) -> Value:
    """One bit: the word's opcode is one of these."""
    return Cat(*(opcode_of(word) == int(opcode) for opcode in opcodes)).any()


def is_unit(word: Value, unit: Unit) -> Value:
    """One bit: the word is executed by ``unit``."""
    return is_opcode(word, *(opcode for opcode, kind in INSTRUCTIONS.items() if kind.unit is unit))


def shape_sizes(config: HardwareConfig) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the P pixels of a step, by number of the shape."""
    pixels = config.pixels
    side = 1 << (pixels.bit_length() - 1) // 2
    square = (side, side) if side * side == pixels else (2, pixels // 2)
    sizes = {Shape.ROW: (1, pixels), Shape.SQUARE: square, Shape.COLUMN: (pixels, 1)}
    return tuple(sizes[shape] for shape in Shape)


def undefined(word: Value, config: HardwareConfig) -> Value:
    """One bit: the word cannot be executed (unknown opcode, reserved bits, forbidden zeros, senseless combinations)."""
    good = [is_opcode(word, opcode) & ~_bad_kind(word, opcode, config) for opcode in INSTRUCTIONS]
    return ~Cat(*good).any()


def _bad_kind(word: Value, opcode: Opcode, config: HardwareConfig) -> Value:
    mask = reserved_mask(opcode)
    bad = [Cat(*(word[bit] for bit in range(256) if mask >> bit & 1)).any()]
    bad += [get(word, opcode, spec.name) == 0 for spec in fields_of(opcode) if spec.positive]
    if opcode in (Opcode.LOAD, Opcode.SAVE):
        bad.append(get(word, opcode, "address")[: config.word_bytes.bit_length() - 1].any())
    if opcode is Opcode.LOAD:
        bad.append(get(word, opcode, "target") > max(Target))
    if opcode is Opcode.CONV:
        bad.append(get(word, opcode, "shape") > max(Shape))
    if opcode is Opcode.DWCONV:
        bad.append(get(word, opcode, "kernel_w") > config.channels)
    if any(spec.name == "lut" for spec in fields_of(opcode)):
        bad.append(get(word, opcode, "lut") & (get(word, opcode, "lut_slot") >= config.lut_slots))
    if any(spec.name == "first" for spec in fields_of(opcode)):
        bad.append(_bad_partial(word, opcode, config))
    return Cat(*bad).any()


def _bad_partial(word: Value, opcode: Opcode, config: HardwareConfig) -> Value:
    """Without ``first`` or ``last`` there must be one output group, and no maximum."""
    too_large = []
    for shape, (rows, cols) in enumerate(shape_sizes(config)):
        if opcode is not Opcode.CONV and shape != Shape.ROW:
            continue
        chosen = get(word, opcode, "shape") == shape if opcode is Opcode.CONV else Const(1)
        large = (get(word, opcode, "rows") > rows) | (get(word, opcode, "cols") > cols)
        too_large.append(chosen & large)
    bad = Cat(*too_large).any() | (get(word, opcode, "out_blocks") > 1)
    if opcode is Opcode.POOL:
        bad |= get(word, opcode, "mode") == PoolMode.MAX
    return ~(get(word, opcode, "first") & get(word, opcode, "last")) & bad
