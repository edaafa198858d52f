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
    ensures = (
        "a copy is left only where its source is a graph input, in another concatenation, or read under another scale"
    )

    def run(self, graph: Graph) -> None:
        for layer in list(graph.layers):
            if is_copy(layer) and isinstance(layer, Pool):
                _ = (
                    self._into_producer(graph, layer)
                    or self._into_parts(graph, layer)
                    or self._become_part(graph, layer)
                )

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
        if not _takes_table(maker, copy):
            return False
        swap(graph, maker, changed(_with_table(maker, copy), output=copy.output))
        del graph.layers[index(graph, copy)]
        del graph.tensors[copy.input]
        return True

    def _into_parts(self, graph: Graph, copy: Pool) -> bool:
        """A concatenation that only the copy reads: its parts move into the copy's output, taking the table along."""
        source = graph.tensors[copy.input]
        parts = [tensor for tensor in graph.tensors.values() if tensor.parent == source.name]
        makers, users = producers(graph), readers(graph)
        if not parts or source.parent is not None or len(users[source.name]) > 1 or source.name in makers:
            return False
        taken = port_tensors(graph) | parents(graph) - {source.name}
        for part in parts:
            maker = makers.get(part.name)
            if maker is None or users[part.name] or part.name in taken or not _takes_table(maker, copy):
                return False
        if source.name in taken:
            return False
        target = graph.tensors[copy.output]
        for part in parts:
            swap(graph, makers[part.name], _with_table(makers[part.name], copy))
            graph.tensors[part.name] = replace(
                part, parent=target.name, scale=target.scale, zero_point=target.zero_point
            )
        del graph.layers[index(graph, copy)]
        del graph.tensors[source.name]
        return True

    def _become_part(self, graph: Graph, copy: Pool) -> bool:
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
            return False
        graph.tensors[copy.input] = replace(source, parent=target.parent, channel_offset=target.channel_offset)
        del graph.layers[index(graph, copy)]
        del graph.tensors[copy.output]
        return True


def _behind_sum(maker: Layer) -> bool:
    return isinstance(maker, Conv) and maker.residual is not None and not maker.lut_after_add


def _takes_table(maker: Layer, copy: Pool) -> bool:
    """Whether a layer can apply the copy's table: not if it has one already in front of a fused sum."""
    return copy.lut is None or maker.lut is None or not _behind_sum(maker)


def _with_table(maker: Layer, copy: Pool) -> Layer:
    """The layer with the copy's table behind its own."""
    origin = tuple(dict.fromkeys((*maker.origin, *copy.origin)))
    if copy.lut is None:
        return changed(maker, origin=origin)
    table = copy.lut if maker.lut is None else look_up(maker.lut, copy.lut)
    steps = (*maker.steps, maker.output) if maker.lut is None else maker.steps
    after = {"lut_after_add": True} if _behind_sum(maker) else {}
    return changed(maker, origin=origin, lut=table, steps=steps, **after)
