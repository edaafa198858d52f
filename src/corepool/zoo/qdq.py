"""Builds a quantised network layer by layer: draws weights, runs each layer in float, takes ranges, writes QDQ nodes.

It must not know any particular network, nor how a quantised network is compiled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from corepool.zoo.onnx_file import IR_VERSION, OPSET, GraphWriter

FloatArray = npt.NDArray[np.float32]
Activation = Literal["relu", "relu6"] | None
Pair = tuple[int, int]

_CHANNEL_SPREAD = 0.3  # log deviation of the sizes of a layer's filters, as folded batch normalisation leaves them
_BIAS_DEVIATION = 0.1  # against an output deviation of 1


@dataclass(frozen=True)
class Map:
    """A tensor of the network: its dequantised name, its float values and its quantisation."""

    name: str
    values: FloatArray
    scale: np.float32
    zero_point: int
    scale_name: str
    zero_name: str

    @property
    def channels(self) -> int:
        return int(self.values.shape[1])


def _rounded(value: float, digits: int) -> float:
    """Few digits, so that the last bits of float arithmetic, which differ between machines, hardly ever matter."""
    return float(f"{value:.{digits}g}")


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def _run(op: str, inputs: Sequence[FloatArray], **attributes: Any) -> FloatArray:
    """One float operator in onnxruntime, its weights fed as inputs so that large ones are not copied."""
    names = [f"x{index}" for index in range(len(inputs))]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(array.shape))
        for name, array in zip(names, inputs, strict=True)
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(op, names, ["y"], **attributes)], "layer", infos, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is loaded
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, dict(zip(names, inputs, strict=True)))
    return np.asarray(outputs[0], np.float32)


def sample_image(random: np.random.Generator, height: int, width: int) -> FloatArray:
    """A seeded [1, 3, H, W] image with detail at several sizes, in the range of normalised ImageNet pixels."""
    image = np.zeros((3, height, width), np.float32)
    for cell, strength in ((64, 1.0), (16, 0.6), (4, 0.4), (1, 0.3)):
        rows, columns = -(-height // cell), -(-width // cell)
        coarse = random.standard_normal((3, rows, columns), dtype=np.float32) * np.float32(strength)
        image += np.kron(coarse, np.ones((1, cell, cell), np.float32))[:, :height, :width]
    return np.clip(image, -2.118, 2.64)[np.newaxis]


class QdqNetwork:
    """A growing QDQ network. Each method adds a layer and returns its output, values included.

    Weights are INT8, symmetric, one scale per output channel; activations INT8 with zero points; biases INT32.
    Filters are scaled so that a layer's output has the deviation ``gain``: ranges stay sane at any depth.
    """

    def __init__(self, name: str, seed: int, shape: Pair, advance: Callable[[], None]) -> None:
        self._graph = GraphWriter(name)
        self._random = np.random.default_rng(seed)
        self._advance = advance
        self._shape = shape
        self.input = self._quantise("input", sample_image(self._random, *shape))

    def conv(
        self,
        x: Map,
        name: str,
        channels: int,
        kernel: int | Pair,
        *,
        stride: int = 1,
        pad: int | Pair = 0,
        groups: int = 1,
        activation: Activation = "relu",
        gain: float = 1.0,
    ) -> Map:
        """A convolution with bias and activation."""
        window, (top, left) = _pair(kernel), _pair(pad)
        attributes: dict[str, Any] = {
            "kernel_shape": list(window),
            "strides": [stride, stride],
            "pads": [top, left, top, left],
            "group": groups,
        }
        weight = self._draw((channels, x.channels // groups, *window))
        raw = _run("Conv", [x.values, weight], **attributes)
        inputs, y = self._weighted(x, name, weight, raw, gain)
        self._graph.node("Conv", inputs, name, **attributes)
        return self._activate(name, y, activation)

    def dense(self, x: Map, name: str, channels: int, *, activation: Activation = None, gain: float = 1.0) -> Map:
        """A fully connected layer of a flat map."""
        weight = self._draw((channels, x.channels))
        raw = np.asarray(x.values @ weight.T, np.float32)
        inputs, y = self._weighted(x, name, weight, raw, gain)
        self._graph.node("Gemm", inputs, name, transB=1)
        return self._activate(name, y, activation)

    def max_pool(self, x: Map, name: str, kernel: int, stride: int, pad: int = 0) -> Map:
        """Maximum of a window; quantised as its input is."""
        attributes: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        self._graph.node("MaxPool", [x.name], name, **attributes)
        return self._quantise_like(x, name, _run("MaxPool", [x.values], **attributes))

    def average_pool(self, x: Map, name: str, kernel: int, stride: int, pad: int = 0) -> Map:
        """Mean of a window, padding included; quantised as its input is."""
        attributes: dict[str, Any] = {
            "kernel_shape": [kernel] * 2,
            "strides": [stride] * 2,
            "pads": [pad] * 4,
            "count_include_pad": 1,
        }
        self._graph.node("AveragePool", [x.name], name, **attributes)
        return self._quantise_like(x, name, _run("AveragePool", [x.values], **attributes))

    def global_average_pool(self, x: Map, name: str) -> Map:
        """Mean of each channel, as a 1 x 1 map with a range of its own."""
        self._graph.node("GlobalAveragePool", [x.name], name)
        return self._quantise(name, x.values.mean(axis=(2, 3), keepdims=True))

    def flatten(self, x: Map, name: str) -> Map:
        """All but the batch as channels; quantised as its input is."""
        self._graph.node("Flatten", [x.name], name, axis=1)
        return self._quantise_like(x, name, x.values.reshape(1, -1))

    def add(self, a: Map, b: Map, name: str, *, activation: Activation = "relu") -> Map:
        """Sum of two maps."""
        self._graph.node("Add", [a.name, b.name], name)
        return self._activate(name, a.values + b.values, activation)

    def concat(self, parts: Sequence[Map], name: str) -> Map:
        """Maps side by side on the channel axis, requantised to their common range."""
        self._graph.node("Concat", [part.name for part in parts], name, axis=1)
        return self._quantise(name, np.concatenate([part.values for part in parts], axis=1))

    def model(self, logits: Map) -> onnx.ModelProto:
        """The finished model, from "input" to "logits"."""
        return self._graph.model(("input", [1, 3, *self._shape]), (logits.name, list(logits.values.shape)))

    def _draw(self, shape: tuple[int, ...]) -> FloatArray:
        weight = self._random.standard_normal(shape, dtype=np.float32)
        sizes = np.exp(self._random.normal(0.0, _CHANNEL_SPREAD, shape[0])).astype(np.float32)
        weight *= sizes.reshape(-1, *[1] * (len(shape) - 1))
        return weight

    def _weighted(
        self, x: Map, name: str, weight: FloatArray, raw: FloatArray, gain: float
    ) -> tuple[list[str], FloatArray]:
        """Scale raw = weight * x to the gain, write weight (used up by it) and bias, return node inputs and output."""
        factor = np.float32(_rounded(gain / float(raw.std()), 2))
        channels = weight.shape[0]
        rows = weight.reshape(channels, -1)
        peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        np.multiply(rows, (np.float32(127) / peaks)[:, np.newaxis], out=rows)
        np.rint(rows, out=rows)
        scales = np.asarray(peaks * (factor / np.float32(127)), np.float32)
        bias = self._random.standard_normal((channels,), dtype=np.float32) * np.float32(_BIAS_DEVIATION * gain)
        bias_scales = np.asarray(x.scale * scales, np.float32)
        weight_name = self._dequantise(f"{name}.weight", weight.astype(np.int8), scales)
        bias_name = self._dequantise(f"{name}.bias", np.rint(bias / bias_scales).astype(np.int32), bias_scales)
        raw *= factor
        raw += bias.reshape(1, -1, *[1] * (raw.ndim - 2))
        self._advance()
        return [x.name, weight_name, bias_name], raw

    def _dequantise(self, name: str, values: npt.NDArray[Any], scales: FloatArray) -> str:
        """A constant with one scale per entry of its first axis, behind a DequantizeLinear node."""
        inputs = [
            self._graph.constant(f"{name}_quantized", values),
            self._graph.constant(f"{name}_scale", scales),
            self._graph.constant(f"{name}_zero_point", np.zeros(scales.shape, values.dtype)),
        ]
        return self._graph.node("DequantizeLinear", inputs, name, axis=0)

    def _activate(self, name: str, values: FloatArray, activation: Activation) -> Map:
        if activation is None:
            return self._quantise(name, values)
        np.maximum(values, 0, out=values)
        if activation == "relu":
            return self._quantise(self._graph.node("Relu", [name], f"{name}.relu"), values)
        np.minimum(values, 6, out=values)
        bounds = [
            self._graph.constant("zero", np.array(0, np.float32)),
            self._graph.constant("six", np.array(6, np.float32)),
        ]
        return self._quantise(self._graph.node("Clip", [name, *bounds], f"{name}.relu6"), values)

    def _quantise(self, name: str, values: FloatArray) -> Map:
        """Put Q and DQ behind a tensor, with the INT8 scale and zero point of its range (zero included)."""
        low = min(_rounded(float(values.min()), 3), 0.0)
        high = max(_rounded(float(values.max()), 3), 0.0)
        scale = np.float32((high - low) / 255 or 1.0)
        zero_point = int(np.clip(np.rint(-128 - low / scale), -128, 127))
        scale_name = self._graph.constant(f"{name}_scale", np.array(scale, np.float32))
        zero_name = self._graph.constant(f"{name}_zero_point", np.array(zero_point, np.int8))
        return self._pair_of_nodes(Map(name, values, scale, zero_point, scale_name, zero_name))

    def _quantise_like(self, x: Map, name: str, values: FloatArray) -> Map:
        return self._pair_of_nodes(replace(x, name=name, values=values))

    def _pair_of_nodes(self, x: Map) -> Map:
        constants = [x.scale_name, x.zero_name]
        quantised = self._graph.node("QuantizeLinear", [x.name, *constants], f"{x.name}_quantized")
        name = "logits" if x.name == "classifier" else f"{x.name}_dequantized"
        return replace(x, name=self._graph.node("DequantizeLinear", [quantised, *constants], name))
