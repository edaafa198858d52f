"""Tilings one by one: every one that the compiler finds computes each result once, whatever its order, bands, short
first tiles and arrangements of pixels; and whatever layers are cut in whatever way, the answers are the same.

It must not know which tilings are good.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.compiler.static import compile as compiler
from corepool.compiler.static import reference
from corepool.compiler.static.clock import run_time
from corepool.compiler.static.codegen import _tiles
from corepool.compiler.static.compile import compile_graph
from corepool.compiler.static.graph import Graph
from corepool.compiler.static.latency import COLUMNS, _transfer_lines, decode, machine
from corepool.compiler.static.lower import Operation, lower, normalise
from corepool.compiler.static.memory import WASTED, set_planes
from corepool.compiler.static.search import ORDERS, conv_cycles
from corepool.compiler.static.tiling import Options, Tiling, conflict, geometry, shape_size, shapes_of, tilings
from corepool.compiler.static.tiling import machine as machine_of
from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.isa.codec import encode
from corepool.isa.table import Opcode, Shape, Target
from corepool.runtime.session import Session
from support.graphs import Builder, random_graph, random_input

CONFIG = preset("u200")

# Channels in and out, height, width, kernel, stride: maps that leave rows, columns and blocks over.
GEOMETRIES = [
    (24, 64, 14, 14, 3, 1), (16, 40, 7, 7, 3, 1), (64, 72, 13, 13, 1, 1), (8, 33, 11, 6, 3, 2), (40, 130, 7, 7, 1, 1),
    (9, 16, 1, 37, 1, 1), (16, 16, 29, 5, 5, 1), (130, 24, 15, 15, 1, 2), (24, 24, 18, 18, 3, 1),
]  # fmt: skip


def network(channels: int, out: int, height: int, width: int, kernel: int, stride: int, seed: int = 0) -> Graph:
    """The convolution in question between two others, so that its maps are the machine's own."""
    build = Builder(np.random.default_rng(seed), 5, height, width)
    first = build.conv("input", channels, (1, 1))
    pad = kernel // 2
    middle = build.conv(first, out, (kernel, kernel), (stride, stride), (pad, pad, pad, pad), lut=True)
    return build.finish(build.conv(middle, 6, (1, 1)))


def operations_of(graph: Graph) -> list[Operation]:
    graph = normalise(graph, CONFIG)
    operations = lower(graph, CONFIG)
    set_planes(graph, operations, CONFIG)
    return operations


def found_for(operation: Operation) -> list[Tiling]:
    found = tilings(operation, CONFIG, shapes_of(operation, Options()))
    assert found.worth.shape == (len(found.tilings), 16)
    assert found.worth[found.choice, range(16)].all()
    return found.tilings


def assert_each_result_once(operation: Operation, tiling: Tiling) -> None:
    count = np.zeros(operation.out_size, np.int64)
    t = _tiles(tiling)
    assert t.count == tiling.count
    for b, b_end, y, y_end, x, x_end in zip(t.b, t.b_end, t.y, t.y_end, t.x, t.x_end, strict=True):
        count[b:b_end, y:y_end, x:x_end] += 1
    assert (count == 1).all(), tiling


@pytest.mark.parametrize("sizes", GEOMETRIES)
def test_every_tiling_computes_every_result_once(sizes: tuple[int, ...]) -> None:
    for operation in operations_of(network(*sizes)):
        for tiling in found_for(operation):
            assert_each_result_once(operation, tiling)


@pytest.mark.parametrize("seed", range(12))
def test_every_tiling_of_any_layer_computes_every_result_once(seed: int) -> None:
    """Pools with cuts of their own at borders, elementwise and grouped layers among them."""
    for operation in operations_of(random_graph(np.random.default_rng(seed), 6, size=40)):
        if not operation.accumulates:
            for tiling in found_for(operation):
                assert_each_result_once(operation, tiling)


