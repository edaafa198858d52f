"""The one definition of the instruction set: every instruction, every field, its place, its width and its meaning.

It must not know what uses it. Encoder, decoder, listing, manual and hardware layout are all derived from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

INSTRUCTION_BYTES = 32
WORD_BITS = 64  # fields never straddle the 64-bit words of an instruction
ISA_VERSION = 1


class Opcode(IntEnum):
    """First four bits of every instruction. 0 and all numbers not named here are undefined and fault."""

    LOAD = 1
    SAVE = 2
    CONV = 3
    DWCONV = 4
    POOL = 5
    ADD = 6
    MUL = 7
    SYNC = 8
    END = 9


class Unit(IntEnum):
    """Who executes an instruction; SYSTEM is the dispatch itself."""

    LOAD = 0
    COMPUTE = 1
    SAVE = 2
    SYSTEM = 3


class Target(IntEnum):
    """On-chip memory that a LOAD fills."""

    FEATURE = 0
    WEIGHT = 1
    PARAMETER = 2
    RESULT = 3
    LUT = 4


class Shape(IntEnum):
    """How the array's P pixels lie in the output map (P = 4: 1 row x 4, 2 x 2, 4 rows x 1)."""

    ROW = 0
    SQUARE = 1
    COLUMN = 2


class PoolMode(IntEnum):
    MAX = 0
    SUM = 1


@dataclass(frozen=True)
class Field:
    """``width`` bits from bit ``lsb`` (0..255, counted over the whole little-endian instruction)."""

    name: str
    lsb: int
    width: int
    meaning: str
    signed: bool = False
    positive: bool = False  # zero is undefined

    @property
    def word(self) -> int:
        return self.lsb // WORD_BITS

    @property
    def shift(self) -> int:
        return self.lsb % WORD_BITS

    @property
    def low(self) -> int:
        return -(1 << (self.width - 1)) if self.signed else int(self.positive)

    @property
    def high(self) -> int:
        return (1 << (self.width - int(self.signed))) - 1


@dataclass(frozen=True)
class Instruction:
    """One instruction kind: opcode, executing unit, fields and purpose."""

    opcode: Opcode
    unit: Unit
    fields: tuple[Field, ...]
    purpose: str


OPCODE = Field("opcode", 0, 4, "instruction kind")
_TOKENS = (
    Field(
        "wait_prev", 4, 1, "start only with a token from the previous unit, and take it (order: load, compute, save)"
    ),
    Field("wait_next", 5, 1, "start only with a token from the next unit, and take it"),
    Field("raise_prev", 6, 1, "give the previous unit a token at the end"),
    Field("raise_next", 7, 1, "give the next unit a token at the end"),
)

_TRANSFER = (
    Field("rows", 16, 16, "rows of a channel block", positive=True),
    Field("address", 32, 32, "first byte in DDR, as an offset in the lease's window; a multiple of the word"),
    Field("blocks", 64, 16, "channel blocks", positive=True),
    Field("pixels", 80, 16, "words of a row", positive=True),
    Field("row_stride", 96, 32, "words in DDR from one row to the next"),
    Field("block_stride", 128, 32, "words in DDR from one channel block to the next"),
    Field("local", 160, 16, "first place on chip: line (FEATURE), else word of that memory (LUT: slot)"),
)

_COMPUTE = (
    Field("shape", 8, 2, "arrangement of the output pixels of a step: 0 row, 1 square, 2 column"),
    Field("first", 10, 1, "accumulators start from zero; otherwise they go on from the previous instruction"),
    Field("last", 11, 1, "results are written at the end; otherwise the accumulators are kept (one output group only)"),
    Field("lut", 12, 1, "look every result up in the table"),
    Field("lut_slot", 13, 1, "which table"),
    Field("lut_after_add", 14, 1, "look up after the residual addition instead of before it"),
    Field(
        "residual",
        15,
        1,
        "add the word that stands at the result's place; constants: parameter word behind those of the output blocks",
    ),
    Field("mode", 16, 1, "POOL: 0 maximum, 1 sum. MUL: 1 if the operand is one word per channel block"),
    Field("in_blocks", 18, 12, "input channel blocks", positive=True),
    Field("out_blocks", 30, 10, "output channel blocks", positive=True),
    Field("kernel_h", 40, 8, "kernel rows", positive=True),
    Field("kernel_w", 48, 12, "kernel columns", positive=True),
    Field("stride_y", 60, 4, "input rows per output row", positive=True),
    Field("stride_x", 64, 4, "input columns per output column", positive=True),
    Field("dilation_y", 68, 5, "input rows per kernel row", positive=True),
    Field("dilation_x", 73, 5, "input columns per kernel column", positive=True),
    Field("rows", 78, 11, "output rows", positive=True),
    Field("cols", 89, 13, "output columns", positive=True),
    Field("pad_value", 102, 8, "what is read outside the input tile", signed=True),
    Field("start_y", 110, 9, "input row of output row 0 and kernel row 0, negative in the padding", signed=True),
    Field("start_x", 119, 9, "input column of output column 0 and kernel column 0", signed=True),
    Field("in_rows", 128, 11, "rows of the input tile", positive=True),
    Field("in_cols", 139, 14, "columns of the input tile", positive=True),
    Field("zero_point", 153, 8, "of the result", signed=True),
    Field("low", 161, 8, "lower clamp of the result", signed=True),
    Field("high", 169, 8, "upper clamp of the result", signed=True),
    Field("parameter", 177, 10, "first parameter word"),
    Field("feature", 192, 14, "first line of the input tile in the feature memory"),
    Field("row_pitch", 206, 10, "lines from one input row to the next"),
    Field("block_pitch", 216, 14, "lines from one input channel block to the next"),
    Field("weight", 230, 12, "first weight word; ADD and MUL: see operand"),
    Field("result", 242, 14, "first result word"),
)

