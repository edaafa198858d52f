"""Encode and decode instructions: Python values to 32 little-endian bytes and back, straight from the field table.

It must not know what instructions do. Bulk decoding with NumPy lives with those who need it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from corepool.errors import InstructionError
from corepool.isa.table import INSTRUCTION_BYTES, INSTRUCTIONS, OPCODE, Opcode, fields_of, reserved_mask


@dataclass(frozen=True)
class Decoded:
    """An instruction as opcode and field values (every field of the opcode is present)."""

    opcode: Opcode
    values: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.values[name]


def encode(opcode: Opcode, **values: int) -> bytes:
    """The 32 bytes of an instruction. Fields that are not given are zero.

    Raises InstructionError for an unknown field, a value out of range, or zero where zero is undefined.
    """
    word = int(opcode)
    left = dict(values)
    for spec in fields_of(opcode):
        if spec is OPCODE:
            continue
        value = left.pop(spec.name, 0)
        if not spec.low <= value <= spec.high:
            raise InstructionError(f"{opcode.name}.{spec.name} must be {spec.low}..{spec.high}, not {value}")
        word |= (value & ((1 << spec.width) - 1)) << spec.lsb
    if left:
        raise InstructionError(f"{opcode.name} has no field {', '.join(sorted(left))}")
    return word.to_bytes(INSTRUCTION_BYTES, "little")


def decode(data: bytes) -> Decoded:
    """The instruction in 32 bytes. Raises InstructionError for what the machine would fault on as undefined."""
    if len(data) != INSTRUCTION_BYTES:
        raise InstructionError(f"an instruction has {INSTRUCTION_BYTES} bytes, not {len(data)}")
    word = int.from_bytes(data, "little")
    number = word & ((1 << OPCODE.width) - 1)
    if number not in INSTRUCTIONS:
        raise InstructionError(f"opcode {number} is undefined")
    opcode = Opcode(number)
    if word & reserved_mask(opcode):
        raise InstructionError(f"{opcode.name} has reserved bits set")
    values = {}
    for spec in fields_of(opcode):
        if spec is OPCODE:
            continue
        value = (word >> spec.lsb) & ((1 << spec.width) - 1)
        if spec.signed and value >> (spec.width - 1):
            value -= 1 << spec.width
        if value < spec.low:
            raise InstructionError(f"{opcode.name}.{spec.name} must not be {value}")
        values[spec.name] = value
    return Decoded(opcode, values)
