"""What makes another compiled library, and what is said when the tools are missing.

It must not compile anything, but for the slow test: pool and cores compiled apart run as compiled in one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corepool.config import HardwareConfig, preset
from corepool.device import rtl, rtl_build
from corepool.device.base import Lease
from corepool.device.rtl import RtlDevice
from corepool.errors import ToolError
from corepool.isa.table import Opcode
from support import programs
from support.core_programs import WINDOW, ProgramMaker, random_window

TINY = preset("tiny")


def place(monkeypatch: pytest.MonkeyPatch, cache: Path, config: HardwareConfig) -> Path:
    """Where the library would be put; nothing is compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(rtl_build, "_make", lambda _, work, *rest: (work / rtl_build.LIBRARY).write_bytes(b""))
    return rtl_build.shared_library(config)


def test_one_library_for_what_a_host_may_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = place(monkeypatch, tmp_path, TINY)
    assert first.is_file()
    for same in (replace(TINY, name="other"), replace(TINY, watchdog_cycles=9), replace(TINY, bank_bytes=1 << 20)):
        assert place(monkeypatch, tmp_path, same) == first
    assert place(monkeypatch, tmp_path, replace(TINY, sync_cycles=17)) != first
    assert place(monkeypatch, tmp_path, TINY.with_ddr_efficiency(1, 2)) != first


def test_a_failed_build_leaves_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(config: HardwareConfig, work: Path, *rest: object) -> None:
        (work / rtl_build.LIBRARY).write_bytes(b"half")
        raise ToolError("no")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rtl_build, "_make", fail)
    with pytest.raises(ToolError):
        rtl_build.shared_library(TINY)
    assert not list(tmp_path.rglob(rtl_build.LIBRARY))


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"C\+\+ compiler; install g\+\+"):
        rtl_build.shared_library(TINY)


def observed(device: RtlDevice) -> list[Any]:
    """Random programs, with mistakes or free of races, on some cores or all: everything that is seen of them."""
    rng, seen = np.random.default_rng(11), list[Any]()

    def run(lease: Lease, streams: list[bytes], place: int, window: bytes) -> None:
        device.load_streams(lease, streams, place)
        completion = device.run(lease)
        memory = [device.read(lease, 0, len(window), bank).tobytes() for bank in lease.banks]
        seen.append((completion, device.counters(lease), memory, device.cycle, device.errors()))
        device.close_lease(lease)

    for number in range(40):
        cores = tuple(int(core) for core in rng.permutation(TINY.cores)[: rng.integers(1, TINY.cores + 1)])
        if number % 2:
            lease = device.open_lease(cores, programs.WINDOW)
            streams = programs.streams(rng, TINY, list(cores), length=12, mistakes=0.1)
            run(lease, streams, programs.WINDOW - (8 << 10), bytes(programs.WINDOW // 2))
        else:
            opcodes = (Opcode.CONV, Opcode.DWCONV, Opcode.POOL, Opcode.ADD, Opcode.MUL)
            window = random_window(rng)
            code = ProgramMaker(rng, TINY, opcodes).program(window, int(rng.integers(1, 5)))
            lease = device.open_lease((0,), WINDOW + len(code))
            device.write(lease, 0, window)
            run(lease, [code], WINDOW, window.tobytes())
    return seen


@pytest.mark.slow
def test_cores_compiled_apart_run_as_cores_within_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while memories hold back, where wires between pool and cores change at other times."""
    config = replace(TINY, watchdog_cycles=3000)
    apart = RtlDevice(config)
    monkeypatch.setattr(rtl, "open_library", lambda config: rtl_build.open_library(config, whole=True))
    joined = RtlDevice(config)
    assert joined._library is not apart._library
    expected = observed(apart)
    assert observed(joined) == expected
    assert any(each[0].fault for each in expected)
    assert sum(each[0].fault is None for each in expected) >= 20
    for device in (apart, joined):
        device.disturb(5)
    assert observed(joined) == observed(apart)