@pytest.mark.parametrize(("channels", "height", "width"), [(64, 14, 14), (96, 20, 12), (40, 17, 9), (256, 28, 28)])
def test_averages_with_borders_of_their_own_are_computed_once(channels: int, height: int, width: int) -> None:
    """Their tiles are cut at the borders too, whatever the grid."""
    build = Builder(np.random.default_rng(0), 8, height, width)
    source = build.conv("input", channels, (1, 1))
    pool = build.pool(source, "sum", (3, 3), (1, 1), (1, 1, 1, 1), include_pad=False)
    operation = operations_of(build.finish(pool))[1]
    assert operation.row_cuts
    for tiling in found_for(operation):
        assert_each_result_once(operation, tiling)


@pytest.mark.parametrize("sizes", GEOMETRIES)
def test_tiles_come_band_by_band_and_in_a_band_as_their_order_says(sizes: tuple[int, ...]) -> None:
    kinds = set()
    for operation in operations_of(network(*sizes)):
        for tiling in found_for(operation):
            t = _tiles(tiling)
            places = (len(tiling.rows) - 1) * (len(tiling.cols) - 1)
            assert places % tiling.bands == 0
            band = t.place // (places // tiling.bands)
            parts = {"h": t.y, "w": t.x, "c": t.b}
            keys = list(zip(band, *(parts[direction] for direction in ORDERS[tiling.order]), strict=True))
            if tiling.bands == 1:
                keys = [key[1:] for key in keys]
            assert all(a < b for a, b in pairwise(keys)), tiling
            kinds.add((tiling.order, tiling.bands))
    assert len(kinds) > 1


def test_there_are_bands_short_first_tiles_and_rows_of_another_arrangement() -> None:
    """The kinds that the tests here are about are among what is found, so that these do not pass for want of them."""
    found = [
        (operation, tiling)
        for sizes in GEOMETRIES
        for operation in operations_of(network(*sizes))
        for tiling in found_for(operation)
    ]
    assert {tiling.bands for _, tiling in found} == {1, 2, 4}
    widths = [np.diff(tiling.cols).tolist() for operation, tiling in found if operation.flat]
    assert any(len(w) > 2 and w[0] * 2 <= w[1] for w in widths), "a short tile in front"
    mixed = 0
    for operation, tiling in found:
        if operation.opcode is Opcode.CONV and not operation.flat:
            mixed += len(set(_shapes(operation, tiling))) > 1
    assert mixed


def _shapes(operation: Operation, tiling: Tiling) -> list[int]:
    numbers = geometry(operation, CONFIG, shapes_of(operation))
    t = _tiles(tiling)
    heights, widths = t.y_end - t.y, t.x_end - t.x
    return [conv_cycles(numbers, machine_of(CONFIG), h, w)[1] for h, w in zip(heights, widths, strict=True)]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=40)
