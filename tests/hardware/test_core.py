"""A whole core in RTL against the simulator: same bytes, same cycle for the end of every instruction, same faults.

It must not know how the core works inside. Programs are random but free of races.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from corepool.config import HardwareConfig, preset
from corepool.device.simulator import Simulator
from corepool.isa.codec import encode
from corepool.isa.table import Opcode
from support import core_programs
from support.core_bench import UNITS, CoreBench
from support.core_programs import STREAM, WINDOW, ProgramMaker

TINY = preset("tiny")
# Other shapes of the array and of memories, each for a reason of its own.
SHAPES = {
    "one pixel": replace(TINY, name="one pixel", pixels=1, cores=8),
    "window wider than the channels": replace(TINY, name="window", pixels=4, cores=8, banks=2),
    "window narrower than the channels": replace(
        TINY, name="narrow", channels=8, parameter_bytes=2048, feature_bytes=1 << 14
    ),
    "one core a bank": replace(TINY, name="alone", cores=2, banks=2, pixels=4),
}


@cache
def bench(config: HardwareConfig) -> CoreBench:
    return CoreBench(config)


def compare(
    config: HardwareConfig, window: npt.NDArray[np.uint8], stream: bytes, offset: int = STREAM, stop_at: int = -1
) -> None:
    """Run a stream on both and compare all that can be seen."""
    simulator = Simulator(config)
    lease = simulator.open_lease([0], WINDOW)
    simulator.write(lease, 0, window)
    simulator.load_streams(lease, [stream], offset)
    simulator.start(lease)
    expected = simulator.wait(lease)
    after = simulator.read(lease, 0, WINDOW)
    window = window.copy()
    window[offset : offset + len(stream)] = np.frombuffer(stream, np.uint8)
    outcome = bench(config).run(window, stream, offset, stop_at=stop_at)
    line, counters = simulator.timeline(lease)[0], simulator.counters(lease)
    opcodes = line.program.column("opcode")
    for unit, numbers in zip(UNITS, ((1,), (3, 4, 5, 6, 7), (2,)), strict=True):
        times = line.ended[np.isin(opcodes, numbers)]
        assert outcome.ended[unit] == times[times >= 0].tolist()
    assert outcome.end == expected.end_cycle
    if expected.fault is not None:
        assert outcome.fault == (expected.fault.fault.value, expected.fault.instruction_index)
        return
    assert outcome.fault is None
    assert (outcome.busy["COMPUTE"], outcome.steps) == (counters.compute_busy[0], counters.steps[0])
    assert (outcome.busy["LOAD"], outcome.busy["SAVE"]) == (counters.load_busy[0], counters.save_busy[0])
    assert outcome.window is not None
    np.testing.assert_array_equal(outcome.window, after)


def run_random(config: HardwareConfig, seed: int, *opcodes: Opcode, rounds: int = 3, largest: int = 150) -> None:
    rng = np.random.default_rng(seed)
    window = core_programs.random_window(rng)
    compare(config, window, ProgramMaker(rng, config, opcodes, largest).program(window, rounds))


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize(
    "opcode", [Opcode.CONV, Opcode.DWCONV, Opcode.POOL, Opcode.ADD, Opcode.MUL], ids=lambda o: o.name
)
def test_every_operation_as_in_the_simulator(opcode: Opcode, seed: int) -> None:
    run_random(TINY, seed, opcode)


@pytest.mark.parametrize("name", SHAPES)
def test_other_shapes_of_the_core(name: str) -> None:
    run_random(SHAPES[name], 1, Opcode.CONV, Opcode.DWCONV, Opcode.POOL, Opcode.ADD, Opcode.MUL, rounds=2)


@pytest.mark.parametrize("stop_at", [430, 455])
def test_a_core_that_was_halted_and_cleared_is_like_new(stop_at: int) -> None:
    rng = np.random.default_rng(5)
    window = core_programs.random_window(rng)
    stream = ProgramMaker(rng, TINY, (Opcode.CONV, Opcode.ADD)).program(window, 2)
    compare(TINY, window, stream, stop_at=stop_at)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
@pytest.mark.parametrize("name", ["tiny", *SHAPES])
def test_many_random_programs(name: str, seed: int) -> None:
    config = SHAPES.get(name, TINY)
    run_random(config, seed, Opcode.CONV, Opcode.DWCONV, Opcode.POOL, Opcode.ADD, Opcode.MUL, rounds=4, largest=300)


ONES = dict.fromkeys(
    (
        "rows",
        "cols",
        "out_blocks",
        "kernel_h",
        "stride_y",
        "stride_x",
        "dilation_y",
        "dilation_x",
        "in_rows",
        "in_cols",
    ),
    1,
)
FAULTY = {
    "undefined opcode": [bytes([15]) + bytes(31)],
    "reserved bit": [(1 << 255 | int(Opcode.END)).to_bytes(32, "little")],
    "no END": [encode(Opcode.SYNC, cores=1)],
    "a core that is not of the lease": [encode(Opcode.SYNC, cores=3)],
    "too many tokens": [encode(Opcode.LOAD, target=4, rows=1, blocks=1, pixels=1, raise_next=1)] * 257
    + [encode(Opcode.END)],
    "undefined behind work": [
        encode(Opcode.LOAD, target=1, rows=1, blocks=1, pixels=40),
        encode(Opcode.ADD, rows=3, cols=3, out_blocks=1),
        encode(Opcode.DWCONV, **ONES | {"kernel_w": TINY.channels + 1}),
    ],
}


@pytest.mark.parametrize("name", FAULTY)
def test_faults_as_in_the_simulator(name: str) -> None:
    stream = b"".join(FAULTY[name])
    compare(TINY, np.zeros(WINDOW, np.uint8), stream, 0)
