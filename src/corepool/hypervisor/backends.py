"""Durations for the runner: what a job takes by latency table, or on a device that simulates every cycle.

They must not know tenants or policies. Both carry out the same actions and answer the same questions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from corepool.compiler.dynamic import link
from corepool.compiler.model import ModelPackage
from corepool.device.base import STREAM_ALIGNMENT, WINDOW_ALIGNMENT, Device
from corepool.device.base import Lease as DeviceLease
from corepool.errors import DeviceError
from corepool.hypervisor.actions import Clear, Program, Start
from corepool.hypervisor.model import MILLION, Model, to_ns
from corepool.hypervisor.placement import BankOf, in_order, shape
from corepool.hypervisor.settings import SECOND

Shape = tuple[int, ...]
ByShape = Mapping[str, Mapping[Shape, int]]  # measured: model, shape: nanoseconds


@dataclass(frozen=True)
class Faulty:
    """A job that is stopped by a fault so long after its start (nanoseconds)."""

    after_ns: int


class Backend(ABC):
    """Carries out actions in virtual time. Refuses, by DeviceError, what a sound hypervisor never asks for."""

    def __init__(self) -> None:
        self._epochs: dict[int, int] = {}  # core: epoch of the latest action
        self._placed: dict[str, Program] = {}  # lease: what its cores are programmed with
        self._dirty: dict[int, str] = {}  # core: the lease that ran on it since it was cleared

    def _guard(self, epoch: int, cores: tuple[int, ...]) -> None:
        for core in cores:
            if epoch <= self._epochs.get(core, 0):
                raise DeviceError(f"epoch {epoch} is old: core {core} has seen {self._epochs[core]}")
            self._epochs[core] = epoch

    def clear(self, action: Clear) -> None:
        """Clear cores; leases that held some of them hold nothing until they are programmed anew."""
        self._guard(action.epoch, action.cores)
        for core in action.cores:
            self._dirty.pop(core, None)
        chosen = set(action.cores)
        for name in [name for name, placed in self._placed.items() if chosen & set(placed.cores)]:
            self._unplace(name)

    def program(self, action: Program) -> None:
        """Give cores to a lease and load streams. Raises DeviceError if another lease used one of them since its
        clearing."""
        self._guard(action.epoch, action.cores)
        for core in action.cores:
            owner = self._dirty.setdefault(core, action.lease)
            if owner != action.lease:
                raise DeviceError(f"core {core} was not cleared between leases {owner!r} and {action.lease!r}")
        if action.lease in self._placed:
            self._unplace(action.lease)
        self._placed[action.lease] = action

    def placed(self, action: Start) -> Program:
        """What a lease is programmed with. Raises DeviceError for an old epoch."""
        placed = self._placed.get(action.lease)
        if placed is None or placed.epoch != action.epoch:
            raise DeviceError(f"lease {action.lease!r} is not programmed for epoch {action.epoch}")
        return placed

    def _unplace(self, lease: str) -> None:
        del self._placed[lease]

    @abstractmethod
    def duration_ns(self, action: Start) -> int | Faulty:
        """How long the job takes from its first layer to the end."""

    @abstractmethod
    def stop_ns(self, action: Start, elapsed_ns: int) -> tuple[int, int] | None:
        """The first layer end at or after ``elapsed_ns`` since the start: (nanoseconds since the start, next layer).

        None if that is the end of the job.
        """


class TableBackend(Backend):
    """Durations by latency table: measured by shape where ``by_shape`` has an entry, else as the model predicts."""

    def __init__(self, models: Mapping[str, Model], bank_of: BankOf, by_shape: ByShape | None = None) -> None:
        super().__init__()
        self._models = models
        self._bank_of = bank_of
        self._by_shape = by_shape or {}
        self._whole: dict[str, int] = {}  # lease: nanoseconds of an inference as it is programmed now

    def program(self, action: Program) -> None:
        super().program(action)
        table = self._by_shape.get(action.model, {})
        measured = table.get(shape(action.cores, self._bank_of)) if table else None
        predicted = self._models[action.model].latency_ns[len(action.cores) - 1]
        self._whole[action.lease] = predicted if measured is None else measured

    def _starts_at(self, action: Start, layer: int) -> int:
        """Nanoseconds from the beginning of the model to the beginning of a layer."""
        if layer == 0:
            return 0
        ends = self._models[self.placed(action).model].layer_ends
        return self._whole[action.lease] * ends[layer - 1] // MILLION

    def duration_ns(self, action: Start) -> int | Faulty:
        whole = self._whole[self.placed(action).lease]
        return max(whole - self._starts_at(action, action.first_layer), 1)

    def stop_ns(self, action: Start, elapsed_ns: int) -> tuple[int, int] | None:
        skipped = self._starts_at(action, action.first_layer)
        layers = self._models[self.placed(action).model].layers
        for layer in range(action.first_layer + 1, layers):
            at = self._starts_at(action, layer) - skipped
            if at >= elapsed_ns:
                return at, layer
        return None


@dataclass
class _Loaded:
    """A device's lease and what its streams begin with."""

    lease: DeviceLease
    first_layer: int = -1
    known: dict[int, int] = field(default_factory=dict)  # first layer: nanoseconds


