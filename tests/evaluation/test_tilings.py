"""Tilings of whole parts: what is dealt stays whole, computes the same, and free tilings are as ever.

It must not know how tilings are priced.
"""

import numpy as np
import pytest

from corepool.compiler.model import ModelPackage
from corepool.compiler.static import reference
from corepool.compiler.static.compile import compile_graph
from corepool.compiler.static.graph import Graph
from corepool.compiler.static.tiling import Options
from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.evaluation.tilings import WAYS, same_as_link, streams_of_whole_parts
from corepool.isa.codec import decode
from corepool.isa.table import INSTRUCTION_BYTES, Opcode
from corepool.runtime.session import Session
from support.graphs import Builder, random_graph, random_input

CONFIG = preset("u200")
SMALL = preset("tiny")  # whose memories make tiles small


def compiled(graph: Graph, config, *cuts: str) -> ModelPackage:
    return compile_graph(graph, config, options=Options(False, False, False, cuts)).package


class Whole:
    """A stand-in for the linker: the streams of whole parts."""

    def __init__(self, streams) -> None:
        self.streams = streams
        self.stream_bytes = sum(stream.nbytes for stream in streams)


@pytest.mark.parametrize("cuts", [("width",), ("channel",), ("height",), ("width", "channel", "height")])
@pytest.mark.parametrize("cores", [1, 3, 4])
def test_same_outputs(cuts: tuple[str, ...], cores: int, rng: np.random.Generator, monkeypatch) -> None:
    graph = random_graph(rng, 4, kinds=("conv", "pointwise", "depthwise", "max", "add"))
    inputs = random_input(rng, graph)
    expected = reference.outputs(graph, reference.execute(graph, inputs))
    package = compiled(graph, SMALL, *cuts)
    streams = streams_of_whole_parts(package, cores, SMALL)
    monkeypatch.setattr("corepool.runtime.session.link", lambda *_: Whole(streams))
    with Session(Simulator(SMALL), package, range(cores)) as session:
        result = session.run(inputs)
    for name, values in expected.items():
        np.testing.assert_array_equal(result.outputs[name], values)


def computing(streams) -> list[int]:
    """Computing instructions of each core."""
    kinds = (Opcode.CONV, Opcode.DWCONV)
    found = []
    for stream in streams:
        words = stream.reshape(-1, INSTRUCTION_BYTES)
        found.append(sum(decode(word.tobytes()).opcode in kinds for word in words))
    return found


def convolution(channels: int, outputs: int, height: int, width: int) -> Graph:
    build = Builder(np.random.default_rng(0), channels, height, width)
    return build.finish(build.conv("input", outputs, (1, 1)))


@pytest.mark.parametrize(
    ("cut", "graph", "parts"),
    [
        ("width", convolution(512, 128, 16, 8), 2),  # eight columns are two groups of four pixels
        ("channel", convolution(64, 24, 64, 64), 3),  # three blocks of eight
        ("height", convolution(512, 128, 5, 64), 5),
    ],
)
def test_no_more_cores_than_parts(cut: str, graph: Graph, parts: int) -> None:
    one = compiled(graph, CONFIG, cut)
    working = computing(streams_of_whole_parts(one, 16, CONFIG))
    assert sum(count > 0 for count in working) == parts
    free = compile_graph(graph, CONFIG, options=Options(False, False, False)).package
    assert sum(count > 0 for count in computing(streams_of_whole_parts(free, 16, CONFIG))) > parts


def test_free_tilings_are_those_of_the_linker(rng: np.random.Generator) -> None:
    package = compile_graph(random_graph(rng, 5), CONFIG).package
    assert all("units" not in layer for layer in package.meta["layers"])
    assert all(same_as_link(package, cores, CONFIG) for cores in (1, 2, 7, 16))


def test_the_last_way_is_the_default() -> None:
    assert WAYS["best"][1] == Options()
