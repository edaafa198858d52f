"""What changed between two looks at the hypervisor's book: arrows of cores, and how leases stand now.

It must not know devices, threads or stores; it compares, and holds values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from corepool.hypervisor.records import Book, CoreState, Lease

_S = CoreState
_ARROWS = {
    (_S.FREE, _S.RESERVED): ("reserve",),
    (_S.FREE, _S.CLEARING): ("reserve", "wipe"),  # taken by a lease, never cleared since the start
    (_S.RESERVED, _S.CLEARING): ("wipe",),
    (_S.RESERVED, _S.FREE): ("free",),
    (_S.RESERVED, _S.PROGRAMMING): ("program",),
    (_S.ACTIVE, _S.PROGRAMMING): ("program",),
    (_S.PROGRAMMING, _S.ACTIVE): ("activate",),
    (_S.ACTIVE, _S.DRAINING): ("drain",),
    (_S.ACTIVE, _S.CLEARING): ("clear",),
    (_S.DRAINING, _S.CLEARING): ("clear",),
    (_S.PROGRAMMING, _S.CLEARING): ("clear",),
    (_S.CLEARING, _S.FREE): ("free",),
    (_S.CLEARING, _S.RESERVED): ("free", "reserve"),
    (_S.CLEARING, _S.PROGRAMMING): ("free", "reserve", "program"),
    (_S.FREE, _S.PROGRAMMING): ("reserve", "program"),
    (_S.TAINTED, _S.CLEARING): ("repair",),
}
ACTS = {"wipe", "clear", "repair", "program"}
"""Arrows that the device takes part in; the others are facts of the book."""


@dataclass(frozen=True, slots=True)
class Arrow:
    """Cores that went the same way at the same time. ``lease`` is empty where nobody owns them; ``number`` makes it one
    of its kind."""

    name: str
    lease: str
    epoch: int
    cores: tuple[int, ...]
    number: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a lease stands: what the store is to know of it. ``programmed`` cores are a part of ``cores``."""

    lease: str
    tenant: str
    state: str
    epoch: int
    cores: tuple[int, ...]
    programmed: tuple[int, ...]
    model: str | None


def state_of(lease: Lease) -> str:
    """A lease's state as users see it."""
    if lease.faulted:
        return "faulted"
    if lease.releasing:
        return "draining"
    return "active" if lease.granted else "queued"


def standing_of(lease: Lease) -> Standing:
    return Standing(
        lease.lease, lease.tenant, state_of(lease), lease.epoch, tuple(sorted(lease.own)), tuple(sorted(lease.cores)),
        lease.model,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One event's consequences for the store. ``then`` is called when they are durable. ``tainted``: all such cores,
    or None if unchanged. ``epoch``: the youngest that the step may use."""

    arrows: tuple[Arrow, ...] = ()
    standings: tuple[Standing, ...] = ()
    released: tuple[str, ...] = ()
    tainted: tuple[int, ...] | None = None
    epoch: int = 0
    then: tuple[Callable[[], None], ...] = ()


@dataclass
class Watch:
    """Remembers how all cores stood, to tell what has changed since."""

    book: Book
    _cores: list[tuple[CoreState, str | None]] = field(default_factory=list)
    _count: int = 0
    _quiet: set[str] = field(default_factory=set)  # leases that get another model on the cores that they have

    def __post_init__(self) -> None:
        self._cores = [(core.state, core.owner) for core in self.book.cores]

    def look(self) -> tuple[list[Arrow], tuple[int, ...] | None]:
        """Arrows since the last look, and the tainted cores if those have changed. Another model on the cores that a
        lease has is no arrow: nothing changes hands."""
        if [(core.state, core.owner) for core in self.book.cores] == self._cores:  # nearly always
            return [], None
        groups: dict[tuple[str, str], list[int]] = {}
        fresh: set[str] = set()
        tainted = False
        for number, core in enumerate(self.book.cores):
            state, owner = self._cores[number]
            if core.state is state and core.owner == owner:
                continue
            self._cores[number] = (core.state, core.owner)
            tainted |= _S.TAINTED in (core.state, state)
            names = _ARROWS.get((state, core.state), ())
            if state is _S.CLEARING and owner is not None and owner == core.owner:
                names = tuple(name for name in names if name not in ("free", "reserve"))  # wiped for its own lease
            for name in names:
                whose = (owner if name in ("clear", "drain", "free") else core.owner) or ""
                groups.setdefault((name, whose), []).append(number)
                if name == "program" and state is not _S.ACTIVE:
                    fresh.add(whose)
        arrows = []
        for (name, lease), cores in groups.items():
            if self._moves(name, lease, fresh):
                self._count += 1
                arrows.append(Arrow(name, lease, self._epoch(name, lease, cores[0]), tuple(cores), self._count))
        return arrows, self._tainted() if tainted else None

    def _moves(self, name: str, lease: str, fresh: set[str]) -> bool:
        if name == "program":
            (self._quiet.discard if lease in fresh else self._quiet.add)(lease)
            return lease in fresh
        return name != "activate" or lease not in self._quiet

    def _epoch(self, name: str, lease: str, core: int) -> int:
        """The epoch of the action that goes with an arrow; for others the latest."""
        if name in ("wipe", "clear", "repair"):
            return next((epoch for epoch, cores in self.book.clears.items() if core in cores), self.book.epoch)
        held = self.book.leases.get(lease)
        return held.epoch if held is not None else self.book.epoch

    def _tainted(self) -> tuple[int, ...]:
        return tuple(i for i, core in enumerate(self.book.cores) if core.state is _S.TAINTED)
