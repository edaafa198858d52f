"""ONNX nodes in plain form and in an order in which they can run.

It must not know what operators mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set

import onnx

from corepool.compiler.static.frontend.context import Node
from corepool.errors import ModelError


def read_nodes(graph: onnx.GraphProto) -> list[Node]:
    """The graph's nodes in plain form; nodes without a name of their own are called after operator and position."""
    nodes = []
    names: set[str] = set()
    for index, proto in enumerate(graph.node):
        attributes = {}
        for attribute in proto.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            attributes[attribute.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
        name = proto.name
        if not name or name in names:
            name = f"{name or proto.op_type}#{index}"
        names.add(name)
        nodes.append(Node(name, op, tuple(proto.input), tuple(proto.output), attributes, index))
    return nodes


def in_order(nodes: list[Node], known: Set[str]) -> list[Node]:
    """Nodes sorted so that each stands after what it reads; ModelError on missing inputs and on cycles."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    for node in nodes:
        for name in node.inputs:
            if name and name not in maker and name not in known:
                raise ModelError(f"node '{node.name}' ({node.op}) reads '{name}', which nothing in the model makes")
    needs = [{maker[name] for name in node.inputs if name in maker and name not in known} for node in nodes]
    if all(max(sources, default=-1) < i for i, sources in enumerate(needs)):
        return nodes  # the file's own order is fine: keep it
    readers: list[list[int]] = [[] for _ in nodes]
    for i, sources in enumerate(needs):
        for source in sources:
            readers[source].append(i)
    waiting = [len(sources) for sources in needs]
    ready = deque(i for i, count in enumerate(waiting) if not count)
    result = []
    while ready:
        i = ready.popleft()
        result.append(nodes[i])
        for reader in readers[i]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if len(result) < len(nodes):
        stuck = next(node for i, node in enumerate(nodes) if waiting[i])
        raise ModelError(f"the graph has a cycle through node '{stuck.name}' ({stuck.op})")
    return result
