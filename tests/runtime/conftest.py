"""A small network, made by hand and compiled, for tests of what runs it; `small` gives it to them.

It must not know ONNX files.
"""

import pytest

from corepool.compiler.model import ModelPackage
from corepool.compiler.static.compile import compile_graph
from corepool.config import HardwareConfig
from support.small import small_graph, small_image


def _package(config: HardwareConfig, tail: bytes = b"", tail_outputs: tuple[str, ...] = ()) -> ModelPackage:
    """The small network compiled for a configuration."""
    return compile_graph(small_graph(tail, tail_outputs), config).package


class Small:
    """The network as graph, as package, and its inputs."""

    graph = staticmethod(small_graph)
    package = staticmethod(_package)
    image = staticmethod(small_image)


@pytest.fixture(scope="session")
def small() -> Small:
    return Small()
