"""Arithmetic in the shape that suits lookup tables and multipliers of an FPGA: products, shifts with a bound.

It must not know what is calculated. Synthesisers put ``a * b`` into DSP blocks; ``plain_product`` stays in lookup
tables.
"""

from __future__ import annotations

from functools import reduce
from operator import add

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed

WIDE = 26  # bits of the lower part of a factor that a DSP48E2 takes on its wide port


def plain_product(left: Value, right: Value) -> Value:
    """``left * right`` without a multiplier; give the narrower factor as ``right``. Either may be signed."""
    bits = len(right)
    signed = right.shape().signed
    terms = [Mux(right[place], left << place, 0) for place in range(bits - int(signed))]
    total = reduce(add, terms) if terms else None
    if not signed:
        assert total is not None
        return total
    top = Mux(right[bits - 1], left << bits - 1, 0)
    return -top if total is None else total - top


def chained_product(m: Module, wide: Value, narrow: Value, name: str) -> Value:
    """``wide * narrow`` as a chain of additions, one for each bit of ``narrow``; both signed, of two bits or more.

    Every partial sum is kept as it is: synthesisers would make carry-save adders of them, which cost twice the tables.
    """
    total, low = Mux(narrow[0], wide, 0), []
    for place in range(1, len(narrow)):
        low.append(total[0])
        term = Mux(narrow[place], wide, 0)
        part = Signal(signed(len(wide) + 1), name=f"{name}_{place}", attrs={"keep": 1})
        last = place == len(narrow) - 1
        m.d.comb += part.eq(total[1:].as_signed() - term if last else total[1:].as_signed() + term)
        total = part
    return Cat(*low, total).as_signed()


def split_product(m: Module, wide: Value, narrow: Value, name: str) -> tuple[Value, Value]:
    """A product of a signed factor of more than 27 bits as two parts that are to be added.

    The first fits one multiplier of 27 x 18 bits. The second, the product with the wide factor's upper bits, needs
    none and counts 2**WIDE times.
    """
    return wide[:WIDE] * narrow, chained_product(m, narrow, wide[WIDE:].as_signed(), name)


def joined(lower: Value, upper: Value) -> Value:
    """``lower + (upper << WIDE)``: the lower bits need no adder."""
    return Cat(lower[:WIDE], lower[WIDE:].as_signed() + upper).as_signed()


def bounded_shift(m: Module, value: Value, shift: Value, bits: int, name: str) -> Value:
    """``value >> shift``, or the nearest number of ``bits`` signed bits. ``shift`` has six bits, ``value`` is signed.

    Three stages of shifting by multiples of 16, 4 and 1 carry no more bits than the result can still use; those that
    are dropped are only looked at for being unlike the sign.
    """
    if len(value) > bits - 1 + 63:
        raise ValueError(f"a shift by 0..63 cannot bring {len(value)} bits to {bits}")
    sign, current = value[-1], value
    beyond: list[Value] = []
    for step, amount in ((16, shift[4:6]), (4, shift[2:4]), (1, shift[:2])):
        kept = bits - 1 + step - 1
        padded = Cat(current, sign.replicate(max(0, kept + 3 * step - len(current))))
        taken = Signal(kept, name=f"{name}_by_{step}")
        over = Signal(name=f"{name}_over_{step}")
        unlike = [(padded[at : at + step] != sign.replicate(step)) for at in range(kept, kept + 3 * step, step)]
        beyond.append(over)
        with m.Switch(amount):
            for number in range(4):
                with m.Case(number):
                    m.d.comb += taken.eq(padded[number * step : number * step + kept])
                    m.d.comb += over.eq(Cat(*unlike[number:]).any())
        current = taken
    result = Signal(signed(bits), name=f"{name}_bounded")
    m.d.comb += result.eq(Mux(Cat(*beyond).any(), Cat((~sign).replicate(bits - 1), sign), Cat(current, sign)))
    return result
