"""A lab with one toy network, so that experiments run in seconds; `lab` gives it to the tests.

It must not know experiments.
"""

from pathlib import Path

import numpy as np
import pytest

from corepool.compiler.static.graph import Graph
from corepool.evaluation.lab import Lab
from support.graphs import Builder

TOY = "mobilenet_v1"  # the name under which the toy goes, since experiments look titles and goals up by name


class ToyLab(Lab):
    """Eight convolutions in the place of a network: about a millisecond on all cores."""

    def graph(self, name: str) -> Graph:
        build = Builder(np.random.default_rng(5), 64, 52, 52)
        here = "input"
        for kernel in ((3, 3), (1, 1), (3, 3), (1, 1), (3, 3), (1, 1), (3, 3), (1, 1)):
            here = build.conv(here, 64, kernel, padding=(kernel[0] // 2,) * 4)
        return build.finish(here)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return ToyLab(tmp_path, quick=True, networks=(TOY,))
