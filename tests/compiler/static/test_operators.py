"""Operators against onnxruntime, over random shapes, strides, paddings, groups, types and zero points.

It must not know how layers are emitted, except where a test says what should be fused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from corepool.compiler.static.graph import Add, Conv, Mul, Pool

NewNet = Callable[..., Any]


def _pads(rng: np.random.Generator, rank: int, kernel: list[int]) -> dict[str, Any]:
    style = rng.choice(["pads", "none", "SAME_UPPER", "SAME_LOWER", "VALID"], p=[0.5, 0.15, 0.15, 0.1, 0.1])
    if style == "pads":
        return {"pads": [int(rng.integers(0, k + 1)) for k in kernel * 2]}
    return {} if style == "none" else {"auto_pad": str(style)}


def _activation(net: Any, value: str, rng: np.random.Generator) -> str:
    kind = rng.choice(["none", "Relu", "Clip"])
    if kind == "Relu":
        return net.op("Relu", [value])
    if kind == "Clip":
        return net.op("Clip", [value, net.const(np.float32(0)), net.const(np.float32(rng.uniform(0.5, 6)))])
    return value


@pytest.mark.parametrize("seed", range(60))
def test_conv(new_net: NewNet, seed: int) -> None:
    net = new_net(seed)
    rng = net.rng
    rank = int(rng.choice([1, 2], p=[0.15, 0.85]))
    kernel = [int(rng.integers(1, 6)) for _ in range(rank)]
    kind = rng.choice(["dense", "depthwise", "grouped", "multiplied"], p=[0.5, 0.25, 0.15, 0.1])
    groups = int(rng.integers(2, 5))
    per_group, share = int(rng.integers(1, 20)), int(rng.integers(1, 12))
    if kind == "dense":
        groups = 1
    elif kind == "depthwise":
        groups, per_group, share = int(rng.integers(1, 33)), 1, 1
    elif kind == "multiplied":
        per_group, share = 1, 3
    dilations = [int(rng.integers(1, 3)) for _ in range(rank)]
    size = [int(rng.integers(9, 24)) for _ in range(rank)]
    x = net.input([1, groups * per_group, *size])
    axis = None if rng.random() < 0.3 else 0
    weight = net.weight([groups * share, per_group, *kernel], axis, str(rng.choice(["int8", "uint8"])))
    style = rng.choice(["none", "float", "int32"])
    inputs = [x, weight] + ([] if style == "none" else [net.bias(groups * share, style)])
    pads = _pads(rng, rank, kernel)
    if "auto_pad" in pads:
        dilations = [1] * rank  # onnxruntime refuses both together
    strides = [int(rng.integers(1, 5)) for _ in range(rank)]
    y = net.op("Conv", inputs, strides=strides, dilations=dilations, group=groups, kernel_shape=kernel, **pads)
    graph = net.check(net.q(_activation(net, y, rng))).graph
    assert [type(layer) for layer in graph.layers] == [Conv]


@pytest.mark.parametrize("seed", range(24))
def test_max_pool(new_net: NewNet, seed: int) -> None:
    net = new_net(seed)
    rng = net.rng
    kernel = [int(rng.integers(1, 5)) for _ in range(2)]
    x = net.input([1, int(rng.integers(1, 20)), *(int(v) for v in rng.integers(9, 20, size=2))])
    strides = [int(rng.integers(1, 4)) for _ in range(2)]
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "ceil_mode": int(rng.integers(0, 2))}
    if rng.random() < 0.5:
        options["pads"] = [int(rng.integers(0, k)) for k in kernel * 2]
    if rng.random() < 0.3:
        options["dilations"] = [2, 1]
        options.pop("pads", None)
    y = net.op("MaxPool", [x], **options)
    net.check(net.q(y) if rng.random() < 0.7 else y)


@pytest.mark.parametrize("seed", range(40))
def test_average_pool(new_net: NewNet, seed: int) -> None:
    net = new_net(seed)
    rng = net.rng
    kernel = [int(rng.integers(1, 5)) for _ in range(2)]
    x = net.input([1, int(rng.integers(1, 20)), *(int(v) for v in rng.integers(7, 20, size=2))])
    options: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [int(rng.integers(1, 4)) for _ in range(2)],
        "ceil_mode": int(rng.integers(0, 2)),
        "count_include_pad": int(rng.integers(0, 2)),
    }
    if rng.random() < 0.7:
        options["pads"] = [int(rng.integers(0, k)) for k in kernel * 2]
    elif rng.random() < 0.5:
        options["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        options["ceil_mode"] = 0
    net.check(net.q(net.op("AveragePool", [x], **options)))


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMean:flat"])
def test_pooling_of_the_whole_map(new_net: NewNet, op: str) -> None:
    net = new_net(1)
    x = net.input([1, 19, 7, 5])
    name, _, flat = op.partition(":")
    options = {"axes": [2, 3], "keepdims": int(not flat)} if name == "ReduceMean" else {}
    net.check(net.q(net.op(name, [x], **options)))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("shape", [[1, 40], [1, 6, 5, 4], [1, 130, 3, 3]])
def test_gemm_over_flattened_maps(new_net: NewNet, shape: list[int], transposed: int) -> None:
    net = new_net(len(shape))
    x = net.input(shape)
    inputs = int(np.prod(shape))
    flat = net.op("Flatten", [x]) if len(shape) > 2 else x
    weight = net.weight([12, inputs] if transposed else [inputs, 12], 0 if transposed else 1)
    y = net.op("Gemm", [flat, weight, net.bias(12, "float")], transB=transposed, alpha=0.5, beta=2.0)
    graph = net.check(net.q(net.op("Relu", [y]))).graph
    assert [layer.weight.shape for layer in graph.layers] == [(12, *[*shape[1:], 1, 1][:3])]


def test_gemm_after_transposed_flatten(new_net: NewNet) -> None:
    """[1, C, H, W] -> [1, H, W, C] -> [1, K]: the weights are permuted, not the map."""
    net = new_net(3)
    last = net.op("Transpose", [net.input([1, 6, 5, 4])], perm=[0, 2, 3, 1])
    flat = net.op("Reshape", [last, net.const(np.array([0, -1]))])
    net.check(net.q(net.op("Gemm", [flat, net.weight([120, 9], 1)])))


def test_matmul_with_bias_on_rows(new_net: NewNet) -> None:
    net = new_net(4)
    x = net.input([1, 16, 6, 5])
    rows = net.op("Transpose", [net.op("Reshape", [x, net.const(np.array([1, 16, 30]))])], perm=[0, 2, 1])
    y = net.op("MatMul", [rows, net.weight([16, 10], 1)])
    y = net.op("Add", [y, net.const(net.rng.normal(size=10).astype(np.float32))])
    graph = net.check(net.q(net.op("Relu", [y]))).graph
    assert [type(layer) for layer in graph.layers] == [Conv]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_two_maps(new_net: NewNet, op: str, seed: int) -> None:
    net = new_net(seed)
    shape = [1, int(net.rng.integers(1, 30)), 6, 7]
    a, b = net.input(shape, spread=float(net.rng.uniform(0.2, 4))), net.input(shape)
    graph = net.check(net.q(_activation(net, net.op(op, [a, b]), net.rng))).graph
    assert [type(layer) for layer in graph.layers] == [Mul if op == "Mul" else Add]


@pytest.mark.parametrize("swapped", [False, True])
def test_squeeze_and_excitation(new_net: NewNet, swapped: bool) -> None:
    net = new_net(5)
    x = net.input([1, 24, 8, 8])
    s = net.q(net.op("GlobalAveragePool", [x]))
    s = net.q(net.op("Relu", [net.op("Conv", [s, net.weight([8, 24, 1, 1]), net.bias(8, "float")])]))
    s = net.q(net.op("HardSigmoid", [net.q(net.op("Conv", [s, net.weight([24, 8, 1, 1])]))]))
    graph = net.check(net.q(net.op("Mul", [s, x] if swapped else [x, s])), steps=2).graph
    assert [type(layer) for layer in graph.layers] == [Pool, Conv, Conv, Mul]
    assert graph.layers[2].lut is not None


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub", "Div"])
@pytest.mark.parametrize("kind", ["scalar", "channel", "after conv"])
def test_constants(new_net: NewNet, op: str, kind: str) -> None:
    net = new_net(6)
    shape = [] if kind == "scalar" else [10, 1, 1]
    constant = net.const((net.rng.uniform(0.4, 2, size=shape) * net.rng.choice([-1, 1], size=shape)).astype(np.float32))
    x = net.input([1, 10, 6, 5])
    if kind == "after conv":
        x = net.op("Conv", [x, net.weight([10, 10, 3, 3])])
    net.check(net.q(net.op(op, [x, constant])))


def test_a_map_with_itself(new_net: NewNet) -> None:
    for op in ("Add", "Mul"):
        net = new_net(7)
        x = net.input([1, 9, 5, 5])
        graph = net.check(net.q(net.op(op, [x, x]))).graph
        assert [type(layer) for layer in graph.layers] == [Pool]


UNARY = {
    "Relu": {}, "Sigmoid": {}, "Tanh": {}, "HardSigmoid": {"alpha": 0.3, "beta": 0.4}, "HardSwish": {},
    "LeakyRelu": {"alpha": 0.2}, "Elu": {"alpha": 0.7}, "Softplus": {}, "Neg": {}, "Abs": {},
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_tables_fuse_into_convolutions(new_net: NewNet, op: str, dtype: str) -> None:
    net = new_net(8, opset=14)
    y = net.q(net.op("Conv", [net.input([1, 8, 6, 6]), net.weight([11, 8, 3, 3])]), dtype)
    graph = net.check(net.q(net.op(op, [y], **UNARY[op]), dtype), steps=3).graph
    assert [type(layer) for layer in graph.layers] == [Conv]
    assert graph.layers[0].lut is not None


@pytest.mark.parametrize("gate", ["Sigmoid", "HardSigmoid"])
@pytest.mark.parametrize("inner", [False, True])
def test_gated_products_are_one_table(new_net: NewNet, gate: str, inner: bool) -> None:
    """x * Sigmoid(x), with or without Q/DQ around the gate, becomes a table of the convolution."""
    net = new_net(9)
    y = net.q(net.op("Conv", [net.input([1, 8, 6, 6]), net.weight([16, 8, 1, 1])]))
    g = net.op(gate, [y])
    z = net.q(net.op("Mul", [y, net.q(g) if inner else g]))
    graph = net.check(z, steps=3).graph
    assert [type(layer) for layer in graph.layers] == [Conv]


def test_batch_normalization(new_net: NewNet) -> None:
    for behind_conv in (False, True):
        net = new_net(10)
        x = net.input([1, 12, 6, 6])
        if behind_conv:
            x = net.op("Conv", [x, net.weight([12, 12, 1, 1])])
        parameters = [net.const(net.rng.uniform(0.5, 2, size=12).astype(np.float32)) for _ in range(4)]
        graph = net.check(net.q(net.op("Relu", [net.op("BatchNormalization", [x, *parameters])]))).graph
        assert [layer.groups for layer in graph.layers] == [1 if behind_conv else 12]


@pytest.mark.parametrize("channels", [[8, 16, 8], [5, 3, 9], [16, 5], [1, 1, 1]])
@pytest.mark.parametrize("producers", ["conv", "input", "mixed"])
def test_concat(new_net: NewNet, channels: list[int], producers: str) -> None:
    net = new_net(sum(channels))
    x = net.input([1, 6, 5, 5])
    parts = []
    for i, count in enumerate(channels):
        direct = producers == "input" or (producers == "mixed" and i == 0)
        made = net.input([1, count, 5, 5]) if direct else net.q(net.op("Conv", [x, net.weight([count, 6, 1, 1])]))
        parts.append(made)
    graph = net.check(net.q(net.op("Concat", parts, axis=1)), steps=3).graph
    if producers == "conv" and all(count % 8 == 0 for count in channels):
        assert [type(layer) for layer in graph.layers] == [Conv] * len(channels)


def test_concat_of_one_scale_needs_no_table(new_net: NewNet) -> None:
    """Parts with other readers become channel ranges themselves; the same part twice is copied once."""
    net = new_net(11)
    x = net.input([1, 8, 5, 5])
    a = net.q(net.op("Conv", [x, net.weight([8, 8, 1, 1])]), "int8", 0.05, 3)
    b = net.q(net.op("MaxPool", [a], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), "int8", 0.05, 3)
    joined = net.q(net.op("Concat", [a, b, a], axis=1), "int8", 0.05, 3)
    graph = net.check(joined).graph
    assert [type(layer) for layer in graph.layers] == [Conv, Pool, Pool]
    assert sum(tensor.parent is not None for tensor in graph.tensors.values()) == 3


def test_nested_concat_moves_tables_to_its_parts(new_net: NewNet) -> None:
    net = new_net(12)
    x = net.input([1, 8, 5, 5])
    convs = [net.q(net.op("Conv", [x, net.weight([8, 8, 1, 1])])) for _ in range(3)]
    inner = net.q(net.op("Concat", convs[:2], axis=1))
    graph = net.check(net.q(net.op("Concat", [convs[2], inner], axis=1)), steps=4).graph
    assert [type(layer) for layer in graph.layers] == [Conv, Conv, Conv]


@pytest.mark.parametrize("value", [0.0, 1.5, -300.0])
@pytest.mark.parametrize("reader", ["none", "conv", "max", "average"])
def test_pad(new_net: NewNet, value: float, reader: str) -> None:
    net = new_net(13)
    pads = [net.const(np.array([0, 0, 1, 2, 0, 0, 2, 1])), net.const(np.float32(value))]
    y = net.q(net.op("Pad", [net.input([1, 9, 8, 8]), *pads]), "int8", 0.05, 7)
    if reader == "conv":
        y = net.q(net.op("Conv", [y, net.weight([5, 9, 3, 3])]))
    elif reader != "none":
        op = "MaxPool" if reader == "max" else "AveragePool"
        y = net.q(net.op(op, [y], kernel_shape=[3, 3], strides=[2, 2]))
    net.check(y, steps=2)


def test_pad_disappears_into_a_convolution(new_net: NewNet) -> None:
    net = new_net(14)
    pads = net.const(np.array([0, 0, 1, 2, 0, 0, 2, 1]))
    y = net.op("Pad", [net.input([1, 9, 8, 8]), pads])
    graph = net.check(net.q(net.op("Conv", [y, net.weight([5, 9, 3, 3])]))).graph
    assert [(type(layer), layer.padding) for layer in graph.layers] == [(Conv, (1, 2, 2, 1))]


@pytest.mark.parametrize("order", ["conv first", "conv second", "two convs"])
@pytest.mark.parametrize("activation", ["none", "Relu", "Sigmoid"])
def test_residual_sums_fuse(new_net: NewNet, order: str, activation: str) -> None:
    net = new_net(15)
    x = net.input([1, 8, 6, 6])
    a = net.q(net.op("Conv", [x, net.weight([8, 8, 3, 3])], pads=[1, 1, 1, 1]))
    b = net.q(net.op("Conv", [x, net.weight([8, 8, 1, 1])])) if order == "two convs" else x
    y = net.op("Add", [b, a] if order == "conv second" else [a, b])
    if activation == "Sigmoid":
        y = net.op("Sigmoid", [net.q(y)])
    elif activation == "Relu":
        y = net.op("Relu", [y])
    graph = net.check(net.q(y), steps=6).graph
    assert all(isinstance(layer, Conv) for layer in graph.layers)
    assert graph.layers[-1].residual is not None
    assert graph.layers[-1].lut_after_add == (activation == "Sigmoid")


def test_views_between_layers(new_net: NewNet) -> None:
    net = new_net(16)
    y = net.q(net.op("GlobalAveragePool", [net.input([1, 20, 4, 4])]))
    y = net.op("Squeeze", [y, net.const(np.array([2, 3]))])
    y = net.op("Unsqueeze", [y, net.const(np.array([2, 3]))])
    y = net.q(net.op("Conv", [net.op("Identity", [y]), net.weight([7, 20, 1, 1])]))
    y = net.op("Reshape", [net.op("Dropout", [y]), net.const(np.array([-1, 7]))])
    graph = net.check(y).graph
    assert graph.outputs[0].shape == (1, 7)


def test_channels_last_edges(new_net: NewNet) -> None:
    net = new_net(17)
    x = net.op("Transpose", [net.input([1, 9, 8, 3])], perm=[0, 3, 1, 2])
    y = net.q(net.op("Conv", [x, net.weight([5, 3, 3, 3])], strides=[2, 2]))
    graph = net.check(net.op("Transpose", [y], perm=[0, 2, 3, 1])).graph
    assert graph.inputs[0].axes == ((), ("h",), ("w",), ("c",))
    assert graph.outputs[0].axes == ((), ("h",), ("w",), ("c",))


@pytest.mark.parametrize("end", ["Softmax", "ArgMax", "Softmax+Q"])
def test_the_end_runs_on_the_host(new_net: NewNet, end: str) -> None:
    net = new_net(18)
    y = net.q(net.op("Gemm", [net.input([1, 30]), net.weight([30, 10], 1)]))
    z = net.op(end.partition("+")[0], [y], axis=1)
    if end.endswith("Q"):
        z = net.q(z, "uint8", 1 / 256, 0)
    graph = net.check(z, y).graph
    assert graph.host_nodes[0].op == end.partition("+")[0]
    assert graph.tail


def test_several_inputs_and_outputs_some_of_them_codes(new_net: NewNet) -> None:
    net = new_net(20)
    a, b = net.input([1, 8, 4, 4]), net.input([1, 8, 4, 4])
    y = net.op("Add", [a, b])
    scale, zero = net.const(np.float32(0.05)), net.const(np.uint8(120))
    codes = net.op("QuantizeLinear", [y, scale, zero])
    z = net.q(net.op("Conv", [net.op("DequantizeLinear", [codes, scale, zero]), net.weight([8, 8, 1, 1])]))
    graph = net.check(codes, z, steps=2).graph
    assert [port.dtype for port in graph.outputs] == ["uint8", "float32"]


@pytest.mark.parametrize("opset", [10, 11, 12, 13, 17, 19, 21])
def test_quantised_models_of_any_opset(new_net: NewNet, opset: int) -> None:
    """Old ones go through the version converter, newer ones are read as they are."""
    net = new_net(21, opset=opset)
    y = net.q(net.op("Relu", [net.op("Conv", [net.input([1, 8, 6, 6]), net.weight([8, 8, 3, 3], None)])]))
    flat = net.op("Flatten", [net.op("MaxPool", [y], kernel_shape=[4, 4])])
    y = net.q(net.op("Gemm", [flat, net.weight([8, 5], None), net.bias(5, "float")]))
    net.check(net.op("Softmax", [y], axis=1))
