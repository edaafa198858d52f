"""Writes what each unit of each core did as a Chrome/Perfetto trace (JSON, "traceEvents"), event by event.

It must not know devices beyond the timelines that it is handed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from corepool.config import HardwareConfig
from corepool.device.decode import COLUMN
from corepool.device.timeline import CoreTimeline
from corepool.isa.table import INSTRUCTIONS, Opcode, PoolMode, Target, Unit, fields_of

_ROWS = {Unit.LOAD: "load", Unit.COMPUTE: "compute", Unit.SAVE: "save", Unit.SYSTEM: "dispatch"}


@dataclass(frozen=True)
class Traced:
    """A lease's run under a name, as it is to appear in the trace; several runs may carry one name."""

    name: str
    timelines: Sequence[CoreTimeline]


def write_trace(file: TextIO, config: HardwareConfig, runs: Sequence[Traced]) -> None:
    """Write the trace of some runs. One process per core, one row per unit; times in microseconds of machine time."""
    file.write('{"displayTimeUnit": "ns", "traceEvents": [')
    separator = "\n"
    for event in _events(config, runs):
        file.write(separator + json.dumps(event))
        separator = ",\n"
    file.write("\n]}\n")


def _events(config: HardwareConfig, runs: Sequence[Traced]) -> Iterator[dict[str, Any]]:
    processes: dict[tuple[str, int], int] = {}
    for run in runs:
        for line in run.timelines:
            key = (run.name, line.core)
            if key not in processes:
                processes[key] = len(processes) + 1
                yield from _metadata(processes[key], f"{run.name} core {line.core}")
            yield from _core_events(config, processes[key], line)


def _metadata(process: int, name: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": process, "tid": 0, "name": "process_name", "args": {"name": name}}
    yield {"ph": "M", "pid": process, "tid": 0, "name": "process_sort_index", "args": {"sort_index": process}}
    for unit, row in _ROWS.items():
        yield {"ph": "M", "pid": process, "tid": int(unit) + 1, "name": "thread_name", "args": {"name": row}}


def _core_events(config: HardwareConfig, process: int, line: CoreTimeline) -> Iterator[dict[str, Any]]:
    scale = 1e6 / config.clock_hz
    names: dict[Opcode, list[tuple[str, int]]] = {}
    for index, row in enumerate(line.program.fields.tolist()):
        if line.ended[index] < 0:
            continue
        opcode = Opcode(row[COLUMN["opcode"]])
        if opcode not in names:
            names[opcode] = [(spec.name, COLUMN[spec.name]) for spec in fields_of(opcode) if spec.name != "opcode"]
        values = {name: row[column] for name, column in names[opcode]}
        start, end = int(line.started[index]), int(line.ended[index])
        yield {
            "ph": "X",
            "pid": process,
            "tid": int(INSTRUCTIONS[opcode].unit) + 1,
            "name": label(opcode, values, config),
            "ts": round(start * scale, 6),
            "dur": round((end - start) * scale, 6),
            "args": {"index": index, "cycle": start, "cycles": end - start} | {n: v for n, v in values.items() if v},
        }


def label(opcode: Opcode, values: dict[str, int], config: HardwareConfig) -> str:
    """A short name such as ``CONV 14x14x256`` (rows, columns, channels of the result) or ``LOAD FEATURE 8x56x64``."""
    if opcode is Opcode.SYNC:
        return f"SYNC layer {values['layer']}"
    if opcode is Opcode.END:
        return "END"
    if opcode in (Opcode.LOAD, Opcode.SAVE):
        size = f"{values['rows']}x{values['pixels']}x{values['blocks'] * config.channels}"
        return f"LOAD {Target(values['target']).name} {size}" if opcode is Opcode.LOAD else f"SAVE {size}"
    size = f"{values['rows']}x{values['cols']}x{values['out_blocks'] * config.channels}"
    kind = f"POOL {PoolMode(values['mode']).name}" if opcode is Opcode.POOL else opcode.name
    return f"{kind} {size}"
