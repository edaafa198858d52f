"""Invariants: what must hold between any two events; tests check them after every step.

They must not change anything, and they do not trust what they check.
"""

from __future__ import annotations

from corepool.hypervisor.placement import Cores
from corepool.hypervisor.records import Book, CoreState, Job, Lease, Phase
from corepool.hypervisor.settings import Settings

_PROGRAMMED = (CoreState.PROGRAMMING, CoreState.ACTIVE, CoreState.DRAINING)


def violations(book: Book, settings: Settings) -> list[str]:
    """One line for each broken invariant."""
    found = _cores(book, settings)
    planned: Cores = frozenset()
    for lease in book.leases.values():
        if planned & lease.plan:
            found.append(f"cores {sorted(planned & lease.plan)} are planned for two leases")
        planned |= lease.plan
        found += _lease(book, lease)
    for tenant in book.tenants.values():
        charged = sum(book.leases[name].charged for name in tenant.leases)
        if charged > tenant.quota:
            found.append(f"tenant {tenant.tenant!r} has or may have {charged} of {tenant.quota} cores")
    waiting = {lease.lease for lease in book.leases.values() if not lease.admitted and not lease.releasing}
    if waiting != set(book.queue) or len(book.queue) != len(waiting):
        found.append("the queue is not made of the leases that are not admitted")
    jobs = {job.job: lease.lease for lease in book.leases.values() for job in _jobs(lease)}
    if jobs != book.jobs:
        found.append(f"jobs {sorted(set(jobs) ^ set(book.jobs))} are lost or left behind")
    if sum(lease.window_bytes for lease in book.leases.values() if lease.admitted) > settings.bank_bytes:
        found.append("windows do not fit a bank")
    return found


def _jobs(lease: Lease) -> list[Job]:
    return [*lease.queue, *([lease.running] if lease.running is not None else [])]


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
        holders = [lease.lease for lease in book.leases.values() if number in lease.own]
        if len(holders) > 1:
            found.append(f"core {number} is with {holders}")
        if core.owner != (holders[0] if holders else None):
            found.append(f"core {number} says {core.owner!r}, its lease {holders}")
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


def _lease(book: Book, lease: Lease) -> list[str]:
    found = []
    name = lease.lease
    if lease.cores & lease.reserved:
        found.append(f"lease {name!r} has programmed cores among the reserved")
    if (lease.own or lease.plan) and (not lease.admitted or lease.faulted):
        found.append(f"lease {name!r} has cores, though it is not admitted or faulted")
    if len(lease.plan) > lease.maximum:
        found.append(f"lease {name!r} shall have {len(lease.plan)} cores, at most {lease.maximum}")
    expected = {
        Phase.IDLE: {CoreState.ACTIVE},
        Phase.PROGRAMMING: {CoreState.PROGRAMMING},
        Phase.RUNNING: {CoreState.ACTIVE, CoreState.DRAINING},
    }[lease.phase]
    states = {book.cores[core].state for core in lease.cores}
    if not states <= expected:
        found.append(f"lease {name!r} is {lease.phase.value}, its cores are {sorted(s.value for s in states)}")
    if (lease.running is not None) != (lease.phase is Phase.RUNNING):
        found.append(f"lease {name!r} is {lease.phase.value} with job {lease.running}")
    if lease.phase is not Phase.IDLE and not lease.cores:
        found.append(f"lease {name!r} is {lease.phase.value} without cores")
    counts: dict[str, int] = {}
    for job in lease.queue:
        counts[job.model.name] = counts.get(job.model.name, 0) + 1
    if counts != {model: count for model, count in lease.backlog.items() if count}:
        found.append(f"lease {name!r} counts {lease.backlog}, waiting are {counts}")
    return found
