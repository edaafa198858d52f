"""Tidies a float model before it is quantised: constants folded, factors merged into weights, no-ops removed.

It must not know calibration or the layer graph.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from corepool.compiler.static.frontend.context import Node, Unsupported
from corepool.compiler.static.frontend.fold import FOLDABLE, Folder
from corepool.compiler.static.frontend.nodes import in_order, read_nodes
from corepool.compiler.static.frontend.shapes import infer_shapes
from corepool.compiler.static.frontend.values import Const

FloatArray = npt.NDArray[np.float32]


class FloatModel:
    """A float model being tidied, in place; ``model`` is the result."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.folder = Folder(max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")))
        self.shapes = infer_shapes(model)
        self.removed: dict[str, str] = {}  # node name -> what became of it

    def run(self) -> onnx.ModelProto:
        """All steps. Raises ModelError for cycles and for values that nothing makes."""
        self._sort()
        self._remove_no_ops()
        self._fold_constants()
        self._write_as_sums_and_products()
        self._merge_factors()
        read = {name for node in self.graph.node for name in node.input} | {v.name for v in self.graph.output}
        kept = [tensor for name, tensor in self.constants.items() if name in read]
        inputs = [value for value in self.graph.input if value.name not in self.constants]
        del self.graph.initializer[:], self.graph.input[:], self.graph.value_info[:]
        self.graph.initializer.extend(kept)
        self.graph.input.extend(inputs)
        return self.model

    def _array(self, name: str) -> npt.NDArray[Any]:
        return numpy_helper.to_array(self.constants[name])

    def _set(self, name: str, values: npt.NDArray[Any]) -> None:
        self.constants[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)  # keeps scalars scalar

    def _replace_nodes(self, nodes: list[onnx.NodeProto]) -> None:
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _sort(self) -> None:
        known = {*self.constants, *(value.name for value in self.graph.input)}
        protos = list(self.graph.node)
        plain = read_nodes(self.graph)
        for node, proto in zip(plain, protos, strict=True):
            proto.name = node.name
        self._replace_nodes([protos[node.index] for node in in_order(plain, known)])

    def _remove_no_ops(self) -> None:
        """Identity and Dropout, unless they connect an input or constant straight with an output."""
        outputs = {value.name for value in self.graph.output}
        renamed: dict[str, str] = {}
        nodes = []
        for proto in self.graph.node:
            for i, name in enumerate(proto.input):
                proto.input[i] = renamed.get(name, name)
            no_op = proto.op_type == "Identity" or (proto.op_type == "Dropout" and self._inference(proto))
            if no_op and proto.output[0] not in outputs:
                renamed[proto.output[0]] = proto.input[0]
                self.removed[proto.name] = "removed"
            else:
                nodes.append(proto)
        self._replace_nodes(nodes)

    def _inference(self, dropout: onnx.NodeProto) -> bool:
        if len(dropout.input) < 3 or not dropout.input[2]:
            return True
        return dropout.input[2] in self.constants and not self._array(dropout.input[2]).any()

    def _fold_constants(self) -> None:
        outputs = {value.name for value in self.graph.output}
        nodes = []
        for node, proto in zip(read_nodes(self.graph), list(self.graph.node), strict=True):
            value = None if set(node.outputs) & outputs else self._value(node)
            if value is None:
                nodes.append(proto)
            else:
                self._set(node.outputs[0], value)
                self.removed[node.name] = "folded into a constant"
        self._replace_nodes(nodes)

    def _value(self, node: Node) -> npt.NDArray[Any] | None:
        if node.op == "Shape" and node.inputs[0] in self.shapes:
            sizes = self.shapes[node.inputs[0]]
            return np.array(sizes[slice(node.get("start", 0), node.get("end", None))], dtype=np.int64)
        if node.op not in FOLDABLE or not all(name in self.constants for name in node.inputs if name):
            return None
        try:
            return self.folder.evaluate(node, [Const(self._array(name)) for name in node.inputs if name])
        except Unsupported:
            return None  # stays as it is: who compiles the node will say what is wrong with it

    def _merge_factors(self) -> None:
        """Merges BatchNormalization and constant factors and offsets into the convolution or Gemm before them."""
        makers = {proto.output[0]: proto for proto in self.graph.node if proto.output}
        uses = Counter(name for proto in self.graph.node for name in proto.input)
        uses.update(value.name for value in self.graph.output)
        nodes: list[onnx.NodeProto] = []
        for proto in self.graph.node:
            found = self._factors(proto)
            if found is None:
                nodes.append(proto)
                continue
            source, factor, offset = found
            maker = makers.get(source)
            if maker is not None and uses[source] == 1 and self._scale_weights(maker, factor, offset):
                maker.output[0] = proto.output[0]
                self.removed[proto.name] = f"merged into '{maker.name}'"
            elif proto.op_type == "BatchNormalization":
                maker = self._as_convolution(proto, factor, offset)
                nodes.append(maker)
            else:
                maker = proto
                nodes.append(maker)
            makers[proto.output[0]] = maker
        self._replace_nodes(nodes)

    def _factors(self, proto: onnx.NodeProto) -> tuple[str, FloatArray, FloatArray] | None:
        """(x, factor, offset) if a node computes ``factor * x + offset`` with constants; shapes as they broadcast."""
        constant = [name in self.constants for name in proto.input]
        if proto.op_type == "BatchNormalization" and all(constant[1:5]) and not any(list(proto.output)[1:]):
            epsilon = next((a.f for a in proto.attribute if a.name == "epsilon"), 1e-5)
            scale, shift, mean, variance = (self._array(name).astype(np.float64) for name in proto.input[1:5])
            factor = scale / np.sqrt(variance + epsilon)
            offset = shift - mean * factor
            spatial = max(len(self.shapes.get(proto.input[0], ())) - 2, 0)
            shape = (-1, *[1] * spatial)  # as an Add or Mul would have to write it
            return proto.input[0], np.float32(factor).reshape(shape), np.float32(offset).reshape(shape)
        if proto.op_type in ("Add", "Mul") and sorted(constant) == [False, True]:
            values = self._array(proto.input[constant.index(True)])
            if values.dtype == np.float32:
                one, zero = np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.float32)
                source = proto.input[constant.index(False)]
                return (source, one, values) if proto.op_type == "Add" else (source, values, zero)
        return None

    def _scale_weights(self, maker: onnx.NodeProto, factor: FloatArray, offset: FloatArray) -> bool:
        """Merges ``factor * x + offset`` into a convolution or Gemm with constant weights; False if it cannot."""
        attributes = {a.name: a for a in maker.attribute}
        gemm = maker.op_type == "Gemm"
        if maker.op_type not in ("Conv", "Gemm") or not all(name in self.constants for name in maker.input[1:] if name):
            return False
        if gemm and any(attributes[k].f != 1 for k in ("alpha", "beta") if k in attributes):
            return False
        weight = self._array(maker.input[1])
        axis = 1 if gemm and not ("transB" in attributes and attributes["transB"].i) else 0
        if weight.ndim < 2 or weight.dtype != np.float32:
            return False
        outputs = weight.shape[axis]
        vectors = [_per_channel(values, outputs, weight.ndim - 2) for values in (factor, offset)]
        if vectors[0] is None or vectors[1] is None:
            return False
        bias = np.zeros(1, dtype=np.float32)
        if len(maker.input) > 2 and maker.input[2]:
            bias = self._array(maker.input[2]).reshape(-1)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        names = [f"{maker.output[0]}/merged_weight", f"{maker.output[0]}/merged_bias"]
        self._set(names[0], weight * vectors[0].reshape(shape))
        self._set(names[1], np.asarray(bias * vectors[0] + vectors[1], dtype=np.float32))
        source = maker.input[0]
        del maker.input[:]
        maker.input.extend([source, *names])
        return True

    def _as_convolution(self, proto: onnx.NodeProto, factor: FloatArray, offset: FloatArray) -> onnx.NodeProto:
        """A normalisation of its own as a depthwise 1x1 convolution (of a flat vector: as it is)."""
        rank = len(self.shapes.get(proto.input[0], ()))
        if rank not in (3, 4):
            return proto
        self.removed[proto.name] = "became a depthwise convolution"
        weight, bias = f"{proto.output[0]}/weight", f"{proto.output[0]}/bias"
        self._set(weight, factor.reshape(-1, *([1] * (rank - 1))))
        self._set(bias, offset.reshape(-1))
        inputs = [proto.input[0], weight, bias]
        return helper.make_node("Conv", inputs, list(proto.output), name=proto.name, group=factor.size)

    def _write_as_sums_and_products(self) -> None:
        """Sub and Div by constants, and Sum, become Add and Mul, which the quantiser knows."""
        nodes: list[onnx.NodeProto] = []
        for proto in self.graph.node:
            if proto.op_type in ("Sub", "Div") and proto.input[1] in self.constants:
                self._turn(proto)
            if proto.op_type == "Sum" and len(proto.input) > 1:
                nodes.extend(_chain(proto))
            else:
                nodes.append(proto)
        self._replace_nodes(nodes)

    def _turn(self, proto: onnx.NodeProto) -> None:
        values = self._array(proto.input[1])
        if values.dtype != np.float32 or (proto.op_type == "Div" and not values.all()):
            return
        name = f"{proto.output[0]}/constant"
        self._set(name, -values if proto.op_type == "Sub" else 1 / values)
        proto.op_type = "Add" if proto.op_type == "Sub" else "Mul"
        proto.input[1] = name


def _chain(proto: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Sum of several values as Add nodes."""
    nodes = []
    total = proto.input[0]
    for i, name in enumerate(proto.input[1:], 1):
        last = i == len(proto.input) - 1
        made = proto.output[0] if last else f"{proto.output[0]}/sum{i}"
        nodes.append(helper.make_node("Add", [total, name], [made], name=proto.name if last else f"{proto.name}/{i}"))
        total = made
    return nodes


def _per_channel(values: FloatArray, outputs: int, spatial: int) -> FloatArray | None:
    """A constant that broadcasts over [1, C, ...] as one value per channel; None if it is no such thing."""
    if values.size == 1 and values.ndim <= spatial + 2:
        return np.full(outputs, values.reshape(()), dtype=np.float32)
    if values.shape == (outputs,) and spatial:  # parameters of a normalisation, not of a broadcast
        return None
    shape = values.shape[1:] if values.ndim == spatial + 2 and values.shape[0] == 1 else values.shape
    return values.reshape(-1) if shape == (outputs, *[1] * spatial) else None
