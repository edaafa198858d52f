"""Dealing: which core gets which instruction frame packages of a layer, and what each bank's cores then read.

It must not know what packages hold. Static compiler (to price tilings) and linker deal by this one function, so
predictions and streams agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.dynamic.rows import FEW_WORDS, TAIL, IntArray, Rows, State, Tables
from corepool.compiler.tables import IDLE

NOWHERE = 1 << 30  # beyond any row or block
CLOSE = 64  # the largest run is at most a 64th of a core's share longer than need be


@hot
def _fits(latency: IntArray, begin: int, end: int, cores: int, most: int) -> bool:
    """Whether the packages can be cut into runs of at most ``most``, as long as each core takes what it can."""
    used, spent = 1, 0
    for i in range(begin, end):
        spent += latency[i]
        if spent > most:
            spent = latency[i]
            used += 1
    return used <= cores


@hot
def _nearest(latency: IntArray, begin: int, end: int, cores: int, total: int, most: int, bounds: IntArray) -> int:
    """Cut where the sum of latencies is nearest to each core's share; where ``most`` is not 0, only so that no run is
    above it, if ``bounds`` says where each cut has to be at the earliest for that. Returns the largest run."""
    position = begin
    spent, largest = 0, 0  # of all packages before ``position``
    bounds[0] = begin
    for c in range(1, cores):
        before = spent
        earliest = bounds[c] if most else begin
        # Take the package if its middle lies before total * c / cores, compared in integers.
        while position < end and (position < earliest or (2 * spent + latency[position]) * cores <= 2 * total * c):
            if most and spent + latency[position] - before > most:
                break
            spent += latency[position]
            position += 1
        bounds[c] = position
        largest = max(largest, spent - before)
    bounds[cores] = end
    return max(largest, total - spent)


@hot
def deal(latency: npt.NDArray[np.int64], begin: int, end: int, cores: int, bounds: npt.NDArray[np.int64]) -> None:
    """Cut packages ``begin .. end`` into one run for each core, balanced by predicted latency.

    ``latency`` [packages] in cycles; ``bounds`` [cores + 1] receives the cuts: core c gets ``bounds[c] .. bounds[c +
    1]``. Runs keep what neighbours share. A cut falls where the sum of latencies is nearest to the core's share, unless
    another place makes the largest run shorter.
    """
    total, longest = 0, 0
    for i in range(begin, end):
        total += latency[i]
        longest = max(longest, latency[i])
    high = _nearest(latency, begin, end, cores, total, 0, bounds)
    low = max(-(-total // cores), longest)  # no largest run is shorter
    close = low // CLOSE
    if high - low <= close:
        return
    nearest = high
    while high - low > close:
        middle = (low + high) // 2
        if _fits(latency, begin, end, cores, middle):
            high = middle
        else:
            low = middle + 1
    if high == nearest:
        return
    # The earliest cuts: from the end, each core takes what it can.
    position, spent = end, 0
    for c in range(cores - 1, 0, -1):
        spent = 0
        while position > begin and spent + latency[position - 1] <= high:
            position -= 1
            spent += latency[position]
        bounds[c] = position
    _nearest(latency, begin, end, cores, total, high, bounds)


@hot
def cut_layer(layer: int, choice: int, t: Tables, state: State) -> None:
    """Deal a layer under one of its tilings (``choice``, see ``tables.IDLE``): fills its row of ``dealt``."""
    tiling, bounds, latency = t.tilings[t.layers[layer].first_tiling + choice % IDLE], state.dealt[layer], state.latency
    cores = len(bounds) - 1
    busy = cores - choice // IDLE
    begin, count = np.int64(tiling.first_ifp), np.int64(tiling.ifps)
    for p in range(count):
        latency[p] = t.ifps[np.uint64(begin + p)].latency
    deal(latency, 0, count, busy, bounds)
    for core in range(busy + 1):
        bounds[core] += begin
    for core in range(busy, cores):
        bounds[core + 1] = begin + count


@hot
def describe_layer(layer: int, t: Tables, state: State) -> None:
    """Fill a layer's row of ``runs`` with what each core's packages, as they are dealt, have in common."""
    ifps, dealt, runs = t.ifps, state.dealt, state.runs
    for core in range(dealt.shape[1] - 1):
        run, begin, end = runs[layer, core], dealt[layer, core], dealt[layer, core + 1]
        run.row = run.block = run.in_row = run.in_block = run.operand_row = run.operand_block = NOWHERE
        run.row_end = run.block_end = run.in_row_end = run.in_block_end = 0
        run.operand_row_end = run.operand_block_end = run.first_step = run.behind_step = run.tail = 0
        run.code = run.leading = run.whole = 0
        run.room = t.room[end] - t.room[begin]
        for p in range(begin, end):
            ifp = ifps[np.uint64(p)]
            run.row, run.row_end = min(run.row, ifp.out_row), max(run.row_end, ifp.out_row_end)
            run.block, run.block_end = min(run.block, ifp.out_block), max(run.block_end, ifp.out_block_end)
            run.in_row, run.in_row_end = min(run.in_row, ifp.in_row), max(run.in_row_end, ifp.in_row_end)
            run.in_block, run.in_block_end = min(run.in_block, ifp.in_block), max(run.in_block_end, ifp.in_block_end)
            run.operand_row = min(run.operand_row, ifp.operand_row)
            run.operand_row_end = max(run.operand_row_end, ifp.operand_row_end)
            run.operand_block = min(run.operand_block, ifp.operand_block)
            run.operand_block_end = max(run.operand_block_end, ifp.operand_block_end)
            run.tail += ifp.latency if p >= end - TAIL else 0
        if begin < end:
            last = ifps[np.uint64(end - 1)]
            run.first_step, run.behind_step = ifps[np.uint64(begin)].first_step, last.first_step + last.steps
            run.code = t.steps[np.uint64(run.first_step)].first_instruction
            _look_ahead(run, t.steps)


@hot
def _look_ahead(run: Any, steps: Rows) -> None:
    """How many groups of weights of a run can be fetched ahead of its features: not those that the features in use
    shall meet, and of larger ones only the first."""
    weight_key, feature_key = np.int64(-1), np.int64(-1)
    for s in range(run.first_step, run.behind_step):
        step = steps[np.uint64(s)]
        if step.weight_loads and step.weight_key != weight_key:
            large = s > run.first_step and step.weight_words > FEW_WORDS
            if large or step.feature_loads == 0 or step.feature_key == feature_key:
                return
            run.leading += 1
            weight_key = np.int64(step.weight_key)
        feature_key = np.int64(step.feature_key)
    run.whole = 1


@hot
def box_layer(layer: int, bank_of: IntArray, state: State) -> None:
    """Fill a layer's row of ``boxes`` (see ``rows.State``) from its runs. A box is empty if the bank's cores read
    nothing."""
    runs, inputs, operands = state.runs, state.boxes[layer, 0], state.boxes[layer, 1]
    for bank in range(len(inputs)):
        for box in (inputs[bank], operands[bank]):
            box.row = box.block = NOWHERE
            box.row_end = box.block_end = 0
    for core in range(len(bank_of)):
        run, box = runs[layer, core], inputs[bank_of[core]]
        box.row, box.row_end = min(box.row, run.in_row), max(box.row_end, run.in_row_end)
        box.block, box.block_end = min(box.block, run.in_block), max(box.block_end, run.in_block_end)
        if run.operand_row < run.operand_row_end:
            box = operands[bank_of[core]]
            box.row, box.row_end = min(box.row, run.operand_row), max(box.row_end, run.operand_row_end)
            box.block, box.block_end = min(box.block, run.operand_block), max(box.block_end, run.operand_block_end)


@hot
def deal_layer(layer: int, choice: int, t: Tables, bank_of: IntArray, state: State) -> None:
    """Deal a layer under one of its tilings to cores of these banks: its rows of ``dealt``, ``runs`` and ``boxes``."""
    cut_layer(layer, choice, t, state)
    describe_layer(layer, t, state)
    box_layer(layer, bank_of, state)
