"""Policies: how many cores each lease gets. Small pure functions behind one interface.

They must not know which cores, devices or events; they see demands and answer with numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple


class Work(NamedTuple):
    """A job that waits or runs: when it is due, and what it takes on 1, 2, .. cores; nanoseconds."""

    due: int
    promised: bool  # it has a deadline of its own
    latency_ns: tuple[int, ...]


class Demand(NamedTuple):
    """What a policy sees of a lease. Times in nanoseconds.

    ``held`` cores are its own now. ``waiting`` jobs are to be done, the running one included; ``urgency`` is smaller
    the longer the most urgent one waits. ``latency_ns`` and ``switch_ns`` are of the model that is next: one inference,
    and to bring it onto other cores. ``busy_until`` is when the running job ends. ``jobs`` come in the order in which
    they will run. One that ``keeps`` has its minimum without work, too. One that works and switches between layers can
    give cores up at ``leaves_at`` already.
    """

    lease: str
    tenant: str
    minimum: int
    maximum: int
    held: int
    waiting: int
    urgency: int
    latency_ns: tuple[int, ...]
    switch_ns: int = 0
    busy_until: int = 0
    jobs: tuple[Work, ...] = ()
    keeps: bool = False
    leaves_at: int | None = None


Shares = tuple[int, ...]
Deal = Callable[[Sequence[Demand], int, int], Shares]


class Policy(NamedTuple):
    """``deal`` gives each demand some of so many cores at a time in nanoseconds: never more than its maximum, nor in
    all more than there are. ``watches_jobs``: it is asked again whenever a job comes or goes, not only when a lease
    gets or loses its last."""

    deal: Deal
    watches_jobs: bool


def public(demands: Sequence[Demand], cores: int, now: int) -> Shares:
    """Fixed numbers: each lease gets all of its cores or none. Who holds all keeps them, even if others lose some by a
    failure; then who holds some; then the most urgent first."""
    shares = [0] * len(demands)
    order = sorted(
        range(len(demands)),
        key=lambda i: (demands[i].held < demands[i].minimum, demands[i].held == 0, demands[i].urgency, i),
    )
    for i in order:
        if demands[i].minimum > cores:
            break  # nobody overtakes: a large lease would wait for ever
        shares[i] = demands[i].minimum
        cores -= shares[i]
    return tuple(shares)


def _floor(demands: Sequence[Demand], cores: int) -> tuple[list[int], int]:
    """What is promised: its minimum to each lease with work, then one core to those without a minimum, the most urgent
    first; and what is left. Leases without work lend theirs, unless they keep it."""
    shares = [0] * len(demands)
    promised = (i for i in range(len(demands)) if demands[i].waiting or demands[i].keeps)
    order = sorted(promised, key=lambda i: (demands[i].urgency, i))
    for i in order:
        shares[i] = min(demands[i].minimum, cores)
        cores -= shares[i]
    for i in order:
        if not shares[i] and cores and demands[i].waiting:
            shares[i] = 1
            cores -= 1
    return shares, cores


def private_even(demands: Sequence[Demand], cores: int, now: int) -> Shares:
    """All cores shared out evenly among tenants with work. Nothing moves while nobody has work."""
    if not any(demand.waiting for demand in demands):
        return _as_it_is(demands, cores)
    shares, cores = _floor(demands, cores)
    return _evenly(demands, shares, cores)


def _evenly(demands: Sequence[Demand], shares: list[int], cores: int) -> Shares:
    """Hand out cores one by one to the tenant with work that has fewest."""
    sums: dict[str, int] = {}
    for demand, share in zip(demands, shares, strict=True):
        sums[demand.tenant] = sums.get(demand.tenant, 0) + share
    hungry = [i for i, demand in enumerate(demands) if demand.waiting and shares[i] < demand.maximum]
    while cores and hungry:
        # Equal tenants: who holds more already keeps the odd core, then the most urgent.
        i = min(hungry, key=lambda i: (sums[demands[i].tenant], shares[i], -demands[i].held, demands[i].urgency, i))
        shares[i] += 1
        sums[demands[i].tenant] += 1
        cores -= 1
        if shares[i] == demands[i].maximum:
            hungry.remove(i)
    return tuple(shares)


def _as_it_is(demands: Sequence[Demand], cores: int) -> Shares:
    """What leases hold, as far as their maxima and the cores allow; before that, what they keep in any case."""
    shares = []
    for demand in demands:
        shares.append(min(demand.minimum, cores) if demand.keeps else 0)
        cores -= shares[-1]
    for i, demand in enumerate(demands):
        more = max(min(demand.held, demand.maximum, shares[i] + cores) - shares[i], 0)
        shares[i] += more
        cores -= more
    return tuple(shares)


@lru_cache(maxsize=1 << 16)
def _by_gain(shares: tuple[int, ...], wants: tuple[tuple[int, tuple[int, ...]], ...], cores: int) -> tuple[int, ...]:
    """Hand out cores one step at a time where a core gains most. ``wants``: maximum (0: no work) and latencies."""
    dealt = list(shares)

    def best_step(i: int, limit: int) -> tuple[float, int]:
        """The largest gain for a core, and how many cores it takes: tables need not fall everywhere."""
        maximum, latency = wants[i]
        now, weight = latency[dealt[i] - 1], _weight(latency)
        top = min(maximum, len(latency), dealt[i] + limit)
        steps = [(weight * (now - latency[n - 1]) / (n - dealt[i]), n - dealt[i]) for n in range(dealt[i] + 1, top + 1)]
        return max(steps, key=lambda step: (step[0], -step[1]), default=(0.0, 0))

    steps = {i: best_step(i, cores) for i in range(len(wants)) if wants[i][0] and dealt[i]}
    while cores and steps:
        i = max(steps, key=lambda i: (steps[i][0], -i))
        gain, count = steps[i]
        if gain <= 0:
            break
        if count > cores:
            steps[i] = best_step(i, cores)
            continue
        dealt[i] += count
        cores -= count
        steps[i] = best_step(i, cores)
    return tuple(dealt)


def _weight(latency_ns: tuple[int, ...]) -> float:
    """What a nanosecond saved is worth to a model: one over the root of its latency on one core.

    A gain is then the geometric mean of the time saved and of the share of its latency that a model saves. By time
    alone large networks take nearly all cores and small ones, of which there are most, wait; by shares alone the
    queues of large networks grow long.
    """
    return 1.0 / math.sqrt(latency_ns[0])


def _most_gain(demands: Sequence[Demand], shares: Sequence[int], cores: int) -> Shares:
    wants = tuple((demand.maximum if demand.waiting else 0, demand.latency_ns) for demand in demands)
    return _by_gain(tuple(shares), wants, cores)


def _cost(demands: Sequence[Demand], shares: Sequence[int]) -> float:
    """What a deal leaves to be saved, the time of changes included: of little weight where many jobs follow."""
    total = 0.0
    for demand, share in zip(demands, shares, strict=True):
        if demand.waiting and share:
            changing = demand.switch_ns / demand.waiting if share != demand.held else 0.0
            total += _weight(demand.latency_ns) * (demand.latency_ns[share - 1] + changing)
    return total


def private_throughput(demands: Sequence[Demand], cores: int, now: int) -> Shares:
    """Cores where predicted latency gains most; a deal stays unless a change pays for itself."""
    if not any(demand.waiting for demand in demands):
        return _as_it_is(demands, cores)
    floor, left = _floor(demands, cores)
    dealt = _most_gain(demands, floor, left)
    stay = tuple(demand.held for demand in demands)
    fits = sum(stay) <= cores and all(floor[i] <= stay[i] <= demands[i].maximum for i in range(len(demands)))
    if fits and _cost(demands, stay) <= _cost(demands, dealt):
        return stay
    return dealt


def finishes(demand: Demand, share: int, now: int, ready: int = 0) -> list[int]:
    """When each of its jobs would end on so many cores; never on none.

    Cores beyond those that it holds are there at ``ready``; until then it goes on with what it holds.
    """
    if not share:
        return [1 << 62] * len(demand.jobs)
    at = max(now, demand.busy_until)
    changed = share == demand.held
    ends = []
    for work in demand.jobs:
        if not changed and (at >= ready or share < demand.held or not demand.held):
            at = (max(at, ready) if share > demand.held else at) + demand.switch_ns
            changed = True
        at += work.latency_ns[(share if changed else demand.held) - 1]
        ends.append(at)
    return ends


def in_time(demand: Demand, share: int, now: int) -> bool:
    """True if every job is done when it is due."""
    return all(end <= work.due for end, work in zip(finishes(demand, share, now), demand.jobs, strict=True))


def _leaves(demand: Demand) -> int:
    """When a lease can give cores up."""
    return demand.busy_until if demand.leaves_at is None else min(demand.busy_until, demand.leaves_at)


def private_deadline(demands: Sequence[Demand], cores: int, now: int) -> Shares:
    """Of two deals that by which fewer promises are predictably broken: as few cores as keep each deadline, or even
    shares. The first if they are equal."""
    if not any(demand.waiting for demand in demands):
        return _as_it_is(demands, cores)
    frugal = _economical(demands, cores, now)
    broken = sum(late_promises(demands, frugal, cores, now).values())
    if not broken:
        return frugal
    even = private_even(demands, cores, now)
    return even if sum(late_promises(demands, even, cores, now).values()) < broken else frugal


def _economical(demands: Sequence[Demand], cores: int, now: int) -> Shares:
    """Even shares as long as these predictably keep all deadlines; else, earliest due first, as few cores as keep
    each one's, and the rest evenly. While a job holds its cores to its end, a deal that keeps all deadlines stays: what
    was given away for a little speed would be missing when somebody else comes."""
    nimble = all(demand.leaves_at is not None or demand.busy_until <= now for demand in demands)
    if nimble:
        even = private_even(demands, cores, now)
        if all(in_time(demand, share, now) for demand, share in zip(demands, even, strict=True)):
            return even
    shares, left = _enough(demands, cores, now)
    if nimble:
        return _evenly(demands, shares, left)
    stay = [demand.held for demand in demands]
    within = all(need <= s <= demand.maximum for need, s, demand in zip(shares, stay, demands, strict=True))
    if within and sum(stay) <= cores:
        return tuple(stay)
    return _most_gain(demands, shares, left)


def _enough(demands: Sequence[Demand], cores: int, now: int) -> tuple[list[int], int]:
    """Earliest due first, as few cores as predictably keep its deadlines; and what is left."""
    shares, left = _floor(demands, cores)
    order = sorted(range(len(demands)), key=lambda i: (demands[i].urgency, i))
    for i in order:
        demand = demands[i]
        if not demand.jobs or not shares[i] or in_time(demand, shares[i], now):
            continue
        top = min(demand.maximum, shares[i] + left)
        counts = range(shares[i], top + 1)
        chosen = next((n for n in counts if in_time(demand, n, now)), None)
        if chosen is None:  # too late in any case: the earliest finish
            chosen = min(counts, key=lambda n: (finishes(demand, n, now)[-1], n))
        left -= chosen - shares[i]
        shares[i] = chosen
    return shares, left


def late_promises(demands: Sequence[Demand], shares: Sequence[int], cores: int, now: int) -> dict[str, int]:
    """By lease, how many jobs with a deadline of their own would miss it under a deal of ``cores`` cores."""
    free = cores - sum(demand.held for demand in demands)
    grown = sum(max(share - demand.held, 0) for demand, share in zip(demands, shares, strict=True))
    ready = now
    if grown > free:  # some cores come from leases that must end a job first
        pairs = zip(demands, shares, strict=True)
        ready = max([now, *(_leaves(demand) for demand, share in pairs if share < demand.held)])
    late = {}
    for demand, share in zip(demands, shares, strict=True):
        ends = finishes(demand, share, now, ready)
        missed = sum(w.promised and end > w.due for w, end in zip(demand.jobs, ends, strict=True))
        if missed:
            late[demand.lease] = missed
    return late


POLICIES = {
    "private-even": Policy(private_even, watches_jobs=False),
    "private-throughput": Policy(private_throughput, watches_jobs=True),
    "private-deadline": Policy(private_deadline, watches_jobs=True),
}
