"""Reads the feature memory for a step and brings every word to the multipliers that need it.

It must not know loops or sums: a step comes in, feature and weight operands go out.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.arithmetic import plain_product
from corepool.hardware.decode import get, shape_sizes
from corepool.hardware.interfaces import INSTRUCTION_BITS
from corepool.hardware.memories import Memories, bits_for
from corepool.hardware.sequence import POSITION, plan_layout, step_layout
from corepool.isa.table import Opcode, Shape

# What a multiplier gets: nothing, the byte of its own input channel, or (2, 3) that of its output channel from one half
# of the banks.
_OWN_BYTE = 1


def delayed(m: Module, value: Value, cycles: int, name: str) -> Value:
    """The value of so many cycles ago."""
    for number in range(cycles):
        later = Signal.like(value, name=f"{name}_{number + 1}")
        m.d.sync += later.eq(value)
        value = later
    return value


def folds(config: HardwareConfig) -> int:
    """Words of a window of 2P pixels that share a multiplier when pooling."""
    return max(config.feature_banks // config.channels, 1)


class Operands(wiring.Component):
    """For a ``step`` in cycle i: addresses to the memories in i + 1, ``features`` and ``weights`` in i + DELAY.

    ``features`` [P][C outputs][C][folds]: what multiplier (pixel, output channel, number) gets, zero where nothing (for
    maximum: -128); ``weights`` [C outputs][C]; ``word``: the first pixel's word, for ADD and MUL.
    """

    DELAY = 2 + Memories.READ_DELAY

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        pixels, channels, fold = config.pixels, config.channels, folds(config)
        super().__init__(
            {
                "op": In(INSTRUCTION_BITS),
                "plan": In(plan_layout(config)),
                "step": In(step_layout(config)),
                "feature_lines": Out(bits_for(config.feature_lines)).array(config.feature_banks),
                "weight_address": Out(bits_for(config.weight_words)),
                "memory_features": In(8 * channels).array(config.feature_banks),
                "memory_weights": In(8 * channels * channels),
                "features": Out(signed(8)).array(pixels, channels, channels, fold),
                "weights": Out(signed(8)).array(channels, channels),
                "word": Out(8 * channels),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._bits = bits_for(self.config.feature_banks)
        self._base = Signal(self._bits)
        if self.config.pixels > 1:  # the factor P - 1 without a multiplier
            m.d.comb += self._base.eq(self.step.x + self.step.y * self.config.pixels - self.step.y)
        else:
            m.d.comb += self._base.eq(self.step.x + self.step.y)
        outside = self._addresses(m)
        m.d.sync += self.weight_address.eq(self.step.weight)
        wait = 1 + Memories.READ_DELAY
        pad = get(self.op, Opcode.CONV, "pad_value")
        padding = Cat(*[pad] * self.config.channels)
        words = []
        for bank, flag in enumerate(outside):
            late = delayed(m, flag, wait, f"outside_{bank}")
            word = Signal(8 * self.config.channels, name=f"word_{bank}")
            m.d.comb += word.eq(Mux(late, padding, self.memory_features[bank]))
            words.append(word)
        self._choose(m, words, wait)
        self._weigh(m)
        return m

    def _leaves(self, x: Value, y: Value) -> Value:
        """The position lies outside the input tile."""
        rows, cols = get(self.op, Opcode.CONV, "in_rows"), get(self.op, Opcode.CONV, "in_cols")
        return (x < 0) | (y < 0) | (x >= cols) | (y >= rows)

    def _addresses(self, m: Module) -> list[Value]:
        """Line for each bank, and whether the pixel that it stands for is padding."""
        config, step, plan, bits = self.config, self.step, self.plan, self._bits
        elementwise = plan.add | plan.mul
        pixels = []
        for p in range(config.pixels):
            x, y = Signal(POSITION, name=f"pixel_x_{p}"), Signal(POSITION, name=f"pixel_y_{p}")
            line, off = Signal(bits_for(config.feature_lines), name=f"line_{p}"), Signal(name=f"off_{p}")
            bank, turn = Signal(bits, name=f"pixel_bank_{p}"), Signal(name=f"in_turn_{p}")
            m.d.comb += [
                x.eq(step.x + plan.pixel_cols[p]),
                y.eq(step.y + plan.pixel_rows[p]),
                line.eq(step.line + plan.pixel_lines[p] + (x >> bits)),
                off.eq(self._leaves(x, y) & ~elementwise),
                bank.eq(self._base + plan.pixel_banks[p]),
                turn.eq(plan.pixel_turns[p] == step.sub),
            ]
            pixels.append((line, off, bank, turn))
        outside = []
        for number, lines in enumerate(self.feature_lines):
            away, place = Signal(bits, name=f"away_{number}"), Signal(POSITION, name=f"place_{number}")
            line, off = (
                Signal(bits_for(config.feature_lines), name=f"bank_line_{number}"),
                Signal(name=f"bank_off_{number}"),
            )
            m.d.comb += [away.eq(number - self._base), place.eq(step.x + away)]
            with m.If(plan.depthwise | plan.pool):
                m.d.comb += [line.eq(step.line + (place >> bits)), off.eq(self._leaves(place, step.y))]
            with m.Else():
                for pixel_line, pixel_off, bank, turn in pixels:
                    with m.If(turn & (bank == number)):
                        m.d.comb += [line.eq(pixel_line), off.eq(pixel_off)]
            m.d.sync += lines.eq(line)
            outside.append(off)
        self._pixels = pixels
        return outside

    def _choose(self, m: Module, words: list[Signal], wait: int) -> None:
        """Which bank's word goes to which pixel and number, and whether it counts."""
        config, plan, step = self.config, self.plan, self.step
        channels, fold = config.channels, folds(config)
        pools = _PoolMask(m, config, self.op, plan, step)
        for p in range(config.pixels):
            _, _, bank, turn = self._pixels[p]
            for number in range(channels):
                tap = Signal(range(2048), name=f"tap_{p}_{number}")
                m.d.comb += tap.eq(
                    plan.pixel_cols[p] + plain_product(get(self.op, Opcode.CONV, "dilation_x"), Const(number))
                )
                for f in range(fold):
                    chosen, counts = (
                        Signal(self._bits, name=f"chosen_{p}_{number}_{f}"),
                        Signal(name=f"counts_{p}_{number}_{f}"),
                    )
                    slot = number + f * channels
                    with m.If(plan.depthwise):
                        if f == 0:
                            m.d.comb += chosen.eq(self._base + tap)
                            within = (tap >> self._bits) == step.sub
                            m.d.comb += counts.eq(within & (number < get(self.op, Opcode.CONV, "kernel_w")))
                    with m.Elif(plan.pool):
                        if slot < config.feature_banks:
                            m.d.comb += [chosen.eq(self._base + slot), counts.eq(pools.mask(p, slot))]
                    with m.Else():
                        if f == 0:
                            m.d.comb += [chosen.eq(bank), counts.eq(turn)]
                    code = Signal(2, name=f"code_{p}_{number}_{f}")
                    with m.If(counts & step.lanes[p]):
                        m.d.comb += code.eq(Mux(plan.conv, _OWN_BYTE, Cat(chosen[-1], 1)))
                    late = delayed(m, Cat(chosen, code), wait, f"route_{p}_{number}_{f}")
                    self._put(m, p, number, f, words, late[: self._bits], late[self._bits :])

    def _put(self, m: Module, p: int, number: int, f: int, words: list[Signal], chosen: Value, code: Value) -> None:
        """The chosen word's bytes to where they belong: in a convolution byte ``number`` to every output, otherwise
        each output's own. The halves of the banks meet no sooner than there, which saves a row of multiplexers."""
        channels, half = self.config.channels, len(words) // 2
        halves = []
        for part, own in enumerate((words[:half], words[half:])):
            word = Signal(8 * channels, name=f"half_{p}_{number}_{f}_{part}")
            m.d.comb += word.eq(Array(own)[chosen[:-1]] if half > 1 else own[0])
            halves.append(word)
        picked = Signal(8 * channels, name=f"picked_{p}_{number}_{f}")
        m.d.comb += picked.eq(Mux(chosen[-1], halves[1], halves[0]))
        nothing = Mux(self.plan.maximum, Const(-128, signed(8)), 0)[:8]
        for output in range(channels):
            bytes_ = [nothing, picked.word_select(number, 8), *(word.word_select(output, 8) for word in halves)]
            m.d.sync += self.features[p][output][number][f].eq(Array(bytes_)[code])
        if p == number == f == 0:
            m.d.sync += self.word.eq(picked)

    def _weigh(self, m: Module) -> None:
        channels = self.config.channels
        for output in range(channels):
            for number in range(channels):
                straight = self.memory_weights.word_select(output * channels + number, 8)
                across = self.memory_weights.word_select(number * channels + output, 8)
                byte = Mux(self.plan.depthwise, across, straight)
                m.d.sync += self.weights[output][number].eq(Mux(self.plan.pool, 1, byte.as_signed()))


