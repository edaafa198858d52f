"""What is prepared once for a package: its tables as compiled code takes them, and how it is dealt to 1 .. 16 cores.

It must not know which cores of a device a model is for. Dealing, where cores meet and what each core reads follow from
the package and the number of cores alone; banks, buffers, tokens and instructions are the linker's, each time anew. It
takes one to two milliseconds, and 80 bytes for each layer and core of each number of cores; no instruction is kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot
from corepool.compiler.dynamic.deal import cut_layer, describe_layer
from corepool.compiler.dynamic.meet import plan_syncs
from corepool.compiler.dynamic.rows import (
    CONSUMER,
    IFP,
    INSTRUCTION,
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
from corepool.compiler.tables import MAX_CORES


class Dealing(NamedTuple):
    """A package dealt to so many cores, see ``rows.State``. Not to be changed."""

    dealt: IntArray
    runs: Rows
    holds: IntArray


def tables_of(package: ModelPackage) -> Tables:
    """The package's tables in the form that compiled code takes."""
    if "tables" not in package.derived:
        p = package
        package.derived["tables"] = Tables(
            _rows_of(p.layers, LAYER), p.choice, _rows_of(p.tilings, TILING), _rows_of(p.ifps, IFP),
            _rows_of(p.steps, STEP), _rows_of(p.code, INSTRUCTION), _rows_of(p.consumers, CONSUMER), p.room,
        )  # fmt: skip
    tables: Tables = package.derived["tables"]
    return tables


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
