"""Files that must be refused: each with one line that names the thing.

It must not know how files are read.
"""

from __future__ import annotations

import contextlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from corepool.compiler.static.frontend import import_model
from corepool.errors import ModelError

NewNet = Callable[..., Any]


def refuse(path: Path, words: str) -> str:
    with pytest.raises(ModelError, match=words) as caught:
        import_model(path)
    line = str(caught.value)
    assert "\n" not in line
    return line


def conv_model(net: Any) -> onnx.ModelProto:
    y = net.q(net.op("Conv", [net.input([1, 8, 6, 6]), net.weight([8, 8, 3, 3])]), "int8")
    return onnx.load(net.save(y))


@pytest.mark.parametrize("content", [b"", b"hello, world\n", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(1000)])
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    refuse(path, r"a\.onnx: is not an ONNX file")


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    refuse(tmp_path / "none.onnx", "cannot be read: No such file")
    refuse(tmp_path, "cannot be read")
    os.mkfifo(tmp_path / "pipe.onnx")
    refuse(tmp_path / "pipe.onnx", "not a regular file")


def test_truncated_files(new_net: NewNet) -> None:
    net = new_net()
    conv_model(net)
    data = net.path.read_bytes()
    for size in range(1, len(data), len(data) // 40):
        net.path.write_bytes(data[:size])
        refuse(net.path, "ONNX|complete|reads")


def test_flipped_bits_never_escape_the_error_tree(new_net: NewNet) -> None:
    net = new_net()
    conv_model(net)
    data = bytearray(net.path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), size=150):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(0, 8))
        net.path.write_bytes(changed)
        with contextlib.suppress(ModelError):  # anything else fails the test
            import_model(net.path)


def _external(net: Any, location: str, **fields: str) -> Path:
    model = conv_model(net)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=value)
    folder = net.path.parent / "model"
    folder.mkdir()
    path: Path = folder / "m.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin", "sub/../../secret.bin"])
def test_external_data_outside_the_folder(new_net: NewNet, tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    path = _external(new_net(), location)
    (path.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    (path.parent / "sub").mkdir()
    line = refuse(path, "outside the model's folder")
    assert location in line


def test_external_data_that_cannot_be_read(new_net: NewNet) -> None:
    path = _external(new_net(), "data.bin")
    refuse(path, r"data\.bin' cannot be read: No such file")
    os.mkfifo(path.parent / "data.bin")
    refuse(path, "not a regular file")
    (path.parent / "data.bin").unlink()
    (path.parent / "data.bin").write_bytes(bytes(10))
    refuse(path, "it has 10 bytes; 576")


@pytest.mark.parametrize("fields", [{"length": "5"}, {"offset": "-4"}, {"offset": "x"}, {"length": "99999999999999"}])
def test_external_data_with_wrong_fields(new_net: NewNet, fields: dict[str, str]) -> None:
    path = _external(new_net(), "data.bin", **fields)
    (path.parent / "data.bin").write_bytes(bytes(576))
    refuse(path, "cannot be read")


def test_all_unsupported_nodes_are_listed_at_once(new_net: NewNet) -> None:
    net = new_net()
    x = net.input([1, 8, 6, 6])
    a = net.q(net.op("Erf", [x]), "int8", 0.1, 0)
    b = net.q(net.op("MaxPool", [x], outputs=2, kernel_shape=[2, 2]), "int8", 0.1, 0)
    c = net.q(net.op("Pad", [x, net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]))], mode="reflect"), "int8", 0.1, 0)
    d = net.op("MaxPool", [net.op("Softmax", [x])], kernel_shape=[2, 2])
    line = refuse(net.save(a, b, c, d), "supported operators are Abs")
    for words in (r"\(Erf\): operator not supported", "indices", "mode reflect", "must stand at the end"):
        assert words.replace("\\", "") in line, words
    assert line.count("node_") >= 4


