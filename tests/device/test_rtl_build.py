"""What makes another compiled library, and what is said when the tools are missing.

It must not compile anything.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from corepool.config import HardwareConfig, preset
from corepool.device import rtl_build
from corepool.errors import ToolError

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
