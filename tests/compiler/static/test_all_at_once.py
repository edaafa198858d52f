"""Everything that is wrong with a model is said at once, before calibration data is asked for.

It must not know in which step of reading a problem is found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from corepool.compiler.static.frontend import import_model
from corepool.errors import CalibrationError, ModelError

NewNet = Callable[..., Any]


def problems(net: Any, *outputs: str) -> str:
    with pytest.raises(ModelError) as caught:
        import_model(net.save(*outputs))
    assert not isinstance(caught.value, CalibrationError)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_row_of_operators_after_one_that_is_unknown(new_net: NewNet) -> None:
    net = new_net()
    x = net.q(net.op("Einsum", [net.input([1, 3, 12, 12])], equation="nchw->nchw"), "int8", 0.1, 0)
    x = net.q(net.op("LRN", [x], size=3), "int8", 0.1, 0)
    x = net.q(net.op("Conv", [x, net.weight([8, 3, 3, 3])], auto_pad="BLAH"), "int8", 0.1, 0)
    line = problems(net, net.q(net.op("Conv", [x, net.const(np.ones((4, 8, 1, 1), np.float32))]), "int8", 0.1, 0))
    for words in ("(Einsum): operator not", "(LRN): operator not", "auto_pad BLAH", "weights are float"):
        assert words in line
    assert line.count("node '") == 4


def test_asymmetric_weights_of_every_layer(new_net: NewNet) -> None:
    net = new_net()
    x = net.input([1, 4, 6, 6])
    for _ in range(3):
        codes, zero = net.const(np.full((4, 4, 1, 1), 3, np.uint8)), net.const(np.uint8(7))
        weight = net.op("DequantizeLinear", [codes, net.const(np.float32(0.1)), zero])
        x = net.q(net.op("Conv", [x, weight]), "int8", 0.1, 0)
    assert problems(net, x).count("(Conv): its weights have a zero point") == 3


def test_what_nobody_knows_the_shape_of_hides_nothing_local(new_net: NewNet) -> None:
    net = new_net()
    x = net.op("Fancy", [net.input([1, 4, 6, 6])], domain="my.own")
    x = net.op("Cos", [net.q(x, "int8", 0.1, 0)])
    x = net.op("MaxPool", [x], kernel_shape=[2, 2], flavour=3)
    x = net.op("Conv", [x, net.const(np.ones((4, 4, 1, 1), np.float32))])
    line = problems(net, net.op("Pad", [x, net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]))], mode="reflect"))
    for words in ("(my.own.Fancy)", "(Cos): operator", "flavour", "weights are float", "mode reflect"):
        assert words in line


def test_a_bad_scale_is_said_once(new_net: NewNet) -> None:
    net = new_net()
    x = net.q(net.raw_input([1, 4, 6, 6]), "int8", 0.0, 0)
    assert problems(net, net.q(net.op("Erf", [x]), "int8", 0.1, 0)).count("zero, negative") == 1


def test_behind_a_softmax_in_the_middle(new_net: NewNet) -> None:
    net = new_net()
    x = net.q(net.op("Softmax", [net.input([1, 4, 6, 6])]), "int8", 0.1, 0)
    line = problems(net, net.op("Conv", [x, net.const(np.ones((4, 4, 1, 1), np.float32))]))
    assert "must stand at the end" in line
    assert "weights are float" in line


def _weight(net: Any, *shape: int) -> str:
    return str(net.const(net.rng.normal(size=shape).astype(np.float32)))


def test_float_models_before_calibration(new_net: NewNet) -> None:
    net = new_net()
    x = net.op("Pad", [net.raw_input([1, 8, 8, 8]), net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]))], mode="reflect")
    x = net.op("Einsum", [x], equation="nchw->nchw")
    x = net.op("Conv", [x, _weight(net, 8, 8, 3, 3)], flavour=3)
    x = net.op("Reshape", [x, net.const(np.array([1, 2, 4, 8, 8]))])
    line = problems(net, net.op("Reshape", [net.op("Transpose", [x], perm=[0, 2, 1, 3, 4]), net.const(np.array([7]))]))
    for words in ("mode reflect", "(Einsum): operator not", "flavour", "splits a map axis"):
        assert words in line


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda n: n.op("Conv", [n.raw_input([2, 4, 6, 6]), _weight(n, 4, 4, 1, 1)]),
            "batch size is 2; supported is 1",
        ),
        (lambda n: n.op("Conv", [n.raw_input([1, 4, 4, 4]), _weight(n, 4, 4, 9, 9)]), "does not fit"),
        (lambda n: n.op("Conv", [n.raw_input([1, 4, 4, 4]), _weight(n, 4, 4, 1, 1)], bogus=1), "bogus"),
        (lambda n: n.op("Add", [n.raw_input([1, 4, 4, 4]), n.raw_input([1, 1, 4, 4])]), "supported are maps of one"),
    ],
)
def test_float_models_never_reach_onnxruntime(new_net: NewNet, build: Callable[[Any], str], words: str) -> None:
    net = new_net()
    line = problems(net, build(net))
    assert words in line
    assert "onnxruntime" not in line
    assert f"'{net.inputs[0].name}'" in line or "node '" in line


def test_float_models_that_are_sound_ask_for_calibration(new_net: NewNet) -> None:
    net = new_net()
    x = net.op("Mul", [net.raw_input([1, 4, 6, 6]), net.const(np.float32(1e7))])
    x = net.op("Relu", [net.op("Conv", [x, _weight(net, 8, 4, 3, 3)])])
    x = net.op("Add", [net.op("Concat", [x, x], axis=1), _weight(net, 16, 1, 1)])
    path = net.save(net.op("Sigmoid", [net.op("GlobalAveragePool", [x])]))
    with pytest.raises(CalibrationError, match="needs calibration data"):
        import_model(path)


def test_scales_out_of_range_name_their_layer(new_net: NewNet) -> None:
    net = new_net()
    x = net.q(net.raw_input([1, 3, 6, 6]), "int8", 1e30, 0)
    made = net.op("Conv", [x, net.weight([8, 3, 3, 3])])
    conv = net.nodes[-1].name
    small = net.q(net.op("MaxPool", [x], kernel_shape=[2, 2]), "int8", 1e30, 0)
    total = net.op("Add", [small, small])
    average = net.op("GlobalAveragePool", [x])
    outputs = [net.q(value, "int8", 1e-30, 0) for value in (made, total, average)]
    line = problems(net, *outputs)
    assert f"the scales of '{conv}' and of its result" in line
    assert line.count("are out of range") >= 2
    assert "malformed" not in line


def test_nothing_reaches_standard_error(new_net: NewNet, capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime's own log once told of unused constants and failing kernels."""
    from corepool.compiler.static.ort import onnxruntime

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 2])],
        [helper.make_tensor_value_info("y", 1, [1, 2])],
        [onnx.numpy_helper.from_array(np.ones(3, np.float32), "unused")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnxruntime.InferenceSession(model.SerializeToString())
    assert capfd.readouterr().err == ""
