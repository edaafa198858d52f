"""What is prepared once for a package: its tables as compiled code takes them, and how it is dealt to 1 .. 16 cores.

It must not know which cores of a device a model is for. Dealing, where cores meet and what each core reads follow from
the package and the number of cores alone; banks, buffers, tokens and instructions are the linker's, each time anew. It
takes some milliseconds, 48 bytes for each package of instructions, and 88 for each layer and core of each number of
cores; no instruction is kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.dynamic.deal import cut_layer, describe_layer
from corepool.compiler.dynamic.meet import plan_syncs
from corepool.compiler.dynamic.rows import (
    BRIEF,
    CONSUMER,
    IFP,
    INSTRUCTION,
    LANE,
    LAYER,
    STEP,
    TILING,
    IntArray,
    Rows,
    State,
    Tables,
    new_state,
)
from corepool.compiler.model import ModelPackage
from corepool.compiler.tables import IFP_COLUMNS, MAX_CORES


class Dealing(NamedTuple):
    """A package dealt to so many cores, see ``rows.State``. Not to be changed."""

    dealt: IntArray
    runs: Rows
    holds: IntArray


def tables_of(package: ModelPackage) -> Tables:
    """The package's tables in the form that compiled code takes."""
    if "tables" not in package.derived:
        p = package
        ifps, steps = _rows_of(p.ifps, IFP), _rows_of(p.steps, STEP)
        package.derived["tables"] = Tables(
            _rows_of(p.layers, LAYER), p.choice, _rows_of(p.tilings, TILING), ifps, steps,
            _rows_of(p.code, INSTRUCTION), _rows_of(p.consumers, CONSUMER), p.room, _briefs(ifps, steps),
            np.ascontiguousarray(p.ifps[:, _RESULT : _RESULT + 4]),
        )  # fmt: skip
    tables: Tables = package.derived["tables"]
    return tables


_RESULT = IFP_COLUMNS.index("out_row")


def _briefs(ifps: Rows, steps: Rows) -> Rows:
    """What emission needs to know of each step, see ``rows.BRIEF``."""
    briefs: Any = np.empty(len(steps), BRIEF)
    _brief_all(ifps, steps, briefs)
    return briefs


@hot
def _brief_all(ifps: Rows, steps: Rows, briefs: Rows) -> None:
    for s in range(len(steps)):
        step, brief = steps[s], briefs[s]
        brief.sizes = step.weight_words | step.parameter_words << LANE | step.tables << 2 * LANE
        brief.code, brief.weight_key, brief.feature_key = step.first_instruction, step.weight_key, step.feature_key
        brief.weight_loads, brief.feature_loads = step.weight_loads, step.feature_loads
        brief.operand_loads, brief.computes, brief.saves = step.operand_loads, step.computes, step.saves
        brief.last = 0
    for p in range(len(ifps)):
        briefs[ifps[p].first_step + ifps[p].steps - 1].last = 1


def _rows_of(table: npt.NDArray[Any], row: np.dtype[np.void]) -> Rows:
    """A table [n, columns] as n records."""
    return table.view(row).reshape(-1)


def dealing_of(package: ModelPackage, cores: int) -> Dealing:
    """The package dealt to 1 .. 16 cores; all of these are made when one is asked for first."""
    if "dealings" not in package.derived:
        package.derived["dealings"] = [_dealing(package, count) for count in range(1, MAX_CORES + 1)]
    dealings: list[Dealing] = package.derived["dealings"]
    return dealings[cores - 1]


def _dealing(package: ModelPackage, cores: int) -> Dealing:
    state = new_state(len(package.layers), cores, 0, 1, package.largest_tiling)
    _deal_all(tables_of(package), state)
    return Dealing(state.dealt, state.runs, state.holds)


@hot
def _deal_all(t: Tables, state: State) -> None:
    layers = len(t.layers)
    column = state.dealt.shape[1] - 2
    for layer in range(layers):
        cut_layer(layer, t.choice[layer, column], t, state)
        describe_layer(layer, t, state)
    plan_syncs(0, layers, t.layers, t.ifps, t.consumers, state.dealt, state.holds)
