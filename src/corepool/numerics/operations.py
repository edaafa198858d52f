"""The one bit-exact meaning of every operation of the machine, on int8 feature maps of shape [C, H, W].

It must not know layer graphs, tilings or instructions; speed matters only as far as whole networks must be checked.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]
Pair = tuple[int, int]
Padding = tuple[int, int, int, int]  # top, left, bottom, right

EXACT_PRODUCTS = 1024  # int8 products whose float32 sum is exact: 1024 * 128 * 128 = 2**24
_COLUMN_BYTES = 24 << 20  # of unfolded float32 input held at a time
_INT32 = 2**31


def out_size(size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    """Output positions along one axis of a padded window operation (0 or less if the window does not fit)."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def pad(x: Int8Array, padding: Padding, value: int) -> Int8Array:
    """``x`` with a border of ``value``; int8 [C, H + top + bottom, W + left + right]."""
    if not any(padding):
        return x
    top, left, bottom, right = padding
    channels, height, width = x.shape
    padded = np.full((channels, height + top + bottom, width + left + right), value, dtype=np.int8)
    padded[:, top : top + height, left : left + width] = x
    return padded


def windows(
    x: Int8Array, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair, pad_value: int
) -> npt.NDArray[np.int8]:
    """All windows of a map as a read-only view, int8 [C, Hout, Wout, kh, kw]. Raises ValueError if none fits."""
    padded = pad(x, padding, pad_value)
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    if span[0] > padded.shape[1] or span[1] > padded.shape[2]:
        raise ValueError(
            f"a window of {span[0]} x {span[1]} does not fit a map of {padded.shape[1]} x {padded.shape[2]}"
        )
    view = sliding_window_view(padded, span, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def conv2d(
    x: Int8Array,
    weight: Int8Array,
    *,
    stride: Pair = (1, 1),
    padding: Padding = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
) -> Int32Array:
    """Sums of products of a convolution, int32 [Co, Hout, Wout]; ``weight`` is [Co, C / groups, kh, kw].

    The input's zero point is not subtracted: that is the bias' part. Padding reads ``pad_value``.
    Raises ValueError for channel counts that do not match and for kernels larger than the padded map.
    """
    outputs, per_group, kh, kw = weight.shape
    if per_group * groups != x.shape[0] or outputs % groups:
        raise ValueError(f"weights {weight.shape} in {groups} groups do not match an input of {x.shape[0]} channels")
    view = windows(x, (kh, kw), stride, padding, dilation, pad_value)
    if per_group == 1:
        return _depthwise(view, weight.reshape(outputs, kh, kw))
    height, width = view.shape[1:3]
    result = np.empty((outputs, height, width), dtype=np.int32)
    share = outputs // groups
    for g in range(groups):
        out = slice(g * share, (g + 1) * share)
        _dense(view[g * per_group : (g + 1) * per_group], weight[out].reshape(share, -1), result[out])
    return result


def _depthwise(view: npt.NDArray[np.int8], weight: Int8Array) -> Int32Array:
    if weight.shape[0] != view.shape[0]:  # channel multiplier: every input channel feeds several outputs
        view = np.repeat(view, weight.shape[0] // view.shape[0], axis=0)
    total = np.zeros(view.shape[:3], dtype=np.int32)
    for ky in range(weight.shape[1]):
        for kx in range(weight.shape[2]):
            total += view[..., ky, kx] * weight[:, ky, kx, None, None].astype(np.int32)
    return total


def _dense(view: npt.NDArray[np.int8], weight: Int8Array, result: Int32Array) -> None:
    """``result[Co, H, W] = weight[Co, K] x view[Ci, H, W, kh, kw]``, exactly, by float32 matrix products."""
    channels, height, width, kh, kw = view.shape
    products = channels * kh * kw
    whole = weight.astype(np.float32) if weight.nbytes <= 16 << 20 else None
    rows = max(1, _COLUMN_BYTES // (4 * products * width))
    taps = view.transpose(0, 3, 4, 1, 2)
    for top in range(0, height, rows):
        part = taps[:, :, :, top : top + rows].astype(np.float32)
        columns = part.reshape(products, -1)
        total = np.zeros((weight.shape[0], columns.shape[1]), dtype=np.int32)
        for first in range(0, products, EXACT_PRODUCTS):
            chunk = slice(first, first + EXACT_PRODUCTS)
            left = weight[:, chunk].astype(np.float32) if whole is None else whole[:, chunk]
            total += (left @ columns[chunk]).astype(np.int32)
        result[:, top : top + rows] = total.reshape(weight.shape[0], -1, width)


def requantise(
    acc: npt.NDArray[np.int32] | npt.NDArray[np.int64],
    bias: npt.ArrayLike,
    multiplier: npt.ArrayLike,
    shift: npt.ArrayLike,
    zero_point: int,
    low: int = -128,
    high: int = 127,
) -> Int8Array:
    """``clamp((((acc + bias) * multiplier + (1 << (shift - 1))) >> shift) + zero_point, low, high)``, int8 [C, ...].

    ``bias``, ``multiplier`` and ``shift`` are scalars or one for each channel. The shift is arithmetic: rounding is to
    nearest, halves towards plus infinity. ``acc + bias`` must lie in int32: the compiler proves it, this asserts it.
    """

    def spread(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        wide = np.asarray(values, dtype=np.int64)
        return wide if wide.ndim == 0 else wide.reshape(-1, *([1] * (acc.ndim - 1)))

    total = acc.astype(np.int64)
    total += spread(bias)
    assert total.size == 0 or (total.min() >= -_INT32 and total.max() < _INT32), "acc + bias leaves int32"
    shifts = spread(shift)
    total *= spread(multiplier)
    total += np.left_shift(np.int64(1), shifts - 1)
    total >>= shifts
    total += zero_point
    codes: Int8Array = np.clip(total, low, high, out=total).astype(np.int8)
    return codes


def pool_max(
    x: Int8Array,
    kernel: Pair,
    *,
    stride: Pair = (1, 1),
    padding: Padding = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    pad_value: int = -128,
) -> Int8Array:
    """Largest value of each window, int8 [C, Hout, Wout]."""
    view = windows(x, kernel, stride, padding, dilation, pad_value)
    best = np.array(view[..., 0, 0])
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            np.maximum(best, view[..., ky, kx], out=best)
    return best


def pool_sum(
    x: Int8Array,
    kernel: Pair,
    *,
    stride: Pair = (1, 1),
    padding: Padding = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    pad_value: int = 0,
) -> Int32Array:
    """Sum of each window, padding included as ``pad_value``; int32 [C, Hout, Wout]."""
    view = windows(x, kernel, stride, padding, dilation, pad_value)
    total = np.zeros(view.shape[:3], dtype=np.int32)
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            total += view[..., ky, kx]
    return total


def window_counts(
    height: int, width: int, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> Int32Array:
    """How many pixels of the map itself (padding excluded) each window holds, int32 [Hout, Wout]."""
    ones = np.ones((1, height, width), dtype=np.int8)
    counts: Int32Array = pool_sum(ones, kernel, stride=stride, padding=padding, dilation=dilation, pad_value=0)[0]
    return counts


def add(
    a: Int8Array,
    b: Int8Array,
    multiplier_a: int,
    multiplier_b: int,
    offset: int,
    shift: int,
    zero_point: int,
    low: int = -128,
    high: int = 127,
) -> Int8Array:
    """``clamp(((a * ma + b * mb + offset + (1 << (shift - 1))) >> shift) + zero_point, low, high)``, in int32."""
    constant = np.int64(offset) + (1 << (shift - 1))
    total = a.astype(np.int64) * multiplier_a + b.astype(np.int64) * multiplier_b + constant
    assert total.size == 0 or (total.min() >= -_INT32 and total.max() < _INT32), "the sum of ADD leaves int32"
    codes: Int8Array = np.clip((total >> shift) + zero_point, low, high).astype(np.int8)
    return codes


def mul(
    a: Int8Array,
    b: Int8Array,
    zero_a: int,
    zero_b: int,
    multiplier: int,
    shift: int,
    zero_point: int,
    low: int = -128,
    high: int = 127,
) -> Int8Array:
    """``clamp((((a - za) * (b - zb) * multiplier + (1 << (shift - 1))) >> shift) + zero_point, low, high)``.

    ``b`` is a map like ``a`` or a vector [C, 1, 1].
    """
    product = (a.astype(np.int64) - zero_a) * (b.astype(np.int64) - zero_b)
    scaled = (product * multiplier + (1 << (shift - 1))) >> shift
    codes: Int8Array = np.clip(scaled + zero_point, low, high).astype(np.int8)
    return codes


def lut(x: Int8Array, table: Int8Array) -> Int8Array:
    """``table[x + 128]`` for each value; the table has 256 entries."""
    if table.shape != (256,):
        raise ValueError(f"a table has 256 entries, not {table.shape}")
    found: Int8Array = table[np.ascontiguousarray(x).view(np.uint8) ^ np.uint8(0x80)]
    return found
