"""The emission of instruction streams in compiled code: layer by layer, one core's packages after the other's.

It must not know what instructions mean beyond the fields that are patched: buffers, tokens, bank masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from corepool.compiler.dynamic.compiled import fetch, hot, inlined, one_by_one
from corepool.compiler.dynamic.patch import (
    RAISE_NEXT,
    RAISE_PREV,
    WAIT_NEXT,
    WAIT_PREV,
    copy_computes,
    copy_loads,
    copy_parts,
    copy_saves,
    write_end,
    write_sync,
)
from corepool.compiler.dynamic.readers import banks_of, near_regions, plan_readers, split_rows
from corepool.compiler.dynamic.rings import FURTHEST, LAST_GROUP, counts_of, fetch_ahead, group_at, load_group, take
from corepool.compiler.dynamic.rows import LAST_SAVED, UNUSED, Int32Array, IntArray, Place, Rows, State, Tables


@inlined
def _begin(stream: Any, groups: Rows) -> None:
    """Begin a stream: nothing is on chip, nothing is under way."""
    stream.feature_buffer, stream.slot, stream.slots = 1, 1, 2
    stream.other_use = stream.compute1 = stream.compute2 = stream.waited = -1
    stream.save1 = stream.save2 = stream.ahead = stream.fully = -1
    stream.tail = stream.next = stream.used = stream.pending = 0
    last = groups[LAST_GROUP]
    last.places = last.sizes = 0


@inlined
def emit_layer(
    layer: int, core: int, layers: Rows, ifps: Rows, briefs: Rows, results: Int32Array, code: Rows, own: int,
    rings: int, half: int, result_words: int, word_bytes: int, sync_cores: int, again: int, dealt: IntArray, run: Any,
    stream: Any, groups: Rows, readers: IntArray, reach: Int32Array, spans: IntArray, parts: Rows,
    known: IntArray, saved: IntArray, out: Rows, at: int,
) -> int:  # fmt: skip
    """Write one core's packages of one layer to ``out[at]`` and on; returns the place behind.

    ``own`` is the core's bank; ``again``: the cores meet again behind the first package of each.
    """
    begin, end = dealt[layer, core], dealt[layer, core + 1]
    if end == begin:
        if again:
            write_sync(out, at, layer - 1, sync_cores, 0)
            at += 1
        return at
    this = layers[layer]
    buffers = np.int64(this.result_buffers)  # 2 or 4
    result_size = result_words >> (buffers >> 1)
    everything, regions = readers[layer, 0], readers[layer, 1]
    first_region = np.int64(this.first_consumer)
    if regions:
        everything, regions = near_regions(run, everything, first_region, regions, reach)
    banks = everything if everything else 1 << own
    parts_count = 1
    # What changes with every step is kept in variables while the layer is written.
    feature, other_use = stream.feature_buffer * half, stream.other_use
    compute1, compute2, waited = stream.compute1, stream.compute2, stream.waited
    save1, save2, slot = stream.save1, stream.save2, stream.slot
    if stream.slots != buffers:  # the first result buffer must not meet that of the save before
        slot = (1 - (slot >> 1) if buffers == 2 else 2 * (1 - slot)) - 1
    places, number = np.int64(0), np.int64(0)
    weight_key = np.int64(-1)
    ahead, behind = max(stream.tail, stream.pending), stream.next  # the next group that may have been fetched ahead
    feature_key = np.int64(-1)  # features never survive a SYNC
    s = np.int64(run.first_step) - 1
    for p in range(begin, end):
        if regions:
            parts_count = 1
            banks, partly = banks_of(results, p, everything, first_region, regions, reach)
            if partly:
                # Neighbours often have the same rows, and are split alike.
                row, row_end = results[np.uint64(p), 0], results[np.uint64(p), 1]
                key = (layer << 24) + (own << 16) + (banks << 8) + partly
                if regions > 1 or known[0] != key or known[1] != row or known[2] != row_end:
                    known[0], known[1], known[2] = key, row, row_end
                    known[3] = split_rows(results, p, banks, partly, first_region, regions, reach, own, spans, parts)
                parts_count = known[3]
                banks = parts[0].mask
            elif banks == 0:
                banks = 1 << own
        save_count = 0
        more = True
        while more:
            s += 1
            step = briefs[np.uint64(s)]
            more = step.last == 0
            source, weight_loads, feature_loads, operand_loads, computes, saves = counts_of(step)
            first_load = at
            wait = np.int64(-1)
            if weight_loads and step.weight_key != weight_key:
                weight_key = np.int64(step.weight_key)
                while ahead < behind and group_at(groups, ahead).layer < layer:
                    ahead += 1
                    one_by_one()
                group = group_at(groups, ahead)
                if ahead < behind and group.layer == layer and group.key == weight_key:
                    number = ahead
                    ahead += 1
                else:
                    number = stream.next
                    wait = take(stream, groups, step, rings, UNUSED)
                    group = group_at(groups, number)
                    load_group(step, layer, group, code, out, at)
                    at += weight_loads
                places = group.places
            source += weight_loads
            if feature_loads and step.feature_key != feature_key:
                feature_key = np.int64(step.feature_key)
                feature = half - feature
                wait = max(wait, other_use)
                other_use = compute1  # the last one has read the buffer in use until now
                copy_loads(code, source, feature_loads, out, at, feature)
                at += feature_loads
            source += feature_loads
            if saves:
                slot = (slot + 1) & (buffers - 1)
            result = slot * result_size
            if operand_loads:
                wait = max(wait, compute2)  # it has waited for the save that used the buffer before
                copy_loads(code, source, operand_loads, out, at, result)
                at += operand_loads
                source += operand_loads
            loaded = at > first_load
            if loaded:
                if wait > waited:  # no earlier load has waited for it or a later one
                    out[np.uint64(first_load)].word0 |= WAIT_NEXT
                    out[np.uint64(wait)].word0 |= RAISE_PREV
                    waited = wait
                out[np.uint64(at - 1)].word0 |= RAISE_NEXT
            free = saves > 0 and save2 >= 0  # a save has to be at its end, since it reads the same result buffer
            tokens = np.uint64(loaded) * WAIT_PREV | np.uint64(free) * WAIT_NEXT
            copy_computes(code, source, computes, out, at, places, feature, result, tokens)
            at += computes
            source += computes
            compute2 = compute1
            compute1 = at - 1
            if weight_loads:
                group_at(groups, number).use = compute1
            if saves:
                out[np.uint64(compute1)].word0 |= RAISE_NEXT
                if save2 >= 0:
                    out[np.uint64(save2)].word0 |= RAISE_PREV
                save2 = save1
                if parts_count == 1:
                    copy_saves(code, source, saves, out, at, result, banks)
                else:
                    copy_parts(ifps, p, code, source, saves, out, at, result, parts, parts_count, word_bytes)
                save_count += saves * parts_count
                at += saves * parts_count
                save1 = at - 1
        saved[np.uint64(core), np.uint64(p & LAST_SAVED)] = save_count
        if again and p == begin:
            write_sync(out, at, layer - 1, sync_cores, save_count)
            at += 1
    stream.pending = ahead if ahead < behind else stream.next
    stream.feature_buffer, stream.other_use = int(feature > 0), other_use
    stream.compute1, stream.compute2, stream.waited = compute1, compute2, waited
    if save1 != stream.save1:
        stream.slot, stream.slots = slot, buffers
    stream.save1, stream.save2 = save1, save2
    return at


@inlined
def _fetch_first(run: Any, briefs: Rows, code: Rows) -> None:
    """Have the first of what a core's packages are made of brought near the processor."""
    fetch(code, np.int64(run.code))
    fetch(code, np.int64(run.code) + 2)
    fetch(briefs, np.int64(run.first_step))


