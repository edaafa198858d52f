"""Who reads what of a layer's result: the banks that each package's rows are written to.

It must not know instructions. What holds for a whole layer is worked out once, what holds for all packages of a core
once for these; single packages are looked at only where other banks need a part of what the core makes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from corepool.compiler.dynamic.compiled import EIGHT, hot, inlined, meet, one_by_one
from corepool.compiler.dynamic.deal import NOWHERE
from corepool.compiler.dynamic.rows import BANKS, MOST_PARTS, Int32Array, IntArray, Rows

ALL_BANKS = (1 << BANKS) - 1
assert BANKS == EIGHT


@inlined
def _held(outer: Any, row: int, row_end: int, block: int, block_end: int) -> bool:
    """Whether a region is all in another one."""
    return outer.row <= row and outer.row_end >= row_end and outer.block <= block and outer.block_end >= block_end


@hot
def _add_region(bank: int, box: Any, reach: Int32Array, first: int, count: int) -> int:
    """Add a bank's region behind ``count`` others of its own from ``reach[first]`` on, unless one of these holds all of
    it; those that it holds go. Returns their number."""
    kept = first
    for r in range(first, first + count):
        row, row_end, block, block_end = reach[r, 0, bank], reach[r, 1, bank], reach[r, 2, bank], reach[r, 3, bank]
        if row <= box.row and row_end >= box.row_end and block <= box.block and block_end >= box.block_end:
            return count
        if _held(box, row, row_end, block, block_end):
            continue
        for i in range(4):
            reach[kept, i, bank] = reach[r, i, bank]
        kept += 1
    reach[kept, 0, bank], reach[kept, 1, bank] = box.row, box.row_end
    reach[kept, 2, bank], reach[kept, 3, bank] = box.block, box.block_end
    for r in range(kept + 1, first + count):
        reach[r, 0, bank], reach[r, 1, bank] = NOWHERE, 0
    return kept + 1 - first


@hot
def plan_readers(
    first_layer: int, behind_layer: int, layers: Rows, ifps: Rows, consumers: Rows, dealt: IntArray, boxes: Rows,
    home: int, readers: IntArray, reach: Int32Array,
) -> None:  # fmt: skip
    """Fill ``readers`` [layers, 2] with the banks that need all of a layer's result, as a mask, and the most regions
    that a bank needs else; these into ``reach``, from the place of the layer's first consumer on: there, numbers of one
    place are the regions (row, end, block, end) of all banks. ``home`` is the bank of the outputs."""
    banks, cores = boxes.shape[2], dealt.shape[1] - 1
    for layer in range(first_layer, behind_layer):
        this = layers[layer]
        begin, end = ifps[dealt[layer, 0]], ifps[dealt[layer, cores] - 1]
        first = np.int64(this.first_consumer)
        behind = first + this.consumers
        for r in range(first, behind):
            for bank in range(BANKS):
                reach[r, 0, bank], reach[r, 1, bank] = NOWHERE, 0
        everything, most = 0, 0
        if this.is_output:  # the host reads all of it
            everything = 1 << home
        for bank in range(banks):
            if everything >> bank & 1:
                continue
            count = 0
            for c in range(first, behind):
                box = boxes[consumers[c].layer, consumers[c].as_operand, bank]
                if _held(box, begin.out_row, end.out_row_end, begin.out_block, end.out_block_end):
                    everything |= 1 << bank
                    break
                if box.row < box.row_end:
                    count = _add_region(bank, box, reach, first, count)
            most = max(most, count)
        readers[layer, 0], readers[layer, 1] = everything, most


@inlined
def near_regions(run: Any, everything: int, first: int, count: int, reach: Int32Array) -> tuple[int, int]:
    """Whether regions ``reach[first : first + count]`` matter for a run of packages: the banks that need all of these
    packages' results, as a mask, and ``count``, or 0 if other banks need none of them."""
    row, row_end = np.int64(run.row), np.int64(run.row_end)
    block, block_end = np.int64(run.block), np.int64(run.block_end)
    met = 0
    for r in range(first, first + count):
        met |= meet(reach, r, row, row_end, block, block_end)
        one_by_one()
    everything |= met >> 2 * BANKS
    return everything, count if met & ALL_BANKS & ~everything else 0


