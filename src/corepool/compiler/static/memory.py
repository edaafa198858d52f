"""Places in the lease's window: constants first, then feature maps by lifetime, then the instruction streams.

It must not know tilings or instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from corepool.compiler.static.graph import Graph
from corepool.compiler.static.lower import Operation
from corepool.config import HardwareConfig

ALIGNMENT = 64
WASTED = 7  # of a map, at most a 7th is left empty so that its blocks begin at lines


def align(value: int, alignment: int = ALIGNMENT) -> int:
    return -(-value // alignment) * alignment


@dataclass(frozen=True)
class Constants:
    """Offsets in the window of one operation's constants; -1 where it has none."""

    weights: int
    parameters: int
    constants: int
    lut: int


def place_constants(operations: list[Operation]) -> tuple[npt.NDArray[np.uint8], list[Constants]]:
    """All constants as one block of bytes (window offset 0) and where each operation's are."""
    places, sizes, position = [], [], 0
    for operation in operations:
        offsets = []
        for data in (operation.weights, operation.parameters, operation.constants, operation.lut):
            offsets.append(-1 if data is None else position)
            if data is not None:
                sizes.append((position, data))
                position = align(position + data.nbytes)
        places.append(Constants(*offsets))
    block = np.zeros(position, np.uint8)
    for offset, data in sizes:
        block[offset : offset + data.nbytes] = data.reshape(-1)
    return block, places


def set_planes(graph: Graph, operations: list[Operation], config: HardwareConfig) -> dict[str, int]:
    """Tell operations, and return for every tensor's storage, how many words lie between neighbouring channel blocks.

    Where it takes little room, blocks begin at lines of the memory, so that pieces of maps do too. Not in maps that the
    host reads or writes, nor in those that are read as one row.
    """
    plain = {graph.storage(port.tensor)[0] for port in (*graph.inputs, *graph.outputs)}
    plain |= {graph.storage(operation.input)[0] for operation in operations if operation.dense}
    line = config.ddr.line_bytes // config.word_bytes
    planes: dict[str, int] = {}
    for name, tensor in graph.tensors.items():
        words = tensor.height * tensor.width
        aligned = align(words, line)
        fits = graph.storage(name)[0] not in plain and (aligned - words) * WASTED <= words
        planes[name] = aligned if fits else words
    for operation in operations:
        operation.out_plane = planes[operation.output]
        operation.in_plane = 0 if operation.dense else planes[operation.input]
        operation.operand_plane = 0 if operation.operand is None else planes[operation.operand]
    return planes


def place_maps(
    graph: Graph, operations: list[Operation], planes: dict[str, int], begin: int, config: HardwareConfig
) -> tuple[dict[str, int], int]:
    """Window offset of every tensor (slices included), and the end of the last map.

    ``planes``: see ``set_planes``. Maps whose lifetimes overlap never share bytes; a layer's output never shares with
    its inputs, nor with what is read by layers that may still be at work when it begins: cores meet only where a layer
    reads what others have just made.
    """
    life: dict[str, list[int]] = {}

    def touch(tensor: str, when: int) -> None:
        root, _ = graph.storage(tensor)
        span = life.setdefault(root, [when, when])
        span[0], span[1] = min(span[0], when), max(span[1], when)

    for port in graph.inputs:
        touch(port.tensor, -1)
    made: dict[str, int] = {}
    done, before = -1, -1  # the last layer that is surely at its end: when this one begins, and when the one before did
    for number, operation in enumerate(operations):
        sources = (operation.input, operation.operand)
        reads = max(made.get(graph.storage(name)[0], -1) for name in sources if name is not None)
        before, done = done, max(done, reads)
        made[graph.storage(operation.output)[0]] = number
        touch(operation.output, min(number, before + 1))
        touch(operation.output, number)
        for name in (operation.input, operation.operand):
            if name is not None:
                touch(name, number)
    for port in graph.outputs:
        touch(port.tensor, len(operations))
    sizes = {name: _map_bytes(graph, name, planes[name], config) for name in life}
    roots: dict[str, int] = {}
    for name in sorted(life, key=lambda n: (-sizes[n], life[n][0], n)):
        position = begin
        others = sorted(
            (roots[o], roots[o] + sizes[o])
            for o in roots
            if life[o][0] <= life[name][1] and life[name][0] <= life[o][1]
        )
        for low, high in others:
            if position + sizes[name] <= low:
                break
            position = max(position, high)
        roots[name] = position
    end = max((roots[name] + sizes[name] for name in roots), default=begin)
    offsets = {}
    for name in graph.tensors:
        root, channel = graph.storage(name)
        if root in roots:
            offsets[name] = roots[root] + channel // config.channels * planes[name] * config.word_bytes
    return offsets, end


def _map_bytes(graph: Graph, name: str, plane: int, config: HardwareConfig) -> int:
    return align(-(-graph.tensors[name].channels // config.channels) * plane * config.word_bytes)
