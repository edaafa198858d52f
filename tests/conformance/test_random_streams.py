"""Random instruction streams on the compiled hardware against the simulator: several leases at once, any mistakes.

All opcodes occur, and all faults but that of a broken memory. 500 cases in the fast tests, 20,000 in the slow ones;
COREPOOL_STREAMS sets another number for both.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, seed, settings

from corepool.config import preset
from corepool.device.base import Device, Fault
from corepool.device.rtl import RtlDevice
from corepool.device.simulator import Simulator
from corepool.isa.table import Opcode
from support.campaign import MISTAKES, WATCHDOG, Case, cases, observe

TINY = replace(preset("tiny"), watchdog_cycles=WATCHDOG)
SHORT, LONG, SHARDS = 500, 20_000, 4
NUMBER = int(os.environ.get("COREPOOL_STREAMS", "0"))


@cache
def devices() -> tuple[Device, Device]:
    """One of each for all cases: opening a lease clears what the one before has left."""
    return Simulator(TINY), RtlDevice(TINY)


def campaign(number: int, start: int, capsys: pytest.CaptureFixture[str]) -> None:
    """So many cases from a seed, in equal lots for each mistake; what differs is shrunk and printed."""
    faults, opcodes = set[Fault](), set[Opcode]()
    size = -(-number // len(MISTAKES))
    lots = enumerate(MISTAKES, start * len(MISTAKES))
    run = sum(lot(size, index, mistake, faults, opcodes) for index, mistake in lots)
    with capsys.disabled():
        sys.stdout.write(f" {run} random cases on simulator and hardware, no difference\n")
    assert run >= number
    assert number < SHORT or (faults, opcodes) == (set(Fault) - {Fault.BUS}, set(Opcode))


def lot(number: int, start: int, mistake: str, faults: set[Fault], opcodes: set[Opcode]) -> int:
    """Compares that many cases; adds the faults and opcodes that occurred; returns how many cases were run."""
    run = 0

    @seed(start)
    @settings(
        max_examples=number,
        database=None,
        derandomize=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(case=cases(TINY, mistake))
    def agree(case: Case) -> None:
        nonlocal run
        run += 1
        opcodes.update(case.opcodes())
        simulator, hardware = devices()
        expected, seen = observe(simulator, case), observe(hardware, case)
        assert seen == expected
        faults.update(each[1].fault for each in seen if each[1] is not None)
        assert hardware.errors() == 0  # type: ignore[attr-defined]

    agree()
    return run


def test_random_streams(capsys: pytest.CaptureFixture[str]) -> None:
    campaign(NUMBER or SHORT, 0, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(1, SHARDS + 1))
def test_many_random_streams(shard: int, capsys: pytest.CaptureFixture[str]) -> None:
    campaign(-(-(NUMBER or LONG) // SHARDS), shard, capsys)
