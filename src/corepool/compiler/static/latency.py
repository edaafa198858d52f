"""The latency table: predicts the cycles of linked streams with a pipeline model of the core, one pass over the
instructions.

It must not know the simulator: the two are compared, so they must not share code. Memory is priced by lines on average,
not burst by burst.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic import link
from corepool.compiler.model import ModelPackage
from corepool.config import HardwareConfig
from corepool.isa.table import Opcode, field_of

IntArray = npt.NDArray[np.int64]


def predict(package: ModelPackage, cores: int, config: HardwareConfig) -> int:
    """Predicted cycles of one inference on the device's first ``cores`` cores; 0 if the device has fewer."""
    return layer_times(package, cores, config)[-1] if cores <= config.cores else 0


def layer_times(package: ModelPackage, cores: int, config: HardwareConfig) -> list[int]:
    """Predicted cycle at which each layer ends (all cores have arrived at its SYNC, or at the END)."""
    linked = link(package, range(cores), config)
    machine = np.array(
        [
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
        ],
        np.int64,
    )
    fields = _fields(linked.instructions)
    banks = np.array([config.bank_of(c) for c in range(cores)], np.int64)
    ends = np.zeros(len(package.layers), np.int64)
    _predict(fields, linked.bounds, banks, machine, ends)
    return [int(end) for end in ends]


_NAMES = {
    Opcode.LOAD: ("target", "rows", "blocks", "pixels", "row_stride", "block_stride"),
    Opcode.SAVE: ("banks", "rows", "blocks", "pixels", "row_stride", "block_stride"),
    Opcode.CONV: (
        "shape",
        "in_blocks",
        "out_blocks",
        "kernel_h",
        "kernel_w",
        "stride_y",
        "stride_x",
        "rows",
        "cols",
        "dilation_x",
        "last",
    ),
}
_PLACES = {name: i + 2 for opcode in _NAMES for i, name in enumerate(_NAMES[opcode])}


def _fields(code: npt.NDArray[np.uint64]) -> IntArray:
    """Columns [n, 13] of int64: opcode, token bits, then the fields of _NAMES for the instruction's kind."""
    out = np.zeros((len(code), 13), np.int64)
    out[:, 0] = (code[:, 0] & np.uint64(15)).astype(np.int64)
    out[:, 1] = ((code[:, 0] >> np.uint64(4)) & np.uint64(15)).astype(np.int64)
    kinds = {Opcode.LOAD: [Opcode.LOAD], Opcode.SAVE: [Opcode.SAVE]}
    kinds[Opcode.CONV] = [Opcode.CONV, Opcode.DWCONV, Opcode.POOL, Opcode.ADD, Opcode.MUL]
    for like, opcodes in kinds.items():
        mask = np.isin(out[:, 0], [int(o) for o in opcodes])
        chosen = code[mask]
        for i, name in enumerate(_NAMES[like]):
            spec = field_of(like, name)
            values = (chosen[:, spec.word] >> np.uint64(spec.shift)) & np.uint64((1 << spec.width) - 1)
            out[mask, i + 2] = values.astype(np.int64)
    return out


@numba.njit(cache=True)
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


