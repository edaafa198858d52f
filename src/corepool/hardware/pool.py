"""The pool: cores with their ports, banks, leases, owners and host registers, wired together.

It must not know what a core does inside; any component with the signature of a core can be put in.
"""

from __future__ import annotations

from collections.abc import Callable

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from corepool.config import HardwareConfig
from corepool.errors import ConfigError
from corepool.hardware.axi import BUS_ADDRESS_BITS, Axi4Signature, LiteBridge, LiteSignature, id_bits
from corepool.hardware.bank import READ_OVERHEAD, WRITE_OVERHEAD, Bank
from corepool.hardware.fetch import COUNT_BITS
from corepool.hardware.interfaces import ADDRESS_BITS, check_config
from corepool.hardware.lease import CYCLE_BITS, STOP_BITS, Lease
from corepool.hardware.library import share
from corepool.hardware.owners import Owners
from corepool.hardware.port import COUNTERS, CorePort
from corepool.hardware.regfile import RegisterFile
from corepool.hardware.registers import MAGIC, MAP_VERSION
from corepool.hardware.window import PAGE_BITS

MakeCore = Callable[[HardwareConfig], wiring.Component]


def check_pool_config(config: HardwareConfig) -> HardwareConfig:
    """The configuration itself. Raises ConfigError where memory would have to answer before it is asked."""
    check_config(config)
    for what, value, least in (
        ("read latency", config.ddr.read_latency, READ_OVERHEAD + 1),
        ("write latency", config.ddr.write_latency, WRITE_OVERHEAD + 1),
    ):
        if value < least:
            raise ConfigError(f"configuration {config.name!r}: {what} {value} must be at least {least}")
    return config


