"""`corepool relink`: measures how long it takes to give a model another number of cores.

It must not know how linking works.
"""

from __future__ import annotations

import gc
import math
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corepool.cli import output
from corepool.cli.common import JsonOption, PackageArgument, naming, open_model
from corepool.cli.signals import safe_point
from corepool.errors import InputError

if TYPE_CHECKING:
    from corepool.compiler.model import ModelPackage
    from corepool.config import HardwareConfig

NAME = "relink"

MAX_REPEATS = 1_000_000
WARM_UP = 3  # calls before the clock starts: loads compiled code, fills caches


def command(
    model: PackageArgument,
    repeat: Annotated[int, typer.Option(metavar="K", help="How often to link for each number of cores.")] = 100,
    json: JsonOption = False,
) -> None:
    """Measure dynamic compilation for every number of cores, warm."""
    if not 1 <= repeat <= MAX_REPEATS:
        raise InputError(f"--repeat must be 1 to {MAX_REPEATS}, not {repeat}")
    package, config = open_model(model)
    rows = []
    with naming(model), output.progress("linking") as show:
        for cores in range(1, config.cores + 1):
            show(f"{cores} cores", (cores - 1) / config.cores)
            rows.append(measure(package, config, cores, repeat))
    if json:
        output.write_json({"model": package.meta["model"], "config": config.name, "repeat": repeat, "cores": rows})
        return
    columns = ("cores", "p50 ms", "p99 ms", "max ms", "instructions", "stream bytes")
    title = f"dynamic compilation of {package.meta['model']} for {config.name}, {repeat} times each"
    output.show(output.table(title, columns, [tuple(row.values()) for row in rows], left=0))


def measure(package: ModelPackage, config: HardwareConfig, cores: int, repeat: int) -> dict[str, Any]:
    """Link ``repeat`` times for ``cores`` cores; milliseconds by nearest rank, and the size of the streams."""
    from corepool.compiler.dynamic.linker import link

    for _ in range(WARM_UP):
        linked = link(package, range(cores), config)
    times = []
    gc.collect()
    for _ in range(repeat):
        safe_point()
        begin = time.perf_counter_ns()
        linked = link(package, range(cores), config)
        times.append((time.perf_counter_ns() - begin) / 1e6)
    times.sort()
    return {
        "cores": cores,
        "p50_ms": times[math.ceil(0.5 * repeat) - 1],
        "p99_ms": times[math.ceil(0.99 * repeat) - 1],
        "max_ms": times[-1],
        "instructions": linked.instruction_count,
        "stream_bytes": linked.stream_bytes,
    }
