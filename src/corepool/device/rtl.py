"""The hardware itself as a device: its Verilog, compiled, with a memory model at each bank.

It must not know networks or how streams are executed; it speaks to registers as a driver on a host would. Windows are
written straight into the banks' memory. Register accesses take time, so device time goes on a little with most calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from corepool.config import HardwareConfig
from corepool.device.base import (
    STREAM_ALIGNMENT,
    WINDOW_ALIGNMENT,
    Bytes,
    BytesLike,
    Completion,
    Counters,
    Device,
    Fault,
    FaultReport,
    Lease,
    as_bytes,
    check_cores,
)
from corepool.device.memory import Banks, Windows
from corepool.device.rtl_build import open_library
from corepool.errors import DeviceError
from corepool.hardware.registers import MAGIC, State, address, part
from corepool.isa.table import INSTRUCTION_BYTES

_AT_A_TIME = 1 << 16  # cycles; between them Python notices interrupts
_START_LIMIT = 1 << 22  # cycles that clearing and the slot period may take


@dataclass
class _Held:
    """What the device keeps about an open lease."""

    lease: Lease
    bases: dict[int, int]  # bank: first byte of the window
    loaded: bool = False
    ever_started: bool = False
    running: bool = False


class RtlDevice(Device):
    """Runs the pool's Verilog; the first one of a configuration compiles it, which takes a minute or more.

    A fault's address beyond 4 GiB is told as 2^32 plus its lower 32 bits: that is what the registers hold.
    Raises ToolError where Verilator or a C++ compiler is missing, ConfigError for what cannot be built.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        self._held: dict[int, _Held] = {}
        self._epoch = 0
        self._handle: int | None = None
        self._library = open_library(config)
        self._windows = [Windows(config.bank_bytes) for _ in range(config.banks)]
        self._banks = Banks(config.banks, config.bank_bytes)
        places = [self._banks.array[bank].ctypes.data for bank in range(config.banks)]
        pointers = (ctypes.c_void_p * config.banks)(*places)
        self._handle = self._library.corepool_open(pointers, self._banks.size)
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

    def open_lease(self, cores: Sequence[int], window_bytes: int) -> Lease:
        chosen = check_cores(self.config, cores)
        for other in self._held.values():
            taken = sorted(set(chosen) & set(other.lease.cores))
            if taken:
                raise DeviceError(f"core {taken[0]} belongs to another lease; close that first")
        if window_bytes < 1:
            raise DeviceError(f"a window has at least 1 byte, not {window_bytes}")
        banks = tuple(sorted({self.config.bank_of(core) for core in chosen}))
        bases: dict[int, int] = {}
        try:
            for bank in banks:
                bases[bank] = self._windows[bank].take(window_bytes)
        except DeviceError:
            for bank, base in bases.items():
                self._windows[bank].free(base)
            raise
        self._epoch += 1
        number = next(index for index in range(self.config.cores) if index not in self._held)
        lease = Lease(number, self._epoch, chosen, banks, self.config.bank_of(chosen[0]), int(window_bytes))
        held = self._held[number] = _Held(lease, bases)
        for core in chosen:
            owned = 1 << part("CORE_OWNER", "owned").lsb
            self._write("CORE_OWNER", number | owned, core)  # has the core's memories cleared
            self._write("CORE_WINDOW_PAGE", bases[self.config.bank_of(core)] // WINDOW_ALIGNMENT, core)
            self._write("CORE_WINDOW_LAST", window_bytes - 1, core)
        self._zero(held)
        return lease

    def close_lease(self, lease: Lease) -> None:
        held = self._get(lease)
        if self.running(lease):
            self._write("POOL_KILL", 1 << lease.number)
            while self.running(lease):
                self._library.corepool_run(self._handle, _AT_A_TIME)
        for core in lease.cores:
            self._write("CORE_OWNER", 0, core)
        self._zero(held)
        for bank, base in held.bases.items():
            self._windows[bank].free(base)
        del self._held[lease.number]

    def write(self, lease: Lease, offset: int, data: BytesLike, banks: Sequence[int] | None = None) -> None:
        held = self._get(lease)
        flat = as_bytes(data)
        self._check_range(lease, offset, flat.size)
        targets = lease.banks if banks is None else tuple(banks)
        for bank in targets:
            self._check_bank(lease, bank)
        for bank in targets:
            start = held.bases[bank] + offset
            self._banks.array[bank, start : start + flat.size] = flat.view("int8")

    def read(self, lease: Lease, offset: int, size: int, bank: int | None = None) -> Bytes:
        held = self._get(lease)
        self._check_range(lease, offset, size)
        source = lease.home_bank if bank is None else bank
        self._check_bank(lease, source)
        start = held.bases[source] + offset
        return self._banks.array[source, start : start + size].view("uint8").copy()

    def load_streams(self, lease: Lease, streams: Sequence[BytesLike], offset: int) -> int:
        held = self._get(lease)
        if len(streams) != len(lease.cores):
            raise DeviceError(f"{len(lease.cores)} cores need as many streams, not {len(streams)}")
        if offset % STREAM_ALIGNMENT:
            raise DeviceError(f"streams start at a multiple of {STREAM_ALIGNMENT} bytes, not at {offset}")
        if self.running(lease):
            raise DeviceError("streams cannot change while the lease is running; wait for it")
        placed: list[tuple[int, int, Bytes]] = []
        for core, stream in zip(lease.cores, streams, strict=True):
            flat = as_bytes(stream)
            if flat.size % INSTRUCTION_BYTES:
                raise DeviceError(
                    f"a stream of {flat.size} bytes does not hold whole instructions of {INSTRUCTION_BYTES}"
                )
            self._check_range(lease, offset, flat.size)
            placed.append((core, offset, flat))
            offset += -(-flat.size // STREAM_ALIGNMENT) * STREAM_ALIGNMENT
        for core, start, flat in placed:
            self.write(lease, start, flat, [self.config.bank_of(core)])
            self._write("CORE_STREAM_OFFSET", start, core)
            self._write("CORE_STREAM_COUNT", flat.size // INSTRUCTION_BYTES, core)
        held.loaded = True
        return offset

    def start(self, lease: Lease) -> int:
        """As the protocol says, but device time goes on until the run has begun."""
        held = self._get(lease)
        if self.running(lease):
            raise DeviceError("the lease is already running; wait for it")
        if not held.loaded:
            raise DeviceError("no streams are loaded; call load_streams first")
        self._write("POOL_START", 1 << lease.number)
        held.ever_started = held.running = True
        limit = self.cycle + _START_LIMIT
        while self._read("LEASE_STATE", lease.number) == State.WAITING:
            if self.cycle > limit:
                raise DeviceError("the pool does not start the lease")
        return self._long("LEASE_BEGIN", lease.number)

    def wait(self, lease: Lease, timeout_cycles: int | None = None) -> Completion:
        held = self._get(lease)
        if not held.ever_started:
            raise DeviceError("the lease was never started")
        limit = None if timeout_cycles is None else self.cycle + timeout_cycles
        while self.running(lease):
            left = _AT_A_TIME if limit is None else min(_AT_A_TIME, limit - self.cycle)
            if left <= 0:
                raise DeviceError(f"the lease is still running after {timeout_cycles} cycles")
            self._library.corepool_run(self._handle, left)
        return self._completion(lease)

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
            none = (0,) * len(lease.cores)
            return Counters(0, none, none, none, none, none, (0,) * len(banks), (0,) * len(banks))
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

    def clear(self, lease: Lease) -> None:
        held = self._get(lease)
        if self.running(lease):
            raise DeviceError("a running lease cannot be cleared; wait for it")
        self._write("POOL_CLEAR", sum(1 << core for core in lease.cores))
        self._zero(held)

    def errors(self) -> int:
        """The ERRORS register, with one bit more above: the pool went beyond the memory of a bank."""
        beyond = int(self._library.corepool_outside(self._handle)) != 0
        return self._read("POOL_ERRORS") | beyond << 31

    def _get(self, lease: Lease) -> _Held:
        held = self._held.get(lease.number)
        if held is None or held.lease != lease:
            raise DeviceError(f"lease {lease.number} of epoch {lease.epoch} is closed; open a new one")
        return held

    def _check_range(self, lease: Lease, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > lease.window_bytes:
            raise DeviceError(f"bytes {offset}..{offset + size} leave the window of {lease.window_bytes} bytes")

    def _check_bank(self, lease: Lease, bank: int) -> None:
        if bank not in lease.banks:
            raise DeviceError(f"the lease has no core in bank {bank}, only in {list(lease.banks)}")

    def _zero(self, held: _Held) -> None:
        for bank, base in held.bases.items():
            self._banks.zero(bank, base, held.lease.window_bytes)

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
        elif state is not State.DONE:
            raise DeviceError(f"the run ended as {state.name}")
        return Completion(end - begin, begin, end, fault)

    def _read(self, name: str, index: int = 0) -> int:
        return self._read_at(address(name, index), name)

    def _long(self, name: str, index: int = 0) -> int:
        low = self._read_at(address(name, index), name)
        return low | self._read_at(address(name, index) + 4, name) << 32

    def _read_at(self, place: int, name: str) -> int:
        value = ctypes.c_uint32()
        response = self._library.corepool_read(self._handle, place, ctypes.byref(value))
        if response != 0:
            raise DeviceError(f"reading register {name} was answered with {response}")
        return int(value.value)

    def _write(self, name: str, value: int, index: int = 0) -> None:
        response = self._library.corepool_write(self._handle, address(name, index), value)
        if response != 0:
            raise DeviceError(f"writing {value:#x} to register {name} was answered with {response}")


def _bits(value: int, name: str, field: str) -> int:
    piece = part(name, field)
    return value >> piece.lsb & ((1 << piece.width) - 1)