class Clockwork(wiring.Component):
    """Counts cycles. slot, active: who is served in this cycle; early: a slot period begins in two cycles."""

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        super().__init__(
            {
                "cycle": Out(CYCLE_BITS),
                "slot": Out(range(max(2, config.cores_per_bank))),
                "active": Out(1),
                "early": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        slots, rounds, period = config.cores_per_bank, config.ddr.period_rounds, config.slot_period
        round_ = Signal(range(max(2, rounds)))
        m.d.sync += self.cycle.eq(self.cycle + 1)
        with m.If(self.slot == slots - 1):
            m.d.sync += self.slot.eq(0)
            with m.If(round_ == rounds - 1):
                m.d.sync += round_.eq(0)
            with m.Else():
                m.d.sync += round_.eq(round_ + 1)
        with m.Else():
            m.d.sync += self.slot.eq(self.slot + 1)
        before = (period - 2) % period
        m.d.comb += [
            self.active.eq(round_ < config.ddr.active_rounds),
            self.early.eq((self.slot == before % slots) & (round_ == before // slots)),
        ]
        return m


class Pool(wiring.Component):
    """All of the device but its memory.

    host: AXI4-Lite slave with the registers of docs/registers.md. interrupt: level. bus: an AXI4 master for each bank.
    ``make_core`` builds a component with CoreSignature.
    """

    def __init__(self, config: HardwareConfig, make_core: MakeCore) -> None:
        self.config = check_pool_config(config)
        self._banks = [Bank(config) for _ in range(config.banks)]
        self._ports = [CorePort(config) for _ in range(config.cores)]
        self._cores = [make_core(config) for _ in range(config.cores)]
        self._leases = [Lease(config) for _ in range(config.cores)]
        super().__init__(
            {
                "host": In(LiteSignature()),
                "interrupt": Out(1),
                "bus": Out(Axi4Signature(config)).array(config.banks),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.clockwork = self._clock = Clockwork(config)
        m.submodules.owners = self._owners = Owners(config)
        m.submodules.bridge = bridge = LiteBridge()
        m.submodules.registers = self._registers = RegisterFile(config)
        for name, group in (
            ("bank", self._banks),
            ("port", self._ports),
            ("core", self._cores),
            ("lease", self._leases),
        ):
            for number, part in enumerate(group):
                m.submodules[f"{name}{number}"] = share(platform, part, f"corepool_{name}")
        connect(m, flipped(self.host), bridge.host)
        connect(m, bridge.registers, self._registers.bus)
        self._wire_banks(m)
        self._wire_cores(m)
        self._wire_leases(m)
        self._wire_pool_registers(m)
        self._wire_lease_registers(m)
        self._wire_core_registers(m)
        return m

    def _wire_banks(self, m: Module) -> None:
        config, clock = self.config, self._clock
        for number, bank in enumerate(self._banks):
            connect(m, bank.bus, flipped(self.bus[number]))
            m.d.comb += [bank.slot.eq(clock.slot), bank.active.eq(clock.active)]
            m.d.comb += bank.first_core.eq(number * config.cores_per_bank)
            read, written = Signal(CYCLE_BITS, name=f"read{number}"), Signal(CYCLE_BITS, name=f"written{number}")
            m.d.sync += [
                read.eq(read + (bank.bus.arvalid & bank.bus.arready)),
                written.eq(written + (bank.bus.awvalid & bank.bus.awready)),
            ]
            m.d.comb += [
                self._registers.value_bank_lines_read[number].eq(read),
                self._registers.value_bank_lines_written[number].eq(written),
            ]
            for local in range(config.cores_per_bank):
                core = number * config.cores_per_bank + local
                connect(m, bank.slots[local], self._ports[core].slot)
                m.d.comb += self._ports[core].line.eq(bank.line)
            for core, port in enumerate(self._ports):
                connect(m, bank.writers[core], port.writers[number])

    def _wire_cores(self, m: Module) -> None:
        """Each core follows the lease that owns it; nobody's core follows none."""
        config, owners = self.config, self._owners
        for number, (core, port) in enumerate(zip(self._cores, self._ports, strict=True)):
            connect(m, core, port.core)
            mine = [owners.cores[lease][number] for lease in range(config.cores)]
            for name in ("begin", "live", "over", "release", "drain"):
                signals = [getattr(lease, name) & own for lease, own in zip(self._leases, mine, strict=True)]
                m.d.comb += getattr(port.run, name).eq(Cat(signals).any())
            m.d.comb += [port.run.mates.eq(owners.mates[number]), port.held.eq(owners.held[number])]
            for bank in range(config.banks):
                m.d.comb += port.lanes[bank].eq(owners.lane[number * config.banks + bank])

    def _wire_leases(self, m: Module) -> None:
        clock, registers, owners = self._clock, self._registers, self._owners
        cores, ports = self._cores, self._ports
        quiet = Signal(self.config.cores)
        self._cleared, self._watchdog = Signal(self.config.cores), Signal(32, init=self.config.watchdog_cycles)
        m.d.comb += quiet.eq(Cat(port.quiet for port in ports))
        levels = {
            "quiet": quiet,
            "ready": quiet & self._cleared,
            "arrived": Cat(core.sync_arrived for core in cores),
            "ended": Cat(core.end_arrived for core in cores),
            "completed": Cat(port.completed for port in ports),
            "faulty": Cat(port.fault.code != 0 for port in ports),
        }
        for number, lease in enumerate(self._leases):
            m.d.comb += [getattr(lease, name).eq(value) for name, value in levels.items()]
            m.d.comb += [code.eq(port.fault.code) for code, port in zip(lease.codes, ports, strict=True)]
            m.d.comb += [
                lease.cores.eq(owners.cores[number]),
                lease.start.eq(registers.set_pool_start[0] & registers.data[number]),
                lease.kill.eq(registers.set_pool_kill[0] & registers.data[number]),
                lease.early.eq(clock.early),
                lease.cycle.eq(clock.cycle),
                lease.limit.eq(self._watchdog),
                lease.set_stop.eq(registers.set_lease_stop[number]),
                lease.stop_after.eq(registers.data[:STOP_BITS]),
                lease.stop_enable.eq(registers.data[STOP_BITS]),
            ]

    def _wire_pool_registers(self, m: Module) -> None:
        config, registers, count = self.config, self._registers, self.config.cores
        raised, enabled, errors = Signal(count), Signal(count), Signal(3)
        happened = Cat(
            registers.error,
            Cat(bank.error for bank in self._banks).any(),
            Cat(slot.guard for bank in self._banks for slot in bank.slots).any(),
        )
        kept = Signal(count)
        m.d.comb += [
            kept.eq(Mux(registers.set_pool_interrupt[0], raised & ~registers.data, raised)),
            self.interrupt.eq((raised & enabled).any()),
        ]
        m.d.sync += [
            raised.eq(kept | Cat(lease.finished for lease in self._leases)),
            errors.eq(Mux(registers.set_pool_errors[0], errors & ~registers.data, errors) | happened),
        ]
        with m.If(registers.set_pool_interrupt_enable[0]):
            m.d.sync += enabled.eq(registers.data)
        with m.If(registers.set_pool_watchdog[0]):
            m.d.sync += self._watchdog.eq(registers.data)
        shape = config.cores | config.banks << 8 | config.pixels << 16 | config.channels << 24
        values = {
            "magic": MAGIC,
            "version": MAP_VERSION,
            "shape": shape,
            "cycle": self._clock.cycle,
            "interrupt": raised,
            "interrupt_enable": enabled,
            "cleared": self._cleared,
            "active": Cat(lease.active for lease in self._leases),
            "watchdog": self._watchdog,
            "errors": errors,
            "fingerprint": int(config.fingerprint()[:16], 16),
        }
        m.d.comb += [getattr(registers, f"value_pool_{name}")[0].eq(value) for name, value in values.items()]

    def _wire_lease_registers(self, m: Module) -> None:
        registers = self._registers
        for number, lease in enumerate(self._leases):
            values = {
                "state": lease.state,
                "cores": lease.cores,
                "stop": Cat(lease.syncs_left, lease.stopping),
                "fault": lease.code | lease.fault_core << 8,
                "syncs": lease.syncs,
                "begin": lease.begin_cycle,
                "end": lease.end_cycle,
            }
            m.d.comb += [getattr(registers, f"value_lease_{name}")[number].eq(v) for name, v in values.items()]

    def _wire_core_registers(self, m: Module) -> None:
        """Settings of a core change only while no run of its lease is on; a new owner means cleared memories."""
        registers, owners, data = self._registers, self._owners, self._registers.data
        active = Signal(self.config.cores)
        m.d.comb += active.eq(Cat(lease.active for lease in self._leases))
        wanted_active = Array(active)[data[: id_bits(self.config)]]
        for number, port in enumerate(self._ports):
            owner, owned = Signal(id_bits(self.config), name=f"owner{number}"), Signal(name=f"owned{number}")
            page = Signal(BUS_ADDRESS_BITS - PAGE_BITS, name=f"page{number}")
            last = Signal(ADDRESS_BITS, name=f"last{number}")
            offset = Signal(ADDRESS_BITS, name=f"offset{number}")
            count = Signal(COUNT_BITS, name=f"count{number}")
            busy = Signal(name=f"in_run{number}")
            m.d.comb += [
                owners.owner[number].eq(owner),
                owners.owned[number].eq(owned),
                busy.eq((Cat(owners.cores[lease][number] for lease in range(self.config.cores)) & active).any()),
                port.page.eq(page),
                port.last.eq(last),
                port.stream_offset.eq(offset),
                port.stream_count.eq(count),
            ]
            set_owner = registers.set_core_owner[number]
            for name, setting, value in (
                ("owner", Cat(owner, owned), Cat(data[: len(owner)], data[8])),
                ("window_page", page, data),
                ("window_last", last, data),
                ("stream_offset", offset, data & ~31),
                ("stream_count", count, data),
            ):
                with m.If(getattr(registers, f"set_core_{name}")[number]):
                    m.d.sync += setting.eq(value)
                foreign = (data[8] & wanted_active) if name == "owner" else 0
                m.d.comb += getattr(registers, f"refuse_core_{name}")[number].eq(busy | foreign)
            self._clear(m, number, set_owner, busy)
            values = {
                "owner": owner | owned << 8,
                "window_page": page,
                "window_last": last,
                "stream_offset": offset,
                "stream_count": count,
                "layer": self._cores[number].sync_layer,
                "fault_index": port.record.index,
                "fault_address": port.record.address,
                "fault_code": port.record.code | port.record.beyond << 8,
                **{name: getattr(port, name) for name in COUNTERS},
            }
            m.d.comb += [getattr(registers, f"value_core_{name}")[number].eq(v) for name, v in values.items()]

    def _clear(self, m: Module, number: int, set_owner: Signal, busy: Signal) -> None:
        """A core is clean from when it says so until its owner changes or the host asks for another clearing."""
        registers, asked = self._registers, Signal(name=f"asked{number}")
        m.d.comb += self._ports[number].clear.eq(asked)
        m.d.sync += asked.eq(set_owner | (registers.set_pool_clear[0] & registers.data[number] & ~busy))
        with m.If(asked):
            m.d.sync += self._cleared[number].eq(0)
        with m.Elif(~set_owner):
            m.d.sync += self._cleared[number].eq(self._cores[number].cleared)
