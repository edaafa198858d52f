"""Several tenants on one device at the same time, each running one frame after the other.

It must not know where tenants come from or how results are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.runtime.session import Result, Session


@dataclass
class Tenant:
    """A user of the device: a session and the inputs of every frame. ``frame_cycles`` is about how long a frame takes;
    the first frame of each tenant is looked for in steps of a small part of it."""

    name: str
    session: Session
    inputs: Mapping[str, npt.NDArray[Any]]
    frame_cycles: int


@dataclass(frozen=True)
class Frame:
    """One inference of a tenant: on which cores, from when to when in device cycles, and what came out."""

    tenant: str
    cores: tuple[int, ...]
    start_cycle: int
    end_cycle: int
    result: Result


def serve(
    tenants: Sequence[Tenant],
    *,
    frames: int | None = None,
    horizon_cycles: int | None = None,
    seen: Callable[[Frame], None] | None = None,
) -> list[Frame]:
    """Let all tenants run frames back to back at the same time: ``frames`` each, or as many as end within
    ``horizon_cycles`` of device time (at least one each).

    ``seen`` is told of each frame as it ends. Frames come in the order in which they end. Raises what ``Session.run``
    raises, and ValueError unless exactly one of the two limits is given.
    """
    if (frames is None) == (horizon_cycles is None):
        raise ValueError("serve needs either a number of frames or a horizon")
    made: list[Frame] = []
    pending: dict[int, int | None] = {}  # tenant: when its frame will end, if that is known
    for index, tenant in enumerate(tenants):
        tenant.session.start(tenant.inputs)
        pending[index] = None
    begin = tenants[0].session.device.cycle if tenants else 0
    counts = [0] * len(tenants)
    while pending:
        _advance(tenants, pending)
        for index in [each for each in pending if not tenants[each].session.running]:
            tenant = tenants[index]
            result = tenant.session.finish()
            done = result.completion
            frame = Frame(tenant.name, tenant.session.cores, done.start_cycle, done.end_cycle, result)
            made.append(frame)
            counts[index] += 1
            if seen is not None:
                seen(frame)
            # Leases start at slot boundaries, so frames drift by a few cycles: a frame may end a little late.
            late = done.end_cycle + done.cycles > begin + (horizon_cycles or 0) * 1.02
            if counts[index] == frames if frames is not None else late:
                del pending[index]
            else:
                pending[index] = tenant.session.start(tenant.inputs) + done.cycles
    return sorted(made, key=lambda frame: (frame.end_cycle, frame.tenant))


def _advance(tenants: Sequence[Tenant], pending: Mapping[int, int | None]) -> None:
    """Let device time pass until a frame ends, or until one may have ended whose length is not known yet."""
    known = [(due, index) for index, due in pending.items() if due is not None]
    unknown = [index for index, due in pending.items() if due is None]
    now = next(iter(tenants)).session.device.cycle
    if not unknown:
        due, index = min(known)
        tenants[index].session.advance(max(due - now, 1))
        return
    step = max(min(tenants[index].frame_cycles for index in unknown) // 256, 1)
    if known:
        step = max(min(step, min(known)[0] - now), 1)
    tenants[unknown[0]].session.advance(step)


def shares(cores: int) -> tuple[list[range], list[range]]:
    """Two ways to deal a device's cores: evenly, and unevenly. 16 cores: 4/4/4/4 and 8/4/2/2; below 8: two tenants.

    Raises ValueError for fewer than 4 cores or a number that cannot be halved often enough.
    """
    if cores >= 8 and cores % 8 == 0:
        return _ranges([cores // 4] * 4), _ranges([cores // 2, cores // 4, cores // 8, cores // 8])
    if cores >= 4 and cores % 4 == 0:
        return _ranges([cores // 2] * 2), _ranges([3 * cores // 4, cores // 4])
    raise ValueError(f"{cores} cores cannot be dealt to several tenants in two ways")


def _ranges(sizes: Sequence[int]) -> list[range]:
    starts = np.cumsum([0, *sizes]).tolist()
    return [range(first, last) for first, last in pairwise(starts)]
