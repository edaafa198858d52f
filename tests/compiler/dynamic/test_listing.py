"""What the compiler emits, read as text: two layers on two cores of two banks.

The first layer (3x3, 8 to 16 channels on 6x6) gives each core one output block, and saves it to both banks, since the
second layer (1x1 with
a residual) reads all blocks on each core. Its weights and parameters are fetched before the SYNC, its features behind
it. The SYNC is early: the last save may still be to come, since nobody's first tile reads its rows; so the cores meet
again behind their first tiles.
"""

from pathlib import Path

import numpy as np

from corepool.compiler.dynamic import link
from corepool.compiler.static.compile import compile_graph
from corepool.config import preset
from corepool.isa.listing import listing
from support.graphs import Builder

EXPECTED = Path(__file__).with_name("two_layers.txt")


def test_two_layers_on_two_banks_read_as_expected():
    config = preset("u200")
    build = Builder(np.random.default_rng(0), 8, 6, 6)
    first = build.conv("input", 16, (3, 3), padding=(1, 1, 1, 1))
    graph = build.finish(build.conv(first, 16, (1, 1), residual=first))
    linked = link(compile_graph(graph, config).package, [0, 4], config)
    text = "\n".join(
        "\n".join([f"; core {core}", *listing(s.tobytes())]) for core, s in zip((0, 4), linked.streams, strict=True)
    )
    assert text + "\n" == EXPECTED.read_text()