class DeviceBackend(Backend):
    """Durations from a device that counts cycles. Leases share nothing but the clock, so every job is run to its end
    at its start: the cycles are the same. A job that is to stop between layers is run once more, and stopped.

    With ``remember`` a model on cores of the same shape is run once only; else every job is run.
    """

    def __init__(self, device: Device, packages: Mapping[str, ModelPackage], remember: bool = False) -> None:
        super().__init__()
        self.device = device
        self._packages = packages
        self._remember = remember
        self._known: dict[tuple[str, Shape, int], int] = {}
        self._held: dict[str, DeviceLease] = {}
        self._loaded: dict[str, int] = {}  # lease: first layer of the streams that are loaded
        self.runs = 0

    def program(self, action: Program) -> None:
        super().program(action)
        package = self._packages[action.model]
        window = package.meta["window"]
        linked = link(package, action.cores, self.device.config)
        room = sum(-(-stream.nbytes // STREAM_ALIGNMENT) * STREAM_ALIGNMENT for stream in linked.streams)
        size = max(window["window_bytes"], window["streams_offset"] + room)
        size = -(-size // WINDOW_ALIGNMENT) * WINDOW_ALIGNMENT
        self._held[action.lease] = self.device.open_lease(action.cores, size)

    def _unplace(self, lease: str) -> None:
        super()._unplace(lease)
        self.device.close_lease(self._held.pop(lease))
        self._loaded.pop(lease, None)

    def duration_ns(self, action: Start) -> int | Faulty:
        return self._run(self.placed(action), action.first_layer)

    def _run(self, placed: Program, first_layer: int) -> int | Faulty:
        config = self.device.config
        key = (placed.model, shape(placed.cores, config.bank_of), first_layer)
        if self._remember and key in self._known:
            return self._known[key]
        completion = self.device.run(self._entered(placed, first_layer))
        self.runs += 1
        taken = to_ns(completion.cycles, config)
        if completion.fault is not None:
            return Faulty(taken)
        self._known[key] = taken
        return taken

    def stop_ns(self, action: Start, elapsed_ns: int) -> tuple[int, int] | None:
        device = self.device
        lease = self._entered(self.placed(action), action.first_layer)
        begin = device.start(lease)
        left = begin - device.cycle + elapsed_ns * device.config.clock_hz // SECOND
        if left > 0:
            try:
                device.wait(lease, left)
            except DeviceError:
                if not device.running(lease):
                    raise
        device.stop(lease)
        completion = device.wait(lease)
        self.runs += 1
        if completion.stopped is None:
            return None
        return max(to_ns(completion.cycles, device.config), elapsed_ns), completion.stopped.layer + 1

    def _entered(self, placed: Program, first_layer: int) -> DeviceLease:
        """The lease with streams that begin with a layer."""
        lease = self._held[placed.lease]
        if self._loaded.get(placed.lease) != first_layer:
            package = self._packages[placed.model]
            linked = link(package, placed.cores, self.device.config, first_layer)
            self.device.load_streams(lease, linked.streams, package.meta["window"]["streams_offset"])
            self._loaded[placed.lease] = first_layer
        return lease


def shapes(cores: int, banks: int) -> list[Shape]:
    """All ways to spread 1 .. all cores over banks, without their order."""
    per_bank = cores // banks
    found: list[Shape] = []

    def extend(prefix: Shape, most: int) -> None:
        for size in range(1, most + 1):
            found.append((*prefix, size))
            if len(prefix) + 1 < banks:
                extend((*prefix, size), size)

    extend((), per_bank)
    return found


def measure(device: Device, package: ModelPackage, chosen: list[Shape] | None = None) -> dict[Shape, int]:
    """Nanoseconds of one inference on idle cores of every shape (default: all that the card has)."""
    config = device.config
    measured = {}
    for number, each in enumerate(chosen if chosen is not None else shapes(config.cores, config.banks), 1):
        cores = [bank * config.cores_per_bank + i for bank, size in enumerate(each) for i in range(size)]
        backend = DeviceBackend(device, {"model": package})
        backend.program(Program(number, "measured", in_order(cores, config.bank_of), "model", 0, 0, (), 0))
        taken = backend.duration_ns(Start(number, "measured", 0, 0))
        backend.clear(Clear(number + 1, tuple(cores)))
        if isinstance(taken, Faulty):
            raise DeviceError(f"the model faulted on cores {cores}; compile it again")
        measured[each] = taken
    return measured


def packed(cores: int, per_bank: int) -> Shape:
    """The shape of cores in as few banks as possible."""
    whole, rest = divmod(cores, per_bank)
    return (per_bank,) * whole + ((rest,) if rest else ())


def measured_model(model: Model, by_shape: Mapping[Shape, int], per_bank: int) -> Model:
    """A model whose latency table is what was measured."""
    counts = range(1, len(model.latency_ns) + 1)
    return model.with_latency(tuple(by_shape[packed(n, per_bank)] for n in counts))