def test_a_tile_gets_the_arrangement_of_pixels_that_takes_it_least(
    height: int, width: int, kernel: int, stride: int
) -> None:
    operation = operations_of(network(16, 16, 60, 60, kernel, stride))[1]
    if operation.flat:
        return
    cycles, chosen = conv_cycles(geometry(operation, CONFIG, tuple(Shape)), machine_of(CONFIG), height, width)
    by_shape = {}
    for shape in Shape:
        rows, cols = shape_size(shape, CONFIG.pixels)
        steps = kernel * kernel * 2 * conflict(shape, CONFIG.pixels, (stride, stride))
        by_shape[int(shape)] = -(-height // rows) * -(-width // cols) * max(steps, CONFIG.pixels)
    assert cycles == by_shape[chosen] == min(by_shape.values())


@settings(max_examples=15)
@given(st.integers(0, 1 << 30), st.integers(1, 16), st.sampled_from([*GEOMETRIES, None, None, None]))
def test_any_choice_of_tilings_gives_the_same_answers(seed: int, cores: int, sizes: tuple[int, ...] | None) -> None:
    """Every layer cut in a way drawn from all that were found for it, not only those that are best."""
    rng = np.random.default_rng(seed)
    graph = network(*sizes, seed=seed) if sizes else random_graph(rng, 3)

    def any_choice(package: Any, *_: Any) -> Any:
        return rng.integers(0, package.layers[:, 1, None], package.choice.shape).astype(np.int32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "choose", any_choice)
        made = compile_graph(graph, CONFIG)
    inputs = random_input(rng, graph)
    expected = reference.outputs(graph, reference.execute(graph, inputs))
    with Session(Simulator(CONFIG), made.package, range(cores)) as session:
        result = session.run(inputs)
    assert result.completion.fault is None
    for name, values in result.outputs.items():
        np.testing.assert_array_equal(values, expected[name])


def test_the_clock_has_the_last_word_on_the_whole_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device's clock chose is never slower than what the model did, and somewhere faster."""
    from corepool.compiler.dynamic import link
    from corepool.compiler.static import choose

    def cycles(graph: Graph) -> int:
        package = compile_graph(graph, CONFIG).package
        streams = link(package, range(CONFIG.cores), CONFIG).streams
        return run_time(streams, package.meta["window"]["streams_offset"], CONFIG)

    graphs = [network(64, 128, 14, 14, 3, 1), network(40, 130, 7, 7, 1, 1), network(24, 72, 28, 28, 3, 2)]
    refined = [cycles(graph) for graph in graphs]
    monkeypatch.setattr(choose, "CLOCKED", 0)
    plain = [cycles(graph) for graph in graphs]
    assert all(a <= b for a, b in zip(refined, plain, strict=True))
    assert sum(refined) < sum(plain)


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_blocks_of_maps_begin_at_lines_where_that_takes_little(seed: int) -> None:
    graph = normalise(random_graph(np.random.default_rng(seed), 5), CONFIG)
    operations = lower(graph, CONFIG)
    planes = set_planes(graph, operations, CONFIG)
    line = CONFIG.ddr.line_bytes // CONFIG.word_bytes
    host = {graph.storage(port.tensor)[0] for port in (*graph.inputs, *graph.outputs)}
    dense = {graph.storage(operation.input)[0] for operation in operations if operation.dense}
    for name, plane in planes.items():
        words = graph.tensors[name].height * graph.tensors[name].width
        if graph.storage(name)[0] in host | dense:
            assert plane == words
        else:
            assert plane == words or (plane % line == 0 and words < plane <= words + words // WASTED)
            assert plane % line == 0 or (-words % line) * WASTED > words
    for operation in operations:
        assert operation.out_plane == planes[operation.output]
        assert operation.in_plane in (0, planes[operation.input])


@given(
    st.integers(0, 1 << 16), st.integers(1, 40), st.integers(1, 8), st.integers(1, 6), st.integers(0, 30),
    st.integers(0, 30),
)  # fmt: skip
def test_lines_of_a_transfer_are_those_that_its_bytes_touch(
    place: int, pixels: int, rows: int, blocks: int, beside: int, behind: int
) -> None:
    """Exactly where all runs begin at lines, and else never off by more than one for each run."""
    row_stride = pixels + beside
    block_stride = rows * row_stride + behind
    word = encode(
        Opcode.LOAD, target=Target.WEIGHT, address=place * 8, rows=rows, blocks=blocks, pixels=pixels,
        row_stride=row_stride, block_stride=block_stride,
    )  # fmt: skip
    fields = np.zeros((1, COLUMNS), np.int64)
    decode(np.frombuffer(word, np.uint64).reshape(1, 4), 0, 1, fields)
    told = _transfer_lines(fields[0], machine(CONFIG))
    line, words = CONFIG.ddr.line_bytes, CONFIG.word_bytes
    runs: list[list[int]] = []
    for b in range(blocks):
        for r in range(rows):
            begin = (place + b * block_stride + r * row_stride) * words
            joined = bool(runs) and runs[-1][1] == begin and (r > 0 or row_stride == pixels or rows == 1)
            if joined:
                runs[-1][1] += pixels * words
            else:
                runs.append([begin, begin + pixels * words])
    touched = sum((end - 1) // line - begin // line + 1 for begin, end in runs)
    strides = [s * words for s, n in ((row_stride, rows), (block_stride, blocks)) if n > 1]
    if all(place % line == 0 for place in (place * words, *strides)):
        assert told == touched
    assert abs(told - touched) <= len(runs)
