"""Dealing: which core gets which instruction frame packages of a layer, and what each bank's cores then read.

It must not know what packages hold. Static compiler (to price tilings) and linker deal by this one function, so
predictions and streams agree.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.dynamic.rows import IntArray, Rows
from corepool.compiler.tables import IDLE

NOWHERE = 1 << 30  # beyond any row or block


@hot
def deal(latency: npt.NDArray[np.int64], begin: int, end: int, cores: int, bounds: npt.NDArray[np.int64]) -> None:
    """Cut packages ``begin .. end`` into one run for each core, balanced by predicted latency.

    ``latency`` [packages] in cycles; ``bounds`` [cores + 1] receives the cuts: core c gets ``bounds[c] .. bounds[c +
    1]``. Runs keep what neighbours share. A cut falls where the sum of latencies is nearest to the core's share.
    """
    total = 0
    for i in range(begin, end):
        total += latency[i]
    position = begin
    spent = 0
    bounds[0] = begin
    for c in range(1, cores):
        # target = total * c / cores, compared in integers
        while position < end:
            # Take the package if its middle lies before the target.
            if (2 * spent + latency[position]) * cores <= 2 * total * c:
                spent += latency[position]
                position += 1
            else:
                break
        bounds[c] = position
    bounds[cores] = end


@hot
def deal_layer(
    layer: int, choice: int, layers: Rows, tilings: Rows, ifps: Rows, bank_of: IntArray, latency: IntArray,
    dealt: IntArray, boxes: Rows,
) -> None:  # fmt: skip
    """Deal a layer under one of its tilings (``choice``, see ``tables.IDLE``): fills its rows of ``dealt`` and
    ``boxes`` (see ``rows.State``). A box is empty if the bank's cores read nothing."""
    tiling = tilings[layers[layer].first_tiling + choice % IDLE]
    cores = len(bank_of)
    busy = cores - choice // IDLE
    begin, count = np.int64(tiling.first_ifp), np.int64(tiling.ifps)
    for p in range(count):
        latency[p] = ifps[np.uint64(begin + p)].latency
    bounds, inputs, operands = dealt[layer], boxes[layer, 0], boxes[layer, 1]
    deal(latency, 0, count, busy, bounds)
    for core in range(busy + 1):
        bounds[core] += begin
    for core in range(busy, cores):
        bounds[core + 1] = begin + count
    for bank in range(len(inputs)):
        for box in (inputs[bank], operands[bank]):
            box.row = box.block = NOWHERE
            box.row_end = box.block_end = 0
    for core in range(busy):
        row, row_end, block, block_end = NOWHERE, 0, NOWHERE, 0
        row1, row_end1, block1, block_end1 = NOWHERE, 0, NOWHERE, 0
        for p in range(bounds[core], bounds[core + 1]):
            ifp = ifps[np.uint64(p)]
            row, row_end = min(row, ifp.in_row), max(row_end, ifp.in_row_end)
            block, block_end = min(block, ifp.in_block), max(block_end, ifp.in_block_end)
            row1, row_end1 = min(row1, ifp.operand_row), max(row_end1, ifp.operand_row_end)
            block1, block_end1 = min(block1, ifp.operand_block), max(block_end1, ifp.operand_block_end)
        box = inputs[bank_of[core]]
        box.row, box.row_end = min(box.row, row), max(box.row_end, row_end)
        box.block, box.block_end = min(box.block, block), max(box.block_end, block_end)
        box = operands[bank_of[core]]
        box.row, box.row_end = min(box.row, row1), max(box.row_end, row_end1)
        box.block, box.block_end = min(box.block, block1), max(box.block_end, block_end1)
