"""The register map: no overlaps, a fresh manual, and a decoder that answers exactly the listed addresses.

It must not know what registers do in the pool.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from amaranth.sim import Simulator

from corepool.config import preset
from corepool.hardware import registers
from corepool.hardware.emit import to_rtlil
from corepool.hardware.regfile import RegisterFile, blocks, member
from corepool.hardware.registers import REGISTERS, Access, Register, Scope

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "registers.md"
TINY = preset("tiny")


def test_the_manual_is_fresh() -> None:
    assert registers.main(["--check", str(MANUAL)]) == 0


def test_a_stale_manual_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "registers.md").write_text("old")
    assert registers.main(["--check", str(tmp_path / "registers.md")]) == 1


@pytest.mark.parametrize("offset", [0x00, 0x14, 0x2, 0x1000])
def test_overlaps_and_bad_places_are_refused(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = Register(Scope.POOL, "EXTRA", offset, Access.READ, "")
    monkeypatch.setattr(registers, "REGISTERS", (*REGISTERS, extra))
    with pytest.raises(ValueError, match="POOL_"):
        registers._index()


def test_every_listed_address_answers_and_no_other() -> None:
    dut = RegisterFile(TINY)
    wanted: dict[int, int] = {}
    places = {
        register.address(index) + 4 * word
        for register in REGISTERS
        for index in range(blocks(TINY, register.scope))
        for word in range(register.words)
    }

    async def bench(ctx: Any) -> None:
        number = 1
        for register in REGISTERS:
            for index in range(blocks(TINY, register.scope)):
                if register.access is not Access.WRITE:
                    value = number << 32 | number * 7 if register.words == 2 else number * 7
                    ctx.set(getattr(dut, f"value_{member(register)}")[index], value)
                    wanted[register.address(index)] = number * 7
                    if register.words == 2:
                        wanted[register.address(index) + 4] = number
                number += 1
        for place in range(0, 0x4100, 4):
            if place not in places and place % 0x40 > 8:
                continue
            ctx.set(dut.bus.read_address, place)
            ctx.set(dut.bus.read, 1)
            await ctx.tick()
            ctx.set(dut.bus.read, 0)
            await ctx.tick()
            assert ctx.get(dut.bus.read_error) == (place not in places), hex(place)
            if place in places:
                assert ctx.get(dut.bus.read_data) == wanted.get(place, 0), hex(place)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def test_the_largest_file_can_be_written() -> None:
    """Hundreds of words meet in one; as a chain they would be deeper than Python goes."""
    text = to_rtlil(RegisterFile(preset("u200")), "registers")["registers"]
    assert "read_data" in text
