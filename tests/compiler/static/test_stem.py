"""Folding first convolutions changes no bit, whatever is folded, and what is chosen is what costs least.

It must not know how folded images are packed on the way to a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.compiler.static import reference
from corepool.compiler.static.compare import layer_differences
from corepool.compiler.static.compile import compile_graph
from corepool.compiler.static.graph import Conv, Graph, Port
from corepool.compiler.static.passes import check
from corepool.compiler.static.stem import MOST_BYTES, beginning, fold_stems, folded, stems, ways
from corepool.compiler.static.tiling import Options
from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.errors import ModelError
from corepool.runtime.session import Session
from support.graphs import Builder, random_input

CONFIG = preset("u200")


def results(graph: Graph, inputs: dict[str, Any]) -> dict[str, Any]:
    return reference.outputs(graph, reference.execute(graph, inputs))


def same(graph: Graph, expected: dict[str, Any], inputs: dict[str, Any]) -> None:
    made = results(graph, inputs)
    assert made.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(made[name], values)


@st.composite
def networks(draw: st.DrawFn) -> tuple[Graph, Conv]:
    """A convolution of any geometry on few channels, its kernel larger than the map at times, and a layer behind it."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    channels, sizes = draw(st.integers(1, 6)), [draw(st.integers(1, 11)) for _ in range(2)]
    kernel = tuple(draw(st.integers(1, 6)) for _ in range(2))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(2))
    stride = tuple(draw(st.integers(1, 4)) for _ in range(2))
    need = [max(0, (k - 1) * d + 1 - n) for k, d, n in zip(kernel, dilation, sizes, strict=True)]
    before = [draw(st.integers(0, n + 3)) for n in need]
    behind = [max(0, n - b) + draw(st.integers(0, 3)) for n, b in zip(need, before, strict=True)]
    build = Builder(rng, channels, *sizes)
    a = build.conv("input", draw(st.integers(1, 9)), kernel, stride, (*before, *behind), dilation)
    graph = build.finish(a, build.conv(a, 4, (1, 1)))
    return graph, graph.layers[0]  # type: ignore[return-value]


@given(networks(), st.integers(0, 1000))
def test_every_way_gives_the_same_bytes(network: tuple[Graph, Conv], seed: int) -> None:
    graph, conv = network
    inputs = random_input(np.random.default_rng(seed), graph)
    expected, work = results(graph, inputs), graph.macs(conv)
    assert list(stems(graph)) == [conv]
    for taps in product(*(range(1, size + 1) for size in conv.weight.shape[2:])):
        made = folded(graph, conv, taps)
        check(made)
        same(made, expected, inputs)
        assert made.tensors["input"].channels == taps[0] * taps[1] * graph.tensors["input"].channels
        assert made.macs(made.layers[0]) == work
    assert graph.layers[0] is conv
    assert graph.tensors["input"].fold is None, "the graph itself has changed"


@settings(max_examples=15)
@given(networks(), st.integers(0, 1000), st.sampled_from([[0], [3, 4, 9], range(16)]))
def test_devices_compute_the_same_whatever_is_folded(network: tuple[Graph, Conv], seed: int, cores: list[int]) -> None:
    graph, conv = network
    rng = np.random.default_rng(seed)
    inputs = random_input(rng, graph)
    expected = results(graph, inputs)
    taps = tuple(int(rng.integers(1, size + 1)) for size in conv.weight.shape[2:])
    for made in (graph, folded(graph, conv, taps)):  # type: ignore[arg-type]
        with Session(Simulator(CONFIG), compile_graph(made, CONFIG).package, cores) as session:
            outputs = session.run(inputs).outputs
        for name, values in expected.items():
            np.testing.assert_array_equal(outputs[name], values)


