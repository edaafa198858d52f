"""Products as additions of shifted values, for where a multiplier of the device would be wasted.

It must not know what is multiplied. Synthesisers put ``a * b`` into DSP blocks; these stay in lookup tables.
"""

from __future__ import annotations

from functools import reduce
from operator import add

from amaranth.hdl import Mux, Value

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


def split_product(wide: Value, narrow: Value) -> tuple[Value, Value]:
    """A product of a signed factor of more than 27 bits as two parts that are to be added.

    The first fits one multiplier of 27 x 18 bits, the second (the wide factor's upper bits) needs none.
    """
    return wide[:WIDE] * narrow, plain_product(narrow, wide[WIDE:].as_signed()) << WIDE
