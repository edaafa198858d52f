"""The passes over the layer graph, in the order in which they run; the graph is valid before and after each.

It must not know ONNX.
"""

from __future__ import annotations

from corepool.compiler.static.graph import Graph
from corepool.compiler.static.passes.base import Pass
from corepool.compiler.static.passes.check import check
from corepool.compiler.static.passes.copies import FuseCopies
from corepool.compiler.static.passes.dead import RemoveDead
from corepool.compiler.static.passes.pads import FusePads
from corepool.compiler.static.passes.residual import FuseResiduals

PASSES: tuple[type[Pass], ...] = (RemoveDead, FusePads, FuseCopies, FuseResiduals)


def run_passes(graph: Graph) -> Graph:
    """Runs all passes in place and returns the graph."""
    check(graph)
    for kind in PASSES:
        kind().run(graph)
        check(graph)
    return graph


__all__ = ["PASSES", "Pass", "check", "run_passes"]