@pytest.mark.parametrize("geometry", [(7, 2, 3, 1), (3, 2, 1, 1), (3, 1, 0, 2), (11, 4, 2, 1)])
@pytest.mark.parametrize("shape", [(1, 3, 21, 19), (1, 21, 19, 3)])
def test_folded_models_agree_with_onnxruntime(
    new_net: Callable[..., Any], geometry: tuple[int, int, int, int], shape: tuple[int, ...]
) -> None:
    kernel, stride, pad, dilation = geometry
    net = new_net(19)
    image = net.input(shape)
    if shape[1] != 3:
        image = net.op("Transpose", [image], perm=[0, 3, 1, 2])
    options = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2}
    y = net.op("Conv", [image, net.weight([6, 3, kernel, kernel])], **options)
    imported = net.check(net.q(net.op("Relu", [y])))
    (conv,) = stems(imported.graph)
    for way in ways(imported.graph, conv, CONFIG):
        made = imported.graph if way.taps is None else folded(imported.graph, conv, way.taps)
        assert max(layer_differences(made, imported.qdq_model, net.samples).values()) <= 1


def test_what_others_read_too_is_no_stem() -> None:
    def build() -> Builder:
        return Builder(np.random.default_rng(3), 3, 9, 9)

    graph = build()
    a = graph.conv("input", 3, (3, 3), padding=(1, 1, 1, 1))
    assert len(list(stems(graph.finish(a)))) == 1
    graph.graph.outputs.append(Port("image", "input", (1, 3, 9, 9), ((), ("c",), ("h",), ("w",)), "int8"))
    assert not list(stems(graph.graph)), "an output too"
    two = build()
    outputs = [two.conv("input", 3, (3, 3)), two.conv("input", 8, (3, 3))]
    assert not list(stems(two.finish(*outputs)))
    sums = build()
    assert not list(stems(sums.finish(sums.conv("input", 3, (3, 3), padding=(1,) * 4, residual="input"))))
    depthwise = build()
    assert not list(stems(depthwise.finish(depthwise.conv("input", 3, (3, 3), groups=3))))
    part = build()
    one = part.finish(part.conv("input", 8, (3, 3)))
    one.tensors["rest"] = replace(one.tensors["input"], name="rest", parent="input", channels=1)
    assert not list(stems(one)), "another tensor is a part of it"
    done = build()
    folds = done.finish(done.conv("input", 8, (3, 3)))
    assert not list(stems(folded(folds, folds.layers[0], (3, 3)))), "folded already"  # type: ignore[arg-type]


def two_inputs() -> Graph:
    """Two images with a convolution each, and a third input that is added as it is."""
    build = Builder(np.random.default_rng(8), 3, 40, 48)
    build.tensor("other", 1, 40, 48)
    build.tensor("mask", 8, 20, 24)
    axes = ((), ("c",), ("h",), ("w",))
    build.graph.inputs.append(Port("other", "other", (1, 1, 40, 48), axes, "int8"))
    build.graph.inputs.append(Port("mask", "mask", (1, 8, 20, 24), axes, "int8"))
    a = build.conv("input", 8, (3, 3), (2, 2), (1, 1, 1, 1))
    b = build.conv("other", 8, (5, 5), (2, 2), (2, 2, 2, 2))
    return build.finish(build.elementwise(build.elementwise(a, b, False), "mask", True))


def test_inputs_are_folded_each_for_itself() -> None:
    graph = two_inputs()
    inputs = random_input(np.random.default_rng(1), graph)
    expected = results(graph, inputs)
    compiled = compile_graph(graph, CONFIG)
    folds = {port.name: compiled.graph.tensors[port.tensor].fold for port in compiled.graph.inputs}
    assert folds["input"] is not None
    assert folds["other"] is not None
    assert folds["mask"] is None
    same(compiled.graph, expected, inputs)
    for cores in ([5], range(16)):
        with Session(Simulator(CONFIG), compiled.package, cores) as session:
            np.testing.assert_array_equal(
                *(each[graph.outputs[0].name] for each in (session.run(inputs).outputs, expected))
            )
    plain = compile_graph(graph, CONFIG, options=Options(fold_stem=False))
    assert all(tensor.fold is None for tensor in plain.graph.tensors.values())


