"""What is checked before any operator is looked at: data of constants, inputs and outputs; and scalars, moved channels.

It must not know how files are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from corepool.compiler.static.frontend import import_model
from corepool.errors import ModelError

NewNet = Callable[..., Any]


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    constants: Mapping[str, Any],
    opset: int = 17,
) -> Path:
    """A float model."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def refuse(path: Path, *words: str) -> str:
    with pytest.raises(ModelError) as caught:
        import_model(path)
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line
    return line


def test_flattening_by_the_size_of_the_batch(tmp_path: Path) -> None:
    """PyTorch's x.view(x.size(0), -1): a scalar is gathered from the shape; it must stay one."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axis"], ["batch1"]),
        helper.make_node("Concat", ["batch1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["y"]),
    ]
    constants = {
        "zero": np.int64(0),
        "axis": np.array([0]),
        "rest": np.array([-1]),
        "w": rng.normal(size=(24, 5)).astype(np.float32),
    }
    path = write(tmp_path / "m.onnx", nodes, {"x": [1, 6, 2, 2]}, ["y"], constants)
    graph = import_model(path, {"x": rng.normal(size=(4, 6, 2, 2)).astype(np.float32)}).graph
    assert graph.outputs[0].shape == (1, 5)


@pytest.mark.parametrize(("dims", "size"), [([1 << 20, 1 << 20], None), ([4, 4, 1, 1], 61), ([4, 4, 1, 1], 68)])
def test_constants_whose_data_does_not_fit_their_shape(tmp_path: Path, dims: list[int], size: int | None) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, {"x": [1, 4, 4, 4]}, ["y"], {"w": np.ones((4, 4, 1, 1), np.float32)})
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    if size is not None:
        tensor.raw_data = bytes(size)
    onnx.save(model, path)
    refuse(path, "m.onnx: the constant 'w' has", "damaged", str(dims))


def test_constants_inside_nodes_are_checked_too(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.ones((4, 4), np.float32))
    value.dims[0] = 1 << 40
    nodes = [
        helper.make_node("Constant", [], ["c"], name="made", value=value),
        helper.make_node("MatMul", ["x", "c"], ["y"]),
    ]
    refuse(write(tmp_path / "m.onnx", nodes, {"x": [1, 4]}, ["y"], {}), "attribute value of node 'made'", "damaged")


def test_models_without_inputs_or_with_useless_outputs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    relu = helper.make_node("Relu", ["x"], ["y"])
    refuse(write(path, [helper.make_node("Relu", ["c"], ["y"])], {}, ["y"], {"c": np.ones(3, np.float32)}), "no input")
    refuse(write(path, [relu], {"x": [1, 4]}, ["y", "nowhere"], {}), "output 'nowhere' is made by no node")
    refuse(write(path, [relu], {"x": [1, 4]}, ["y", "x"], {}), "output 'x' is a graph input")


def test_channels_that_are_only_moved_are_no_work(new_net: NewNet) -> None:
    net = new_net()
    parts = [net.q(net.op("MaxPool", [net.input([1, n, 6, 6], "int8")], kernel_shape=[2, 2])) for n in (3, 5)]
    graph = net.check(net.q(net.op("Concat", parts, axis=1))).graph
    assert [layer for layer in graph.layers if type(layer).__name__ == "Conv"], (
        "parts off block boundaries are gathered"
    )
    assert sum(graph.macs(layer) for layer in graph.layers) == 0
