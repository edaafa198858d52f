"""Whole files: float models and their calibration, old opsets, batches, external data, subsets of real networks.

It must not know single operators; they have tests of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from corepool import zoo
from corepool.compiler.static import reference
from corepool.compiler.static.compare import layer_differences
from corepool.compiler.static.frontend import import_model
from corepool.compiler.static.graph import Conv, Pool
from corepool.compiler.static.ort import onnxruntime
from corepool.errors import CalibrationError, InputError
from corepool.zoo import photos

NewNet = Callable[..., Any]


def float_model(path: Path, rng: np.random.Generator, opset: int = 17, batch: int | str = 1) -> Path:
    """Conv, BatchNormalization, Relu, a residual sum, pooling, constant arithmetic for a reshape, Gemm, Softmax."""

    def array(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "w1": array(8, 3, 3, 3),
        "w2": array(8, 8, 3, 3),
        "w3": array(8, 5),
        "b3": array(5),
        "mean": array(8),
        "one": np.ones(8, dtype=np.float32),
        "gain": rng.uniform(0.5, 2, size=8).astype(np.float32),
        "zero": np.array([0]),
        "rest": np.array([-1]),
        "half": np.float32(0.5),
    }
    nodes = [
        helper.make_node("Sub", ["input", "half"], ["shifted"]),
        helper.make_node("Conv", ["shifted", "w1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2], name="first"),
        helper.make_node("BatchNormalization", ["c1", "gain", "mean", "mean", "one"], ["n1"], name="norm"),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Identity", ["r1"], ["i1"]),
        helper.make_node("Conv", ["i1", "w2"], ["c2"], pads=[1, 1, 1, 1], name="second"),
        helper.make_node("Add", ["c2", "r1"], ["s"], name="sum"),
        helper.make_node("BatchNormalization", ["s", "gain", "mean", "mean", "one"], ["n2"], name="norm of a sum"),
        helper.make_node("LeakyRelu", ["n2"], ["l"], alpha=0.1),
        helper.make_node("GlobalAveragePool", ["l"], ["p"]),
        helper.make_node("Shape", ["p"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["p", "target"], ["flat"]),
        helper.make_node("Dropout", ["flat"], ["d"]),
        helper.make_node("Gemm", ["d", "w3", "b3"], ["logits"], name="dense"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    if opset < 10:  # files of that age list their constants among the inputs
        for tensor in graph.initializer:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if opset < 10 else 8),
        path,
    )
    return path


@pytest.mark.parametrize(("opset", "batch"), [(17, 1), (17, "batch"), (9, 1), (11, "N"), (13, 1)])
def test_float_models_are_tidied_quantised_and_cut(tmp_path: Path, opset: int, batch: int | str) -> None:
    rng = np.random.default_rng(opset)
    path = float_model(tmp_path / "float.onnx", rng, opset, batch)
    samples = rng.normal(size=(8, 3, 16, 16)).astype(np.float32)
    imported = import_model(path, {"input": samples})
    graph = imported.graph
    assert graph.host_nodes[0].op == "Softmax"  # old opsets are converted with a Reshape behind it
    assert not {node.op_type for node in imported.qdq_model.graph.node} & {
        "BatchNormalization",
        "Identity",
        "Dropout",
    }
    worst = layer_differences(graph, imported.qdq_model, {"input": samples[:1]})
    assert len(worst) >= 4
    assert max(worst.values()) <= 1
    float_session = onnxruntime.InferenceSession(str(path))
    for sample in samples[:4, None]:
        mine = reference.outputs(graph, reference.execute(graph, {"input": sample}))
        assert list(mine) == ["probabilities"]
        np.testing.assert_allclose(mine["probabilities"], float_session.run(None, {"input": sample})[0], atol=0.03)


def test_calibration_from_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = float_model(tmp_path / "float.onnx", rng)
    samples = rng.normal(size=(4, 3, 16, 16)).astype(np.float32)
    folder = tmp_path / "samples"
    folder.mkdir()
    np.savez(tmp_path / "all.npz", input=samples)
    for i, sample in enumerate(samples):
        np.save(folder / f"{i}.npy", sample)
    (folder / "notes.txt").write_text("not a sample")
    wanted = import_model(path, {"input": samples}).graph.tensors
    for source in (tmp_path / "all.npz", folder, str(folder)):
        assert import_model(path, source).graph.tensors == wanted
    photos.load("cat").save(folder / "cat.png")
    assert import_model(path, folder).graph.tensors.keys() == wanted.keys()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "the model is float: quantising it needs calibration data"),
        ({"x": np.zeros((1, 3, 16, 16))}, "names x; the model's inputs are input"),
        ({"input": np.zeros((1, 3, 8, 8))}, r"'input' is float64 \[1, 3, 8, 8\]"),
        ({"input": np.full((1, 3, 16, 16), np.nan)}, "holds NaN"),
        ("empty", "no calibration data"),
        ("missing.npz", "cannot be read as calibration data"),
    ],
)
def test_unfit_calibration_is_refused(tmp_path: Path, source: Any, words: str) -> None:
    path = float_model(tmp_path / "float.onnx", np.random.default_rng(1))
    if isinstance(source, str):
        (tmp_path / "empty").mkdir()
        source = tmp_path / source
    with pytest.raises(CalibrationError, match=words):
        import_model(path, source)


def test_pickled_calibration_is_not_loaded(tmp_path: Path) -> None:
    path = float_model(tmp_path / "float.onnx", np.random.default_rng(1))
    np.save(tmp_path / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CalibrationError, match=r"bad\.npy"):
        import_model(path, tmp_path / "bad.npy")


def test_quantising_is_quiet_and_leaves_no_files(tmp_path: Path) -> None:
    path = float_model(tmp_path / "float.onnx", np.random.default_rng(2))
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), dtype=np.float32))
    (tmp_path / "tmp").mkdir()
    code = (
        "import sys; from corepool.compiler.static.frontend import import_model; import_model(sys.argv[1], sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "x.npy")],
        capture_output=True, text=True, check=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_external_data_beside_the_model_is_read(new_net: NewNet, tmp_path: Path) -> None:
    net = new_net(1)
    y = net.q(net.op("Conv", [net.input([1, 8, 6, 6]), net.weight([8, 8, 3, 3])]))
    model = onnx.load(net.save(y))
    expected = import_model(net.path).graph.layers[0]
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    found = import_model(tmp_path / "split.onnx").graph.layers[0]
    assert isinstance(found, Conv)
    assert isinstance(expected, Conv)
    np.testing.assert_array_equal(found.weight, expected.weight)


def test_nodes_in_any_order_and_local_functions(new_net: NewNet) -> None:
    net = new_net(2)
    y = net.q(net.op("Relu", [net.op("Conv", [net.input([1, 8, 6, 6]), net.weight([8, 8, 3, 3])])]))
    model = onnx.load(net.save(y))
    straight = import_model(net.path).graph
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, net.path)
    assert import_model(net.path).graph.tensors == straight.tensors


def test_codes_at_the_edges(tmp_path: Path) -> None:
    """An int8 input and a uint8 output: the graph begins with DequantizeLinear and ends with QuantizeLinear."""
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["xf"]),
        helper.make_node("MaxPool", ["xf"], ["y"], kernel_shape=[2, 2]),
        helper.make_node("QuantizeLinear", ["y", "s2", "z2"], ["codes"]),
    ]
    constants = {"s": np.float32(0.1), "z": np.int8(5), "s2": np.float32(0.07), "z2": np.uint8(100)}
    graph = helper.make_graph(
        nodes, "codes",
        [helper.make_tensor_value_info("x", TensorProto.INT8, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, [1, 4, 5, 5])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    imported = import_model(tmp_path / "m.onnx")
    x = np.random.default_rng(0).integers(-128, 128, size=(1, 4, 6, 6)).astype(np.int8)
    mine = reference.outputs(imported.graph, reference.execute(imported.graph, {"x": x}))["codes"]
    theirs = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x})[0]
    np.testing.assert_array_equal(mine, theirs)
    assert [type(layer) for layer in imported.graph.layers] == [Pool]


def test_inputs_of_the_wrong_kind_are_refused(new_net: NewNet) -> None:
    net = new_net(3)
    graph = import_model(net.save(net.q(net.op("Relu", [net.input([1, 4, 4, 4])])))).graph
    name = graph.inputs[0].name
    good = np.zeros((1, 4, 4, 4), dtype=np.float32)
    for inputs, words in (
        ({}, "missing"),
        ({"other": good}, "other"),
        ({name: good[0]}, "shape"),
        ({name: good.astype(np.float64)}, "float64"),
    ):
        with pytest.raises(InputError, match=words):
            reference.execute(graph, inputs)  # type: ignore[arg-type]


MACS = {"resnet50": 4_089_184_256, "inception_v3": 5_713_216_096, "mobilenet_v1": 568_740_352}


@pytest.mark.parametrize("name", MACS)
def test_networks_layer_by_layer(tmp_path: Path, name: str) -> None:
    """Every layer of a real network, given onnxruntime's inputs, is within one step of onnxruntime; same best class."""
    path = tmp_path / f"{name}.onnx"
    zoo.write(name, path)
    imported = import_model(path)
    graph = imported.graph
    assert sum(graph.macs(layer) for layer in graph.layers) == MACS[name]
    port = graph.inputs[0]
    inputs = {port.name: np.random.default_rng(1).normal(size=port.shape).astype(np.float32)}
    differences = layer_differences(graph, imported.qdq_model, inputs)
    assert differences.keys() == {layer.name for layer in graph.layers}
    assert max(differences.values()) <= 1
    assert not [layer for layer in graph.layers if type(layer).__name__ == "Add"], "every sum fits into a convolution"
    mine = reference.outputs(graph, reference.execute(graph, inputs))
    theirs = onnxruntime.InferenceSession(str(path)).run(None, inputs)[0]
    assert next(iter(mine.values())).argmax() == theirs.argmax()


