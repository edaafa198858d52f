"""The latency table, and the choice of tilings over whole networks.

It must not know the simulator, whose clock it asks (``clock.py``). What a layer costs depends on its readers: results
go to the banks of the cores that read them. So tilings are first chosen layer by layer, and then changed one at a time
as long as the network gets faster.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic import link
from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.dynamic.deal import deal_layer
from corepool.compiler.dynamic.emit import emit_streams
from corepool.compiler.dynamic.linker import place_of, state_of
from corepool.compiler.dynamic.meet import plan_syncs
from corepool.compiler.dynamic.prepare import tables_of
from corepool.compiler.dynamic.rows import INSTRUCTION, Int32Array, IntArray, Place, Rows, State, Tables, Words
from corepool.compiler.model import ModelPackage
from corepool.compiler.static.clock import run_time
from corepool.compiler.static.latency import CARRIED, COLUMNS, RINGS, decode, machine, stream_cycles
from corepool.compiler.tables import IDLE, MAX_CORES
from corepool.config import HardwareConfig

LAYERS_PER_COST = 24  # see ``instruction_cost``
THREADS = 2  # compiled code does not hold the interpreter
FURTHEST_PRODUCER = 4  # layers before a layer that are priced with it
ROUNDS = 2  # over all layers; later ones change little
# Pairs of layers, on the whole card: that many tilings of each are tried with each other. All instructions of a network
# are priced about five times for each pair, so this is for small ones; the others would take too long.
MOST_NEAR, FEWEST_NEAR = 32, 28
PRICED = 20_000_000  # instructions that may be priced, a fifth of them: some seconds
PAIR_ROUNDS = 3
MOST_ASTRAY = 25  # a prediction may be wrong by a 25th: the latency table promises a 20th
MISLED = 1 << 62
Bools = npt.NDArray[np.bool_]
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


def choose(package: ModelPackage, config: HardwareConfig, worth: Bools, plain: Bools, parted: Int32Array) -> Int32Array:
    """The tiling of each layer for each number of cores, [layers, 16], starting from the package's own
    choice, and from each of ``parted`` [starts, layers, 16]. ``worth`` [tilings, 16]: which are worth trying;
    ``plain`` [tilings]: which cut no map into bands. The device's own clock decides between what starts lead to.

    A few cores in a last bank take all that is written there through their few slots. So if not all banks are full, a
    layer may be left to the full ones, and the search also starts from what was chosen for these.
    """
    choice = package.choice.copy()
    first, producers = _producers(package)
    tables = tables_of(package)._replace(choice=choice)
    most = sum(int(package.tiling_bound[row[0] : row[0] + row[1]].max()) for row in package.layers)
    size = most + MAX_CORES * (2 * len(package.layers) + 1)
    task = _Task(package, config, tables, first, producers, worth, plain, parted, size)
    known = range(min(MAX_CORES, config.cores), 0, -1)  # what takes longest goes first
    # Counts that fill their banks, as others begin with what was found for these.
    full = [n for n in known if n % config.cores_per_bank == 0 and n < config.cores]
    with ThreadPoolExecutor(THREADS) as pool:  # each number of cores has a column of its own
        for part in (full, [n for n in known if n not in full]):
            list(pool.map(task.choose, part))
    return choice


@dataclass(frozen=True)
class _Task:
    """What the searches for all numbers of cores have in common; each changes its own column of the tables' choice."""

    package: ModelPackage
    config: HardwareConfig
    tables: Tables
    first: IntArray
    producers: IntArray
    worth: Bools
    plain: Bools
    parted: Int32Array
    size: int  # instructions that a network can have under any choice

    def choose(self, cores: int) -> None:
        """The tilings for so many cores."""
        package, config, column = self.package, self.config, self.tables.choice[:, cores - 1]
        price = np.append(machine(config), instruction_cost(len(package.layers)))
        pairs = min(isqrt(PRICED // int(package.stream_bound[cores - 1])), MOST_NEAR)
        short = pairs >= FEWEST_NEAR  # streams: there is time to try everything
        tried = np.ascontiguousarray(self.worth[:, cores - 1]) | short
        scratch = self._scratch(cores)
        common = (self.tables, place_of(range(cores), config), self.first, self.producers)
        full = cores // config.cores_per_bank * config.cores_per_bank
        idle = cores - full if full else 0
        # What to start from, whether to leave it to the full banks, and what to try.
        starts = [(column.copy(), idle, tried)]
        if idle:
            starts.append((self.tables.choice[:, full - 1] + idle * IDLE, idle, tried))
        if (short and full) or cores > config.cores - config.cores_per_bank:
            starts += [(own[:, cores - 1], 0, tried) for own in self.parted]
        if short:
            starts.append((column.copy(), idle, tried & self.plain))
        found: list[tuple[int, int, Int32Array]] = []
        for number, (start, leave, among) in enumerate(starts):
            column[:] = start
            predicted = _improve(*common, leave, price, ROUNDS, among, *scratch)
            cycles = self._measure(cores, predicted, scratch) if len(starts) > 1 else 0
            found.append((cycles, number, column.copy()))
        if cores == config.cores and short:
            near = np.zeros((2, 2, pairs), np.int64)
            price[-1] = 0  # short streams: their instructions need not save anything
            column[:] = min(found, key=lambda each: each[:2])[2]
            _improve(*common, idle, price, ROUNDS, tried, *scratch)
            for _ in range(PAIR_ROUNDS):
                if not _improve_pairs(*common[:2], price, tried, *scratch, near):
                    break
            predicted = _improve(*common, idle, price, 0, tried, *scratch)
            found.append((self._measure(cores, predicted, scratch), len(starts), column.copy()))
        column[:] = min(found, key=lambda each: each[:2])[2]

    def _measure(self, cores: int, predicted: int, scratch: tuple[Any, ...]) -> int:
        """Cycles of the network on the machine's own clock, as it is dealt; very many if the prediction is too far
        from it, since the latency table has to be right."""
        state, out, _, _, starts, places, ends = scratch[:7]
        layers, where = len(self.package.layers), place_of(range(cores), self.config)
        for layer in range(layers):
            deal_layer(layer, self.tables.choice[layer, cores - 1], self.tables, where.bank_of, state)
        plan_syncs(0, layers, self.tables.layers, self.tables.ifps, self.tables.consumers, state.dealt, state.holds)
        emit_streams(0, layers, self.tables, where, state, out, places, ends, starts)
        streams = [out[begin:end].view(np.uint8) for begin, end in zip(places, ends, strict=False)]
        cycles = run_time(streams, self.package.meta["window"]["streams_offset"], self.config)
        return cycles if abs(predicted - cycles) * MOST_ASTRAY <= cycles else cycles + MISLED

    def _scratch(self, cores: int) -> tuple[Any, ...]:
        """Room to link and price the network in."""
        out = np.zeros(self.size, INSTRUCTION)
        return (
            state_of(self.package, cores, self.config),
            out,
            out.view(np.uint64).reshape(-1, 4),
            np.zeros((self.size, COLUMNS), np.int64),
            np.zeros((cores, len(self.package.layers)), np.int32),
            np.zeros(cores + 1, np.int64),
            np.zeros(cores, np.int64),
            *_pricing(cores),
        )


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
            lowest = _cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
            for number in range(count + (idle > 0)):
                candidate = number
                if number == count:
                    candidate = t.choice[layer, column - idle] + idle * IDLE
                if candidate == t.choice[layer, column] or not (
                    number == count or worth[layers[layer].first_tiling + number]
                ):
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
        lowest = _cost(begin, end, t, where, m, state, out, words, fields, starts, places, ends, prices, rings)
        counts = (
            _nearest(
                before, begin, end, t, where, m, worth, state, out, words, fields, starts, places, ends, prices, rings,
                near[0],
            ),
            _nearest(
                layer, begin, end, t, where, m, worth, state, out, words, fields, starts, places, ends, prices, rings,
                near[1],
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
