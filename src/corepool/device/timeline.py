"""What a run looked like in time: per core its program and when each instruction started and ended.

It must not know how the times came about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from corepool.device.decode import Decoded


@dataclass(frozen=True)
class CoreTimeline:
    """One core in one run. ``started`` and ``ended`` are device cycles [n]; -1 in ``ended``: did not happen."""

    core: int
    program: Decoded
    started: npt.NDArray[np.int64]
    ended: npt.NDArray[np.int64]
