"""Plans: which leases are admitted, which cores each shall have, and when waiting ones may predictably begin.

It must not know actions; it reads the book, asks the policies, and writes only admissions and plans.
"""

from __future__ import annotations

from itertools import islice

from corepool.hypervisor.deadline import all_nimble, broken_promises
from corepool.hypervisor.demand import Demand, Work
from corepool.hypervisor.events import Sharing, Switching
from corepool.hypervisor.moves import complete_at, leaves_at
from corepool.hypervisor.placement import arrange
from corepool.hypervisor.policies import POLICIES, public
from corepool.hypervisor.records import Book, CoreState, Job, Lease, Phase
from corepool.hypervisor.settings import Settings

LOOKAHEAD = 64  # jobs of a lease that policies see one by one


def live(book: Book) -> list[Lease]:
    """Leases that cores are dealt to, in the order of their requests."""
    return [each for each in book.leases.values() if each.admitted and not each.faulted and not each.releasing]


def fits(book: Book, settings: Settings, minimum: int, window_bytes: int, but: str | None = None) -> bool:
    """True if the minimum and the window fit beside those of all admitted leases (``but`` one)."""
    others = [each for each in book.leases.values() if each.admitted and each.lease != but]
    cores = sum(each.minimum for each in others if not each.faulted) + minimum
    return cores <= len(book.usable) and sum(each.window_bytes for each in others) + window_bytes <= settings.bank_bytes


def admit(book: Book, settings: Settings) -> list[Lease]:
    """Admit waiting leases in their order as long as they fit; nobody overtakes. Returns the new ones."""
    admitted = []
    while book.queue:
        lease = book.leases[book.queue[0]]
        if not fits(book, settings, lease.minimum, lease.window_bytes):
            break
        lease.admitted = True
        admitted.append(lease)
        del book.queue[0]
    return admitted


def predicted_grant(book: Book, settings: Settings, lease: Lease) -> int | None:
    """When a lease predictably gets its cores, or None if leases before it named no term."""
    if lease.admitted:
        return complete_at(book, settings, lease)
    before = book.queue[: book.queue.index(lease.lease)]
    need = lease.minimum + sum(book.leases[name].minimum for name in before)
    room = len(book.usable)
    holders = [each for each in book.leases.values() if each.admitted and not each.faulted]
    room -= sum(each.minimum for each in holders)
    if need <= room:
        return book.now
    ending = sorted((each.ends_at, each.minimum) for each in holders if each.ends_at is not None)
    for ends_at, cores in ending:
        room += cores
        if need <= room:
            return max(ends_at, book.now)
    return None


def urgency(lease: Lease, priority: int, settings: Settings) -> int:
    """Smaller is more urgent: since when its first job waits; priority moves it ahead."""
    return lease.order if lease.head is None else lease.head.submitted - priority * settings.ageing_ns


def demand_of(book: Book, settings: Settings, lease: Lease, new: Job | None = None) -> Demand:
    """What a policy sees of a lease, with one more job if there is a ``new`` one."""
    head = lease.head or new
    waiting = lease.waiting + (new is not None)
    latency: tuple[int, ...] = head.model.latency_ns if head is not None else (1,) * settings.cores
    if not waiting and book.now < lease.lively_until:
        waiting = 1
        last = book.tenants[lease.tenant].models.get(lease.model or "")
        latency = latency if last is None else last.latency_ns
    switch = 0
    if head is not None:
        switch = settings.costs.switch_ns(head.model, max(len(lease.plan), 1))
        if any(lease.resident.get(bank) != head.model.name for bank in range(settings.banks)):
            switch += settings.costs.transfer_ns(head.model.weight_bytes)  # it may come into a new bank
    priority = book.tenants[lease.tenant].priority
    if new is None or lease.waiting:
        first = urgency(lease, priority, settings)
    else:
        first = new.submitted - priority * settings.ageing_ns
    asked = Demand(
        lease.lease, lease.tenant, lease.minimum, lease.maximum, len(lease.plan), waiting,
        first, latency, switch, keeps=not settings.lend,
    )  # fmt: skip
    return _timed(book, settings, lease, asked, new) if settings.policy == "private-deadline" else asked


def _timed(book: Book, settings: Settings, lease: Lease, demand: Demand, new: Job | None) -> Demand:
    """A demand with all that predictions of single jobs need."""
    busy_until, running, head = lease.busy_until, lease.running, lease.head or new
    if lease.plan != lease.cores:
        busy_until = max(busy_until, book.now) + demand.switch_ns
    layered = lease.switching is Switching.LAYER
    return demand._replace(
        busy_until=busy_until,
        jobs=_works(lease, new),
        leaves_at=leaves_at(book, settings, lease) + settings.costs.clear_ns if layered and running else None,
        own=len(lease.cores),
        ready=head is not None and lease.model == head.model.name,
        ends_at=None if lease.phase is Phase.IDLE else max(lease.busy_until, book.now),
        layers=head.model.layers if layered and head is not None else 0,
        running=None if running is None else Work(running.due, running.deadline is not None, running.model.latency_ns),
    )


