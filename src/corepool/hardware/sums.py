"""The array of multipliers, its adder trees and the accumulators, for sums and for maxima.

It must not know where operands come from or what becomes of sums.
"""

from __future__ import annotations

from functools import reduce
from operator import add

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.operands import folds

PACK = 18  # bits that the lower of two packed products has for itself
_TREE = 4  # operands of an adder of the tree


class PackedProduct(wiring.Component):
    """``high * weight`` and ``low * weight`` in one multiplication, as a DSP48E2 does it; results one cycle later.

    The lower product borrows from the upper one where it is negative; the upper one gets it back.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__(
            {
                "high": In(signed(bits)),
                "low": In(signed(bits)),
                "weight": In(signed(8)),
                "high_product": Out(signed(bits + 9)),
                "low_product": Out(signed(PACK)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        packed, product = Signal(signed(PACK + self.bits + 1)), Signal(signed(PACK + self.bits + 9))
        m.d.comb += packed.eq((self.high << PACK) + self.low)
        m.d.sync += product.eq(packed * self.weight)
        m.d.comb += self.low_product.eq(product[:PACK].as_signed())
        m.d.comb += self.high_product.eq(product[PACK:].as_signed() + product[PACK - 1])
        return m


class Sums(wiring.Component):
    """Operands in cycle j; ``sums`` [P][C] (with those of this step) in j + DELAY, to be taken in that cycle.

    ``valid``, ``begins`` and ``keep`` come with ``ready``, i.e. DELAY cycles behind their operands: whether the
    step counts, is the first of its group, and then goes on from what the accumulators hold.
    """

    DELAY = 3

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
        channels = self.config.channels
        for output in range(channels):
            products = [self._products(m, output, number) for number in range(channels)]
            for p in range(self.config.pixels):
                total = self._tree(m, [column[p] for column in products], f"{p}_{output}")
                accumulator = Signal(signed(32), name=f"accumulator_{p}_{output}")
                start = Mux(self.begins & ~self.keep, 0, accumulator)
                m.d.comb += self.sums[p][output].eq(start + total)
                with m.If(self.valid):
                    m.d.sync += accumulator.eq(self.sums[p][output])
                self._maximum(m, p, output)
        return m

    def _folded(self, p: int, output: int, number: int) -> Value:
        return reduce(add, list(self.features[p][output][number]))

    def _products(self, m: Module, output: int, number: int) -> list[Value]:
        """All pixels' products with one weight; two at a time."""
        pixels, bits = self.config.pixels, 8 + folds(self.config).bit_length() - 1
        weight = self.weights[output][number]
        results: list[Value] = []
        for p in range(0, pixels - 1, 2):
            m.submodules[f"product_{p}_{output}_{number}"] = pair = PackedProduct(bits)
            m.d.comb += [
                pair.low.eq(self._folded(p, output, number)),
                pair.high.eq(self._folded(p + 1, output, number)),
            ]
            m.d.comb += pair.weight.eq(weight)
            results += [pair.low_product, pair.high_product]
        if pixels % 2:
            product = Signal(signed(bits + 8), name=f"product_{output}_{number}")
            m.d.sync += product.eq(self._folded(pixels - 1, output, number) * weight)
            results.append(product)
        return results

    def _tree(self, m: Module, values: list[Value], name: str) -> Value:
        """The sum, two cycles later."""
        parts = []
        for first in range(0, len(values), _TREE):
            total = reduce(add, values[first : first + _TREE])
            part = Signal(total.shape(), name=f"part_{name}_{first}")
            m.d.sync += part.eq(total)
            parts.append(part)
        total = reduce(add, parts)
        result = Signal(total.shape(), name=f"total_{name}")
        m.d.sync += result.eq(total)
        return result

    def _maximum(self, m: Module, p: int, output: int) -> None:
        def largest(values: list[Value], name: str) -> Value:
            while len(values) > 1:
                pairs = [values[at : at + 2] for at in range(0, len(values), 2)]
                values = [Mux(pair[0] > pair[-1], pair[0], pair[-1]) for pair in pairs]
            result = Signal(signed(8), name=f"{name}_{p}_{output}")
            m.d.comb += result.eq(values[0])
            return result

        operands = [word for number in self.features[p][output] for word in number]
        half = Signal(signed(8), name=f"half_{p}_{output}")
        m.d.sync += half.eq(largest(operands, "largest"))
        later, latest = Signal(signed(8), name=f"later_{p}_{output}"), Signal(signed(8), name=f"latest_{p}_{output}")
        m.d.sync += [later.eq(half), latest.eq(later)]
        kept = Signal(signed(8), name=f"kept_{p}_{output}")
        with m.If(self.begins | (latest > kept)):
            m.d.comb += self.maxima[p][output].eq(latest)
        with m.Else():
            m.d.comb += self.maxima[p][output].eq(kept)
        with m.If(self.valid):
            m.d.sync += kept.eq(self.maxima[p][output])
