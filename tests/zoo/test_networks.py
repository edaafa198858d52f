"""The seeded networks: true work, the QDQ form, sane numbers. It must not know the compiler."""

from __future__ import annotations

import collections
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from corepool import zoo
from corepool.errors import ModelError
from corepool.zoo import networks
from corepool.zoo.qdq import QdqNetwork, sample_image

QUANTISED = ["vgg16", "resnet50", "inception_v3", "mobilenet_v1"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    paths = {name: folder / f"{name}.onnx" for name in QUANTISED}
    for name, path in paths.items():
        zoo.write(name, path)
    return paths


@pytest.fixture(scope="module", params=QUANTISED)
def model(request: pytest.FixtureRequest, written: dict[str, Path]) -> onnx.ModelProto:
    return onnx.load(written[request.param])


# GMAC; layers with weights; weights and biases, which are torchvision's parameters less one per folded channel
FACTS = {
    "vgg16": (15.470, 16, 138_357_544),
    "resnet50": (4.089, 54, 25_530_472),
    "inception_v3": (5.713, 95, 23_817_352),
    "mobilenet_v1": (0.569, 28, 4_221_032),
}


def test_the_work_is_that_of_the_true_network(model: onnx.ModelProto, macs: Callable[..., Any]) -> None:
    gmac, layers, parameters = FACTS[model.graph.name]
    assert round(macs(model) / 1e9, 3) == pytest.approx(gmac, abs=1e-9)
    assert sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node) == layers
    weights = [item for item in model.graph.initializer if item.name.endswith((".weight_quantized", ".bias_quantized"))]
    assert sum(math.prod(item.dims) for item in weights) == parameters


def test_input_output_and_opset(model: onnx.ModelProto, shapes: Callable[..., Any]) -> None:
    side = 299 if model.graph.name == "inception_v3" else 224
    known = shapes(model)
    assert [(i.name, known[i.name]) for i in model.graph.input] == [("input", (1, 3, side, side))]
    assert [(o.name, known[o.name]) for o in model.graph.output] == [("logits", (1, 1000))]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]


def test_every_operator_stands_between_quantised_tensors(model: onnx.ModelProto) -> None:
    producer = {node.output[0]: node for node in model.graph.node}
    consumers: dict[str, list[str]] = collections.defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            consumers[name].append(node.op_type)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if node.op_type in ("Relu", "Clip"):
            assert producer[node.input[0]].op_type in ("Conv", "Gemm", "Add")
        else:
            assert {producer[name].op_type for name in node.input} == {"DequantizeLinear"}, node.name
        assert consumers[node.output[0]] in (["QuantizeLinear"], ["Relu"], ["Clip"]), node.name


def test_weights_are_symmetric_per_channel_and_biases_fit_their_products(model: onnx.ModelProto) -> None:
    constants = {item.name: item for item in model.graph.initializer}
    producer = {node.output[0]: node for node in model.graph.node}

    def values(name: str) -> np.ndarray:
        return numpy_helper.to_array(constants[name])

    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        source, weight, bias = (producer[name] for name in node.input)
        quantised = values(weight.input[0])
        channels = quantised.shape[0]
        assert quantised.dtype == np.int8
        assert quantised.reshape(channels, -1).max() == 127
        assert quantised.min() >= -127
        assert values(weight.input[1]).shape == (channels,)
        assert not values(weight.input[2]).any()
        assert values(bias.input[0]).dtype == np.int32
        expected = values(source.input[1]) * values(weight.input[1])
        np.testing.assert_array_equal(values(bias.input[1]), expected)
        assert len(set(values(weight.input[1]).tolist())) > channels // 2  # scales differ between channels


def test_pools_keep_the_quantisation_of_their_input(model: onnx.ModelProto) -> None:
    producer = {node.output[0]: node for node in model.graph.node}
    after = {node.input[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        if node.op_type in ("MaxPool", "AveragePool", "Flatten"):
            assert list(producer[node.input[0]].input[1:]) == list(after[node.output[0]].input[1:])


def test_zero_points_are_not_trivial(model: onnx.ModelProto) -> None:
    constants = {item.name: item for item in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert all(not constants[name].dims for node in nodes for name in node.input[1:])
    points = {int(numpy_helper.to_array(constants[node.input[2]])) for node in nodes}
    assert points - {-128, 0, 127}


@pytest.mark.parametrize("name", ["mobilenet_v1", "resnet50", "inception_v3"])
def test_answers_are_not_degenerate(name: str, written: dict[str, Path], logits: Callable[..., Any]) -> None:
    side = networks.NETWORKS[name].side
    answers = []
    for seed in (1, 2):
        answer = logits(written[name], sample_image(np.random.default_rng(seed), side, side))
        assert answer.shape == (1, 1000)
        assert len(np.unique(answer)) > 80
        assert np.mean((answer == answer.max()) | (answer == answer.min())) < 0.01
        answers.append(answer)
    assert not np.array_equal(*answers)


@pytest.mark.parametrize("name", ["mobilenet_v1", "resnet50", "inception_v3"])
def test_the_quantised_network_computes_what_the_float_network_does(
    name: str, written: dict[str, Path], logits: Callable[..., Any]
) -> None:
    network = networks.NETWORKS[name]
    net = QdqNetwork(name, 0, (network.side, network.side), lambda: None)
    expected = network.layers(net).values
    answer = logits(written[name], net.input.values)
    assert np.corrcoef(answer.ravel(), expected.ravel())[0, 1] > 0.97
    assert abs(answer - expected).mean() < 0.25 * expected.std()


def test_the_seed_alone_decides_the_bytes(tmp_path: Path) -> None:
    def digest(seed: int) -> str:
        zoo.write("mobilenet_v1", tmp_path / "m.onnx", seed)
        return hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()

    assert digest(3) == digest(3) != digest(4)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
def test_progress_counts_up_to_the_end(name: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    zoo.write(name, tmp_path / "m.onnx", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(step, len(seen)) for step in range(1, len(seen) + 1)]
    assert len(seen) > 10


@pytest.mark.parametrize("name", QUANTISED)
def test_declared_steps_are_the_layers_with_weights(name: str) -> None:
    assert networks.NETWORKS[name].steps == FACTS[name][1]


def test_an_unknown_network_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"alexnet.*vgg16, resnet50, inception_v3, mobilenet_v1, mobilenet_v2"):
        zoo.write("alexnet", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="-1"):
        zoo.write("mobilenet_v1", tmp_path / "m.onnx", -1)


def test_a_missing_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot write"):
        zoo.write("vgg16", tmp_path / "nowhere" / "m.onnx")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"old")

    def full(self: Path, other: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ModelError, match="No space left"):
        zoo.write("mobilenet_v2", target)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.onnx", b"old")]
