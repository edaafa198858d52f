"""The compute unit: loops, operands, sums and requantisation put together, with the addresses of results.

It must not know queues or tokens; it is started with an instruction and says when it ends.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.errors import ConfigError
from corepool.hardware.decode import get
from corepool.hardware.interfaces import INDEX_BITS, INSTRUCTION_BITS
from corepool.hardware.memories import Memories, bits_for
from corepool.hardware.operands import Operands, delayed
from corepool.hardware.requant import CHANNEL, CONSTANTS, Requantiser
from corepool.hardware.sequence import Sequencer
from corepool.hardware.sums import Sums
from corepool.isa.table import Opcode

# From a step to the cycle in which its group's first pixel is at the requantiser.
_TO_SUMS = Operands.DELAY + Sums.DELAY
_TO_REQUANTISER = _TO_SUMS + 1
_LEAST_LATENCY = Sequencer.FIRST_STEP + _TO_REQUANTISER + Requantiser.DELAY - 3  # results may be late by two cycles


class ComputeUnit(wiring.Component):
    """``start`` in cycle s with ``instruction`` and ``index``, while ``free``; ``done`` in s + duration, with the
    tokens that are raised and ``done_index``. ``step``: the array takes operands. ``forget``: accumulators count as
    empty.

    The other ports go to the memories.
    """

    def __init__(self, config: HardwareConfig) -> None:
        if config.compute_latency < _LEAST_LATENCY:
            raise ConfigError(
                f"configuration {config.name!r}: compute latency {config.compute_latency} "
                f"must be at least {_LEAST_LATENCY}"
            )
        self.config = config
        word, channels, results = 8 * config.word_bytes, config.channels, bits_for(config.result_words)
        super().__init__(
            {
                "start": In(1),
                "instruction": In(INSTRUCTION_BITS),
                "index": In(INDEX_BITS),
                "free": Out(1),
                "done": Out(1),
                "raise_prev": Out(1),
                "raise_next": Out(1),
                "done_index": Out(INDEX_BITS),
                "step": Out(1),
                "forget": In(1),
                "reset": In(1),
                "feature_lines": Out(bits_for(config.feature_lines)).array(config.feature_banks),
                "features": In(word).array(config.feature_banks),
                "weight_address": Out(bits_for(config.weight_words)),
                "weights": In(word * channels),
                "parameter_address": Out(bits_for(config.parameter_words)),
                "parameters": In(word * 8),
                "operand_address": Out(results),
                "operand": In(word),
                "table_index": Out(8).array(channels),
                "table_slot": Out(bits_for(config.lut_slots)),
                "table_data": In(8).array(channels),
                "next_write": Out(1),
                "next_address": Out(results),
                "result_write": Out(1),
                "result_address": Out(results),
                "result_data": Out(word),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.sequencer = self._sequencer = sequencer = Sequencer(self.config)
        m.submodules.operands = operands = Operands(self.config)
        m.submodules.sums = self._sums = sums = Sums(self.config)
        m.submodules.requantiser = self._requantiser = requantiser = Requantiser(self.config)
        self._op = sequencer.op
        m.d.comb += [
            sequencer.start.eq(self.start),
            sequencer.instruction.eq(self.instruction),
            sequencer.reset.eq(self.reset),
            self.step.eq(sequencer.step.valid),
        ]
        for block in (operands, requantiser):
            m.d.comb += [block.op.eq(sequencer.op), block.plan.eq(sequencer.plan)]
        m.d.comb += [operands.step.eq(sequencer.step), self.weight_address.eq(operands.weight_address)]
        for mine, other in zip(self.feature_lines, operands.feature_lines, strict=True):
            m.d.comb += mine.eq(other)
        for mine, other in zip(operands.memory_features, self.features, strict=True):
            m.d.comb += mine.eq(other)
        m.d.comb += operands.memory_weights.eq(self.weights)
        self._connect_operands(m, operands, sums)
        self._end(m)
        ends = self._accumulate(m)
        self._drain(m, ends, delayed(m, operands.word, Sums.DELAY, "word"))
        return m

    def _connect_operands(self, m: Module, operands: Operands, sums: Sums) -> None:
        channels = range(self.config.channels)
        for output in channels:
            for number in channels:
                m.d.comb += sums.weights[output][number].eq(operands.weights[output][number])
                for p in range(self.config.pixels):
                    pairs = zip(sums.features[p][output][number], operands.features[p][output][number], strict=True)
                    m.d.comb += [mine.eq(other) for mine, other in pairs]

    def _end(self, m: Module) -> None:
        """Busy from the start to the documented end; a timer runs from the last cycle of the last group."""
        config = self.config
        busy, draining, timer = Signal(), Signal(), Signal(range(config.pixels + config.compute_latency))
        index = Signal(INDEX_BITS)
        elementwise = self._sequencer.plan.add | self._sequencer.plan.mul
        partial = ~elementwise & ~get(self._op, Opcode.CONV, "last")
        whole = config.compute_latency - Sequencer.FIRST_STEP
        m.d.comb += [
            self.done.eq(busy & draining & (timer == 0)),
            self.free.eq(~busy | self.done),
            self.done_index.eq(index),
            self.raise_prev.eq(self.done & get(self._op, Opcode.CONV, "raise_prev")),
            self.raise_next.eq(self.done & get(self._op, Opcode.CONV, "raise_next")),
        ]
        with m.If(draining & (timer != 0)):
            m.d.sync += timer.eq(timer - 1)
        with m.If(self._sequencer.ending):
            m.d.sync += [draining.eq(1), timer.eq(Mux(partial, whole, whole + config.pixels))]
        with m.If(self.done):
            m.d.sync += [busy.eq(0), draining.eq(0)]
        with m.If(self.start):
            m.d.sync += [busy.eq(1), draining.eq(0), index.eq(self.index)]
        with m.If(self.reset):
            m.d.sync += [busy.eq(0), draining.eq(0)]

    def _accumulate(self, m: Module) -> Value:
        """Tell the sums what a step is; returns whether a group's results are there with it."""
        plan, step = self._sequencer.plan, self._sequencer.step
        summing = ~(plan.add | plan.mul)
        first, last = get(self._op, Opcode.CONV, "first"), get(self._op, Opcode.CONV, "last")
        fresh = Signal(init=1)
        now = Cat(step.valid & summing, step.begins, step.valid & step.ends & summing, step.valid & step.ends)
        flags = delayed(m, Mux(self.reset, 0, now), _TO_SUMS, "flags")
        m.d.comb += [
            self._sums.valid.eq(flags[0]),
            self._sums.begins.eq(flags[1]),
            self._sums.keep.eq(~first & ~fresh),
        ]
        with m.If(flags[2]):
            m.d.sync += fresh.eq(last)
        with m.If(self.forget):
            m.d.sync += fresh.eq(1)
        return flags[3]

    def _drain(self, m: Module, ends: Value, word: Value) -> None:
        """A group's pixels, one a cycle, to the requantiser and on to the result memory."""
        config, plan, requantiser = self.config, self._sequencer.plan, self._requantiser
        pixels, channels = config.pixels, config.channels
        lanes = [
            [Signal.like(value, name=f"lane_{p}_{o}") for o, value in enumerate(row)]
            for p, row in enumerate(self._sums.sums)
        ]
        for p in range(pixels):
            for o in range(channels):
                value = Mux(plan.maximum, self._sums.maxima[p][o], self._sums.sums[p][o])
                if p == 0:
                    value = Mux(plan.add | plan.mul, word.word_select(o, 8).as_signed(), value)
                with m.If(ends):
                    m.d.sync += lanes[p][o].eq(value)
                if p + 1 < pixels:
                    with m.Else():
                        m.d.sync += lanes[p][o].eq(lanes[p + 1][o])
        for o in range(channels):
            m.d.comb += requantiser.sums[o].eq(lanes[0][o])
            m.d.comb += requantiser.channels[o].eq(self.parameters.word_select(o, CHANNEL.size))
            m.d.comb += [self.table_index[o].eq(requantiser.index[o]), requantiser.entry[o].eq(self.table_data[o])]
        m.d.comb += self.table_slot.eq(get(self._op, Opcode.CONV, "lut_slot"))
        self._addresses(m)

    def _addresses(self, m: Module) -> None:
        """Words of parameters and operand for the pixel that reaches the requantiser READ_DELAY cycles later."""
        config, step, plan = self.config, self._sequencer.step, self._sequencer.plan
        results = bits_for(config.result_words)
        layout = data.StructLayout(
            {"ends": 1, "lanes": config.pixels, "result": results, "operand": results, "parameter": len(step.parameter)}
        )
        group, now = Signal(layout), Signal(layout)
        writes = step.valid & step.ends & (plan.add | plan.mul | get(self._op, Opcode.CONV, "last")) & ~self.reset
        m.d.comb += [group.ends.eq(writes), group.lanes.eq(step.lanes), group.result.eq(step.result)]
        m.d.comb += [group.operand.eq(step.operand), group.parameter.eq(step.parameter)]
        arrived = data.View(layout, delayed(m, group.as_value(), _TO_REQUANTISER - Memories.READ_DELAY - 1, "group"))
        pixel, active = Signal(range(config.pixels)), Signal()
        m.d.sync += pixel.eq(pixel + 1)
        with m.If(pixel == config.pixels - 1):
            m.d.sync += active.eq(0)
        with m.If(arrived.ends):
            m.d.sync += [now.eq(arrived), pixel.eq(0), active.eq(1)]
        offset = Array(plan.pixel_results[p] for p in range(config.pixels))[pixel]
        place = Signal(results)
        m.d.comb += [place.eq(now.result + offset), self.operand_address.eq(now.operand + offset)]
        valid = active & now.lanes.bit_select(pixel, 1)
        self._constants(m, now.parameter)
        total = Memories.READ_DELAY + Requantiser.DELAY
        before = delayed(m, Cat(valid & ~self.reset, place), total - 1, "write")
        m.d.comb += [self.next_write.eq(before[0]), self.next_address.eq(before[1:])]
        after = delayed(m, before, 1, "write_now")
        m.d.comb += [self.result_write.eq(after[0]), self.result_address.eq(after[1:])]
        m.d.comb += [self.result_data.eq(self._requantiser.result), self._requantiser.operand.eq(self.operand)]

    def _constants(self, m: Module, parameter: Value) -> None:
        """The parameter memory's address; at the start of an instruction it reads the constants of an addition."""
        reading = delayed(m, self.start, Sequencer.FIRST_STEP, "reading")
        there = delayed(m, reading, Memories.READ_DELAY, "there")
        base, behind = get(self._op, Opcode.CONV, "parameter"), get(self._op, Opcode.CONV, "out_blocks")
        residual = self._sequencer.plan.conv & get(self._op, Opcode.CONV, "residual")
        m.d.comb += self.parameter_address.eq(Mux(reading, base + Mux(residual, behind, 0), parameter))
        constants = Signal(CONSTANTS)
        with m.If(there):
            m.d.sync += constants.eq(self.parameters[: CONSTANTS.size])
        m.d.comb += self._requantiser.constants.eq(constants)
