"""Where a lease's cores must meet: before a layer that reads what others have just made, and how early they may.

It must not know instructions. A SYNC in front of a layer may leave the last packages of the layer before it undone, if
no core reads them in its first package; then the cores meet again behind their first packages.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot, inlined
from corepool.compiler.dynamic.emit import (
    AS_OPERAND,
    CONSUMER,
    CONSUMERS,
    FIRST_CONSUMER,
    FLAT_END,
    FLAT_START,
    IN_BLOCK,
    IN_BLOCK_END,
    IN_ROW,
    IN_ROW_END,
    OPERAND_BLOCK,
    OPERAND_BLOCK_END,
    OPERAND_ROW,
    OPERAND_ROW_END,
    OUT_BLOCK,
    OUT_BLOCK_END,
    OUT_ROW,
    OUT_ROW_END,
    PRODUCER,
    RESULT_BUFFERS,
    WIDTH,
)

Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]

MOST = 2  # packages that may be left undone
EVERYTHING = 1 << 20  # IN_ROW_END of what reads all rows


@inlined
def _reads(ifps: Int32Array, made: int, reader: int, operand: bool) -> bool:
    """Whether a package reads (as its operand, or as its input) something of another one's result."""
    block, block_end = ifps[reader, IN_BLOCK], ifps[reader, IN_BLOCK_END]
    row, row_end = np.int64(ifps[reader, IN_ROW]), np.int64(ifps[reader, IN_ROW_END])
    if operand:
        block, block_end = ifps[reader, OPERAND_BLOCK], ifps[reader, OPERAND_BLOCK_END]
        row, row_end = np.int64(ifps[reader, OPERAND_ROW]), np.int64(ifps[reader, OPERAND_ROW_END])
    if block >= ifps[made, OUT_BLOCK_END] or ifps[made, OUT_BLOCK] >= block_end:
        return False
    width = np.int64(ifps[made, WIDTH])
    first, behind = ifps[made, OUT_ROW] * width, ifps[made, OUT_ROW_END] * width  # in pixels
    if ifps[made, FLAT_END] >= 0:
        first, behind = np.int64(ifps[made, FLAT_START]), np.int64(ifps[made, FLAT_END])
    begin, end = row * width, row_end * width
    if ifps[reader, FLAT_END] >= 0 and row_end < EVERYTHING:
        begin, end = np.int64(ifps[reader, FLAT_START]), np.int64(ifps[reader, FLAT_END])
    return first < end and begin < behind


@hot
def _undone(
    layer: int, core: int, most: int, ifps: Int32Array, dealt: IntArray, as_input: bool, as_operand: bool
) -> int:
    """How many of a core's last packages of the layer before no core's first package of ``layer`` reads."""
    cores = dealt.shape[1] - 1
    begin, end = dealt[layer - 1, core], dealt[layer - 1, core + 1]
    count = 0
    while count < most and end - count > begin:
        made = end - count - 1
        for reader in range(cores):
            if dealt[layer, reader] == dealt[layer, reader + 1]:
                continue
            first = dealt[layer, reader]
            if (as_input and _reads(ifps, made, first, False)) or (as_operand and _reads(ifps, made, first, True)):
                return count
        count += 1
    return count


@hot
def plan_syncs(
    first_layer: int,
    behind_layer: int,
    layers: Int32Array,
    ifps: Int32Array,
    consumers: Int32Array,
    dealt: IntArray,
    holds: IntArray,
) -> None:
    """Fill ``holds`` [layers, cores + 1]: how many of its latest packages each core may leave undone at the SYNC in
    front of a layer, -1 if there is none; last column: whether the cores meet again behind their first packages."""
    cores = dealt.shape[1] - 1
    done = first_layer - 1  # the last layer up to which all is at its end
    for layer in range(first_layer, behind_layer):
        holds[layer, :] = -1
        holds[layer, cores] = 0
        producer = np.int64(layers[layer, PRODUCER])
        divided = layer > first_layer and layers[layer, RESULT_BUFFERS] > layers[layer - 1, RESULT_BUFFERS]
        if divided:  # results of the layer before may be where operands are to be loaded
            producer = np.int64(layer - 1)
        if producer <= done:
            continue
        if producer < layer - 1:
            for core in range(cores):
                holds[layer, core] = dealt[layer - 1, core + 1] - dealt[layer - 1, core]
            done = layer - 2
            continue
        as_input, as_operand = False, False
        first = layers[layer - 1, FIRST_CONSUMER]
        for c in range(first, first + layers[layer - 1, CONSUMERS]):
            if consumers[c, CONSUMER] == layer:
                as_operand |= consumers[c, AS_OPERAND] == 1
                as_input |= consumers[c, AS_OPERAND] == 0
        total = 0
        for core in range(cores):
            holds[layer, core] = _undone(layer, core, 1 if divided else MOST, ifps, dealt, as_input, as_operand)
            total += holds[layer, core]
        holds[layer, cores] = total > 0
        done = layer - 1
