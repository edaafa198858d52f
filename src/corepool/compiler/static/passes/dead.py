"""Removes what no output needs.

It must not know what layers compute.
"""

from __future__ import annotations

from corepool.compiler.static.graph import Graph
from corepool.compiler.static.passes.base import Pass


class RemoveDead(Pass):
    """Removes layers and tensors that no graph output depends on."""

    requires = "a valid graph"
    ensures = "every layer is read, directly or not, by an output; every tensor is written or read"

    def run(self, graph: Graph) -> None:
        children: dict[str, list[str]] = {}
        for tensor in graph.tensors.values():
            if tensor.parent is not None:
                children.setdefault(tensor.parent, []).append(tensor.name)
        needed: set[str] = set()
        waiting = [port.tensor for port in graph.outputs]
        makers = {layer.output: layer for layer in graph.layers}
        while waiting:
            name = waiting.pop()
            if name in needed:
                continue
            needed.add(name)
            parent = graph.tensors[name].parent
            waiting.extend(children.get(name, []))
            if parent is not None:
                waiting.append(parent)
            if name in makers:
                waiting.extend(makers[name].inputs)
        graph.layers[:] = [layer for layer in graph.layers if layer.output in needed]
        kept = needed | {port.tensor for port in graph.inputs}
        graph.tensors = {name: tensor for name, tensor in graph.tensors.items() if name in kept}
