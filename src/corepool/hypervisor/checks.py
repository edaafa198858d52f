"""Invariants: what must hold between any two events; tests check them after every step.

They must not change anything, and they do not trust what they check.
"""

from __future__ import annotations

from corepool.hypervisor.placement import Cores
from corepool.hypervisor.records import Book, CoreState, Job, Lease, Phase, Replica
from corepool.hypervisor.settings import Settings

_PROGRAMMED = (CoreState.PROGRAMMING, CoreState.ACTIVE, CoreState.DRAINING)


def violations(book: Book, settings: Settings) -> list[str]:
    """One line for each broken invariant."""
    found = _cores(book, settings)
    planned: Cores = frozenset()
    for replica in book.replicas.values():
        if planned & replica.plan:
            found.append(f"cores {sorted(planned & replica.plan)} are planned twice")
        planned |= replica.plan
        found += _replica(book, replica)
    for lease in book.leases.values():
        found += _lease(lease)
    if {each.name for lease in book.leases.values() for each in lease.replicas} != set(book.replicas):
        found.append("the book has other replicas than its leases")
    for tenant in book.tenants.values():
        charged = sum(book.leases[name].charged for name in tenant.leases)
        if charged > tenant.quota:
            found.append(f"tenant {tenant.tenant!r} has or may have {charged} of {tenant.quota} cores")
    waiting = {each.lease for each in book.leases.values() if not (each.admitted or each.releasing or each.faulted)}
    if waiting != set(book.queue) or len(book.queue) != len(waiting):
        found.append("the queue is not made of the leases that are not admitted")
    jobs = {job.job: lease.lease for lease in book.leases.values() for job in _jobs(lease)}
    if jobs != book.jobs:
        found.append(f"jobs {sorted(set(jobs) ^ set(book.jobs))} are lost or left behind")
    windows = [lease.window_bytes * len(lease.replicas) for lease in book.leases.values() if lease.admitted]
    if sum(windows) > settings.bank_bytes:
        found.append("windows do not fit a bank")
    return found


def _jobs(lease: Lease) -> list[Job]:
    return [*lease.queue, *lease.running]


def _cores(book: Book, settings: Settings) -> list[str]:
    """Every core is with one lease, free, being cleared or tainted."""
    found = []
    if len(book.cores) != settings.cores:
        found.append(f"there are {len(book.cores)} cores, not {settings.cores}")
    if book.usable != {i for i, core in enumerate(book.cores) if core.state is not CoreState.TAINTED}:
        found.append(f"usable are said to be {sorted(book.usable)}")
    clearing = [core for cores in book.clears.values() for core in cores]
    if len(set(clearing)) != len(clearing):
        found.append("a core is being cleared twice")
    for number, core in enumerate(book.cores):
        holders = [each.name for each in book.replicas.values() if number in each.own]
        if len(holders) > 1:
            found.append(f"core {number} is with {holders}")
        if core.owner != (holders[0] if holders else None):
            found.append(f"core {number} says {core.owner!r}, its replica {holders}")
        alone = core.state in (CoreState.FREE, CoreState.TAINTED)
        if core.state is not CoreState.CLEARING and (core.owner is None) != alone:
            found.append(f"core {number} is {core.state.value} with owner {core.owner!r}")
        if (core.state is CoreState.CLEARING) != (number in clearing):
            found.append(f"core {number} is {core.state.value}, and clearing it was asked for {number in clearing}")
        if core.state is CoreState.RESERVED and not core.clean:
            found.append(f"core {number} is reserved but was not cleared")
        if core.state in _PROGRAMMED and core.clean:
            found.append(f"core {number} runs but counts as cleared")
    return found


def _replica(book: Book, replica: Replica) -> list[str]:
    found = []
    name, lease = replica.name, replica.lease
    if replica.cores & replica.reserved:
        found.append(f"replica {name!r} has programmed cores among the reserved")
    if replica.plan and (not lease.admitted or lease.faulted):
        found.append(f"replica {name!r} shall have cores, though its lease is not admitted or faulted")
    if replica.own and (not lease.admitted or (lease.faulted and replica.phase is Phase.IDLE)):
        found.append(f"replica {name!r} has cores, though its lease is not admitted or faulted")
    expected = {
        Phase.IDLE: {CoreState.ACTIVE},
        Phase.PROGRAMMING: {CoreState.PROGRAMMING},
        Phase.RUNNING: {CoreState.ACTIVE, CoreState.DRAINING},
    }[replica.phase]
    states = {book.cores[core].state for core in replica.cores}
    if not states <= expected:
        found.append(f"replica {name!r} is {replica.phase.value}, its cores are {sorted(s.value for s in states)}")
    if (replica.running is not None) != (replica.phase is Phase.RUNNING):
        found.append(f"replica {name!r} is {replica.phase.value} with job {replica.running}")
    if replica.phase is not Phase.IDLE and not replica.cores:
        found.append(f"replica {name!r} is {replica.phase.value} without cores")
    return found


def _lease(lease: Lease) -> list[str]:
    found = []
    name = lease.lease
    runs = [replica.running.job for replica in lease.replicas if replica.running is not None]
    if sorted(runs) != sorted(job.job for job in lease.running):
        found.append(f"lease {name!r} says that {lease.running} run, its replicas {runs}")
    if lease.planned > lease.maximum:
        found.append(f"lease {name!r} shall have {lease.planned} cores, at most {lease.maximum}")
    planned = sum(bool(replica.plan) for replica in lease.replicas)
    if planned > lease.most:
        found.append(f"lease {name!r} shall have {planned} replicas, at most {lease.most}")
    if not lease.replicas or lease.first.name != name:
        found.append(f"lease {name!r} has lost its first replica")
    counts: dict[str, int] = {}
    for job in lease.queue:
        counts[job.model.name] = counts.get(job.model.name, 0) + 1
    if counts != {model: count for model, count in lease.backlog.items() if count}:
        found.append(f"lease {name!r} counts {lease.backlog}, waiting are {counts}")
    promised = sum(job.deadline is not None for job in _jobs(lease))
    if promised != lease.promised:
        found.append(f"lease {name!r} counts {lease.promised} deadlines, there are {promised}")
    return found
