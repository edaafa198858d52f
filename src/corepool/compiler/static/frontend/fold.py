"""Evaluates nodes whose inputs are all constant, within bounds on the size of what they make.

It must not know quantised values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from corepool.compiler.static.frontend.context import Node, Unsupported
from corepool.compiler.static.frontend.values import Const

SIZE_LIMIT = 1 << 29  # bytes of one folded constant
TOTAL_LIMIT = 1 << 31  # bytes of all folded constants of a model

FOLDABLE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Reciprocal", "Pow", "Floor", "Ceil", "Min", "Max", "Exp"),
        *("Cast", "Concat", "Constant", "ConstantOfShape", "Equal", "Expand", "Flatten", "Gather", "Identity", "Mod"),
        *("Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where"),
        *("Less", "Greater", "And", "Or", "Not"),
    }
)


class Folder:
    """Evaluates constant nodes of one model, of one ``opset``, and keeps count of the bytes that they make."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.left = TOTAL_LIMIT

    def evaluate(self, node: Node, inputs: Sequence[Const]) -> npt.NDArray[Any]:
        """The node's only output; Unsupported if it is too large, has several outputs or cannot be computed."""
        if node.op == "Constant":
            return _constant(node)
        arrays = [value.array for value in inputs]
        size = _size_bound(node, arrays)
        if size > min(SIZE_LIMIT, self.left):
            raise Unsupported(f"its constant value of {size >> 20} MiB is too large")
        result = _run(node, arrays, self.opset)
        self.left -= result.nbytes
        return result


def _run(node: Node, arrays: list[npt.NDArray[Any]], opset: int) -> npt.NDArray[Any]:
    names = [f"i{i}" if name else "" for i, name in enumerate(node.inputs)]
    feed = dict(zip([name for name in names if name], arrays, strict=True))
    proto = helper.make_node(node.op, names, ["o"], **node.attributes)
    inputs_info = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    graph = helper.make_graph([proto], "fold", inputs_info, [helper.make_empty_tensor_value_info("o")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            (result,) = ReferenceEvaluator(model).run(None, feed)
    except Exception as error:  # whatever the evaluator meets, the node is at fault
        raise Unsupported(f"its constant value cannot be computed: {error}") from None
    return np.asarray(result)


def _constant(node: Node) -> npt.NDArray[Any]:
    for name, value in node.attributes.items():
        if isinstance(value, TensorProto) and name == "value":
            if value.data_location == TensorProto.EXTERNAL:
                raise Unsupported("its value lies in another file")
            return numpy_helper.to_array(value)
        if name in ("value_float", "value_floats"):
            return np.array(value, dtype=np.float32)
        if name in ("value_int", "value_ints"):
            return np.array(value, dtype=np.int64)
    raise Unsupported("supported are tensors, floats and integers")


_NO_GROWTH = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Slice", "Shape", "Size")


def _size_bound(node: Node, arrays: list[npt.NDArray[Any]]) -> int:
    """Bytes that the node's result can have at most, told from its inputs before it runs."""
    given = sum(array.nbytes for array in arrays)
    if node.op in _NO_GROWTH:
        return given
    if node.op == "ConstantOfShape":
        value = node.get("value", None)
        item = helper.tensor_dtype_to_np_dtype(value.data_type).itemsize if value is not None else 4
        return math.prod(int(v) for v in arrays[0].reshape(-1)) * item
    if node.op == "Expand":
        return math.prod(int(v) for v in arrays[1].reshape(-1)) * max(arrays[0].size, 1) * arrays[0].itemsize
    if node.op == "Range":
        start, limit, delta = (float(a.reshape(())) for a in arrays)
        return int(abs((limit - start) / delta)) * 8 if delta else SIZE_LIMIT + 1
    if node.op == "Gather":
        return arrays[1].size * (arrays[0].nbytes // max(arrays[0].shape[int(node.get("axis", 0))], 1) or 8)
    try:
        return math.prod(np.broadcast_shapes(*(a.shape for a in arrays))) * 8
    except ValueError:
        return given  # the evaluator will say what is wrong
