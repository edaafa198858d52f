"""How long streams take on an idle device, by the device's own clock.

It must not know packages or tilings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.device import timing
from corepool.device.clockwork import Clockwork, CoreProgram
from corepool.device.decode import decode_stream
from corepool.isa.table import INSTRUCTION_BYTES

PAGE = 4096  # streams begin at multiples of it


def run_time(streams: Sequence[npt.NDArray[np.uint8]], offset: int, config: HardwareConfig) -> int:
    """Cycles of one run of a stream for each of the first cores, alone; the streams lie behind ``offset`` bytes of the
    window. What faults takes for ever."""
    programs, begin = [], 0
    timings = decode_stream(config, np.concatenate(streams)).timing  # all at once, since each call takes its time
    for core, stream in enumerate(streams):
        count = len(stream) // INSTRUCTION_BYTES
        programs.append(CoreProgram(core, timings[begin : begin + count], offset))
        begin += count
        offset += -(-len(stream) // PAGE) * PAGE
    clock = Clockwork(config, replay=False)
    clock.start(0, programs, offset)
    clock.advance(0, None)
    lease = clock.lease(0)
    if lease[timing.STATE] != timing.DONE:
        return timing.NEVER
    return int(lease[timing.END] - lease[timing.START])
