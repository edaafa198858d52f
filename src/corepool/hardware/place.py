"""Takes lines that arrive from DDR and places their words in the memories of the core.

It must not know requests or time: lines come in order, bursts and instructions are told beforehand.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.decode import get
from corepool.hardware.interfaces import INSTRUCTION_BITS
from corepool.hardware.memories import bits_for, column_count, columns, deepest, pieces_per_cycle, write_layout
from corepool.hardware.queues import Queue
from corepool.isa.table import Opcode, Target

_WAITING_LINES = 4
_GROUPS = 4  # groups of words that wait for their column at the same time
_FIELDS = ("target", "rows", "pixels", "local", "row_pitch", "block_pitch", "first_row")


def part_layout(config: HardwareConfig) -> data.StructLayout:
    """A burst as the placer needs it: words to skip in its first line, its words, whether an instruction begins
    here."""
    return data.StructLayout(
        {
            "skip": bits_for(config.ddr.line_bytes // config.word_bytes),
            "words": (config.burst_bytes // config.word_bytes).bit_length(),
            "first": 1,
        }
    )


def _plan_layout() -> data.StructLayout:
    from corepool.isa.table import field_of

    return data.StructLayout({name: field_of(Opcode.LOAD, name).width for name in _FIELDS})


class Placer(wiring.Component):
    """Writes the words of loads to the columns of their memories.

    ``plan`` with ``instruction`` announces a LOAD, ``part`` with ``burst`` one of its bursts (in order, before its
    first line); ``line_valid`` with ``line`` brings a line. ``results_taken``: columns of the result memory that
    cannot be written in the next cycle. ``writes``: a word per column. ``reset`` drops everything.

    Where words of the same line meet in one column they are written one after the other; a line's words never come
    before those of the line before it but for other columns. A line that meets no such crowd is in memory
    ``2 + line words / pieces`` cycles after it came.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        self.words = config.ddr.line_bytes // config.word_bytes
        self.pieces = pieces_per_cycle(config)
        self.depth = config.load_outstanding + 3
        super().__init__(
            {
                "plan": In(1),
                "instruction": In(INSTRUCTION_BITS),
                "part": In(1),
                "burst": In(part_layout(config)),
                "line_valid": In(1),
                "line": In(8 * config.ddr.line_bytes),
                "results_taken": In(columns(config)[Target.RESULT].count),
                "writes": Out(write_layout(config)).array(column_count(config)),
                "reset": In(1),
                "overrun": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.plans = self._plans = plans = Queue(_plan_layout(), self.depth)
        m.submodules.parts = self._parts = parts = Queue(part_layout(self.config), self.depth)
        m.submodules.lines = self._lines = lines = Queue(8 * self.config.ddr.line_bytes, _WAITING_LINES)
        m.d.comb += [plans.push.eq(self.plan), plans.clear.eq(self.reset)]
        for name in _FIELDS:
            m.d.comb += plans.input[name].eq(get(self.instruction, Opcode.LOAD, name))
        m.d.comb += [parts.push.eq(self.part), parts.input.eq(self.burst), parts.clear.eq(self.reset)]
        m.d.comb += [lines.push.eq(self.line_valid), lines.input.eq(self.line), lines.clear.eq(self.reset)]
        with m.If(self.line_valid & (lines.level == _WAITING_LINES)):
            m.d.sync += self.overrun.eq(1)  # never, for any burst that the load unit asks for; watched in tests
        self._cut_line(m)
        self._window(m)
        return m

    def _cut_line(self, m: Module) -> None:
        """Each cycle: the next group of words of the line at the head, with the place of each."""
        parts, lines, pieces, groups = self._parts, self._lines, self.pieces, self.words // self.pieces
        fresh = Signal(init=1)  # the line at the head begins a burst
        left, at = Signal(parts.head.words.shape()), Signal(range(max(groups, 2)))
        low = pieces.bit_length() - 1
        skip = parts.head.skip
        now_left, now_at = Signal.like(left), Signal.like(at)
        begin, count = Signal(range(pieces + 1)), Signal(range(pieces + 1))
        m.d.comb += now_left.eq(Mux(fresh, parts.head.words, left))
        m.d.comb += now_at.eq(Mux(fresh, skip[low:] if groups > 1 else 0, at))
        m.d.comb += begin.eq(Mux(fresh, skip[:low] if low else 0, 0))
        room = Signal(range(pieces + 1))
        m.d.comb += [room.eq(pieces - begin), count.eq(Mux(now_left < room, now_left, room))]
        self.take = take = Signal()
        self.free = Signal()
        m.d.comb += take.eq((lines.level != 0) & self.free)
        self.mask = Signal(pieces)
        m.d.comb += self.mask.eq(Cat(*((i >= begin) & (i < begin + count) for i in range(pieces))))
        self.group_data = Signal(8 * self.config.word_bytes * pieces)
        m.d.comb += self.group_data.eq(lines.head.word_select(now_at, len(self.group_data)))
        burst_ends = now_left == count
        m.d.comb += [parts.pop.eq(take & fresh), self._plans.pop.eq(take & fresh & parts.head.first)]
        m.d.comb += lines.pop.eq(take & (burst_ends | (now_at == groups - 1)))
        with m.If(take):
            m.d.sync += [left.eq(now_left - count), fresh.eq(burst_ends)]
            m.d.sync += at.eq(Mux(now_at == groups - 1, 0, now_at + 1))
        with m.If(self.reset):
            m.d.sync += fresh.eq(1)
        self._places(m, fresh & parts.head.first)

    def _places(self, m: Module, begins: Value) -> None:
        """Walk the words of a group: column and address of each."""
        config, cuts = self.config, columns(self.config)
        bank_bits, turn_step = bits_for(config.feature_banks), max(config.pixels - 1, 1)
        line_bits = bits_for(config.feature_lines)
        plan = Signal(_plan_layout())
        now = Signal(_plan_layout())
        m.d.comb += now.eq(Mux(begins, self._plans.head, plan))
        layout = data.StructLayout(
            {"x": 16, "row": 16, "line": line_bits, "block_line": line_bits, "turn": bank_bits, "linear": 24}
        )
        kept, state = Signal(layout), Signal(layout)
        first_turn = Signal(bank_bits)
        m.d.comb += first_turn.eq(now.first_row * turn_step)
        m.d.comb += state.eq(kept)
        with m.If(begins):
            m.d.comb += [state.x.eq(0), state.row.eq(0), state.turn.eq(first_turn)]
            m.d.comb += [state.line.eq(now.local), state.block_line.eq(now.local)]
            with m.Switch(now.target):
                scales = {Target.WEIGHT: config.channels, Target.PARAMETER: 8, Target.RESULT: 1}
                scales[Target.LUT] = 256 // config.channels
                for target, scale in scales.items():
                    with m.Case(int(target)):
                        m.d.comb += state.linear.eq(now.local << scale.bit_length() - 1)
        self.group_target = now.target
        self.places: list[tuple[Signal, Signal]] = []
        for piece in range(self.pieces):
            column, address = Signal(range(column_count(config))), Signal(range(deepest(config)))
            self.places.append((column, address))
            with m.Switch(now.target):
                with m.Case(int(Target.FEATURE)):
                    m.d.comb += column.eq((state.x + state.turn)[:bank_bits])
                    m.d.comb += address.eq((state.line + (state.x >> bank_bits))[:line_bits])
                for target in (Target.WEIGHT, Target.PARAMETER, Target.RESULT, Target.LUT):
                    with m.Case(int(target)):
                        bits, deep = (cuts[target].count - 1).bit_length(), bits_for(cuts[target].depth)
                        m.d.comb += column.eq(state.linear[:bits] if bits else 0)
                        m.d.comb += address.eq(state.linear[bits : bits + deep])
            following = Signal(layout)
            m.d.comb += [following.eq(state), following.linear.eq(state.linear + 1)]
            with m.If(state.x + 1 != now.pixels):
                m.d.comb += following.x.eq(state.x + 1)
            with m.Else():
                m.d.comb += following.x.eq(0)
                with m.If(state.row + 1 != now.rows):
                    line = (state.line + now.row_pitch)[:line_bits]
                    m.d.comb += [following.row.eq(state.row + 1), following.line.eq(line)]
                    m.d.comb += following.turn.eq(state.turn + turn_step)
                with m.Else():
                    line = (state.block_line + now.block_pitch)[:line_bits]
                    m.d.comb += [following.row.eq(0), following.line.eq(line), following.block_line.eq(line)]
                    m.d.comb += following.turn.eq(first_turn)
            after = Signal(layout, name=f"after_{piece}")
            m.d.comb += after.eq(Mux(self.mask[piece], following, state))
            state = after
        with m.If(self.take):
            m.d.sync += [plan.eq(now), kept.eq(state)]

    def _window(self, m: Module) -> None:
        """Groups wait here; every column takes the oldest of the words that are meant for it."""
        config, pieces = self.config, self.pieces
        word_bits = 8 * config.word_bytes
        entry = data.StructLayout(
            {
                "target": 3,
                "columns": data.ArrayLayout(bits_for(column_count(config)), pieces),
                "addresses": data.ArrayLayout(bits_for(deepest(config)), pieces),
                "data": data.ArrayLayout(word_bits, pieces),
            }
        )
        slots = [Signal(entry, name=f"slot_{i}") for i in range(_GROUPS)]
        open_ = [Signal(pieces, name=f"open_{i}") for i in range(_GROUPS)]
        level = Signal(range(_GROUPS + 1))
        m.d.comb += self.free.eq(level != _GROUPS)
        incoming = Signal(entry)
        m.d.comb += [incoming.target.eq(self.group_target), incoming.data.eq(self.group_data)]
        for piece, (column, address) in enumerate(self.places):
            m.d.comb += [incoming.columns[piece].eq(column), incoming.addresses[piece].eq(address)]
        done = [Signal(pieces, name=f"done_{i}") for i in range(_GROUPS)]
        taken = Cat(self.results_taken, *([0] * (column_count(config) - len(self.results_taken))))
        picks: dict[tuple[int, int], list[Value]] = {(g, p): [] for g in range(_GROUPS) for p in range(pieces)}
        for number, write in enumerate(self.writes):
            earlier: Value = Signal(1, name=f"none_{number}")
            chosen = Signal(write_layout(config), name=f"chosen_{number}")
            words: list[Value] = []
            for group, piece in picks:
                slot = slots[group]
                hit = Signal(name=f"hit_{number}_{group}_{piece}")
                blocked = taken[number] & (slot.target == int(Target.RESULT))
                m.d.comb += hit.eq(open_[group][piece] & (slot.columns[piece] == number) & ~blocked & ~earlier)
                earlier = earlier | hit
                picks[group, piece].append(hit)
                content = Cat(hit, slot.target, slot.addresses[piece], slot.data[piece])
                words.append(Mux(hit, content, 0))
            total = words[0]
            for other in words[1:]:
                total = total | other
            m.d.comb += chosen.eq(total)
            m.d.sync += write.eq(chosen)
        for (group, piece), hits in picks.items():
            m.d.comb += done[group][piece].eq(Cat(*hits).any())
        shift = Signal()
        m.d.comb += shift.eq((level != 0) & ~(open_[0] & ~done[0]).any())
        for group in range(_GROUPS):
            with m.If(shift):
                if group + 1 < _GROUPS:
                    m.d.sync += [
                        slots[group].eq(slots[group + 1]),
                        open_[group].eq(open_[group + 1] & ~done[group + 1]),
                    ]
                else:
                    m.d.sync += open_[group].eq(0)
            with m.Else():
                m.d.sync += open_[group].eq(open_[group] & ~done[group])
            with m.If(self.take & (level - shift == group)):
                m.d.sync += [slots[group].eq(incoming), open_[group].eq(self.mask)]
        m.d.sync += level.eq(level + self.take - shift)
        with m.If(self.reset):
            m.d.sync += level.eq(0)
            m.d.sync += [bits.eq(0) for bits in open_]
