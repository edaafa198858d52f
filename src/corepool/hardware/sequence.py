"""Walks the loops of a compute instruction: in each cycle, which input, weight and result words belong to the step.

It must not know data or memories; widths of on-chip addresses come from the configuration.
"""

from __future__ import annotations

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
    """One cycle's work: position in the input, place in the feature memory, weight word, and what it means for the sums."""
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
    """``start`` in cycle s with ``instruction``; ``op`` is that instruction and ``plan`` what follows from it, from s + 1
    and s + FIRST_STEP on. Steps come from s + FIRST_STEP on. ``ending`` in the last cycle of the last group."""

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
        banks = []
        for p in range(config.pixels):
            row, col = plan.row_of[p], plan.col_of[p]
            bank = Signal(bits_for(config.feature_banks), name=f"bank_{p}")
            up = plain_product(stride_y, row)[: len(bank)]
            m.d.comb += bank.eq(plain_product(stride_x, col) + (up << log2(config.pixels)) - up if factor > 1 else plain_product(stride_x, col) + up)
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
        config, field, plan = self.config, self._field, self.plan
        lines, weights = bits_for(config.feature_lines), bits_for(config.weight_words)
        results = bits_for(config.result_words)
        stride_y, stride_x = self._stride()
        active, waiting, quiet = Signal(), Signal(), Signal(range(max(config.pixels, 2)))
        sub, block, kx, ky = Signal(16), Signal(12), Signal(12), Signal(8)
        ox, oy, og = Signal(14), Signal(12), Signal(10)
        x, y, group_x, group_y = (Signal(POSITION, name=name) for name in ("x", "y", "group_x", "group_y"))
        line, kernel_line, row_line, block_line = (
            Signal(lines, name=name) for name in ("line", "kernel_line", "row_line", "block_line")
        )
        weight, block_weight = Signal(weights), Signal(weights)
        result, row_result, block_result = (Signal(results, name=n) for n in ("result", "row_result", "block_result"))
        operand, parameter = Signal(results), Signal(bits_for(config.parameter_words))

        # Which loops are at their last turn.
        window = plan.depthwise | plan.pool
        last_sub = sub == Mux(plan.conv, plan.clash, Mux(window, plan.windows, 0))
        last_block = ~plan.conv | (block == field("in_blocks") - 1)
        last_kx = ~plan.conv | (kx == field("kernel_w") - 1)
        last_ky = self.elementwise | (ky == field("kernel_h") - 1)
        last_step, last_col, last_row, last_group = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            last_step.eq(last_sub & last_block & last_kx & last_ky),
            last_col.eq(ox + self.wide >= field("cols")),
            last_row.eq(oy + self.tall >= field("rows")),
            last_group.eq(og == field("out_blocks") - 1),
        ]
        partial = ~self.elementwise & ~field("last")
        short = self.elementwise | partial  # such groups may follow each other faster than P cycles
        stepping, group_end = Signal(), Signal()
        m.d.comb += stepping.eq(active & ~waiting)
        m.d.comb += group_end.eq(active & (waiting | last_step) & (short | (quiet == config.pixels - 1)))
        m.d.comb += self.ending.eq(group_end & last_col & last_row & last_group)

        def at_group(new_x: Value, new_y: Value, new_line: Value) -> list[object]:
            """Back to the first tap of a group."""
            inner = [counter.eq(0) for counter in (sub, block, kx, ky, quiet, waiting)]
            return [*inner, x.eq(new_x), y.eq(new_y), line.eq(new_line), kernel_line.eq(new_line)]

        with m.If(stepping & ~last_step):
            self._next_tap(m, locals())
        with m.If(stepping & last_step):
            m.d.sync += waiting.eq(1)
        with m.If(active & (quiet != config.pixels - 1)):
            m.d.sync += quiet.eq(quiet + 1)
        single = Mux(plan.mul & get(self.op, Opcode.MUL, "mode"), 0, 1)
        with m.If(group_end):
            m.d.sync += operand.eq(operand + single)
            with m.If(~last_col):
                right = Signal(POSITION)
                m.d.comb += right.eq(group_x + plain_product(stride_x, self.wide))
                m.d.sync += [*at_group(right, group_y, row_line), group_x.eq(right), ox.eq(ox + self.wide)]
                m.d.sync += [weight.eq(block_weight), result.eq(result + self.wide)]
            with m.Elif(~last_row):
                down, down_line, down_result = Signal(POSITION), Signal(lines), Signal(results)
                m.d.comb += down.eq(group_y + (stride_y << self.tall_bits))
                m.d.comb += down_line.eq(row_line + (self.row_lines << self.tall_bits))
                m.d.comb += down_result.eq(row_result + (field("cols") << self.tall_bits))
                m.d.sync += at_group(self._start_x(), down, down_line)
                m.d.sync += [group_x.eq(self._start_x()), group_y.eq(down), row_line.eq(down_line)]
                m.d.sync += [ox.eq(0), oy.eq(oy + self.tall), weight.eq(block_weight)]
                m.d.sync += [result.eq(down_result), row_result.eq(down_result)]
            with m.Else():
                deeper, deeper_result = Signal(lines), Signal(results)
                m.d.comb += deeper.eq(block_line + Mux(plan.conv, 0, field("block_pitch")))
                m.d.comb += deeper_result.eq(block_result + self.map_words)
                m.d.sync += at_group(self._start_x(), self._start_y(), deeper)
                m.d.sync += [group_x.eq(self._start_x()), group_y.eq(self._start_y())]
                m.d.sync += [row_line.eq(deeper), block_line.eq(deeper), ox.eq(0), oy.eq(0), og.eq(og + 1)]
                m.d.sync += [weight.eq(weight + 1), block_weight.eq(weight + 1)]
                m.d.sync += [place.eq(deeper_result) for place in (result, row_result, block_result)]
                m.d.sync += parameter.eq(parameter + ~plan.pool)
                with m.If(plan.mul & get(self.op, Opcode.MUL, "mode")):
                    m.d.sync += operand.eq(operand + 1)
                with m.If(last_group):
                    m.d.sync += active.eq(0)
        with m.If(begin):
            top = Signal(lines)
            m.d.comb += top.eq(field("feature") + self.start_lines)
            m.d.sync += at_group(self._start_x(), self._start_y(), top)
            m.d.sync += [active.eq(1), ox.eq(0), oy.eq(0), og.eq(0)]
            m.d.sync += [group_x.eq(self._start_x()), group_y.eq(self._start_y()), row_line.eq(top), block_line.eq(top)]
            m.d.sync += [weight.eq(field("weight")), block_weight.eq(field("weight"))]
            m.d.sync += [place.eq(field("result")) for place in (result, row_result, block_result)]
            m.d.sync += [operand.eq(get(self.op, Opcode.ADD, "operand")), parameter.eq(field("parameter"))]
        with m.If(self.reset):
            m.d.sync += active.eq(0)

        step = self.step
        fits = [(ox + plan.col_of[p] < field("cols")) & (oy + plan.row_of[p] < field("rows")) for p in range(config.pixels)]
        alone = [fits[0], *(fit & ~self.elementwise for fit in fits[1:])]
        begins = (sub == 0) & (block == 0) & (kx == 0) & (ky == 0)
        m.d.comb += [
            step.valid.eq(stepping),
            step.x.eq(x),
            step.y.eq(y),
            step.line.eq(line),
            step.sub.eq(sub),
            step.weight.eq(weight),
            step.lanes.eq(Cat(*alone)),
            step.begins.eq(begins),
            step.ends.eq(last_step),
            step.result.eq(result),
            step.operand.eq(Mux(self.elementwise, operand, result)),
            step.parameter.eq(parameter),
        ]

    def _next_tap(self, m: Module, at: dict[str, Value]) -> None:
        """The inner loops go on by one step."""
        config, field, plan = self.config, self._field, self.plan
        x, line, kernel_line = at["x"], at["line"], at["kernel_line"]
        with m.If(~at["last_sub"]):
            m.d.sync += at["sub"].eq(at["sub"] + 1)
            with m.If(~plan.conv):
                m.d.sync += x.eq(x + config.feature_banks)
        with m.Else():
            m.d.sync += [at["sub"].eq(0), at["weight"].eq(at["weight"] + 1)]
            with m.If(~at["last_block"]):
                m.d.sync += [at["block"].eq(at["block"] + 1), line.eq(line + field("block_pitch"))]
            with m.Elif(~at["last_kx"]):
                m.d.sync += [at["block"].eq(0), at["kx"].eq(at["kx"] + 1)]
                m.d.sync += [x.eq(x + field("dilation_x")), line.eq(kernel_line)]
            with m.Else():
                lower = Signal.like(line, name="lower")
                m.d.comb += lower.eq(kernel_line + self.kernel_lines)
                m.d.sync += [at["block"].eq(0), at["kx"].eq(0), at["ky"].eq(at["ky"] + 1)]
                m.d.sync += [x.eq(at["group_x"]), at["y"].eq(at["y"] + field("dilation_y"))]
                m.d.sync += [line.eq(lower), kernel_line.eq(lower)]
