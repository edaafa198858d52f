"""Says whether a layer graph is valid: order, shapes, ranges of constants.

It must not repair anything.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corepool.compiler.static.graph import Add, Conv, Graph, Layer, Mul, Pool, Tensor
from corepool.numerics import out_size

_BLOCK = 8


class GraphError(AssertionError):
    """A layer graph breaks its own rules: a defect of the compiler, not of the model."""


def check(graph: Graph) -> None:
    """Raises GraphError, naming the layer or tensor, if the graph is not valid."""
    for tensor in graph.tensors.values():
        _check_tensor(graph, tensor)
    makers = [*(port.tensor for port in graph.inputs), *(layer.output for layer in graph.layers)]
    made = {name: np.zeros(tensor.channels, dtype=bool) for name, tensor in graph.tensors.items() if not tensor.parent}
    for name in makers:
        _channels(graph, made, name)[:] = True  # what no layer writes are the gaps between aligned parts
    written = {name: np.zeros_like(channels) for name, channels in made.items()}
    for port in graph.inputs:
        _channels(graph, written, port.tensor)[:] = True
    names: set[str] = set()

    def ready(name: str) -> bool:
        if name not in graph.tensors:
            return False
        needed = _channels(graph, made, name)
        return bool(needed.any()) and bool(_channels(graph, written, name)[needed].all())

    for layer in graph.layers:
        if layer.name in names:
            raise GraphError(f"two layers are called '{layer.name}'")
        names.add(layer.name)
        for name in layer.inputs:
            if not ready(name):
                raise GraphError(f"layer '{layer.name}' reads '{name}' before it is written")
        if layer.output not in graph.tensors:
            raise GraphError(f"layer '{layer.name}' writes an unknown tensor")
        channels = _channels(graph, written, layer.output)
        if channels.any():
            raise GraphError(f"layer '{layer.name}' writes '{layer.output}', which is written already")
        channels[:] = True
        _check_layer(graph, layer)
    for port in (*graph.inputs, *graph.outputs):
        if not ready(port.tensor):
            raise GraphError(f"port '{port.name}' has no tensor")


def _channels(graph: Graph, stored: dict[str, npt.NDArray[np.bool_]], name: str) -> npt.NDArray[np.bool_]:
    """The part of a stored tensor's channel marks that a tensor covers."""
    root, offset = graph.storage(name)
    return stored[root][offset : offset + graph.tensors[name].channels]


def _check_tensor(graph: Graph, tensor: Tensor) -> None:
    if min(tensor.shape) < 1 or not tensor.scale > 0 or not -128 <= tensor.zero_point <= 127:
        raise GraphError(f"tensor '{tensor.name}' has a wrong shape, scale or zero point")
    if tensor.parent is not None:
        parent = graph.tensors.get(tensor.parent)
        if parent is None or parent.shape[1:] != tensor.shape[1:] or tensor.channel_offset % _BLOCK:
            raise GraphError(f"tensor '{tensor.name}' does not fit its parent '{tensor.parent}'")
        if tensor.channel_offset + tensor.channels > parent.channels:
            raise GraphError(f"tensor '{tensor.name}' reaches beyond its parent '{tensor.parent}'")


def _check_layer(graph: Graph, layer: Layer) -> None:
    def shape(name: str) -> tuple[int, int, int]:
        return graph.tensors[name].shape

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise GraphError(f"layer '{layer.name}': {what}")

    out = shape(layer.output)
    need(layer.lut is None or (layer.lut.shape == (256,) and layer.lut.dtype == np.int8), "its table is malformed")
    if isinstance(layer, (Conv, Pool)):
        kernel = layer.weight.shape[2:] if isinstance(layer, Conv) else layer.kernel
        source = shape(layer.input)
        size = tuple(
            out_size(
                source[1 + i], kernel[i], layer.stride[i], layer.padding[i], layer.padding[i + 2], layer.dilation[i]
            )
            for i in range(2)
        )
        need(size == out[1:], f"makes {size}, not {out[1:]}")
        need(-128 <= layer.pad_value <= 127, "pad value")
    if isinstance(layer, Conv):
        need(layer.weight.shape[1] * layer.groups == shape(layer.input)[0], "weights do not fit its input")
        need(layer.weight.shape[0] == out[0] and out[0] % layer.groups == 0, "weights do not fit its output")
        r = layer.requant
        need(len(r.bias) == len(r.multiplier) == len(r.shift) == out[0], "one requantisation per channel")
        need(bool(((r.multiplier == 0) | ((r.multiplier >= 1 << 15) & (r.multiplier < 1 << 16))).all()), "multipliers")
        need(bool(((r.shift >= 1) & (r.shift <= 47)).all()), "shifts")
        need(layer.residual is None or shape(layer.residual.tensor) == out, "residual of another shape")
    elif isinstance(layer, Pool):
        need(out[0] == shape(layer.input)[0], "channels change")
        need(layer.mode == "max" or bool(layer.by_count), "a sum without constants")
    elif isinstance(layer, (Add, Mul)):
        vector = (out[0], 1, 1)
        need(shape(layer.a) == out, "first operand of another shape")
        need(shape(layer.b) == out or (isinstance(layer, Mul) and shape(layer.b) == vector), "second operand's shape")
