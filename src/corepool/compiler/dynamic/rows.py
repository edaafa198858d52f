"""Rows of tables with named columns, as compiled code reads and writes them.

It must not know what the columns mean (``compiler.tables`` does for those of a package) or who uses them. Rows of fixed
layout cost compiled code one multiplication by a constant, where columns of a plain array take their strides along.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from corepool.compiler.tables import (
    CONSUMER_COLUMNS,
    IFP_COLUMNS,
    LAYER_COLUMNS,
    STEP_COLUMNS,
    TILING_COLUMNS,
)

Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.void]

# What a core's stream carries from layer to layer. Positions are those of instructions in the output, -1 for none. The
# weight memory, the parameter memory and the table slots are rings; a *group* is what the loads of one step put there.
_STREAM_COLUMNS = (
    "feature_buffer", "other_use",  # the feature buffer in use, and who used the other one last
    "compute1", "compute2", "waited", "save1", "save2",  # the last ones, and the latest one that a load has waited for
    "slot", "slots",  # the result buffer in use, and of how many
    "tail", "next",  # the oldest group, and the number of the next one
    "used",  # words that groups take up (lanes)
    "pending",  # the first group that may have been fetched ahead for later layers
    "ahead", "fully",  # layers of which some or all weights have been fetched
)  # fmt: skip

# What the packages of one core of one layer have in common: their steps, the first instruction, how many groups of
# weights can be fetched ahead and whether these are all, the latency of the last TAIL packages, the most instructions
# that they can become, and the regions of their results, inputs and operands.
_RUN_COLUMNS = (
    "first_step", "behind_step", "code", "leading", "whole", "tail", "room",
    "row", "row_end", "block", "block_end", "in_row", "in_row_end", "in_block", "in_block_end",
    "operand_row", "operand_row_end", "operand_block", "operand_block_end", "unused",
)  # fmt: skip
TAIL = 4
FEW_WORDS = 64  # weight words of a package so small that those of a whole layer are fetched ahead
GROUPS = 16  # of a core, a ring
UNUSED = 1 << 40  # ``use`` of a group that no instruction has read yet

# Words of the weight memory, of the parameter memory and tables, side by side in one number: so one addition or
# comparison does for all three. The highest bit of each lane stays free.
LANE = 21
LANE_MASK = (1 << LANE - 1) - 1
LANE_GUARD = sum(1 << LANE * (i + 1) - 1 for i in range(3))


def _rows(columns: tuple[str, ...], kind: type) -> np.dtype[np.void]:
    return np.dtype([(name, kind) for name in columns])


STEP, IFP, LAYER = _rows(STEP_COLUMNS, np.int32), _rows(IFP_COLUMNS, np.int32), _rows(LAYER_COLUMNS, np.int32)
TILING, CONSUMER = _rows(TILING_COLUMNS, np.int32), _rows(CONSUMER_COLUMNS, np.int32)
INSTRUCTION = _rows(("word0", "word1", "word2", "word3"), np.uint64)
RUN = _rows(_RUN_COLUMNS, np.int32)
STREAM = _rows(_STREAM_COLUMNS, np.int64)
# Where a group begins and how much it takes in the three rings (lanes), the last compute instruction that reads it, and
# whose weights they are.
GROUP = np.dtype([("places", np.int64), ("sizes", np.int64), ("use", np.int64), ("layer", np.int32), ("key", np.int32)])
# What emission needs to know of a step, in half a cache line: its first instruction, what its group takes (lanes), its
# keys and counts, and whether it is the last step of its package.
BRIEF = np.dtype(
    [("sizes", np.int64), ("code", np.int32), ("weight_key", np.int32), ("feature_key", np.int32)]
    + [
        (name, np.uint16)
        for name in ("weight_loads", "feature_loads", "operand_loads", "computes", "saves", "last")
    ]
)  # fmt: skip
MOST_COUNT = (1 << 16) - 1  # of a kind of instruction in a step
BOX = _rows(("row", "row_end", "block", "block_end"), np.int64)
PART = _rows(("row", "row_end", "mask"), np.int64)
LAST_SAVED = 3  # as a mask
MOST_PARTS = 3  # in which a result is saved
BANKS = 8  # at most; regions of so many are looked at together


class Tables(NamedTuple):
    """The tables of a package, one row a record."""

    layers: Rows  # LAYER
    choice: Int32Array  # [layers, 16]
    tilings: Rows  # TILING
    ifps: Rows  # IFP
    steps: Rows  # STEP
    code: Rows  # INSTRUCTION
    consumers: Rows  # CONSUMER
    room: Int32Array  # [ifps + 1]: at least as many instructions as the packages before each one can have
    briefs: Rows  # BRIEF [steps]
    results: Int32Array  # [ifps, 4]: rows and blocks of each package's result (row, end, block, end)


class Place(NamedTuple):
    """The cores that a model is linked for, and the sizes of their memories."""

    bank_of: IntArray  # [cores]
    rings: int  # weight words, parameter words, tables (lanes)
    feature_lines: int
    result_words: int
    word_bytes: int
    sync_cores: int


class State(NamedTuple):
    """How layers are dealt, and what is carried along while streams are written. The first three say what holds on any
    cores; nothing in the others counts from one link to the next."""

    dealt: IntArray  # [layers, cores + 1]: the first package of each core, and the end
    runs: Rows  # RUN [layers, cores]
    holds: IntArray  # [layers, cores + 1], see ``meet``
    latency: IntArray  # [packages of the largest tiling]: scratch
    boxes: Rows  # BOX [layers, 2, banks]: what a bank's cores read of a layer's input (0) and operand (1)
    readers: IntArray  # [layers, 2], see ``readers``
    reach: Int32Array  # [consumers + 1, 4, BANKS], see ``readers``
    spans: IntArray  # [banks, 2]: scratch
    parts: Rows  # PART [MOST_PARTS + 1]: scratch
    known: IntArray  # [4]: the package (layer, banks, rows) that ``parts`` is of, and their number
    saved: IntArray  # [cores, LAST_SAVED + 1]: saves of the latest packages, by the last bits of their numbers
    streams: Rows  # STREAM [cores]
    groups: Rows  # GROUP [cores, GROUPS]


def new_state(layers: int, cores: int, consumers: int, banks: int, largest_tiling: int) -> State:
    """Room for linking a model with so many layers and consumers for so many cores of so many banks."""
    empty: Any = np.empty
    return State(
        dealt=np.zeros((layers, cores + 1), np.int64),
        runs=empty((layers, cores), RUN),
        holds=empty((layers, cores + 1), np.int64),
        latency=empty(largest_tiling, np.int64),
        boxes=empty((layers, 2, banks), BOX),
        readers=empty((layers, 2), np.int64),
        reach=empty((consumers + 1, 4, BANKS), np.int32),
        spans=empty((banks, 2), np.int64),
        parts=empty(MOST_PARTS + 1, PART),
        known=empty(4, np.int64),
        saved=empty((cores, LAST_SAVED + 1), np.int64),
        streams=empty(cores, STREAM),
        groups=empty((cores, GROUPS), GROUP),
    )
