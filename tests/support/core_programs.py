"""Random programs for one core that are free of races, so that their bytes are the same on every device.

It must not know any device; it draws from the generator that it is given.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.isa.codec import encode
from corepool.isa.table import Opcode, Target

WINDOW = 1 << 14
PARAMETERS = WINDOW // 2 - (1 << 10)  # the words of the parameter memory
OUTPUT = WINDOW // 2  # loads read below, saves write from here on
STREAM = WINDOW - (2 << 10)

Values = dict[str, int]


def random_window(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    return rng.integers(0, 256, WINDOW, dtype=np.uint8)


def _draw(rng: np.random.Generator, *values: int) -> int:
    return int(rng.choice(values))


class ProgramMaker:
    """Rounds of loads, computations and saves, chained by tokens or SYNC."""

    def __init__(
        self,
        rng: np.random.Generator,
        config: HardwareConfig,
        opcodes: tuple[Opcode, ...],
        largest: int = 400,
        fill: np.random.Generator | None = None,
    ) -> None:
        """``largest``: steps of a computation. ``fill`` is what parameters are drawn from (default: as all else)."""
        self.rng, self.config, self.opcodes, self.largest = rng, config, opcodes, largest
        self.fill = rng if fill is None else fill
        self.half = min(config.parameter_words, (OUTPUT - PARAMETERS) // config.parameter_word_bytes) // 2

    def program(self, window: npt.NDArray[np.uint8], rounds: int) -> bytes:
        """The instructions of a lease of core 0; parameters and constants are written into the window."""
        rng, config = self.rng, self.config
        half = self.half
        parameters(self.fill, config, window, PARAMETERS, half)
        constants(self.fill, config, window, PARAMETERS + half * config.parameter_word_bytes, half)
        words = [
            encode(Opcode.LOAD, **self._linear(Target.PARAMETER, PARAMETERS, 2 * half * config.parameter_word_bytes))
        ]
        words.append(encode(Opcode.LOAD, **self._linear(Target.WEIGHT, 0, min(config.weight_bytes // 2, PARAMETERS))))
        self._chained = bool(rng.random() < 0.5)
        for number in range(rounds):
            loads = [self._load() for _ in range(rng.integers(1, 5))]
            computes = [self._compute() for _ in range(rng.integers(1, 4))]
            saves = [self._save() for _ in range(rng.integers(1, 3))]
            if not self._chained and rng.random() < 0.5:
                sync = encode(Opcode.SYNC, cores=1, layer=number)
                words += [*map(_encoded, loads), sync, *map(_encoded, computes), sync, *map(_encoded, saves), sync]
                continue
            loads[0][1]["wait_next"] = computes[0][1]["wait_next"] = int(number > 0 and self._chained)
            loads[-1][1]["raise_next"] = computes[0][1]["wait_prev"] = 1
            computes[-1][1]["raise_next"] = computes[-1][1]["raise_prev"] = saves[0][1]["wait_prev"] = 1
            saves[-1][1]["raise_prev"] = 1
            words += map(_encoded, [*loads, *computes, *saves])
            if not self._chained:
                words.append(encode(Opcode.SYNC, cores=1, layer=number))
        return b"".join([*words, encode(Opcode.END)])

    def _linear(self, target: Target, address: int, size: int) -> Values:
        return {
            "target": int(target),
            "address": address,
            "rows": 1,
            "blocks": 1,
            "pixels": size // self.config.word_bytes,
        }

    def _transfer(self, most: int) -> Values:
        rng = self.rng
        rows, blocks = _draw(rng, 1, 1, 2, 3, 5), _draw(rng, 1, 1, 2, 3)
        pixels = int(rng.integers(1, max(most // (rows * blocks), 1) + 1))
        row_stride = _draw(rng, pixels, pixels, pixels + 1, 2 * pixels, 0)
        block_stride = _draw(rng, rows * row_stride, rows * pixels, rows * row_stride + 3, 0)
        return {
            "rows": rows,
            "blocks": blocks,
            "pixels": pixels,
            "row_stride": row_stride,
            "block_stride": block_stride,
        }

    def _address(self, values: Values, start: int, end: int) -> int:
        word = self.config.word_bytes
        size = 1 + sum(
            (values[count] - 1) * values[step] for count, step in (("blocks", "block_stride"), ("rows", "row_stride"))
        )
        last = (end - start) // word - size - values["pixels"]
        return start + int(self.rng.integers(0, last + 1)) * word

    def _load(self) -> tuple[Opcode, Values]:
        config, rng = self.config, self.rng
        target = Target(_draw(rng, 0, 0, 0, 1, 1, 3, 4))
        if target is Target.RESULT and self._chained:  # saves of the round before may still read there
            target = Target.FEATURE
        values = self._transfer(150 if target is not Target.LUT else 70)
        values |= {
            "target": int(target),
            "address": self._address(values, 0, PARAMETERS),
            "local": int(rng.integers(0, 1 << 9)),
        }
        if target is Target.FEATURE:
            values |= {"row_pitch": int(rng.integers(0, 8)), "block_pitch": int(rng.integers(0, 40))}
            values["first_row"] = int(rng.integers(0, config.feature_banks))
        return Opcode.LOAD, values

    def _save(self) -> tuple[Opcode, Values]:
        values = self._transfer(60)
        values |= {
            "banks": 1,
            "address": self._address(values, OUTPUT, STREAM),
            "local": int(self.rng.integers(0, 512)),
        }
        values["block_skip"] = _draw(self.rng, 0, 0, 3, 100)
        return Opcode.SAVE, values

    def _compute(self) -> tuple[Opcode, Values]:
        opcode = Opcode(_draw(self.rng, *map(int, self.opcodes)))
        while True:
            values = self._pointwise(opcode) if opcode in (Opcode.ADD, Opcode.MUL) else self._window(opcode)
            if self._cost(values) <= self.largest:
                return opcode, values

    @staticmethod
    def _cost(values: Values) -> int:
        result = 1
        for name in ("rows", "cols", "out_blocks", "in_blocks", "kernel_h", "kernel_w"):
            result *= values.get(name, 1)
        return result

    def _places(self) -> Values:
        config, rng = self.config, self.rng
        values = {"lut": int(rng.random() < 0.3), "feature": int(rng.integers(0, config.feature_lines))}
        values |= {"row_pitch": int(rng.integers(0, 8)), "block_pitch": int(rng.integers(0, 40))}
        values |= {
            "parameter": int(rng.integers(0, config.parameter_words)),
            "result": int(rng.integers(0, config.result_words)),
        }
        if values["lut"]:
            values["lut_slot"] = int(rng.integers(0, config.lut_slots))
        return values

    def _pointwise(self, opcode: Opcode) -> Values:
        rng = self.rng
        values = self._places() | {name: int(rng.integers(1, 9)) for name in ("rows", "cols")}
        values["out_blocks"] = int(rng.integers(1, 4))
        words = values["rows"] * values["cols"] * values["out_blocks"]
        apart = (values["result"] + words + int(rng.integers(0, 64))) % self.config.result_words
        values["operand"] = _draw(rng, values["result"], apart)
        half = self.half
        values["parameter"] = half + int(rng.integers(0, half // 2)) * 2
        if opcode is Opcode.MUL:  # only these constants have zero points of eight bits
            values["parameter"] += 1
            if rng.random() < 0.5:
                values |= {"mode": 1, "operand": apart}
        return values

    def _window(self, opcode: Opcode) -> Values:
        rng, config = self.rng, self.config
        values = self._places() | {name: int(rng.integers(1, 9)) for name in ("rows", "cols")}
        values["out_blocks"] = int(rng.integers(1, 4))
        widest = {Opcode.CONV: 6, Opcode.DWCONV: config.channels, Opcode.POOL: 12}[opcode]
        values |= {"kernel_h": int(rng.integers(1, 5)), "kernel_w": int(rng.integers(1, widest + 1))}
        values |= {name: _draw(rng, 1, 1, 2, 3, 5) for name in ("stride_y", "stride_x")}
        values |= {name: _draw(rng, 1, 1, 2, 3, 7) for name in ("dilation_y", "dilation_x")}
        values |= {"start_y": int(rng.integers(-5, 5)), "start_x": int(rng.integers(-6, 6))}
        values |= {"in_rows": int(rng.integers(1, 20)), "in_cols": int(rng.integers(1, 30))}
        values |= {name: int(rng.integers(-128, 128)) for name in ("pad_value", "zero_point")}
        values |= {"low": _draw(rng, -128, -128, -90, 20), "high": _draw(rng, 127, 127, 100, -20)}
        values |= {"first": 1, "last": 1}
        if opcode is Opcode.CONV:
            values |= {
                "in_blocks": _draw(rng, 1, 2, 3, 9),
                "shape": int(rng.integers(0, 3)),
                "residual": int(rng.random() < 0.4),
            }
            values["lut_after_add"] = int(rng.random() < 0.5)
        if opcode is Opcode.POOL:
            values["mode"] = int(rng.integers(0, 2))
        if rng.random() < 0.25 and not (opcode is Opcode.POOL and values["mode"] == 0):
            values |= {
                "rows": 1,
                "cols": 1,
                "out_blocks": 1,
                "first": int(rng.integers(0, 2)),
                "last": int(rng.integers(0, 2)),
            }
        values["parameter"] = int(rng.integers(0, self.half))
        if opcode is not Opcode.POOL:
            values["weight"] = int(rng.integers(0, config.weight_words))
        return values


def _encoded(pair: tuple[Opcode, Values]) -> bytes:
    return encode(pair[0], **pair[1])


def parameters(
    rng: np.random.Generator, config: HardwareConfig, window: npt.NDArray[np.uint8], start: int, words: int
) -> None:
    """Parameter words at byte ``start`` of the window that scale typical sums to the range of results."""
    for number in range(words):
        place = start + number * config.parameter_word_bytes
        for channel in range(config.channels):
            bias = int(rng.integers(-3000, 3000)).to_bytes(4, "little", signed=True)
            scale = int(rng.integers(1 << 15, 1 << 16)).to_bytes(2, "little")
            shift = bytes([int(rng.integers(17, 25)), 0])
            window[place + 8 * channel : place + 8 * channel + 8] = np.frombuffer(bias + scale + shift, np.uint8)


def constants(
    rng: np.random.Generator, config: HardwareConfig, window: npt.NDArray[np.uint8], start: int, words: int
) -> None:
    """Parameter words at byte ``start`` of the window that hold the constants of additions and products."""
    for number in range(words):
        place = start + number * config.parameter_word_bytes
        small = number % 2 == 1
        a, b = (int(v) for v in (rng.integers(-128, 128, 2) if small else rng.integers(-65535, 65536, 2)))
        c = int(rng.integers(1 << 14, 1 << 16)) if small else int(rng.integers(-(1 << 22), 1 << 22))
        rest = [int(rng.integers(14, 26)), *(int(v) for v in rng.integers(0, 256, 3))]
        word = b"".join(v.to_bytes(4, "little", signed=True) for v in (a, b, c)) + bytes(rest)
        window[place : place + 16] = np.frombuffer(word, np.uint8)
