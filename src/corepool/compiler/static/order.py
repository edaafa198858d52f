"""The order of layers: a layer that reads what the one before it makes has to wait for it, so others go between.

It must not know tilings or the machine.
"""

from __future__ import annotations

from dataclasses import replace

from corepool.compiler.static.graph import Graph


def in_order(graph: Graph) -> Graph:
    """The same graph with its layers in an order in which few read the result of the layer just before.

    Of the layers that could be next, and do not read the latest result, the one with the longest chain of readers comes
    first; of equal ones that which came first before.
    """
    writers: dict[str, list[int]] = {}
    for number, layer in enumerate(graph.layers):
        writers.setdefault(graph.storage(layer.output)[0], []).append(number)
    reads = [{w for name in layer.inputs for w in writers.get(graph.storage(name)[0], [])} for layer in graph.layers]
    chain = [1] * len(reads)  # layers up to the end of the longest chain that begins here
    for number in reversed(range(len(reads))):
        for source in reads[number]:
            chain[source] = max(chain[source], chain[number] + 1)
    order: list[int] = []
    left = list(range(len(reads)))
    while left:
        done = set(order)
        ready = [number for number in left if reads[number] <= done]
        apart = [number for number in ready if not order or order[-1] not in reads[number]]
        following = max(apart or ready, key=lambda number: (chain[number], -number))
        order.append(following)
        left.remove(following)
    return replace(graph, layers=[graph.layers[number] for number in order])
