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
    """A user of the device: a session and the inputs of every frame. ``frame_cycles`` is how long a frame will take, as
    far as is known; it only decides whom to wait for first."""

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


def serve(tenants: Sequence[Tenant], horizon_cycles: int, seen: Callable[[Frame], None] | None = None) -> list[Frame]:
    """Let all tenants run frames back to back for about ``horizon_cycles`` of device time, and at least one each.

    A tenant begins another frame only if it will end within the horizon. ``seen`` is told of each frame as it ends.
    Frames come in the order in which they end. Raises what ``Session.run`` raises.
    """
    frames: list[Frame] = []
    for tenant in tenants:
        tenant.session.start(tenant.inputs)
    begin = min((tenant.session.device.cycle for tenant in tenants), default=0)
    due = {index: begin + tenant.frame_cycles for index, tenant in enumerate(tenants)}
    slack = horizon_cycles // 50  # leases start at slot boundaries, so frames drift by a few cycles
    while due:
        index = min(due, key=lambda each: (due[each], each))
        tenant = tenants[index]
        result = tenant.session.finish()
        done = result.completion
        tenant.frame_cycles = done.cycles
        frame = Frame(tenant.name, tenant.session.cores, done.start_cycle, done.end_cycle, result)
        frames.append(frame)
        if seen is not None:
            seen(frame)
        now = tenant.session.device.cycle
        if now + done.cycles <= begin + horizon_cycles + slack:
            tenant.session.start(tenant.inputs)
            due[index] = now + done.cycles
        else:
            del due[index]
    return sorted(frames, key=lambda frame: (frame.end_cycle, frame.tenant))


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
