"""Quantisation as ONNX defines it, between float32 and the INT8 domain (uint8 values are shifted by 128).

It must not know layers, tensors or files.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int8Array = npt.NDArray[np.int8]


def quantise(x: npt.ArrayLike, scale: float, zero_point: int) -> Int8Array:
    """QuantizeLinear: float32 of any shape to int8, ``saturate(round_half_even(x / scale) + zero_point)``.

    ``zero_point`` is in the INT8 domain. The division is float32, as in ONNX. NaN becomes the zero point.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(np.asarray(x, dtype=np.float32) / np.float32(scale))
    steps = np.nan_to_num(steps, nan=0.0)  # infinities become the largest floats and saturate below
    codes: Int8Array = np.clip(steps.astype(np.float64) + zero_point, -128, 127).astype(np.int8)
    return codes


def dequantise(q: npt.NDArray[np.int8], scale: float, zero_point: int) -> npt.NDArray[np.float32]:
    """DequantizeLinear: int8 of any shape to float32, ``(q - zero_point) * scale``."""
    return (q.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)


def all_values(scale: float, zero_point: int) -> npt.NDArray[np.float32]:
    """The real values of all 256 codes, [256] float32, index ``q + 128``."""
    return dequantise(np.arange(-128, 128).astype(np.int8), scale, zero_point)


def to_int8_domain(q: npt.NDArray[np.generic]) -> Int8Array:
    """uint8 codes shifted by 128; int8 codes as they are. Raises TypeError for other types."""
    if q.dtype == np.int8:
        return q.astype(np.int8, copy=False)
    if q.dtype == np.uint8:
        return np.bitwise_xor(q.astype(np.uint8, copy=False), np.uint8(0x80)).view(np.int8)
    raise TypeError(f"codes must be int8 or uint8, not {q.dtype}")


def to_uint8(q: Int8Array) -> npt.NDArray[np.uint8]:
    """int8-domain codes as the uint8 codes that they stand for (shifted by 128)."""
    return np.ascontiguousarray(q).view(np.uint8) ^ np.uint8(0x80)
