"""Lets layers write where a copy or table behind them would have written.

It must not know how concatenations came about: it sees 1x1 max pools.
"""

from __future__ import annotations

from dataclasses import replace

from corepool.compiler.static.graph import Conv, Graph, Layer, Pool
from corepool.compiler.static.passes.base import Pass, changed, index, parents, port_tensors, producers, readers, swap
from corepool.numerics import lut as look_up


def is_copy(layer: Layer) -> bool:
    """A 1x1 max pool without border: an identity or a table."""
    return (
        isinstance(layer, Pool)
        and layer.mode == "max"
        and layer.kernel == (1, 1)
        and layer.stride == (1, 1)
        and not any(layer.padding)
    )


class FuseCopies(Pass):
    """Moves tables and copies into the layer before them; makes tensors channel ranges of a concatenation."""

    requires = "a valid graph without dead layers"
    ensures = "a copy is left only where its source has other readers under another scale, is a graph input, or is in two concatenations"

    def run(self, graph: Graph) -> None:
        for layer in list(graph.layers):
            if is_copy(layer) and isinstance(layer, Pool) and not self._into_producer(graph, layer):
                self._become_part(graph, layer)

    def _into_producer(self, graph: Graph, copy: Pool) -> bool:
        source = graph.tensors[copy.input]
        maker = producers(graph).get(copy.input)
        if (
            maker is None
            or source.parent is not None
            or copy.input in port_tensors(graph)
            or copy.input in parents(graph)
            or len(readers(graph)[copy.input]) > 1
        ):
            return False
        if copy.lut is not None:
            behind_sum = isinstance(maker, Conv) and maker.residual is not None and not maker.lut_after_add
            if behind_sum and maker.lut is not None:
                return False
            table = copy.lut if maker.lut is None else look_up(maker.lut, copy.lut)
            fields = {"lut": table, **({"lut_after_add": True} if behind_sum else {})}
        else:
            fields = {}
        origin = tuple(dict.fromkeys((*maker.origin, *copy.origin)))
        swap(graph, maker, changed(maker, output=copy.output, origin=origin, **fields))
        del graph.layers[index(graph, copy)]
        del graph.tensors[copy.input]
        return True

    def _become_part(self, graph: Graph, copy: Pool) -> None:
        """A tensor with several readers becomes itself the channel range that the copy would have filled."""
        source, target = graph.tensors[copy.input], graph.tensors[copy.output]
        if (
            copy.lut is not None
            or target.parent is None
            or source.parent is not None
            or (source.scale, source.zero_point) != (target.scale, target.zero_point)
            or copy.input in port_tensors(graph)
            or readers(graph)[copy.output]
        ):
            return
        graph.tensors[copy.input] = replace(source, parent=target.parent, channel_offset=target.channel_offset)
        del graph.layers[index(graph, copy)]
        del graph.tensors[copy.output]
