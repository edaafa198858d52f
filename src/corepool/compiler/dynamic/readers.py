"""Who reads what of a layer's result: the banks that each package's rows are written to.

It must not know instructions. What holds for a whole layer is worked out once, what holds for all packages of a core
once for these; single packages are looked at only where other banks need a part of what the core makes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from corepool.compiler.dynamic.compiled import hot, inlined, one_by_one
from corepool.compiler.dynamic.rows import MOST_PARTS, IntArray, Rows


@inlined
def _copy(source: Any, bank: int, target: Any) -> None:
    target.bank = bank
    target.row, target.row_end = source.row, source.row_end
    target.block, target.block_end = source.block, source.block_end


@inlined
def _holds(outer: Any, inner: Any) -> bool:
    """Whether a region holds all of another."""
    return (
        outer.row <= inner.row
        and outer.row_end >= inner.row_end
        and outer.block <= inner.block
        and outer.block_end >= inner.block_end
    )


@hot
def _add_region(bank: int, box: Any, reach: Rows, first: int, count: int) -> int:
    """Add a bank's region behind ``count`` others from ``reach[first]`` on, unless one of the same bank holds all of
    it; those that it holds go. Returns their number."""
    kept = first
    for r in range(first, first + count):
        other = reach[r]
        if other.bank == bank:
            if _holds(other, box):
                return count
            if _holds(box, other):
                continue
        if kept != r:
            _copy(other, other.bank, reach[kept])
        kept += 1
    _copy(box, bank, reach[kept])
    return kept + 1 - first


@hot
def plan_readers(
    first_layer: int, behind_layer: int, layers: Rows, ifps: Rows, consumers: Rows, dealt: IntArray, boxes: Rows,
    home: int, readers: IntArray, reach: Rows,
) -> None:  # fmt: skip
    """Fill ``readers`` [layers, 2] with the banks that need all of a layer's result, as a mask, and the number of
    regions that others need; these into ``reach``, from the place of the layer's first consumer times the number of
    banks on. ``home`` is the bank of the outputs."""
    banks, cores = boxes.shape[2], dealt.shape[1] - 1
    for layer in range(first_layer, behind_layer):
        this = layers[layer]
        begin, end = ifps[dealt[layer, 0]], ifps[dealt[layer, cores] - 1]
        everything, count = 0, 0
        if this.is_output:  # the host reads all of it
            everything = 1 << home
        first = np.int64(this.first_consumer)
        for c in range(first, first + this.consumers):
            for bank in range(banks):
                if everything >> bank & 1:
                    continue
                box = boxes[consumers[c].layer, consumers[c].as_operand, bank]
                if (
                    box.row <= begin.out_row
                    and box.row_end >= end.out_row_end
                    and box.block <= begin.out_block
                    and box.block_end >= end.out_block_end
                ):
                    everything |= 1 << bank
                elif box.row < box.row_end:
                    count = _add_region(bank, box, reach, first * banks, count)
        readers[layer, 0], readers[layer, 1] = everything, count


@inlined
def near_regions(run: Any, everything: int, first: int, count: int, reach: Rows, near: Rows) -> tuple[int, int]:
    """Of ``count`` regions from ``reach[first]`` on, those that matter for a run of packages, into ``near``; returns
    the banks that need all of these packages' results, as a mask, and the number of regions."""
    row, row_end = np.int64(run.row), np.int64(run.row_end)
    block, block_end = np.int64(run.block), np.int64(run.block_end)
    kept = 0
    for r in range(first, first + count):
        region = reach[np.uint64(r)]
        hit = (region.row < row_end) & (row < region.row_end) & (block < region.block_end) & (region.block < block_end)
        holds = (region.row <= row) & (row_end <= region.row_end)
        holds &= (region.block <= block) & (block_end <= region.block_end)
        everything |= np.int64(holds) << region.bank
        _copy(region, region.bank, near[np.uint64(kept)])
        kept += np.int64(hit) & ~(everything >> region.bank)
        one_by_one()
    return everything, kept


@inlined
def banks_of(ifp: Any, everything: int, near: Rows, regions: int) -> tuple[int, int]:
    """The banks that need all rows of a package's result, and those that need some, as masks. Without branches: they
    would be hard to foresee."""
    whole, some = everything, 0
    first_row, last_row = np.int64(ifp.out_row), np.int64(ifp.out_row_end)
    for r in range(regions):
        region = near[np.uint64(r)]
        inside = (ifp.out_block < region.block_end) & (region.block < ifp.out_block_end)
        hit = inside & (first_row < region.row_end) & (region.row < last_row)
        whole |= np.int64(hit & (region.row <= first_row) & (last_row <= region.row_end)) << region.bank
        some |= np.int64(hit) << region.bank
        one_by_one()
    return whole, some & ~whole


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
def split_rows(
    ifp: Any, whole: int, partly: int, near: Rows, regions: int, own: int, spans: IntArray, parts: Rows
) -> int:
    """Which banks need which rows of a package's result: fills ``parts`` with row, row end, bank mask; returns their
    number. ``whole`` and ``partly`` (not 0) are those of ``banks_of``.

    Rows that only one more bank needs (halos) are saved apart, so that the others are not written there. ``spans``
    [banks, 2] is scratch. Rows that nobody reads go to the core's ``own`` bank.
    """
    first_row, last_row = np.int64(ifp.out_row), np.int64(ifp.out_row_end)
    rest, shared = whole if whole else 1 << own, whole | partly
    count = 0
    if partly & (partly - 1):  # several
        for bank in range(len(spans)):
            spans[bank, 0], spans[bank, 1] = last_row, first_row
            one_by_one()
        for r in range(regions):
            region = near[np.uint64(r)]
            low, high = max(first_row, region.row), min(last_row, region.row_end)
            if low < high and ifp.out_block < region.block_end and region.block < ifp.out_block_end:
                bank = region.bank
                spans[bank, 0], spans[bank, 1] = min(spans[bank, 0], low), max(spans[bank, 1], high)
        count = _split_many(first_row, last_row, whole, partly, own, spans, parts)
    elif rest != shared:
        begin, end = last_row, first_row
        for r in range(regions):
            region = near[np.uint64(r)]
            low, high = max(first_row, region.row), min(last_row, region.row_end)
            hit = (low < high) & (ifp.out_block < region.block_end) & (region.block < ifp.out_block_end)
            hit &= partly >> region.bank & 1 == 1
            begin, end = min(begin, low if hit else begin), max(end, high if hit else end)
            one_by_one()
        # Without branches: which of the outer parts are empty would be hard to foresee.
        _set_part(first_row, begin, rest, parts[0])
        count = int(first_row < begin)
        _set_part(begin, end, shared, parts[np.uint64(count)])
        _set_part(end, last_row, rest, parts[np.uint64(count + 1)])
        count += 1 + int(end < last_row)
    if count == 0:  # all rows to all banks that need any
        _set_part(first_row, last_row, shared, parts[0])
        count = 1
    return count
