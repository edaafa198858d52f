"""What dynamic compilation costs on this machine, in milliseconds.

It must not know what the figures are compared with.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

import numpy as np

from corepool.compiler.dynamic import link
from corepool.compiler.model import ModelPackage
from corepool.config import HardwareConfig

WARM_UP = 3


@dataclass(frozen=True)
class LinkTimes:
    """Dynamic compilation for one number of cores, warm; milliseconds. ``cpu``: without waiting for the processor."""

    p50_ms: float
    p99_ms: float
    cpu_p50_ms: float
    cpu_p99_ms: float
    max_ms: float
    instructions: int
    stream_bytes: int


def link_times(package: ModelPackage, cores: int, config: HardwareConfig, repeat: int) -> LinkTimes:
    """Link ``repeat`` times for the first ``cores`` cores."""
    for _ in range(WARM_UP):
        linked = link(package, range(cores), config)
    times, worked = [], []
    gc.collect()
    for _ in range(repeat):
        begin, cpu = time.perf_counter_ns(), time.thread_time_ns()
        linked = link(package, range(cores), config)
        worked.append((time.thread_time_ns() - cpu) / 1e6)
        times.append((time.perf_counter_ns() - begin) / 1e6)
    p50, p99 = (float(np.quantile(times, share, method="inverted_cdf")) for share in (0.5, 0.99))
    cpu_p50, cpu_p99 = (float(np.quantile(worked, share, method="inverted_cdf")) for share in (0.5, 0.99))
    return LinkTimes(p50, p99, cpu_p50, cpu_p99, max(times), linked.instruction_count, linked.stream_bytes)
