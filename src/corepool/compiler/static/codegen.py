"""Code generation: one operation under one tiling becomes instruction frame packages.

It must not know how packages are dealt or in what buffers they land: addresses on chip are those of buffer 0, and token
flags and bank masks are left to the linker. DDR addresses are final.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.compiler.static.encode import Instructions, encode_many
from corepool.compiler.static.lower import Operation, Piece
from corepool.compiler.static.memory import Constants
from corepool.compiler.static.search import ORDERS, conv_shapes, package_latency, tile_costs
from corepool.compiler.static.tiling import Tiling, chip_stride, geometry, machine, row_skip
from corepool.compiler.tables import IFP_COLUMNS, STEP_COLUMNS
from corepool.config import HardwareConfig
from corepool.isa.table import Opcode, PoolMode, Shape, Target

IntArray = npt.NDArray[np.int64]


@dataclass
class Code:
    """Instructions [n, 4] (uint64), steps [s, len(STEP_COLUMNS)] and packages [p, len(IFP_COLUMNS)] (int32), counted
    from 0."""

    instructions: Instructions
    steps: npt.NDArray[np.int32]
    packages: npt.NDArray[np.int32]


@dataclass
class Addresses:
    """Window offsets that an operation needs, in bytes, and first blocks of its maps within their storage."""

    input: int
    output: int
    operand: int
    constants: Constants
    input_block: int = 0
    output_block: int = 0
    operand_block: int = 0


@dataclass
class _Tiles:
    """All tiles of a tiling as arrays [t]: half-open ranges of output rows, columns and blocks; keys of what neighbours
    share."""

    y: IntArray
    y_end: IntArray
    x: IntArray
    x_end: IntArray
    b: IntArray
    b_end: IntArray
    place: IntArray
    channel: IntArray
    extra: dict[str, IntArray] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.y)


def _tiles(tiling: Tiling) -> _Tiles:
    sizes = [len(cuts) - 1 for cuts in (tiling.rows, tiling.cols, tiling.blocks)]
    order = ["hwc".index(direction) for direction in ORDERS[tiling.order]]
    places = [a.reshape(-1) for a in np.indices([sizes[direction] for direction in order])]
    row, col, channel = (places[order.index(direction)] for direction in range(3))
    if tiling.bands > 1:
        band = sizes[0] * sizes[1] // tiling.bands
        first, channel, place = (a.reshape(-1) for a in np.indices([tiling.bands, sizes[2], band]))
        row, col = np.divmod(first * band + place, sizes[1])
    rows, cols, blocks = (np.array(cuts, np.int64) for cuts in (tiling.rows, tiling.cols, tiling.blocks))
    return _Tiles(
        rows[row], rows[row + 1], cols[col], cols[col + 1], blocks[channel], blocks[channel + 1],
        row * sizes[1] + col, channel
    )  # fmt: skip


def generate(
    operation: Operation, tiling: Tiling, shapes: tuple[Shape, ...], where: Addresses, config: HardwareConfig
) -> Code:
    """The packages of an operation under a tiling, in the order in which they are dealt. ``shapes``: the arrangements
    of pixels that tiles may choose among."""
    kind = _Accumulating if operation.accumulates else _Plain
    return kind(operation, tiling, where, config).code(shapes)


class _Generator:
    """What both kinds of packages share: loads, saves and tables. One instance generates one operation under one
    tiling."""

    def __init__(self, operation: Operation, tiling: Tiling, where: Addresses, config: HardwareConfig) -> None:
        self.op, self.tiling, self.tiles, self.where, self.config = operation, tiling, _tiles(tiling), where, config
        self.word = config.word_bytes
        self.skip = row_skip(operation)

    def input_window(self, ky: tuple[int, int], kx: tuple[int, int]) -> dict[str, IntArray]:
        """The input rows and columns of each tile for a range of kernel rows and columns, and where output (0, 0)
        begins in them."""
        op, t = self.op, self.tiles
        _, height, width = op.in_size
        out: dict[str, IntArray] = {}
        if self.skip:
            out["row"], out["rows"], out["start_y"] = t.y * op.stride[0], t.y_end - t.y, np.zeros_like(t.y)
        else:
            out["row"], out["rows"], out["start_y"] = _span(
                t.y, t.y_end, op.stride[0], op.dilation[0], ky, op.padding[0], height
            )
        out["col"], out["cols"], out["start_x"] = _span(
            t.x, t.x_end, op.stride[1], op.dilation[1], kx, op.padding[1], width
        )
        out["pitch"] = -(-out["cols"] // self.config.feature_banks)
        return out

    def load_features(self, window: dict[str, IntArray], block: IntArray, blocks: IntArray) -> Instructions:
        _, height, width = self.op.in_size
        step, plane = width * (self.op.stride[0] if self.skip else 1), self.op.in_plane or height * width
        address = self.where.input + (block * plane + window["row"] * width + window["col"]) * self.word
        return encode_many(
            Opcode.LOAD,
            self.tiles.count,
            target=Target.FEATURE,
            address=address,
            blocks=blocks,
            rows=window["rows"],
            pixels=window["cols"],
            row_stride=step,
            block_stride=plane,
            row_pitch=window["pitch"],
            block_pitch=window["rows"] * window["pitch"],
        )

    def load_linear(
        self, target: Target, address: npt.ArrayLike, size: npt.ArrayLike, local: npt.ArrayLike = 0
    ) -> Instructions:
        """Loads of ``size`` bytes in one row."""
        pixels = np.asarray(size) // self.word
        return encode_many(
            Opcode.LOAD, self.tiles.count, target=target, address=address, blocks=1, rows=1, pixels=pixels, local=local
        )

    def _result_map(self, base: int, plane: int) -> dict[str, npt.ArrayLike]:
        t, (_, height, width) = self.tiles, self.op.out_size
        plane = plane or height * width
        return {
            "address": base + (t.b * plane + t.y * width + t.x) * self.word,
            "blocks": t.b_end - t.b,
            "rows": t.y_end - t.y,
            "pixels": t.x_end - t.x,
            "row_stride": width,
            "block_stride": plane,
        }

    def save(self) -> Instructions:
        return encode_many(
            Opcode.SAVE, self.tiles.count, banks=1, **self._result_map(self.where.output, self.op.out_plane)
        )

    def load_operand(self) -> Instructions:
        t = self.tiles
        if self.op.operand_is_vector:
            size = (t.b_end - t.b) * self.word
            return self.load_linear(
                Target.RESULT, self.where.operand + t.b * self.word, size, local=self.result_words()
            )
        region = self._result_map(self.where.operand, self.op.operand_plane)
        return encode_many(Opcode.LOAD, t.count, target=Target.RESULT, **region)

    def result_words(self) -> IntArray:
        t = self.tiles
        words: IntArray = (t.b_end - t.b) * (t.y_end - t.y) * (t.x_end - t.x)
        return words

    def parameter_word(self) -> IntArray:
        """First parameter word of each tile: its output block, or for sums the word of its count."""
        if self.op.opcode is not Opcode.POOL:
            return self.tiles.b
        if not self.op.count_of:
            return np.zeros_like(self.tiles.b)
        rows, cols = (0, *self.op.row_cuts), (0, *self.op.col_cuts)
        pairs = zip(self.tiles.y.tolist(), self.tiles.x.tolist(), strict=True)
        return np.array([self.op.count_of[_floor(rows, y), _floor(cols, x)] for y, x in pairs], np.int64)

    def parameter_words(self) -> IntArray:
        """How many parameter words ``constant_loads`` fills."""
        blocks = np.ones_like(self.tiles.b) if self.op.opcode is Opcode.POOL else self.tiles.b_end - self.tiles.b
        used: IntArray = blocks * int(self.op.parameters is not None) + int(self.op.constants is not None)
        return used

    def constant_loads(self) -> list[Instructions]:
        """LUT, parameters and the constants of an addition; the parameters' word for the addition follows those of the
        blocks."""
        c, size = self.where.constants, self.config.parameter_word_bytes
        loads = []
        if self.op.lut is not None:
            loads.append(self.load_linear(Target.LUT, c.lut, 256))
        blocks: IntArray = self.tiles.b_end - self.tiles.b
        if self.op.parameters is not None:
            if self.op.opcode is Opcode.POOL:
                blocks = np.ones_like(blocks)
            address = c.parameters + self.parameter_word() * size
            loads.append(self.load_linear(Target.PARAMETER, address, blocks * size))
        if self.op.constants is not None:
            behind = blocks if self.op.parameters is not None else np.zeros_like(blocks)
            loads.append(self.load_linear(Target.PARAMETER, c.constants, size, local=behind))
        return loads

    def compute(
        self,
        shape: npt.ArrayLike,
        window: dict[str, IntArray],
        ky: tuple[int, int],
        kx: tuple[int, int],
        **more: npt.ArrayLike,
    ) -> Instructions:
        op, t = self.op, self.tiles
        stride = chip_stride(op)
        values: dict[str, npt.ArrayLike] = {
            "out_blocks": t.b_end - t.b,
            "rows": t.y_end - t.y,
            "cols": t.x_end - t.x,
            "row_pitch": window["pitch"],
            "block_pitch": window["rows"] * window["pitch"],
            "lut": int(op.lut is not None),
        }
        if op.opcode in (Opcode.ADD, Opcode.MUL):
            values["operand"] = self.result_words() if op.operand_is_vector else 0
            if op.opcode is Opcode.MUL:
                values["mode"] = op.mode
            return encode_many(op.opcode, t.count, **values, **more)
        values |= {
            "first": 1, "last": 1, "kernel_h": ky[1] - ky[0], "kernel_w": kx[1] - kx[0], "stride_y": stride[0],
            "stride_x": stride[1],
            "dilation_y": op.dilation[0], "dilation_x": op.dilation[1], "pad_value": op.pad_value,
            "start_y": window["start_y"],
            "start_x": window["start_x"], "in_rows": window["rows"], "in_cols": window["cols"],
            "zero_point": op.zero_point,
            "low": op.low, "high": op.high,
        }  # fmt: skip
        if op.opcode is Opcode.POOL:
            values["mode"] = op.mode
            if op.mode == PoolMode.MAX:
                values["zero_point"] = 0
        if op.opcode is Opcode.CONV:
            values |= {
                "shape": shape,
                "residual": int(op.operand is not None),
                "lut_after_add": int(op.lut_after_add),
            }
        return encode_many(op.opcode, t.count, **(values | more))

    def packages(self, steps: int, latency: IntArray) -> npt.NDArray[np.int32]:
        """The table of packages: each has ``steps`` steps; regions are in blocks of the storage and true rows."""
        op, t, w = self.op, self.tiles, self.where
        y, y_end = self._true_rows(t)
        if op.flat and not op.dense:
            in_y, in_end = y, y_end
        elif op.dense:  # everything
            in_y, in_end = np.zeros_like(y), np.full_like(y, 1 << 20)
        else:
            window = self.input_window((0, op.kernel[0]), (0, op.kernel[1]))
            reach = window["rows"] * op.stride[0] if self.skip else window["rows"]
            in_y, in_end = window["row"], window["row"] + reach
        in_b, in_b_end = (t.b, t.b_end) if op.depthwise else (t.extra["in_block"], t.extra["in_block_end"])
        if op.dense:
            in_b, in_b_end = np.zeros_like(y), np.full_like(y, 1 << 20)
        columns = {
            "first_step": np.arange(t.count) * steps,
            "steps": np.full(t.count, steps),
            "latency": latency,
            "out_row": y,
            "out_row_end": y_end,
            "out_block": w.output_block + t.b,
            "out_block_end": w.output_block + t.b_end,
            "in_row": in_y,
            "in_row_end": in_end,
            "in_block": w.input_block + in_b,
            "in_block_end": w.input_block + in_b_end,
            "operand_row": np.zeros_like(y) if op.operand_is_vector else y,
            "operand_row_end": np.full_like(y, 1 << 20) if op.operand_is_vector else y_end,
            "operand_block": w.operand_block + t.b,
            "operand_block_end": w.operand_block + t.b_end,
            "flat_start": t.x if op.flat else np.full_like(y, -1),
            "width": np.full_like(y, op.true_width),
            "flat_end": t.x_end if op.flat and not op.dense else np.full_like(y, -1),
        }
        return np.stack([columns[name] for name in IFP_COLUMNS], axis=1).astype(np.int32)

    def _true_rows(self, t: _Tiles) -> tuple[IntArray, IntArray]:
        if not self.op.flat:
            return t.y, t.y_end
        width = self.op.true_width
        return t.x // width, (t.x_end - 1) // width + 1


class _Plain(_Generator):
    """Packages of one step: a tile's loads, one compute instruction, one save."""

    def code(self, shapes: tuple[Shape, ...]) -> Code:
        op, t = self.op, self.tiles
        in_block, in_end = self._input_blocks()
        t.extra["in_block"], t.extra["in_block_end"] = in_block, in_end
        kernel = ((0, op.kernel[0]), (0, op.kernel[1]))
        window = self.input_window(*kernel)
        constants = self.constant_loads()
        words = np.zeros(t.count, np.int64)
        if op.weights is not None:
            size = self.config.weight_word_bytes
            counts = op.block_words if op.block_words is not None else np.full(op.out_size[0], op.words, np.int64)
            starts = np.concatenate([[0], np.cumsum(counts)])
            address, words = self.where.constants.weights + starts[t.b] * size, starts[t.b_end] - starts[t.b]
            constants.append(self.load_linear(Target.WEIGHT, address, words * size))
        more: dict[str, Any] = {"in_blocks": in_end - in_block} if op.opcode is Opcode.CONV else {}
        columns = [
            *constants,
            self.load_features(window, in_block, in_end - in_block),
            *([self.load_operand()] if op.operand is not None else []),
            self.compute(self._shapes(shapes), window, *kernel, **more),
            self.save(),
        ]
        instructions = np.stack(columns, axis=1).reshape(-1, 4)
        steps = {
            "first_instruction": np.arange(t.count) * len(columns),
            "weight_loads": np.full(t.count, len(constants)),
            "feature_loads": np.ones(t.count),
            "operand_loads": np.full(t.count, int(op.operand is not None)),
            "computes": np.ones(t.count),
            "saves": np.ones(t.count),
            "weight_key": self.parameter_word()
            if op.opcode is Opcode.POOL
            else t.channel * int(op.parameters is not None),
            "feature_key": np.arange(t.count) if op.depthwise or len(op.segments) > 1 else t.place,
            "weight_words": words,
            "parameter_words": self.parameter_words(),
            "tables": np.full(t.count, int(op.lut is not None)),
        }
        table = np.stack([steps[name] for name in STEP_COLUMNS], axis=1).astype(np.int32)
        return Code(instructions, table, self.packages(1, self._latency(shapes)))

    def _input_blocks(self) -> tuple[IntArray, IntArray]:
        if self.op.depthwise:
            return self.tiles.b, self.tiles.b_end
        begins = np.array([s.out[0] for s in self.op.segments])
        index = np.searchsorted(begins, self.tiles.b, side="right") - 1
        inp = np.array([s.inp for s in self.op.segments], np.int64)[index]
        return inp[:, 0], inp[:, 1]

    def _shapes(self, shapes: tuple[Shape, ...]) -> IntArray:
        """The arrangement of pixels that is best for each tile."""
        t = self.tiles
        numbers = geometry(self.op, self.config, shapes)
        chosen: IntArray = conv_shapes(numbers, machine(self.config), t.y_end - t.y, t.x_end - t.x)
        return chosen

    def _latency(self, shapes: tuple[Shape, ...]) -> IntArray:
        numbers = geometry(self.op, self.config, shapes).tobytes()
        weight_lines = self.op.words * self.config.weight_word_bytes // self.config.ddr.line_bytes
        return _package_latencies(numbers, weight_lines, self.op.depthwise, self.tiling, self.config)


