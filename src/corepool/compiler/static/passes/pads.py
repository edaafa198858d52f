"""Moves constant borders into the convolution or pooling that reads them.

It must not know where borders come from.
"""

from __future__ import annotations

from corepool.compiler.static.graph import Conv, Graph, Padding, Pool
from corepool.compiler.static.passes.base import Pass, changed, index, port_tensors, readers, swap
from corepool.compiler.static.passes.copies import is_copy


class FusePads(Pass):
    """Absorbs a border whose value is what the reader's own padding reads."""

    requires = "a valid graph"
    ensures = "a border layer is left only where a reader pads with another value or is no window operation"

    def run(self, graph: Graph) -> None:
        for layer in list(graph.layers):
            if isinstance(layer, Pool) and is_copy(changed(layer, padding=(0, 0, 0, 0))) and any(layer.padding):
                self._absorb(graph, layer)

    def _absorb(self, graph: Graph, border: Pool) -> None:
        users = readers(graph)[border.output]
        if border.lut is not None or border.output in port_tensors(graph) or not users:
            return
        if not all(isinstance(user, (Conv, Pool)) and _reads_same_border(user, border) for user in users):
            return
        for user in users:
            assert isinstance(user, (Conv, Pool))
            top, left, bottom, right = (a + b for a, b in zip(user.padding, border.padding, strict=True))
            padding: Padding = (top, left, bottom, right)
            origin = (*border.origin, *user.origin)
            swap(
                graph,
                user,
                changed(user, input=border.input, padding=padding, pad_value=border.pad_value, origin=origin),
            )
        del graph.layers[index(graph, border)]
        del graph.tensors[border.output]


def _reads_same_border(user: Conv | Pool, border: Pool) -> bool:
    same = user.pad_value == border.pad_value or not any(user.padding)
    if isinstance(user, Conv):
        return same and user.input == border.output and user.pad_value == border.pad_value
    if user.mode == "max":
        return same and user.input == border.output and not is_copy(user)
    return same and user.count_include_pad and user.pad_value == border.pad_value
