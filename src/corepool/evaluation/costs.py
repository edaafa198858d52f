"""What compiling costs on this machine: seconds of the static compiler, milliseconds of the dynamic one.

It must not know what the figures are compared with.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

import numpy as np

from corepool.compiler.dynamic import link
from corepool.compiler.model import ModelPackage
from corepool.compiler.static import compile_model
from corepool.config import HardwareConfig
from corepool.evaluation.lab import Lab

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


@dataclass(frozen=True)
class StaticCost:
    """Static compilation of an ONNX file, warm: reading and compiling in seconds, the package in bytes."""

    import_s: float
    compile_s: float
    package_bytes: int
    weight_bytes: int
    layers: int
    code: int

    @property
    def seconds(self) -> float:
        return self.import_s + self.compile_s


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


_static: dict[tuple[int, str], StaticCost] = {}


def static_cost(lab: Lab, name: str) -> StaticCost:
    """Compile a network of the lab from its file, once; the compiler's own code is loaded before the clock starts."""
    key = (id(lab), name)
    if key not in _static:
        lab.package(lab.networks[-1])  # loads what is compiled at first use
        made = compile_model(lab.onnx(name), lab.config)
        path = lab.folder / f"{name}.cpk"
        made.save(path)
        stages, package = made.report["stages_s"], made.package
        lab.adopt(name, package)
        weights = int(package.weights.nbytes)
        size = path.stat().st_size
        path.unlink()
        _static[key] = StaticCost(
            stages["import"], stages["compile"], size, weights, len(package.layers), len(package.code)
        )
    return _static[key]


def static_seconds(lab: Lab, name: str) -> float:
    """Seconds of reading and compiling a network."""
    return static_cost(lab, name).seconds
