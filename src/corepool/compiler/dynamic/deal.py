"""Dealing: which core gets which instruction frame packages of a layer, and what each bank's cores then read.

It must not know what packages hold. Static compiler (to price tilings) and linker deal by this one function, so
predictions and streams agree.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.tables import IDLE, IFP_COLUMNS, LAYER_COLUMNS, TILING_COLUMNS

Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]

LATENCY, IN_ROW, OPERAND_ROW = (IFP_COLUMNS.index(name) for name in ("latency", "in_row", "operand_row"))
FIRST_TILING = LAYER_COLUMNS.index("first_tiling")
FIRST_IFP, IFPS = (TILING_COLUMNS.index(name) for name in ("first_ifp", "ifps"))
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
    layer: int, choice: int, layers: Int32Array, tilings: Int32Array, ifps: Int32Array, bank_of: IntArray,
    latency: IntArray, dealt: IntArray, boxes: IntArray,
) -> None:  # fmt: skip
    """Deal a layer under one of its tilings (``choice``, see ``tables.IDLE``): fills its rows of ``dealt`` [layers,
    cores + 1] and of ``boxes``.

    ``boxes`` [layers, 2, banks, 4]: the region (rows, rows end, blocks, blocks end) of the layer's input (0) and
    operand (1)
    that the cores of each bank read; empty if they read nothing. ``bank_of`` [cores]; ``latency`` [ifps] is scratch.
    """
    tiling = layers[layer, FIRST_TILING] + choice % IDLE
    cores = len(bank_of)
    busy = cores - choice // IDLE
    begin = tilings[tiling, FIRST_IFP]
    end = begin + tilings[tiling, IFPS]
    for p in range(begin, end):
        latency[p] = ifps[p, LATENCY]
    deal(latency, begin, end, busy, dealt[layer])
    for core in range(busy, cores):
        dealt[layer, core + 1] = end
    for operand in range(2):
        base = OPERAND_ROW if operand else IN_ROW
        for bank in range(boxes.shape[2]):
            boxes[layer, operand, bank, 0] = boxes[layer, operand, bank, 2] = NOWHERE
            boxes[layer, operand, bank, 1] = boxes[layer, operand, bank, 3] = 0
        for core in range(cores):
            bank = bank_of[core]
            row, row_end, block, block_end = NOWHERE, 0, NOWHERE, 0
            for p in range(dealt[layer, core], dealt[layer, core + 1]):
                row, row_end = min(row, ifps[p, base]), max(row_end, ifps[p, base + 1])
                block, block_end = min(block, ifps[p, base + 2]), max(block_end, ifps[p, base + 3])
            boxes[layer, operand, bank, 0] = min(boxes[layer, operand, bank, 0], row)
            boxes[layer, operand, bank, 1] = max(boxes[layer, operand, bank, 1], row_end)
            boxes[layer, operand, bank, 2] = min(boxes[layer, operand, bank, 2], block)
            boxes[layer, operand, bank, 3] = max(boxes[layer, operand, bank, 3], block_end)
