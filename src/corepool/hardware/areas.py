"""Areas of the pool's parts from the results of synthesis, and their tables in docs/hardware.md.

It must not run any tool: what has not been synthesised is not there. ``python -m corepool.hardware.areas FILE`` puts
the tables between their markers in FILE; with ``--check`` it only says whether they are what the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corepool.errors import InputError
from corepool.hardware.emit import TOP
from corepool.hardware.synth import RESOURCES, Area

ECP5 = "ecp5"  # two cores of tiny on one bank: four do not fit
MEASURED = Path(__file__).with_name("measured")
BEGIN, END = "<!-- areas: made by python -m corepool.hardware.areas -->", "<!-- end of areas -->"

# Which group a module counts for: the first rule whose name begins the module's. Else that of the module that holds it.
_RULES = (
    ("corepool_core.dispatch", "second-level dispatch"),
    ("corepool_core.memories", "memories"),
    ("corepool_core.compute.operands", "operands"),
    ("corepool_core.compute.sums", "array"),
    ("corepool_sums", "array"),
    ("corepool_core.compute.requantiser", "requantiser"),
    ("corepool_requantiser", "requantiser"),
    ("corepool_core.compute", "loops"),
    ("corepool_core.load", "load unit"),
    ("corepool_core.place", "load unit"),
    ("corepool_core.save", "save unit"),
    ("corepool_core", "core, wiring"),
    ("corepool_port.fetcher", "fetchers"),
    ("corepool_port.load_check", "window checks"),
    ("corepool_port.save_check", "window checks"),
    ("corepool_port", "ports"),
    ("corepool_lease", "leases"),
    (f"{TOP}.owners", "owners"),
    (f"{TOP}.registers", "host registers"),
    (f"{TOP}.bridge", "host registers"),
    ("corepool_slot", "slots"),
    ("corepool_bank.slot", "slots"),
    ("corepool_returns", "returns"),
    ("corepool_write_buffer", "write buffers"),
    ("corepool_bank", "banks"),
    (TOP, "host registers"),
)
_COMPUTE = ("array", "operands", "requantiser", "loops")
CORE_GROUPS = (*_COMPUTE, "memories", "load unit", "save unit", "second-level dispatch", "core, wiring")
# What a device with one core and one user would not have.
_ELSEWHERE = "write buffers, other banks"
VIRTUAL_GROUPS = ("leases", "window checks", "ports", "owners", "slots", _ELSEWHERE)
SHARED_GROUPS = ("fetchers", "returns", "write buffers", "banks", "host registers")
MEANING = {
    "array": "multipliers, adder trees, accumulators, maxima",
    "operands": "feature memory's words to the multipliers that need them",
    "requantiser": "one pixel of all channels a cycle, addition and tables",
    "loops": "steps, addresses, pixels waiting for the requantiser",
    "memories": "features, weights, parameters, results (two copies), tables",
    "load unit": "addresses, bursts, placing of words",
    "save unit": "addresses, bursts",
    "second-level dispatch": "verdict on words, three queues, tokens",
    "core, wiring": "clearing, reports",
    "fetchers": "first-level dispatch: streams from DDR, one buffer a core",
    "leases": "first-level dispatch: start, SYNC, stop, watchdog; one a core",
    "window checks": "of loads and saves, two a core (fetches are compared in the fetcher)",
    "ports": "faults, halting, counters, requests that wait; one a core",
    "owners": "which cores share a lease, lanes",
    "slots": "who may use a slot, guard on the bus; one a core",
    "returns": "whose lines come back, one a core",
    "write buffers": "a core's for its own bank",
    _ELSEWHERE: "a core's for the banks of its lease that are not its own",
    "banks": "AXI4 masters",
    "host registers": "AXI4-Lite, settings, counters of the pool",
}


def load(name: str, folder: Path = MEASURED) -> dict[str, Any]:
    """The result called ``name`` as ``rtl synth`` wrote it. Raises InputError if it is not there or is none."""
    path = folder / f"{name}.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"no result of synthesis at {path}: run corepool rtl synth") from error
    except ValueError as error:
        raise InputError(f"{path} is no result of synthesis: {error}") from error
    if not isinstance(result, dict) or not {"tool", "config", "commit"} <= result.keys():
        raise InputError(f"{path} is no result of synthesis")
    return result


def groups(result: Mapping[str, Any]) -> dict[str, Area]:
    """Area of every group in a synthesised pool, all instances together."""
    found: dict[str, Area] = {}
    modules = result["modules"]

    def group_of(name: str, inherited: str) -> str:
        return next((group for start, group in _RULES if name.startswith(start)), inherited)

    def walk(name: str, count: float, inherited: str) -> None:
        group = group_of(name, inherited)
        into = found.setdefault(group, dict.fromkeys(RESOURCES, 0.0))
        for resource, amount in modules[name]["own"].items():
            into[resource] += count * amount
        for part, times in modules[name]["parts"].items():
            walk(part, count * times, group)

    walk(TOP, 1, "host registers")
    banks = modules[TOP]["parts"].get("corepool_bank", 1)
    if "write buffers" in found and banks > 1:
        every = found["write buffers"]
        found["write buffers"] = {resource: amount / banks for resource, amount in every.items()}
        found[_ELSEWHERE] = {resource: amount * (banks - 1) / banks for resource, amount in every.items()}
    return found


def added(areas: list[Area]) -> Area:
    """The sum of areas."""
    return {resource: sum(area[resource] for area in areas) for resource in RESOURCES}


def summary(result: Mapping[str, Any], cores: int) -> dict[str, Area]:
    """Of a synthesised pool: one ``core``; a core's part of what a single core would need as well (``shared``) and of
    what only virtualisation needs (``virtual``); the whole ``pool``."""
    parts = groups(result)
    sums = {
        "core": added([parts[group] for group in CORE_GROUPS if group in parts]),
        "shared": added([parts[group] for group in SHARED_GROUPS if group in parts]),
        "virtual": added([parts[group] for group in VIRTUAL_GROUPS if group in parts]),
    }
    found = {name: {key: value / cores for key, value in area.items()} for name, area in sums.items()}
    return found | {"pool": added(list(sums.values()))}


def _row(name: str, count: str, area: Area, meaning: str = "") -> str:
    numbers = " | ".join(f"{area[resource]:,.0f}" if area[resource] != 0.5 else "0.5" for resource in RESOURCES)
    return f"| {name} | {count} | {numbers} | {meaning} |"


def pool_table(result: Mapping[str, Any]) -> list[str]:
    """The groups of a pool, a core's sum, and what virtualisation adds to it."""
    parts, cores = groups(result), result["cores"]
    lines = ["| part | how many | LUT | FF | DSP | BRAM36 | URAM | what it is |", "|---|---|---|---|---|---|---|---|"]
    sums = summary(result, cores)
    for title, names, total in (
        ("**one core**", CORE_GROUPS, sums["core"]),
        ("**besides, for a single core too** (a core's part)", SHARED_GROUPS, sums["shared"]),
        ("**only for virtualisation** (a core's part)", VIRTUAL_GROUPS, sums["virtual"]),
    ):
        for name in names:
            if name in parts:
                share = {key: value / cores for key, value in parts[name].items()}
                lines.append(_row(name, "a core's part", share, MEANING[name]))
        lines.append(_row(title, "", total))
    lines.append(_row(f"**the whole pool `{result['config']}`**", f"{cores} cores", sums["pool"]))
    base = added([sums["core"], sums["shared"]])
    more = {key: 100 * sums["virtual"][key] / base[key] for key in ("lut", "ff")}
    lines.append("")
    lines.append(
        f"Virtualisation adds {more['lut']:.1f}% LUTs and {more['ff']:.1f}% flip-flops to `{result['config']}`, "
        "and no DSP block, block RAM or UltraRAM."
        if not any(sums["virtual"][key] for key in ("dsp", "bram36", "uram"))
        else f"Virtualisation adds {more['lut']:.1f}% LUTs and {more['ff']:.1f}% flip-flops to `{result['config']}`."
    )
    return [*lines, "", _origin(result)]


