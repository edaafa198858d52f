"""The pipeline model: how many cycles a layer's instructions take on their cores, in one pass over them.

It must not know the simulator: the two are compared, so they must not share code. Memory is priced by lines on average,
not burst by burst.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.compiled import hot
from corepool.config import HardwareConfig
from corepool.isa.table import Opcode, field_of

IntArray = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

# Fields that the model reads, by kind of instruction: they become columns 2, 3, ... behind opcode and token bits.
_NAMES = {
    Opcode.LOAD: ("target", "rows", "blocks", "pixels", "row_stride", "block_stride"),
    Opcode.SAVE: ("banks", "rows", "blocks", "pixels", "row_stride", "block_stride"),
    Opcode.CONV: (
        "shape", "in_blocks", "out_blocks", "kernel_h", "kernel_w", "stride_y", "stride_x", "rows", "cols",
        "dilation_x", "last",
    ),
}  # fmt: skip
COLUMNS = 2 + max(len(names) for names in _NAMES.values())
SHORT_BURST = 64  # words: saves of bursts up to this length wait for every burst of a load beside them
_RING = 64  # tokens that may be on their way at once; the linker never has more than a few


def _places(opcode: Opcode) -> npt.NDArray[np.int64]:
    """Word, shift and mask of each field [n, 3]."""
    fields = [field_of(opcode, name) for name in _NAMES[opcode]]
    return np.array([(f.word, f.shift, (1 << f.width) - 1) for f in fields], np.int64)


_LOAD, _SAVE, _COMPUTE = (_places(opcode) for opcode in (Opcode.LOAD, Opcode.SAVE, Opcode.CONV))


@cache
def machine(config: HardwareConfig) -> IntArray:
    """What the model needs to know of a configuration."""
    values = [
        config.ddr.line_bytes,
        16 * config.cores_per_bank * config.ddr.period_rounds // config.ddr.active_rounds,
        config.ddr.read_latency,
        config.ddr.write_latency,
        config.compute_latency,
        config.pixels,
        config.sync_cycles,
        config.word_bytes,
        config.feature_banks,
        config.burst_bytes,
        config.setup_cycles,
    ]
    return np.array(values, np.int64)


@hot
def decode(code: Words, begin: int, end: int, fields: IntArray) -> None:
    """Rows ``begin .. end`` of ``fields`` [n, COLUMNS]: opcode, token bits, then the fields of the instruction's
    kind."""
    for i in range(begin, end):
        word = np.int64(code[i, 0])
        opcode = word & 15
        fields[i, 0], fields[i, 1] = opcode, (word >> 4) & 15
        places = _LOAD if opcode == 1 else _SAVE if opcode == 2 else _COMPUTE
        if opcode < 8:
            for k in range(len(places)):
                fields[i, 2 + k] = np.int64(code[i, places[k, 0]] >> np.uint64(places[k, 1])) & places[k, 2]


@hot
def _transfer_lines(f: IntArray, m: IntArray) -> int:
    """DDR lines of a LOAD or SAVE, runs at unknown alignment."""
    rows, blocks, pixels, row_stride, block_stride = f[3], f[4], f[5], f[6], f[7]
    runs, length = rows * blocks, pixels
    if rows == 1 or row_stride == pixels:
        runs, length = blocks, pixels * rows
        small = f[0] == 1 and f[2] == 0 and length < 4 * m[5]  # such blocks are not joined for the feature memory
        if blocks == 1 or (block_stride == length and not small):
            runs, length = 1, length * blocks
    size = length * m[7]
    return runs * (size - m[7] + m[0]) // m[0]


@hot
def _runs(f: IntArray) -> int:
    """Runs of touching bytes of a LOAD or SAVE."""
    if f[3] == 1 or f[6] == f[5]:
        return 1 if f[4] == 1 or f[7] == f[5] * f[3] else f[4]
    return f[3] * f[4]


@hot
def _duration(f: IntArray, m: IntArray) -> int:
    """Cycles of a compute instruction, as documented for the machine."""
    opcode, pixels = f[0], m[5]
    shape, in_blocks, out_blocks, kh, kw, sy, sx, rows, cols, dx, last = (
        f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], f[11], f[12],
    )  # fmt: skip
    if opcode == 6 or opcode == 7:
        return out_blocks * rows * cols + pixels + m[4]
    if opcode == 3:
        unit_h = 1
        if shape == 2:
            unit_h = pixels
        elif shape == 1:
            while unit_h * unit_h * 4 <= pixels:
                unit_h *= 2
        unit_w = pixels // unit_h
        worst = 1
        for one in range(pixels):  # the most pixels of a step that lie in one feature bank
            same = 0
            bank = (one % unit_w * sx + max(1, pixels - 1) * (one // unit_w) * sy) % m[8]
            for other in range(pixels):
                if bank == (other % unit_w * sx + max(1, pixels - 1) * (other // unit_w) * sy) % m[8]:
                    same += 1
            worst = max(worst, same)
        groups = out_blocks * -(-rows // unit_h) * -(-cols // unit_w)
        k = kh * kw * in_blocks * worst
    else:
        groups = out_blocks * rows * -(-cols // pixels)
        span = (min(pixels, cols) - 1) * sx + (kw - 1) * dx + 1
        k = kh * -(-span // m[8])
    if not last:
        return k + m[4]
    return groups * max(k, pixels) + pixels + m[4]


@hot
def _core(fields: IntArray, i: int, foreign: int, head_lines: int, rings: IntArray, m: IntArray) -> tuple[int, int]:
    """One core from 0 to its next SYNC or END: when it arrives, and the instruction behind."""
    slot16 = head_lines * m[1]
    load_free, compute_free, save_free, acknowledged = 0, 0, 0, 0
    l2c, c2l, c2s, s2c = rings[0], rings[1], rings[2], rings[3]
    l2c_n, c2l_n, c2s_n, s2c_n = 0, 0, 0, 0
    l2c_t, c2l_t, c2s_t, s2c_t = 0, 0, 0, 0
    work, written, last_lines, fetched = 0, 0, 0, 0
    first_save, last_save = 0, 0
    while fields[i, 0] < 8:
        f = fields[i]
        bits = f[1]
        if f[0] == 1:
            start = load_free
            if bits & 2:
                start = max(start, c2l[c2l_t % _RING])
                c2l_t += 1
            lines = _transfer_lines(f, m)
            slot16 = max(slot16, (start + m[10]) * 16) + lines * m[1]
            work += lines
            fetched += lines
            load_free = max(start + m[10], slot16 // 16 - 8 * m[9] * m[1] // m[0] // 16)
            if bits & 8:
                l2c[l2c_n % _RING] = slot16 // 16 + m[2]
                l2c_n += 1
        elif f[0] == 2:
            start = save_free
            if bits & 1:
                start = max(start, c2s[c2s_t % _RING])
                c2s_t += 1
            words = f[3] * f[4] * f[5]
            lines = _transfer_lines(f, m)
            work += lines
            if written == 0:
                first_save = start
            written += lines
            last_save, last_lines = start, lines
            # A burst of a load between two bursts of the save stalls it, the more so the shorter its own bursts are.
            bursts = 1 + words * m[7] // m[9] + _runs(f)
            stall = fetched * m[1] // 16 * min(words // bursts, SHORT_BURST) // max(words // bursts, 1)
            fetched = 0
            save_free = (
                start + m[10] + max(words + min(stall, words), lines * m[1] // 16 - 2 * m[9] * m[1] // m[0] // 16)
            )
            # Writes take turns with loads: they delay the loads that run beside them by their own time.
            slot16 += lines * m[1]
            acknowledged = max(acknowledged, max(save_free, start + lines * m[1] // 16) + m[3])
            if bits & 4:
                s2c[s2c_n % _RING] = save_free
                s2c_n += 1
        else:
            start = compute_free
            if bits & 1:
                start = max(start, l2c[l2c_t % _RING])
                l2c_t += 1
            if bits & 2:
                start = max(start, s2c[s2c_t % _RING])
                s2c_t += 1
            compute_free = start + _duration(f, m)
            if bits & 4:
                c2l[c2l_n % _RING] = compute_free
                c2l_n += 1
            if bits & 8:
                c2s[c2s_n % _RING] = compute_free
                c2s_n += 1
        i += 1
    busy = (head_lines + work) * m[1] // 16 + foreign  # the slot cannot be faster than its lines
    if written:
        # Writes begin with the first result; the last save shares its lanes with those of the other banks' cores.
        own = written * m[1] // 16
        busy = max(busy, first_save + own + foreign)
        busy = max(busy, last_save + last_lines * m[1] // 16 * (own + foreign) // max(own, 1))
    arrival = max(max(compute_free, acknowledged), max(save_free, busy + m[3]))
    return arrival, i + 1


@hot
def _lane(core: int, bank: int, banks: IntArray) -> int:
    """The core whose slot carries the writes of ``core`` into another bank; -1 if the lease has none there."""
    index, count = 0, 0
    for c in range(len(banks)):
        index += c < core and banks[c] == banks[core]
        count += banks[c] == bank
    if count == 0:
        return -1
    left = index % count
    for c in range(len(banks)):
        if banks[c] == bank:
            if left == 0:
                return c
            left -= 1
    return -1


@hot
def layer_cycles(
    fields: IntArray, position: IntArray, banks: IntArray, head_lines: IntArray, foreign: IntArray, rings: IntArray,
    m: IntArray
) -> int:  # fmt: skip
    """Cycles of one layer from its start to the last core's arrival at the SYNC or END behind it.

    ``position`` [cores]: each core's first instruction in ``fields``, moved behind its SYNC or END. ``head_lines``
    [cores]:
    lines that a core's slot still has to move for what was requested before. ``foreign`` [2, banks], ``rings`` [4, 64]:
    scratch.
    """
    cores = len(position)
    for c in range(cores):
        foreign[c] = 0
    for c in range(cores):  # what this core writes into slots of other banks, in cycles x 16
        i = position[c]
        while fields[i, 0] < 8:
            if fields[i, 0] == 2 and fields[i, 2] != 1 << banks[c]:
                cost = _transfer_lines(fields[i], m) * m[1]
                for b in range(8):
                    if b != banks[c] and fields[i, 2] >> b & 1:
                        lane = _lane(c, b, banks)
                        if lane >= 0:
                            foreign[lane] += cost
            i += 1
    last = 0
    for c in range(len(position)):
        arrival, position[c] = _core(fields, position[c], foreign[c] // 16, head_lines[c], rings, m)
        last = max(last, arrival)
    return last
