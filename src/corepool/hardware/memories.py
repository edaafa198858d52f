"""The on-chip memories of a core as columns of C-byte words, each a simple dual-port RAM.

It must not know who writes or reads, or what the bytes mean. Sizes follow from the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.errors import ConfigError
from corepool.isa.table import Target

# Nothing reads a word in the cycle in which it is written, in any program whose tokens order its instructions. So block
# RAM of any kind will do; a synthesiser would otherwise build logic that keeps the old word for such a reader.
_UNORDERED = {"no_rw_check": 1}
_BLOCK = {"ram_style": "block"}  # of lookup tables a small memory would take hundreds


def bits_for(count: int) -> int:
    """Bits of a number 0..count-1, at least one."""
    return max((count - 1).bit_length(), 1)


def pieces_per_cycle(config: HardwareConfig) -> int:
    """Words that a core must take from its DDR lines in one cycle on average: a power of two."""
    words = config.ddr.line_bytes // config.word_bytes
    return 1 << max(-(-words // config.cores_per_bank) - 1, 0).bit_length()


@dataclass(frozen=True)
class Columns:
    """How a memory is cut: ``count`` columns of ``depth`` words of C bytes; ``together`` of them are read at once."""

    count: int
    depth: int
    together: int = 1


def columns(config: HardwareConfig) -> dict[Target, Columns]:
    """The columns of every memory.

    Raises ConfigError for tables that do not fill a power of two, and for DDR that is faster than the feature memory.
    """
    table_words = config.lut_slots * 256 // config.channels
    if table_words & (table_words - 1):
        raise ConfigError(f"configuration {config.name!r}: lut_slots must be a power of two, not {config.lut_slots}")
    pieces = pieces_per_cycle(config)
    if pieces > config.feature_banks:
        raise ConfigError(
            f"configuration {config.name!r}: DDR brings {pieces} words a cycle and core, "
            f"but the feature memory takes {config.feature_banks}"
        )
    results = min(2 * pieces, config.result_words // 2)  # twice what loads bring, since results are written meanwhile
    tables = min(pieces, table_words // 2)
    return {
        Target.FEATURE: Columns(config.feature_banks, config.feature_lines),
        Target.WEIGHT: _wide(config.weight_words, config.channels, pieces),
        Target.PARAMETER: _wide(config.parameter_words, 8, pieces),
        Target.RESULT: Columns(results, config.result_words // results),
        Target.LUT: Columns(tables, table_words // tables),
    }


def _wide(words: int, together: int, pieces: int) -> Columns:
    """A memory whose words fill several columns; with more than that where loads bring more at once."""
    count = max(together, pieces)
    return Columns(count, words * together // count, together)


def column_count(config: HardwareConfig) -> int:
    """Columns of the widest memory."""
    return max(cut.count for cut in columns(config).values())


def deepest(config: HardwareConfig) -> int:
    """Words of the deepest column."""
    return max(cut.depth for cut in columns(config).values())


def lanes(config: HardwareConfig) -> int:
    """Words that loads can write in one cycle. Lane l leads to the columns l, l + lanes, l + 2 lanes ... of every
    memory: enough for words of features that meet in few banks, no matter how many columns there are."""
    return min(2 * pieces_per_cycle(config), config.feature_banks)


def write_layout(config: HardwareConfig) -> data.StructLayout:
    """A word for one column of one memory."""
    return data.StructLayout(
        {
            "valid": 1,
            "target": 3,
            "column": bits_for(column_count(config)),
            "address": bits_for(deepest(config)),
            "data": 8 * config.word_bytes,
        }
    )


class Memories(wiring.Component):
    """All memories of a core. Addresses wrap at their widths.

    ``loads``: a write per lane, of any target. ``clear`` with ``clear_address`` zeroes that word of every column.
    ``result_write``: the compute unit's word; a load into the same column of the results must not come with it.
    Reading, data follow the address by ``READ_DELAY`` cycles: ``feature_lines`` [2P], ``weight_address``,
    ``parameter_address``, ``operand_address``; by one cycle: ``save_address``, ``table_index`` [C].
    """

    READ_DELAY = 2

    def __init__(self, config: HardwareConfig) -> None:
        self.config, self.cuts = config, columns(config)
        word, channels = 8 * config.word_bytes, config.channels
        members = {
            "loads": In(write_layout(config)).array(lanes(config)),
            "clear": In(1),
            "clear_address": In(bits_for(deepest(config))),
            "result_write": In(1),
            "result_address": In(bits_for(config.result_words)),
            "result_data": In(word),
            "feature_lines": In(bits_for(config.feature_lines)).array(config.feature_banks),
            "features": Out(word).array(config.feature_banks),
            "weight_address": In(bits_for(config.weight_words)),
            "weights": Out(word * channels),
            "parameter_address": In(bits_for(config.parameter_words)),
            "parameters": Out(word * 8),
            "operand_address": In(bits_for(config.result_words)),
            "operand": Out(word),
            "save_address": In(bits_for(config.result_words)),
            "save_data": Out(word),
            "table_index": In(8).array(channels),
            "table_slot": In(bits_for(config.lut_slots)),
            "table_data": Out(8).array(channels),
        }
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._loaded = []  # of every lane address and data, those of clearing among them
        for number, load in enumerate(self.loads):
            address, word = (
                Signal.like(load.address, name=f"load_address_{number}"),
                Signal.like(load.data, name=f"load_data_{number}"),
            )
            m.d.comb += address.eq(Mux(self.clear, self.clear_address, load.address))
            m.d.comb += word.eq(Mux(self.clear, 0, load.data))
            self._loaded.append((address, word))
        for bank, lines in enumerate(self.feature_lines):
            m.d.sync += self.features[bank].eq(self._column(m, Target.FEATURE, bank, lines))
        m.d.sync += self.weights.eq(self._wide_word(m, Target.WEIGHT, self.weight_address))
        m.d.sync += self.parameters.eq(self._wide_word(m, Target.PARAMETER, self.parameter_address))
        m.d.sync += self.operand.eq(self._results(m, "operand", self.operand_address))
        m.d.comb += self.save_data.eq(self._results(m, "save", self.save_address))
        for channel in range(self.config.channels):
            self._table(m, channel)
        return m

    def _wide_word(self, m: Module, target: Target, address: Value) -> Value:
        """A word that fills several columns; data one cycle after the address."""
        cut = self.cuts[target]
        low = (cut.count // cut.together).bit_length() - 1
        rows = [self._column(m, target, at, address[low:]) for at in range(cut.count)]
        words = [Cat(*rows[at : at + cut.together]) for at in range(0, cut.count, cut.together)]
        if not low:
            return words[0]
        chosen = Signal(low, name=f"{target.name.lower()}_part")
        m.d.sync += chosen.eq(address[:low])
        return Array(words)[chosen]

    def _results(self, m: Module, name: str, address: Value) -> Value:
        """A copy of the result memory with a read port of its own; data one cycle after the address."""
        count = self.cuts[Target.RESULT].count
        low = bits_for(count)
        chosen = Signal(low, name=f"{name}_column")
        m.d.sync += chosen.eq(address[:low])
        words = [self._column(m, Target.RESULT, at, address[low:], name) for at in range(count)]
        return Array(words)[chosen]

    def _column(self, m: Module, target: Target, number: int, address: Value, copy: str = "") -> Value:
        """One RAM with its write port; returns the data of a read port that is one cycle behind ``address``."""
        attributes = _UNORDERED | (_BLOCK if target in (Target.PARAMETER, Target.LUT) else {})
        storage = memory.Memory(
            shape=8 * self.config.word_bytes, depth=self.cuts[target].depth, init=[], attrs=attributes
        )
        m.submodules[f"{target.name.lower()}{copy and '_' + copy}_{number}"] = storage
        read = storage.read_port()
        m.d.comb += read.addr.eq(address)
        self._write(m, target, number, storage.write_port())
        return read.data

    def _write(self, m: Module, target: Target, number: int, write: memory.WritePort) -> None:
        lane = number % len(self.loads)
        load, (address, word) = self.loads[lane], self._loaded[lane]
        loading = load.valid & (load.target == int(target))
        if self.cuts[target].count > len(self.loads):
            loading &= load.column == number
        m.d.comb += [write.en.eq(loading | self.clear), write.addr.eq(address), write.data.eq(word)]
        if target is Target.RESULT:
            low = bits_for(self.cuts[target].count)
            with m.If(self.result_write & (self.result_address[:low] == number)):
                m.d.comb += [
                    write.en.eq(1),
                    write.addr.eq(self.result_address[low:]),
                    write.data.eq(self.result_data),
                ]

    def _table(self, m: Module, channel: int) -> None:
        """A copy of the tables for one channel: a row of C entries is read, and one of them chosen."""
        cut = self.cuts[Target.LUT]
        inner, low = bits_for(self.config.channels), (cut.count - 1).bit_length()
        index = Cat(self.table_index[channel] ^ 0x80, self.table_slot)
        row = index[inner:]
        rows = [self._column(m, Target.LUT, at, row[low:], f"for_{channel}") for at in range(cut.count)]
        place = Signal(inner + low, name=f"entry_{channel}")
        m.d.sync += place.eq(index[: inner + low])
        m.d.comb += self.table_data[channel].eq(Cat(*rows).word_select(place, 8))
