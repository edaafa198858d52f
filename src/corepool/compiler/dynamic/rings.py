"""The rings of weights, parameters and tables on chip: room for what a step loads, and weights fetched ahead of SYNCs.

It must not know features or results.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from corepool.compiler.dynamic.compiled import inlined, one_by_one
from corepool.compiler.dynamic.patch import RAISE_PREV, WAIT_NEXT, copy_group
from corepool.compiler.dynamic.rows import GROUPS, LANE, LANE_GUARD, LANE_MASK, UNUSED, Rows

LAST_GROUP = GROUPS - 1  # as a mask: the place of a group's number in the ring of groups
WORD_CYCLES = 6  # about: a weight word from DDR, when three of a core's four slots move data
FURTHEST = 3  # layers whose weights are fetched ahead


@inlined
def group_at(groups: Rows, number: int) -> Any:
    return groups[np.uint64(number & LAST_GROUP)]


@inlined
def counts_of(step: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Where a step's instructions begin, and how many there are of each kind."""
    return (
        np.int64(step.code), np.int64(step.weight_loads), np.int64(step.feature_loads), np.int64(step.operand_loads),
        np.int64(step.computes), np.int64(step.saves),
    )  # fmt: skip


@inlined
def take(stream: Any, groups: Rows, step: Any, rings: int, latest: int) -> int:
    """Take room for a step's group behind the newest one, giving up the oldest ones. Returns the position of the
    compute instruction that has to end before it is filled (-1: none), or UNUSED, and nothing is taken, if there is no
    room or it would be one behind ``latest``. ``rings``: the sizes of the three (lanes, see ``rows``).
    """
    tail, following, used = stream.tail, stream.next, stream.used + step.sizes
    room = rings + LANE_GUARD
    wait: Any = np.int64(-1)
    while tail < following and ((room - used) & LANE_GUARD != LANE_GUARD or following - tail == GROUPS):
        oldest = group_at(groups, tail)
        wait = max(wait, oldest.use)
        used -= oldest.sizes
        tail += 1
        one_by_one()
    if wait > latest or wait == UNUSED:
        return UNUSED
    last, new = group_at(groups, following - 1), group_at(groups, following)
    places = last.places + last.sizes
    over = (places + LANE_GUARD - rings) & LANE_GUARD  # of the rings whose end has been reached
    new.places = places - (rings & (over - (over >> LANE - 1)))
    new.sizes, new.use, new.key = step.sizes, UNUSED, step.weight_key
    stream.tail, stream.next, stream.used = tail, following + 1, used
    return wait


@inlined
def load_group(step: Any, layer: int, group: Any, code: Rows, out: Rows, at: int) -> None:
    """Write the loads of a step's group for which room has been taken."""
    group.layer = layer
    copy_group(code, np.int64(step.code), np.int64(step.weight_loads), out, at, group.places)


@inlined
def fetch_ahead(
    layer: int, core: int, behind_layer: int, briefs: Rows, code: Rows, runs: Rows, rings: int, stream: Any,
    groups: Rows, out: Rows, at: int,
) -> int:  # fmt: skip
    """Behind a layer: fetch the first weights of the next one ahead of its SYNC, and those of layers behind it as long
    as there is room, all weights before them are there, and the packages at the end of this layer take long enough.

    A step's weights raise no token of their own: its features come later, and loads are complete in order. Returns the
    place behind.
    """
    time = np.int64(runs[layer, core].tail)
    fully = max(stream.fully, layer)
    stream.ahead = max(stream.ahead, layer)
    following = layer + 1
    more = True
    while more and following < behind_layer and following <= layer + FURTHEST:
        run = runs[np.uint64(following), np.uint64(core)]
        s = np.int64(run.first_step)
        if s < run.behind_step and fully < following:
            if stream.ahead == following:  # only some of its weights are there
                break
            weight_key = np.int64(-1)
            latest = UNUSED if following == layer + 1 else stream.compute2
            more = run.whole == 1
            for _ in range(run.leading):
                step = briefs[np.uint64(s)]
                while step.weight_loads == 0 or step.weight_key == weight_key:
                    s += 1
                    step = briefs[np.uint64(s)]
                time -= (step.sizes & LANE_MASK) * WORD_CYCLES
                group = group_at(groups, stream.next)
                wait = np.int64(UNUSED)
                if following == layer + 1 or time >= 0:
                    wait = take(stream, groups, step, rings, latest)
                if wait == UNUSED:
                    more = False
                    break
                load_group(step, following, group, code, out, at)
                if wait > stream.waited:
                    out[np.uint64(at)].word0 |= WAIT_NEXT
                    out[np.uint64(wait)].word0 |= RAISE_PREV
                    stream.waited = wait
                at += int(step.weight_loads)
                weight_key = np.int64(step.weight_key)
                stream.ahead = following
        if more:
            fully = max(fully, following)
            stream.ahead = max(stream.ahead, following)
            following += 1
    stream.fully = fully
    return at
