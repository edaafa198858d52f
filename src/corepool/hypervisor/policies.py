"""Policies: how many cores each lease gets. Small pure functions behind one interface.

They must not know which cores, devices or events; they see demands and answer with numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from corepool.hypervisor.deadline import private_deadline
from corepool.hypervisor.demand import Demand, Shares, as_it_is, floor, private_even
from corepool.hypervisor.division import depth

Deal = Callable[[Sequence[Demand], int, int], Shares]

COUNTED = 64  # jobs of a lease, at most: who floods the card does not get all of it
MARGIN = 0.05  # another deal has to be better by so much: queues change before less than that is earned


class Policy(NamedTuple):
    """``deal`` gives each demand some of so many cores at a time in nanoseconds: never more than its maximum, nor in
    all more than there are. ``watches_jobs``: it is asked again whenever a job comes or goes, not only when a lease
    gets or loses its last. ``divides_promised``: a lease's cores may be divided among replicas while it has jobs with
    deadlines, too; not so where these were accepted by a forecast of one inference after the other."""

    deal: Deal
    watches_jobs: bool
    divides_promised: bool = True


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


class Want(NamedTuple):
    """What a lease gains by: up to ``maximum`` cores, for ``jobs`` that wait or run (0: it has no work)."""

    maximum: int
    jobs: int
    latency_ns: tuple[int, ...]


@lru_cache(maxsize=1 << 16)
def _by_gain(shares: tuple[int, ...], wants: tuple[Want, ...], cores: int) -> tuple[int, ...]:
    """Hand out cores one step at a time where a core gains most."""
    dealt = list(shares)

    def best_step(i: int, limit: int) -> tuple[float, int]:
        """The largest gain for a core, and how many cores it takes: tables need not fall everywhere."""
        maximum, jobs, latency = wants[i]
        now, weight = latency[dealt[i] - 1], _weight(jobs, latency)
        top = min(maximum, len(latency), dealt[i] + limit)
        steps = [(weight * (now - latency[n - 1]) / (n - dealt[i]), n - dealt[i]) for n in range(dealt[i] + 1, top + 1)]
        return max(steps, key=lambda step: (step[0], -step[1]), default=(0.0, 0))

    steps = {i: best_step(i, cores) for i in range(len(wants)) if wants[i].jobs and dealt[i]}
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


def _jobs(demand: Demand) -> int:
    """How many jobs of a lease count, in powers of two: deals change with its queue, not with each job."""
    return min(depth(demand.waiting), COUNTED) if demand.waiting else 0


def _weight(jobs: int, latency_ns: tuple[int, ...]) -> float:
    """What a nanosecond saved of each inference is worth to a lease: its jobs over the root of the model's latency on
    one core.

    Every job of a queue has that gain, whether its lease does one at a time, faster, or several side by side. For a
    single job the gain is then the geometric mean of the time saved and of the share of its latency that a model
    saves. By time alone large networks take nearly all cores and small ones, of which there are most, wait; by shares
    alone the queues of large networks grow long.
    """
    return jobs / math.sqrt(latency_ns[0])


def _most_gain(demands: Sequence[Demand], shares: Sequence[int], cores: int) -> Shares:
    wants = [Want(demand.maximum, _jobs(demand), demand.latency_ns) for demand in demands]
    return _by_gain(tuple(shares), tuple(wants), cores)


def _cost(demands: Sequence[Demand], shares: Sequence[int]) -> float:
    """What a deal leaves to be saved, the time of changes included: of little weight where many jobs follow."""
    total = 0.0
    for demand, share in zip(demands, shares, strict=True):
        if demand.waiting and share:
            changing = demand.switch_ns / demand.waiting if share != demand.held else 0.0
            weight = _weight(_jobs(demand), demand.latency_ns)
            total += weight * (demand.latency_ns[share - 1] + changing)
    return total


def private_throughput(demands: Sequence[Demand], cores: int, now: int) -> Shares:
    """Cores where predicted latency gains most, over all jobs that wait; a deal stays unless a change pays for itself,
    and more than a prediction can tell."""
    if not any(demand.waiting for demand in demands):
        return as_it_is(demands, cores)
    least, left = floor(demands, cores)
    dealt = _most_gain(demands, least, left)
    stay = tuple(demand.held for demand in demands)
    fits = sum(stay) <= cores and all(least[i] <= stay[i] <= demands[i].maximum for i in range(len(demands)))
    if fits and _cost(demands, stay) <= (1 + MARGIN) * _cost(demands, dealt):
        return stay
    return dealt


POLICIES = {
    "private-even": Policy(private_even, watches_jobs=False),
    "private-throughput": Policy(private_throughput, watches_jobs=True),
    "private-deadline": Policy(private_deadline, watches_jobs=True, divides_promised=False),
}
