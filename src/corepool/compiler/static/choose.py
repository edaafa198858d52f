"""The latency table, and the choice of tilings over whole networks.

It must not know the simulator, whose clock it asks (``clock.py``). What a layer costs depends on its readers: results
go to the banks of the cores that read them. So tilings are first chosen layer by layer, and then changed one at a time
as long as the network gets faster.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

from corepool.compiler.dynamic import link
from corepool.compiler.dynamic.deal import deal_layer
from corepool.compiler.dynamic.emit import emit_streams
from corepool.compiler.dynamic.linker import place_of, state_of
from corepool.compiler.dynamic.meet import plan_syncs
from corepool.compiler.dynamic.prepare import tables_of
from corepool.compiler.dynamic.rows import INSTRUCTION, Int32Array, IntArray, Place, Tables
from corepool.compiler.model import ModelPackage
from corepool.compiler.static.clock import run_time
from corepool.compiler.static.improve import Bools, cost, improve, improve_pairs, nearest
from corepool.compiler.static.latency import CARRIED, COLUMNS, RINGS, decode, machine, stream_cycles
from corepool.compiler.tables import IDLE, MAX_CORES
from corepool.config import HardwareConfig

LAYERS_PER_COST = 24  # see ``instruction_cost``
THREADS = 2  # compiled code does not hold the interpreter
ROUNDS = 2  # over all layers; later ones change little
# Pairs of layers, on the whole card: that many tilings of each are tried with each other. All instructions of a network
# are priced about five times for each pair, so this is for small ones; the others would take too long.
MOST_NEAR, FEWEST_NEAR = 20, 26
PRICED = 20_000_000  # instructions that may be priced, a fifth of them: some seconds
PAIR_ROUNDS = 2
MOST_ASTRAY = 25  # a prediction may be wrong by a 25th: the latency table promises a 20th
MISLED = 1 << 62
# On the whole card the device's own clock has the last word on every layer: so many instructions may be clocked, of the
# layer and of REACH layers around it each time, for at most MOST_CLOCKED tilings, in at most CLOCK_ROUNDS rounds. Only
# a quarter in networks with MANY_LAYERS, where all else takes longer, and where instructions cost something even then.
CLOCKED, REACH, MOST_CLOCKED, CLOCK_ROUNDS = 1_600_000, 3, 5, 2
MANY_LAYERS = 80


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
    most_cores = min(MAX_CORES, config.cores)
    full = [n for n in range(most_cores, 0, -1) if n % config.cores_per_bank == 0]
    # What takes longest goes first; then counts that fill their banks, as others begin with what was found for these.
    order = sorted(range(1, most_cores + 1), key=lambda n: (n != most_cores, n not in full, -n))
    with ThreadPoolExecutor(THREADS) as pool:  # each number of cores has a column of its own
        running: dict[int, Future[None]] = {}
        for cores in order:
            before = running.get(cores // config.cores_per_bank * config.cores_per_bank)
            running[cores] = pool.submit(task.choose, cores, before)
        for each in running.values():
            each.result()
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

    def choose(self, cores: int, before: Future[None] | None = None) -> None:
        """The tilings for so many cores. ``before``: a search that this one needs the result of; it has begun."""
        if before is not None:
            before.result()
        package, config, column = self.package, self.config, self.tables.choice[:, cores - 1]
        price = np.append(machine(config), instruction_cost(len(package.layers)))
        pairs = isqrt(PRICED // int(package.stream_bound[cores - 1]))
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
            predicted = improve(*common, leave, price, ROUNDS, among, *scratch)
            cycles = self._measure(cores, predicted, scratch) if len(starts) > 1 else 0
            found.append((cycles, number, column.copy()))
        if cores == config.cores and short:
            near = np.zeros((2, 2, min(pairs, MOST_NEAR)), np.int64)
            price[-1] = 0  # short streams: their instructions need not save anything
            column[:] = min(found, key=lambda each: each[:2])[2]
            improve(*common, idle, price, ROUNDS, tried, *scratch)
            for _ in range(PAIR_ROUNDS):
                if not improve_pairs(*common[:2], price, tried, *scratch, near):
                    break
            predicted = improve(*common, idle, price, 0, tried, *scratch)
            found.append((self._measure(cores, predicted, scratch), len(starts), column.copy()))
        column[:] = min(found, key=lambda each: each[:2])[2]
        if cores == config.cores:
            layers = len(package.layers)
            price[-1] = instruction_cost(layers) if layers >= MANY_LAYERS else 0
            self._refine(cores, tried, common[:2], price, scratch)

    def _refine(self, cores: int, tried: Bools, common: tuple[Tables, Place], price: IntArray, scratch: Any) -> None:
        """Change one layer at a time as long as the device's clock says that it helps: of the tilings that the model
        finds cheapest in their place those that are faster there, if the whole network is. Where instructions cost
        something, there must not be more of them afterwards."""
        tables, where, layers = *common, len(self.package.layers)
        column, state, (places, ends) = tables.choice[:, cores - 1], scratch[0], scratch[5:7]
        each, free = int(price[-1]), np.append(price[:-1], 0)
        for layer in range(layers):
            deal_layer(layer, column[layer], tables, where.bank_of, state)

        def total() -> tuple[int, int]:
            """Cycles and instructions of the whole network."""
            cycles = self._measure(cores, cost(0, layers, *common, free, *scratch), scratch)
            return cycles, int((ends - places[:cores]).sum())

        whole, most = total()
        lowest, left = whole + each * most, CLOCKED // 4 if each else CLOCKED
        for _ in range(CLOCK_ROUNDS):
            changed = False
            for layer in range(layers):
                if left <= 0 or self.package.layers[layer, 1] == 1:
                    continue
                begin, end = max(layer - REACH, 0), min(layer + REACH + 1, layers)
                near = np.zeros((2, MOST_CLOCKED), np.int64)
                found = nearest(layer, begin, end, *common, price, tried, *scratch, near)
                own = column[layer]
                taken: list[tuple[int, int, int]] = []
                for candidate in (own, *near[0, :found]):
                    deal_layer(layer, candidate, tables, where.bank_of, state)
                    cycles = self._clock(cores, begin, end, scratch)
                    count = int((ends - places[:cores]).sum())
                    taken.append((cycles + each * count, len(taken), int(candidate)))
                    left -= count
                best = min(taken)[2]
                deal_layer(layer, best, tables, where.bank_of, state)
                if best != own:
                    cycles, count = total()
                    if cycles + each * count < lowest and (not each or count <= most):
                        lowest, column[layer], changed = cycles + each * count, best, True
                    else:
                        deal_layer(layer, own, tables, where.bank_of, state)
            if not changed:
                break

    def _measure(self, cores: int, predicted: int, scratch: tuple[Any, ...]) -> int:
        """Cycles of the network on the machine's own clock, as it is dealt; very many if the prediction is too far
        from it, since the latency table has to be right."""
        cycles = self._clock(cores, 0, len(self.package.layers), scratch)
        return cycles if abs(predicted - cycles) * MOST_ASTRAY <= cycles else cycles + MISLED

    def _clock(self, cores: int, first: int, behind: int, scratch: tuple[Any, ...]) -> int:
        """Cycles of layers ``first .. behind`` on the machine's own clock, as they are dealt."""
        t, (state, out, _, _, starts, places, ends) = self.tables, scratch[:7]
        plan_syncs(first, behind, t.layers, t.ifps, t.consumers, state.dealt, state.holds)
        emit_streams(first, behind, t, place_of(range(cores), self.config), state, out, places, ends, starts)
        streams = [out[begin:end].view(np.uint8) for begin, end in zip(places, ends, strict=False)]
        return run_time(streams, self.package.meta["window"]["streams_offset"], self.config)

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
