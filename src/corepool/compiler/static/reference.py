"""Executes a layer graph by the numerics alone: the answer that every device must give, byte for byte.

It must not know instructions or tilings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool import numerics
from corepool.compiler.static.graph import Add, AddParams, Conv, Graph, Int8Array, Layer, Mul, Pool, Port
from corepool.errors import InputError


def quantise_inputs(graph: Graph, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Int8Array]:
    """ONNX inputs (float32, or codes where the port says so) as int8 maps [C, H, W] of the input tensors, stem-folded.

    Raises InputError for missing or unknown names, other shapes and other types.
    """
    if graph.head:
        inputs = _first_steps(graph, inputs)
    names = [port.name for port in graph.inputs]
    if sorted(inputs) != sorted(names):
        raise InputError(f"inputs are {', '.join(sorted(inputs)) or 'missing'}; the model takes {', '.join(names)}")
    return {port.tensor: _input_map(graph, port, np.asarray(inputs[port.name])) for port in graph.inputs}


def _first_steps(graph: Graph, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The input ports' arrays, for what users send."""
    from corepool.compiler.static.ort import onnxruntime

    wanted = {each.name: each for each in graph.head_inputs}
    if sorted(inputs) != sorted(wanted):
        raise InputError(f"inputs are {', '.join(sorted(inputs)) or 'missing'}; the model takes {', '.join(wanted)}")
    session = onnxruntime.InferenceSession(graph.head, providers=["CPUExecutionProvider"])
    made = [value.name for value in session.get_outputs()]
    read = {value.name for value in session.get_inputs()}
    values = session.run(made, {name: array for name, array in inputs.items() if name in read})
    known = {**inputs, **dict(zip(made, values, strict=True))}
    return {port.name: known[port.name] for port in graph.inputs}


def _input_map(graph: Graph, port: Port, array: npt.NDArray[Any]) -> Int8Array:
    if array.shape != port.shape:
        raise InputError(f"input '{port.name}' has shape {list(array.shape)}; the model takes {list(port.shape)}")
    if array.dtype != np.dtype(port.dtype):
        raise InputError(f"input '{port.name}' is {array.dtype}; the model takes {port.dtype}")
    tensor = graph.tensors[port.tensor]
    if port.dtype == "float32":
        codes = numerics.quantise(array, tensor.scale, tensor.zero_point)
    else:
        codes = numerics.to_int8_domain(array)
    fold = tensor.fold
    if fold is None:
        return np.ascontiguousarray(numerics.to_map(codes, port.axes, tensor.shape))
    image = numerics.to_map(codes, port.axes, (fold.channels, fold.height, fold.width))
    return numerics.pack_fold(
        image, kernel=fold.kernel, stride=fold.stride, dilation=fold.dilation, before=fold.before,
        pad_value=fold.pad_value, size=tensor.shape[1:],
    )  # fmt: skip


def execute(graph: Graph, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Int8Array]:
    """All tensors of the graph, int8 [C, H, W] by name, for ONNX inputs by port name. Raises as quantise_inputs."""
    return run_layers(graph, quantise_inputs(graph, inputs))


def run_layers(graph: Graph, maps: Mapping[str, Int8Array]) -> dict[str, Int8Array]:
    """All tensors of the graph, given the int8 maps of its input tensors."""
    roots: dict[str, Int8Array] = {}
    views: dict[str, Int8Array] = {}
    for name, tensor in graph.tensors.items():
        root, offset = graph.storage(name)
        if root not in roots:
            roots[root] = np.full(graph.tensors[root].shape, graph.tensors[root].zero_point, dtype=np.int8)
        views[name] = roots[root][offset : offset + tensor.channels]
    for name, values in maps.items():
        views[name][...] = values
    for layer in graph.layers:
        views[layer.output][...] = run_layer(layer, [views[name] for name in layer.inputs])
    return views


def _unchanged(result: Int8Array) -> Int8Array:
    return result


