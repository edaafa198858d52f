"""The policy of deadlines: which promises a deal predictably breaks, and of two deals that which breaks fewer.

It must not know which cores, devices or events; it sees demands and answers with numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from corepool.hypervisor.demand import Demand, Shares, as_it_is, evenly, floor, private_even
from corepool.hypervisor.forecast import forecast


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
    shares. If they are equal, the frugal one where cores can be had back soon; else the even one, since what one
    deadline is packed into the next job lacks."""
    if not any(demand.waiting for demand in demands):
        return as_it_is(demands, cores)
    nimble = all_nimble(demands)
    deals = (_economical, private_even) if nimble else (private_even, _economical)
    first = deals[0](demands, cores, now)
    broken = sum(broken_promises(demands, first, cores, now, nimble).values())
    if not broken:
        return first
    second = deals[1](demands, cores, now)
    return second if sum(broken_promises(demands, second, cores, now, nimble).values()) < broken else first


def all_nimble(demands: Sequence[Demand]) -> bool:
    """True if everybody who has work gives cores up at the end of a layer."""
    return all(demand.layers or not demand.waiting for demand in demands)


def broken_promises(
    demands: Sequence[Demand], shares: Sequence[int], cores: int, now: int, nimble: bool
) -> dict[str, int]:
    """By lease, how many jobs with a deadline of their own would miss it under a deal of ``cores`` cores.

    ``nimble``: cores change hands at once, so each lease is judged by its share alone. Else it matters who gives cores
    up when, and what becomes of them: that is forecast.
    """
    if nimble:
        return late_promises(demands, shares, cores, now)
    late = forecast(demands, shares, cores, now)
    return {demand.lease: count for demand, count in zip(demands, late, strict=True) if count}


def _economical(demands: Sequence[Demand], cores: int, now: int) -> Shares:
    """Even shares as long as these predictably keep all deadlines; else, earliest due first, as few cores as keep
    each one's, and the rest evenly."""
    even = private_even(demands, cores, now)
    if all(in_time(demand, share, now) for demand, share in zip(demands, even, strict=True)):
        return even
    shares, left = _enough(demands, cores, now)
    return evenly(demands, shares, left)


def _enough(demands: Sequence[Demand], cores: int, now: int) -> tuple[list[int], int]:
    """Earliest due first, as few cores as predictably keep its deadlines; and what is left."""
    shares, left = floor(demands, cores)
    order = sorted(range(len(demands)), key=lambda i: (_first_due(demands[i]), i))
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


def _first_due(demand: Demand) -> int:
    """When the first of its jobs is due, the one that runs included."""
    running = () if demand.running is None else (demand.running.due,)
    return min([*running, *(work.due for work in demand.jobs[:1])], default=0)


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
