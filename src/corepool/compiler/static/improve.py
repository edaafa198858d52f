"""How choices of tilings are changed to get a network faster by the pipeline model: one layer at a time, or two.

It must not know packages or the device's clock. What a layer costs depends on its readers, so layers are priced with
those around them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.dynamic.deal import deal_layer
from corepool.compiler.dynamic.emit import emit_streams
from corepool.compiler.dynamic.meet import plan_syncs
from corepool.compiler.dynamic.rows import Int32Array, IntArray, Place, Rows, State, Tables, Words
from corepool.compiler.static.latency import decode, stream_cycles
from corepool.compiler.tables import IDLE

FURTHEST_PRODUCER = 4  # layers before a layer that are priced with it
IDLE_GAIN = 64  # idle cores must promise to save more than a 64th of the time: about what the model errs by
Bools = npt.NDArray[np.bool_]


@hot
def cost(
    begin: int, end: int, t: Tables, where: Place, m: IntArray, state: State, out: Rows, words: Words, fields: IntArray,
    starts: Int32Array, places: IntArray, ends: IntArray, prices: IntArray, rings: IntArray,
) -> int:  # fmt: skip
    """Predicted cycles of layers ``begin .. end`` as they are dealt, and what their instructions count for."""
    plan_syncs(begin, end, t.layers, t.ifps, t.consumers, state.dealt, state.holds)
    count = emit_streams(begin, end, t, where, state, out, places, ends, starts)
    for core in range(len(ends)):
        decode(words, places[core], ends[core], fields)
    cycles: int = stream_cycles(fields, places[: len(ends)], where.bank_of, 0, prices, rings, m)
    total: int = cycles + m[len(m) - 1] * count
    return total


@hot
def improve(
    t: Tables, where: Place, first: IntArray, producers: IntArray, idle: int, m: IntArray, rounds: int, worth: Bools,
    state: State,
    out: Rows, words: Words, fields: IntArray, starts: Int32Array, places: IntArray, ends: IntArray, prices: IntArray,
    rings: IntArray,
) -> int:  # fmt: skip
    """Try every tiling of every layer, and if ``idle`` is not 0 what was chosen without so many cores; keep what makes
    the layer faster together with its neighbours and those that it reads from. Returns the network's cycles."""
    layers, bank_of = t.layers, where.bank_of
    column = len(bank_of) - 1
    for layer in range(len(layers)):
        deal_layer(layer, t.choice[layer, column], t, bank_of, state)
    for _ in range(rounds):
        changed = False
        for layer in range(len(layers)):
            count = layers[layer].tilings
            if count == 1 and not idle:
                continue
            begin, end = max(layer - 2, 0), min(layer + 2, len(layers))
            for i in range(first[layer], first[layer + 1]):
                if producers[i] >= layer - FURTHEST_PRODUCER:
                    begin = min(begin, producers[i])
            best = t.choice[layer, column]
            lowest = cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
            for number in range(count + (idle > 0)):
                candidate = number
                if number == count:
                    candidate = t.choice[layer, column - idle] + idle * IDLE
                if candidate == t.choice[layer, column] or not (
                    number == count or worth[layers[layer].first_tiling + number]
                ):
                    continue
                deal_layer(layer, candidate, t, bank_of, state)
                total = cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
                if candidate >= IDLE:
                    total += total // IDLE_GAIN
                if total < lowest:
                    best, lowest = candidate, total
            deal_layer(layer, best, t, bank_of, state)
            if best != t.choice[layer, column]:
                changed = True
                t.choice[layer, column] = best
        if not changed:
            break
    instruction = m[len(m) - 1]
    m[len(m) - 1] = 0
    cycles: int = cost(0, len(layers), t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
    m[len(m) - 1] = instruction
    return cycles


@hot
def nearest(
    one: int, begin: int, end: int, t: Tables, where: Place, m: IntArray, worth: Bools, state: State, out: Rows,
    words: Words,
    fields: IntArray, starts: Int32Array, places: IntArray, ends: IntArray, prices: IntArray, rings: IntArray,
    near: IntArray,
) -> int:  # fmt: skip
    """The tilings of a layer that cost least while all others stay, its own left out: fills ``near`` [2, most] with
    number and cost, the cheapest first; returns how many."""
    column, most = len(where.bank_of) - 1, near.shape[1]
    count = 0
    for candidate in range(t.layers[one].tilings):
        if candidate == t.choice[one, column] or not worth[t.layers[one].first_tiling + candidate]:
            continue
        deal_layer(one, candidate, t, where.bank_of, state)
        price = cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
        at = count
        while at > 0 and near[1, at - 1] > price:
            if at < most:
                near[0, at], near[1, at] = near[0, at - 1], near[1, at - 1]
            at -= 1
        if at < most:
            near[0, at], near[1, at] = candidate, price
            count = min(count + 1, most)
    own = t.choice[one, column]
    deal_layer(one, own, t, where.bank_of, state)
    return count


@hot
def improve_pairs(
    t: Tables, where: Place, m: IntArray, worth: Bools, state: State, out: Rows, words: Words, fields: IntArray,
    starts: Int32Array, places: IntArray, ends: IntArray, prices: IntArray, rings: IntArray, near: IntArray,
) -> int:  # fmt: skip
    """Try to change two layers that follow each other at once: how one is cut decides which banks the other's result
    goes to, so neither may be worth changing alone. ``near`` [2, 2, most] is scratch; most: tilings tried of each.
    Returns the number of changes."""
    layers, bank_of = t.layers, where.bank_of
    column, changes = len(bank_of) - 1, 0
    for layer in range(1, len(layers)):
        before = layer - 1
        begin, end = max(before - 2, 0), min(layer + 3, len(layers))
        own = t.choice[before, column], t.choice[layer, column]
        if own[0] >= IDLE or own[1] >= IDLE:
            continue
        lowest = cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
        counts = (
            nearest(
                before, begin, end, t, where, m, worth, state, out, words, fields, starts, places, ends, prices, rings,
                near[0],
            ),
            nearest(
                layer, begin, end, t, where, m, worth, state, out, words, fields, starts, places, ends, prices, rings,
                near[1],
            ),
        )  # fmt: skip
        best = own
        for i in range(counts[0]):
            deal_layer(before, near[0, 0, i], t, bank_of, state)
            for j in range(counts[1]):
                deal_layer(layer, near[1, 0, j], t, bank_of, state)
                price = cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
                if price < lowest:
                    best, lowest = (np.int32(near[0, 0, i]), np.int32(near[1, 0, j])), price
        deal_layer(before, best[0], t, bank_of, state)
        deal_layer(layer, best[1], t, bank_of, state)
        if best != own:
            t.choice[before, column], t.choice[layer, column] = best
            changes += 1
    return changes
