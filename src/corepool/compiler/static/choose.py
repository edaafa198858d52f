"""The latency table, and the choice of tilings over whole networks.

It must not know the simulator. What a layer costs depends on its readers: results go to the banks of the cores that
read
them. So tilings are first chosen layer by layer, and then changed one at a time as long as the network gets faster.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from corepool.compiler.dynamic import link
from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.dynamic.deal import deal_layer
from corepool.compiler.dynamic.emit import emit_streams
from corepool.compiler.dynamic.linker import place_of, state_of
from corepool.compiler.dynamic.meet import plan_syncs
from corepool.compiler.dynamic.prepare import tables_of
from corepool.compiler.dynamic.rows import INSTRUCTION, Int32Array, IntArray, Place, Rows, State, Tables, Words
from corepool.compiler.model import ModelPackage
from corepool.compiler.static.latency import CARRIED, COLUMNS, RINGS, decode, machine, stream_cycles
from corepool.compiler.tables import IDLE, MAX_CORES
from corepool.config import HardwareConfig

LAYERS_PER_COST = 24  # see ``instruction_cost``
FURTHEST_PRODUCER = 4  # layers before a layer that are priced with it
ROUNDS = 2  # over all layers; later ones change little
# Pairs of layers, on the whole card: that many tilings of each are tried with each other. All instructions of a network
# are priced about five times for each pair, so this is for small ones; the others would take too long.
MOST_NEAR, FEWEST_NEAR = 32, 28
PRICED = 20_000_000  # instructions that may be priced, a fifth of them: some seconds
PAIR_ROUNDS = 3
IDLE_GAIN = 64  # idle cores must promise to save more than a 64th of the time: about what the model errs by


def predict(package: ModelPackage, cores: int, config: HardwareConfig) -> int:
    """Predicted cycles of one inference on the device's first ``cores`` cores; 0 if the device has fewer."""
    if cores > config.cores:
        return 0
    linked = link(package, range(cores), config)
    fields = np.zeros((linked.instruction_count, COLUMNS), np.int64)
    decode(linked.instructions, 0, len(fields), fields)
    banks = np.array([config.bank_of(core) for core in range(cores)], np.int64)
    m = machine(config)
    fetch = config.fetch_burst_bytes // config.ddr.line_bytes * int(m[1]) // 16 + config.ddr.read_latency
    state, rings = _pricing(cores)
    return int(stream_cycles(fields, linked.bounds[:-1].copy(), banks, fetch, state, rings, m))


def _pricing(cores: int) -> tuple[IntArray, IntArray]:
    """Scratch space of ``stream_cycles``."""
    return np.zeros((cores + 2, max(CARRIED, cores)), np.int64), np.zeros((cores, RINGS, 64), np.int64)


def instruction_cost(layers: int) -> int:
    """Cycles that an instruction must save: streams have to be linked and sent to the card, long ones above all."""
    return 1 + layers // LAYERS_PER_COST


