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

STRIP = 16  # rows that are laid at once: they stay in the first cache

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
    ``x`` is channel ``c`` of source column ``x * stride - left + t * dilation``. ``row`` is room for STRIP rows.
    """
    stride, dilation, left, outside, each = fold
    blocks, height, width, chunks = words.shape
    planes, source_width = codes.shape[0], codes.shape[2]
    # Rows that stand in the source just as far apart as in the map are laid as one long row: loops over short ones take
    # most of their time to begin and to end.
    strip = min(height, STRIP) if source_width == stride * width else 1
    for b in range(blocks):
        for k in range(chunks):
            begin = (b * chunks + k) * each
            for y in range(0, height, strip):
                rows = min(strip, height - y)
                target = row[: rows * width]
                target[:] = 0
                for channel in range(begin, min(begin + each, channels)):
                    shift = channel // planes * dilation - left
                    at = np.uint64(8 * (channel - begin))
                    source = codes[channel % planes, y : y + rows].reshape(-1)
                    _lay_row(source, shift, stride, outside, at, target)
                    if rows > 1:
                        _mend_ends(source_width, shift, stride, outside, at, width, target)
                at_row = words[b, y : y + rows, :, k]
                for r in range(rows):
                    for x in range(width):
                        at_row[r, x] = target[r * width + x]


@_compiled
def _inside(shift: Int, stride: Int, source_width: Int, width: Int) -> tuple[Int, Int]:
    """The first column whose source column exists, and the one behind the last."""
    first = min(max(-(shift // stride), 0), width)
    return first, max(min((source_width - 1 - shift) // stride + 1, width), first)


@_compiled
def _lay_row(codes: Int8s, shift: Int, stride: Int, outside: Int, at: Int, row: Words) -> None:
    """Put every ``stride``-th code from column ``shift`` on into the byte of each word that begins at bit ``at``."""
    width = row.shape[0]
    first, last = _inside(shift, stride, codes.shape[0], width)
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
def _mend_ends(
    source_width: Int, shift: Int, stride: Int, outside: Int, at: Int, width: Int, rows: Words
) -> None:  # fmt: skip
    """Where rows of ``width`` words were laid as one, columns outside of the source have codes of the rows beside."""
    first, last = _inside(shift, stride, source_width, width)
    others, padding = ~(np.uint64(0xFF) << at), np.uint64(np.uint8(outside)) << at
    for begin in range(0, rows.shape[0], width):
        for x in range(begin, begin + first):
            rows[x] = (rows[x] & others) | padding
        for x in range(begin + last, begin + width):
            rows[x] = (rows[x] & others) | padding


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
        self._row = np.zeros(port.width * STRIP, unit)
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
