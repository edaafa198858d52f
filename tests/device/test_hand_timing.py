"""Cycle numbers worked out by hand from the manual, for ``u200``; each comment is the sum on paper.

It must not know how the simulator reckons.
"""

from __future__ import annotations

import pytest

from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.isa.codec import encode
from corepool.isa.table import Opcode, Target

END = encode(Opcode.END)
ONES = dict.fromkeys(
    ("kernel_h", "kernel_w", "stride_y", "stride_x", "dilation_y", "dilation_x", "in_rows", "in_cols"), 1
)
LINE = {"rows": 1, "blocks": 1, "pixels": 8}  # one line of 64 bytes


def cycles(*streams: list[bytes], cores: tuple[int, ...] = (0,)) -> int:
    simulator = Simulator(preset("u200"), data=False)
    lease = simulator.open_lease(cores, 1 << 20)
    simulator.load_streams(lease, [b"".join(stream) for stream in streams], 1 << 16)
    completion = simulator.run(lease)
    assert completion.fault is None
    return completion.cycles


def test_end_alone() -> None:
    # Fetch asked at 0, granted from 1 on; core 0 is served in cycles 0, 4, 8, 16, ...: its line moves in 4,
    # and is complete at 4 + 60. END is reached then, and nothing is open.
    assert cycles([END]) == 64


@pytest.mark.parametrize(("core", "expected"), [(1, 61), (2, 62), (3, 63), (4, 64), (13, 61)])
def test_other_slots(core: int, expected: int) -> None:
    # Core 1 of a bank is served in 1, 5, 9, 17, ...: the first line moves in 1, at the grant.
    assert cycles([END], cores=(core,)) == expected


def test_one_load() -> None:
    # Leaves 64, starts 65, asks at 67, granted 68, which is a turn (68 = 4 * 17, 17 mod 4 = 1): moves in 68,
    # complete at 128. END, reached at 65, waits for it.
    assert cycles([encode(Opcode.LOAD, target=Target.WEIGHT, **LINE), END]) == 128


def test_one_convolution() -> None:
    # Leaves 64, starts 65; one group of one step takes max(1, 4) + 4 + 20 = 28: ends at 93.
    conv = encode(Opcode.CONV, first=1, last=1, rows=1, cols=4, in_blocks=1, out_blocks=1, **ONES)
    assert cycles([conv, END]) == 93


def test_convolution_of_many_steps() -> None:
    # 2 output blocks x 3 rows x ceil(9 / 4) = 18 groups of 3 x 3 x 5 = 45 steps: 65 + 810 + 24 = 899.
    sizes = {**ONES, "kernel_h": 3, "kernel_w": 3}
    conv = encode(Opcode.CONV, first=1, last=1, rows=3, cols=9, in_blocks=5, out_blocks=2, **sizes)
    assert cycles([conv, END]) == 899


def test_convolution_whose_pixels_meet_in_a_bank() -> None:
    # Stride 4 in a row: columns 0, 4, 8, 12 lie in banks 0, 4, 0, 4, so every tap takes two cycles:
    # 1 group of 2 x 9 = 18 steps: 65 + 18 + 24 = 107.
    sizes = {**ONES, "kernel_h": 3, "kernel_w": 3, "stride_x": 4}
    conv = encode(Opcode.CONV, first=1, last=1, rows=1, cols=4, in_blocks=1, out_blocks=1, **sizes)
    assert cycles([conv, END]) == 107


def test_depthwise_with_stride_two() -> None:
    # 4 pixels at stride 2 and 3 taps reach over 3 * 2 + 2 + 1 = 9 columns: 2 cycles a kernel row, 6 a group;
    # 2 blocks x 2 rows x 2 = 8 groups: 65 + 48 + 24 = 137.
    sizes = {**ONES, "kernel_h": 3, "kernel_w": 3, "stride_x": 2, "stride_y": 2}
    code = encode(Opcode.DWCONV, first=1, last=1, rows=2, cols=8, out_blocks=2, **sizes)
    assert cycles([code, END]) == 137


def test_one_save() -> None:
    # Starts 65, begins 67, asks at 67 + 8 words = 75; granted 76, but round 76 / 4 = 19 does not move data
    # (19 mod 4 = 3): moves in 80, acknowledged at 110.
    assert cycles([encode(Opcode.SAVE, banks=1, **LINE), END]) == 110


def test_save_into_two_banks() -> None:
    # Cores 0 and 4, one a bank: both banks are asked at 75; each carries it in its core-0 slot, in 80.
    # Core 0 arrives at 110, core 4 (which does nothing) long before.
    assert cycles([encode(Opcode.SAVE, banks=3, **LINE), END], [END], cores=(0, 4)) == 110


def test_loads_wait_when_eight_are_open() -> None:
    # Nine rows that do not touch: asked at 67 .. 74, moved in 68, 72, 80, 84, 88, 96, 100, 104 (76 and 92 no turns);
    # the first is complete at 128 and makes room: the ninth is asked then, moved in 132, complete at 192.
    load = encode(Opcode.LOAD, target=Target.FEATURE, rows=9, pixels=8, blocks=1, row_stride=16, row_pitch=1)
    assert cycles([load, END]) == 192


def test_tokens_chain_load_compute_and_save() -> None:
    # The load ends at 128; the addition of 8 words starts then and takes 8 + 4 + 20 = 32: 160; the save starts then,
    # begins 162, asks 170, granted 171, moves in 176 (172: 43 mod 4 = 3), acknowledged at 206.
    code = [
        encode(Opcode.LOAD, raise_next=1, **LINE),
        encode(Opcode.ADD, wait_prev=1, raise_next=1, rows=1, cols=8, out_blocks=1),
        encode(Opcode.SAVE, wait_prev=1, banks=1, **LINE),
        END,
    ]
    # 4 instructions are 128 bytes, two lines: they move in 4 and 8, and are complete at 68 instead of 64. So the load
    # leaves 68, starts 69, asks 71, granted 72, moves in 72, ends 132; addition 132 .. 164; save 164, asks 174,
    # granted 175, moves in 176, acknowledged 206: the longer fetch costs nothing in the end.
    assert cycles(code) == 206


def test_sync_of_two_cores() -> None:
    # Core 0 reaches the SYNC at 64, core 1 at 61. The last arrival is 64; both go on 16 cycles later, and are done.
    sync = encode(Opcode.SYNC, cores=3)
    assert cycles([sync, END], [sync, END], cores=(0, 1)) == 80


def test_a_lease_starts_with_the_slot_period() -> None:
    simulator = Simulator(preset("u200"), data=False)
    leases = [simulator.open_lease((core,), 4096) for core in (0, 1)]
    for lease in leases:
        simulator.load_streams(lease, [END], 0)
    assert (simulator.start(leases[0]), simulator.wait(leases[0]).end_cycle) == (0, 64)
    assert simulator.start(leases[1]) == 64
    assert simulator.wait(leases[1]).end_cycle == 64 + 61
    assert simulator.start(leases[0]) == 128  # the first multiple of 16 behind 125
