"""Fuses sums into the convolution that makes one of their operands.

It must not know ONNX.
"""

from __future__ import annotations

from dataclasses import replace

from corepool.compiler.static.graph import Add, Conv, Graph, Residual
from corepool.compiler.static.passes.base import Pass, changed, index, parents, port_tensors, producers, readers


class FuseResiduals(Pass):
    """Turns Add into the residual input of a convolution whose result nobody else reads; of two, the later one."""

    requires = "a valid graph in which tables stand in the layers that they follow"
    ensures = "an Add is left only where neither operand is a convolution of its own"

    def run(self, graph: Graph) -> None:
        for layer in list(graph.layers):
            if isinstance(layer, Add):
                self._fuse(graph, layer)

    def _fuse(self, graph: Graph, add: Add) -> None:
        makers, users = producers(graph), readers(graph)
        taken = port_tensors(graph) | parents(graph)
        found = []
        for name in (add.a, add.b):
            maker = makers.get(name)
            if not isinstance(maker, Conv) or maker.residual is not None or len(users[name]) > 1 or name in taken:
                continue
            if graph.tensors[name].parent is not None or (maker.lut is not None and add.lut is not None):
                continue
            found.append((index(graph, maker), name, maker))
        if not found:
            return
        _, name, conv = max(found, key=lambda entry: entry[0])
        p = add.params
        if name == add.b:
            p = replace(p, multiplier_a=p.multiplier_b, multiplier_b=p.multiplier_a)
        fused = changed(
            conv,
            output=add.output,
            residual=Residual(add.a if name == add.b else add.b, p),
            origin=tuple(dict.fromkeys((*conv.origin, *add.origin))),
            lut=conv.lut if add.lut is None else add.lut,
            lut_after_add=add.lut is not None,
            steps=(*conv.steps, name, *add.steps),
        )
        graph.layers[index(graph, add)] = fused  # where the Add stood: the other operand is ready there
        del graph.layers[index(graph, conv)]
        del graph.tensors[name]
