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
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]  # or uint32 or uint8
Rows = tuple[Int, Int, Int, Int]
Columns = tuple[Int, Int, Int, Int, Int, Int]

STRIP = 16  # rows that are gathered at once: they stay in the first cache
HELD = 1 << 22  # bytes of gathered rows that are held at most, if one row is not more

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
def _lay(codes: Int8s, rows: Rows, columns: Columns, held: Words, holds: Ints, words: Words) -> None:
    """Fill ``words`` [blocks, height, width, chunks] from ``codes`` [source channels, source height, source width].

    ``rows``: kernel, stride, dilation, before. ``columns``: the same, and the value outside, and bytes of a chunk. What
    a row of the source brings to the channels, packed by columns, is held for the rows of the map that need it too: in
    ``held`` [chunks of a row, held rows and one that is all outside, width], of the rows ``holds``.
    """
    high, down, apart, above = rows
    each = columns[5]
    height, width = words.shape[1:3]
    flat, source_rows, places = words.reshape(-1), codes.shape[1], len(holds)
    size = columns[0] * codes.shape[0]  # bytes that a row of the source brings
    # Rows that stand in the source just as far apart as in the map are gathered as one long row: loops over short ones
    # take most of their time to begin and to end. That needs rows of which most are wanted.
    joined = codes.shape[2] == columns[1] * width and down <= 2 * high
    most = min(STRIP, places - (high - 1) * apart) if joined else 1
    holds[:] = -1
    for y in range(height):
        for tap in range(high):
            row = y * down - above + tap * apart
            place = places
            if 0 <= row < source_rows:
                place = row % places
                if holds[place] != row:
                    count = max(1, min(most, places - place, source_rows - row))
                    for n in range(count):
                        holds[place + n] = row + n
                    for part in range(len(held)):
                        gathered = held[part, place : place + count].reshape(-1)
                        _gather(codes, row, count, part * each, columns, width, gathered)
            for part in range(len(held)):
                chunk, over = divmod(tap * size + part * each, each)
                _put(held[part, place], over, chunk, y, words.shape, each, flat)
                if over + min(each, size - part * each) > each:
                    _put(held[part, place], over - each, chunk + 1, y, words.shape, each, flat)


@_compiled
def _gather(codes: Int8s, row: Int, count: Int, first: Int, columns: Columns, width: Int, target: Words) -> None:
    """Fill ``target`` [count * width] with the channels from ``first`` on that ``count`` rows of the source bring."""
    kernel, stride, dilation, left, outside, each = columns
    target[:] = 0
    for channel in range(first, min(first + each, kernel * codes.shape[0])):
        tap, plane = divmod(channel, codes.shape[0])
        at = np.uint64(8 * (channel - first))
        _lay_row(codes[plane, row : row + count].reshape(-1), tap * dilation - left, stride, outside, at, target)
        if count > 1:
            _mend_ends(codes.shape[2], tap * dilation - left, stride, outside, at, width, target)


@_compiled
def _put(
    source: Words, over: Int, chunk: Int, y: Int, shape: tuple[Int, Int, Int, Int], each: Int, flat: Words
) -> None:  # fmt: skip
    """Put a row's chunks ``over`` bytes into chunk ``chunk`` of row ``y`` of the map; what begins it, clears it."""
    height, width, chunks = shape[1:]
    begin = (chunk // chunks * height + y) * width * chunks + chunk % chunks
    if chunks == 1:
        _move(source, over, flat[begin : begin + width])
    else:
        _move(source, over, flat[begin : begin + width * chunks : chunks])


@_compiled
def _move(source: Words, over: Int, target: Words) -> None:
    if over > 0:
        by = np.uint64(8 * over)
        for x in range(len(source)):
            target[x] |= np.uint64(source[x]) << by
    else:
        by = np.uint64(-8 * over)
        for x in range(len(source)):
            target[x] = np.uint64(source[x]) >> by


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
    source: Floats, scales: tuple[Float, Float, Float, Float], codes: Int8s, rows: Rows, columns: Columns, held: Words,
    holds: Ints, words: Words,
) -> Int:  # fmt: skip
    """Both in one go, so that the interpreter is given away once. Returns whether a value was NaN."""
    scale, low, high, zero_point = scales
    unsound = _quantise(source.reshape(-1), scale, low, high, zero_point, codes.reshape(-1))
    if not unsound:
        _lay(codes, rows, columns, held, holds, words)
    return unsound


class Packer:
    """Packs arrays for one port, again and again into the same memory. Not safe from several threads at once."""

    def __init__(self, port: HostPort) -> None:
        self.port = port
        unit = np.dtype(np.uint64 if port.block % 8 == 0 else np.uint32 if port.block % 4 == 0 else np.uint8)
        each = unit.itemsize
        blocks = -(-port.channels // port.block)
        self._words = np.zeros((blocks, port.height, port.width, port.block // each), unit)
        self._bytes = self._words.reshape(-1).view(np.uint8)
        self._codes = np.zeros(port.map_shape, np.int8)
        channels, height, width = port.map_shape
        fold = port.fold or HostFold(channels, height, width, (1, 1), (1, 1), (1, 1), (0, 0), 0)
        rows, columns = zip(fold.kernel, fold.stride, fold.dilation, fold.before, strict=True)
        parts = -(-columns[0] * channels // each)
        span = (rows[0] - 1) * rows[2] + 1
        room = max(1, min(height, span + STRIP, HELD // (parts * port.width * each)))
        held = np.zeros((parts, room + 1, port.width), unit)
        lanes = held.view(np.uint8).reshape(parts, room + 1, port.width, each)
        for channel in range(columns[0] * channels):
            lanes[channel // each, room, :, channel % each] = fold.pad_value % 256
        self._room = rows, (*columns, fold.pad_value, each), held, np.zeros(room, np.int64), self._words
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
            if _quantise_and_lay(source, self._scales, self._codes, *self._room):
                raise InputError(f"wrong input: {self.port.name!r} holds NaN; expected: {self.port.text}")
            return self._bytes
        if self.port.dtype == "uint8":
            codes = np.bitwise_xor(source, np.uint8(0x80), out=self._codes.view(np.uint8)).view(np.int8)
        else:
            codes = source
        _lay(codes, *self._room)
        return self._bytes
