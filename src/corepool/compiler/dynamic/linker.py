"""The dynamic compiler: a model package and some cores become one instruction stream for each core.

It must not know ONNX or the static compiler. It deals packages, drops loads that neighbours share, assigns buffers and
tokens, chooses the banks that each result is written to, and puts SYNCs between layers: in well under a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.dynamic.deal import deal_layer
from corepool.compiler.dynamic.emit import Place, State, Tables, emit_core, new_state
from corepool.compiler.dynamic.meet import plan_syncs
from corepool.compiler.model import ModelPackage
from corepool.compiler.tables import MAX_CORES
from corepool.config import HardwareConfig
from corepool.errors import LinkError
from corepool.isa.table import INSTRUCTION_BYTES

Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Linked:
    """One stream for each core, in the order of ``cores``; ``instructions`` [n, 4] holds them all one after the other.

    ``layer_starts`` [cores, layers - first_layer]: number of the first instruction of each layer within its core's
    stream.
    ``dealt`` [layers, cores + 1]: which packages of the layer's tiling each core got.
    """

    cores: tuple[int, ...]
    instructions: Words
    bounds: IntArray
    layer_starts: Int32Array
    dealt: IntArray

    @property
    def streams(self) -> list[npt.NDArray[np.uint8]]:
        """Bytes of each core's stream (views)."""
        raw = self.instructions.view(np.uint8).reshape(-1)
        cuts = self.bounds * INSTRUCTION_BYTES
        return [raw[cuts[i] : cuts[i + 1]] for i in range(len(self.cores))]

    @property
    def instruction_count(self) -> int:
        return int(self.bounds[-1])

    @property
    def stream_bytes(self) -> int:
        return self.instruction_count * INSTRUCTION_BYTES


@hot
def _link(
    t: Tables, where: Place, state: State, first_layer: int, out: Words, bounds: IntArray, starts: Int32Array,
    latency: IntArray, dealt: IntArray, boxes: IntArray, holds: IntArray,
) -> None:  # fmt: skip
    cores = len(where.bank_of)
    for layer in range(first_layer, len(t.layers)):
        deal_layer(layer, t.choice[layer, cores - 1], t.layers, t.tilings, t.ifps, where.bank_of, latency, dealt, boxes)
    plan_syncs(first_layer, len(t.layers), t.layers, t.ifps, t.consumers, dealt, holds)
    at = 0
    for core in range(cores):
        bounds[core] = at
        at = emit_core(core, first_layer, len(t.layers), t, where, state, dealt, boxes, holds, out, at, starts)
    bounds[cores] = at


def tables_of(package: ModelPackage) -> Tables:
    """The package's tables in the form that compiled code takes."""
    p = package
    return Tables(p.layers, p.choice, p.tilings, p.ifps, p.steps, p.code, p.consumers)


def place_of(cores: Sequence[int], config: HardwareConfig) -> Place:
    """The cores' banks and memories in the form that compiled code takes."""
    sizes = [config.weight_words, config.parameter_words, config.lut_slots, config.feature_lines]
    banks = np.array([config.bank_of(core) for core in cores], np.int64)
    mask = sum(1 << core for core in cores)
    return Place(banks, np.array(sizes, np.int64), config.result_words, config.word_bytes, mask)


def link(package: ModelPackage, cores: Sequence[int], config: HardwareConfig, first_layer: int = 0) -> Linked:
    """Deal a model's packages to ``cores`` (numbers of the device's cores) and make one stream for each.

    ``first_layer`` begins in the middle, for a lease that stopped after layer ``first_layer - 1``. Raises LinkError for
    a number of cores outside 1 .. 16, repeated or unknown cores, or a layer that does not exist.
    """
    count = len(cores)
    if not 1 <= count <= MAX_CORES:
        raise LinkError(f"a model runs on 1 to {MAX_CORES} cores, not {count}")
    if len(set(cores)) != count or min(cores) < 0 or max(cores) >= config.cores:
        raise LinkError(f"cores {list(cores)} are not {count} different cores of 0..{config.cores - 1}")
    layers = package.layers
    if not 0 <= first_layer < len(layers):
        raise LinkError(f"layer {first_layer} is not one of 0..{len(layers) - 1}")
    left = len(layers) - first_layer
    out = np.empty((int(package.stream_bound[count - 1]), 4), np.uint64)
    bounds, starts = np.empty(count + 1, np.int64), np.empty((count, left), np.int32)
    dealt, boxes = np.zeros((len(layers), count + 1), np.int64), np.empty((len(layers), 2, config.banks, 4), np.int64)
    where = place_of(cores, config)
    state, latency = new_state(len(package.consumers), config.banks), np.empty(len(package.ifps), np.int64)
    holds = np.empty((len(layers), count + 1), np.int64)
    _link(tables_of(package), where, state, first_layer, out, bounds, starts, latency, dealt, boxes, holds)
    return Linked(tuple(cores), out[: bounds[-1]], bounds, starts, dealt)
