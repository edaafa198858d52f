"""Passes change no bit of any output, over random networks; and the check finds what a broken pass would leave.

It must not know how passes work inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from corepool.compiler.static import reference
from corepool.compiler.static.frontend.build import Builder
from corepool.compiler.static.frontend.load import load
from corepool.compiler.static.graph import Conv, Graph
from corepool.compiler.static.passes import PASSES, check, run_passes
from corepool.compiler.static.passes.check import GraphError

NewNet = Callable[..., Any]


def grow(net: Any, operations: int) -> list[str]:
    """A random network of maps of 7 x 6 pixels; returns some of its values as outputs."""
    rng = net.rng
    values = [(net.input([1, count, 7, 6], "int8"), count) for count in rng.choice([3, 8, 16], size=2).tolist()]
    for _ in range(operations):
        value, count = values[int(rng.integers(max(0, len(values) - 4), len(values)))]
        same = [other for other, channels in values if channels == count]
        other = same[int(rng.integers(len(same)))]
        kind = rng.choice(["conv", "conv", "add", "mul", "concat", "table", "pool", "pad", "gate"])
        if kind == "conv":
            outputs = int(rng.choice([count, 8, 5, 16]))
            made = net.op("Conv", [value, net.weight([outputs, count, 3, 3])], pads=[1, 1, 1, 1])
            count = outputs
        elif kind == "add":
            made = net.op("Relu", [net.op("Add", [value, other])])
        elif kind == "mul":
            made = net.op("Mul", [value, other])
        elif kind == "concat":
            parts = [values[int(i)] for i in rng.integers(len(values), size=int(rng.integers(2, 4)))]
            made, count = net.op("Concat", [name for name, _ in parts], axis=1), sum(c for _, c in parts)
        elif kind == "table":
            made = net.op(str(rng.choice(["Sigmoid", "Tanh", "Relu"])), [value])
        elif kind == "pool":
            made = net.op("MaxPool", [value], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif kind == "pad":
            wide = net.q(net.op("Pad", [value, net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]))]))
            made = net.op("AveragePool", [wide], kernel_shape=[3, 3])
        else:
            made = net.op("Mul", [value, net.q(net.op("Sigmoid", [value]))])
        if count > 64:
            continue
        fixed = ("int8", 0.04, 5) if rng.random() < 0.4 else (None,)  # shared scales let concatenations go
        values.append((net.q(made, *fixed), count))
    chosen = {len(values) - 1, *(int(i) for i in rng.integers(2, len(values), size=2))}
    return [values[i][0] for i in sorted(chosen)]


def results(graph: Graph, inputs: dict[str, Any]) -> dict[str, Any]:
    return reference.outputs(graph, reference.execute(graph, inputs))


@pytest.mark.parametrize("seed", range(40))
def test_passes_change_no_bit(new_net: NewNet, seed: int) -> None:
    net = new_net(seed)
    path = net.save(*grow(net, 12))
    plain = Builder(load(path)).build()
    check(plain)
    used = {port.name: net.samples[port.name] for port in plain.inputs}
    expected = results(plain, used)
    graph = Builder(load(path)).build()
    for kind in PASSES:
        kind().run(graph)
        check(graph)
        made = results(graph, used)
        assert made.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(made[name], values, err_msg=f"{kind.__name__} changed {name}")
    assert len(graph.layers) <= len(plain.layers)


def test_random_networks_against_onnxruntime(new_net: NewNet) -> None:
    for seed in range(100, 110):
        net = new_net(seed)
        outputs = grow(net, 10)
        net.check(*outputs, steps=300)  # layer by layer within a step; ends may drift apart over ten layers


def test_every_pass_says_what_it_needs_and_gives() -> None:
    for kind in PASSES:
        assert len(kind.requires) > 5
        assert len(kind.ensures) > 10


def small(net: Any) -> Graph:
    y = net.q(net.op("Conv", [net.input([1, 8, 6, 6]), net.weight([8, 8, 1, 1])]))
    z = net.q(net.op("Conv", [y, net.weight([8, 8, 1, 1])]))
    return run_passes(Builder(load(net.save(z))).build())


def test_the_check_finds_broken_graphs(new_net: NewNet) -> None:
    def broken(change: Callable[[Graph], None], words: str) -> None:
        graph = small(new_net())
        check(graph)
        change(graph)
        with pytest.raises(GraphError, match=words):
            check(graph)

    def conv(graph: Graph, **fields: Any) -> None:
        layer = graph.layers[1]
        assert isinstance(layer, Conv)
        graph.layers[1] = replace(layer, **fields)

    broken(lambda g: g.layers.reverse(), "before it is written")
    broken(lambda g: g.layers.append(g.layers[0]), "two layers are called")
    broken(lambda g: conv(g, output=g.layers[0].output), "written already")
    broken(lambda g: conv(g, stride=(2, 2)), "makes")
    broken(lambda g: conv(g, weight=np.zeros((8, 7, 1, 1), dtype=np.int8)), "weights do not fit")
    broken(lambda g: conv(g, lut=np.zeros(255, dtype=np.int8)), "table")
    broken(lambda g: conv(g, input="nothing"), "before it is written")
    broken(lambda g: g.tensors.update(x=replace(g.tensors[g.layers[0].output], name="x", parent="y")), "does not fit")
