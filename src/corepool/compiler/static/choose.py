"""The latency table, and the choice of tilings over whole networks.

It must not know the simulator. What a layer costs depends on its readers: results go to the banks of the cores that
read
them. So tilings are first chosen layer by layer, and then changed one at a time as long as the network gets faster.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic import link
from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.dynamic.deal import deal_layer
from corepool.compiler.dynamic.emit import FIRST_STEP, Place, State, Tables, emit_layer, new_state
from corepool.compiler.dynamic.linker import place_of, tables_of
from corepool.compiler.model import ModelPackage
from corepool.compiler.static.latency import COLUMNS, decode, layer_cycles, machine
from corepool.compiler.tables import MAX_CORES
from corepool.config import HardwareConfig

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint64]

INSTRUCTION_COST = 6  # cycles that an instruction must save: streams have to be linked and sent to the card
ROUNDS = 2  # over all layers; later ones change little


def layer_times(package: ModelPackage, cores: int, config: HardwareConfig) -> list[int]:
    """Predicted cycle at which each layer ends (all cores have arrived at its SYNC, or at the END)."""
    linked = link(package, range(cores), config)
    fields = np.zeros((len(linked.instructions), COLUMNS), np.int64)
    decode(linked.instructions, 0, len(fields), fields)
    banks = np.array([config.bank_of(core) for core in range(cores)], np.int64)
    fetch = config.fetch_burst_bytes // config.ddr.line_bytes * int(machine(config)[1]) // 16
    position, now, ends = (
        linked.bounds[:-1].copy(),
        fetch + config.ddr.read_latency,
        [],
    )  # the first instructions arrive
    nothing, foreign, rings = (
        np.zeros(cores, np.int64),
        np.zeros(cores, np.int64),
        np.zeros((4, 64), np.int64),
    )
    for _ in range(len(package.layers)):
        ends.append(now + layer_cycles(fields, position, banks, nothing, foreign, rings, machine(config)))
        now = ends[-1] + config.sync_cycles
    return ends


def predict(package: ModelPackage, cores: int, config: HardwareConfig) -> int:
    """Predicted cycles of one inference on the device's first ``cores`` cores; 0 if the device has fewer."""
    return layer_times(package, cores, config)[-1] if cores <= config.cores else 0


def choose(package: ModelPackage, config: HardwareConfig) -> Int32Array:
    """The tiling of each layer for each number of cores, [layers, 16], starting from the package's own choice."""
    choice = package.choice.copy()
    first, producers = _producers(package)
    tables = tables_of(package)._replace(choice=choice)
    size = int(package.stream_bound.max())
    for cores in range(1, min(MAX_CORES, config.cores) + 1):
        where = place_of(range(cores), config)
        scratch = (
            new_state(len(package.consumers), config.banks),
            np.zeros((size, 4), np.uint64),
            np.zeros((size, COLUMNS), np.int64),
            np.zeros(len(package.ifps), np.int64),
            np.zeros((len(package.layers), cores + 1), np.int64),
            np.zeros((len(package.layers), 2, config.banks, 4), np.int64),
            np.zeros((2, cores), np.int64),
            np.zeros(cores, np.int64),
            np.zeros((4, 64), np.int64),
            np.zeros(len(package.layers), np.int64),
        )
        _improve(tables, where, first, producers, machine(config), ROUNDS, *scratch)
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
    layer: int, t: Tables, where: Place, m: IntArray, state: State, out: Words, fields: IntArray, dealt: IntArray,
    boxes: IntArray, places: IntArray, foreign: IntArray, rings: IntArray,
) -> int:  # fmt: skip
    """Predicted cycles of one layer as it is dealt, and what its instructions count for."""
    layers, ifps, steps, code, consumers = t.layers, t.ifps, t.steps, t.code, t.consumers
    memory, moves, spans, parts, reach = state.memory, state.moves, state.spans, state.parts, state.reach
    bank_of, halves = where.bank_of, where.halves
    at = 0
    for core in range(len(bank_of)):
        memory[0], memory[1], memory[2], memory[3] = 1, 1, -1, 0
        places[0, core], places[1, core] = at, 0
        if dealt[layer, core + 1] > dealt[layer, core]:  # the first weights were fetched before the SYNC
            s = ifps[dealt[layer, core], FIRST_STEP]
            memory[2], memory[3] = steps[s, 6], 1
            first = steps[s, 0]
            decode_lines = 0
            for i in range(first, first + steps[s, 1]):
                decode_lines += np.int64((code[i, 1] >> np.uint64(16)) & np.uint64(0xFFFF)) * m[7] // m[0] + 1
            places[1, core] = decode_lines // 2  # about half of them in the shadow of the layer before
        at, _ = emit_layer(
            layer, core, layers, ifps, steps, code, consumers, bank_of, halves, where.result_words, where.word_bytes,
            dealt, boxes, memory, moves, spans, parts, reach, out, at,
        )  # fmt: skip
        out[at, 0] = np.uint64(9)
        at += 1
    decode(out, 0, at, fields)
    return layer_cycles(fields, places[0], bank_of, places[1], foreign, rings, m) + INSTRUCTION_COST * at


@hot
def _improve(
    t: Tables, where: Place, first: IntArray, producers: IntArray, m: IntArray, rounds: int, state: State, out: Words,
    fields: IntArray, latency: IntArray, dealt: IntArray, boxes: IntArray, places: IntArray, foreign: IntArray,
    rings: IntArray, costs: IntArray,
) -> None:  # fmt: skip
    """Try every tiling of every layer, keep what makes the layer and those that it reads from faster together."""
    layers, tilings, ifps, bank_of = t.layers, t.tilings, t.ifps, where.bank_of
    column = len(bank_of) - 1
    for layer in range(len(layers)):
        deal_layer(layer, t.choice[layer, column], layers, tilings, ifps, bank_of, latency, dealt, boxes)
    for layer in range(len(layers)):
        costs[layer] = _cost(layer, t, where, m, state, out, fields, dealt, boxes, places, foreign, rings)
    for _ in range(rounds):
        changed = False
        for layer in range(len(layers)):
            best = t.choice[layer, column]
            lowest = costs[layer]
            for i in range(first[layer], first[layer + 1]):
                lowest += costs[producers[i]]
            for candidate in range(layers[layer, 1]):
                if candidate == t.choice[layer, column]:
                    continue
                deal_layer(layer, candidate, layers, tilings, ifps, bank_of, latency, dealt, boxes)
                total = _cost(layer, t, where, m, state, out, fields, dealt, boxes, places, foreign, rings)
                for i in range(first[layer], first[layer + 1]):
                    if total >= lowest:
                        break
                    total += _cost(producers[i], t, where, m, state, out, fields, dealt, boxes, places, foreign, rings)
                if total < lowest:
                    best, lowest = candidate, total
            deal_layer(layer, best, layers, tilings, ifps, bank_of, latency, dealt, boxes)
            if best != t.choice[layer, column]:
                changed = True
                t.choice[layer, column] = best
                costs[layer] = _cost(layer, t, where, m, state, out, fields, dealt, boxes, places, foreign, rings)
                for i in range(first[layer], first[layer + 1]):
                    p = producers[i]
                    costs[p] = _cost(p, t, where, m, state, out, fields, dealt, boxes, places, foreign, rings)
        if not changed:
            return
