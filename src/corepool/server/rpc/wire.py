"""Looks through a message before it is parsed: what is small on the way in must not become huge in memory.

It must not know what messages mean. A parser makes an object of each field, be it two bytes long, and eight bytes of
each number; so fields are counted, and the bytes of numbers that are not raw.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]

from corepool.errors import RequestError, TooLargeError
from corepool.server.requests import MAX_TEXT_BYTES

CHECKED_BYTES = 1 << 16  # what is smaller does no harm
MAX_FIELDS = 1 << 14  # 1024 inputs and outputs with some parameters each
_VARINT, _FIXED64, _BYTES, _BEGIN, _END, _FIXED32 = range(6)
_WHOLE = (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)
Children = dict[int, Any]  # of a message: the descriptor of what each field holds, None for plain bytes


def check_size(data: bytes, descriptor: Any) -> None:
    """Raise RequestError for a message of too many fields, TooLargeError for one of too many numbers. What is no
    message at all is left to the parser."""
    if len(data) > CHECKED_BYTES:
        try:
            _Walk(data).message(0, len(data), descriptor)
        except _BrokenError:
            return


class _BrokenError(Exception):
    """This is no message."""


class _Walk:
    """Goes through the fields of a message and of those inside it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields = 0
        self._numbers = 0

    def message(self, place: int, end: int, descriptor: Any) -> None:
        known = {} if descriptor is None else descriptor.fields_by_number
        while place < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise RequestError(f"the message has more than {MAX_FIELDS} fields")
            tag, place = self._varint(place, end)
            kind = tag & 7
            if kind == _VARINT:
                _, place = self._varint(place, end)
            elif kind in (_FIXED64, _FIXED32):
                place += 8 if kind == _FIXED64 else 4
            elif kind == _BYTES:
                length, place = self._varint(place, end)
                if length > end - place:
                    raise _BrokenError
                self._content(place, place + length, known.get(tag >> 3))
                place += length
            elif kind not in (_BEGIN, _END):
                raise _BrokenError

    def _content(self, place: int, end: int, field: Any) -> None:
        if field is None or field.type in _WHOLE:
            return
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            self.message(place, end, field.message_type)
            return
        self._numbers += end - place
        if self._numbers > MAX_TEXT_BYTES:
            raise TooLargeError(
                f"the message has more than {MAX_TEXT_BYTES} bytes of numbers: send tensors as raw contents"
            )

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while place < end and shift < 70:
            byte = self._data[place]
            place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, place
            shift += 7
        raise _BrokenError