@lru_cache(maxsize=4096)
def _package_latencies(
    numbers: bytes, weight_lines: int, depthwise: bool, tiling: Tiling, config: HardwareConfig
) -> IntArray:
    """Predicted latency of every package of a tiling, [t]; once for all layers of the same geometry (``numbers``)."""
    g, m, t = np.frombuffer(numbers, np.int64).copy(), machine(config), _tiles(tiling)
    result = np.empty(t.count, np.int64)
    shared_input = bool(np.any(t.place[1:] == t.place[:-1])) and not depthwise
    shared_weights = bool(np.any(t.channel[1:] == t.channel[:-1]))
    sizes = zip(t.y, t.y_end - t.y, t.x, t.x_end - t.x, t.b_end - t.b, strict=True)
    for i, (y, h, x, w, b) in enumerate(sizes):
        f, o, c, r, _ = tile_costs(g, m, int(y), int(h), int(x), int(w), int(b))
        lines = r + o + (0 if shared_input else max(f, 0)) + (0 if shared_weights else int(b) * weight_lines)
        result[i] = package_latency(c, lines, m)
    return result


class _Accumulating(_Generator):
    """Packages of one output group whose products come in several pieces, each with its own loads and compute
    instruction."""

    def code(self, shapes: tuple[Shape, ...]) -> Code:
        op, t = self.op, self.tiles
        t.extra["in_block"], t.extra["in_block_end"] = np.zeros_like(t.b), np.full_like(t.b, op.in_size[0])
        columns: list[Instructions] = []
        steps: dict[str, list[IntArray]] = {name: [] for name in STEP_COLUMNS}
        position = word = 0
        work = np.zeros(t.count, np.int64)
        for number, piece in enumerate(op.pieces):
            last = number == len(op.pieces) - 1
            group, lines, cycles = self._piece(piece, number == 0, last, word)
            word += _piece_words(piece)
            counts = [len(group["weight_loads"]), 1, int(last and op.operand is not None), 1, int(last)]
            steps["weight_words"].append(np.full(t.count, 0 if op.weights is None else _piece_words(piece)))
            steps["parameter_words"].append(self.parameter_words() * int(last))
            steps["tables"].append(np.full(t.count, int(last and op.lut is not None)))
            for name, values in zip(STEP_COLUMNS[1:6], counts, strict=True):
                steps[name].append(np.full(t.count, values))
            steps["first_instruction"].append(np.full(t.count, position))
            steps["weight_key"].append(np.arange(t.count) * len(op.pieces) + number)
            whole_input = op.dense and self._input_fits()
            steps["feature_key"].append(
                np.zeros_like(t.b) if whole_input else np.arange(t.count) * len(op.pieces) + number
            )
            for part in group.values():
                columns += part
                position += len(part)
            work += package_latency(cycles, lines, machine(self.config))
        instructions = np.stack(columns, axis=1).reshape(-1, 4)
        steps["first_instruction"] = [s + np.arange(t.count) * position for s in steps["first_instruction"]]
        table = np.stack([np.stack(steps[name], axis=1).reshape(-1) for name in STEP_COLUMNS], axis=1).astype(np.int32)
        return Code(instructions, table, self.packages(len(op.pieces), work))

    def _input_fits(self) -> bool:
        return -(-self.op.in_size[2] // self.config.feature_banks) <= self.config.feature_lines // 2

    def _piece(
        self, piece: Piece, first: bool, last: bool, word: int
    ) -> tuple[dict[str, list[Instructions]], int, int]:
        """Instructions of one piece by kind, the lines that it loads and the cycles that it computes."""
        op, t, config = self.op, self.tiles, self.config
        window = self.input_window(piece.ky, piece.kx)
        block, blocks = (
            (t.b, np.ones_like(t.b))
            if op.depthwise
            else (np.full_like(t.b, piece.blocks[0]), np.full_like(t.b, piece.blocks[1] - piece.blocks[0]))
        )
        whole = op.dense and self._input_fits()
        feature = 0
        loads = window
        if whole:
            loads = self.input_window((0, 1), (0, op.kernel[1]))
            feature = piece.kx[0] // config.feature_banks
        group: dict[str, list[Instructions]] = {"weight_loads": self.constant_loads() if last else []}
        words = _piece_words(piece)
        if op.weights is not None:
            size = config.weight_word_bytes
            address = self.where.constants.weights + (t.b * op.words + word) * size
            group["weight_loads"].append(self.load_linear(Target.WEIGHT, address, words * size))
        group["feature_loads"] = [self.load_features(loads, block, blocks)]
        group["operand_loads"] = [self.load_operand()] if last and op.operand is not None else []
        more: dict[str, Any] = {"first": int(first), "last": int(last), "feature": feature}
        if op.opcode is Opcode.CONV:
            more |= {"in_blocks": blocks, "residual": int(last and op.operand is not None)}
        if not last:
            more |= {"lut": 0, "lut_after_add": 0} if op.opcode is Opcode.CONV else {"lut": 0}
        group["computes"] = [self.compute(int(Shape.ROW), window, piece.ky, piece.kx, **more)]
        group["saves"] = [self.save()] if last else []
        lines = words * config.weight_word_bytes // config.ddr.line_bytes
        return group, lines, words + config.pixels + config.compute_latency


def _piece_words(piece: Piece) -> int:
    return (piece.ky[1] - piece.ky[0]) * (piece.kx[1] - piece.kx[0]) * (piece.blocks[1] - piece.blocks[0])


def _floor(cuts: tuple[int, ...], value: int) -> int:
    return max(cut for cut in cuts if cut <= value)


def _span(
    low: IntArray, high: IntArray, stride: int, dilation: int, kernel: tuple[int, int], pad: int, size: int
) -> tuple[IntArray, IntArray, IntArray]:
    """First input position inside the map, how many are loaded (at least one), and where kernel position 0 of output 0
    begins."""
    begin = low * stride - pad + kernel[0] * dilation
    end = (high - 1) * stride - pad + (kernel[1] - 1) * dilation + 1
    first = np.clip(begin, 0, size - 1)
    stop = np.maximum(np.minimum(end, size), first + 1)
    return first, stop - first, begin - first
