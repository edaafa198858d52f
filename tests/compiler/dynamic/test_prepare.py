"""What is prepared for a package: it agrees with the package's tables, and no linking changes it.

It must not know instructions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.compiler.dynamic import link
from corepool.compiler.dynamic.prepare import dealing_of, tables_of
from corepool.compiler.dynamic.rows import LANE, LANE_MASK, TAIL
from corepool.compiler.model import ModelPackage
from corepool.compiler.static.compile import compile_graph
from corepool.compiler.tables import IDLE, IFP_COLUMNS, MAX_CORES, STEP_COLUMNS
from corepool.config import preset
from corepool.errors import PackageError
from support.graphs import random_graph

CONFIG = preset("u200")
REGIONS = {"": "out_", "in_": "in_", "operand_": "operand_"}  # names in a run, and in a package's table


def compiled(seed: int, layers: int = 3) -> ModelPackage:
    return compile_graph(random_graph(np.random.default_rng(seed), layers), CONFIG).package


def columns(package: ModelPackage, begin: int, end: int, name: str) -> Any:
    return package.ifps[begin:end, IFP_COLUMNS.index(name)]


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(1, MAX_CORES))
def test_each_layer_is_dealt_as_chosen_and_what_a_core_reads_and_writes_is_what_its_packages_do(
    seed: int, cores: int
) -> None:
    package = compiled(seed)
    dealing = dealing_of(package, cores)
    for layer, (bounds, runs) in enumerate(zip(dealing.dealt, dealing.runs, strict=True)):
        tiling = package.layers[layer, 0] + package.choice[layer, cores - 1] % IDLE
        first, count = package.tilings[tiling]
        assert (bounds[0], bounds[-1]) == (first, first + count)
        for core, run in enumerate(runs):
            begin, end = bounds[core : core + 2]
            assert run["room"] == package.room[end] - package.room[begin]
            assert run["tail"] == columns(package, max(begin, end - TAIL), end, "latency").sum()
            if begin == end:
                assert run["first_step"] == run["behind_step"]
                continue
            steps = columns(package, begin, end, "first_step") + columns(package, begin, end, "steps")
            assert (run["first_step"], run["behind_step"]) == (package.ifps[begin, 0], steps[-1])
            for ours, theirs in REGIONS.items():
                for name in ("row", "block"):
                    assert run[ours + name] == columns(package, begin, end, theirs + name).min()
                    highest = columns(package, begin, end, f"{theirs}{name}_end").max()
                    assert run[f"{ours}{name}_end"] == max(highest, 0)


def test_briefs_and_results_say_what_the_tables_do() -> None:
    package = compiled(3, 4)
    tables = tables_of(package)
    steps = {name: package.steps[:, i].astype(np.int64) for i, name in enumerate(STEP_COLUMNS)}
    for name in ("weight_loads", "feature_loads", "operand_loads", "computes", "saves", "weight_key", "feature_key"):
        assert np.array_equal(tables.briefs[name], steps[name])
    assert np.array_equal(tables.briefs["code"], steps["first_instruction"])
    for lane, name in enumerate(("weight_words", "parameter_words", "tables")):
        assert np.array_equal(tables.briefs["sizes"] >> LANE * lane & LANE_MASK, steps[name])
    last = np.zeros(len(package.steps), bool)
    for row in package.ifps:
        last[row[0] + row[1] - 1] = True
    assert np.array_equal(tables.briefs["last"], last)
    for i, name in enumerate(("out_row", "out_row_end", "out_block", "out_block_end")):
        assert np.array_equal(tables.results[:, i], package.ifps[:, IFP_COLUMNS.index(name)])


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("steps", STEP_COLUMNS.index("computes"), 1 << 16, "points outside|more instructions than a step can have"),
        ("ifps", IFP_COLUMNS.index("steps"), 0, "steps do not follow each other"),
        ("ifps", IFP_COLUMNS.index("first_step"), 0, "steps do not follow each other"),
    ],
)
def test_packages_that_the_linker_would_misread_are_refused(table: str, column: int, value: int, message: str) -> None:
    package = compiled(3)
    package.check("here")
    changed = getattr(package, table).copy()
    changed[-1, column] = value
    with pytest.raises(PackageError, match=message):
        replace(package, **{table: changed}).check("here")


def test_linking_changes_nothing_of_what_is_prepared() -> None:
    package = compiled(5, 5)
    before = [[array.copy() for array in dealing_of(package, n)] for n in range(1, MAX_CORES + 1)]
    for first_layer in (0, len(package.layers) - 1, 1, 0):
        for n in range(1, MAX_CORES + 1):
            link(package, list(range(n))[::-1], CONFIG, first_layer)
    for n, kept in enumerate(before, 1):
        for array, then in zip(dealing_of(package, n), kept, strict=True):
            assert np.array_equal(array, then)


@pytest.mark.parametrize("first_layer", [0, 1, 2])
def test_what_was_linked_before_and_where_does_not_show(first_layer: int) -> None:
    """A package that has been linked for other cores, banks and layers gives the streams of one that has not."""
    used, fresh = compiled(7, 4), compiled(7, 4)
    for cores in ([0], [0, 4, 8], [15, 3, 7], range(16)):
        for layer in (0, 2, 1):
            link(used, cores, CONFIG, layer)
    ours, theirs = (link(package, [2, 5, 12], CONFIG, first_layer) for package in (used, fresh))
    assert np.array_equal(ours.instructions, theirs.instructions)
    assert np.array_equal(ours.layer_starts, theirs.layer_starts)
    assert np.array_equal(ours.dealt, theirs.dealt)