def run_layer(
    layer: Layer, operands: list[Int8Array], between: Callable[[Int8Array], Int8Array] = _unchanged
) -> Int8Array:
    """One layer's result, int8 [C, H, W], for operands in the order of ``layer.inputs``.

    ``between`` sees each result inside a fused layer, in the order of ``layer.steps``; the layer goes on with what it
    returns.
    """
    if isinstance(layer, Conv):
        return _conv(layer, operands, between)
    if isinstance(layer, Pool):
        result = _pool(layer, operands[0])
    elif isinstance(layer, Add):
        result = _add(operands[0], operands[1], layer.params)
    else:
        assert isinstance(layer, Mul)
        p, (a, b) = layer.params, operands
        result = numerics.mul(a, b, p.zero_a, p.zero_b, p.multiplier, p.shift, p.zero_point, p.low, p.high)
    return result if layer.lut is None else numerics.lut(between(result), layer.lut)


def _add(a: Int8Array, b: Int8Array, p: AddParams) -> Int8Array:
    return numerics.add(a, b, p.multiplier_a, p.multiplier_b, p.offset, p.shift, p.zero_point, p.low, p.high)


def _conv(layer: Conv, operands: list[Int8Array], between: Callable[[Int8Array], Int8Array]) -> Int8Array:
    r = layer.requant
    sums = numerics.conv2d(
        operands[0], layer.weight, stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
        groups=layer.groups, pad_value=layer.pad_value,
    )  # fmt: skip
    result = numerics.requantise(sums, r.bias, r.multiplier, r.shift, r.zero_point, r.low, r.high)
    if layer.lut is not None and not layer.lut_after_add:
        result = numerics.lut(between(result), layer.lut)
    if layer.residual is not None:
        result = _add(between(result), operands[1], layer.residual.params)
    if layer.lut is not None and layer.lut_after_add:
        result = numerics.lut(between(result), layer.lut)
    return result


def _pool(layer: Pool, x: Int8Array) -> Int8Array:
    window: dict[str, Any] = {
        "stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "pad_value": layer.pad_value,
    }  # fmt: skip
    if layer.mode == "max":
        return numerics.pool_max(x, layer.kernel, **window)
    sums = numerics.pool_sum(x, layer.kernel, **window)
    counts = numerics.window_counts(x.shape[1], x.shape[2], layer.kernel, layer.stride, layer.padding, layer.dilation)
    result = np.empty(sums.shape, dtype=np.int8)
    for count, r in layer.by_count.items():
        made = numerics.requantise(sums, r.bias, r.multiplier, r.shift, r.zero_point, r.low, r.high)
        if layer.count_include_pad:
            return made
        result[:, counts == count] = made[:, counts == count]
    return result


def outputs(graph: Graph, tensors: Mapping[str, Int8Array]) -> dict[str, npt.NDArray[Any]]:
    """The ONNX outputs by name: float32 (dequantised) or codes, and what the host's tail makes of them."""
    edges: dict[str, npt.NDArray[Any]] = {}
    for port in graph.outputs:
        tensor = graph.tensors[port.tensor]
        codes = np.ascontiguousarray(numerics.from_map(tensors[port.tensor], port.axes, port.shape))
        if port.dtype == "float32":
            edges[port.name] = numerics.dequantise(codes, tensor.scale, tensor.zero_point)
        else:
            edges[port.name] = codes if port.dtype == "int8" else numerics.to_uint8(codes)
    if not graph.tail:
        return edges
    from corepool.compiler.static.ort import onnxruntime

    session = onnxruntime.InferenceSession(graph.tail, providers=["CPUExecutionProvider"])
    read = {value.name for value in session.get_inputs()}
    made = session.run(list(graph.tail_outputs), {name: value for name, value in edges.items() if name in read})
    kept = {name: value for name, value in edges.items() if name not in read}
    return {**kept, **dict(zip(graph.tail_outputs, made, strict=True))}