def _works(lease: Lease, new: Job | None) -> tuple[Work, ...]:
    """The first jobs of a queue, and the new one at its place; what it skips beyond the lookahead is added to its
    time."""
    works = [_work(job) for job in islice(lease.queue, LOOKAHEAD)]
    if new is not None:
        place = sum(job.due <= new.due for job in lease.queue)
        tables = [
            new.model.latency_ns,
            *(job.model.latency_ns for job in islice(lease.queue, LOOKAHEAD, max(place, LOOKAHEAD))),
        ]
        summed = tuple(map(sum, zip(*tables, strict=True)))
        works.insert(place, Work(new.due, new.deadline is not None, summed))
    return tuple(works)


def _work(job: Job) -> Work:
    latency = job.model.latency_ns
    if job.next_layer:
        latency = tuple(job.model.rest_ns(n, job.next_layer) for n in range(1, len(latency) + 1))
    return Work(job.due, job.deadline is not None, latency)


def _deal(
    book: Book, settings: Settings, extra: tuple[Lease, Job] | None = None
) -> tuple[list[Demand], tuple[int, ...], int]:
    """Demands of private leases, what the policy gives them, and of how many cores; writes nothing."""
    leases = live(book)
    demands = [
        demand_of(book, settings, each, extra[1] if extra is not None and extra[0] is each else None)
        for each in leases
        if each.sharing is Sharing.PRIVATE
    ]
    cores = len(book.usable) - sum(public_shares(book).values())
    return demands, POLICIES[settings.policy].deal(demands, cores, book.now), cores


def public_shares(book: Book) -> dict[str, int]:
    """Cores of the public leases."""
    demands = [
        Demand(each.lease, each.tenant, each.minimum, each.maximum, len(each.own), each.waiting, each.order, ())
        for each in live(book)
        if each.sharing is Sharing.PUBLIC
    ]
    if not demands:
        return {}
    shares = public(demands, len(book.usable), book.now)
    return {demand.lease: share for demand, share in zip(demands, shares, strict=True)}


def replan(book: Book, settings: Settings) -> list[Lease]:
    """Deal all cores anew and write every lease's plan. Returns the leases whose plan changed."""
    leases = live(book)
    targets = public_shares(book)
    demands, shares, _ = _deal(book, settings)
    targets |= {demand.lease: share for demand, share in zip(demands, shares, strict=True)}
    book.unserved = any(demand.waiting and not share for demand, share in zip(demands, shares, strict=True))
    if all(targets[each.lease] == len(each.plan) and each.plan <= book.usable for each in leases):
        return []
    own = {each.lease: each.own for each in leases}
    ready = frozenset(i for i, core in enumerate(book.cores) if core.state is CoreState.FREE)
    plan = arrange(targets, own, book.usable, ready, settings.bank_of)
    changed = [each for each in leases if each.plan != plan[each.lease]]
    for each in changed:
        each.plan = plan[each.lease]
    return changed


def breaks_promises(book: Book, settings: Settings, lease: Lease, job: Job) -> bool:
    """True if by prediction this job would miss its deadline, or make an accepted one of any lease miss its own."""
    demands, shares, cores = _deal(book, settings, (lease, job))
    nimble = all_nimble(demands)
    after = broken_promises(demands, shares, cores, book.now, nimble)
    if not after:
        return False
    before = broken_promises(*_deal(book, settings), book.now, nimble)
    return any(count > before.get(name, 0) for name, count in after.items())


def predicted_start(book: Book, settings: Settings, lease: Lease, job: Job) -> int:
    """When a waiting job predictably begins, on the cores that its lease has or shall have."""
    cores = max(len(lease.plan), lease.minimum, 1)
    at = complete_at(book, settings, lease) if lease.phase is Phase.IDLE else max(book.now, lease.busy_until)
    models = book.tenants[lease.tenant].models
    at += sum(count * models[name].latency_ns[cores - 1] for name, count in lease.backlog.items() if count)
    for behind in reversed(lease.queue):
        at -= behind.model.latency_ns[cores - 1]
        if behind is job:
            break
    if lease.plan != lease.cores or lease.model != job.model.name:
        at += settings.costs.switch_ns(job.model, cores)
    return at
