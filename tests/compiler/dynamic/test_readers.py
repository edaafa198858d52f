"""How regions meet, eight at once: against plain comparisons of their edges.

It must not know what regions are of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.compiler.dynamic.compiled import EIGHT, hot, meet


@hot
def met(reach: Any, number: int, row: int, row_end: int, block: int, block_end: int) -> int:
    return meet(reach, number, row, row_end, block, block_end)


@settings(max_examples=200)
@given(st.integers(0, 1 << 30), st.integers(0, 2))
def test_regions_meet_as_their_edges_say(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    reach = rng.integers(0, 8, (3, 4, EIGHT)).astype(np.int32)
    row, block = (int(value) for value in rng.integers(0, 6, 2))
    row_end, block_end = row + int(rng.integers(1, 4)), block + int(rng.integers(1, 4))
    rows, blocks = set(range(row, row_end)), set(range(block, block_end))
    expected = 0
    for i in range(EIGHT):
        low, high, first, behind = (int(value) for value in reach[number, :, i])
        if low >= high or first >= behind:  # empty ones are never asked for, but for those without rows
            reach[number, :, i] = low, high, first, behind = 1 << 30, 0, first, behind
        theirs, columns = set(range(low, high)), set(range(first, behind))
        hit = bool(rows & theirs and blocks & columns)
        whole = hit and rows <= theirs
        expected |= (hit | whole << EIGHT | (whole and blocks <= columns) << 2 * EIGHT) << i
    assert met(reach, number, row, row_end, block, block_end) == expected
