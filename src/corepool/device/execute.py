"""The data pass: applies instructions to memories in the order in which they ended.

It must not know when anything happens; it is handed instructions in order and the window's place in each bank.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.device import kernels, planes
from corepool.device.blas import one_thread
from corepool.device.decode import COLUMN
from corepool.device.memory import Banks

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

EXACT_PRODUCTS = 1024  # so many products of two INT8 values sum up to at most 2^24, which float32 still counts exactly
_AT_A_TIME = 1 << 19  # floats of a matrix: stays in the caches, and bounds what a senseless instruction can take
_LEAST_PIXELS = 64
_PLANES = 1 << 17  # floats of a tile that is laid out as planes: stays in the caches
_SUMS = 1 << 16
_SMALL_PRODUCTS = 1 << 22  # of a CONV; from here on a library is faster than compiled loops
_COLUMNS = np.array([COLUMN[name] for name in kernels.NAMES])


class DataPass:
    """On-chip memories of all cores, and the execution of instructions on them and on DDR."""

    def __init__(self, config: HardwareConfig, banks: Banks) -> None:
        self.memories = _memories(config, banks)
        self._home = np.array([config.bank_of(core) for core in range(config.cores)], np.int64)
        self._weights: list[tuple[tuple[int, ...], Floats] | None] = [None] * config.cores
        self._scratch = planes.Scratch(
            words=np.empty(_PLANES // 4, self.memories.result_words.dtype),
            planes=np.zeros(_PLANES, np.float32),  # what lies behind a tile's pixels is computed with, and thrown away
            sums=np.empty(_SUMS, np.float32),
            codes=np.empty(_SUMS, np.int8),
            factors=np.empty((EXACT_PRODUCTS + 1) * config.channels, np.float32),
            places=np.empty(EXACT_PRODUCTS + 1, np.int64),
            terms=EXACT_PRODUCTS,
            products=_SMALL_PRODUCTS,
        )
        self._features = [np.empty(0, np.float32)]
        self._parts = [np.empty(0, np.float32)]

    def clear(self, core: int) -> None:
        """Zero all memories of a core."""
        for name in ("feature", "weight", "parameter", "result", "table", "accumulator", "stale"):
            getattr(self.memories, name)[core] = 0
        self._weights[core] = None

    def warm(self) -> None:
        """Have everything compiled, by doing nothing with it."""
        mem, op = self.memories, np.zeros(len(kernels.NAMES), np.int64)
        op[kernels.COLS] = 1
        nothing = np.empty((0, 1), np.float32)
        kernels.gather(mem, 0, op, 0, nothing)
        kernels.spread_weights(mem, 0, op, nothing)
        kernels.finish(mem, 0, op, 0, 0, np.empty((1, 0, 0), np.float32))
        bases = np.zeros(len(mem.ddr), np.int64)
        planes.execute(
            mem, bases, self._home, op[:0], self.operations(np.zeros((0, len(COLUMN)), np.int64)), 0, self._scratch
        )

    def operations(self, fields: Ints) -> Ints:
        """Decoded instructions [n, columns] as ``run`` takes them."""
        return np.ascontiguousarray(fields[:, _COLUMNS])

    def run(self, bases: Ints, cores: Ints, ops: Ints) -> None:
        """Execute instructions: ``bases`` [banks] window starts, ``cores`` [n], what ``operations`` has made."""
        number = planes.execute(self.memories, bases, self._home, cores, ops, 0, self._scratch)
        if number == len(ops):
            return
        with one_thread():
            while number < len(ops):
                self._convolve(int(cores[number]), ops[number])
                number = planes.execute(self.memories, bases, self._home, cores, ops, number + 1, self._scratch)

    def _convolve(self, core: int, op: Ints) -> None:
        """CONV as matrix products of at most 1024 terms each, exact in float32, some output pixels at a time."""
        mem = self.memories
        channels = mem.feature.shape[3]
        pixels = int(op[kernels.ROWS] * op[kernels.COLS])
        depth = int(op[kernels.KERNEL_H] * op[kernels.KERNEL_W] * op[kernels.IN_BLOCKS]) * channels
        outputs = int(op[kernels.OUT_BLOCKS]) * channels
        weights = self._weight_matrix(core, op, outputs, depth)
        count = -(-depth // EXACT_PRODUCTS)
        step = min(pixels, max(_LEAST_PIXELS, _AT_A_TIME // max(depth, count * outputs)))
        features = _shaped(self._features, (step, depth))
        parts = _shaped(self._parts, (count, step, outputs))
        for first in range(0, pixels, step):
            now = min(step, pixels - first)
            kernels.gather(mem, core, op, first, features[:now])
            for part in range(count):
                terms = slice(part * EXACT_PRODUCTS, (part + 1) * EXACT_PRODUCTS)
                np.matmul(features[:now, terms], weights[:, terms].T, out=parts[part, :now])
            kernels.finish(mem, core, op, first, now, parts)
        mem.accumulator[core] = 0

    def _weight_matrix(self, core: int, op: Ints, outputs: int, depth: int) -> Floats:
        """The CONV's weights as floats [outputs, depth]; kept until a LOAD writes there."""
        stale = self.memories.stale[core]
        key = (int(op[kernels.WEIGHT]), outputs, depth)
        kept = self._weights[core]
        if kept is not None and kept[0] == key and not stale[2]:
            return kept[1]
        matrix = np.empty((outputs, depth), np.float32)
        kernels.spread_weights(self.memories, core, op, matrix)
        words = outputs * depth // self.memories.weight[0, 0].size
        stale[:] = key[0], words, int(key[0] + words > self.memories.weight.shape[1])
        self._weights[core] = (key, matrix)
        return matrix


