"""The compiled hardware behind memories that hold back, delay and reorder at random: same bytes, and no rule broken.

It must not know how the hardware copes. Cycles are compared only where memories are on time.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corepool.compiler.static import reference
from corepool.compiler.static.compile import compile_graph
from corepool.config import preset
from corepool.device import rtl, rtl_build
from corepool.device.base import Completion, Device
from corepool.device.rtl import RtlDevice
from corepool.device.simulator import Simulator
from corepool.errors import BusError
from corepool.hardware import pool
from corepool.isa.table import Opcode
from corepool.runtime.session import Session
from support.core_programs import WINDOW, ProgramMaker, random_window
from support.formal import mutant
from support.graphs import random_graph, random_input

TINY = replace(preset("tiny"), watchdog_cycles=30000)
OPCODES = (Opcode.CONV, Opcode.DWCONV, Opcode.POOL, Opcode.ADD, Opcode.MUL)


def program(device: Device, seed: int, core: int = 0) -> tuple[Completion, bytes, Any]:
    """A program free of races: how it ended, the window's bytes, and the counters that do not depend on time."""
    rng = np.random.default_rng(seed)
    window = random_window(rng)
    code = ProgramMaker(rng, TINY, OPCODES).program(window, int(rng.integers(1, 5)))
    lease = device.open_lease((core,), WINDOW + len(code))
    device.write(lease, 0, window)
    device.load_streams(lease, [code], WINDOW)
    completion = device.run(lease)
    assert completion.fault is None
    counters = device.counters(lease)
    amounts = counters.steps, counters.instructions, counters.bytes_read, counters.bytes_written
    seen = device.read(lease, 0, WINDOW).tobytes()
    device.close_lease(lease)
    return completion, seen, amounts


def test_programs_of_one_core_under_back_pressure() -> None:
    """One device for all, so that what a slow answer leaves behind would be found."""
    simulator, hardware = Simulator(TINY), RtlDevice(TINY)
    slower = 0
    for seed in range(25):
        expected = program(simulator, seed)
        hardware.disturb(seed + 1)
        seen = program(hardware, seed)
        assert seen[1:] == expected[1:], seed
        slower += seen[0].cycles > expected[0].cycles
        assert hardware.open_bursts() == 0
    assert slower == 25
    hardware.disturb(0)
    for seed in range(3):  # on time again, to the cycle
        before, after = program(simulator, seed), program(hardware, seed)
        assert (after[0].cycles, after[1:]) == (before[0].cycles, before[1:])
    assert hardware.errors() == 0


def test_the_same_seed_gives_the_same_times() -> None:
    cycles = []
    for seed in (3, 3, 4):
        hardware = RtlDevice(TINY)
        hardware.disturb(seed)
        cycles.append(program(hardware, 9)[0].cycles)
    assert cycles[0] == cycles[1] != cycles[2]


@pytest.mark.parametrize("seed", range(2))
def test_networks_under_back_pressure(seed: int) -> None:
    """Random networks on 1 to 4 cores, and on two leases at once."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, layers=5, size=12)
    inputs = random_input(rng, graph)
    package = compile_graph(graph, TINY).package
    expected = reference.outputs(graph, reference.execute(graph, inputs))
    hardware = RtlDevice(TINY)
    hardware.disturb(seed + 1)
    results = []
    for cores in ((3,), (2, 1), (0, 1, 2, 3)):
        with Session(hardware, package, cores) as session:
            results.append(session.run(inputs))
    with Session(hardware, package, (0, 2)) as first, Session(hardware, package, (3, 1)) as second:
        first.start(inputs)
        second.start(inputs)
        results += [first.finish(), second.finish()]
    for result in results:
        for name, value in expected.items():
            assert np.array_equal(result.outputs[name], value), name
    assert hardware.open_bursts() == 0
    assert hardware.errors() == 0


def build(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the next device be compiled anew into ``folder``, but from what the user's cache holds of unchanged parts."""
    models = folder / "models"
    models.mkdir()
    for kept in (rtl_build._cache() / "models").iterdir():
        (models / kept.name).symlink_to(kept)
    monkeypatch.setattr(rtl_build, "_cache", lambda: folder)
    rtl_build._make(rtl_build._built(TINY), folder, lambda *_: None, False)
    monkeypatch.setattr(rtl, "open_library", lambda _: rtl_build._open(folder / rtl_build.LIBRARY))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "core", "old", "new", "message"),
    [
        ("bank.Bank", 0, "free = ~bus.arvalid | bus.arready", "free = 1", "bank 0, .* AR changed before ARREADY"),
        ("bank.Bank", 0, "with m.If(bus.awready):", "with m.If(1):", "bank 0, .* AWVALID fell before AWREADY"),
        ("bank.Bank", 0, "bus.wlast.eq(1)", "bus.wlast.eq(0)", "bank 0, .* WLAST is not at the end"),
        ("bank.Bank", 2, "arid.eq(self.first_core + number)", "arid.eq(number)", "bank 1, .* ARID is no core"),
        ("axi.LiteBridge", 0, "with m.Elif(host.rready):", "with m.Else():", "register bus, .* RVALID fell before"),
    ],
)
def test_planted_mistakes_of_the_hardware_end_the_run(
    place: str, core: int, old: str, new: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The core is one whose bus shows it; in bank 1 the IDs of reads do not begin at 0."""
    module, block = place.split(".")
    monkeypatch.setattr(pool, block, getattr(mutant(f"corepool.hardware.{module}", old, new), block))
    build(monkeypatch, tmp_path)
    device = RtlDevice(TINY)
    device.disturb(1)
    with pytest.raises(BusError, match=rf"{message}.*; the device must be opened anew"):
        program(device, 9, core)
    at = device.cycle
    with pytest.raises(BusError, match=message):
        device._run(100)
    assert device.cycle == at