class _PoolMask:
    """Which of the 2P pixels of a window belong to the kernel row of each output pixel."""

    def __init__(self, m: Module, config: HardwareConfig, op: Value, plan: data.View, step: data.View) -> None:
        width = config.feature_banks
        dilation = get(op, Opcode.CONV, "dilation_x")
        multiples = Signal(32 + width)  # bit n: n is a multiple of the dilation
        with m.Switch(dilation):
            for value in range(1, 32):
                with m.Case(value):
                    m.d.comb += multiples.eq(sum(1 << n for n in range(0, 32 + width, value)))
        self._masks = []
        for p in range(config.pixels):
            start = Signal(POSITION, name=f"window_start_{p}")  # of the window, seen from the pixel's first tap
            m.d.comb += start.eq((step.sub << bits_for(width)) - plan.pixel_cols[p])
            phase = Signal(5, name=f"phase_{p}")
            self._follow(m, config, p, phase, op, step)
            mask = Signal(width, name=f"pool_mask_{p}")
            shifted = multiples >> phase
            for slot in range(width):
                at = start + slot
                m.d.comb += mask[slot].eq((at >= 0) & (at <= plan.reach) & shifted[slot])
            self._masks.append(mask)

    @staticmethod
    def _follow(m: Module, config: HardwareConfig, p: int, phase: Signal, op: Value, step: data.View) -> None:
        """``phase`` is the window's start, modulo the dilation, kept up from window to window.

        That of the first window must be there with the first step. So it is made from the instruction beside the plan,
        in two cycles; made from the plan, it would still be that of another instruction's columns.
        """
        dilation, stride = Signal(5, name=f"dilation_{p}"), Signal(4, name=f"stride_{p}")
        begin, move = Signal(5, name=f"phase_begin_{p}"), Signal(5, name=f"phase_move_{p}")
        column = p % shape_sizes(config)[Shape.ROW][1]  # a POOL's pixels lie in a row
        m.d.sync += [dilation.eq(get(op, Opcode.CONV, "dilation_x")), stride.eq(get(op, Opcode.CONV, "stride_x"))]
        m.d.sync += move.eq(_remainders(dilation, [config.feature_banks]))
        if column:
            m.d.sync += begin.eq(_remainders(Cat(dilation, stride), [-column * number for number in range(16)]))
        kept, total = Signal(5, name=f"phase_kept_{p}"), Signal(6, name=f"phase_total_{p}")
        m.d.comb += [phase.eq(Mux(step.sub == 0, begin, kept)), total.eq(phase + move)]
        with m.If(step.valid):
            m.d.sync += kept.eq(Mux(total >= dilation, total - dilation, total))

    def mask(self, p: int, slot: int) -> Value:
        return self._masks[p][slot]


def _remainders(index: Value, numbers: list[int]) -> Value:
    """A table: ``numbers[upper bits of index]`` modulo the lower five bits of ``index``, which are no 0."""
    entries = [number % max(divisor, 1) for number in numbers for divisor in range(32)]
    return Const(sum(entry << 5 * place for place, entry in enumerate(entries)), 5 * len(entries)).word_select(index, 5)
