"""Plans: which leases are admitted, which cores each shall have, and when waiting ones may predictably begin.

It must not know actions; it reads the book, asks the policies, and writes only admissions, plans and new replicas.
"""

from __future__ import annotations

from itertools import islice

from corepool.hypervisor.deadline import all_nimble, broken_promises
from corepool.hypervisor.demand import Demand, Work
from corepool.hypervisor.division import Change, divide, gains
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
    """True if the minimum and the window, one for each replica, fit beside those of all admitted leases (``but`` this
    one, if it is)."""
    others = [each for each in book.leases.values() if each.admitted and each.lease != but]
    cores = sum(each.minimum for each in others if not each.faulted) + minimum
    windows = sum(each.window_bytes * len(each.replicas) for each in others)
    windows += window_bytes * (1 if but is None else len(book.leases[but].replicas))
    return cores <= len(book.usable) and windows <= settings.bank_bytes


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
        return max(complete_at(book, settings, each) for each in lease.replicas)
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
    waiting, held = lease.waiting + (new is not None), lease.planned
    latency: tuple[int, ...] = head.model.latency_ns if head is not None else (1,) * settings.cores
    if not waiting and book.now < lease.lively_until:
        waiting = 1
        last = book.tenants[lease.tenant].models.get(lease.model or "")
        latency = latency if last is None else last.latency_ns
    switch = 0
    if head is not None:
        switch = settings.costs.switch_ns(head.model, max(held, 1))
        there = list(lease.replicas[0].resident.values()).count(head.model.name)
        if there < settings.banks:
            switch += settings.costs.transfer_ns(head.model.weight_bytes)  # it may come into a new bank
    priority = book.tenants[lease.tenant].priority
    if new is None or lease.waiting:
        first = urgency(lease, priority, settings)
    else:
        first = new.submitted - priority * settings.ageing_ns
    asked = Demand(
        lease.lease, lease.tenant, lease.minimum, lease.maximum, held, waiting,
        first, latency, switch, keeps=not settings.lend,
    )  # fmt: skip
    return _timed(book, settings, lease, asked, new) if settings.policy == "private-deadline" else asked


