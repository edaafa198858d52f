"""How arrays of any logical shape lie on feature maps [C, H, W], and how the host packs images for folded stems.

It must not know ONNX or the layer graph: axes are tuples of 'c', 'h' and 'w'.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Axes = tuple[tuple[str, ...], ...]
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
    x: Int8Array, *, kernel: int, stride: int, dilation: int, left: int, pad_value: int, width_out: int
) -> Int8Array:
    """Packs kernel columns into channels: int8 [C, H, W] to [kernel * C, H, width_out].

    Channel ``t * C + c`` of column ``x`` is channel ``c`` of source column ``x * stride - left + t * dilation``, or
    ``pad_value`` where that lies outside the source.
    """
    channels, height, width = x.shape
    packed = np.full((kernel, channels, height, width_out), pad_value, dtype=np.int8)
    for t in range(kernel):
        source = np.arange(width_out) * stride - left + t * dilation
        inside = (source >= 0) & (source < width)
        packed[t][:, :, inside] = x[:, :, source[inside]]
    return packed.reshape(kernel * channels, height, width_out)
