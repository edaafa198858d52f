"""The dynamic compiler: a model package and some cores become one instruction stream for each core.

It must not know ONNX or the static compiler. It deals packages, drops loads that neighbours share, assigns buffers and
tokens, chooses the banks that each result is written to, and puts SYNCs between layers: in well under a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.dynamic.deal import box_layer
from corepool.compiler.dynamic.emit import emit_streams
from corepool.compiler.dynamic.meet import plan_syncs
from corepool.compiler.dynamic.prepare import dealing_of, tables_of
from corepool.compiler.dynamic.rows import (
    INSTRUCTION,
    LANE,
    Int32Array,
    IntArray,
    Place,
    Rows,
    State,
    Tables,
    Words,
    new_state,
)
from corepool.compiler.model import ModelPackage
from corepool.compiler.tables import MAX_CORES
from corepool.config import HardwareConfig
from corepool.errors import LinkError
from corepool.isa.table import INSTRUCTION_BYTES


@dataclass(frozen=True)
class Linked:
    """One stream for each core, in the order of ``cores``: core c's instructions are ``words[places[c] : ends[c]]``,
    ``words`` being [room for all, 4].

    ``layer_starts`` [cores, layers - first_layer]: number of the first instruction of each layer within its core's
    stream.
    ``dealt`` [layers, cores + 1]: which packages of the layer's tiling each core got.
    """

    cores: tuple[int, ...]
    words: Words
    places: IntArray
    ends: IntArray
    layer_starts: Int32Array
    dealt: IntArray
    instruction_count: int

    @property
    def streams(self) -> list[npt.NDArray[np.uint8]]:
        """Bytes of each core's stream (views)."""
        raw = self.words.view(np.uint8).reshape(-1)
        cuts = zip(self.places.tolist(), self.ends.tolist(), strict=False)
        return [raw[begin * INSTRUCTION_BYTES : end * INSTRUCTION_BYTES] for begin, end in cuts]

    @property
    def instructions(self) -> Words:
        """All streams one after the other [n, 4] (a copy): core c's from ``bounds[c]`` to ``bounds[c + 1]``."""
        return np.concatenate([self.words[a:b] for a, b in zip(self.places, self.ends, strict=False)])

    @property
    def bounds(self) -> IntArray:
        """Where each stream begins in ``instructions``, and the end of the last one [cores + 1]."""
        return np.concatenate([[0], np.cumsum(self.ends - self.places[:-1])])

    @property
    def stream_bytes(self) -> int:
        return self.instruction_count * INSTRUCTION_BYTES


@hot
def _link(
    t: Tables, where: Place, state: State, first_layer: int, out: Rows, places: IntArray, ends: IntArray,
    starts: Int32Array,
) -> int:  # fmt: skip
    layers = len(t.layers)
    if first_layer > 0:
        plan_syncs(first_layer, layers, t.layers, t.ifps, t.consumers, state.dealt, state.holds)
    for layer in range(first_layer, layers):
        box_layer(layer, where.bank_of, state)
    return emit_streams(first_layer, layers, t, where, state, out, places, ends, starts)


@cache
def _machine(config: HardwareConfig) -> tuple[IntArray, int, int, int, int]:
    """The bank of every core, and the sizes of a core's memories as in ``Place``."""
    rings = config.weight_words | config.parameter_words << LANE | config.lut_slots << 2 * LANE
    banks = np.array([config.bank_of(core) for core in range(config.cores)], np.int64)
    return banks, rings, config.feature_lines, config.result_words, config.word_bytes


def place_of(cores: Sequence[int], config: HardwareConfig) -> Place:
    """The cores' banks and memories in the form that compiled code takes."""
    banks, rings, lines, words, width = _machine(config)
    mask = 0
    for core in cores:
        mask |= 1 << core
    return Place(banks[list(cores)], rings, lines, words, width, mask)


def state_of(package: ModelPackage, cores: int, config: HardwareConfig) -> State:
    """A state for linking the package for so many cores."""
    return new_state(len(package.layers), cores, len(package.consumers), config.banks, package.largest_tiling)


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
    layers = len(package.layers)
    if not 0 <= first_layer < layers:
        raise LinkError(f"layer {first_layer} is not one of 0..{layers - 1}")
    out = np.empty(int(package.stream_bound[count - 1]), INSTRUCTION)
    starts = np.empty((count, layers - first_layer), np.int32)
    places, ends = np.empty(count + 1, np.int64), np.empty(count, np.int64)
    # Threads that link at the same time each have a state of their own; it is kept for the next link.
    spare = package.derived.setdefault((count, config.banks, first_layer > 0), [])
    try:
        state = spare.pop()
    except IndexError:
        dealing = dealing_of(package, count)
        state = state_of(package, count, config)._replace(dealt=dealing.dealt, runs=dealing.runs)
        if first_layer == 0:
            state = state._replace(holds=dealing.holds)
    total = _link(tables_of(package), place_of(cores, config), state, first_layer, out, places, ends, starts)
    dealt = state.dealt.copy()
    dealt[:first_layer] = 0
    spare.append(state)
    return Linked(tuple(cores), out.view(np.uint64).reshape(-1, 4), places, ends, starts, dealt, total)
