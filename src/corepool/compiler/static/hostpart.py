"""Says whether a host part, which comes with a package from who knows where, is one that the compiler could have made.

It must not know packages.
"""

from __future__ import annotations

import math

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, shape_inference

from corepool.compiler.static.hostops import DIVIDING, HOST_OPS, PLAIN
from corepool.errors import ModelError, first_line

MOST_NODES = 1000
ELEMENTS = 1 << 24  # of any one value
ALL_ELEMENTS = 1 << 26  # of all values together: bounds time as well as memory
_REALS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def check_part(model: bytes, where: str) -> None:
    """Raise ModelError unless onnxruntime can load what the host is to run."""
    found = complaint(model, MOST_NODES)
    if found is None:
        from corepool.compiler.static.ort import onnxruntime

        try:
            onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            return
        except Exception as error:  # its exceptions have no common base below this
            found = f"cannot be loaded: {first_line(error)}"
    raise ModelError(f"the part {where} layer of the cores would run on the host, but it {found}")


def complaint(model: bytes, most_nodes: int) -> str | None:
    """What is wrong with an ONNX model as a host part, or None."""
    try:
        parsed = onnx.ModelProto.FromString(model)
    except DecodeError:
        return "is not an ONNX model"
    graph = parsed.graph
    if len(graph.node) > most_nodes or parsed.functions:
        return f"has more than {most_nodes} nodes, or functions"
    strange = sorted({node.op_type for node in graph.node if node.op_type not in HOST_OPS or node.domain})
    if strange:
        return f"uses {', '.join(strange)[:100]}, which the compiler never leaves to the host"
    constants = [*graph.initializer, *(each.t for node in graph.node for each in node.attribute if each.HasField("t"))]
    if any(tensor.external_data or tensor.data_location for tensor in constants):
        return "refers to other files"
    if any(each.HasField("g") or each.graphs for node in graph.node for each in node.attribute):
        return "holds graphs within nodes"
    for value in graph.input:
        if math.prod(max(size.dim_value, 1) for size in value.type.tensor_type.shape.dim) > ELEMENTS:
            return "reads more than any network makes"
    return _sizes(parsed)


def _sizes(model: onnx.ModelProto) -> str | None:
    """What is wrong with the sizes of values: each must be known before anything runs, and small."""
    graph = model.graph
    if all(node.op_type in PLAIN for node in graph.node):
        return None  # makes no more than it reads
    try:
        graph = shape_inference.infer_shapes(model, data_prop=True, strict_mode=True).graph
    except Exception as error:  # inference raises what it likes on malformed models
        return f"has shapes that do not fit each other: {first_line(error)[:200]}"
    known = {value.name: value.type.tensor_type for value in [*graph.input, *graph.value_info, *graph.output]}
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        for name in filter(None, node.output):
            kind = known.get(name)
            if kind is None or not kind.HasField("shape"):
                return f"has an operator {node.op_type} whose result is of a size that only running would tell"
            if not all(size.HasField("dim_value") and size.dim_value >= 0 for size in kind.shape.dim):
                return f"has an operator {node.op_type} whose result is of a size that only running would tell"
            count = math.prod(size.dim_value for size in kind.shape.dim)
            total += count
            if count > ELEMENTS or total > ALL_ELEMENTS:
                return f"makes more values than a host part may: {count} at {node.op_type}"
        if node.op_type in DIVIDING:
            for name in node.input:
                found = kinds.get(name) or (known[name].elem_type if name in known else 0)
                if found not in _REALS:
                    return f"divides whole numbers in {node.op_type}"
    return None
