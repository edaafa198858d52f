"""What a pass is.

It must not know any particular pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from corepool.compiler.static.graph import Graph, Layer


class Pass(ABC):
    """A rewrite of the layer graph in place. ``requires`` and ``ensures`` say in words what holds before and after."""

    requires: str
    ensures: str

    @abstractmethod
    def run(self, graph: Graph) -> None:
        """Rewrites ``graph``."""


def swap(graph: Graph, old: Layer, new: Layer) -> None:
    """Puts ``new`` where ``old`` stands."""
    graph.layers[index(graph, old)] = new


def index(graph: Graph, layer: Layer) -> int:
    """Position of a layer, by identity (layers hold arrays and so do not compare)."""
    return next(i for i, other in enumerate(graph.layers) if other is layer)


def changed(layer: Layer, **fields: Any) -> Layer:
    """A copy of a layer with other fields."""
    return replace(layer, **fields)


def producers(graph: Graph) -> dict[str, Layer]:
    """The layer that writes each tensor."""
    return {layer.output: layer for layer in graph.layers}


def readers(graph: Graph) -> dict[str, list[Layer]]:
    """The layers that read each tensor, once for each operand."""
    found: dict[str, list[Layer]] = {name: [] for name in graph.tensors}
    for layer in graph.layers:
        for name in layer.inputs:
            found[name].append(layer)
    return found


def port_tensors(graph: Graph) -> set[str]:
    """Tensors that are graph inputs or outputs."""
    return {port.tensor for port in (*graph.inputs, *graph.outputs)}


def parents(graph: Graph) -> set[str]:
    """Tensors of which others are channel ranges."""
    return {tensor.parent for tensor in graph.tensors.values() if tensor.parent is not None}