def ecp5_table(result: Mapping[str, Any]) -> list[str]:
    """Use of the ECP5, and what shows that the wrapper kept the pool whole."""
    names = {"lut4": "LUT4", "ff": "flip-flops", "mult18": "MULT18X18D", "ram18k": "DP16KD", "ramw": "RAM writers"}
    lines = ["| cells | used | available | part |", "|---|---|---|---|"]
    for name, used in result["used"].items():
        have = result["available"][name]
        lines.append(f"| {names[name]} | {used:,} | {have:,} | {100 * used / have:.0f}% |")
    lines += [
        "",
        f"Largest clock by timing analysis: **{result['megahertz']} MHz** (asked: {result['asked_megahertz']}).",
    ]
    if "cpu_seconds" in result:
        lines[-1] += f" Synthesis, placing and routing took {result['cpu_seconds'] / 60:.0f} minutes of one processor."
    cells = result["cells"]
    flops = cells["with wrapper"].get("TRELLIS_FF", 0) - cells["pool"].get("TRELLIS_FF", 0)
    lines.append(
        f"Bitstream: {result['bitstream_bytes']:,} bytes for {result['part']}. The wrapper has "
        f"{result['wrapper_ff']:,} flip-flops of its own; the netlist with it has {flops:,} more than the pool's."
    )
    return [*lines, "", _origin(result)]


def _origin(result: Mapping[str, Any]) -> str:
    versions = ", ".join(str(result[key]) for key in ("yosys", "nextpnr") if key in result)
    return f"Made with `{result['tool']}` ({versions}) from commit {result['commit'][:12]}."


def tables(folder: Path = MEASURED) -> str:
    """What stands between the markers."""
    parts = []
    for name in ("u200", "tiny"):
        if (folder / f"{name}.json").exists():
            parts += [f"### `{name}` on UltraScale+", "", *pool_table(load(name, folder)), ""]
    if (folder / f"{ECP5}.json").exists():
        result = load(ECP5, folder)
        parts += [f"### `{result['config']}` on an ECP5-85K, placed and routed", "", *ecp5_table(result), ""]
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Write the tables, or with ``--check`` return 1 if they are not those of the results."""
    parser = argparse.ArgumentParser(description="put the tables of areas into docs/hardware.md")
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true", help="only say whether the tables are fresh")
    options = parser.parse_args(arguments)
    text = options.file.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        sys.stderr.write(f"{options.file} has no markers for the tables of areas\n")
        return 1
    fresh = f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"
    if fresh == text:
        return 0
    if options.check:
        sys.stderr.write(f"{options.file} is stale: run python -m corepool.hardware.areas {options.file}\n")
        return 1
    options.file.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
