"""Compiler, linker and simulator together against the numerics: random networks, any number of cores, every tensor that
reaches the host."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.compiler.static import reference
from corepool.compiler.static.compile import compile_graph
from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.runtime.session import Session
from support.graphs import KINDS, Builder, random_graph, random_input

CONFIG = preset("u200")


def run_on(made, inputs, cores, config=CONFIG):
    """Outputs by name, and the completion, of one inference on a fresh device."""
    with Session(Simulator(config), made.package, cores) as session:
        result = session.run(inputs)
    assert result.completion.fault is None
    return result


def check(graph, rng, cores, config=CONFIG):
    made = compile_graph(graph, config)
    inputs = random_input(rng, graph)
    expected = reference.outputs(graph, reference.execute(graph, inputs))
    for name, values in run_on(made, inputs, cores, config).outputs.items():
        np.testing.assert_array_equal(values, expected[name])
    return made


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(1, 16), st.integers(1, 4))
def test_random_networks_match_the_numerics(seed, cores, layers):
    rng = np.random.default_rng(seed)
    check(random_graph(rng, layers), rng, range(cores))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cores", [1, 5, 16])
def test_each_kind_of_layer_matches_the_numerics(kind, cores, rng):
    for _ in range(3):
        check(random_graph(rng, 1, kinds=(kind,)), rng, range(cores))


@pytest.mark.parametrize("kind", ["conv", "depthwise", "sum", "residual", "scale"])
def test_the_small_machine_computes_the_same(kind, rng):
    config = preset("tiny")
    for cores in (1, 3, 4):
        check(random_graph(rng, 2, kinds=(kind,), size=12), rng, range(cores), config)


def test_the_large_machine_computes_the_same(rng):
    for kind in ("conv", "depthwise", "residual"):
        check(random_graph(rng, 2, kinds=(kind,)), rng, [0], preset("large"))


def test_any_cores_give_the_same_bytes(rng):
    """Scattered, unsorted and uneven sets of cores, over one to four banks."""
    graph = random_graph(rng, 4)
    made = compile_graph(graph, CONFIG)
    inputs = random_input(rng, graph)
    alone = run_on(made, inputs, [0]).raw
    for cores in ([15], [3, 4], [9, 2, 7], [0, 4, 8, 12], [1, 2, 3, 5, 6, 14], list(range(15, -1, -1))):
        assert run_on(made, inputs, cores).raw == alone


def test_big_kernels_and_many_channels_are_accumulated_in_pieces(rng):
    """Products that exceed the weight memory: fully connected, wide kernels, and global sums over large maps."""
    build = Builder(rng, 96, 20, 20)
    a = build.conv("input", 9, (17, 17), padding=(8, 8, 8, 8))
    check(build.finish(a), rng, range(6))
    build = Builder(rng, 256, 14, 14)
    check(build.finish(build.conv("input", 20, (14, 14))), rng, range(7))
    build = Builder(rng, 9, 150, 190)
    check(build.finish(build.pool("input", "sum", (150, 190))), rng, range(3))
    build = Builder(rng, 2200, 5, 6)
    check(build.finish(build.conv("input", 16, (3, 3), padding=(1, 1, 1, 1))), rng, range(16))


def test_a_map_far_larger_than_the_memories(rng):
    build = Builder(rng, 3, 700, 900)
    a = build.conv("input", 12, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    check(build.finish(build.elementwise(a, a, False)), rng, range(16))


def test_several_outputs_and_a_tensor_with_many_readers(rng):
    build = Builder(rng, 16, 9, 11)
    a = build.conv("input", 24, (3, 3), padding=(1, 1, 1, 1))
    b = build.conv(a, 24, (1, 1))
    c = build.conv(a, 24, (3, 3), padding=(1, 1, 1, 1), residual=b)
    d = build.elementwise(c, a, True)
    check(build.finish(a, d, c), rng, range(11))


def test_pointwise_layers_whose_channels_exceed_the_weight_memory(rng):
    """Every piece of the products has an input of its own, unlike in fully connected layers."""
    build = Builder(rng, 300, 4, 5)
    check(build.finish(build.conv("input", 12, (1, 1))), rng, range(3), preset("tiny"))
    build = Builder(rng, 9000, 3, 3)
    check(build.finish(build.conv("input", 12, (1, 1))), rng, range(5))