@inlined
def banks_of(
    result: Int32Array, package: int, everything: int, first: int, count: int, reach: Int32Array
) -> tuple[int, int]:
    """The banks that need all rows of a package's result, and those that need some, as masks."""
    p = np.uint64(package)
    row, row_end = np.int64(result[p, 0]), np.int64(result[p, 1])
    block, block_end = np.int64(result[p, 2]), np.int64(result[p, 3])
    met = meet(reach, first, row, row_end, block, block_end)
    for r in range(first + 1, first + count):
        met |= meet(reach, r, row, row_end, block, block_end)
        one_by_one()
    whole: Any = everything | met >> BANKS & ALL_BANKS
    return whole, met & ALL_BANKS & ~whole


@inlined
def _set_part(row: int, row_end: int, mask: int, part: Any) -> None:
    part.row, part.row_end, part.mask = row, row_end, mask


@inlined
def _add_part(row: int, row_end: int, mask: int, parts: Rows, count: int) -> int:
    """Add rows behind ``count`` parts, if there are any, or to the last one if it goes to the same banks."""
    if row < row_end:
        if count and parts[np.uint64(count - 1)].mask == mask:
            parts[np.uint64(count - 1)].row_end = row_end
        else:
            part = parts[np.uint64(count)]
            part.row, part.row_end, part.mask = row, row_end, mask
            count += 1
    return count


@hot
def _split_many(first_row: int, last_row: int, whole: int, partly: int, own: int, spans: IntArray, parts: Rows) -> int:
    """Split rows of which several banks need some; returns the number of parts, 0 if there would be too many."""
    count, row = 0, first_row
    while row < last_row:
        mask, end = whole, last_row
        for bank in range(len(spans)):
            if partly >> bank & 1:
                if spans[bank, 0] <= row < spans[bank, 1]:
                    mask |= 1 << bank
                    end = min(end, spans[bank, 1])
                elif spans[bank, 0] > row:
                    end = min(end, spans[bank, 0])
            one_by_one()
        count = _add_part(row, end, mask if mask else 1 << own, parts, count)
        if count > MOST_PARTS:
            return 0
        row = end
    return count


@inlined
def _span(
    result: Int32Array, p: int, bank: int, first: int, count: int, reach: Int32Array
) -> tuple[int, int]:  # fmt: skip
    """From which row to which a bank needs rows of a package's result."""
    first_row, last_row = np.int64(result[p, 0]), np.int64(result[p, 1])
    begin: Any = last_row
    end: Any = first_row
    for r in range(first, first + count):
        low, high = max(first_row, np.int64(reach[r, 0, bank])), min(last_row, np.int64(reach[r, 1, bank]))
        hit = (low < high) & (result[p, 2] < reach[r, 3, bank]) & (reach[r, 2, bank] < result[p, 3])
        begin, end = min(begin, low if hit else begin), max(end, high if hit else end)
        one_by_one()
    return begin, end


@hot
def split_rows(
    result: Int32Array, package: int, whole: int, partly: int, first: int, count: int, reach: Int32Array, own: int,
    spans: IntArray, parts: Rows,
) -> int:  # fmt: skip
    """Which banks need which rows of a package's result: fills ``parts`` with row, row end, bank mask; returns their
    number. ``whole`` and ``partly`` (not 0) are those of ``banks_of``.

    Rows that only one more bank needs (halos) are saved apart, so that the others are not written there. ``spans``
    [banks, 2] is scratch. Rows that nobody reads go to the core's ``own`` bank.
    """
    first_row, last_row = np.int64(result[package, 0]), np.int64(result[package, 1])
    rest, shared = whole if whole else 1 << own, whole | partly
    made = 0
    if partly & (partly - 1):  # several
        for bank in range(len(spans)):
            if partly >> bank & 1:
                spans[bank, 0], spans[bank, 1] = _span(result, package, bank, first, count, reach)
            one_by_one()
        made = _split_many(first_row, last_row, whole, partly, own, spans, parts)
    elif rest != shared:
        bank = 0
        while partly >> bank != 1:
            bank += 1
            one_by_one()
        begin, end = _span(result, package, bank, first, count, reach)
        # Without branches: which of the outer parts are empty would be hard to foresee.
        _set_part(first_row, begin, rest, parts[0])
        made = int(first_row < begin)
        _set_part(begin, end, shared, parts[np.uint64(made)])
        _set_part(end, last_row, rest, parts[np.uint64(made + 1)])
        made += 1 + int(end < last_row)
    if made == 0:  # all rows to all banks that need any
        _set_part(first_row, last_row, shared, parts[0])
        made = 1
    return made
