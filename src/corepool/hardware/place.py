"""Takes lines that arrive from DDR and places their words in the memories of the core.

It must not know requests or time: lines come in order, bursts and instructions are told beforehand.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.decode import get
from corepool.hardware.interfaces import INSTRUCTION_BITS
from corepool.hardware.memories import bits_for, column_count, columns, deepest, lanes, pieces_per_cycle, write_layout
from corepool.hardware.queues import Queue
from corepool.isa.table import Opcode, Target, field_of

_WAITING_LINES = 4
_GROUPS = 3  # groups of words that wait for their lane at the same time
_FIELDS = ("target", "rows", "pixels", "local", "row_pitch", "block_pitch", "first_row")


def part_layout(config: HardwareConfig) -> data.StructLayout:
    """A burst as the placer needs it: words to skip in its first line, its words, whether an instruction begins or
    ends with it."""
    return data.StructLayout(
        {
            "skip": bits_for(config.ddr.line_bytes // config.word_bytes),
            "words": (config.burst_bytes // config.word_bytes).bit_length(),
            "first": 1,
            "last": 1,
        }
    )


def _plan_layout() -> data.StructLayout:
    return data.StructLayout({name: field_of(Opcode.LOAD, name).width for name in _FIELDS})


class Placer(wiring.Component):
    """Writes the words of loads to the columns of their memories.

    ``plan`` with ``instruction`` announces a LOAD, ``part`` with ``burst`` one of its bursts (in order, before its
    first line); ``line_valid`` with ``line`` brings a line. ``result_taken``: ``result_column`` of the result memory
    cannot be written in the next cycle. ``writes``: a word per lane. ``reset`` drops everything.

    Where words of the same line meet in one lane they are written one after the other; a line's words never come
    before those of the line before it but for other lanes. A line that meets no such crowd is in memory
    ``2 + line words / pieces`` cycles after it came.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        self.words = config.ddr.line_bytes // config.word_bytes
        self.pieces, self.lanes = pieces_per_cycle(config), lanes(config)
        self.depth = config.load_outstanding + 4
        super().__init__(
            {
                "plan": In(1),
                "instruction": In(INSTRUCTION_BITS),
                "part": In(1),
                "burst": In(part_layout(config)),
                "line_valid": In(1),
                "line": In(8 * config.ddr.line_bytes),
                "result_taken": In(1),
                "result_column": In(bits_for(columns(config)[Target.RESULT].count)),
                "writes": Out(write_layout(config)).array(self.lanes),
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
        begins, last = Signal(init=1), Signal()  # an instruction begins with this group, or ends with this burst
        now_last = Mux(fresh, parts.head.last, last)
        ends = burst_ends & now_last
        m.d.comb += [parts.pop.eq(take & fresh), self._plans.pop.eq(take & ends)]
        m.d.comb += lines.pop.eq(take & (burst_ends | (now_at == groups - 1)))
        with m.If(take):
            m.d.sync += [left.eq(now_left - count), fresh.eq(burst_ends), begins.eq(ends), last.eq(now_last)]
            m.d.sync += at.eq(Mux(now_at == groups - 1, 0, now_at + 1))
        with m.If(self.reset):
            m.d.sync += [fresh.eq(1), begins.eq(1)]
        self.places: list[tuple[Value, Value]] = []
        features = self._feature_places(m, begins)
        others = self._linear_places(m, begins, begin, count)
        for number, (feature, other) in enumerate(zip(features, others, strict=True)):
            column, address = (
                Signal(range(column_count(self.config)), name=f"column_{number}"),
                Signal(range(deepest(self.config)), name=f"address_{number}"),
            )
            is_feature = self._plans.head.target == int(Target.FEATURE)
            m.d.comb += column.eq(Mux(is_feature, feature[0], other[0]))
            m.d.comb += address.eq(Mux(is_feature, feature[1], other[1]))
            self.places.append((column, address))

    def _feature_places(self, m: Module, begins: Value) -> list[tuple[Value, Value]]:
        """Bank and line of each word of a group, as if it went to the feature memory.

        Of the words that are left in a row and the rows that are left in a block, it only matters within a group
        whether they are fewer than its words; so these are counted in few bits, and in all bits once a group.
        """
        config, plan, take = self.config, self._plans.head, self.take
        bank_bits, turn_step = bits_for(config.feature_banks), max(config.pixels - 1, 1)
        line_bits, few = bits_for(config.feature_lines), range(self.pieces + 2)
        layout = data.StructLayout(
            {
                "words": (self.pieces + 1).bit_length(),  # left in the row
                "rows": (self.pieces + 1).bit_length(),  # left in the block
                "row_words": (self.pieces).bit_length(),  # of the group, in its last row
                "block_rows": (self.pieces).bit_length(),  # of the group, in its last block
                "new_row": 1,
                "new_block": 1,
                "bank": bank_bits,
                "turn": bank_bits,  # the row's first bank
                "low": bank_bits,  # column, modulo the banks
                "here": line_bits,
                "line": line_bits,  # of the row's first word
                "block_line": line_bits,
            }
        )

        def at_most(value: Value) -> Value:
            return Mux(value > few[-1], few[-1], value)

        words, rows, start = Signal(16), Signal(16), Signal(layout)
        row_left, block_left, kept = Signal(16), Signal(16), Signal(layout)
        first_turn = Signal(bank_bits)
        row_size, block_size = Signal.like(start.words), Signal.like(start.rows)
        m.d.comb += [first_turn.eq(plan.first_row * turn_step), start.eq(kept)]
        m.d.comb += [words.eq(Mux(begins, plan.pixels, row_left)), rows.eq(Mux(begins, plan.rows, block_left))]
        m.d.comb += [row_size.eq(at_most(plan.pixels)), block_size.eq(at_most(plan.rows))]
        m.d.comb += [start.words.eq(at_most(words)), start.rows.eq(at_most(rows))]
        for name in ("row_words", "block_rows", "new_row", "new_block"):
            m.d.comb += start[name].eq(0)
        with m.If(begins):
            m.d.comb += [start.bank.eq(first_turn), start.turn.eq(first_turn), start.low.eq(0)]
            m.d.comb += [start[name].eq(plan.local) for name in ("here", "line", "block_line")]
        places: list[tuple[Value, Value]] = []
        state: data.View[data.StructLayout] = start
        for piece in range(self.pieces):
            places.append((state.bank, state.here))
            after = Signal(layout, name=f"after_{piece}")
            row_ends, block_ends = Signal(name=f"row_ends_{piece}"), Signal(name=f"block_ends_{piece}")
            turn, line = Signal(bank_bits, name=f"turn_{piece}"), Signal(line_bits, name=f"line_{piece}")
            m.d.comb += [row_ends.eq(state.words == 1), block_ends.eq(state.rows == 1)]
            m.d.comb += turn.eq(Mux(block_ends, first_turn, state.turn + turn_step))
            pitch = Mux(block_ends, plan.block_pitch[:line_bits], plan.row_pitch[:line_bits])
            m.d.comb += line.eq(Mux(block_ends, state.block_line, state.line) + pitch)
            m.d.comb += after.eq(state)
            with m.If(self.mask[piece] & row_ends):
                m.d.comb += [after.words.eq(row_size), after.row_words.eq(0), after.new_row.eq(1), after.low.eq(0)]
                m.d.comb += [after.bank.eq(turn), after.turn.eq(turn), after.here.eq(line), after.line.eq(line)]
                m.d.comb += [after.rows.eq(state.rows - 1), after.block_rows.eq(state.block_rows + 1)]
                with m.If(block_ends):
                    m.d.comb += [after.rows.eq(block_size), after.block_rows.eq(0), after.new_block.eq(1)]
                    m.d.comb += after.block_line.eq(line)
            with m.Elif(self.mask[piece]):
                m.d.comb += [after.words.eq(state.words - 1), after.row_words.eq(state.row_words + 1)]
                m.d.comb += [after.bank.eq(state.bank + 1), after.low.eq(state.low + 1)]
                m.d.comb += after.here.eq(state.here + state.low.all())
            state = after
        with m.If(take):
            m.d.sync += kept.eq(state)
            m.d.sync += row_left.eq(Mux(state.new_row, plan.pixels, words) - state.row_words)
            m.d.sync += block_left.eq(Mux(state.new_block, plan.rows, rows) - state.block_rows)
        return places

    def _linear_places(self, m: Module, begins: Value, begin: Value, count: Value) -> list[tuple[Value, Value]]:
        """Column and address of each word of a group, as if it went to another memory, which are filled in order."""
        config, plan, cuts = self.config, self._plans.head, columns(self.config)
        scales = {Target.WEIGHT: config.channels, Target.PARAMETER: 8, Target.RESULT: 1}
        scales[Target.LUT] = 256 // config.channels
        bits = {target: (cuts[target].count - 1).bit_length() for target in scales}
        width = max(bits[target] + bits_for(cuts[target].depth) for target in scales)
        kept, now = Signal(width), Signal(width)
        m.d.comb += now.eq(kept)
        with m.If(begins), m.Switch(plan.target):
            for target, scale in scales.items():
                with m.Case(int(target)):
                    m.d.comb += now.eq(plan.local << scale.bit_length() - 1)
        with m.If(self.take):
            m.d.sync += kept.eq(now + count)
        first = Signal(width)
        m.d.comb += first.eq(now - begin)
        places: list[tuple[Value, Value]] = []
        for piece in range(self.pieces):
            word = Signal(width, name=f"word_{piece}")
            column, address = Signal(max(bits.values()), name=f"column_{piece}"), Signal(width, name=f"row_{piece}")
            m.d.comb += word.eq(first + piece)
            with m.Switch(plan.target):
                for size in sorted(set(bits.values())):
                    with m.Case(*(int(target) for target in scales if bits[target] == size)):
                        m.d.comb += [column.eq(word[:size]), address.eq(word[size:])]
            places.append((column, address))
        return places

    def _window(self, m: Module) -> None:
        """Groups wait here, in a ring; every lane takes the oldest of the words that are meant for it."""
        config, pieces = self.config, self.pieces
        word = data.StructLayout(
            {
                "column": bits_for(column_count(config)),
                "address": bits_for(deepest(config)),
                "data": 8 * config.word_bytes,
            }
        )
        targets = [Signal(3, name=f"target_{i}") for i in range(_GROUPS)]
        slots = [Signal(data.ArrayLayout(word, pieces), name=f"slot_{i}") for i in range(_GROUPS)]
        open_ = [Signal(pieces, name=f"open_{i}") for i in range(_GROUPS)]
        oldest, behind, level = Signal(range(_GROUPS)), Signal(range(_GROUPS)), Signal(range(_GROUPS + 1))
        m.d.comb += self.free.eq(level != _GROUPS)
        ready = [Signal(pieces, name=f"ready_{i}") for i in range(_GROUPS)]  # may be written now
        for group, slot in enumerate(slots):
            results = self.result_taken & (targets[group] == int(Target.RESULT))
            for piece in range(pieces):
                blocked = results & (slot[piece].column == self.result_column)
                m.d.comb += ready[group][piece].eq(open_[group][piece] & ~blocked)
        done: list[Value] = [Const(0, pieces) for _ in range(_GROUPS)]
        for number, write in enumerate(self.writes):
            taken = [Signal(pieces, name=f"taken_{number}_{group}") for group in range(_GROUPS)]
            place = Signal(range(_GROUPS * pieces), name=f"place_{number}")
            turn = self._oldest(m, number, slots, ready, oldest, taken, place)
            chosen = Signal(word, name=f"chosen_{number}")
            m.d.comb += chosen.eq(Cat(*slots).word_select(place, word.size))
            m.d.sync += [write.valid.eq(Cat(*taken).any()), write.target.eq(Cat(*targets).word_select(turn, 3))]
            m.d.sync += [write[name].eq(chosen[name]) for name in ("column", "address", "data")]
            done = [before | now for before, now in zip(done, taken, strict=True)]
        rest = Signal(data.ArrayLayout(pieces, _GROUPS))  # of every group, what waits on
        shift = Signal()
        m.d.comb += [rest[group].eq(open_[group] & ~done[group]) for group in range(_GROUPS)]
        m.d.comb += shift.eq((level != 0) & (rest[oldest] == 0))
        for group in range(_GROUPS):
            m.d.sync += open_[group].eq(rest[group])
            with m.If(self.take & (behind == group)):
                m.d.sync += [open_[group].eq(self.mask), targets[group].eq(self._plans.head.target)]
                for piece, (column, address) in enumerate(self.places):
                    bytes_ = self.group_data.word_select(piece, 8 * config.word_bytes)
                    m.d.sync += [slots[group][piece].column.eq(column), slots[group][piece].address.eq(address)]
                    m.d.sync += slots[group][piece].data.eq(bytes_)
        with m.If(self.take):
            m.d.sync += behind.eq(Mux(behind == _GROUPS - 1, 0, behind + 1))
        with m.If(shift):
            m.d.sync += oldest.eq(Mux(oldest == _GROUPS - 1, 0, oldest + 1))
        m.d.sync += level.eq(level + self.take - shift)
        with m.If(self.reset):
            m.d.sync += [level.eq(0), oldest.eq(0), behind.eq(0)]
            m.d.sync += [bits.eq(0) for bits in open_]

    def _oldest(
        self,
        m: Module,
        number: int,
        slots: list[data.View[data.ArrayLayout]],
        ready: list[Signal],
        oldest: Signal,
        taken: list[Signal],
        place: Signal,
    ) -> Signal:
        """The oldest word that is ready and meant for a lane: its bit in ``taken``, its ``place`` among all that wait.
        Returns its group."""
        pieces, lane_bits = self.pieces, (self.lanes - 1).bit_length()
        wanted = [Signal(pieces, name=f"wanted_{number}_{group}") for group in range(_GROUPS)]
        firsts = [Signal(range(max(pieces, 2)), name=f"first_{number}_{group}") for group in range(_GROUPS)]
        turn = Signal(range(_GROUPS), name=f"turn_{number}")
        for group, slot in enumerate(slots):
            for piece in reversed(range(pieces)):
                m.d.comb += wanted[group][piece].eq(ready[group][piece] & (slot[piece].column[:lane_bits] == number))
                with m.If(wanted[group][piece]):
                    m.d.comb += firsts[group].eq(piece)
        with m.Switch(oldest):
            for begin in range(_GROUPS):
                order = [(begin + step) % _GROUPS for step in range(_GROUPS)]
                with m.Case(begin):
                    m.d.comb += turn.eq(order[0])
                    for group in reversed(order):
                        with m.If(wanted[group].any()):
                            m.d.comb += turn.eq(group)
        low = (pieces - 1).bit_length()
        m.d.comb += place.eq(Cat(Cat(*(Cat(first)[:low] for first in firsts)).word_select(turn, low), turn))
        for group in range(_GROUPS):
            first = wanted[group] & -wanted[group]  # the lowest bit alone
            m.d.comb += taken[group].eq(Mux(turn == group, first[:pieces], 0))
        return turn
