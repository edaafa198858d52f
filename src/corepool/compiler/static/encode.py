"""Encodes many instructions of one kind at once, with NumPy, from the field table.

It must not know what the instructions are for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corepool.errors import InstructionError
from corepool.isa.table import OPCODE, Opcode, fields_of

Instructions = npt.NDArray[np.uint64]  # [n, 4]


def encode_many(opcode: Opcode, count: int, **values: npt.ArrayLike) -> Instructions:
    """``count`` instructions [count, 4]; a field's value is a number for all or an array [count]; fields not given are
    zero.

    Raises InstructionError for an unknown field or a value out of range.
    """
    words = np.zeros((count, 4), np.uint64)
    words[:, 0] = int(opcode)
    left = dict(values)
    for spec in fields_of(opcode):
        if spec is OPCODE or (spec.name not in left and not spec.positive):
            continue
        value = np.asarray(left.pop(spec.name, 0), np.int64)
        if count and (value.min() < spec.low or value.max() > spec.high):
            bad = value.min() if value.min() < spec.low else value.max()
            raise InstructionError(f"{opcode.name}.{spec.name} must be {spec.low}..{spec.high}, not {bad}")
        words[:, spec.word] |= (value & ((1 << spec.width) - 1)).astype(np.uint64) << np.uint64(spec.shift)
    if left:
        raise InstructionError(f"{opcode.name} has no field {', '.join(sorted(left))}")
    return words
