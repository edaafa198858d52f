"""Lays inputs out for a device in one go, in compiled code: the same bytes as ``host.pack``, many times as fast.

It must not know devices, leases or what is checked elsewhere: names, types and shapes. Slow to import: only who runs
models pays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.errors import InputError
from corepool.jit import njit
from corepool.numerics import to_map
from corepool.runtime.host import HostFold, HostPort

Int = Any  # a machine integer: Python's outside, an int64 in compiled code
Float = Any
Floats = npt.NDArray[np.float32]
Int8s = npt.NDArray[np.int8]
Words = npt.NDArray[np.uint64]  # or uint32

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
_compiled = njit(**_OPTIONS)
_reordering = njit(fastmath={"reassoc"}, **_OPTIONS)


@_reordering
def _quantise(source: Floats, scale: Float, low: Float, high: Float, zero_point: Float, codes: Int8s) -> Int:
    """``codes`` of a flat array as ONNX QuantizeLinear makes them; returns whether one was NaN."""
    total = np.float32(0)
    for n in range(source.size):
        value = source[n] / scale  # which is positive and finite, so only NaN gives NaN
        value = low if value < low else value
        value = high if value > high else value
        total += value  # finite but for NaN, which passes the comparisons
        # Clipped before the zero point is added, all sums are small whole numbers and exact.
        codes[n] = np.int8(np.int32(np.rint(value) + zero_point))
    return total != total


@_compiled
def _lay(codes: Int8s, fold: tuple[Int, Int, Int, Int, Int], channels: Int, row: Words, words: Words) -> None:
    """Fill ``words`` [blocks, height, width, chunks] from ``codes`` [source channels, height, source width].

    ``fold``: stride, dilation, left, value outside, bytes of a chunk. Channel ``t * source channels + c`` of column
    ``x`` is channel ``c`` of source column ``x * stride - left + t * dilation``. ``row`` [width] is room.
    """
    stride, dilation, left, outside, each = fold
    blocks, height, width, chunks = words.shape
    planes, source_width = codes.shape[0], codes.shape[2]
    for b in range(blocks):
        for y in range(height):
            for k in range(chunks):
                row[:] = 0
                begin = (b * chunks + k) * each
                for channel in range(begin, min(begin + each, channels)):
                    shift = channel // planes * dilation - left
                    at = np.uint64(8 * (channel - begin))
                    _lay_row(codes[channel % planes, y], shift, stride, outside, source_width, at, row)
                for x in range(width):
                    words[b, y, x, k] = row[x]


@_compiled
def _lay_row(codes: Int8s, shift: Int, stride: Int, outside: Int, source_width: Int, at: Int, row: Words) -> None:
    """Put every ``stride``-th code from column ``shift`` on into the byte of each word that begins at bit ``at``."""
    width = row.shape[0]
    first = min(max(-(shift // stride), 0), width)
    last = max(min((source_width - 1 - shift) // stride + 1, width), first)
    padding = np.uint64(np.uint8(outside)) << at
    for x in range(first):
        row[x] |= padding
    for x in range(last, width):
        row[x] |= padding
    source, target = codes[first * stride + shift :], row[first:last]
    if stride == 1:
        for x in range(last - first):
            target[x] |= np.uint64(np.uint8(source[x])) << at
    elif stride == 2:  # a number that the compiler knows: it can shuffle then
        for x in range(last - first):
            target[x] |= np.uint64(np.uint8(source[2 * x])) << at
    elif stride == 4:
        for x in range(last - first):
            target[x] |= np.uint64(np.uint8(source[4 * x])) << at
    else:
        for x in range(last - first):
            target[x] |= np.uint64(np.uint8(source[stride * x])) << at


@_compiled
def _quantise_and_lay(
    source: Floats, scales: tuple[Float, Float, Float, Float], codes: Int8s,
    fold: tuple[Int, Int, Int, Int, Int], channels: Int, row: Words, words: Words,
) -> Int:  # fmt: skip
    """Both in one go, so that the interpreter is given away once. Returns whether a value was NaN."""
    scale, low, high, zero_point = scales
    unsound = _quantise(source.reshape(-1), scale, low, high, zero_point, codes.reshape(-1))
    if not unsound:
        _lay(codes, fold, channels, row, words)
    return unsound


class Packer:
    """Packs arrays for one port, again and again into the same memory. Not safe from several threads at once."""

    def __init__(self, port: HostPort) -> None:
        self.port = port
        unit = np.dtype(np.uint64 if port.block % 8 == 0 else np.uint32 if port.block % 4 == 0 else np.uint8)
        blocks = -(-port.channels // port.block)
        self._words = np.zeros((blocks, port.height, port.width, port.block // unit.itemsize), unit)
        self._bytes = self._words.reshape(-1).view(np.uint8)
        self._codes = np.zeros(port.map_shape, np.int8)
        self._row = np.zeros(port.width, unit)
        fold = port.fold or HostFold(port.channels, port.width, 1, 1, 1, 0, 0)
        self._fold = (fold.stride, fold.dilation, fold.left, fold.pad_value, unit.itemsize)
        zero = port.zero_point
        self._scales = tuple(np.float32(value) for value in (port.scale, -128 - zero, 127 - zero, zero))

    def pack(self, array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """The bytes of the map, valid until the next call. ``array`` has the port's type and shape; raises InputError
        for NaN."""
        port = self.port
        if port.in_order:
            source = np.ascontiguousarray(array).reshape(port.map_shape)
        else:
            source = np.ascontiguousarray(to_map(array, port.axes, port.map_shape))
        if self.port.dtype == "float32":
            room = self._fold, self.port.channels, self._row, self._words
            if _quantise_and_lay(source, self._scales, self._codes, *room):
                raise InputError(f"wrong input: {self.port.name!r} holds NaN; expected: {self.port.text}")
            return self._bytes
        if self.port.dtype == "uint8":
            codes = np.bitwise_xor(source, np.uint8(0x80), out=self._codes.view(np.uint8)).view(np.int8)
        else:
            codes = source
        _lay(codes, self._fold, self.port.channels, self._row, self._words)
        return self._bytes