def _shaped(kept: list[Floats], shape: tuple[int, ...]) -> Floats:
    """An uninitialised array of this shape, in memory that is used again and again."""
    size = math.prod(shape)
    if kept[0].size < size:
        kept[0] = np.empty(size, np.float32)
    return kept[0][:size].reshape(shape)


def _memories(config: HardwareConfig, banks: Banks) -> kernels.Memories:
    cores, channels = config.cores, config.channels
    weight = np.zeros((cores, config.weight_words, channels, channels), np.int8)
    parameter = np.zeros((cores, config.parameter_words, 2 * channels), np.int32)
    result = np.zeros((cores, config.result_words, channels), np.int8)
    width = config.feature_banks  # a power of two
    feature = np.zeros((cores, config.feature_lines, config.feature_banks, channels), np.int8)
    unit = np.dtype(np.uint64 if channels % 8 == 0 else np.uint32)
    chunks = channels // unit.itemsize

    def in_words(array: npt.NDArray[np.int8]) -> npt.NDArray[Any]:
        """[..., C] bytes as [..., K] chunks."""
        return array.view(unit)

    return kernels.Memories(
        ddr=banks.array,
        feature=feature,
        weight=weight,
        weight_bytes=weight.reshape(cores, -1),
        parameter=parameter,
        parameter_bytes=parameter.view(np.int8).reshape(cores, -1),
        result=result,
        result_bytes=result.reshape(cores, -1),
        table=np.zeros((cores, config.lut_slots * 256), np.int8),
        accumulator=np.zeros((cores, config.pixels, channels), np.int32),
        turn=np.array([max(config.pixels - 1, 1), config.pixels, width.bit_length() - 1, width - 1], np.int64),
        stale=np.zeros((cores, 3), np.int64),
        sums=np.zeros(channels, np.int32),
        padding=np.zeros(channels, np.int8),
        ddr_words=in_words(banks.array).reshape(config.banks, -1, chunks),
        feature_words=in_words(feature),
        result_words=in_words(result),
        lanes=(0,) * channels,
        chunks=(0x0101010101010101,) * chunks,
    )
