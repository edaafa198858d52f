"""Second-level dispatch: decodes the stream in order, keeps a queue per unit and the tokens between units, and faults.

It must not know what instructions compute or where a stream comes from.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.decode import get, is_opcode, is_unit, undefined
from corepool.hardware.interfaces import INDEX_BITS, INSTRUCTION_BITS
from corepool.hardware.queues import Queue
from corepool.isa.table import Opcode, Unit

MOST_TOKENS = 255
UNDEFINED, WINDOW, FOREIGN_SYNC, STREAM_END, TOKENS, WATCHDOG = range(1, 7)  # fault codes

ENTRY = data.StructLayout({"instruction": INSTRUCTION_BITS, "index": INDEX_BITS})

_UNITS = (Unit.LOAD, Unit.COMPUTE, Unit.SAVE)
_LIKE = {Unit.LOAD: Opcode.LOAD, Unit.COMPUTE: Opcode.CONV, Unit.SAVE: Opcode.SAVE}
# A counter of tokens: who raises it with which flag, who takes it with which.
_COUNTERS = {
    "lc": (Unit.LOAD, "raise_next", Unit.COMPUTE, "wait_prev"),
    "cl": (Unit.COMPUTE, "raise_prev", Unit.LOAD, "wait_next"),
    "cs": (Unit.COMPUTE, "raise_next", Unit.SAVE, "wait_prev"),
    "sc": (Unit.SAVE, "raise_prev", Unit.COMPUTE, "wait_next"),
}


class TokenCounter(wiring.Component):
    """Tokens from one unit to another. ``available`` counts one that is raised in this cycle; ``overflow``: it
    does not fit."""

    def __init__(self) -> None:
        super().__init__({"raised": In(1), "taken": In(1), "available": Out(1), "overflow": Out(1), "reset": In(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count = Signal(range(MOST_TOKENS + 1))
        m.d.comb += [self.available.eq((count != 0) | self.raised)]
        m.d.comb += self.overflow.eq(self.raised & (count == MOST_TOKENS))
        m.d.sync += count.eq(count + self.raised - self.taken)
        with m.If(self.reset):
            m.d.sync += count.eq(0)
        return m


class Dispatcher(wiring.Component):
    """Takes ``instruction`` in order; starts a unit with ``go`` [LOAD, COMPUTE, SAVE] and the ``heads`` of the queues.

    ``free``: the unit can start in this cycle. ``load_raise``, ``compute_raise_prev``, ``compute_raise_next``,
    ``save_raise``: tokens raised in this cycle, by the instructions with these ``*_index``. ``drained``: loads,
    compute, save and writes have nothing under way; ``written``: writes alone. ``drain``: no SYNC is early.
    ``run`` lets it work; ``reset`` empties it. ``fault``,
    ``arrived`` (with ``layer``), ``ended`` in the cycle of the event itself; ``index`` is that of the instruction at
    the head.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        super().__init__(
            {
                "instruction": In(stream.Signature(INSTRUCTION_BITS)),
                "stream_end": In(1),
                "lease_cores": In(32),
                "release": In(1),
                "run": In(1),
                "reset": In(1),
                "free": In(3),
                "drained": In(1),
                "written": In(1),
                "drain": In(1),
                "go": Out(3),
                "heads": Out(ENTRY).array(3),
                "load_raise": In(1),
                "compute_raise_prev": In(1),
                "compute_raise_next": In(1),
                "save_raise": In(1),
                "load_index": In(INDEX_BITS),
                "compute_index": In(INDEX_BITS),
                "save_index": In(INDEX_BITS),
                "index": Out(INDEX_BITS),
                "fault": Out(1),
                "fault_code": Out(3),
                "fault_index": Out(INDEX_BITS),
                "arrived": Out(1),
                "layer": Out(16),
                "ended": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        queues = [Queue(ENTRY, self.config.queue_depth) for _ in _UNITS]
        for unit, queue in zip(_UNITS, queues, strict=True):
            m.submodules[f"{unit.name.lower()}_queue"] = queue
            m.d.comb += [queue.clear.eq(self.reset), self.heads[int(unit)].eq(queue.head)]
        self._start(m, queues)
        self._leave(m, queues)
        return m

    def _start(self, m: Module, queues: list[Queue]) -> None:
        """Tokens, and the start of units."""
        raised = {
            "lc": self.load_raise,
            "cl": self.compute_raise_prev,
            "cs": self.compute_raise_next,
            "sc": self.save_raise,
        }
        self.overflows: list[tuple[Value, Value]] = []
        indices = {Unit.LOAD: self.load_index, Unit.COMPUTE: self.compute_index, Unit.SAVE: self.save_index}
        ready: dict[Unit, list[Value]] = {unit: [] for unit in _UNITS}
        for name, (giver, _, taker, flag) in _COUNTERS.items():
            m.submodules[f"tokens_{name}"] = counter = TokenCounter()
            wanted = get(queues[int(taker)].head.instruction, _LIKE[taker], flag)
            ready[taker].append(~wanted | counter.available)
            m.d.comb += [counter.raised.eq(raised[name]), counter.reset.eq(self.reset)]
            m.d.comb += counter.taken.eq(self.go[int(taker)] & wanted)
            self.overflows.append((counter.overflow, indices[giver]))
        for unit, queue in zip(_UNITS, queues, strict=True):
            go = self.run & (queue.level != 0) & self.free[int(unit)] & Cat(*ready[unit]).all()
            m.d.comb += [self.go[int(unit)].eq(go), queue.pop.eq(self.go[int(unit)])]

    def _leave(self, m: Module, queues: list[Queue]) -> None:
        """The head of the stream leaves, holds or faults."""
        word = self.instruction.payload
        present = self.run & self.instruction.valid
        bad = Signal()
        m.d.comb += bad.eq(undefined(word, self.config))
        for unit, queue in zip(_UNITS, queues, strict=True):
            goes = present & ~bad & is_unit(word, unit) & (queue.level != queue.depth)
            m.d.comb += [queue.push.eq(goes), queue.input.instruction.eq(word), queue.input.index.eq(self.index)]
        sync = present & ~bad & is_opcode(word, Opcode.SYNC)
        end = present & ~bad & is_opcode(word, Opcode.END)
        foreign = sync & (get(word, Opcode.SYNC, "cores") != self.lease_cores)
        empty = Cat(*(queue.level != 0 for queue in queues)).any() == 0
        soon = self._early(m, queues[int(Unit.SAVE)], sync)
        m.d.comb += [
            self.instruction.ready.eq(Cat(*(queue.push for queue in queues)).any() | (sync & self.release)),
            self.arrived.eq(sync & ~foreign & ((empty & self.drained) | soon) & ~self.release),
            self.layer.eq(get(word, Opcode.SYNC, "layer")),
            self.ended.eq(end & empty & self.drained),
        ]
        m.d.sync += self.index.eq(self.index + self.instruction.ready)
        with m.If(self.reset):
            m.d.sync += self.index.eq(0)
        self._fault(m, present & bad, foreign, self.run & ~self.instruction.valid & self.stream_end)

    def _early(self, m: Module, saves: Queue, sync: Value) -> Value:
        """A SYNC that need not wait for everything has what it waits for, or had it once."""
        few = saves.level < get(self.instruction.payload, Opcode.SYNC, "early")
        quiet = self.free[int(Unit.SAVE)] & ~self.go[int(Unit.SAVE)] & self.written
        soon, had = Signal(), Signal()
        m.d.comb += soon.eq(~self.drain & ((few & quiet) | had))
        with m.If(sync & soon):
            m.d.sync += had.eq(1)
        with m.If(self.release | self.reset):
            m.d.sync += had.eq(0)
        return soon

    def _fault(self, m: Module, bad: Value, foreign: Value, over: Value) -> None:
        code, index = Signal(3), Signal(INDEX_BITS)
        with m.If(bad | foreign | over):
            m.d.comb += [code.eq(Mux(bad, UNDEFINED, Mux(foreign, FOREIGN_SYNC, STREAM_END))), index.eq(self.index)]
        for overflow, owner in reversed(self.overflows):
            with m.If((code == 0) & overflow):
                m.d.comb += self.fault_index.eq(owner)
        with m.If(code != 0):
            m.d.comb += [self.fault_code.eq(code), self.fault_index.eq(index), self.fault.eq(1)]
        with m.Elif(Cat(*(overflow for overflow, _ in self.overflows)).any()):
            m.d.comb += [self.fault_code.eq(TOKENS), self.fault.eq(self.run)]
        with m.Else():
            m.d.comb += self.fault_code.eq(0)
