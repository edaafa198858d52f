"""Who owns which core, and what follows: which cores share a lease, and which slot carries whose writes.

It must not know what leases do; everything here is combinational from the owner registers, which only the host writes.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.axi import id_bits


class Owners(wiring.Component):
    """Cores of one lease, and lanes.

    owner, owned: of every core. cores: of every lease, its cores as a mask. mates: of every core, the cores of its
    lease. held: of every core, the banks in which its lease has a core. lane: of core c and bank b (at ``c * banks +
    b``), the local number of the core whose slot carries c's writes into b: its own in its own bank, elsewhere of the
    lease's k cores there the one with index i mod k, i being c's index among the lease's cores of its own bank.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        cores = config.cores
        super().__init__(
            {
                "owner": In(id_bits(config)).array(cores),
                "owned": In(1).array(cores),
                "cores": Out(cores).array(cores),
                "mates": Out(cores).array(cores),
                "held": Out(config.banks).array(cores),
                "lane": Out(range(max(2, config.cores_per_bank))).array(cores * config.banks),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count = self.config.cores
        for lease in range(count):
            m.d.comb += self.cores[lease].eq(
                Cat(self.owned[core] & (self.owner[core] == lease) for core in range(count))
            )
        for core in range(count):
            m.d.comb += self.mates[core].eq(
                Cat(
                    self.owned[core] & self.owned[other] & (self.owner[core] == self.owner[other])
                    for other in range(count)
                )
            )
        for core in range(count):
            self._lanes(m, core)
        return m

    def _lanes(self, m: Module, core: int) -> None:
        config = self.config
        size = config.cores_per_bank
        home, local = config.bank_of(core), core % size
        mates = [self.mates[core][bank * size : (bank + 1) * size] for bank in range(config.banks)]
        index = Signal(range(max(2, size)), name=f"index{core}")
        m.d.comb += index.eq(_ones(mates[home][:local]))
        for bank in range(config.banks):
            lane = self.lane[core * config.banks + bank]
            if bank == home:
                m.d.comb += [lane.eq(local), self.held[core][bank].eq(self.owned[core])]
                continue
            wanted = Signal(range(max(2, size)), name=f"wanted{core}_{bank}")
            m.d.comb += [
                wanted.eq(_modulo(index, _ones(mates[bank]), size)),
                self.held[core][bank].eq(mates[bank].any()),
            ]
            chosen: Value | int = 0
            for place in range(size):
                hit = mates[bank][place] & (_ones(mates[bank][:place]) == wanted)
                chosen |= Mux(hit, place, 0)
            m.d.comb += lane.eq(chosen)


def _ones(bits: Value) -> Value:
    total: Value | int = 0
    for place in range(len(bits)):
        total = total + bits[place]
    return Value.cast(total)


def _modulo(index: Value, count: Value, size: int) -> Value:
    """``index`` modulo ``count`` for both up to ``size``; 0 for a count of 0."""
    result = Value.cast(0)
    for divisor in range(1, size + 1):
        rest = Value.cast(0)
        for number in range(size):
            rest = rest | Mux(index == number, number % divisor, 0)
        result = result | Mux(count == divisor, rest, 0)
    return result
