"""What policies see of leases, and the plainest deals: what is promised, even shares, all as it is.

It must not know which cores, devices or events; it sees demands and answers with numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    Of what it does now: ``own`` cores are programmed, ``ready`` for the model that is next, busy to ``ends_at`` (None:
    idle) with the job that is ``running``, or with being programmed. One that switches between layers says how many
    ``layers`` its model has, else 0.
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
    own: int = 0
    ready: bool = False
    ends_at: int | None = None
    layers: int = 0
    running: Work | None = None


Shares = tuple[int, ...]


def floor(demands: Sequence[Demand], cores: int) -> tuple[list[int], int]:
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
        return as_it_is(demands, cores)
    shares, cores = floor(demands, cores)
    return evenly(demands, shares, cores)


def evenly(demands: Sequence[Demand], shares: list[int], cores: int) -> Shares:
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


def as_it_is(demands: Sequence[Demand], cores: int) -> Shares:
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