@numba.njit(cache=True)
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
        worst = 0
        hits = np.zeros(m[8], np.int64)
        for y in range(unit_h):
            for x in range(unit_w):
                bank = (x * sx + max(1, pixels - 1) * y * sy) % m[8]
                hits[bank] += 1
                worst = max(worst, hits[bank])
        groups = out_blocks * -(-rows // unit_h) * -(-cols // unit_w)
        k = kh * kw * in_blocks * worst
    else:
        groups = out_blocks * rows * -(-cols // pixels)
        span = (min(pixels, cols) - 1) * sx + (kw - 1) * dx + 1
        k = kh * -(-span // m[8])
    if not last:
        return k + m[4]
    return groups * max(k, pixels) + pixels + m[4]


@numba.njit(cache=True)
def _predict(fields: IntArray, bounds: IntArray, banks: IntArray, m: IntArray, ends: IntArray) -> None:
    cores = len(bounds) - 1
    per_bank = np.zeros(banks.max() + 1, np.int64)
    for c in range(cores):
        per_bank[banks[c]] += 1
    position = bounds[:-1].copy()
    now = 0
    arrived = np.empty(cores, np.int64)
    saves_to = np.zeros(len(per_bank), np.int64)
    foreign = np.zeros(
        len(per_bank), np.int64
    )  # cycles (x16) that writes from other banks take in each of a bank's slots, this layer
    for layer in range(len(ends)):
        # What cores of other banks write into a bank's slots during this layer.
        foreign[:] = 0
        for c in range(cores):
            i = position[c]
            while fields[i, 0] < 8:
                if fields[i, 0] == 2:
                    cost = _transfer_lines(fields[i], m) * m[1]
                    for b in range(len(per_bank)):
                        if b != banks[c] and fields[i, 2] >> b & 1:
                            foreign[b] += cost // per_bank[b]
                i += 1
        for c in range(cores):
            arrived[c], position[c] = _core(fields, position[c], now, foreign[banks[c]] // 16, saves_to, m)
        ends[layer] = arrived.max()
        now = ends[layer] + m[6]


@numba.njit(cache=True)
def _core(fields: IntArray, i: int, now: int, foreign: int, scratch: IntArray, m: IntArray) -> tuple[int, int]:
    """One core from ``now`` to its next SYNC or END: when it arrives, and the instruction behind."""
    slot16 = now * 16
    load_free, compute_free, save_free, acknowledged = now, now, now, now
    l2c, c2l, c2s, s2c = (
        np.empty(4096, np.int64),
        np.empty(4096, np.int64),
        np.empty(4096, np.int64),
        np.empty(4096, np.int64),
    )
    l2c_n, c2l_n, c2s_n, s2c_n = 0, 0, 0, 0
    l2c_t, c2l_t, c2s_t, s2c_t = 0, 0, 0, 0
    work, written, last_lines = 0, 0, 0
    first_save, last_save = now, now
    while fields[i, 0] < 8:
        f = fields[i]
        bits = f[1]
        if f[0] == 1:
            start = load_free
            if bits & 2:
                start = max(start, c2l[c2l_t & 4095])
                c2l_t += 1
            lines = _transfer_lines(f, m)
            slot16 = max(slot16, (start + m[10]) * 16) + lines * m[1]
            work += lines
            load_free = max(start + m[10], slot16 // 16 - 8 * m[9] * m[1] // m[0] // 16)
            if bits & 8:
                l2c[l2c_n & 4095] = slot16 // 16 + m[2]
                l2c_n += 1
        elif f[0] == 2:
            start = save_free
            if bits & 1:
                start = max(start, c2s[c2s_t & 4095])
                c2s_t += 1
            words = f[3] * f[4] * f[5]
            lines = _transfer_lines(f, m)
            work += lines
            if written == 0:
                first_save = start
            written += lines
            last_save, last_lines = start, lines
            save_free = start + m[10] + max(words, lines * m[1] // 16 - 2 * m[9] * m[1] // m[0] // 16)
            # Writes take turns with loads: they delay the loads that run beside them by their own time.
            slot16 += lines * m[1]
            acknowledged = max(acknowledged, max(save_free, start + lines * m[1] // 16) + m[3])
            if bits & 4:
                s2c[s2c_n & 4095] = save_free
                s2c_n += 1
        else:
            start = compute_free
            if bits & 1:
                start = max(start, l2c[l2c_t & 4095])
                l2c_t += 1
            if bits & 2:
                start = max(start, s2c[s2c_t & 4095])
                s2c_t += 1
            compute_free = start + _duration(f, m)
            if bits & 4:
                c2l[c2l_n & 4095] = compute_free
                c2l_n += 1
            if bits & 8:
                c2s[c2s_n & 4095] = compute_free
                c2s_n += 1
        i += 1
    busy = now + (work * m[1]) // 16 + foreign  # the slot cannot be faster than its lines
    if written:
        # Writes begin with the first result; the last save shares its lanes with those of the other banks' cores.
        own = written * m[1] // 16
        busy = max(busy, first_save + own + foreign)
        busy = max(busy, last_save + last_lines * m[1] // 16 * (own + foreign) // max(own, 1))
    arrival = max(max(compute_free, acknowledged), max(save_free, busy + m[3]))
    return arrival, i + 1
