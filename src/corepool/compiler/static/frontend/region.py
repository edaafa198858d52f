"""Where in a graph nodes stand that the cores cannot run: at its beginning, at its end, or in its middle.

It must not know what operators compute.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from corepool.compiler.static.frontend.context import Node
from corepool.compiler.static.frontend.fold import FOLDABLE
from corepool.compiler.static.hostops import HOST_OPS, STARTS

# Of what the cores support, these are no work of their own.
_NO_WORK = frozenset(
    {*("QuantizeLinear", "DequantizeLinear", "Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze")}
    | {*("Transpose", "Shape", "Constant")}
)


class Region:
    """Looks at nodes in an order in which they can run. ``supported``: operators of the cores; ``known``: constants."""

    def __init__(self, nodes: Sequence[Node], supported: Set[str], known: Set[str]) -> None:
        self._nodes = list(nodes)
        self._supported = supported
        self.given_constants = frozenset(known)
        constant = set(known)
        for node in self._nodes:
            if node.op == "Shape" or (node.op in FOLDABLE and all(name in constant for name in node.inputs if name)):
                constant.update(node.outputs)
        self.constant = frozenset(constant)
        makers = {name: i for i, node in enumerate(self._nodes) for name in node.outputs if name}
        self.place = {node.index: i for i, node in enumerate(self._nodes)}
        # By node: those that it reads, without constants.
        self.sources = [
            sorted({makers[n] for n in node.inputs if n in makers and n not in self.constant}) for node in self._nodes
        ]
        # By node, counting itself: whether all before it, and all behind it, may run on the host.
        cheap = [node.op in HOST_OPS for node in self._nodes]
        self._before = list(cheap)
        self._after = list(cheap)
        self._work_before = [False] * len(cheap)  # not counting itself
        self._work_after = [False] * len(cheap)
        for i, sources in enumerate(self.sources):
            self._before[i] &= all(self._before[each] for each in sources)
            self._work_before[i] = any(self._work_before[each] or self._works(each) for each in sources)
        for i in reversed(range(len(cheap))):
            for each in self.sources[i]:
                self._after[each] &= self._after[i]
                self._work_after[each] |= self._work_after[i] or self._works(i)

    def _works(self, place: int) -> bool:
        op = self._nodes[place].op
        return op in self._supported and op not in _NO_WORK

    def foreign(self, node: Node) -> bool:
        """Whether the cores lack the node's operator, and it does not vanish as a constant."""
        made = [name for name in node.outputs if name]
        return node.op not in self._supported and node.op not in STARTS and not set(made) <= self.constant

    def ends_with(self, node: Node) -> bool:
        """Whether the cores lack the node's operator and it stands at the graph's end."""
        place = self.place[node.index]
        return self.foreign(node) and self._after[place] and self._work_before[place]

    def begins_with(self, node: Node) -> bool:
        """Whether the cores lack the node's operator and it stands at the graph's beginning."""
        place = self.place[node.index]
        return self.foreign(node) and self._before[place] and self._work_after[place] and not self.ends_with(node)
