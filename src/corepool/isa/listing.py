"""The text form of instruction streams: one line each, for people and for tests.

It must not know what instructions do; names and values come from the field table.
"""

from __future__ import annotations

from collections.abc import Iterator

from corepool.errors import InstructionError
from corepool.isa.codec import decode, encode
from corepool.isa.table import INSTRUCTION_BYTES, Opcode, field_of

_TOKENS = ("wait_prev", "wait_next", "raise_prev", "raise_next")


def line(data: bytes) -> str:
    """One instruction as text: ``OPCODE [tokens] name=value ...``; fields that are zero are left out."""
    decoded = decode(data)
    tokens = [name for name in _TOKENS if decoded.values.get(name)]
    rest = [f"{name}={value}" for name, value in decoded.values.items() if value and name not in _TOKENS]
    return " ".join([f"{decoded.opcode.name:6}", *tokens, *rest]).rstrip()


def listing(stream: bytes) -> Iterator[str]:
    """Numbered lines of a stream; undefined instructions appear as such instead of ending the listing."""
    for start in range(0, len(stream), INSTRUCTION_BYTES):
        data = stream[start : start + INSTRUCTION_BYTES]
        try:
            text = line(data)
        except InstructionError as error:
            text = f"?????? {data.hex()}  ; {error}"
        yield f"{start // INSTRUCTION_BYTES:6}  {text}"


def parse(text: str) -> bytes:
    """The inverse of ``line``. Raises InstructionError."""
    name, *words = text.split()
    try:
        opcode = Opcode[name]
    except KeyError:
        raise InstructionError(f"no instruction is called {name!r}") from None
    values = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            field_of(opcode, key)
            values[key] = int(value) if value else 1
        except KeyError:
            raise InstructionError(f"{opcode.name} has no field {key!r}") from None
        except ValueError:
            raise InstructionError(f"{opcode.name}.{key}: {value!r} is not a number") from None
    return encode(opcode, **values)