def test_mobilenet_v2_on_photos(tmp_path: Path) -> None:
    """The float network with real weights: within one step a layer, and the same best class on every photo."""
    path = tmp_path / "mobilenet_v2.onnx"
    zoo.write("mobilenet_v2", path)
    imported = import_model(path, {"input": photos.calibration(16)})
    graph = imported.graph
    session = onnxruntime.InferenceSession(imported.qdq_model.SerializeToString())
    for name in photos.names():
        inputs = {"input": photos.preprocess(photos.load(name))}
        mine = reference.outputs(graph, reference.execute(graph, inputs))
        assert next(iter(mine.values())).argmax() == session.run(None, inputs)[0].argmax(), name
    differences = layer_differences(graph, imported.qdq_model, inputs)
    assert len(differences) == len(graph.layers)
    assert max(differences.values()) <= 1


@pytest.mark.parametrize(("name", "gmac", "layers"), [("squeezenet", 0.349, 30), ("inception_v2", 2.019, 83)])
def test_files_that_others_made(name: str, gmac: float, layers: int) -> None:
    """Networks of opset 9 from onnx's own test data: constants made by nodes, factors behind normalisations."""
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    rng = np.random.default_rng(0)
    sample = {"data_0": rng.normal(size=(1, 3, 224, 224)).astype(np.float32)}
    imported = import_model(path, sample)
    graph = imported.graph
    assert len(graph.layers) == layers
    assert round(sum(graph.macs(layer) for layer in graph.layers) / 1e9, 3) == gmac
    assert graph.host_nodes[0].op == "Softmax"
    assert max(layer_differences(graph, imported.qdq_model, sample).values()) <= 1