@hot
def lay_out(first_layer: int, behind_layer: int, runs: Rows, places: IntArray) -> None:
    """Give each core's stream room in one array: ``places`` [cores + 1] receives where each begins, and the end."""
    cores = len(places) - 1
    at = 0
    for core in range(cores):
        places[core] = at
        at += 2 * (behind_layer - first_layer) + 1  # SYNCs and the END
        for layer in range(first_layer, behind_layer):
            at += runs[layer, core].room
            one_by_one()
    places[cores] = at


@hot
def emit_streams(
    first_layer: int, behind_layer: int, t: Tables, where: Place, state: State, out: Rows, places: IntArray,
    ends: IntArray, starts: Int32Array,
) -> int:  # fmt: skip
    """Write the streams of all cores for layers ``first_layer .. behind_layer``, for which ``state`` has all that comes
    before its scratch filled in; returns the number of instructions.

    Core c's instructions become ``out[places[c] : ends[c]]``, those of its layers begin at ``starts[c]`` within. It
    goes layer by layer, not core by core: so packages are read in the order in which they stand.
    """
    layers, ifps, briefs, results, code = t.layers, t.ifps, t.briefs, t.results, t.code
    bank_of, rings, half = where.bank_of, where.rings, where.feature_lines // 2
    result_words, word_bytes, sync_cores = where.result_words, where.word_bytes, where.sync_cores
    dealt, runs, holds, readers, reach = state.dealt, state.runs, state.holds, state.readers, state.reach
    spans, parts = state.spans, state.parts
    cores = len(bank_of)
    plan_readers(first_layer, behind_layer, layers, ifps, t.consumers, dealt, state.boxes, bank_of[0], readers, reach)
    lay_out(first_layer, behind_layer, runs, places)
    state.known[0] = -1
    for core in range(cores):
        ends[core] = places[core]
        _begin(state.streams[core], state.groups[core])
    for layer in range(first_layer, behind_layer):
        for core in range(cores):
            stream, groups, at = state.streams[core], state.groups[core], ends[core]
            if layer + FURTHEST < behind_layer:
                _fetch_first(runs[np.uint64(layer + FURTHEST), np.uint64(core)], briefs, code)
            hold = holds[layer, core]
            if hold >= 0:
                saved, last = state.saved[core], dealt[layer - 1, core + 1] - 1
                behind = saved[last & LAST_SAVED] if hold > 0 else 0
                behind += saved[(last - 1) & LAST_SAVED] if hold > 1 else 0
                behind += saved[(last - 2) & LAST_SAVED] if hold > 2 else 0
                write_sync(out, at, layer - 1, sync_cores, behind)
                at += 1
            starts[core, layer - first_layer] = at - places[core]
            at = emit_layer(
                layer, core, layers, ifps, briefs, results, code, bank_of[core], rings, half, result_words, word_bytes,
                sync_cores, holds[layer, cores], dealt, runs[layer, core], stream, groups, readers, reach, spans,
                parts, state.known, state.saved, out, at,
            )  # fmt: skip
            if layer < behind_layer - 1:
                at = fetch_ahead(layer, core, behind_layer, briefs, code, runs, rings, stream, groups, out, at)
            ends[core] = at
    count = 0
    for core in range(cores):
        write_end(out, ends[core])
        ends[core] += 1
        one_by_one()
        count += ends[core] - places[core]
    return count