def _timed(book: Book, settings: Settings, lease: Lease, demand: Demand, new: Job | None) -> Demand:
    """A demand with all that predictions of single jobs need."""
    busy_until, head = lease.busy_until, lease.head or new
    if len(lease.replicas) > 1 or lease.plan != lease.cores:
        busy_until = max(busy_until, book.now) + demand.switch_ns
    layered = lease.switching is Switching.LAYER
    runs = [each for each in lease.replicas if each.running is not None]
    last = max(runs, key=lambda each: each.busy_until, default=None)  # who has promises has one only
    running = None if last is None else last.running
    leaves = max((leaves_at(book, each) for each in runs), default=0) + settings.costs.clear_ns
    return demand._replace(
        busy_until=busy_until,
        jobs=_works(lease, new),
        leaves_at=leaves if layered and running else None,
        own=len(lease.cores),
        ready=head is not None and len(lease.replicas) == 1 and lease.model == head.model.name,
        ends_at=None if lease.idle else max(lease.busy_until, book.now),
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
    """Deal all cores anew, divide each lease's among its replicas, and write every plan. Returns the leases for which
    something changed."""
    leases = live(book)
    targets = public_shares(book)
    demands, shares, _ = _deal(book, settings)
    targets |= {demand.lease: share for demand, share in zip(demands, shares, strict=True)}
    book.unserved = any(demand.waiting and not share for demand, share in zip(demands, shares, strict=True))
    sizes = _divided(book, settings, leases, targets)
    for each in leases:
        if not _stays(book, each, sizes[each.lease] if each.lease in sizes else [targets[each.lease]]):
            return _place(book, settings, leases, targets, sizes)
    return []


def _stays(book: Book, lease: Lease, sizes: list[int]) -> bool:
    """True if every replica has as many cores as it shall have, and can keep them."""
    if len(sizes) != len(lease.replicas):
        return False
    for replica, size in zip(lease.replicas, sizes, strict=True):
        if size != len(replica.plan) or not replica.plan <= book.usable:
            return False
    return True


def _divided(book: Book, settings: Settings, leases: list[Lease], targets: dict[str, int]) -> dict[str, list[int]]:
    """The sizes of the replicas of leases that have, or may have, several; those beyond the replicas that there are
    have to be made.

    Each needs a window of its own. What the first lease in the queue asks for is left free for it.
    """
    sizes: dict[str, list[int]] = {}
    free: int | None = None
    for lease in leases:
        cores = targets[lease.lease]
        if len(lease.replicas) == 1 and (lease.most < 2 or cores < 2 or not divisible(settings, lease, cores)):
            continue
        if free is None:
            free = _free_bytes(book, settings)
        there = len(lease.replicas)
        room = there + free // lease.window_bytes if free >= 0 else 1
        wanted = _division(settings, lease, cores, min(lease.most, room))
        sizes[lease.lease] = _matched(lease, wanted)
        free -= lease.window_bytes * (len(sizes[lease.lease]) - there)
    return sizes


def _free_bytes(book: Book, settings: Settings) -> int:
    """Bytes of each bank that nobody has or is next to get."""
    held = sum(each.window_bytes * len(each.replicas) for each in book.leases.values() if each.admitted)
    return settings.bank_bytes - held - (book.leases[book.queue[0]].window_bytes if book.queue else 0)


def divisible(settings: Settings, lease: Lease, cores: int) -> bool:
    """True if a queue like this one, or a deeper one, could be served better by several replicas on so many cores."""
    head = lease.head
    if head is None or len(lease.queue) + len(lease.running) < 2:
        return False
    table = head.model.latency_ns
    if lease.judged[0] is not table or lease.judged[1] != cores:  # asked at almost every event, with the same answer
        lease.judged = table, cores, gains(table, cores, settings.cores_per_bank)
    return lease.judged[2]


def _division(settings: Settings, lease: Lease, cores: int, most: int) -> tuple[int, ...]:
    """Sizes of a lease's replicas, largest first, for the queue that it has."""
    head = lease.head
    if most < 2 or cores < 2:
        return (cores,)
    now = tuple(sorted((len(each.plan) for each in lease.replicas if each.plan), reverse=True))
    if head is None:  # nothing moves without work
        return now if sum(now) == cores and len(now) <= most else (cores,)
    if lease.promised and lease.sharing is Sharing.PRIVATE and not POLICIES[settings.policy].divides_promised:
        return (cores,)
    if not any(each.cores for each in lease.replicas):  # nothing is programmed yet: any change is free
        now = ()
    costs, per_bank = settings.costs, settings.cores_per_bank
    part_ns = costs.switch_ns(head.model, min(cores, per_bank))
    change = Change(part_ns, costs.transfer_ns(head.model.weight_bytes))
    return divide(head.model.latency_ns, cores, per_bank, most, lease.waiting, now, change)


def _matched(lease: Lease, wanted: tuple[int, ...]) -> list[int]:
    """Sizes in the order of a lease's replicas: who has as many as are wanted keeps them, then come larger ones."""
    replicas, left = lease.replicas, [size for size in wanted if size]
    sizes = [0] * len(replicas)
    for place, replica in enumerate(replicas):
        if len(replica.plan) in left:
            sizes[place] = len(replica.plan)
            left.remove(sizes[place])
    for place in sorted(range(len(replicas)), key=lambda place: -len(replicas[place].plan)):
        if left and not sizes[place]:
            sizes[place] = left.pop(0)
    return sizes + left


def _place(
    book: Book, settings: Settings, leases: list[Lease], targets: dict[str, int], sizes: dict[str, list[int]]
) -> list[Lease]:
    """Choose everybody's cores, and of these each replica's; make replicas that are missing. Returns the leases that
    changed."""
    ready = frozenset(i for i, core in enumerate(book.cores) if core.state is CoreState.FREE)
    cores = arrange(targets, {each.lease: each.own for each in leases}, book.usable, ready, settings.bank_of)
    changed = []
    for lease in leases:
        if lease.lease not in sizes:
            plan = {lease.lease: cores[lease.lease]}
        else:
            for _ in sizes[lease.lease][len(lease.replicas) :]:
                book.another(lease)
            own = {each.name: each.own for each in lease.replicas}
            counts = dict(zip(own, sizes[lease.lease], strict=True))
            plan = arrange(counts, own, cores[lease.lease], ready, settings.bank_of)
        if any(each.plan != plan[each.name] for each in lease.replicas):
            changed.append(lease)
            for each in lease.replicas:
                each.plan = plan[each.name]
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
    first = lease.first
    ready = first.phase is Phase.IDLE and first.cores and first.plan == first.cores and first.model == job.model.name
    if ready and lease.alone and len(lease.queue) == 1:  # on a card that is not busy this is what mostly happens
        return book.now
    replicas = lease.replicas if lease.alone else [each for each in lease.replicas if each.plan] or [lease.first]
    cores = max(lease.planned, lease.minimum, 1) // len(replicas) or 1
    at = min(
        complete_at(book, settings, each) if each.phase is Phase.IDLE else max(book.now, each.busy_until)
        for each in replicas
    )
    models = book.tenants[lease.tenant].models
    before = sum(count * models[name].latency_ns[cores - 1] for name, count in lease.backlog.items() if count)
    for behind in reversed(lease.queue):
        before -= behind.model.latency_ns[cores - 1]
        if behind is job:
            break
    at += before // len(replicas)
    if not lease.settled or lease.model != job.model.name:
        at += settings.costs.switch_ns(job.model, cores)
    return at
