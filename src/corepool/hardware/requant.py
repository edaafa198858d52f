"""From sums to results, one pixel a cycle: requantisation, table, addition or product with an operand.

It must not know which pixel it has or where results go.
"""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.arithmetic import plain_product, split_product
from corepool.hardware.decode import get
from corepool.hardware.interfaces import INSTRUCTION_BITS
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


def _clamped(m: Module, shifted: Value, zero_point: Value, low: Value, high: Value, name: str) -> Signal:
    """Rounds off the last bit, adds the zero point and clamps; eight bits."""
    rounded, near = Signal(signed(len(shifted) + 1), name=f"{name}_rounded"), Signal(signed(10), name=f"{name}_near")
    moved, result = Signal(signed(11), name=f"{name}_moved"), Signal(signed(8), name=f"{name}_result")
    m.d.comb += [rounded.eq((shifted + 1) >> 1), near.eq(rounded)]
    with m.If(rounded > 511):
        m.d.comb += near.eq(511)
    with m.Elif(rounded < -512):
        m.d.comb += near.eq(-512)
    raised = Signal(signed(11), name=f"{name}_raised")
    m.d.comb += [moved.eq(near + zero_point), raised.eq(Mux(moved < low, low, moved))]
    m.d.comb += result.eq(Mux(raised > high, high, raised))
    return result


def _less_one(shift: Value) -> Value:
    """Six bits of a shift, less one; 0 counts as 1."""
    return Mux(shift[:6] == 0, 0, (shift[:6] - 1)[:6])


class Requantiser(wiring.Component):
    """``sums`` [C], ``channels`` (parameters) and ``operand`` in cycle x; ``result`` in x + DELAY.

    ``op``, ``plan`` and ``constants`` stay while an instruction's results pass. ``index`` to the tables, ``entry``
    back in the same cycle. For ADD and MUL the lower eight bits of a sum are the feature; MUL takes the lower eight
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
        op = self.op
        lut = get(op, Opcode.CONV, "lut")
        residual = self.plan.conv & get(op, Opcode.CONV, "residual")
        self._combine = Signal()
        self._late, self._early = Signal(), Signal()  # whether the table is used, behind or before the addition
        m.d.comb += self._combine.eq(self.plan.add | residual)
        behind = self.plan.add | (self.plan.conv & get(op, Opcode.CONV, "lut_after_add"))
        m.d.comb += [self._late.eq(lut & behind), self._early.eq(lut & ~behind)]
        for channel in range(self.config.channels):
            self._channel(m, channel)
        return m

    def _channel(self, m: Module, number: int) -> None:
        constants, other = self.constants, self.operand.word_select(number, 8).as_signed()
        requantised = self._requantised(m, number, other)
        index = self.index[number]
        scaled = Signal(signed(8), name=f"scaled_{number}")  # x + 6
        m.d.sync += scaled.eq(Mux(self._early, self.entry[number].as_signed(), requantised))
        late_other = delayed(m, other, 6, f"other_{number}")
        first, second = Signal(signed(40), name=f"first_{number}"), Signal(signed(40), name=f"second_{number}")
        total, shifted = Signal(signed(43), name=f"sum_{number}"), Signal(signed(43), name=f"sum_shifted_{number}")
        upper = Signal(signed(43), name=f"sum_upper_{number}")
        parts = split_product(constants.a, scaled), split_product(constants.b, late_other)
        m.d.sync += [first.eq(parts[0][0]), second.eq(parts[1][0])]  # x + 7
        m.d.sync += upper.eq(parts[0][1] + parts[1][1] + constants.c)
        m.d.sync += total.eq(first + second + upper)  # x + 8
        m.d.sync += shifted.eq(total >> _less_one(constants.shift))  # x + 9
        clamped = _clamped(m, shifted, constants.zero_point, constants.low, constants.high, f"added_{number}")
        passed = delayed(m, scaled, 3, f"passed_{number}")
        combined, final = Signal(signed(8), name=f"combined_{number}"), Signal(8, name=f"final_{number}")
        m.d.sync += combined.eq(Mux(self._combine, clamped, passed))  # x + 10
        m.d.comb += index.eq(Mux(self._late, combined, requantised))
        m.d.sync += final.eq(Mux(self._late, self.entry[number], combined))  # x + 11
        m.d.comb += self.result.word_select(number, 8).eq(final)

    def _requantised(self, m: Module, number: int, other: Value) -> Value:
        """What stands behind the requantisation, in x + 5."""
        plan, constants, channel = self.plan, self.constants, self.channels[number]
        total = self.sums[number]
        feature = total[:8].as_signed()
        left, right = Signal(signed(33), name=f"left_{number}"), Signal(signed(18), name=f"right_{number}")
        shift = Signal(6, name=f"shift_{number}")
        product, again = Signal(signed(51), name=f"product_{number}"), Signal(signed(51), name=f"again_{number}")
        shifted = Signal(signed(51), name=f"shifted_{number}")
        with m.If(plan.mul):
            zeros = (constants.a[:8].as_signed(), constants.b[:8].as_signed())
            m.d.sync += [left.eq(constants.c), right.eq(plain_product(feature - zeros[0], other - zeros[1]))]
            m.d.sync += shift.eq(_less_one(constants.shift))
        with m.Else():
            m.d.sync += [left.eq(total + channel.bias), right.eq(channel.multiplier)]  # x + 1
            m.d.sync += shift.eq(_less_one(channel.shift))
        upper = Signal(signed(51), name=f"upper_{number}")
        lower_part, upper_part = split_product(left, right)
        m.d.sync += [product.eq(lower_part), upper.eq(upper_part)]  # x + 2
        m.d.sync += again.eq(product + upper)  # x + 3
        m.d.sync += shifted.eq(again >> delayed(m, shift, 2, f"shift_{number}"))  # x + 4
        op = self.op
        instruction = [get(op, Opcode.CONV, name) for name in ("zero_point", "low", "high")]
        parts = [constants.zero_point, constants.low, constants.high]
        zero_point, low, high = (Mux(plan.mul, part, field) for part, field in zip(parts, instruction, strict=True))
        straight = delayed(m, feature, 4, f"straight_{number}")
        value = _clamped(
            m,
            Mux(plan.maximum, straight << 1, shifted),
            Mux(plan.maximum, Const(0, signed(8)), zero_point),
            low,
            high,
            f"scale_{number}",
        )
        result = Signal(signed(8), name=f"requantised_{number}")
        m.d.sync += result.eq(Mux(plan.add, straight, value))  # x + 5
        return result
