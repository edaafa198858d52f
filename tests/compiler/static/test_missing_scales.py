"""Values that the model leaves float: graph inputs of float models, and what onnxruntime's quantiser passes over.

It must not know how scales are chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from corepool.compiler.static import reference
from corepool.compiler.static.compare import layer_differences
from corepool.compiler.static.frontend import import_model
from corepool.compiler.static.ort import onnxruntime

NewNet = Callable[..., Any]


def _conv(net: Any, x: str, inputs: int = 5) -> str:
    weight = net.const(net.rng.normal(size=(8, inputs, 3, 3)).astype(np.float32) / 7)
    return str(net.op("Conv", [x, weight]))


def _clip(net: Any, x: str) -> str:
    return str(net.op("Clip", [x, net.const(np.float32(-1)), net.const(np.float32(1))]))


@pytest.mark.parametrize(
    "build",
    [
        lambda n, x: _conv(n, n.op("Relu", [x])),
        lambda n, x: _conv(n, _clip(n, x)),
        lambda n, x: _conv(n, n.op("MaxPool", [x], kernel_shape=[2, 2])),
        lambda n, x: n.op("MaxPool", [x], kernel_shape=[2, 2]),
        lambda n, x: n.op("Relu", [x]),
        lambda n, x: n.op("Concat", [_conv(n, x), _conv(n, n.op("Relu", [x]))], axis=1),
    ],
)
def test_float_models_that_do_not_begin_with_a_convolution(new_net: NewNet, build: Callable[[Any, str], str]) -> None:
    net = new_net(4)
    y = build(net, net.raw_input([1, 5, 9, 9]))
    path = net.save(y)
    name, sample = next(iter(net.samples.items()))
    samples = np.concatenate([sample, *(net.rng.normal(size=(7, 5, 9, 9)).astype(np.float32) * 2,)])
    imported = import_model(path, {name: samples})
    inputs = {name: samples[:1]}
    assert max(layer_differences(imported.graph, imported.qdq_model, inputs).values(), default=0) <= 1
    mine = reference.outputs(imported.graph, reference.execute(imported.graph, inputs))[y]
    theirs = onnxruntime.InferenceSession(str(path)).run([y], inputs)[0]
    assert np.abs(mine - theirs).max() < 0.04 * np.abs(theirs).max()


@pytest.mark.parametrize(
    "build",
    [
        lambda n, x: n.op("Tanh", [x]),
        lambda n, x: n.op("Mul", [x, n.const(n.rng.normal(size=(1, 8, 1, 1)).astype(np.float32))]),
        lambda n, x: n.op("Add", [n.op("Mul", [x, n.const(np.float32(3))]), n.const(np.float32(0.7))]),
        lambda n, x: n.op("Relu", [n.op("Sub", [x, n.const(n.rng.normal(size=(8, 1, 1)).astype(np.float32))])]),
        lambda n, x: n.op("Mul", [x, n.input([1, 8, 6, 6])]),
        lambda n, x: n.op("GlobalMaxPool", [n.op("Elu", [x])]),
        lambda n, x: n.op("AveragePool", [n.op("Elu", [x])], kernel_shape=[3, 3]),
    ],
)
def test_quantised_models_with_a_float_end(new_net: NewNet, build: Callable[[Any, str], str]) -> None:
    net = new_net(5)
    net.check(build(net, net.input([1, 8, 6, 6])), steps=2)


def test_a_convolution_behind_an_operator_without_a_scale(new_net: NewNet) -> None:
    net = new_net(6)
    x = net.op("Elu", [net.q(net.op("Conv", [net.input([1, 8, 8, 8]), net.weight([8, 8, 3, 3])]))])
    net.check(net.q(net.op("Conv", [x, net.weight([8, 8, 3, 3])])), steps=2)


def test_a_table_at_the_end_behind_a_coarser_sum(new_net: NewNet) -> None:
    net = new_net(7)
    total = net.op("Add", [net.op("Sigmoid", [net.input([1, 8, 6, 6])]), net.input([1, 8, 6, 6])])
    net.check(net.op("Tanh", [net.q(total)]), steps=12)  # a step of the sum is up to 12 of the result's