def stem(channels: int, size: int, kernel: int, stride: int, out: int = 64) -> tuple[Graph, Conv]:
    build = Builder(np.random.default_rng(4), channels, size, size)
    pad = kernel // 2
    a = build.conv("input", out, (kernel, kernel), (stride, stride), (pad,) * 4)
    graph = build.finish(build.conv(a, 8, (1, 1)))
    return graph, graph.layers[0]  # type: ignore[return-value]


def test_ways_are_those_that_may_be_best() -> None:
    found = ways(*stem(3, 224, 3, 1), CONFIG)
    assert [way.taps for way in found] == [(3, 3), (1, 2), (2, 1)]  # 4 steps, and 6 of a quarter of the bytes
    assert [way.bytes for way in found] == [224 * 224 * 32, 224 * 226 * 8, 224 * 226 * 8]
    sevens = {way.taps for way in ways(*stem(3, 224, 7, 2), CONFIG)}
    assert {(1, 7), (7, 1)} < sevens  # 21 steps
    assert (7, 7) not in sevens, "19 steps, but too many bytes"
    for graph, conv in (stem(64, 56, 3, 1), stem(8, 56, 1, 1), stem(16, 56, 1, 1)):
        assert [way.taps for way in ways(graph, conv, CONFIG)] == [None]
    assert [way.taps for way in ways(*stem(8, 56, 1, 2), CONFIG)] == [(1, 1)], "the host leaves out what nobody reads"
    for channels, kernel, stride in product((1, 2, 3, 4, 12), (1, 2, 3, 5, 11), (1, 2, 4)):
        graph, conv = stem(channels, 60, kernel, stride)
        found = ways(graph, conv, CONFIG)
        plain = -(-channels // 8) * 8 * 60 * 60
        assert 1 <= len(found) <= 5
        assert max(way.bytes for way in found) <= MOST_BYTES * plain
        for way in found:
            size = graph.tensors["input"] if way.taps is None else folded(graph, conv, way.taps).tensors["input"]
            assert way.bytes == -(-size.channels // 8) * 8 * size.height * size.width


def test_the_cheapest_way_is_taken_and_of_close_ones_the_smallest() -> None:
    graph, _ = stem(3, 224, 3, 1)

    def chosen(costs: dict[int, int]) -> tuple[int, int]:
        def measure(part: Graph) -> int:
            assert len(part.layers) == 2
            cost = costs[part.tensors["input"].channels]
            if not cost:
                raise ModelError("does not fit")
            return cost

        fold = fold_stems(graph, CONFIG, measure).tensors["input"].fold
        assert fold is not None
        return fold.kernel

    assert chosen({27: 1000, 6: 1100}) == (3, 3)
    assert chosen({27: 1000, 6: 1003}) == (1, 2)
    assert chosen({27: 1000, 6: 900}) == (1, 2)
    assert chosen({27: 0, 6: 900}) == (1, 2)
    assert chosen({27: 1000, 6: 0}) == (3, 3)


def test_a_beginning_is_a_network_of_its_own() -> None:
    build = Builder(np.random.default_rng(2), 3, 12, 12)
    a = build.conv("input", 8, (3, 3))
    b = build.conv(a, 8, (1, 1))
    c = build.conv(a, 8, (1, 1), residual=b)
    graph = build.finish(build.conv(c, 8, (3, 3)))
    graph.tensors["both"] = replace(graph.tensors[a], name="both", channels=16)
    graph.tensors[a] = replace(graph.tensors[a], parent="both", channel_offset=8)
    part = beginning(graph, graph.layers[0].name)
    check(part)
    assert [layer.name for layer in part.layers] == [layer.name for layer in graph.layers[:3]]
    assert [port.tensor for port in part.outputs] == [c]
    alone = beginning(two_inputs(), "l1")
    assert [layer.name for layer in alone.layers] == ["l1"]
    assert [port.tensor for port in alone.inputs] == ["other"]
