"""Walks the loops of a compute instruction: in each cycle, which input, weight and result words belong to the step.

It must not know data or memories; widths of on-chip addresses come from the configuration.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.arithmetic import plain_product
from corepool.hardware.decode import get, is_opcode, shape_sizes
from corepool.hardware.interfaces import INSTRUCTION_BITS
from corepool.hardware.memories import bits_for
from corepool.isa.table import Opcode, PoolMode, Shape

POSITION = signed(20)  # of an input row or column; the largest is 8190 * 15 + 4094 * 31 + 255


def log2(value: int) -> int:
    """Of a power of two."""
    return value.bit_length() - 1


def plan_layout(config: HardwareConfig) -> data.StructLayout:
    """What follows from an instruction and stays while it runs."""
    pixels, lines = config.pixels, bits_for(config.feature_lines)
    results, bank = bits_for(config.result_words), bits_for(config.feature_banks)
    return data.StructLayout(
        {
            "conv": 1,
            "depthwise": 1,
            "pool": 1,
            "maximum": 1,
            "add": 1,
            "mul": 1,
            "pixel_rows": data.ArrayLayout(POSITION, pixels),  # input rows from the step's first pixel to this one
            "pixel_cols": data.ArrayLayout(POSITION, pixels),
            "pixel_lines": data.ArrayLayout(lines, pixels),
            "pixel_banks": data.ArrayLayout(bank, pixels),
            "pixel_turns": data.ArrayLayout(bits_for(pixels), pixels),  # in which of the step's cycles it is read
            "pixel_results": data.ArrayLayout(results, pixels),
            "row_of": data.ArrayLayout(bits_for(pixels), pixels),  # output rows and columns from the first pixel
            "col_of": data.ArrayLayout(bits_for(pixels), pixels),
            "windows": 16,  # cycles for a kernel row, less one
            "reach": 17,  # of the last kernel column
            "clash": bits_for(pixels),  # cycles for a tap, less one
        }
    )


def step_layout(config: HardwareConfig) -> data.StructLayout:
    """One cycle's work: position in the input, place in the feature memory, weight word, and what it means for the
    sums."""
    return data.StructLayout(
        {
            "valid": 1,
            "x": POSITION,
            "y": POSITION,
            "line": bits_for(config.feature_lines),
            "sub": 16,  # cycle within a tap, or window within a kernel row
            "weight": bits_for(config.weight_words),
            "lanes": config.pixels,  # pixels that lie in the output
            "begins": 1,  # the first step of an output group
            "ends": 1,  # the last step of an output group
            "result": bits_for(config.result_words),
            "operand": bits_for(config.result_words),
            "parameter": bits_for(config.parameter_words),
        }
    )


class Sequencer(wiring.Component):
    """``start`` in cycle s with ``instruction``; ``op`` is that instruction and ``plan`` what follows from it,
    from s + 1 and s + FIRST_STEP on. Steps come from s + FIRST_STEP on. ``ending`` in the last cycle of the last
    group."""

    FIRST_STEP = 3

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "instruction": In(INSTRUCTION_BITS),
                "op": Out(INSTRUCTION_BITS),
                "plan": Out(plan_layout(config)),
                "step": Out(step_layout(config)),
                "ending": Out(1),
                "reset": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        first, second = Signal(), Signal()
        m.d.sync += [first.eq(self.start & ~self.reset), second.eq(first & ~self.reset)]
        with m.If(self.start):
            m.d.sync += self.op.eq(self.instruction)
        self._products(m)
        self._offsets(m)
        self._loops(m, second)
        return m

    def _field(self, name: str, opcode: Opcode = Opcode.CONV) -> Value:
        return get(self.op, opcode, name)

    def _products(self, m: Module) -> None:
        """Cycle s + 1."""
        config, field, plan = self.config, self._field, self.plan
        pixels, lines = config.pixels, bits_for(config.feature_lines)
        self.elementwise = is_opcode(self.op, Opcode.ADD, Opcode.MUL)
        for name, opcode in (
            ("conv", Opcode.CONV),
            ("depthwise", Opcode.DWCONV),
            ("pool", Opcode.POOL),
            ("add", Opcode.ADD),
            ("mul", Opcode.MUL),
        ):
            m.d.sync += plan[name].eq(is_opcode(self.op, opcode))
        maximum = is_opcode(self.op, Opcode.POOL) & (get(self.op, Opcode.POOL, "mode") == PoolMode.MAX)
        m.d.sync += plan.maximum.eq(maximum)
        shape = Signal(2)
        with m.If(is_opcode(self.op, Opcode.CONV)):
            m.d.comb += shape.eq(field("shape"))
        sizes = shape_sizes(config)
        self.tall, self.wide = Signal(range(pixels + 1)), Signal(range(pixels + 1))
        self.tall_bits = Signal(range(log2(pixels) + 1))
        with m.Switch(shape):
            for number in Shape:
                rows, cols = sizes[number]
                with m.Case(int(number)):
                    for p in range(pixels):
                        row, col = (p // cols, p % cols)
                        m.d.sync += [plan.row_of[p].eq(row), plan.col_of[p].eq(col)]
                    m.d.sync += [self.tall.eq(rows), self.wide.eq(cols), self.tall_bits.eq(log2(rows))]
        with m.If(self.elementwise):
            for p in range(pixels):
                m.d.sync += [plan.row_of[p].eq(0), plan.col_of[p].eq(0)]
            m.d.sync += [self.tall.eq(1), self.wide.eq(1), self.tall_bits.eq(0)]
        self.row_lines, self.kernel_lines, self.start_lines = Signal(lines), Signal(lines), Signal(lines)
        self.map_words = Signal(bits_for(config.result_words))
        self.spread = Signal(range(16 * pixels))
        stride_y, stride_x = self._stride()
        some = Mux(field("cols") < pixels, field("cols"), pixels)[: pixels.bit_length()]
        m.d.sync += [
            self.row_lines.eq(plain_product(field("row_pitch"), stride_y)),
            self.kernel_lines.eq(plain_product(field("row_pitch"), field("dilation_y"))),
            self.start_lines.eq(plain_product(field("row_pitch"), self._start_y())),
            self.map_words.eq(plain_product(field("cols"), field("rows"))),
            self.spread.eq(plain_product(stride_x, (some - 1)[: pixels.bit_length()])),
            plan.reach.eq(plain_product((field("kernel_w") - 1)[:12], field("dilation_x"))),
        ]

    def _stride(self) -> tuple[Value, Value]:
        one = self.elementwise
        return Mux(one, 1, self._field("stride_y")), Mux(one, 1, self._field("stride_x"))

    def _start_y(self) -> Value:
        return Mux(self.elementwise, 0, self._field("start_y"))

    def _start_x(self) -> Value:
        return Mux(self.elementwise, 0, self._field("start_x"))

    def _offsets(self, m: Module) -> None:
        """Cycle s + 2."""
        config, field, plan = self.config, self._field, self.plan
        stride_y, stride_x = self._stride()
        factor = max(config.pixels - 1, 1)
        banks: list[Value] = []
        for p in range(config.pixels):
            row, col = plan.row_of[p], plan.col_of[p]
            bank = Signal(bits_for(config.feature_banks), name=f"bank_{p}")
            up = plain_product(stride_y, row)[: len(bank)]
            m.d.comb += bank.eq(
                plain_product(stride_x, col) + (up << log2(config.pixels)) - up
                if factor > 1
                else plain_product(stride_x, col) + up
            )
            turn = Signal(bits_for(config.pixels), name=f"turn_{p}")
            m.d.comb += turn.eq(sum((other == bank for other in banks), start=0))
            banks.append(bank)
            m.d.sync += [
                plan.pixel_rows[p].eq(plain_product(stride_y, row)),
                plan.pixel_cols[p].eq(plain_product(stride_x, col)),
                plan.pixel_lines[p].eq(plain_product(self.row_lines, row)),
                plan.pixel_banks[p].eq(bank),
                plan.pixel_turns[p].eq(turn),
                plan.pixel_results[p].eq(plain_product(field("cols"), row) + col),
            ]
            if p == 0:
                worst: Value = turn
            else:
                more = Signal.like(turn, name=f"worst_{p}")
                m.d.comb += more.eq(Mux(turn > worst, turn, worst))
                worst = more
        m.d.sync += plan.clash.eq(worst)
        m.d.sync += plan.windows.eq((self.spread + plan.reach) >> bits_for(config.feature_banks))

    def _loops(self, m: Module, begin: Value) -> None:
        """The loop nest: sub, block, kernel column, kernel row; output columns, rows, blocks."""
        config, field = self.config, self._field
        at = self._at = _Loops(config)
        ends = self._ends(m)
        partial = ~self.elementwise & ~field("last")
        short = self.elementwise | partial  # such groups may follow each other faster than P cycles
        stepping, group_end = Signal(), Signal()
        full = at.quiet == config.pixels - 1
        m.d.comb += stepping.eq(at.active & ~at.waiting)
        m.d.comb += group_end.eq(at.active & (at.waiting | ends["step"]) & (short | full))
        m.d.comb += self.ending.eq(group_end & ends["col"] & ends["row"] & ends["group"])
        with m.If(stepping & ~ends["step"]):
            self._next_tap(m, ends)
        with m.If(stepping & ends["step"]):
            m.d.sync += at.waiting.eq(1)
        with m.If(at.active & ~full):
            m.d.sync += at.quiet.eq(at.quiet + 1)
        with m.If(group_end):
            self._next_group(m, ends)
        with m.If(begin):
            self._begin(m)
        with m.If(self.reset):
            m.d.sync += at.active.eq(0)
        self._describe(m, stepping, ends["step"])

    def _ends(self, m: Module) -> dict[str, Signal]:
        """Which loops are at their last turn."""
        at, field, plan = self._at, self._field, self.plan
        window = plan.depthwise | plan.pool
        last = {
            "sub": at.sub == Mux(plan.conv, plan.clash, Mux(window, plan.windows, 0)),
            "block": ~plan.conv | (at.block == field("in_blocks") - 1),
            "kx": ~plan.conv | (at.kx == field("kernel_w") - 1),
            "ky": self.elementwise | (at.ky == field("kernel_h") - 1),
            "col": at.ox + self.wide >= field("cols"),
            "row": at.oy + self.tall >= field("rows"),
            "group": at.og == field("out_blocks") - 1,
        }
        ends = {name: Signal(name=f"last_{name}") for name in (*last, "step")}
        m.d.comb += [ends[name].eq(value) for name, value in last.items()]
        m.d.comb += ends["step"].eq(ends["sub"] & ends["block"] & ends["kx"] & ends["ky"])
        return ends

    def _at_group(self, x: Value, y: Value, line: Value) -> list[Any]:
        """Back to the first tap of a group."""
        at = self._at
        inner = [counter.eq(0) for counter in (at.sub, at.block, at.kx, at.ky, at.quiet, at.waiting)]
        return [*inner, at.x.eq(x), at.y.eq(y), at.line.eq(line), at.kernel_line.eq(line)]

    def _next_group(self, m: Module, ends: dict[str, Signal]) -> None:
        """The outer loops go on: to the right, down, or to the next output block."""
        at, field, plan = self._at, self._field, self.plan
        stride_y, stride_x = self._stride()
        vector = plan.mul & get(self.op, Opcode.MUL, "mode")  # one operand word for each block
        start_x, start_y = self._start_x(), self._start_y()
        m.d.sync += at.operand.eq(at.operand + ~vector)
        with m.If(~ends["col"]):
            right = Signal(POSITION)
            m.d.comb += right.eq(at.group_x + plain_product(stride_x, self.wide))
            m.d.sync += [*self._at_group(right, at.group_y, at.row_line), at.group_x.eq(right)]
            m.d.sync += [at.ox.eq(at.ox + self.wide), at.weight.eq(at.block_weight)]
            m.d.sync += at.result.eq(at.result + self.wide)
        with m.Elif(~ends["row"]):
            down, line, result = Signal(POSITION), Signal.like(at.line), Signal.like(at.result)
            m.d.comb += down.eq(at.group_y + (stride_y << self.tall_bits))
            m.d.comb += line.eq(at.row_line + (self.row_lines << self.tall_bits))
            m.d.comb += result.eq(at.row_result + (field("cols") << self.tall_bits))
            m.d.sync += [*self._at_group(start_x, down, line), at.group_x.eq(start_x), at.group_y.eq(down)]
            m.d.sync += [at.row_line.eq(line), at.ox.eq(0), at.oy.eq(at.oy + self.tall)]
            m.d.sync += [at.weight.eq(at.block_weight), at.result.eq(result), at.row_result.eq(result)]
        with m.Else():
            line, result = Signal.like(at.line), Signal.like(at.result)
            m.d.comb += line.eq(at.block_line + Mux(plan.conv, 0, field("block_pitch")))
            m.d.comb += result.eq(at.block_result + self.map_words)
            m.d.sync += [*self._at_group(start_x, start_y, line), at.group_x.eq(start_x), at.group_y.eq(start_y)]
            m.d.sync += [at.row_line.eq(line), at.block_line.eq(line), at.ox.eq(0), at.oy.eq(0), at.og.eq(at.og + 1)]
            m.d.sync += [at.weight.eq(at.weight + 1), at.block_weight.eq(at.weight + 1)]
            m.d.sync += [place.eq(result) for place in (at.result, at.row_result, at.block_result)]
            m.d.sync += at.parameter.eq(at.parameter + ~plan.pool)
            with m.If(vector):
                m.d.sync += at.operand.eq(at.operand + 1)
            with m.If(ends["group"]):
                m.d.sync += at.active.eq(0)

    def _begin(self, m: Module) -> None:
        """All loops at their first turn."""
        at, field = self._at, self._field
        top = Signal.like(at.line)
        m.d.comb += top.eq(field("feature") + self.start_lines)
        m.d.sync += [*self._at_group(self._start_x(), self._start_y(), top), at.active.eq(1)]
        m.d.sync += [counter.eq(0) for counter in (at.ox, at.oy, at.og)]
        m.d.sync += [at.group_x.eq(self._start_x()), at.group_y.eq(self._start_y())]
        m.d.sync += [at.row_line.eq(top), at.block_line.eq(top)]
        m.d.sync += [at.weight.eq(field("weight")), at.block_weight.eq(field("weight"))]
        m.d.sync += [place.eq(field("result")) for place in (at.result, at.row_result, at.block_result)]
        m.d.sync += [at.operand.eq(get(self.op, Opcode.ADD, "operand")), at.parameter.eq(field("parameter"))]

    def _describe(self, m: Module, stepping: Value, last_step: Value) -> None:
        """The step of this cycle."""
        at, field, plan, step = self._at, self._field, self.plan, self.step
        fits = [
            (at.ox + plan.col_of[p] < field("cols")) & (at.oy + plan.row_of[p] < field("rows"))
            for p in range(self.config.pixels)
        ]
        for name in ("x", "y", "line", "sub", "weight", "result", "parameter"):
            m.d.comb += step[name].eq(getattr(at, name))
        m.d.comb += [
            step.valid.eq(stepping),
            step.lanes.eq(Cat(fits[0], *(fit & ~self.elementwise for fit in fits[1:]))),
            step.begins.eq((at.sub == 0) & (at.block == 0) & (at.kx == 0) & (at.ky == 0)),
            step.ends.eq(last_step),
            step.operand.eq(Mux(self.elementwise, at.operand, at.result)),
        ]

    def _next_tap(self, m: Module, ends: dict[str, Signal]) -> None:
        """The inner loops go on by one step."""
        at, field, plan = self._at, self._field, self.plan
        with m.If(~ends["sub"]):
            m.d.sync += at.sub.eq(at.sub + 1)
            with m.If(~plan.conv):
                m.d.sync += at.x.eq(at.x + self.config.feature_banks)
        with m.Else():
            m.d.sync += [at.sub.eq(0), at.weight.eq(at.weight + 1)]
            with m.If(~ends["block"]):
                m.d.sync += [at.block.eq(at.block + 1), at.line.eq(at.line + field("block_pitch"))]
            with m.Elif(~ends["kx"]):
                m.d.sync += [at.block.eq(0), at.kx.eq(at.kx + 1)]
                m.d.sync += [at.x.eq(at.x + field("dilation_x")), at.line.eq(at.kernel_line)]
            with m.Else():
                lower = Signal.like(at.line)
                m.d.comb += lower.eq(at.kernel_line + self.kernel_lines)
                m.d.sync += [at.block.eq(0), at.kx.eq(0), at.ky.eq(at.ky + 1)]
                m.d.sync += [at.x.eq(at.group_x), at.y.eq(at.y + field("dilation_y"))]
                m.d.sync += [at.line.eq(lower), at.kernel_line.eq(lower)]


class _Loops:
    """The registers of the loop nest."""

    def __init__(self, config: HardwareConfig) -> None:
        lines, weights = bits_for(config.feature_lines), bits_for(config.weight_words)
        results = bits_for(config.result_words)
        self.active = Signal(name="active")
        self.waiting = Signal(name="waiting")  # the group's steps are done, its P cycles are not
        self.quiet = Signal(range(max(config.pixels, 2)), name="quiet")  # cycles of the group so far, up to P - 1
        self.sub, self.block = Signal(16, name="sub"), Signal(12, name="block")
        self.kx, self.ky = Signal(12, name="kx"), Signal(8, name="ky")
        self.ox, self.oy, self.og = Signal(14, name="ox"), Signal(12, name="oy"), Signal(10, name="og")
        # Input position and place in the feature memory: of the step, of the group.
        self.x, self.y = Signal(POSITION, name="x"), Signal(POSITION, name="y")
        self.group_x, self.group_y = Signal(POSITION, name="group_x"), Signal(POSITION, name="group_y")
        self.line, self.kernel_line = Signal(lines, name="line"), Signal(lines, name="kernel_line")
        self.row_line, self.block_line = Signal(lines, name="row_line"), Signal(lines, name="block_line")
        self.weight, self.block_weight = Signal(weights, name="weight"), Signal(weights, name="block_weight")
        self.result, self.row_result = Signal(results, name="result"), Signal(results, name="row_result")
        self.block_result, self.operand = Signal(results, name="block_result"), Signal(results, name="operand")
        self.parameter = Signal(bits_for(config.parameter_words), name="parameter")
