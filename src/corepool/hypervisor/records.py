"""What the hypervisor keeps: tenants, leases and their replicas, jobs and cores.

It must not know events, actions or policies; it holds facts and refuses moves that no core can make.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from corepool.hypervisor.events import Sharing, Switching
from corepool.hypervisor.model import Model
from corepool.hypervisor.placement import Cores

MARK = "#"  # stands before a replica's number in its name, and in no lease's
NOT_PLAIN = {"plain": False}  # a field that says nothing new


def lease_name(replica: str) -> str:
    """The lease that a replica is of, by its name."""
    return replica.partition(MARK)[0]


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
    """``owner`` is a replica, or None. ``clean``: nobody has run on it since its memories were cleared."""

    state: CoreState = CoreState.FREE
    owner: str | None = None
    clean: bool = False

    def move(self, state: CoreState) -> None:
        """Change state. Raises AssertionError for a move that no core makes: a defect here, not a user's error."""
        if state not in MOVES[self.state]:
            raise AssertionError(f"a core never goes from {self.state.value} to {state.value}")
        self.state = state


class Phase(Enum):
    """What a replica's cores do: nothing, being programmed, running a job."""

    IDLE = "idle"
    PROGRAMMING = "programming"
    RUNNING = "running"


@dataclass(slots=True)
class Job:
    """``due``: its deadline, or what stands for one; ``next_layer``: where it goes on; ``home``: the replica in whose
    memory its maps lie if it was stopped."""

    job: int
    model: Model
    submitted: int
    deadline: int | None
    due: int
    next_layer: int = 0
    home: str | None = None


@dataclass(slots=True)
class Replica:
    """Cores of a lease that do one inference at a time, with a window of their own. The first has the lease's name.

    ``cores`` are programmed or were; ``reserved`` are its own too but not programmed with the others yet; ``plan`` is
    what it shall have. ``model`` is the one that its cores are programmed for, ``resident`` the one whose weights lie
    in each bank.
    """

    name: str
    lease: Lease = field(repr=False, compare=False, metadata=NOT_PLAIN)
    phase: Phase = Phase.IDLE
    epoch: int = 0
    stopping: bool = False
    busy_until: int = 0
    model: str | None = None
    cores: Cores = frozenset()
    reserved: Cores = frozenset()
    plan: Cores = frozenset()
    resident: dict[int, str] = field(default_factory=dict)
    running: Job | None = None

    @property
    def own(self) -> Cores:
        return self.cores | self.reserved