_OPERAND = Field("operand", 64, 14, "first word of the second operand in the result memory")


def _pick(*names: str) -> tuple[Field, ...]:
    return tuple(field for field in _COMPUTE if field.name in names)


def _without(*names: str) -> tuple[Field, ...]:
    return tuple(field for field in _COMPUTE if field.name not in names)


_ELEMENTWISE = _pick(
    "lut", "lut_slot", "out_blocks", "rows", "cols", "parameter", "feature", "row_pitch", "block_pitch", "result"
)

INSTRUCTIONS: dict[Opcode, Instruction] = {
    instruction.opcode: instruction
    for instruction in (
        Instruction(
            Opcode.LOAD,
            Unit.LOAD,
            (
                Field("target", 8, 3, "memory: 0 features, 1 weights, 2 parameters, 3 results, 4 LUT"),
                *_TRANSFER,
                Field("row_pitch", 176, 10, "FEATURE: lines from one row to the next on chip"),
                Field("block_pitch", 192, 14, "FEATURE: lines from one channel block to the next on chip"),
                Field(
                    "first_row", 206, 6, "FEATURE: number, modulo the memory's banks, of the first row within its tile"
                ),
            ),
            "copy blocks x rows x pixels words from DDR to a memory of the core; all but FEATURE are filled in order",
        ),
        Instruction(
            Opcode.SAVE,
            Unit.SAVE,
            (
                Field("banks", 8, 8, "the DDR banks to write to, a bit each", positive=True),
                *_TRANSFER,
                Field("block_skip", 192, 14, "words that are left out in the result memory behind each channel block"),
            ),
            "copy blocks x rows x pixels words from the result memory, word after word, to DDR",
        ),
        Instruction(
            Opcode.CONV,
            Unit.COMPUTE,
            _without("mode"),
            "convolution of all input with all output blocks; a weight word for each kernel row, column, input block",
        ),
        Instruction(
            Opcode.DWCONV,
            Unit.COMPUTE,
            _without("mode", "in_blocks", "shape", "residual", "lut_after_add"),
            "depthwise convolution; a weight word for each kernel row, so at most as many columns as block channels",
        ),
        Instruction(
            Opcode.POOL,
            Unit.COMPUTE,
            _without("in_blocks", "shape", "residual", "lut_after_add", "weight"),
            "maximum, or sum with requantisation (one parameter word for all blocks), over a window",
        ),
        Instruction(
            Opcode.ADD,
            Unit.COMPUTE,
            (*_ELEMENTWISE, _OPERAND),
            "sum of features and operand, each with its own multiplier",
        ),
        Instruction(
            Opcode.MUL,
            Unit.COMPUTE,
            (*_ELEMENTWISE, *_pick("mode"), _OPERAND),
            "product of features and operand",
        ),
        Instruction(
            Opcode.SYNC,
            Unit.SYSTEM,
            (
                Field(
                    "early",
                    4,
                    5,
                    "0: wait until all is done; e: only until at most e - 1 SAVEs wait in their queue, none is under "
                    "way, and all writes are acknowledged",
                ),
                Field("layer", 16, 16, "number of the layer that ends here, for the host to read"),
                Field("cores", 32, 32, "the cores that meet, a bit each: exactly those of the lease", positive=True),
            ),
            "wait until all units are idle (or less, see `early`) and all writes acknowledged, then for all cores of "
            "the lease",
        ),
        Instruction(
            Opcode.END, Unit.SYSTEM, (), "the stream ends here, when all units are idle and all writes acknowledged"
        ),
    )
}


def fields_of(opcode: Opcode) -> tuple[Field, ...]:
    """All fields of an instruction in order of their place: opcode, tokens (none for SYNC and END), its own."""
    instruction = INSTRUCTIONS[opcode]
    tokens = () if instruction.unit is Unit.SYSTEM else _unit_tokens(instruction.unit)
    return tuple(sorted((OPCODE, *tokens, *instruction.fields), key=lambda field: field.lsb))


def _unit_tokens(unit: Unit) -> tuple[Field, ...]:
    """LOAD has no previous and SAVE no next unit: those bits must be zero."""
    missing = {Unit.LOAD: "prev", Unit.SAVE: "next", Unit.COMPUTE: "-"}[unit]
    return tuple(field for field in _TOKENS if not field.name.endswith(missing))


def field_of(opcode: Opcode, name: str) -> Field:
    """The field ``name`` of an instruction. Raises KeyError."""
    for candidate in fields_of(opcode):
        if candidate.name == name:
            return candidate
    raise KeyError(f"{opcode.name} has no field {name!r}")


def reserved_mask(opcode: Opcode) -> int:
    """The 256-bit mask of bits that must be zero."""
    used = 0
    for field in fields_of(opcode):
        used |= ((1 << field.width) - 1) << field.lsb
    return ((1 << (8 * INSTRUCTION_BYTES)) - 1) ^ used


def check_table() -> None:
    """Raise ValueError if fields overlap, straddle a word or leave the instruction. Run by the tests."""
    for opcode in INSTRUCTIONS:
        used = 0
        for field in fields_of(opcode):
            mask = ((1 << field.width) - 1) << field.lsb
            if used & mask:
                raise ValueError(f"{opcode.name}.{field.name} overlaps another field")
            if field.shift + field.width > WORD_BITS or field.word > 3:
                raise ValueError(f"{opcode.name}.{field.name} straddles a word")
            used |= mask
