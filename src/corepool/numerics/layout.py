"""How arrays of any logical shape lie on feature maps [C, H, W], and how the host packs images for folded stems.

It must not know ONNX or the layer graph: axes are tuples of 'c', 'h' and 'w'.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Axes = tuple[tuple[str, ...], ...]
Pair = tuple[int, int]  # rows, columns
Int8Array = npt.NDArray[np.int8]
_ORDER = "chw"


def to_map(array: npt.NDArray[Any], axes: Axes, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """``array``, whose dimensions join map axes as ``axes`` says, as a map of ``shape`` (channels, height, width).

    Axes of size 1 may be left out. Raises ValueError if the sizes do not match.
    """
    names = [name for group in axes for name in group]
    sizes = [shape[_ORDER.index(name)] for name in names]
    order = sorted(range(len(names)), key=lambda i: _ORDER.index(names[i]))
    return array.reshape(sizes).transpose(order).reshape(shape)


def from_map(values: npt.NDArray[Any], axes: Axes, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The inverse of :func:`to_map`: a map [C, H, W] as an array of ``shape``."""
    names = [name for group in axes for name in group]
    present = sorted(names, key=_ORDER.index)
    kept = values.reshape([values.shape[_ORDER.index(name)] for name in present])
    return kept.transpose([present.index(name) for name in names]).reshape(shape)


def pack_fold(
    x: Int8Array, *, kernel: Pair, stride: Pair, dilation: Pair, before: Pair, pad_value: int, size: Pair
) -> Int8Array:
    """Packs kernel rows and columns into channels: int8 [C, H, W] to [kernel[0] * kernel[1] * C, *size].

    Channel ``(i * kernel[1] + j) * C + c`` of row ``y`` and column ``x`` is channel ``c`` of the source's row
    ``y * stride[0] - before[0] + i * dilation[0]`` and column ``x * stride[1] - before[1] + j * dilation[1]``, or
    ``pad_value`` where that lies outside the source.
    """
    packed = np.full((*kernel, x.shape[0], *size), pad_value, dtype=np.int8)
    for i, j in np.ndindex(*kernel):
        at = [
            np.arange(n) * s - b + t * d for n, s, b, t, d in zip(size, stride, before, (i, j), dilation, strict=True)
        ]
        rows, columns = (np.flatnonzero((a >= 0) & (a < n)) for a, n in zip(at, x.shape[1:], strict=True))
        packed[i, j][:, rows[:, None], columns] = x[:, at[0][rows][:, None], at[1][columns]]
    return packed.reshape(-1, *size)