def test_sums_of_several_and_factors_merge(tmp_path: Path) -> None:
    """Conv, Mul and Add per channel and Sum of three maps become three fused convolutions; what was merged is told."""
    rng = np.random.default_rng(3)
    constants = {f"w{i}": rng.normal(size=(8, 8, 1, 1)).astype(np.float32) for i in range(3)}
    constants["factor"] = rng.uniform(0.5, 2, size=(8, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", f"w{i}"], [f"c{i}"], name=f"conv{i}") for i in range(3)]
    nodes += [
        helper.make_node("Mul", ["c0", "factor"], ["m"], name="factor"),
        helper.make_node("Add", ["factor", "m"], ["a"], name="offset"),
        helper.make_node("Sum", ["a", "c1", "c2"], ["y"], name="sum"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 6, 6]) for name in "xy"]
    tensors = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph_proto = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph_proto, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    samples = rng.normal(size=(8, 8, 6, 6)).astype(np.float32)
    imported = import_model(path, {"x": samples})
    assert [type(layer) for layer in imported.graph.layers] == [Conv] * 3
    assert imported.graph.removed["factor"] == "merged into 'conv0'"
    assert imported.graph.removed["offset"] == "merged into 'conv0'"
    inputs = {"x": samples[:1]}
    assert max(layer_differences(imported.graph, imported.qdq_model, inputs).values()) <= 1
    mine = reference.outputs(imported.graph, reference.execute(imported.graph, inputs))["y"]
    expected = onnxruntime.InferenceSession(str(path)).run(None, inputs)[0]
    np.testing.assert_allclose(mine, expected, atol=0.06 * np.abs(expected).max())


def test_long_chains_cost_no_more_than_their_length(new_net: NewNet) -> None:
    """Each link once made a tuple of all names before it: 30,000 of them took 4 GB."""
    net = new_net()
    y = net.input([1, 4, 6, 6], "int8")
    for _ in range(6000):
        y = net.op("Relu", [y])
    path = net.save(net.q(y, "int8", 0.1, 0))
    tracemalloc.start()
    graph = import_model(path).graph
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20
    assert len(graph.layers) == 1
    assert len(graph.layers[0].origin) >= 6000
