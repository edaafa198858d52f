"""A small workbench for one core: data into DDR, instructions one by one, results back; and the layouts of the manual.

It must not know which device runs beneath it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.device.base import Completion, Device, Lease
from corepool.isa.codec import encode
from corepool.isa.table import Opcode, Target, field_of

Array = npt.NDArray[Any]
STREAMS_AT = 1 << 14


def blocks_of(config: HardwareConfig, channels: int) -> int:
    return -(-channels // config.channels)


def pack_map(config: HardwareConfig, x: Array) -> Array:
    """int8 [C, H, W] as [blocks, H, W, channels of a block], zeros behind the last channel."""
    blocks = blocks_of(config, len(x))
    full = np.zeros((blocks * config.channels, *x.shape[1:]), np.int8)
    full[: len(x)] = x
    return np.ascontiguousarray(full.reshape(blocks, config.channels, *x.shape[1:]).transpose(0, 2, 3, 1))


def unpack_map(words: Array, channels: int) -> Array:
    """The inverse of ``pack_map``."""
    blocks, height, width, block = words.shape
    return words.transpose(0, 3, 1, 2).reshape(blocks * block, height, width)[:channels]


def pack_weights(config: HardwareConfig, w: Array) -> Array:
    """int8 [O, I, kh, kw] as [output block][ky][kx][input block][o][i]."""
    c = config.channels
    o, i, kh, kw = w.shape
    full = np.zeros((blocks_of(config, o) * c, blocks_of(config, i) * c, kh, kw), np.int8)
    full[:o, :i] = w
    split = full.reshape(full.shape[0] // c, c, full.shape[1] // c, c, kh, kw)
    return np.ascontiguousarray(split.transpose(0, 4, 5, 2, 1, 3))


def pack_depthwise(config: HardwareConfig, w: Array) -> Array:
    """int8 [C, kh, kw] as [block][ky][tap of the row, padded to C][channel]."""
    c = config.channels
    channels, kh, kw = w.shape
    full = np.zeros((blocks_of(config, channels), kh, c, c), np.int8)
    padded = np.zeros((len(full) * c, kh, kw), np.int8)
    padded[:channels] = w
    full[:, :, :kw] = padded.reshape(-1, c, kh, kw).transpose(0, 2, 3, 1)
    return full


def pack_requantisation(config: HardwareConfig, bias: Array, multiplier: Array, shift: Array) -> bytes:
    """Parameter words, 8 bytes a channel."""
    words = np.zeros((blocks_of(config, len(bias)) * config.channels, 8), np.uint8)
    entries = np.zeros(len(bias), np.dtype([("b", "<i4"), ("m", "<u2"), ("s", "u1"), ("z", "u1")]))
    entries["b"], entries["m"], entries["s"] = bias, multiplier, shift
    words[: len(bias)] = entries.view(np.uint8).reshape(-1, 8)
    return words.tobytes()


def pack_constants(config: HardwareConfig, a: int, b: int, c: int, shift: int, zero: int, low: int, high: int) -> bytes:
    """The parameter word of an addition or a product."""
    head = np.array([a, b, c], "<i4").tobytes() + bytes([shift]) + np.array([zero, low, high], np.int8).tobytes()
    return head.ljust(config.parameter_word_bytes, b"\0")


class Bench:
    """Collects instructions for the first core of a lease and runs them; others, if any, get ``others`` streams."""

    def __init__(self, device: Device, cores: tuple[int, ...] = (0,), window: int = 1 << 17) -> None:
        self.device, self.config = device, device.config
        self.lease: Lease = device.open_lease(cores, window)
        self.place = STREAMS_AT * 2
        self.code: list[bytes] = []

    def data(self, values: Array | bytes) -> int:
        """Write bytes somewhere in the window (all banks); returns where."""
        raw = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
        at, self.place = self.place, self.place + -(-len(raw) // 64) * 64
        self.device.write(self.lease, at, raw)
        return at

    def room(self, size: int) -> int:
        """Space for results."""
        at, self.place = self.place, self.place + -(-size // 64) * 64
        return at

    def add(self, opcode: Opcode, **values: int) -> None:
        self.code.append(encode(opcode, **values))

    def load_words(self, target: Target, raw: Array | bytes, local: int = 0, **values: int) -> None:
        """One contiguous LOAD into a memory that is filled word after word."""
        at = self.data(raw)
        size = len(raw) if isinstance(raw, bytes) else raw.nbytes
        count = size // self.config.word_bytes
        self.add(Opcode.LOAD, target=target, address=at, rows=1, blocks=1, pixels=count, local=local, **values)

    def load_map(self, x: Array, line: int = 0, split: int = 0, spare: int = 0) -> dict[str, int]:
        """LOAD a feature map [C, H, W] (rows from ``split`` on by a second LOAD); returns the tile's geometry."""
        words = pack_map(self.config, x)
        at = self.data(words)
        blocks, height, width, _ = words.shape
        row_pitch = -(-width // self.config.feature_banks) + spare
        block_pitch = row_pitch * height + spare
        for first, last in ((0, split), (split, height)):
            if last > first:
                self.add(
                    Opcode.LOAD, target=Target.FEATURE, address=at + first * width * self.config.word_bytes,
                    blocks=blocks,
                    rows=last - first, pixels=width, row_stride=width, block_stride=height * width,
                    local=(line + first * row_pitch) % self.config.feature_lines, row_pitch=row_pitch,
                    block_pitch=block_pitch, first_row=first % self.config.feature_banks,
                )  # fmt: skip
        return {"feature": line, "row_pitch": row_pitch, "block_pitch": block_pitch}

    def ready(self) -> None:
        """Let the latest LOAD raise a token for the compute unit: loads complete in order, so all are complete then."""
        self.code[-1] = bytes([self.code[-1][0] | 1 << field_of(Opcode.LOAD, "raise_next").lsb]) + self.code[-1][1:]

    def save(self, blocks: int, rows: int, cols: int, local: int, banks: int | None = None) -> int:
        """SAVE results that lie word after word as a map; returns where. Waits for the compute unit."""
        at = self.room(blocks * rows * cols * self.config.word_bytes)
        mask = 1 << self.lease.home_bank if banks is None else banks
        self.add(
            Opcode.SAVE, wait_prev=1, banks=mask, address=at, blocks=blocks, rows=rows, pixels=cols, row_stride=cols,
            block_stride=rows * cols, local=local,
        )  # fmt: skip
        return at

    def run(self, *others: bytes) -> Completion:
        self.code.append(encode(Opcode.END))
        self.device.load_streams(self.lease, [b"".join(self.code), *others], STREAMS_AT)
        self.code = []
        return self.device.run(self.lease)

    def fetch(self, at: int, blocks: int, rows: int, cols: int, channels: int, bank: int | None = None) -> Array:
        """A map [C, H, W] from DDR."""
        size = blocks * rows * cols * self.config.word_bytes
        words = self.device.read(self.lease, at, size, bank).view(np.int8)
        return unpack_map(words.reshape(blocks, rows, cols, self.config.channels), channels)
