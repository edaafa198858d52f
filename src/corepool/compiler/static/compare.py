"""Compares a layer graph with onnxruntime on the same model, layer by layer, each given onnxruntime's inputs.

It must not know devices: the layer's side is computed by the numerics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from corepool import numerics
from corepool.compiler.static import reference
from corepool.compiler.static.graph import Graph, Int8Array


def layer_differences(
    graph: Graph, qdq_model: onnx.ModelProto, inputs: Mapping[str, npt.NDArray[Any]]
) -> dict[str, int]:
    """For each layer the largest difference, in quantisation steps, from onnxruntime's result for the same inputs.

    Layers that the compiler fused are compared step by step, each given onnxruntime's result of the step before.
    onnxruntime runs without graph optimisations, so that every value is quantised where the model says so. Layers whose
    result is no value of the model (a border, an aligned copy) are left out; what follows them is computed from theirs.
    """
    values = _run(qdq_model, {*graph.tensors, *(step for layer in graph.layers for step in layer.steps)}, inputs)
    maps = reference.quantise_inputs(graph, inputs)
    roots = {n: np.full(t.shape, t.zero_point, dtype=np.int8) for n, t in graph.tensors.items() if t.parent is None}

    def view(name: str) -> Int8Array:
        root, offset = graph.storage(name)
        return roots[root][offset : offset + graph.tensors[name].channels]

    for name, given in maps.items():
        view(name)[...] = given
    differences: dict[str, int] = {}
    for layer in graph.layers:
        steps = _Steps(layer.steps, values)
        mine = reference.run_layer(layer, [view(name) for name in layer.inputs], steps)
        theirs = _as_map(graph, layer.output, values)
        view(layer.output)[...] = mine if theirs is None else theirs
        if theirs is not None:
            differences[layer.name] = max(steps.worst, _distance(mine, theirs))
    return differences


def _distance(mine: Int8Array, theirs: Int8Array) -> int:
    return int(np.abs(mine.astype(np.int16) - theirs).max())


class _Steps:
    """Swaps each result inside a fused layer for onnxruntime's, and keeps the largest difference."""

    def __init__(self, names: tuple[str, ...], values: Mapping[str, npt.NDArray[Any]]) -> None:
        self.names = iter(names)
        self.values = values
        self.worst = 0

    def __call__(self, mine: Int8Array) -> Int8Array:
        array = self.values.get(next(self.names, ""))  # a table of its own has no step before it
        if array is None or array.dtype not in (np.int8, np.uint8) or not _fits(array.shape, mine.shape):
            return mine
        theirs = numerics.to_int8_domain(array).reshape(mine.shape)
        self.worst = max(self.worst, _distance(mine, theirs))
        return theirs


def _run(
    model: onnx.ModelProto, wanted: set[str], inputs: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    from corepool.compiler.static.ort import onnxruntime

    made = {name for node in model.graph.node for name in node.output}
    outputs = list(model.graph.output)
    known = {value.name for value in outputs}
    extra = sorted(name for name in wanted & made if name not in known)
    try:
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in extra)
        data = model.SerializeToString()
    finally:
        del model.graph.output[:]
        model.graph.output.extend(outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [*(value.name for value in outputs), *extra]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _as_map(graph: Graph, name: str, values: Mapping[str, npt.NDArray[Any]]) -> Int8Array | None:
    """onnxruntime's value of a tensor, or of the part that it is of another one, as a map; None if it has none."""
    tensor, offset = graph.tensors[name], 0
    array = values.get(name)
    while array is None and tensor.parent is not None:
        offset += tensor.channel_offset
        tensor = graph.tensors[tensor.parent]
        array = values.get(tensor.name)
    if array is None or not _fits(array.shape, tensor.shape):
        return None
    if array.dtype == np.float32:
        codes = numerics.quantise(array, tensor.scale, tensor.zero_point)
    else:
        codes = numerics.to_int8_domain(array)
    return codes.reshape(tensor.shape)[offset : offset + graph.tensors[name].channels]


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    """Whether an ONNX shape is the map in its own order: [1, C, H, W], [1, C, W] or [1, C]."""
    return [size for size in shape if size > 1] == [size for size in dims if size > 1]
