"""What an ONNX value can be while a model is read: constants, codes, real views of codes, unfinished sums.

It must not know ONNX nodes or emit layers: these are plain data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from corepool.compiler.static.frontend.views import Form
from corepool.compiler.static.graph import Padding, Pair

Int8Array = npt.NDArray[np.int8]
FloatTable = npt.NDArray[np.float32]
# Names of the ONNX nodes that a value came from, in order, as nested tuples: making the next one copies nothing.
Trail: TypeAlias = "tuple[str | Trail, ...]"


def flat(trail: Trail) -> tuple[str, ...]:
    """The names of a trail, each once."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    waiting: list[str | Trail] = [trail]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found[item] = None
        elif id(item) not in seen:  # values that share a past would else be walked through again and again
            seen.add(id(item))
            waiting.extend(reversed(item))
    return tuple(found)


@dataclass(frozen=True)
class Const:
    """A constant array of any type."""

    array: npt.NDArray[Any]


@dataclass(frozen=True)
class QuantConst:
    """A constant held as integer codes: real = scale * (codes - zero), scale and zero along ``axis`` if not scalar."""

    codes: npt.NDArray[np.int8] | npt.NDArray[np.int32]  # int8 or int32; uint8 already shifted by 128
    scale: npt.NDArray[np.float32]  # [] or [n]
    zero: npt.NDArray[np.int64]  # [] or [n]
    axis: int

    def _spread(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if values.ndim == 0:
            return values
        return values.reshape([-1 if i == self.axis else 1 for i in range(self.codes.ndim)])

    def real(self) -> npt.NDArray[np.float32]:
        centred = self.codes.astype(np.int64) - self._spread(self.zero)
        return np.asarray(centred.astype(np.float32) * self._spread(self.scale), dtype=np.float32)


@dataclass(frozen=True)
class RawInput:
    """A float32 graph input that has not been quantised yet."""

    name: str
    form: Form
    nodes: Trail = ()


@dataclass(frozen=True)
class Codes:
    """INT8 codes of a tensor, as QuantizeLinear leaves them."""

    tensor: str
    form: Form
    dtype: Literal["int8", "uint8"]
    nodes: Trail = ()


@dataclass(frozen=True)
class RawCodes:
    """An int8 or uint8 graph input whose scale its DequantizeLinear will tell."""

    name: str
    form: Form
    dtype: Literal["int8", "uint8"]
    nodes: Trail = ()


@dataclass(frozen=True)
class Pointwise:
    """A real function of one tensor's codes: ``table[q + 128]``.

    ``affine`` is (scale, zero point) if it is a plain view.
    """

    tensor: str
    form: Form
    table: FloatTable
    affine: tuple[float, int] | None
    nodes: Trail = ()


@dataclass(frozen=True)
class Linear:
    """A convolution that waits for its QuantizeLinear: real = sum of products * unit + bias, per channel, clipped."""

    tensor: str
    form: Form  # of the result
    weight: Int8Array
    zero: int  # of the input
    unit: npt.NDArray[np.float64]  # [Co]
    bias: npt.NDArray[np.float64]  # [Co], real
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    low: float = -math.inf
    high: float = math.inf
    nodes: Trail = ()


@dataclass(frozen=True)
class Average:
    """An average pooling that waits for its QuantizeLinear."""

    tensor: str
    form: Form
    affine: tuple[float, int]
    kernel: Pair
    stride: Pair
    padding: Padding
    dilation: Pair
    counts: tuple[int, ...]  # pixels that windows count; one entry if all count alike
    include_pad: bool
    low: float = -math.inf
    high: float = math.inf
    nodes: Trail = ()


@dataclass(frozen=True)
class Pairwise:
    """A sum or product of two maps that waits for its QuantizeLinear. ``b`` may be a per-channel vector in products."""

    kind: Literal["add", "mul"]
    a: Pointwise
    b: Pointwise
    form: Form
    sign: int = 1  # of b in sums: -1 subtracts
    low: float = -math.inf
    high: float = math.inf
    nodes: Trail = ()


@dataclass(frozen=True)
class Joined:
    """A concatenation on channels that waits for its QuantizeLinear."""

    parts: tuple[Pointwise, ...]
    form: Form
    nodes: Trail = ()


@dataclass(frozen=True)
class Padded:
    """A constant border, with a value off the tensor's own grid, that waits for its QuantizeLinear."""

    inner: Pointwise
    form: Form
    padding: Padding
    value: float
    nodes: Trail = ()


@dataclass(frozen=True)
class Bad:
    """What a node with a reported problem makes if not even its shape is known: readers are checked by themselves."""


Real: TypeAlias = RawInput | Pointwise | Linear | Average | Pairwise | Joined | Padded
Value: TypeAlias = Const | QuantConst | Codes | RawCodes | Real | Bad
Pending: TypeAlias = Linear | Average | Pairwise
