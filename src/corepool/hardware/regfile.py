"""The decoder of the register map: built from the table of registers, and from nothing else.

It must not know what registers mean; values come in, strobes go out.
"""

from __future__ import annotations

from collections.abc import Iterator

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from corepool.config import HardwareConfig
from corepool.hardware.axi import RegisterBus
from corepool.hardware.registers import REGISTERS, Access, Register, Scope

WRITABLE = (Access.WRITE, Access.BOTH, Access.CLEAR)


def blocks(config: HardwareConfig, scope: Scope) -> int:
    """How many blocks of registers of a scope there are. There are as many leases as cores."""
    return {Scope.POOL: 1, Scope.LEASE: config.cores, Scope.CORE: config.cores, Scope.BANK: config.banks}[scope]


def member(register: Register) -> str:
    """The name of a register in signatures, e.g. ``core_owner``."""
    return f"{register.scope.name}_{register.name}".lower()


def _either(values: list[Value]) -> Value:
    """Their bits together, as a tree: a chain of hundreds is deeper than Python goes."""
    while len(values) > 1:
        values = [values[at] | values[at + 1] for at in range(0, len(values) - 1, 2)] + values[len(values) & ~1 :]
    return values[0]


class RegisterFile(wiring.Component):
    """bus: accesses. data: what is written. error: an access was refused a cycle ago.

    For every register an array over its blocks: ``value_<member>`` its value (not for commands), ``set_<member>`` high
    while it is written (if writable), ``refuse_<member>`` it must not be written now (if it is marked so).
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        members = {"bus": In(RegisterBus()), "data": Out(32), "error": Out(1)}
        for register in REGISTERS:
            name, count = member(register), blocks(config, register.scope)
            if register.access is not Access.WRITE:
                members[f"value_{name}"] = In(32 * register.words).array(count)
            if register.access in WRITABLE:
                members[f"set_{name}"] = Out(1).array(count)
            if register.stopped:
                members[f"refuse_{name}"] = In(1).array(count)
        super().__init__(members)

    def _each(self) -> Iterator[tuple[Register, int]]:
        for register in REGISTERS:
            for index in range(blocks(self.config, register.scope)):
                yield register, index

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._write(m)
        self._read(m)
        m.d.comb += self.error.eq(self.bus.read_error | self.bus.write_error)
        return m

    def _write(self, m: Module) -> None:
        bus = self.bus
        m.d.comb += self.data.eq(bus.write_data)
        good = Signal()
        with m.If(bus.write), m.Switch(bus.write_address):
            for register, index in self._each():
                if register.access not in WRITABLE:
                    continue
                with m.Case(register.address(index)):
                    allowed: Value | int = 1
                    if register.stopped:
                        allowed = ~getattr(self, f"refuse_{member(register)}")[index]
                    m.d.comb += [good.eq(allowed), getattr(self, f"set_{member(register)}")[index].eq(allowed)]
        m.d.sync += bus.write_error.eq(bus.write & ~good)

    def _read(self, m: Module) -> None:
        """First a bit is set for the word at the address; a cycle later it lets the word's value through."""
        bus, upper = self.bus, Signal(32)
        hits: list[Value] = []
        words: list[Value] = []
        uppers: list[Value] = []  # of 64-bit registers, kept when their lower halves are read
        lowers: list[Value] = []  # the bits of those halves, and of the upper ones
        seconds: list[Value] = []

        def hit(address: int) -> Signal:
            found = Signal(name=f"read_{address:x}")
            m.d.sync += found.eq(bus.read & (bus.read_address == address))
            hits.append(found)
            return found

        for register, index in self._each():
            first = hit(register.address(index))
            if register.access is Access.WRITE:
                continue
            value = getattr(self, f"value_{member(register)}")[index]
            words.append(value[:32] & first.replicate(32))
            if register.words == 2:
                lowers.append(first)
                uppers.append(value[32:] & first.replicate(32))
                seconds.append(hit(register.address(index) + 4))
        asked, second = Signal(), Cat(*seconds).any()
        m.d.sync += [asked.eq(bus.read), bus.read_error.eq(asked & ~Cat(*hits).any())]
        m.d.sync += bus.read_data.eq(_either(words) | (upper & second.replicate(32)))
        with m.If(Cat(*lowers).any()):
            m.d.sync += upper.eq(_either(uppers))
