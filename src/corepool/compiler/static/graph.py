"""The typed layer graph: what a network is once ONNX has been left behind, in whole numbers only.

It must not know ONNX, tilings or instructions. Frontend and passes produce it, tiling, code generation and the
reference executor read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Int8Array = npt.NDArray[np.int8]
Pair = tuple[int, int]
Padding = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True)
class Fold:
    """How the host packs kernel rows and columns of the network's image into channels before upload (stem folding).

    Channel ``(i * kernel[1] + j) * channels + c`` of the packed row ``y`` and column ``x`` is channel ``c`` of the
    source's row ``y * stride[0] - before[0] + i * dilation[0]`` and column ``x * stride[1] - before[1] + j *
    dilation[1]``, or ``pad_value`` outside the source. Pairs are rows, columns.
    """

    channels: int  # of the source, as height and width
    height: int
    width: int
    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    pad_value: int


@dataclass(frozen=True)
class Tensor:
    """A feature map of batch 1, ``channels x height x width`` INT8 values with value = scale * (q - zero_point).

    A tensor with a ``parent`` is no storage of its own: it is the channels ``channel_offset ..`` of that tensor
    (``channel_offset`` is a multiple of the machine's channel block; chains of parents are allowed).
    """

    name: str
    channels: int
    height: int
    width: int
    scale: float
    zero_point: int  # in the INT8 domain, -128..127; uint8 tensors are shifted by 128
    parent: str | None = None
    channel_offset: int = 0
    fold: Fold | None = None  # only for graph inputs

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Requant:
    """Per-channel requantisation: clamp(((acc + bias) * multiplier + half) >> shift) + zero_point, low, high)."""

    bias: npt.NDArray[np.int32]  # [C]
    multiplier: npt.NDArray[np.int64]  # [C], 2**15 .. 2**16 - 1 (or 0)
    shift: npt.NDArray[np.int64]  # [C], 1..47
    zero_point: int
    low: int = -128
    high: int = 127


@dataclass(frozen=True)
class AddParams:
    """Constants of ADD: clamp(((a * multiplier_a + b * multiplier_b + offset + half) >> shift) + zero_point, low,
    high)."""

    multiplier_a: int  # signed 17 bit at most: |m| <= 65535
    multiplier_b: int
    offset: int  # int32: -(zero_a * multiplier_a + zero_b * multiplier_b)
    shift: int  # 1..31
    zero_point: int
    low: int = -128
    high: int = 127


@dataclass(frozen=True)
class MulParams:
    """Constants of MUL: clamp((((a - zero_a) * (b - zero_b) * multiplier + half) >> shift) + zero_point, low, high)."""

    zero_a: int
    zero_b: int
    multiplier: int  # 2**15 .. 2**16 - 1
    shift: int  # 1..47
    zero_point: int
    low: int = -128
    high: int = 127


@dataclass(frozen=True)
class Residual:
    """A second input added to a convolution's requantised result on its way out (result is operand a, tensor is b)."""

    tensor: str
    params: AddParams


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What all layers share. ``origin`` names the ONNX nodes that the layer stands for."""

    name: str
    output: str
    origin: tuple[str, ...] = ()
    lut: Int8Array | None = None  # 256 entries, indexed by q + 128, applied to the layer's INT8 result
    steps: tuple[
        str, ...
    ] = ()  # names that fused results inside the layer would have as tensors, in order; only for reports

    @property
    def inputs(self) -> tuple[str, ...]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Conv(Layer):
    """Convolution of any group count; depthwise if groups == channels in == channels out.

    Fully connected layers are convolutions whose kernel is the whole input map.
    Order of the result: requantise, then ``lut`` (if not ``lut_after_add``), then ``residual``, then ``lut`` (if
    ``lut_after_add``).
    """

    input: str
    weight: Int8Array  # [Co, Ci / groups, kh, kw]
    requant: Requant  # bias has the input's zero point folded in: bias - zero_point * sum(weight)
    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    pad_value: int = 0  # the input's zero point
    residual: Residual | None = None
    lut_after_add: bool = False
    copy: bool = False  # weights 0 and 1 that only move channels: no work of the network's own
    taps: int = 0  # products of an output value that are work of the network's own; 0: one for each weight

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,) if self.residual is None else (self.input, self.residual.tensor)


@dataclass(frozen=True, kw_only=True)
class Pool(Layer):
    """Maximum or sum over a window. Sums are requantised per channel, with constants by how many pixels a window
    counts.

    Identity, standalone LUTs, requantising copies and Pad are 1x1 max pools (their padding reads ``pad_value``).
    """

    input: str
    mode: Literal["max", "sum"]
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    pad_value: int = -128  # -128 for max pooling; the input's zero point for sums
    # sum only: constants by the number of pixels that a window counts (scalars: the same for all channels).
    # With count_include_pad all windows count alike: one entry. Otherwise one entry for each count that occurs.
    by_count: dict[int, SumRequant] = field(default_factory=dict)
    count_include_pad: bool = True

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True)
class SumRequant:
    """Scalar form of Requant for pooling sums; bias is -(pixels actually summed, padding included) * zero point."""

    bias: int
    multiplier: int
    shift: int
    zero_point: int
    low: int = -128
    high: int = 127


@dataclass(frozen=True, kw_only=True)
class Add(Layer):
    """Sum of two maps of the same shape."""

    a: str
    b: str
    params: AddParams

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.a, self.b


@dataclass(frozen=True, kw_only=True)
class Mul(Layer):
    """Product of two maps, or of map ``a`` with the per-channel vector ``b`` (height = width = 1)."""

    a: str
    b: str
    params: MulParams

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.a, self.b


@dataclass(frozen=True)
class Port:
    """A graph input or output: how the host turns an ONNX tensor into a device tensor or back.

    ``axes`` tells how the ONNX shape is a view of the map (channels, height, width): for each ONNX dimension the map
    axes ('c', 'h', 'w') that it joins, in order; () for a dimension of 1. [1, C, H, W] is ((), ('c',), ('h',), ('w',)).
    ``dtype`` is float32, int8 or uint8: what the ONNX graph has at this edge. float32 ports are (de)quantised by the
    host.
    """

    name: str  # the ONNX name
    tensor: str
    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    dtype: Literal["float32", "int8", "uint8"]


@dataclass(frozen=True)
class HostNode:
    """An ONNX node that runs on the host, before or after the device, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class HostInput:
    """What users send where the host's first steps read it: ``dtype`` is numpy's name of the type."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass
class Graph:
    """Layers in execution order over named tensors. ``tail`` is an ONNX model (bytes) for the host, fed with the output
    ports; ``head`` is one that makes input ports from ``head_inputs``, which then stand for the network's inputs (those
    that are input ports themselves among them)."""

    name: str
    tensors: dict[str, Tensor]
    layers: list[Layer]
    inputs: list[Port]
    outputs: list[Port]
    host_nodes: list[HostNode] = field(default_factory=list)
    head: bytes = b""
    head_inputs: tuple[HostInput, ...] = ()
    tail: bytes = b""
    tail_outputs: tuple[
        str, ...
    ] = ()  # ONNX names of the outputs that the tail makes; other outputs are ports themselves
    removed: dict[str, str] = field(
        default_factory=dict
    )  # ONNX node name -> what became of it (folded, fused, view ...)

    def consumers(self, tensor: str) -> Iterator[Layer]:
        """Layers that read ``tensor`` by name."""
        return (layer for layer in self.layers if tensor in layer.inputs)

    def storage(self, tensor: str) -> tuple[str, int]:
        """The tensor that holds the bytes of ``tensor``, and the channel at which they begin."""
        offset = 0
        here = self.tensors[tensor]
        while here.parent is not None:
            offset += here.channel_offset
            here = self.tensors[here.parent]
        return here.name, offset

    def macs(self, layer: Layer) -> int:
        """Useful multiply-accumulates of a layer: those of the ONNX operator, without any zero padding of channels."""
        if not isinstance(layer, Conv) or layer.copy:
            return 0
        out = self.tensors[layer.output]
        return int(out.channels * out.height * out.width * (layer.taps or layer.weight[0].size))
