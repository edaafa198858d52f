"""The array of multipliers, its adder trees and the accumulators, for sums and for maxima.

It must not know where operands come from or what becomes of sums.
"""

from __future__ import annotations

from functools import reduce
from operator import add

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.library import multiplier_bits, share
from corepool.hardware.operands import delayed, folds

PACK = 18  # bits that the lower of two packed products has for itself, and that a sum of GROUP of them needs at most
GROUP = 4  # packed products that are added before the two sums are taken apart


class PairSums(wiring.Component):
    """Sums and maxima of one output channel for one or two neighbouring pixels, whose products share their weights.

    Two products come out of one multiplication, ``(high * 2**PACK + low) * weight``, as a DSP48E2 does it. They are
    taken apart behind the first additions: a lower sum that is negative has borrowed one from the upper one, which
    gets it back. ``features`` [pixels][C][folds] in cycle j, everything else as in Sums. Folded features times weights
    must stay within +-2**14.
    """

    def __init__(self, config: HardwareConfig, pixels: int) -> None:
        self.config, self.pixels = config, pixels
        channels, fold = config.channels, folds(config)
        super().__init__(
            {
                "features": In(signed(8)).array(pixels, channels, fold),
                "weights": In(signed(8)).array(channels),
                "valid": In(1),
                "begins": In(1),
                "keep": In(1),
                "sums": Out(signed(32)).array(pixels),
                "maxima": Out(signed(8)).array(pixels),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        totals = self._totals(m, self._products(m))
        for p, (total, borrow) in enumerate(totals):
            accumulator, start = Signal(signed(32), name=f"accumulator_{p}"), Signal(signed(32), name=f"start_{p}")
            m.d.comb += start.eq(Mux(self.begins & ~self.keep, 0, accumulator))
            m.d.comb += self.sums[p].eq(_with_carry(start, total, borrow))
            with m.If(self.valid):
                m.d.sync += accumulator.eq(self.sums[p])
            self._maximum(m, p)
        return m

    def _products(self, m: Module) -> list[Signal]:
        """Of every input channel, packed; one cycle later."""
        products = []
        bits = 8 + folds(self.config).bit_length() - 1
        for number, weight in enumerate(self.weights):
            folded = [reduce(add, list(self.features[p][number])) for p in range(self.pixels)]
            packed = Signal(signed(PACK + bits + 1), name=f"packed_{number}")
            product = Signal(signed(PACK + bits + 9), name=f"product_{number}")
            m.d.comb += packed.eq((folded[1] << PACK) + folded[0] if self.pixels > 1 else folded[0])
            m.d.sync += product.eq(packed * weight)
            products.append(product)
        return products

    def _totals(self, m: Module, products: list[Signal]) -> list[tuple[Value, Value]]:
        """Of every pixel a sum, three cycles later, and one bit that is still to be added to it."""
        groups = []
        for first in range(0, len(products), GROUP):
            pairs = []
            for at in range(first, first + GROUP, 2):
                pair = Signal(signed(len(products[at]) + 1), name=f"pair_{at}")
                m.d.sync += pair.eq(products[at] + products[at + 1])
                pairs.append(pair)
            group = Signal(signed(len(pairs[0]) + 1), name=f"group_{first}")
            m.d.sync += group.eq(pairs[0] + pairs[1])
            groups.append(group)
        totals = []
        for p in range(self.pixels):
            parts = [group[PACK:].as_signed() if p else group[:PACK].as_signed() for group in groups]
            borrows = [group[PACK - 1] if p else None for group in groups]
            total = Signal(signed(max(map(len, parts)) + len(parts).bit_length()), name=f"total_{p}")
            borrow = Signal(name=f"borrow_{p}")
            if not p:
                m.d.sync += total.eq(reduce(add, parts))
            else:
                summed = parts[0]
                for part, bit in zip(parts[1:], borrows, strict=False):
                    summed = _with_carry(summed, part, bit)
                m.d.sync += [total.eq(summed), borrow.eq(borrows[-1])]
            totals.append((total, borrow))
        return totals

    def _maximum(self, m: Module, p: int) -> None:
        def largest(values: list[Value]) -> Value:
            while len(values) > 1:
                pairs = [values[at : at + 2] for at in range(0, len(values), 2)]
                values = [Mux(pair[0] > pair[-1], pair[0], pair[-1]) for pair in pairs]
            return values[0]

        half = Signal(signed(8), name=f"half_{p}")
        m.d.sync += half.eq(largest([word for number in self.features[p] for word in number]))
        latest = delayed(m, half, Sums.DELAY - 1, f"half_{p}")
        kept = Signal(signed(8), name=f"kept_{p}")
        m.d.comb += self.maxima[p].eq(Mux(self.begins | (latest > kept), latest, kept))
        with m.If(self.valid):
            m.d.sync += kept.eq(self.maxima[p])


class Sums(wiring.Component):
    """Operands in cycle j; ``sums`` [P][C] (with those of this step) in j + DELAY, to be taken in that cycle.

    ``valid``, ``begins`` and ``keep`` come with ``ready``, i.e. DELAY cycles behind their operands: whether the
    step counts, is the first of its group, and then goes on from what the accumulators hold.

    Pixels share multiplications in pairs where the device's multipliers are wide enough; the sums are the same.
    """

    DELAY = 4

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        pixels, channels, fold = config.pixels, config.channels, folds(config)
        super().__init__(
            {
                "features": In(signed(8)).array(pixels, channels, channels, fold),
                "weights": In(signed(8)).array(channels, channels),
                "valid": In(1),
                "begins": In(1),
                "keep": In(1),
                "sums": Out(signed(32)).array(pixels, channels),
                "maxima": Out(signed(8)).array(pixels, channels),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        together = min(self.config.pixels, 2) if multiplier_bits(platform) > PACK else 1
        for output in range(self.config.channels):
            for first in range(0, self.config.pixels, together):
                pair = PairSums(self.config, together)
                m.submodules[f"pair_{output}_{first}"] = share(platform, pair, "corepool_sums")
                m.d.comb += [pair.valid.eq(self.valid), pair.begins.eq(self.begins), pair.keep.eq(self.keep)]
                for number, weight in enumerate(self.weights[output]):
                    m.d.comb += pair.weights[number].eq(weight)
                    for p in range(together):
                        words = zip(pair.features[p][number], self.features[first + p][output][number], strict=True)
                        m.d.comb += [mine.eq(other) for mine, other in words]
                for p in range(together):
                    m.d.comb += self.sums[first + p][output].eq(pair.sums[p])
                    m.d.comb += self.maxima[first + p][output].eq(pair.maxima[p])
        return m


def _with_carry(left: Value, right: Value, carry: Value) -> Value:
    """``left + right + carry`` in one adder."""
    one = Cat(1, left).as_signed() + Cat(carry, right).as_signed()
    return one[1:].as_signed()
