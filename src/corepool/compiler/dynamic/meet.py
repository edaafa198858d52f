"""Where a lease's cores must meet: before a layer that reads what others have just made, and how early they may.

It must not know instructions. A SYNC in front of a layer may leave the last packages of the layer before it undone, if
no core reads them in its first package; then the cores meet again behind their first packages.
"""

from __future__ import annotations

import numpy as np

from corepool.compiler.dynamic.compiled import hot, inlined
from corepool.compiler.dynamic.rows import IntArray, Rows

MOST = 2  # packages that may be left undone
EVERYTHING = 1 << 20  # in_row_end of what reads all rows


@inlined
def _reads(ifps: Rows, made: int, reader: int, operand: bool) -> bool:
    """Whether a package reads (as its operand, or as its input) something of another one's result."""
    maker, taker = ifps[np.uint64(made)], ifps[np.uint64(reader)]
    block, block_end = taker.in_block, taker.in_block_end
    row, row_end = np.int64(taker.in_row), np.int64(taker.in_row_end)
    if operand:
        block, block_end = taker.operand_block, taker.operand_block_end
        row, row_end = np.int64(taker.operand_row), np.int64(taker.operand_row_end)
    if block >= maker.out_block_end or maker.out_block >= block_end:
        return False
    width = np.int64(maker.width)
    first, behind = maker.out_row * width, maker.out_row_end * width  # in pixels
    if maker.flat_end >= 0:
        first, behind = np.int64(maker.flat_start), np.int64(maker.flat_end)
    begin, end = row * width, row_end * width
    if taker.flat_end >= 0 and row_end < EVERYTHING:
        begin, end = np.int64(taker.flat_start), np.int64(taker.flat_end)
    return first < end and begin < behind


@hot
def _undone(layer: int, core: int, most: int, ifps: Rows, dealt: IntArray, as_input: bool, as_operand: bool) -> int:
    """How many of a core's last packages of the layer before no core's first package of ``layer`` reads."""
    cores = dealt.shape[1] - 1
    begin, end = dealt[layer - 1, core], dealt[layer - 1, core + 1]
    count = 0
    while count < most and end - count > begin:
        made = end - count - 1
        for reader in range(cores):
            first = dealt[layer, reader]
            if first == dealt[layer, reader + 1]:
                continue
            if (as_input and _reads(ifps, made, first, False)) or (as_operand and _reads(ifps, made, first, True)):
                return count
        count += 1
    return count


@hot
def plan_syncs(
    first_layer: int, behind_layer: int, layers: Rows, ifps: Rows, consumers: Rows, dealt: IntArray, holds: IntArray
) -> None:
    """Fill ``holds`` [layers, cores + 1]: how many of its latest packages each core may leave undone at the SYNC in
    front of a layer, -1 if there is none; last column: whether the cores meet again behind their first packages."""
    cores = dealt.shape[1] - 1
    done = first_layer - 1  # the last layer up to which all is at its end
    for layer in range(first_layer, behind_layer):
        for core in range(cores):
            holds[layer, core] = -1
        holds[layer, cores] = 0
        this, before = layers[layer], layers[max(layer - 1, 0)]
        producer = np.int64(this.producer)
        divided = layer > first_layer and this.result_buffers > before.result_buffers
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
        for c in range(before.first_consumer, before.first_consumer + before.consumers):
            if consumers[c].layer == layer:
                as_operand |= consumers[c].as_operand == 1
                as_input |= consumers[c].as_operand == 0
        total = 0
        for core in range(cores):
            holds[layer, core] = _undone(layer, core, 1 if divided else MOST, ifps, dealt, as_input, as_operand)
            total += holds[layer, core]
        holds[layer, cores] = total > 0
        done = layer - 1
