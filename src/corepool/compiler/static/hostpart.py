"""Says whether a host part, which comes with a package from who knows where, is one that the compiler could have made.

It must not know packages.
"""

from __future__ import annotations

import math

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from corepool.compiler.static.frontend.tail import FOLLOWERS

ELEMENTS = 1 << 24  # of any constant that gives a size


def complaint(model: bytes, most_nodes: int) -> str | None:
    """What is wrong with an ONNX model as a host part, or None."""
    try:
        parsed = onnx.ModelProto.FromString(model)
    except DecodeError:
        return "is not an ONNX model"
    graph = parsed.graph
    if len(graph.node) > most_nodes or parsed.functions:
        return f"has more than {most_nodes} nodes, or functions"
    strange = sorted({node.op_type for node in graph.node if node.op_type not in FOLLOWERS or node.domain})
    if strange:
        return f"uses {', '.join(strange)[:100]}, which the compiler never leaves to the host"
    if any(tensor.external_data or tensor.data_location for tensor in graph.initializer):
        return "refers to other files"
    for value in graph.input:
        if math.prod(max(size.dim_value, 1) for size in value.type.tensor_type.shape.dim) > ELEMENTS:
            return "reads more than any network makes"
    return None
