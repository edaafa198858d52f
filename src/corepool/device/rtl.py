"""The hardware itself as a device: its Verilog, compiled, with a memory model at each bank.

It must not know networks or how streams are executed; it speaks to registers as a driver on a host would. Windows are
written straight into the banks' memory. Register accesses take time, so device time goes on a little with most calls.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from corepool.config import HardwareConfig
from corepool.device.base import (
    WINDOW_ALIGNMENT,
    Boundary,
    Completion,
    Counters,
    Fault,
    FaultReport,
    Lease,
    Position,
)
from corepool.device.leases import Held, LeasingDevice, Placed
from corepool.device.memory import Banks
from corepool.device.rtl_build import open_library
from corepool.errors import BusError, DeviceError
from corepool.hardware.registers import MAGIC, State, address, part
from corepool.isa.table import INSTRUCTION_BYTES

_AT_A_TIME = 1 << 13  # cycles; between them Python notices interrupts
_START_LIMIT = 1 << 22  # cycles that clearing and the slot period may take


@dataclass
class _Held(Held):
    """What the device keeps about an open lease."""

    running: bool = False
    asked: int = 0  # cycle from which the latest request to stop counts


class RtlDevice(LeasingDevice[_Held]):
    """Runs the pool's Verilog; the first one of a configuration compiles it, which takes a minute or more.

    A fault's address beyond 4 GiB is told as 2^32 plus its lower 32 bits: that is what the registers hold.
    Every bus at the pool's edge is watched in every cycle: a broken rule raises BusError from the call during which it
    happened, and from all calls behind it. Raises ToolError where Verilator or a C++ compiler is missing, ConfigError
    for what cannot be built.
    """

    def __init__(self, config: HardwareConfig) -> None:
        banks = Banks(config.banks, config.bank_bytes)
        super().__init__(config, banks)
        self._handle: int | None = None
        self._library = open_library(config)
        places = [banks.array[bank].ctypes.data for bank in range(config.banks)]
        pointers = (ctypes.c_void_p * config.banks)(*places)
        self._handle = self._library.corepool_open(pointers, banks.size)
        if self._read("POOL_MAGIC") != MAGIC:
            raise DeviceError("the pool does not answer as one; remove the compiled hardware from the cache")
        self._write("POOL_INTERRUPT_ENABLE", (1 << config.cores) - 1)
        self._write("POOL_WATCHDOG", config.watchdog_cycles)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._library.corepool_close(self._handle)
            self._handle = None

    @property
    def cycle(self) -> int:
        return int(self._library.corepool_cycle(self._handle))

    def disturb(self, seed: int) -> None:
        """From now on memories hold back, delay and reorder all that they do at random, and the host hesitates.

        What is computed stays the same; times do not, nor what one lease sees of another's. ``seed`` 0 ends it.
        """
        self._library.corepool_disturb(self._handle, seed)

    def open_bursts(self) -> int:
        """Bursts at the banks that are not answered; 0 while nothing runs."""
        return int(self._library.corepool_open_bursts(self._handle))

    def _hold(self, lease: Lease, bases: dict[int, int]) -> _Held:
        for core in lease.cores:
            owned = 1 << part("CORE_OWNER", "owned").lsb
            self._write("CORE_OWNER", lease.number | owned, core)  # has the core's memories cleared
            self._write("CORE_WINDOW_PAGE", bases[self.config.bank_of(core)] // WINDOW_ALIGNMENT, core)
            self._write("CORE_WINDOW_LAST", lease.window_bytes - 1, core)
        return _Held(lease, bases)

    def _give_back(self, held: _Held) -> None:
        lease = held.lease
        if self.running(lease):
            self._write("POOL_KILL", 1 << lease.number)
            while self.running(lease):
                self._run(_AT_A_TIME)
        for core in lease.cores:
            self._write("CORE_OWNER", 0, core)

    def _clear_cores(self, held: _Held) -> None:
        self._write("POOL_CLEAR", sum(1 << core for core in held.lease.cores))

    def _point(self, held: _Held, placed: Placed) -> None:
        for core, (start, flat) in zip(held.lease.cores, placed, strict=True):
            self._write("CORE_STREAM_OFFSET", start, core)
            self._write("CORE_STREAM_COUNT", flat.size // INSTRUCTION_BYTES, core)

    def start(self, lease: Lease) -> int:
        """As the protocol says, but device time goes on until the run has begun."""
        held = self._startable(lease)
        self._write("LEASE_STOP", 0, lease.number)  # a request that came too late for the run before
        self._write("POOL_START", 1 << lease.number)
        held.ever_started = held.running = True
        limit = self.cycle + _START_LIMIT
        while self._read("LEASE_STATE", lease.number) == State.WAITING:
            if self.cycle > limit:
                raise DeviceError("the pool does not start the lease")
        return self._long("LEASE_BEGIN", lease.number)

    def wait(self, lease: Lease, timeout_cycles: int | None = None) -> Completion:
        self._started(lease)
        limit = None if timeout_cycles is None else self.cycle + timeout_cycles
        while self.running(lease):
            left = _AT_A_TIME if limit is None else min(_AT_A_TIME, limit - self.cycle)
            if left <= 0:
                raise DeviceError(f"the lease is still running after {timeout_cycles} cycles")
            self._run(left)
        return self._completion(lease)

    def stop(self, lease: Lease, after: Boundary = Boundary.LAYER, passing: int = 0) -> int:
        held = self._stoppable(lease, passing)
        if self.running(lease):
            enable = int(after is Boundary.LAYER) << part("LEASE_STOP", "enable").lsb
            held.asked = self.cycle + 1  # the write happens in this cycle
            self._write("LEASE_STOP", enable | passing, lease.number)
        return held.asked

    def running(self, lease: Lease) -> bool:
        """Takes no time while the interrupt line is low."""
        held = self._get(lease)
        if self._library.corepool_interrupt(self._handle):
            ended = self._read("POOL_INTERRUPT")
            self._write("POOL_INTERRUPT", ended)
            for number, other in self._held.items():
                other.running = other.running and not ended >> number & 1
        return held.running

    def counters(self, lease: Lease) -> Counters:
        held = self._get(lease)
        banks = range(self.config.banks)
        if not held.ever_started:
            return self._no_counters(lease)
        until = self.cycle if self.running(lease) else self._long("LEASE_END", lease.number)

        def each(name: str) -> tuple[int, ...]:
            return tuple(self._long(f"CORE_{name}", core) for core in lease.cores)

        def by_bank(name: str) -> tuple[int, ...]:
            moved = dict(zip(lease.cores, each(name), strict=True))
            return tuple(sum(v for core, v in moved.items() if self.config.bank_of(core) == bank) for bank in banks)

        return Counters(
            cycles=max(until - self._long("LEASE_BEGIN", lease.number), 0),
            compute_busy=each("COMPUTE_BUSY"),
            load_busy=each("LOAD_BUSY"),
            save_busy=each("SAVE_BUSY"),
            steps=each("STEPS"),
            instructions=each("INSTRUCTIONS"),
            bytes_read=by_bank("BYTES_READ"),
            bytes_written=by_bank("BYTES_WRITTEN"),
        )

    def errors(self) -> int:
        """The ERRORS register, and a bit above it: the pool went beyond the memory of a bank, or never settled."""
        beyond = int(self._library.corepool_outside(self._handle)) != 0
        return self._read("POOL_ERRORS") | beyond << 31

    def _completion(self, lease: Lease) -> Completion:
        begin, end = self._long("LEASE_BEGIN", lease.number), self._long("LEASE_END", lease.number)
        state = State(self._read("LEASE_STATE", lease.number))
        fault = None
        if state is State.FAULTED:
            told = self._read("LEASE_FAULT", lease.number)
            code, core = _bits(told, "LEASE_FAULT", "code"), _bits(told, "LEASE_FAULT", "core")
            place = 0
            if Fault(code) is Fault.WINDOW:
                beyond = _bits(self._read("CORE_FAULT_CODE", core), "CORE_FAULT_CODE", "beyond")
                place = self._read("CORE_FAULT_ADDRESS", core) | beyond << 32
            fault = FaultReport(Fault(code), core, self._read("CORE_FAULT_INDEX", core), place, end)
        elif state not in (State.DONE, State.STOPPED):
            raise DeviceError(f"the run ended as {state.name}")
        stopped = Position(self._read("CORE_LAYER", lease.cores[0])) if state is State.STOPPED else None
        return Completion(end - begin, begin, end, fault, self._read("LEASE_SYNCS", lease.number), stopped)

    def _run(self, cycles: int) -> None:
        """At most so many cycles, until the interrupt. Raises BusError."""
        self._library.corepool_run(self._handle, cycles)
        self._check_buses()

    def _check_buses(self) -> None:
        broken = self._library.corepool_broken(self._handle)
        if broken:
            raise BusError(f"the hardware broke a rule of its buses: {broken.decode()}; the device must be opened anew")

    def _read(self, name: str, index: int = 0) -> int:
        return self._read_at(address(name, index), name)

    def _long(self, name: str, index: int = 0) -> int:
        low = self._read_at(address(name, index), name)
        return low | self._read_at(address(name, index) + 4, name) << 32

    def _read_at(self, place: int, name: str) -> int:
        value = ctypes.c_uint32()
        response = self._library.corepool_read(self._handle, place, ctypes.byref(value))
        self._check_buses()
        if response != 0:
            raise DeviceError(f"reading register {name} was answered with {response}")
        return int(value.value)

    def _write(self, name: str, value: int, index: int = 0) -> None:
        response = self._library.corepool_write(self._handle, address(name, index), value)
        self._check_buses()
        if response != 0:
            raise DeviceError(f"writing {value:#x} to register {name} was answered with {response}")


def _bits(value: int, name: str, field: str) -> int:
    piece = part(name, field)
    return value >> piece.lsb & ((1 << piece.width) - 1)
