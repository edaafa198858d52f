"""A core: dispatch, load, compute and save unit around the on-chip memories.

It must not know the pool: leases, windows, banks and other cores are behind its signature.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring

from corepool.config import HardwareConfig
from corepool.hardware.compute import ComputeUnit
from corepool.hardware.dispatch import Dispatcher
from corepool.hardware.interfaces import CoreSignature, check_config
from corepool.hardware.load import LoadUnit
from corepool.hardware.memories import Memories, bits_for, columns, deepest
from corepool.hardware.place import Placer
from corepool.hardware.save import SaveUnit


class Core(wiring.Component):
    """See CoreSignature."""

    def __init__(self, config: HardwareConfig) -> None:
        self.config = check_config(config)
        columns(config)  # raises for memories that cannot be built
        super().__init__(CoreSignature(config))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.dispatch = dispatch = Dispatcher(config)
        m.submodules.load = load = LoadUnit(config)
        m.submodules.place = self.placer = place = Placer(config)
        m.submodules.compute = compute = ComputeUnit(config)
        m.submodules.save = save = SaveUnit(config)
        m.submodules.memories = memories = Memories(config)
        reset = Signal()
        m.d.comb += reset.eq(self.start | self.halt)
        for resettable in (dispatch, load, place, compute, save):
            m.d.comb += resettable.reset.eq(reset)
        units: tuple[LoadUnit | ComputeUnit | SaveUnit, ...] = (load, compute, save)
        for unit, block in enumerate(units):
            m.d.comb += [
                block.start.eq(dispatch.go[unit]),
                block.instruction.eq(dispatch.heads[unit].instruction),
                block.index.eq(dispatch.heads[unit].index),
                dispatch.free[unit].eq(block.free),
            ]
        m.d.comb += [
            dispatch.load_raise.eq(load.done_raise),
            dispatch.load_index.eq(load.done_index),
            dispatch.compute_raise_prev.eq(compute.raise_prev),
            dispatch.compute_raise_next.eq(compute.raise_next),
            dispatch.compute_index.eq(compute.done_index),
            dispatch.save_raise.eq(save.done_raise),
            dispatch.save_index.eq(save.done_index),
            dispatch.written.eq(~self.writes_pending),
            dispatch.drain.eq(self.drain),
            dispatch.drained.eq(load.idle & compute.free & save.free & ~self.writes_pending),
        ]
        self._control(m, dispatch)
        self._reading(m, load, place)
        self._writing(m, save, memories)
        self._memories(m, place, compute, memories)
        m.d.sync += [
            self.busy.eq(Cat(*(dispatch.go[unit] | ~block.free for unit, block in enumerate(units)))),
            self.done.eq(Cat(load.done, compute.done, save.done)),
            self.step.eq(compute.step),
        ]
        with m.If(reset):
            m.d.sync += [self.busy.eq(0), self.done.eq(0), self.step.eq(0)]
        self._clear(m, memories, compute)
        return m

    def _control(self, m: Module, dispatch: Dispatcher) -> None:
        """Running, faults and arrivals."""
        running = Signal()
        wiring.connect(m, wiring.flipped(self.instruction), dispatch.instruction)
        m.d.comb += [
            dispatch.stream_end.eq(self.stream_end),
            dispatch.lease_cores.eq(self.lease_cores),
            dispatch.release.eq(self.release),
            dispatch.run.eq(running & ~self.halt & ~self.start),
            self.reached.eq(dispatch.index),
        ]
        m.d.sync += self.sync_arrived.eq(dispatch.arrived)
        with m.If(dispatch.arrived):
            m.d.sync += self.sync_layer.eq(dispatch.layer)
        with m.If(dispatch.ended):
            m.d.sync += self.end_arrived.eq(1)
        with m.If(dispatch.fault):
            m.d.sync += [self.fault.valid.eq(1), self.fault.code.eq(dispatch.fault_code), running.eq(0)]
            m.d.sync += self.fault.index.eq(dispatch.fault_index)
        with m.If(self.halt):
            m.d.sync += running.eq(0)
        with m.If(self.start):
            m.d.sync += [running.eq(1), self.end_arrived.eq(0), self.sync_arrived.eq(0)]
            m.d.sync += [self.fault.valid.eq(0), self.fault.code.eq(0)]

    def _reading(self, m: Module, load: LoadUnit, place: Placer) -> None:
        m.d.comb += [
            self.read_request.valid.eq(load.request & ~self.halt),
            self.read_request.payload.eq(load.burst),
            load.complete.eq(self.read_complete),
            place.plan.eq(load.start),
            place.instruction.eq(load.instruction),
            place.part.eq(load.request),
            place.burst.eq(load.part),
            place.line_valid.eq(self.read_line.valid),
            place.line.eq(self.read_line.data),
        ]

    def _writing(self, m: Module, save: SaveUnit, memories: Memories) -> None:
        m.d.comb += [
            save.room.eq(self.write_room),
            self.write_begin.eq(save.begin & ~self.halt),
            self.write_burst.eq(save.burst),
            self.write_banks.eq(save.banks),
            self.write_word.valid.eq(save.word_valid),
            self.write_word.first.eq(save.word_first),
            self.write_word.last.eq(save.word_last),
            self.write_word.data.eq(memories.save_data),
            memories.save_address.eq(save.address),
        ]

    def _memories(self, m: Module, place: Placer, compute: ComputeUnit, memories: Memories) -> None:
        for name in ("weight_address", "parameter_address", "operand_address", "table_slot"):
            m.d.comb += getattr(memories, name).eq(getattr(compute, name))
        for name in ("result_write", "result_address", "result_data"):
            m.d.comb += getattr(memories, name).eq(getattr(compute, name))
        for name in ("weights", "parameters", "operand"):
            m.d.comb += getattr(compute, name).eq(getattr(memories, name))
        for name, source, target in (
            ("feature_lines", compute, memories),
            ("features", memories, compute),
            ("table_index", compute, memories),
            ("table_data", memories, compute),
        ):
            pairs = zip(getattr(target, name), getattr(source, name), strict=True)
            m.d.comb += [mine.eq(other) for mine, other in pairs]
        m.d.comb += [mine.eq(other) for mine, other in zip(memories.loads, place.writes, strict=True)]
        m.d.comb += place.result_taken.eq(compute.next_write)
        m.d.comb += place.result_column.eq(compute.next_address[: len(place.result_column)])

    def _clear(self, m: Module, memories: Memories, compute: ComputeUnit) -> None:
        """One word of every memory a cycle, from the first to the deepest."""
        address, clearing = Signal(bits_for(deepest(self.config))), Signal()
        m.d.comb += [memories.clear.eq(clearing), memories.clear_address.eq(address), compute.forget.eq(clearing)]
        with m.If(clearing):
            m.d.sync += address.eq(address + 1)
            with m.If(address == deepest(self.config) - 1):
                m.d.sync += [clearing.eq(0), self.cleared.eq(1)]
        with m.If(self.clear):
            m.d.sync += [clearing.eq(1), address.eq(0), self.cleared.eq(0)]