@dataclass(slots=True)
class Lease:
    """``most``: replicas that it may have at a time. ``order`` is its place among those that wait: smaller is earlier.
    Until ``lively_until`` it counts as having work. ``running`` jobs are those of its replicas, in the order in which
    they began. Of jobs that wait, ``backlog`` counts each model's, and ``promised`` those with a deadline, the running
    ones included.
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
    most: int = 1
    ends_at: int | None = None
    admitted: bool = False
    granted: bool = False
    faulted: bool = False
    releasing: bool = False
    lively_until: int = 0
    replicas: list[Replica] = field(default_factory=list)
    made: int = 0  # replicas so far beside the first
    queue: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    backlog: dict[str, int] = field(default_factory=dict)
    promised: int = 0
    judged: tuple[object, int, bool] = field(default=(None, 0, False), metadata=NOT_PLAIN)  # the planner's memory

    def __post_init__(self) -> None:
        self.replicas.append(Replica(self.lease, self))

    @property
    def first(self) -> Replica:
        return self.replicas[0]

    @property
    def alone(self) -> bool:
        """True if the first replica is the only one."""
        return len(self.replicas) == 1

    @property
    def own(self) -> Cores:
        return self.first.own if self.alone else self._all([each.own for each in self.replicas])

    @property
    def cores(self) -> Cores:
        return self.first.cores if self.alone else self._all([each.cores for each in self.replicas])

    @property
    def reserved(self) -> Cores:
        return self._all([each.reserved for each in self.replicas])

    @property
    def plan(self) -> Cores:
        return self.first.plan if self.alone else self._all([each.plan for each in self.replicas])

    @staticmethod
    def _all(parts: list[Cores]) -> Cores:
        return frozenset().union(*parts)

    @property
    def planned(self) -> int:
        """How many cores it shall have."""
        return len(self.replicas[0].plan) if self.alone else sum(len(each.plan) for each in self.replicas)

    @property
    def settled(self) -> bool:
        """True if every replica is programmed on what it shall have."""
        first = self.replicas[0]
        return first.plan == first.cores and (self.alone or all(each.plan == each.cores for each in self.replicas))

    @property
    def model(self) -> str | None:
        """What the first replica is programmed for."""
        return self.first.model

    @property
    def epoch(self) -> int:
        """The youngest of its replicas."""
        return max(each.epoch for each in self.replicas)

    @property
    def busy_until(self) -> int:
        """When the last of its replicas predictably ends what it does."""
        return self.replicas[0].busy_until if self.alone else max(each.busy_until for each in self.replicas)

    @property
    def idle(self) -> bool:
        return all(each.phase is Phase.IDLE for each in self.replicas)

    @property
    def head(self) -> Job | None:
        """A job that runs, or else the next."""
        return self.running[0] if self.running else (self.queue[0] if self.queue else None)

    @property
    def charged(self) -> int:
        """Cores that count against the quota: what it may have, or still has."""
        return max(self.maximum, sum(len(each.own) for each in self.replicas))

    @property
    def waiting(self) -> int:
        return len(self.queue) + len(self.running)

    def enqueue(self, job: Job, in_order: bool) -> int:
        """Put a job at the end, or before those that are due later. Returns how many jobs are before it."""
        place = len(self.queue)
        if in_order:
            while place and self.queue[place - 1].due > job.due:
                place -= 1
        self.queue.insert(place, job)
        self.backlog[job.model.name] = self.backlog.get(job.model.name, 0) + 1
        self.promised += job.deadline is not None
        return place + len(self.running)

    def end_running(self, replica: Replica) -> Job:
        """The job that a replica runs, which is over or was stopped."""
        job = replica.running
        assert job is not None
        replica.running = None
        self.running.remove(job)
        return job

    def return_running(self, replica: Replica) -> None:
        """Put the job that ran back to the front: it will be started anew."""
        if replica.running is not None:
            job = self.end_running(replica)
            self.queue.appendleft(job)
            self.backlog[job.model.name] = self.backlog.get(job.model.name, 0) + 1

    def take(self, job: Job) -> None:
        """Take a job out of the queue."""
        if self.queue[0] is job:
            self.queue.popleft()
        else:
            self.queue.remove(job)
        self.backlog[job.model.name] -= 1

    def another(self) -> Replica:
        """One more replica. Names are never used again, so nothing meant for an earlier one can reach it."""
        self.made += 1
        self.replicas.append(Replica(f"{self.lease}{MARK}{self.made}", self))
        return self.replicas[-1]


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
    replicas: dict[str, Replica] = field(default_factory=dict, metadata=NOT_PLAIN)
    jobs: dict[int, str] = field(default_factory=dict)
    queue: list[str] = field(default_factory=list)
    clears: dict[int, tuple[int, ...]] = field(default_factory=dict)
    usable: Cores = frozenset()
    unserved: bool = False

    def __post_init__(self) -> None:
        self.count_usable()

    def put(self, lease: Lease) -> None:
        """A new lease, with its first replica."""
        self.leases[lease.lease] = lease
        self.replicas[lease.lease] = lease.first

    def another(self, lease: Lease) -> Replica:
        """One more replica of a lease."""
        replica = lease.another()
        self.replicas[replica.name] = replica
        return replica

    def forget(self, replica: Replica) -> None:
        """A replica that has nothing any more."""
        del self.replicas[replica.name]
        replica.lease.replicas.remove(replica)

    def count_usable(self) -> None:
        """Bring ``usable`` up to date after cores were tainted or repaired."""
        self.usable = frozenset(i for i, core in enumerate(self.cores) if core.state is not CoreState.TAINTED)
