"""Workloads for the runner: who submits which jobs when, from a seed.

It must not know policies, nor what becomes of the jobs.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from corepool.errors import ConfigError
from corepool.hypervisor.events import AddTenant, Event, LoadModel, RequestLease, Sharing, SubmitJob, Switching
from corepool.hypervisor.model import Model
from corepool.hypervisor.numbers import finite, wholes
from corepool.hypervisor.settings import SECOND


@dataclass(frozen=True)
class Source:
    """A tenant with one model and one lease, both of its own name, and how its jobs arrive.

    ``rate`` jobs a second on average, Poisson; with ``burst`` above 1 they come in bursts of that many on average
    (geometric), at one time. ``deadline_ns`` is from submission on. ``maximum`` is its quota too; ``replicas`` as in
    RequestLease. Raises ConfigError for a rate or burst that cannot be.
    """

    tenant: str
    model: Model
    rate: float
    burst: float = 1.0
    deadline_ns: int | None = None
    minimum: int = 0
    maximum: int = 16
    priority: int = 0
    sharing: Sharing = Sharing.PRIVATE
    switching: Switching = Switching.TASK
    replicas: int | None = None

    def __post_init__(self) -> None:
        if not (finite(self.rate) and finite(self.burst)) or self.rate <= 0 or self.burst < 1:
            raise ConfigError(
                f"tenant {self.tenant!r}: {self.rate!r} jobs a second in bursts of {self.burst!r} cannot be"
            )
        if self.deadline_ns is not None and not wholes((self.deadline_ns,), 1):
            raise ConfigError(
                f"tenant {self.tenant!r}: a deadline is at least 1 ns after submission, not {self.deadline_ns!r}"
            )
        if not isinstance(self.model, Model):
            raise ConfigError(f"tenant {self.tenant!r} has a Model, not {self.model!r}")

    def opening(self) -> list[Event]:
        """What makes the tenant, its model and its lease, at time 0."""
        name, window = self.tenant, self.model.window_bytes
        lease = RequestLease(
            0, name, name, self.minimum, self.maximum, window, self.sharing, self.switching, replicas=self.replicas
        )
        return [AddTenant(0, name, self.maximum, self.priority), LoadModel(0, name, self.model), lease]

    def arrivals(self, random: Random) -> Iterator[int]:
        """Points in time, nanoseconds, without end."""
        at = 0.0
        while True:
            at += random.expovariate(self.rate / self.burst)
            yield int(at * SECOND)
            while random.random() >= 1 / self.burst:
                yield int(at * SECOND)


def workload(sources: Sequence[Source], jobs: int, seed: int) -> Iterator[Event]:
    """All tenants, then ``jobs`` jobs in order of time, numbered from 0."""
    for source in sources:
        yield from source.opening()

    def stream(index: int, source: Source) -> Iterator[tuple[int, int]]:
        return ((at, index) for at in source.arrivals(Random(f"{seed}/{index}/{source.tenant}")))

    merged = heapq.merge(*(stream(index, source) for index, source in enumerate(sources)))
    for number, (at, index) in enumerate(islice(merged, jobs)):
        source = sources[index]
        deadline = None if source.deadline_ns is None else at + source.deadline_ns
        yield SubmitJob(at, source.tenant, source.tenant, number, source.model.name, deadline)
