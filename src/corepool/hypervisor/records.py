"""What the hypervisor keeps: tenants, leases, jobs and cores.

It must not know events, actions or policies; it holds facts and refuses moves that no core can make.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from corepool.hypervisor.events import Sharing, Switching
from corepool.hypervisor.model import Model
from corepool.hypervisor.placement import Cores


class CoreState(Enum):
    """FREE; RESERVED for a lease; CLEARING; PROGRAMMING; ACTIVE; DRAINING (active, but to be given up); TAINTED by a
    fault."""

    FREE = "free"
    RESERVED = "reserved"
    CLEARING = "clearing"
    PROGRAMMING = "programming"
    ACTIVE = "active"
    DRAINING = "draining"
    TAINTED = "tainted"


_S = CoreState
# CLEARING leads to FREE, or to RESERVED if a lease has taken the core already. After a reset anything owned is cleared
# anew.
MOVES = {
    _S.FREE: {_S.RESERVED, _S.CLEARING},
    _S.RESERVED: {_S.FREE, _S.CLEARING, _S.PROGRAMMING},
    _S.CLEARING: {_S.FREE, _S.RESERVED, _S.TAINTED, _S.CLEARING},
    _S.PROGRAMMING: {_S.ACTIVE, _S.TAINTED, _S.CLEARING},
    _S.ACTIVE: {_S.DRAINING, _S.PROGRAMMING, _S.CLEARING, _S.TAINTED},
    _S.DRAINING: {_S.ACTIVE, _S.CLEARING, _S.TAINTED},
    _S.TAINTED: {_S.CLEARING},
}


@dataclass(slots=True)
class Core:
    """``owner`` is a lease, or None. ``clean``: nobody has run on it since its memories were cleared."""

    state: CoreState = CoreState.FREE
    owner: str | None = None
    clean: bool = False

    def move(self, state: CoreState) -> None:
        """Change state. Raises AssertionError for a move that no core makes: a defect here, not a user's error."""
        if state not in MOVES[self.state]:
            raise AssertionError(f"a core never goes from {self.state.value} to {state.value}")
        self.state = state


class Phase(Enum):
    """What a lease's cores do: nothing, being programmed, running a job."""

    IDLE = "idle"
    PROGRAMMING = "programming"
    RUNNING = "running"


@dataclass(slots=True)
class Job:
    """``due``: its deadline, or what stands for one; ``next_layer``: where it goes on."""

    job: int
    model: Model
    submitted: int
    deadline: int | None
    due: int
    next_layer: int = 0


@dataclass(slots=True)
class Lease:
    """``cores`` are programmed or were; ``reserved`` are its own too but not programmed with the others yet; ``plan``
    is what it shall have. ``model`` is the one that its cores are programmed for, ``resident`` the one whose weights
    lie in each bank. ``order`` is its place among those that wait: smaller is earlier. Until
    ``lively_until`` it counts as having work.
    """

    lease: str
    tenant: str
    minimum: int
    maximum: int
    window_bytes: int
    sharing: Sharing
    switching: Switching
    order: int
    serial: int
    ends_at: int | None = None
    admitted: bool = False
    granted: bool = False
    faulted: bool = False
    releasing: bool = False
    phase: Phase = Phase.IDLE
    epoch: int = 0
    stopping: bool = False
    busy_until: int = 0
    lively_until: int = 0
    model: str | None = None
    cores: Cores = frozenset()
    reserved: Cores = frozenset()
    plan: Cores = frozenset()
    resident: dict[int, str] = field(default_factory=dict)
    running: Job | None = None
    queue: deque[Job] = field(default_factory=deque)
    backlog: dict[str, int] = field(default_factory=dict)  # waiting jobs by model

    @property
    def own(self) -> Cores:
        return self.cores | self.reserved

    @property
    def head(self) -> Job | None:
        """The job that runs, or else is next."""
        return self.running if self.running is not None else (self.queue[0] if self.queue else None)

    @property
    def charged(self) -> int:
        """Cores that count against the quota: what it may have, or still has."""
        return max(self.maximum, len(self.own))

    @property
    def waiting(self) -> int:
        return len(self.queue) + (self.running is not None)

    def enqueue(self, job: Job, in_order: bool) -> int:
        """Put a job at the end, or before those that are due later. Returns how many jobs are before it."""
        place = len(self.queue)
        if in_order:
            while place and self.queue[place - 1].due > job.due:
                place -= 1
        self.queue.insert(place, job)
        self.backlog[job.model.name] = self.backlog.get(job.model.name, 0) + 1
        return place + (self.running is not None)

    def return_running(self) -> None:
        """Put the job that ran back to the front: it will be started anew."""
        if self.running is not None:
            self.queue.appendleft(self.running)
            self.backlog[self.running.model.name] = self.backlog.get(self.running.model.name, 0) + 1
            self.running = None

    def take(self, job: Job) -> None:
        """Take a job out of the queue."""
        if self.queue[0] is job:
            self.queue.popleft()
        else:
            self.queue.remove(job)
        self.backlog[job.model.name] -= 1


@dataclass(slots=True)
class Tenant:
    """``quota``: cores that all its leases together may ask for."""

    tenant: str
    quota: int
    priority: int
    models: dict[str, Model] = field(default_factory=dict)
    leases: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Book:
    """Everything. ``queue``: leases that wait for admission. ``clears``: by epoch, cores whose clearing was asked for.
    ``usable``: cores that are not tainted. ``unserved``: some lease with work was dealt no core."""

    cores: list[Core]
    now: int = 0
    epoch: int = 0
    serial: int = 0
    tenants: dict[str, Tenant] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    jobs: dict[int, str] = field(default_factory=dict)
    queue: list[str] = field(default_factory=list)
    clears: dict[int, tuple[int, ...]] = field(default_factory=dict)
    usable: Cores = frozenset()
    unserved: bool = False

    def __post_init__(self) -> None:
        self.count_usable()

    def count_usable(self) -> None:
        """Bring ``usable`` up to date after cores were tainted or repaired."""
        self.usable = frozenset(i for i, core in enumerate(self.cores) if core.state is not CoreState.TAINTED)
