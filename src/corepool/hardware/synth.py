"""Synthesis for Xilinx UltraScale+ with Yosys: what the pool, or a block of it, takes of a device.

It must not know documents or reports; a result is a plain dictionary that JSON can hold.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amaranth.lib import wiring

from corepool.config import HardwareConfig
from corepool.errors import InputError, ToolError
from corepool.hardware.bank import Bank
from corepool.hardware.core import Core
from corepool.hardware.dispatch import Dispatcher
from corepool.hardware.emit import TOP, to_rtlil, yosys
from corepool.hardware.fetch import Fetcher
from corepool.hardware.interfaces import length_bits
from corepool.hardware.lease import Lease
from corepool.hardware.owners import Owners
from corepool.hardware.pool import Pool
from corepool.hardware.port import CorePort
from corepool.hardware.window import WindowCheck

Tell = Callable[[str], None]
Cells = dict[str, int]

BLOCKS: dict[str, Callable[[HardwareConfig], wiring.Component]] = {
    "pool": lambda config: Pool(config, Core),
    "core": Core,
    "second-level": Dispatcher,
    "first-level": Lease,
    "fetcher": Fetcher,
    "window": lambda config: WindowCheck(length_bits(config)),
    "port": CorePort,
    "bank": Bank,
    "owners": Owners,
}

# Cells of the family by what they are counted as: how many LUTs, flip-flops, DSP48E2, block RAMs (36 kbit), UltraRAMs.
_LUTRAM = {"RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4}
_LUTRAM |= {"RAM256X1D": 8, "RAM512X1S": 8, "RAM64X1S": 1, "RAM32X1S": 1, "SRL16E": 1, "SRLC32E": 1}
RESOURCES = ("lut", "ff", "dsp", "bram36", "uram")

Area = dict[str, float]


def area(cells: Mapping[str, int]) -> Area:
    """What cells of UltraScale+ take. LUTs that serve as memory count as LUTs."""
    total = dict.fromkeys(RESOURCES, 0.0)
    for cell, count in cells.items():
        if re.fullmatch(r"LUT[1-6]|INV", cell):
            total["lut"] += count
        elif cell in _LUTRAM:
            total["lut"] += count * _LUTRAM[cell]
        elif re.fullmatch(r"FD[RSCP]E(_1)?", cell):
            total["ff"] += count
        elif cell.startswith("DSP48"):
            total["dsp"] += count
        elif cell.startswith("RAMB36"):
            total["bram36"] += count
        elif cell.startswith("RAMB18"):
            total["bram36"] += count / 2
        elif cell.startswith("URAM288"):
            total["uram"] += count
        elif not re.fullmatch(r"CARRY[48]|MUXF[789]|BUFG|IBUF|OBUF|\$scopeinfo", cell):
            raise ToolError(f"Yosys made cells {cell}, which have no place in the table of areas")
    return total


def synthesise(config: HardwareConfig, block: str, tell: Tell) -> dict[str, Any]:
    """Synthesise one of BLOCKS; modules stay apart, so that each is counted once and told apart in the result.

    The result holds ``total`` (area), ``modules`` (of each, its ``own`` cells' area and how often it holds which
    ``parts``), and where it came from. Raises InputError for an unknown block, ConfigError, ToolError.
    """
    if block not in BLOCKS:
        raise InputError(f"no block is called {block!r}; there are {', '.join(BLOCKS)}")
    begin, source = time.perf_counter(), origin(config)
    tell(f"{config.name} {block}: writing the hardware")
    texts = to_rtlil(BLOCKS[block](config), TOP)
    script = f"synth_xilinx -family xcup -uram -noiopad -noclkbuf -top {TOP}"
    modules = stat_of(run(texts, [script], f"{config.name} {block}", tell), TOP)
    told = {name: {"own": area(module["cells"]), "parts": module["parts"]} for name, module in modules.items()}
    result = {"tool": "synth_xilinx -family xcup -uram", "config": config.name, "block": block, "cores": config.cores}
    return result | {"total": total(told, TOP), "modules": told} | source | {"seconds": since(begin)}


def run(
    texts: Mapping[str, str],
    script: list[str],
    what: str,
    tell: Tell,
    statistics: str = "stat.json",
    kept: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Run a Yosys script on RTLIL; returns the statistics at its end, or those that it wrote to another file.

    ``kept``: files that the script writes into its folder (Yosys as WebAssembly sees no other), and where they go.
    Tells each pass. Raises ToolError, OSError.
    """
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        for name, text in texts.items():
            (folder / f"{name}.il").write_text(unordered(text))
        lines = [*(f"read_rtlil {name}.il" for name in texts), *script, "tee -q -o stat.json stat -json"]
        begin, last = time.perf_counter(), ""
        words: list[str] = []
        errors: list[str] = []  # what Yosys prints as it goes may come behind its error
        with subprocess.Popen(
            [*yosys(), "-p", "; ".join(lines)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                words = [*words[-4:], line.strip()] if line.strip() else words
                errors += [line.strip()] if line.startswith("ERROR") else []
                found = re.match(r"[\d.]+\. Executing (\w+)", line)
                if found and found[1] != last:
                    last = found[1]
                    tell(f"{what}: {last} ({time.perf_counter() - begin:.0f} s)")
        if process.returncode != 0:
            raise ToolError(f"Yosys failed on {what}: {(errors or words or ['no message'])[-1]}")
        for name, target in (kept or {}).items():
            shutil.move(folder / name, target)
        found_stat: dict[str, Any] = json.loads((folder / statistics).read_text())
        return found_stat


def unordered(text: str) -> str:
    """RTLIL in which memories marked ``no_rw_check`` may bring anything where a word is read as it is written.

    Yosys heeds the mark only for read ports that it makes itself out of registers; these are registered already.
    """
    marked: set[str] = set()
    mark = chosen = False
    lines = text.split("\n")
    for number, line in enumerate(lines):
        words = line.split()
        if words[:2] == ["attribute", "\\no_rw_check"]:
            mark = True
        elif words[:1] == ["memory"]:
            if mark:
                marked.add(words[-1])
            mark = False
        elif words[:2] == ["parameter", "\\MEMID"]:
            chosen = words[2].strip('"').replace("\\\\", "\\") in marked
        elif chosen and words[:2] == ["parameter", "\\COLLISION_X_MASK"]:
            lines[number] = line.replace("'0", "'1")
    return "\n".join(lines)


def stat_of(stat: dict[str, Any], top: str) -> dict[str, dict[str, Cells]]:
    """Of every module in use its primitive cells and its parts, from what ``stat -json`` says."""
    modules = {name.removeprefix("\\"): module for name, module in stat["modules"].items()}
    result: dict[str, dict[str, Cells]] = {}
    todo = [top]
    while todo:
        name = todo.pop()
        if name in result:
            continue
        counts = {cell.removeprefix("\\"): n for cell, n in modules[name]["num_cells_by_type"].items()}
        parts = {cell: n for cell, n in counts.items() if cell in modules}
        result[name] = {"cells": {cell: n for cell, n in counts.items() if cell not in modules}, "parts": parts}
        todo += parts
    return result


def total(modules: Mapping[str, Any], name: str) -> Area:
    """Area of a module with all its parts."""
    found = dict(modules[name]["own"])
    for part, count in modules[name]["parts"].items():
        for resource, amount in total(modules, part).items():
            found[resource] += count * amount
    return found


def since(begin: float) -> float:
    """Seconds, to a tenth."""
    return round(time.perf_counter() - begin, 1)


def origin(config: HardwareConfig) -> dict[str, Any]:
    """Where a result comes from: configuration, commit, sources, tool. To be asked before anything can change."""
    version = subprocess.run([*yosys(), "-V"], capture_output=True, text=True, check=False).stdout
    return {
        "fingerprint": config.fingerprint(),
        "commit": commit(),
        "sources": sources(),
        "yosys": version.strip().partition(" (")[0],
    }


def commit() -> str:
    """The commit that the sources are of, with a plus sign if they were changed since, or "unknown"."""
    here = Path(__file__).parent
    said = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "."]):
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        except OSError:
            return "unknown"
        said.append(done.stdout.strip() if done.returncode == 0 else "")
    return f"{said[0]}{'+' if said[1] else ''}" if said[0] else "unknown"


def sources() -> str:
    """A short hash of everything that the hardware is made from."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.parent.glob("isa/*.py")])
    files = [file for file in files if not file.name.startswith(("synth", "areas"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
