"""The card as a driver shows it: actions with epochs, a table of who owns which core, models placed and run.

It must not know tenants, policies, stores or requests. It outlives whoever drives it: a driver that begins anew finds
the table as it was left, and actions that are older than what a core has seen are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from time import thread_time_ns
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from corepool.compiler.model import ModelPackage
from corepool.config import HardwareConfig
from corepool.device.base import Device
from corepool.errors import DeviceError
from corepool.runtime.tail import HostSteps

if TYPE_CHECKING:
    from corepool.runtime.context import Saved
    from corepool.runtime.session import Served, Session

Arrays = Mapping[str, npt.NDArray[Any]]

SLICE_CYCLES = 20_000  # how long a lease keeps a device that only one thread may use at a time


@dataclass(frozen=True, slots=True)
class Owner:
    """What the card knows of a core: the lease that it is programmed for or None, and the epoch of the last action."""

    lease: str | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run ended before its last layer because it was asked to; it can go on at ``next_layer`` on other cores."""

    next_layer: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A lease's cores, programmed by the action of this epoch with a model of this name."""

    lease: str
    epoch: int
    cores: tuple[int, ...]
    model: str
    session: Session


class Card:
    """``open_device`` makes the device at its first use. With ``separate`` every lease gets a device of its own, for
    simulators: their leases share nothing, so they may as well run at the same time. Else one device serves all, one
    thread at a time.

    Methods may be called from any thread; those of one lease only one after the other. All raise DeviceError for an
    epoch that is older than what one of the cores, or the fence, has seen. An action that was carried out already is
    carried out once.
    """

    def __init__(self, config: HardwareConfig, open_device: Callable[[], Device], separate: bool) -> None:
        self.config = config
        self._open = open_device
        self._separate = separate
        self._shared: Device | None = None
        self._own: dict[str, Device] = {}  # lease: its device, where each has its own
        self._lock = threading.RLock()  # the table
        self._turn = threading.RLock()  # the device, where all share one
        self._table = [Owner() for _ in range(config.cores)]
        self._placed: dict[str, Placed] = {}
        self._leaving: dict[str, list[Placed]] = {}  # lease: what it had before, to be closed
        self._moves: dict[str, threading.RLock] = {}
        self._stops: set[tuple[str, int]] = set()  # lease and epoch of runs that are to stop after their layer
        self._suspended: dict[str, tuple[str, Session, Saved]] = {}  # lease: its model, and an inference to go on with
        self._took: dict[str, tuple[int, int]] = {}  # lease: epoch and processor time of its latest whole run
        self._resumed: set[tuple[str, int]] = set()  # lease and epoch of inferences that go on already
        self.suspensions = 0
        self._fence = 0

    def table(self) -> tuple[Owner, ...]:
        """Who owns which core, by core."""
        with self._lock:
            return tuple(self._table)

    def placed(self, lease: str) -> Placed | None:
        """What a lease's cores are programmed with."""
        with self._lock:
            return self._placed.get(lease)

    @property
    def youngest(self) -> int:
        """The youngest epoch that any core has seen."""
        with self._lock:
            return max(self._fence, *(owner.epoch for owner in self._table))

    def fence(self, epoch: int) -> None:
        """From now on nothing up to this epoch is carried out: what an earlier driver asked for is void."""
        with self._lock:
            self._fence = max(self._fence, epoch)

    def warm(self, package: ModelPackage) -> None:
        """Do what the first run of a model such as this one would have to wait for."""
        from corepool.runtime.session import warm

        if self._separate:
            device = self._open()
            device.warm()
        else:
            with self._turn:
                device = self._device_for("")
        warm(package, device.config)

    @contextmanager
    def lent(self) -> Iterator[Device]:
        """The device that all leases share, for work on cores that none of them is programmed for; their runs wait
        meanwhile. Raises DeviceError where each lease has a device of its own."""
        if self._separate:
            raise DeviceError("each lease has a device of its own: there is none that all share")
        with self._turn:
            yield self._device_for("")

    @property
    def separate(self) -> bool:
        """Whether each lease has a device of its own."""
        return self._separate

    def clear(self, epoch: int, cores: Iterable[int]) -> None:
        """Clear the memories of cores; leases that held some of them hold nothing until they are programmed anew."""
        chosen = tuple(cores)
        with self._lock:
            if all(self._table[core] == Owner(None, epoch) for core in chosen):
                return
            self._guard(epoch, chosen)
            wanted = set(chosen)
            leaving = [placed for placed in self._placed.values() if wanted & set(placed.cores)]
            for placed in leaving:
                self._forget(placed)
        for placed in leaving:  # without the table's lock: it takes a while, and other leases run
            self._clear_out(placed.lease)
        if not leaving and not self._separate and self._shared is not None:
            with self._turn:  # opening and closing clears; nobody else may hold them
                self._shared.close_lease(self._shared.open_lease(chosen, 1))
        with self._lock:
            for core in chosen:
                self._table[core] = Owner(None, epoch)

    def program(
        self, epoch: int, lease: str, cores: Iterable[int], model: str, package: ModelPackage, host: HostSteps
    ) -> Placed:
        """Link a model for cores, give them to the lease and load weights and streams.

        Raises DeviceError too if one of them belongs to another lease or the device has no room, LinkError if the
        model cannot be dealt to so many cores.
        """
        from corepool.runtime.session import Session  # brings numba, which is slow to import: only who runs models pays

        chosen = tuple(cores)
        with self._lock:
            before = self._placed.get(lease)
            if before is not None and before.epoch == epoch and before.cores == chosen:
                return before
            for core in chosen:
                if self._table[core].lease not in (None, lease):
                    raise DeviceError(f"core {core} belongs to lease {self._table[core].lease!r}; clear it first")
            self._guard(epoch, chosen)
            if before is not None:
                self._forget(before)
            for core in chosen:
                self._table[core] = Owner(lease, epoch)
            left = self._suspended.pop(lease, None)
        with self._moving(lease), self._guarded():
            self._clear_out(lease)
            if left is not None and left[0] == model:
                session = left[1]
                session.resume(left[2], chosen)
            else:
                session = Session(self._device_for(lease), package, chosen, host=host)
        placed = Placed(lease, epoch, chosen, model, session)
        with self._lock:
            lost = any(self._table[core] != Owner(lease, epoch) for core in chosen)
            if not lost:
                self._placed[lease] = placed
                if left is not None and session is left[1]:
                    self._resumed.add((lease, epoch))
        if lost:
            with self._moving(lease), self._guarded():
                session.close()
            raise DeviceError(f"lease {lease!r} lost its cores while it was programmed")
        return placed

    def run(
        self, lease: str, epoch: int, inputs: Arrays, outputs: Collection[str] | None = None, *,
        first_layer: int = 0, stoppable: bool = False,
    ) -> Served | Stopped:  # fmt: skip
        """One inference; ``outputs``: those wanted, None for all. Beyond the ``first_layer`` it goes on where it was
        stopped, or begins anew if that is not known here. One that is ``stoppable`` may be stopped after a layer.

        Raises InputError for unfit inputs, FaultError if a fault stopped it.
        """
        session = self._current(lease, epoch).session
        begun = thread_time_ns()
        self._begin(session, lease, epoch, inputs, first_layer)
        while not self._separate or stoppable:  # others get the device between two slices
            with self._guarded():
                session.advance(SLICE_CYCLES)
                if not session.running:
                    break
                if stoppable:
                    session.settle()
                    stopped = self._stopped(session, lease, epoch)
                    if stopped is not None:
                        return stopped
        with self._guarded():
            served = session.collect(outputs)
        if not first_layer:
            self._took[lease] = epoch, thread_time_ns() - begun
        return served

    def took_ns(self, lease: str, epoch: int) -> int | None:
        """Processor time of the thread that ran the latest inference of a lease from its first layer to its outputs:
        the next will take about as long. None if there was none since this epoch, or where all leases share one device
        and may have to wait for it."""
        took = self._took.get(lease)
        return None if took is None or took[0] != epoch or not self._separate else took[1]

    def stop_after_layer(self, lease: str, epoch: int) -> None:
        """Ask a run to stop at the end of its layer; one that cannot be stopped runs to its end."""
        with self._lock:
            placed = self._placed.get(lease)
            if placed is not None and placed.epoch == epoch:
                self._stops.add((lease, epoch))

    def _begin(self, session: Session, lease: str, epoch: int, inputs: Arrays, first_layer: int) -> None:
        with self._lock:
            self._stops.discard((lease, epoch))
            resumed = (lease, epoch) in self._resumed
            self._resumed.discard((lease, epoch))
        if resumed and first_layer:
            return
        with self._guarded():
            while session.running:  # an inference went on that nobody waits for any more
                session.advance(SLICE_CYCLES)
            session.start(inputs)

    def _stopped(self, session: Session, lease: str, epoch: int) -> Stopped | None:
        """Suspend the inference if that was asked for and it is not about to end."""
        with self._lock:
            if (lease, epoch) not in self._stops:
                return None
            self._stops.discard((lease, epoch))
        session.stop()
        saved = session.suspend()
        if saved is None:
            return None
        with self._lock:
            placed = self._placed.pop(lease)
            self._suspended[lease] = placed.model, session, saved
            self.suspensions += 1
        return Stopped(saved.next_layer)

    def drop(self, lease: str, epoch: int) -> None:
        """The lease is gone: forget its window, unless a younger lease of this name has come since. Dropping what is
        not there does no harm."""
        with self._lock:
            placed = self._placed.get(lease)
            if placed is not None and placed.epoch > epoch:
                return
            if placed is not None:
                self._forget(placed)
            self._suspended.pop(lease, None)
            for core, owner in enumerate(self._table):
                if owner.lease == lease and owner.epoch <= epoch:
                    self._table[core] = Owner(None, owner.epoch)
            self._own.pop(lease, None)
            self._took.pop(lease, None)
        self._clear_out(lease)

    def evict(self, lease: str) -> None:
        """Take a model off the cores of a lease, and its memory; the lease keeps the cores."""
        with self._lock:
            placed = self._placed.get(lease)
            if placed is not None:
                self._forget(placed)
        self._clear_out(lease)

    def _current(self, lease: str, epoch: int) -> Placed:
        with self._lock:
            placed = self._placed.get(lease)
            if placed is None or placed.epoch != epoch or epoch <= self._fence:
                raise DeviceError(f"lease {lease!r} is not programmed for epoch {epoch}")
            return placed

    def _guard(self, epoch: int, cores: tuple[int, ...]) -> None:
        if epoch <= self._fence:
            raise DeviceError(f"epoch {epoch} is old: the card was taken over at epoch {self._fence}")
        for core in cores:
            if epoch <= self._table[core].epoch:
                raise DeviceError(f"epoch {epoch} is old: core {core} has seen {self._table[core].epoch}")

    def _forget(self, placed: Placed) -> None:
        del self._placed[placed.lease]
        self._leaving.setdefault(placed.lease, []).append(placed)
        self._stops.discard((placed.lease, placed.epoch))
        self._resumed.discard((placed.lease, placed.epoch))

    def _moving(self, lease: str) -> threading.RLock:
        """Held while a lease's memory comes or goes."""
        with self._lock:
            return self._moves.setdefault(lease, threading.RLock())

    def _clear_out(self, lease: str) -> None:
        """Give back the memory of what a lease had before; on return that is done, whoever did it."""
        with self._moving(lease), self._guarded():
            with self._lock:
                leaving = self._leaving.pop(lease, [])
            for placed in leaving:
                self._close(placed)

    def _close(self, placed: Placed) -> None:
        """Give back cores and memory."""
        placed.session.close()

    def _guarded(self) -> Any:
        return nullcontext() if self._separate else self._turn

    def _device_for(self, lease: str) -> Device:
        if not self._separate:
            if self._shared is None:
                self._shared = self._open()
            return self._shared
        with self._lock:
            if lease not in self._own:
                self._own[lease] = self._open()
            return self._own[lease]
