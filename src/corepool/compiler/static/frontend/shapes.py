"""Shapes of all values of a model, as far as ONNX itself can tell them.

It must not know layers.
"""

from __future__ import annotations

import onnx
from onnx import helper, shape_inference

from corepool.errors import ModelError

_SMALL = 4096  # bytes of constants that shape inference gets to see


def infer_shapes(model: onnx.ModelProto, kind: int | None = None) -> dict[str, tuple[int, ...]]:
    """Static shapes of values (of one element type, if ``kind`` says so); large constants are not copied.

    Raises ModelError if the model is malformed.
    """
    graph = onnx.GraphProto(name="shapes")
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    declared = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    skeleton = onnx.ModelProto(ir_version=max(model.ir_version, 4), graph=graph, opset_import=model.opset_import)
    try:
        inferred = shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception as error:  # inference raises what it likes on malformed models
        raise ModelError(f"shapes cannot be inferred: {str(error).strip().splitlines()[0]}") from None
    shapes = {}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if kind is not None and value.type.tensor_type.elem_type != kind:
            continue
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") and d.dim_value > 0 for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes
