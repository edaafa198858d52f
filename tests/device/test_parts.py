"""The simulator's parts by themselves: bulk decoding, memory banks, windows, traces, constants that stand twice.

It must not run networks.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool.config import preset
from corepool.device import decode, kernels, timing
from corepool.device.base import WINDOW_ALIGNMENT, Fault, Lease
from corepool.device.memory import Banks, Windows
from corepool.device.simulator import Simulator
from corepool.device.trace import Traced, write_trace
from corepool.errors import DeviceError, InstructionError
from corepool.isa import codec
from corepool.isa.table import INSTRUCTION_BYTES, INSTRUCTIONS, Opcode, PoolMode, Target, fields_of
from support import programs

CONFIG = preset("u200")


@st.composite
def instructions(draw: st.DrawFn) -> bytes:
    """A legal instruction in which some bits may have been changed."""
    opcode = draw(st.sampled_from(list(INSTRUCTIONS)))
    values = {spec.name: draw(st.integers(spec.low, spec.high)) for spec in fields_of(opcode) if spec.name != "opcode"}
    word = bytearray(codec.encode(opcode, **values))
    for bit in draw(st.lists(st.integers(0, 255), max_size=2)):
        word[bit // 8] ^= 1 << bit % 8
    return bytes(word)


@given(st.lists(instructions(), min_size=1, max_size=12))
def test_bulk_decoding_agrees_with_the_codec(code: list[bytes]) -> None:
    result = decode.decode_stream(CONFIG, np.frombuffer(b"".join(code), np.uint8))
    assert len(result) == len(code)
    for index, word in enumerate(code):
        try:
            expected = codec.decode(word)
        except InstructionError:
            assert result.timing[index, decode.KIND] == decode.KIND_UNDEFINED
            continue
        for name, value in expected.values.items():
            assert result.column(name)[index] == value, name
        assert result.column("opcode")[index] == expected.opcode


_EIGHT = ("in_blocks", "out_blocks", "kernel_h", "kernel_w", "stride_y", "stride_x", "dilation_y", "dilation_x")
CONV = dict.fromkeys((*_EIGHT, "rows", "cols", "in_rows", "in_cols", "first", "last"), 1)
WINDOWED = {name: value for name, value in CONV.items() if name != "in_blocks"}


@pytest.mark.parametrize(
    ("opcode", "values", "defined"),
    [
        (Opcode.CONV, CONV, True),
        (Opcode.CONV, CONV | {"shape": 3}, False),
        (Opcode.CONV, CONV | {"last": 0}, True),
        (Opcode.CONV, CONV | {"last": 0, "cols": 4}, True),
        (Opcode.CONV, CONV | {"last": 0, "cols": 5}, False),
        (Opcode.CONV, CONV | {"first": 0, "rows": 2}, False),
        (Opcode.CONV, CONV | {"first": 0, "rows": 2, "cols": 2, "shape": 1}, True),
        (Opcode.CONV, CONV | {"first": 0, "out_blocks": 2}, False),
        (Opcode.DWCONV, WINDOWED | {"kernel_w": 8}, True),
        (Opcode.DWCONV, WINDOWED | {"kernel_w": 9}, False),
        (Opcode.POOL, WINDOWED | {"first": 0, "mode": PoolMode.SUM}, True),
        (Opcode.POOL, WINDOWED | {"first": 0, "mode": PoolMode.MAX}, False),
        (Opcode.LOAD, {"rows": 1, "blocks": 1, "pixels": 1, "target": Target.LUT}, True),
        (Opcode.LOAD, {"rows": 1, "blocks": 1, "pixels": 1, "target": 5}, False),
        (Opcode.SAVE, {"rows": 1, "blocks": 1, "pixels": 1, "banks": 1, "address": 4}, False),
    ],
)
def test_what_no_unit_can_execute_is_undefined(opcode: Opcode, values: dict[str, int], defined: bool) -> None:
    stream = np.frombuffer(codec.encode(opcode, **values), np.uint8)
    kind = decode.decode_stream(CONFIG, stream).timing[0, decode.KIND]
    assert (kind != decode.KIND_UNDEFINED) == defined


def test_senseless_durations_are_cut() -> None:
    spec = {field.name: field.high for field in fields_of(Opcode.CONV) if field.name != "opcode"} | {"shape": 0}
    table = decode.decode_stream(CONFIG, np.frombuffer(codec.encode(Opcode.CONV, **spec), np.uint8)).timing
    assert table[0, decode.DURATION] == decode.LONGEST


def test_constants_that_stand_twice_agree() -> None:
    """Compiled code keeps numbers of columns, so its modules have their own; they must not drift."""
    for name in ("KIND", "TOKENS", "DURATION", "ADDRESS", "OUTER", "OUTER_STRIDE", "INNER", "INNER_STRIDE", "RUN_BYTES",
                 "MASK", "STEPS"):  # fmt: skip
        assert getattr(timing, name) == getattr(decode, name)
    assert timing.LEFT == decode.TIMING_COLUMNS
    assert (timing.SYNC_KIND, timing.END_KIND) == (decode.KIND_SYNC, decode.KIND_END)
    assert timing.UNDEFINED_KIND == decode.KIND_UNDEFINED
    for fault in set(Fault) - {Fault.BUS}:  # which no simulated memory causes
        assert getattr(timing, f"F_{fault.name}") == fault.value
    assert timing.INSTRUCTION == INSTRUCTION_BYTES
    for number, name in enumerate(kernels.NAMES):
        constant = "MASK" if name == "banks" else name.upper()
        assert getattr(kernels, constant) == number
    for opcode in (Opcode.LOAD, Opcode.SAVE, Opcode.CONV, Opcode.DWCONV, Opcode.POOL, Opcode.ADD, Opcode.MUL):
        assert getattr(kernels, opcode.name) == opcode
    for target in Target:
        assert getattr(kernels, f"TO_{target.name}") == target


def test_banks_zero_exactly_what_they_are_told() -> None:
    banks = Banks(2, 1 << 16)
    banks.array[:] = 1
    banks.zero(1, 100, 9000)
    assert banks.array[0].all()
    assert banks.array[1].nonzero()[0].tolist() == [*range(100), *range(9100, 1 << 16)]
    banks.zero(0, 5000, 20)  # within a page
    assert (banks.array[0] == 0).sum() == 20


def test_banks_of_a_whole_card_cost_nothing() -> None:
    banks = Banks(4, 4 << 30)
    banks.array[3, -1] = 5
    assert banks.array.shape == (4, 4 << 30)
    assert banks.array[2, -1] == 0


def test_windows_are_reused_and_never_overlap() -> None:
    windows = Windows(10 * WINDOW_ALIGNMENT)
    first, second, third = (windows.take(size) for size in (1, WINDOW_ALIGNMENT + 1, 4096))
    assert [first, second, third] == [0, WINDOW_ALIGNMENT, 3 * WINDOW_ALIGNMENT]
    windows.free(second)
    assert windows.take(3 * WINDOW_ALIGNMENT) == 4 * WINDOW_ALIGNMENT
    assert windows.take(2 * WINDOW_ALIGNMENT) == WINDOW_ALIGNMENT
    with pytest.raises(DeviceError, match="room"):
        windows.take(4 * WINDOW_ALIGNMENT)


def test_programs_move_while_they_run() -> None:
    """Leases that start later make the store of programs grow under those that run: same times."""
    config = preset("tiny")
    rng = np.random.default_rng(10)
    codes = [programs.streams(rng, config, [core], length=300, mistakes=0)[0] for core in range(4)]  # long ones
    window = 4 * programs.WINDOW

    def times(simulator: Simulator, lease: Lease) -> list[int]:
        start = simulator.wait(lease).start_cycle
        ended = simulator.timeline(lease)[0].ended
        return [end - start for end in ended.tolist() if end >= 0]

    apart = []
    for core, code in enumerate(codes):
        simulator = Simulator(config, data=False)
        lease = simulator.open_lease([core], window)
        simulator.load_streams(lease, [code], programs.WINDOW)
        simulator.start(lease)
        apart.append(times(simulator, lease))
    simulator = Simulator(config, data=False)
    leases = [simulator.open_lease([core], window) for core in range(4)]
    room = len(simulator._clock._program)
    for lease, code in zip(leases, codes, strict=True):
        simulator.load_streams(lease, [code], programs.WINDOW)
        simulator.start(lease)
        with pytest.raises(DeviceError, match="still running"):
            simulator.wait(lease, 150)  # so that the next one meets it in the middle
    assert len(simulator._clock._program) > room
    assert [times(simulator, lease) for lease in leases] == apart
    assert min(len(ends) for ends in apart) > 100


def test_data_and_time_alone_take_the_same_cycles() -> None:
    config = replace(preset("tiny"), watchdog_cycles=2000)
    for seed in range(6):
        code = programs.streams(np.random.default_rng(seed), config, [0, 2])
        seen = []
        for data in (True, False):
            simulator = Simulator(config, data=data)
            lease = simulator.open_lease([0, 2], programs.WINDOW)
            simulator.load_streams(lease, code, programs.WINDOW - (8 << 10))
            seen.append((simulator.run(lease), simulator.counters(lease)))
        assert seen[0] == seen[1]


def test_counters() -> None:
    """A load of 3 lines, an addition of 8 words, a save of 2 words, END: four instructions in one fetch."""
    simulator = Simulator(CONFIG)
    lease = simulator.open_lease([5], 1 << 16)
    code = [
        codec.encode(Opcode.LOAD, rows=1, blocks=1, pixels=24, raise_next=1),
        codec.encode(Opcode.ADD, wait_prev=1, raise_next=1, rows=2, cols=4, out_blocks=1),
        codec.encode(Opcode.SAVE, wait_prev=1, banks=2, rows=1, blocks=1, pixels=2),
        codec.encode(Opcode.END),
    ]
    simulator.load_streams(lease, [b"".join(code)], 4096)
    assert simulator.counters(lease).instructions == (0,)
    completion = simulator.run(lease)
    counters = simulator.counters(lease)
    assert counters.cycles == completion.cycles
    assert counters.instructions == (4,)
    assert counters.compute_busy == (8 + 4 + 20,)
    assert counters.load_busy == (2 + 1,)
    assert counters.save_busy == (2 + 2,)
    assert counters.steps == (8,)
    assert counters.bytes_read == (0, 128 + 24 * 8, 0, 0)
    assert counters.bytes_written == (0, 16, 0, 0)


def test_trace_reads_as_what_happened() -> None:
    simulator = Simulator(CONFIG, data=False)
    lease = simulator.open_lease([0], 1 << 16)
    code = [
        codec.encode(Opcode.LOAD, target=Target.FEATURE, rows=2, blocks=4, pixels=6, row_stride=6, raise_next=1),
        codec.encode(Opcode.CONV, wait_prev=1, **CONV | {"rows": 14, "cols": 13, "out_blocks": 32}),
        codec.encode(Opcode.POOL, **WINDOWED | {"mode": PoolMode.SUM}),
        codec.encode(Opcode.SYNC, cores=1, layer=7),
        codec.encode(Opcode.END),
    ]
    simulator.load_streams(lease, [b"".join(code)], 4096)
    completion = simulator.run(lease)
    text = io.StringIO()
    write_trace(text, CONFIG, [Traced("tenant A", simulator.timeline(lease))])
    trace = json.loads(text.getvalue())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in events] == [
        "LOAD FEATURE 2x6x32", "CONV 14x13x256", "POOL SUM 1x1x8", "SYNC layer 7", "END"
    ]  # fmt: skip
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    rows = [names[event["pid"], event["tid"]] for event in events]
    assert rows == ["load", "compute", "compute", "dispatch", "dispatch"]
    assert {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"} == {"tenant A core 0"}
    conv = events[1]
    assert conv["args"]["out_blocks"] == 32
    assert conv["dur"] == pytest.approx(conv["args"]["cycles"] / 300, abs=1e-5)
    last = events[-1]
    assert last["ts"] + last["dur"] == pytest.approx(completion.end_cycle / 300, abs=1e-5)


def test_the_protocol_does_not_load_the_simulator() -> None:
    """Host code that only speaks the protocol starts without numba."""
    code = "import sys, corepool.device, corepool.device.base; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