def test_unsupported_operators_of_float_models(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Erf", ["x"], ["a"], name="first"),
        helper.make_node("Cos", ["a"], ["b"], name="second"),
        helper.make_node("Fancy", ["b"], ["y"], name="third", domain="my.own"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 4, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    line = refuse(tmp_path / "m.onnx", "supported operators are Abs")
    assert all(word in line for word in ("'first' (Erf)", "'second' (Cos)", "'third' (my.own.Fancy)"))


def test_dynamic_shapes_other_than_the_batch(new_net: NewNet) -> None:
    net = new_net()
    model = conv_model(net)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, net.path)
    refuse(net.path, r"dimension 2 of input 'x1' \(height\) is dynamic")


def test_batches_above_one(new_net: NewNet) -> None:
    net = new_net()
    refuse(net.save(net.q(net.op("Relu", [net.input([2, 4, 4, 4])]))), "batch size is 2; supported is 1")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_bad_scales(new_net: NewNet, value: float) -> None:
    net = new_net()
    model = conv_model(net)
    tensor = next(t for t in model.graph.initializer if t.name.startswith("scale"))
    tensor.CopyFrom(numpy_helper.from_array(np.float32(value), tensor.name))
    onnx.save(model, net.path)
    assert tensor.name in refuse(net.path, "NaN or infinit|zero, negative")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_bad_weights(new_net: NewNet, tmp_path: Path, value: float) -> None:
    net = new_net()
    bias = net.const(np.array([1, value] * 4, dtype=np.float32), "bias")
    y = net.op("Conv", [net.input([1, 8, 6, 6]), net.weight([8, 8, 3, 3]), bias])
    refuse(net.save(net.q(y, "int8", 0.1, 0)), "'bias.*' holds NaN or infinity")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])],
        [numpy_helper.from_array(np.full((1, 1, 1, 1), value, dtype=np.float32), "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "f.onnx")
    refuse(tmp_path / "f.onnx", "'w' holds NaN or infinity")


def test_cycles_missing_inputs_and_names_given_twice(new_net: NewNet) -> None:
    net = new_net()
    model = conv_model(net)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    source = conv.input[0]
    conv.input[0] = model.graph.node[-1].output[0]
    onnx.save(model, net.path)
    refuse(net.path, "cycle through node")
    conv.input[0] = "nowhere"
    onnx.save(model, net.path)
    refuse(net.path, r"\(Conv\) reads 'nowhere', which nothing in the model makes")
    conv.input[0] = source
    model.graph.node[0].output[0] = conv.output[0]
    onnx.save(model, net.path)
    refuse(net.path, "is given to more than one value")


@pytest.mark.parametrize("opset", [1, 8, 999])
def test_opsets_out_of_range(new_net: NewNet, opset: int) -> None:
    net = new_net()
    model = conv_model(net)
    model.opset_import[0].version = opset
    onnx.save(model, net.path)
    refuse(net.path, f"uses ONNX opset {opset}; supported are 9 to")


def test_unknown_attributes_and_malformed_nodes(new_net: NewNet) -> None:
    net = new_net()
    model = conv_model(net)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.attribute.append(helper.make_attribute("flavour", 3))
    onnx.save(model, net.path)
    refuse(net.path, r"\(Conv\): .*flavour")
    del conv.attribute[:], conv.input[1:]
    onnx.save(model, net.path)
    refuse(net.path, r"\(Conv\): ")


def _x(net: Any) -> str:
    return str(net.input([1, 8, 6, 6]))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda n: n.op("Conv", [n.raw_input([1, 8, 6, 6]), n.weight([8, 8, 3, 3])]), "must pass QuantizeLinear"),
        (lambda n: n.op("Conv", [_x(n), n.const(np.ones((4, 8, 1, 1), np.float32))]), "weights are float"),
        (lambda n: n.op("Tanh", [n.op("Conv", [_x(n), n.weight([4, 8, 1, 1])])]), "must pass QuantizeLinear"),
        (lambda n: n.op("Add", [_x(n), n.input([1, 1, 6, 6])]), "supported are maps of one shape"),
        (lambda n: n.op("Concat", [_x(n), _x(n)], axis=2), "concatenation of maps on channels"),
        (lambda n: n.op("Reshape", [_x(n), n.const(np.array([1, 4, 2, 36]))]), "only joining whole axes"),
        (lambda n: n.op("Conv", [_x(n), n.weight([8, 8, 9, 9])]), "does not fit"),
        (lambda n: n.op("MatMul", [n.input([1, 8]), n.op("Transpose", [n.input([1, 8])])]), "must be constant"),
        (lambda n: n.op("Conv", [n.input([1, 40000, 6, 6]), n.bias_heavy()]), "could leave 32 bits"),
    ],
)
def test_what_cannot_be_expressed_says_why(new_net: NewNet, build: Callable[[Any], str], words: str) -> None:
    net = new_net()

    def bias_heavy() -> str:
        codes = np.full((1, 40000, 3, 3), 127, dtype=np.int8)
        return str(net.op("DequantizeLinear", [net.const(codes), net.const(np.float32(1e-6))]))

    net.bias_heavy = bias_heavy
    refuse(net.save(net.q(build(net), "int8", 0.1, 0)), words)


def test_an_output_without_a_scale(new_net: NewNet) -> None:
    net = new_net()
    y = net.op("Conv", [net.input([1, 8, 6, 6]), net.weight([8, 8, 3, 3])])
    line = refuse(net.save(y), "must pass QuantizeLinear and DequantizeLinear")
    assert f"'{y}'" in line


@pytest.mark.parametrize("shape", [[1 << 15, 1 << 15], [1 << 40]])
def test_small_files_that_ask_for_much_memory(new_net: NewNet, shape: list[int]) -> None:
    net = new_net()
    x = net.input([1, 8, 6, 6])
    y = net.q(net.op("Add", [x, net.op("ConstantOfShape", [net.const(np.array(shape))])]), "int8", 0.1, 0)
    path = net.save(y)
    tracemalloc.start()
    refuse(path, "too large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_huge_maps_are_refused_before_they_are_made(new_net: NewNet) -> None:
    net = new_net()
    model = conv_model(net)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 1 << 20
    onnx.save(model, net.path)
    refuse(net.path, "too large")


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool", "Pad"])
@pytest.mark.parametrize("amount", [1 << 20, 1 << 40])
def test_huge_paddings_are_refused_before_they_are_made(new_net: NewNet, op: str, amount: int) -> None:
    net = new_net()
    x, pads = net.input([1, 8, 6, 6]), [amount] * 4
    if op == "Conv":
        y = net.op("Conv", [x, net.weight([8, 8, 3, 3])], pads=pads)
    elif op == "Pad":
        y = net.op("Pad", [x, net.const(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]]))])
    else:
        y = net.op(op, [x], kernel_shape=[3, 3], pads=pads)
    path = net.save(net.q(y, "int8", 0.1, 0))
    tracemalloc.start()
    refuse(path, "too large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_operators_of_quantised_formats_other_than_qdq(tmp_path: Path) -> None:
    node = helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"], name="c")
    values = [helper.make_tensor_value_info(name, TensorProto.INT8, [1, 1, 4, 4]) for name in "xy"]
    constants = {"s": np.float32(1), "z": np.int8(0), "w": np.ones((1, 1, 1, 1), np.int8)}
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    refuse(tmp_path / "m.onnx", r"'c' \(QLinearConv\): operator not supported; supported operators are")
