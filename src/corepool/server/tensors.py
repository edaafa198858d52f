"""Tensors as the protocol writes them, in binary and in JSON, to and from numpy arrays.

It must not know models, requests or transports. Nothing here trusts what it reads: sizes are compared before any copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.errors import RequestError

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_FLOATS = DTYPES["FP32"]
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 40  # more than any body limit lets through; products stay far from where they could wrap
MAX_TEXTS = 1 << 16  # elements of a BYTES tensor, each of which becomes an object
_PREFIX = 4  # bytes of the length before each element of a BYTES tensor


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's type; strings and objects are BYTES. Raises RequestError for other types."""
    if array.dtype == _FLOATS:  # nearly always
        return "FP32"
    if array.dtype.kind in "SUO":
        return "BYTES"
    name = DATATYPES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise RequestError(f"arrays of type {array.dtype} have no datatype in the protocol")
    return name


def check_shape(name: str, datatype: object, shape: object) -> tuple[int, ...]:
    """The shape as a tuple, if both type and shape can be. Raises RequestError."""
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise RequestError(f"tensor {shown(name)}: datatype {shown(datatype)} is none of {', '.join(DTYPES)}")
    if not isinstance(shape, Sequence) or isinstance(shape, str | bytes):
        raise RequestError(f"tensor {shown(name)}: the shape must be a list of whole numbers")
    if len(shape) > MAX_DIMENSIONS:
        raise RequestError(f"tensor {shown(name)}: {len(shape)} dimensions are more than {MAX_DIMENSIONS}")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise RequestError(f"tensor {shown(name)}: {shown(size)} is no size of a dimension")
    if math.prod(shape) > MAX_ELEMENTS or max(shape, default=0) > MAX_ELEMENTS:  # no elements, but a huge dimension
        raise RequestError(f"tensor {shown(name)}: the shape has more than {MAX_ELEMENTS} elements")
    return tuple(shape)


def shown(value: object) -> str:
    """A value of a client's for messages: quoted, without control characters, not longer than 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def from_binary(name: str, datatype: str, shape: tuple[int, ...], data: Buffer) -> Array:
    """A tensor from its little-endian bytes, without copying them; BYTES elements come as objects of type bytes.

    Raises RequestError unless the bytes are exactly those of the shape.
    """
    if datatype == "BYTES":
        return _split_bytes(name, shape, data)
    dtype = DTYPES[datatype]
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise RequestError(
            f"tensor {shown(name)}: {datatype} {list(shape)} has {wanted} bytes, but {len(data)} were sent"
        )
    if datatype == "BOOL":
        raw = np.frombuffer(data, np.uint8)
        if raw.size and raw.max() > 1:
            raise RequestError(f"tensor {shown(name)}: a BOOL byte is {int(raw.max())} instead of 0 or 1")
        return raw.view(np.bool_).reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape)


def _split_bytes(name: str, shape: tuple[int, ...], data: Buffer) -> Array:
    count, view, place = math.prod(shape), memoryview(data), 0
    if count > MAX_TEXTS:
        raise RequestError(f"tensor {shown(name)}: {count} BYTES elements are more than {MAX_TEXTS}")
    if len(view) < count * _PREFIX:
        raise RequestError(f"tensor {shown(name)}: {count} BYTES elements do not fit into {len(view)} bytes")
    elements = np.empty(count, dtype=object)
    for index in range(count):
        begin = place + _PREFIX
        end = begin + int.from_bytes(view[place:begin], "little")
        if begin > len(view) or end > len(view):
            raise RequestError(f"tensor {shown(name)}: BYTES element {index} ends behind the data")
        elements[index] = bytes(view[begin:end])
        place = end
    if place != len(view):
        raise RequestError(f"tensor {shown(name)}: {len(view) - place} bytes are left behind the last element")
    return elements.reshape(shape)


def to_binary(array: Array) -> bytes:
    """Little-endian bytes in row-major order; BYTES elements with their lengths before them."""
    if datatype_of(array) != "BYTES":
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    parts: list[bytes] = []
    for element in array.reshape(-1):
        raw = as_bytes(element)
        parts += (len(raw).to_bytes(_PREFIX, "little"), raw)
    return b"".join(parts)


def as_bytes(element: object) -> bytes:
    """An element of a BYTES tensor; texts in UTF-8."""
    return element if isinstance(element, bytes) else str(element).encode("utf-8", "surrogatepass")


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Array:
    """A tensor from JSON values, nested as the shape or flat. Raises RequestError for wrong kinds, ranges and sizes."""
    if not isinstance(data, list):
        raise RequestError(f"tensor {shown(name)}: data must be a list")
    flat, found = _flatten(name, data)
    if len(flat) != math.prod(shape) or (len(found) > 1 and found != shape):
        raise RequestError(f"tensor {shown(name)}: the data are {list(found)}, the shape is {list(shape)}")
    dtype = DTYPES[datatype]
    if not set(map(type, flat)) <= _JSON_TYPES[dtype.kind]:
        raise RequestError(f"tensor {shown(name)}: the data are not {datatype} values")
    if datatype == "BYTES":
        made: Array = np.empty(len(flat), dtype=object)
        made[:] = [each.encode("utf-8", "surrogatepass") for each in flat]
        return made.reshape(shape)
    try:
        if dtype.kind == "f":
            return _rounded(np.array(flat, np.float64), dtype).reshape(shape)
        return np.array(flat, dtype).reshape(shape)
    except OverflowError:
        raise RequestError(f"tensor {shown(name)}: a value does not fit into {datatype}") from None


_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}, "O": {str}}


def _flatten(name: str, data: list[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """The values in row-major order, and the sizes of the nested lists. Raises RequestError for ragged lists."""
    flat, sizes = data, [len(data)]
    while flat and isinstance(flat[0], list):
        if set(map(type, flat)) != {list} or len(set(map(len, flat))) != 1 or len(sizes) == MAX_DIMENSIONS:
            raise RequestError(f"tensor {shown(name)}: the data are ragged, or nested too deep")
        sizes.append(len(flat[0]))
        flat = list(chain.from_iterable(flat))
    return flat, tuple(sizes)


def _rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        made = values.astype(dtype)
    if not np.isfinite(made).all() and np.isfinite(values).all():
        raise OverflowError
    return made


def to_json(name: str, array: Array) -> list[Any]:
    """JSON values, flat in row-major order. Raises RequestError for what JSON cannot write."""
    if datatype_of(array) == "BYTES":
        try:
            return [as_bytes(each).decode() for each in array.reshape(-1)]
        except UnicodeDecodeError:
            raise RequestError(f"output {shown(name)} is not text: ask for it in binary") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"output {shown(name)} holds NaN or infinity, which JSON cannot write: ask for binary data")
    values: list[Any] = array.reshape(-1).tolist()
    return values
