"""Folds the kernel columns of the first convolution into its few input channels.

It must not know how the host packs the image: see ``numerics.pack_fold``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from corepool.compiler.static.graph import Conv, Fold, Graph
from corepool.compiler.static.passes.base import Pass, changed, readers, swap

_BLOCK = 8


class FoldStem(Pass):
    """Rewrites a first convolution of few channels as one with kernel (kh, 1) over an image that the host packs."""

    requires = "a valid graph; runs last"
    ensures = "a graph input read by one dense convolution wider than a column has at least half a block of channels"

    def run(self, graph: Graph) -> None:
        for port in graph.inputs:
            users = readers(graph)[port.tensor]
            if len(users) == 1 and isinstance(users[0], Conv):
                self._fold(graph, port.tensor, users[0])

    def _fold(self, graph: Graph, name: str, conv: Conv) -> None:
        source = graph.tensors[name]
        outputs, channels, kh, kw = conv.weight.shape
        fused = conv.residual is not None and conv.residual.tensor == name
        if conv.groups != 1 or channels * 2 > _BLOCK or kw == 1 or fused or source.fold is not None:
            return
        top, left, bottom, _ = conv.padding
        fold = Fold(channels, source.width, kw, conv.stride[1], conv.dilation[1], left, conv.pad_value)
        width = graph.tensors[conv.output].width
        graph.tensors[name] = replace(source, channels=kw * channels, width=width, fold=fold)
        weight = conv.weight.transpose(0, 3, 1, 2).reshape(outputs, kw * channels, kh, 1)
        swap(
            graph,
            conv,
            changed(
                conv,
                weight=np.ascontiguousarray(weight),
                stride=(conv.stride[0], 1),
                padding=(top, 0, bottom, 0),
                dilation=(conv.dilation[0], 1),
            ),
        )
