"""From sums to results, one pixel a cycle: requantisation, table, addition or product with an operand.

It must not know which pixel it has or where results go.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.arithmetic import WIDE, bounded_shift, joined, split_product
from corepool.hardware.decode import get
from corepool.hardware.interfaces import INSTRUCTION_BITS
from corepool.hardware.library import share
from corepool.hardware.operands import delayed
from corepool.hardware.sequence import plan_layout
from corepool.isa.table import Opcode

# Constants of an addition or product, as they stand in a parameter word.
CONSTANTS = data.StructLayout(
    {
        "a": signed(32),
        "b": signed(32),
        "c": signed(32),
        "shift": 8,
        "zero_point": signed(8),
        "low": signed(8),
        "high": signed(8),
    }
)
CHANNEL = data.StructLayout({"bias": signed(32), "multiplier": 16, "shift": 8, "zero": 8})

# Where results of one step are brought to: zero point, lower and upper bound.
RANGE = data.StructLayout({"zero_point": signed(8), "low": signed(8), "high": signed(8)})

# What is the same for all channels while an instruction's results pass.
MODE = data.StructLayout(
    {
        "mul": 1,
        "add": 1,
        "maximum": 1,
        "combine": 1,  # an addition behind the requantisation, or instead of it
        "early": 1,  # the table is used before the addition
        "late": 1,  # or behind it
        "scaled": RANGE,  # of the requantisation
        "combined": RANGE,  # of the addition
        "shift": 6,  # of the constants, less one
    }
)

# Before the last bit is rounded off: what lies outside is outside of every zero point's and bound's reach, too.
_NEAR = 10


def _clamped(m: Module, shifted: Value, place: data.View[data.StructLayout], name: str) -> Signal:
    """Rounds off the last bit of _NEAR bits, adds the zero point and clamps; eight bits."""
    near, moved = Signal(signed(_NEAR), name=f"{name}_near"), Signal(signed(_NEAR), name=f"{name}_moved")
    raised, result = Signal(signed(_NEAR), name=f"{name}_raised"), Signal(signed(8), name=f"{name}_result")
    m.d.comb += [near.eq((shifted + 1) >> 1), moved.eq(near + place.zero_point)]
    m.d.comb += raised.eq(Mux(moved < place.low, place.low, moved))
    m.d.comb += result.eq(Mux(raised > place.high, place.high, raised))
    return result


def _less_one(shift: Value) -> Value:
    """Six bits of a shift, less one; 0 counts as 1."""
    return Mux(shift[:6] == 0, 0, (shift[:6] - 1)[:6])


class Channel(wiring.Component):
    """The requantiser of one channel; see there."""

    def __init__(self) -> None:
        super().__init__(
            {
                "mode": In(MODE),
                "a": In(signed(32)),
                "b": In(signed(32)),
                "c": In(signed(32)),
                "total": In(signed(32)),
                "channel": In(CHANNEL),
                "operand": In(signed(8)),
                "index": Out(8),
                "entry": In(8),
                "result": Out(8),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        mode, entry = self.mode, self.entry.as_signed()
        self._second = Signal(signed(WIDE + 9), name="second")
        self._late_operand = delayed(m, self.operand, 6, "operand")
        self._multiply_second(m)
        requantised, before = self._requantised(m)
        scaled = Signal(signed(8))  # x + 6
        m.d.sync += scaled.eq(Mux(mode.early, entry, requantised))
        first, upper = Signal(signed(WIDE + 9)), Signal(signed(43 - WIDE))
        total, shifted = Signal(signed(43)), Signal(signed(_NEAR))
        low_a, high_a = split_product(m, self.a, scaled, "by_a")
        _, high_b = split_product(m, self.b, self._late_operand, "by_b")
        highs = Signal(signed(16), attrs={"keep": 1})
        m.d.comb += highs.eq(high_a + high_b)
        m.d.sync += [first.eq(low_a), upper.eq(highs + self.c[WIDE:].as_signed())]  # x + 7
        low_c = Signal(WIDE)
        m.d.sync += low_c.eq(self.c[:WIDE])
        products = Signal(signed(WIDE + 10), attrs={"keep": 1})
        m.d.comb += products.eq(first + self._second)
        m.d.sync += total.eq(products + Cat(low_c, upper).as_signed())  # x + 8
        m.d.sync += shifted.eq(bounded_shift(m, total, mode.shift, _NEAR, "sum"))  # x + 9
        clamped = _clamped(m, shifted, mode.combined, "added")
        passed = delayed(m, scaled, 3, "passed")
        combined, final, behind = Signal(signed(8)), Signal(8), Signal(signed(8))
        m.d.comb += behind.eq(Mux(mode.combine, clamped, passed))
        m.d.sync += combined.eq(behind)  # x + 10
        m.d.comb += self.index.eq(Mux(mode.late, behind, before))
        m.d.sync += final.eq(Mux(mode.late, self.entry, combined))  # x + 11
        m.d.comb += self.result.eq(final)
        return m

    def _multiply_second(self, m: Module) -> None:
        """One multiplier for two uses: lower bits of the constant b times the operand in x + 6, for an addition; or
        what is left of feature and operand without their zero points in x, for a product."""
        feature = self.total[:8].as_signed()
        wide, narrow = Signal(signed(WIDE + 1)), Signal(signed(9))
        with m.If(self.mode.mul):
            m.d.comb += wide.eq(feature - self.a[:8].as_signed())
            m.d.comb += narrow.eq(self.operand - self.b[:8].as_signed())
        with m.Else():
            m.d.comb += [wide.eq(self.b[:WIDE]), narrow.eq(self._late_operand)]
        m.d.sync += self._second.eq(wide * narrow)

    def _requantised(self, m: Module) -> tuple[Value, Value]:
        """What stands behind the requantisation, in x + 5, and the same a cycle before."""
        mode, channel = self.mode, self.channel
        left, right, factor = Signal(signed(33)), Signal(signed(17)), Signal(signed(18))
        shift = Signal(6)
        product, again, shifted = Signal(signed(WIDE + 18)), Signal(signed(51)), Signal(signed(_NEAR))
        with m.If(mode.mul):
            m.d.sync += left.eq(self.c)
        with m.Else():
            m.d.sync += left.eq(self.total + channel.bias)  # x + 1
        m.d.sync += [right.eq(channel.multiplier), shift.eq(_less_one(channel.shift))]
        m.d.comb += factor.eq(Mux(mode.mul, self._second[:18].as_signed(), right))
        upper = Signal(signed(51 - WIDE))
        lower_part, upper_part = split_product(m, left, factor, "scaled")
        m.d.sync += [product.eq(lower_part), upper.eq(upper_part)]  # x + 2
        m.d.sync += again.eq(joined(product, upper))  # x + 3
        amount = Mux(mode.mul, mode.shift, delayed(m, shift, 2, "shift"))
        m.d.sync += shifted.eq(bounded_shift(m, again, amount, _NEAR, "product"))  # x + 4
        straight = delayed(m, self.total[:8].as_signed(), 4, "straight")
        value = _clamped(m, Mux(mode.maximum, straight << 1, shifted), mode.scaled, "scale")
        result, before = Signal(signed(8)), Signal(signed(8))
        m.d.comb += before.eq(Mux(mode.add, straight, value))
        m.d.sync += result.eq(before)  # x + 5
        return result, before


class Requantiser(wiring.Component):
    """``sums`` [C], ``channels`` (parameters) and ``operand`` in cycle x; ``result`` in x + DELAY.

    ``op``, ``plan`` and ``constants`` stay while an instruction's results pass. ``index`` to the tables, ``entry``
    back in the next cycle. For ADD and MUL the lower eight bits of a sum are the feature; MUL takes the lower eight
    bits of its two zero
    points, which have no more. The lower eight bits of a sum are also the maximum.
    """

    DELAY = 11

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        channels = config.channels
        super().__init__(
            {
                "op": In(INSTRUCTION_BITS),
                "plan": In(plan_layout(config)),
                "constants": In(CONSTANTS),
                "sums": In(signed(32)).array(channels),
                "channels": In(CHANNEL).array(channels),
                "operand": In(8 * channels),
                "index": Out(8).array(channels),
                "entry": In(8).array(channels),
                "result": Out(8 * channels),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        mode = self._mode(m)
        for number in range(self.config.channels):
            channel = Channel()
            m.submodules[f"channel_{number}"] = share(platform, channel, "corepool_requantiser")
            m.d.comb += [
                channel.mode.eq(mode),
                channel.a.eq(self.constants.a),
                channel.b.eq(self.constants.b),
                channel.c.eq(self.constants.c),
                channel.total.eq(self.sums[number]),
                channel.channel.eq(self.channels[number]),
                channel.operand.eq(self.operand.word_select(number, 8).as_signed()),
                channel.entry.eq(self.entry[number]),
                self.index[number].eq(channel.index),
                self.result.word_select(number, 8).eq(channel.result),
            ]
        return m

    def _mode(self, m: Module) -> data.View[data.StructLayout]:
        op, plan, constants = self.op, self.plan, self.constants
        mode = Signal(MODE)
        lut = get(op, Opcode.CONV, "lut")
        residual = plan.conv & get(op, Opcode.CONV, "residual")
        behind = plan.add | (plan.conv & get(op, Opcode.CONV, "lut_after_add"))
        m.d.comb += [
            mode.mul.eq(plan.mul),
            mode.add.eq(plan.add),
            mode.maximum.eq(plan.maximum),
            mode.combine.eq(plan.add | residual),
            mode.late.eq(lut & behind),
            mode.early.eq(lut & ~behind),
            mode.shift.eq(_less_one(constants.shift)),
        ]
        for name in ("zero_point", "low", "high"):
            m.d.comb += mode.combined[name].eq(constants[name])
            m.d.comb += mode.scaled[name].eq(Mux(plan.mul, constants[name], get(op, Opcode.CONV, name)))
        with m.If(plan.maximum):
            m.d.comb += mode.scaled.zero_point.eq(0)
        return mode
