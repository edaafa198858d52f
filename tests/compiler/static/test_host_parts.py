"""Operators that the cores lack at a network's beginning and end: on the host, to onnxruntime's answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from corepool.compiler.static import compile_model, reference
from corepool.compiler.static.frontend import import_model
from corepool.compiler.static.hostpart import complaint
from corepool.compiler.static.ort import onnxruntime
from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.errors import CalibrationError, InputError, ModelError
from corepool.runtime.session import Session
from support.camera import photos, picture_model

NewNet = Callable[..., Any]
TINY = preset("tiny")
Array = np.ndarray[Any, Any]

BEGINNINGS: dict[str, Callable[[Any, str], str]] = {
    "Sin": lambda net, x: net.op("Sin", [x]),
    "Resize": lambda net, x: net.op(
        "Resize", [x, "", net.const(np.array([1, 1, 2, 2], np.float32))], mode="linear",
    ),
    "focus": lambda net, x: net.op(
        "Concat",
        [
            net.op("Slice", [x, *(net.const(np.array(v, np.int64)) for v in ([h, w], [99, 99], [2, 3], [2, 2]))])
            for h in (0, 1)
            for w in (0, 1)
        ],
        axis=1,
    ),
    "InstanceNormalization": lambda net, x: net.op(
        "InstanceNormalization", [x, net.const(np.ones(4, np.float32)), net.const(np.zeros(4, np.float32))]
    ),
    "Sin and the input itself": lambda net, x: net.op("Add", [net.q(net.op("Sin", [x])), net.q(x)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_the_beginning_runs_on_the_host(new_net: NewNet, kind: str) -> None:
    net = new_net(3)
    x = net.q(BEGINNINGS[kind](net, net.raw_input([1, 4, 8, 8])))
    channels = net.value(x).shape[1]
    imported = net.check(net.q(net.op("Conv", [x, net.weight([5, channels, 3, 3])])))
    graph = imported.graph
    assert graph.head
    assert [each.name for each in graph.head_inputs] == list(net.samples)
    assert graph.host_nodes
    assert all("beginning" in node.reason or "before" in node.reason for node in graph.host_nodes)
    assert all(node.op not in ("Conv", "Add") for node in graph.host_nodes)


ENDS: dict[str, Callable[[Any, str], str]] = {
    "Erf": lambda net, y: net.op("Erf", [y]),
    "Sin, then a sum": lambda net, y: net.op("Add", [net.op("Sin", [y]), net.const(np.float32(2))]),
    "Resize": lambda net, y: net.op("Resize", [y, "", net.const(np.array([1, 1, 2, 2], np.float32))], mode="nearest"),
    "LayerNormalization": lambda net, y: net.op(
        "LayerNormalization", [y, net.const(np.full(6, 2, np.float32)), net.const(np.ones(6, np.float32))], axis=-1
    ),
    "Exp over its sum": lambda net, y: _soft(net, y),
}  # fmt: skip


def _soft(net: Any, y: str) -> str:
    exp = net.op("Exp", [y])
    return str(net.op("Div", [exp, net.op("ReduceSum", [exp, net.const(np.array([1], np.int64))])]))


@pytest.mark.parametrize("kind", ENDS)
def test_the_end_runs_on_the_host(new_net: NewNet, kind: str) -> None:
    net = new_net(4, opset=17)
    y = net.q(net.op("Conv", [net.input([1, 4, 8, 8]), net.weight([5, 4, 3, 3])]))
    graph = net.check(ENDS[kind](net, y), y).graph
    assert graph.tail
    assert len(graph.layers) == 1
    assert graph.host_nodes


def test_a_middle_is_refused_as_before(new_net: NewNet) -> None:
    net = new_net(5)
    x = net.q(net.op("Conv", [net.input([1, 4, 8, 8]), net.weight([4, 4, 3, 3])]))
    x = net.q(net.op("Sin", [x]))
    with pytest.raises(ModelError, match=r"\(Sin\): operator not supported"):
        import_model(net.save(net.q(net.op("Conv", [x, net.weight([4, 4, 3, 3])]))))


def test_bytes_of_a_camera_go_in_and_shares_come_out(tmp_path: Path) -> None:
    """Through package and device, beside onnxruntime running the float file that the user has."""
    path = picture_model(tmp_path / "camera.onnx")
    made = compile_model(path, TINY, {"photo": photos(24)})
    made.save(tmp_path / "camera.cpk")
    meta = made.package.meta
    assert meta["head_inputs"] == [{"name": "photo", "dtype": "uint8", "shape": [1, 24, 20, 3]}]
    assert [node["op"] for node in meta["host_nodes"]] == ["Cast", "Resize", "Exp", "ReduceSum", "Div"]
    from corepool.compiler.model import ModelPackage

    package = ModelPackage.open(tmp_path / "camera.cpk", TINY)
    theirs = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for cores in (1, 2):
        with Session(Simulator(TINY), package, range(cores)) as session:
            for photo in photos(5, seed=2)[:, None]:
                mine = session.run({"photo": photo}).outputs["p"]
                served_at = session.start({"photo": photo})
                served = session.collect()
                assert served_at >= 0
                assert served.host_ns > 0
                assert served.outputs["p"].tobytes() == mine.tobytes()
                expected = theirs.run(["p"], {"photo": photo})[0]
                assert np.abs(mine - expected).max() < 0.03
                assert mine.argmax() == expected.argmax() or np.ptp(np.sort(expected[0])[-2:]) < 0.03
                graph = made.graph
                exact = reference.outputs(graph, reference.execute(graph, {"photo": photo}))["p"]
                assert exact.tobytes() == mine.tobytes()


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"photo": photos(1).astype(np.float32)},
        {"photo": photos(1)[:, :20]},
        {"photo": photos(1), "small": np.zeros((1, 12, 10, 3), np.float32)},
    ],
    ids=["none", "type", "shape", "more"],
)
def test_wrong_inputs_of_a_network_with_first_steps(tmp_path: Path, inputs: dict[str, Array]) -> None:
    made = compile_model(picture_model(tmp_path / "camera.onnx"), TINY, {"photo": photos(4)})
    with Session(Simulator(TINY), made.package, [0]) as session:
        with pytest.raises(InputError, match="expected: 'photo' uint8"):
            session.start(inputs)
        assert session.run({"photo": photos(1)}).outputs["p"].shape == (1, 6)


def test_first_steps_that_make_no_numbers_are_refused(tmp_path: Path) -> None:
    """Log of a negative number: in calibration, and in an inference."""
    net_input = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 6])]
    weight = numpy_helper.from_array(np.ones((3, 2, 3, 3), np.float32) / 9, "w")
    nodes = [helper.make_node("Log", ["x"], ["l"]), helper.make_node("Conv", ["l", "w"], ["y"])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", net_input, out, [weight])
    path = tmp_path / "log.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    rng = np.random.default_rng(0)
    good = rng.uniform(0.5, 2, (4, 2, 6, 6)).astype(np.float32)
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        compile_model(path, TINY, {"x": -good})
    with Session(Simulator(TINY), compile_model(path, TINY, {"x": good}).package, [0]) as session:
        with pytest.raises(InputError, match="NaN"):
            session.start({"x": -good[:1]})
        session.run({"x": good[:1]})


def _one(op: str, inputs: list[onnx.ValueInfoProto], outputs: int = 1, constants: Any = (), **more: Any) -> bytes:
    names = [value.name for value in inputs] + [tensor.name for tensor in constants]
    node = helper.make_node(op, names, [f"y{n}" for n in range(outputs)], **more)
    made = [helper.make_tensor_value_info(f"y{n}", TensorProto.UNDEFINED, None) for n in range(outputs)]
    graph = helper.make_graph([node], "host", inputs, made, list(constants))
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def test_host_parts_that_could_harm_the_host_are_refused() -> None:
    """Of foreign packages: sizes that grow, sizes that only running tells, divisions that stop a process."""
    real = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    whole = helper.make_tensor_value_info("x", TensorProto.INT32, [1, 4])
    other = helper.make_tensor_value_info("z", TensorProto.INT32, [1, 4])
    sizes = helper.make_tensor_value_info("n", TensorProto.INT64, [2])
    huge = numpy_helper.from_array(np.array([1 << 24, 4], np.int64), "n")
    small = numpy_helper.from_array(np.array([8, 4], np.int64), "n")
    assert complaint(_one("Expand", [real], constants=[small]), 10) is None
    assert "more values" in str(complaint(_one("Expand", [real], constants=[huge]), 10))
    assert "more values" in str(complaint(_one("Tile", [real], constants=[huge]), 10))
    assert "only running" in str(complaint(_one("Expand", [real, sizes]), 10))
    assert "whole numbers" in str(complaint(_one("Div", [whole, other]), 10))
    assert "NonZero" in str(complaint(_one("NonZero", [real]), 10))
    assert "If" in str(complaint(_one("If", [real]), 10))