def choose(package: ModelPackage, config: HardwareConfig) -> Int32Array:
    """The tiling of each layer for each number of cores, [layers, 16], starting from the package's own choice.

    A few cores in a last bank take all that is written there through their few slots. So if not all banks are full, a
    layer may be left to the full ones, and the search also starts from what was chosen for these.
    """
    choice = package.choice.copy()
    first, producers = _producers(package)
    tables = tables_of(package)._replace(choice=choice)
    most = sum(int(package.tiling_bound[row[0] : row[0] + row[1]].max()) for row in package.layers)
    size = most + MAX_CORES * (2 * len(package.layers) + 1)
    m = np.append(machine(config), instruction_cost(len(package.layers)))
    for cores in range(1, min(MAX_CORES, config.cores) + 1):
        where = place_of(range(cores), config)
        out = np.zeros(size, INSTRUCTION)
        scratch = (
            state_of(package, cores, config),
            out,
            out.view(np.uint64).reshape(-1, 4),
            np.zeros((size, COLUMNS), np.int64),
            np.zeros((cores, len(package.layers)), np.int32),
            np.zeros(cores + 1, np.int64),
            np.zeros(cores, np.int64),
            *_pricing(cores),
        )
        full = cores // config.cores_per_bank * config.cores_per_bank
        idle = cores - full if full else 0
        cycles = _improve(tables, where, first, producers, idle, m, ROUNDS, *scratch)
        if idle:
            found = choice[:, cores - 1].copy()
            choice[:, cores - 1] = choice[:, full - 1] + idle * IDLE
            other = _improve(tables, where, first, producers, idle, m, ROUNDS, *scratch)
            if other + other // IDLE_GAIN >= cycles:
                choice[:, cores - 1] = found
        most = min(isqrt(PRICED // int(package.stream_bound[cores - 1])), MOST_NEAR)
        if cores == config.cores and most >= FEWEST_NEAR:
            near = np.zeros((2, 2, most), np.int64)
            free = np.append(machine(config), 0)  # short streams: their instructions need not save anything
            _improve(tables, where, first, producers, idle, free, ROUNDS, *scratch)
            for _ in range(PAIR_ROUNDS):
                if not _improve_pairs(tables, where, free, *scratch, near):
                    break
    return choice


def _producers(package: ModelPackage) -> tuple[IntArray, IntArray]:
    """The layers whose results each layer reads: ``producers[first[layer] : first[layer + 1]]``."""
    sources: list[set[int]] = [set() for _ in package.layers]
    for layer, row in enumerate(package.layers):
        for consumer in package.consumers[row[4] : row[4] + row[5], 0]:
            if consumer > layer:
                sources[consumer].add(layer)
    first = np.concatenate([[0], np.cumsum([len(s) for s in sources])])
    return first.astype(np.int64), np.array([p for s in sources for p in sorted(s)], np.int64)


@hot
def _cost(
    begin: int, end: int, t: Tables, where: Place, m: IntArray, state: State, out: Rows, words: Words, fields: IntArray,
    starts: Int32Array, places: IntArray, ends: IntArray, prices: IntArray, rings: IntArray,
) -> int:  # fmt: skip
    """Predicted cycles of layers ``begin .. end`` as they are dealt, and what their instructions count for."""
    plan_syncs(begin, end, t.layers, t.ifps, t.consumers, state.dealt, state.holds)
    count = emit_streams(begin, end, t, where, state, out, places, ends, starts)
    for core in range(len(ends)):
        decode(words, places[core], ends[core], fields)
    return stream_cycles(fields, places[: len(ends)], where.bank_of, 0, prices, rings, m) + m[len(m) - 1] * count


@hot
def _improve(
    t: Tables, where: Place, first: IntArray, producers: IntArray, idle: int, m: IntArray, rounds: int, state: State,
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
            lowest = _cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
            for number in range(count + (idle > 0)):
                candidate = number
                if number == count:
                    candidate = t.choice[layer, column - idle] + idle * IDLE
                if candidate == t.choice[layer, column]:
                    continue
                deal_layer(layer, candidate, t, bank_of, state)
                total = _cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
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
    cycles = _cost(0, len(layers), t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
    m[len(m) - 1] = instruction
    return cycles


@hot
def _nearest(
    one: int, begin: int, end: int, t: Tables, where: Place, m: IntArray, state: State, out: Rows, words: Words,
    fields: IntArray, starts: Int32Array, places: IntArray, ends: IntArray, prices: IntArray, rings: IntArray,
    near: IntArray,
) -> int:  # fmt: skip
    """The tilings of a layer that cost least while all others stay, its own left out: fills ``near`` [2, most] with
    number and cost, the cheapest first; returns how many."""
    column, most = len(where.bank_of) - 1, near.shape[1]
    count = 0
    for candidate in range(t.layers[one].tilings):
        if candidate == t.choice[one, column]:
            continue
        deal_layer(one, candidate, t, where.bank_of, state)
        cost = _cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
        at = count
        while at > 0 and near[1, at - 1] > cost:
            if at < most:
                near[0, at], near[1, at] = near[0, at - 1], near[1, at - 1]
            at -= 1
        if at < most:
            near[0, at], near[1, at] = candidate, cost
            count = min(count + 1, most)
    own = t.choice[one, column]
    deal_layer(one, own, t, where.bank_of, state)
    return count


@hot
def _improve_pairs(
    t: Tables, where: Place, m: IntArray, state: State, out: Rows, words: Words, fields: IntArray, starts: Int32Array,
    places: IntArray, ends: IntArray, prices: IntArray, rings: IntArray, near: IntArray,
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
        lowest = _cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
        counts = (
            _nearest(
                before, begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings,
                near[0],
            ),
            _nearest(
                layer, begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings, near[1]
            ),
        )  # fmt: skip
        best = own
        for i in range(counts[0]):
            deal_layer(before, near[0, 0, i], t, bank_of, state)
            for j in range(counts[1]):
                deal_layer(layer, near[1, 0, j], t, bank_of, state)
                cost = _cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
                if cost < lowest:
                    best, lowest = (np.int32(near[0, 0, i]), np.int32(near[1, 0, j])), cost
        deal_layer(before, best[0], t, bank_of, state)
        deal_layer(layer, best[1], t, bank_of, state)
        if best != own:
            t.choice[before, column], t.choice[layer, column] = best
            changes += 1
    return changes
