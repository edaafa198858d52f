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
    Opcode.LOAD: ("target", "rows", "blocks", "pixels", "row_stride", "block_stride", "address"),
    Opcode.SAVE: ("banks", "rows", "blocks", "pixels", "row_stride", "block_stride", "address"),
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


_EARLY = field_of(Opcode.SYNC, "early").shift
_EARLY_MASK = (1 << field_of(Opcode.SYNC, "early").width) - 1
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
        fields[i, 2] = word >> _EARLY & _EARLY_MASK  # of a SYNC
        fields[i, 0], fields[i, 1] = opcode, (word >> 4) & 15
        places = _LOAD if opcode == 1 else _SAVE if opcode == 2 else _COMPUTE
        if opcode < 8:
            for k in range(len(places)):
                fields[i, 2 + k] = np.int64(code[i, places[k, 0]] >> np.uint64(places[k, 1])) & places[k, 2]


@hot
def _transfer_lines(f: IntArray, m: IntArray) -> int:
    """DDR lines of a LOAD or SAVE: on average over what runs may begin at, by their address and strides."""
    rows, blocks, pixels, row_stride, block_stride = f[3], f[4], f[5], f[6], f[7]
    runs, length = rows * blocks, pixels
    places = m[0] | f[8]  # bytes; the largest power of two in it divides where every run begins
    if rows == 1 or row_stride == pixels:
        runs, length = blocks, pixels * rows
        small = f[0] == 1 and f[2] == 0 and length < 4 * m[5]  # such blocks are not joined for the feature memory
        if blocks == 1 or (block_stride == length and not small):
            runs, length = 1, length * blocks
    else:
        places |= row_stride * m[7]
    if blocks > 1:
        places |= block_stride * m[7]
    size, grain = length * m[7], places & -places
    return runs * (-(-size // grain) * grain - grain + m[0]) // m[0]


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


# What a core carries from SYNC to SYNC, in cycles from the start: when its dispatcher goes on, its units are free, its
# slot has moved the lines asked for (x 16), its writes are acknowledged; how many tokens were raised and taken; saves.
(
    NOW, LOAD_FREE, COMPUTE_FREE, SAVE_FREE, SLOT16, WRITES16, RAISED_LC, RAISED_CL, RAISED_CS, RAISED_SC, TAKEN_LC,
    TAKEN_CL, TAKEN_CS, TAKEN_SC, SAVES, LOADED, FETCHED,
) = range(17)  # fmt: skip
CARRIED = 17
RINGS = 5  # of a core: the four kinds of tokens, and acknowledgements of saves


@hot
def _load(f: IntArray, s: IntArray, rings: IntArray, m: IntArray) -> None:
    start = max(s[NOW], s[LOAD_FREE])
    if f[1] & 2:
        start = max(start, rings[1, s[TAKEN_CL] % _RING])
        s[TAKEN_CL] += 1
    lines = _transfer_lines(f, m)
    s[SLOT16] = max(s[SLOT16], (start + m[10]) * 16) + lines * m[1]
    s[FETCHED] += lines
    s[LOAD_FREE] = max(start + m[10], s[SLOT16] // 16 - 8 * m[9] * m[1] // m[0] // 16)
    s[LOADED] = s[SLOT16] // 16 + m[2]
    if f[1] & 8:
        rings[0, s[RAISED_LC] % _RING] = s[LOADED]
        s[RAISED_LC] += 1


@hot
def _save(f: IntArray, s: IntArray, rings: IntArray, foreign16: int, m: IntArray) -> None:
    """``foreign16``: lines of other cores in this core's slot for each 16 of its own."""
    start = max(s[NOW], s[SAVE_FREE])
    if f[1] & 1:
        start = max(start, rings[2, s[TAKEN_CS] % _RING])
        s[TAKEN_CS] += 1
    words = f[3] * f[4] * f[5]
    lines = _transfer_lines(f, m)
    # A burst of a load between two bursts of the save stalls it, the more so the shorter its own bursts are.
    bursts = 1 + words * m[7] // m[9] + _runs(f)
    stall = s[FETCHED] * m[1] // 16 * min(words // bursts, SHORT_BURST) // max(words // bursts, 1)
    s[FETCHED] = 0
    s[SAVE_FREE] = start + m[10] + max(words + min(stall, words), lines * m[1] // 16 - 2 * m[9] * m[1] // m[0] // 16)
    own16 = lines * m[1]
    all16 = own16 + own16 * foreign16 // 16
    # Writes take turns with loads: each delays the other by its own time.
    beside = min(max(s[SLOT16] - (start + m[10]) * 16, 0), own16)
    s[WRITES16] = max(s[WRITES16], (start + m[10]) * 16) + all16 + beside
    s[SLOT16] += all16
    rings[4, s[SAVES] % _RING] = max(s[SAVE_FREE], s[WRITES16] // 16) + m[3]
    s[SAVES] += 1
    if f[1] & 4:
        rings[3, s[RAISED_SC] % _RING] = s[SAVE_FREE]
        s[RAISED_SC] += 1


@hot
def _compute(f: IntArray, s: IntArray, rings: IntArray, m: IntArray) -> None:
    start = max(s[NOW], s[COMPUTE_FREE])
    if f[1] & 1:
        start = max(start, rings[0, s[TAKEN_LC] % _RING])
        s[TAKEN_LC] += 1
    if f[1] & 2:
        start = max(start, rings[3, s[TAKEN_SC] % _RING])
        s[TAKEN_SC] += 1
    s[COMPUTE_FREE] = start + _duration(f, m)
    if f[1] & 4:
        rings[1, s[RAISED_CL] % _RING] = s[COMPUTE_FREE]
        s[RAISED_CL] += 1
    if f[1] & 8:
        rings[2, s[RAISED_CS] % _RING] = s[COMPUTE_FREE]
        s[RAISED_CS] += 1


@hot
def _core(fields: IntArray, i: int, foreign16: int, s: IntArray, rings: IntArray, m: IntArray) -> tuple[int, int]:
    """One core to its next SYNC or END: when it arrives, and the instruction behind."""
    while fields[i, 0] < 8:
        f = fields[i]
        if f[0] == 1:
            _load(f, s, rings, m)
        elif f[0] == 2:
            _save(f, s, rings, foreign16, m)
        else:
            _compute(f, s, rings, m)
        i += 1
    needed = s[SAVES]
    arrival = s[NOW]
    if fields[i, 0] == 8 and fields[i, 2] > 0:
        needed -= fields[i, 2] - 1
    else:
        arrival = max(max(arrival, s[COMPUTE_FREE]), s[LOADED])
    if needed > 0 and s[SAVES] - needed < _RING:
        arrival = max(arrival, rings[4, (needed - 1) % _RING])
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
def _foreign(
    fields: IntArray, position: IntArray, banks: IntArray, m: IntArray, own: IntArray, foreign: IntArray
) -> None:
    """Lines that each core writes up to its next SYNC, and those that the others write into its slot."""
    cores = len(position)
    for c in range(cores):
        own[c] = foreign[c] = 0
    for c in range(cores):
        i = position[c]
        while fields[i, 0] < 8:
            if fields[i, 0] == 2:
                lines = _transfer_lines(fields[i], m)
                for b in range(8):
                    if fields[i, 2] >> b & 1:
                        if b == banks[c]:
                            own[c] += lines
                        else:
                            lane = _lane(c, b, banks)
                            if lane >= 0:
                                foreign[lane] += lines
            i += 1


@hot
def stream_cycles(
    fields: IntArray, position: IntArray, banks: IntArray, first: int, state: IntArray, rings: IntArray, m: IntArray
) -> int:  # fmt: skip
    """Cycles from cycle 0 to the last core's arrival at its END.

    ``position`` [cores]: each core's first instruction in ``fields``; moved behind its END. ``first``: when the first
    instructions are there. ``state`` [cores + 2, CARRIED], ``rings`` [cores, RINGS, 64]: scratch.
    """
    cores = len(position)
    own, foreign = state[cores], state[cores + 1]
    for c in range(cores):
        state[c, :] = 0
        state[c, NOW] = first
    while True:
        _foreign(fields, position, banks, m, own, foreign)
        last = 0
        over = False
        for c in range(cores):
            ratio16 = 16 * foreign[c] // own[c] if own[c] else 0
            if own[c] == 0:  # an idle core's slot: the SYNC waits for what others write there
                state[c, SLOT16] = max(state[c, SLOT16], state[c, NOW] * 16) + foreign[c] * m[1]
                state[c, WRITES16] = state[c, SLOT16]
            arrival, position[c] = _core(fields, position[c], ratio16, state[c], rings[c], m)
            if own[c] == 0 and foreign[c] > 0:
                arrival = max(arrival, state[c, WRITES16] // 16 + m[3])
            last = max(last, arrival)
            over |= fields[position[c] - 1, 0] == 9
        if over:
            return last
        for c in range(cores):
            state[c, NOW] = last + m[6]
