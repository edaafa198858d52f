"""What becomes of the jobs of all leases under a deal: who gives cores up when, who begins on them, what is late.

It must not know policies but the one by which it takes cores to be dealt anew later; it sees demands, and counts cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush

from corepool.hypervisor.demand import Demand, private_even

NEVER = 1 << 62


def forecast(demands: Sequence[Demand], shares: Sequence[int], cores: int, now: int) -> tuple[int, ...]:
    """How many jobs with a deadline of their own each lease would end late, if nothing new comes.

    Leases move to their ``shares`` as the hypervisor moves them: at the end of a job, or of a layer; who has some of
    its cores begins on these if that ends earlier. When a lease has done all its jobs, cores are dealt evenly anew.
    """
    late = [0] * len(demands)
    if any(work.promised for demand in demands for work in demand.jobs):
        busy = [i for i, demand in enumerate(demands) if demand.waiting or demand.own or demand.keeps]
        found = _promises(tuple(demands[i] for i in busy), tuple(shares[i] for i in busy), cores, now)
        for i, count in zip(busy, found, strict=True):
            late[i] = count
    return tuple(late)


@lru_cache(maxsize=8)  # a job is asked about, accepted and dealt for in one moment
def _promises(demands: tuple[Demand, ...], shares: tuple[int, ...], cores: int, now: int) -> tuple[int, ...]:
    return tuple(_Forecast(demands, shares, cores, now).late_promises())


class _Forecast:
    """Lists have an entry for each lease. ``used`` cores are programmed, ``extra`` ones wait to be; ``end`` is when it
    ends what it does (None: idle), ``stop`` when it was asked to stop before."""

    def __init__(self, demands: Sequence[Demand], shares: Sequence[int], cores: int, now: int) -> None:
        self.demands, self.shares, self.cores, self.now = demands, shares, cores, now
        count = len(demands)
        self.all = range(count)
        self.queue = [list(demand.jobs) for demand in demands]
        self.place = [0] * count  # in the queue
        self.used = [demand.own for demand in demands]
        self.extra = [0] * count
        self.fresh = [not demand.ready for demand in demands]  # to be programmed before its next job
        self.running = [demand.running for demand in demands]
        self.end = [demand.ends_at for demand in demands]
        self.stop: list[int | None] = [None] * count
        self.late = [0] * count
        self.free = cores - sum(self.used)
        self.due = [(end, i) for i, end in enumerate(self.end) if end is not None]
        heapify(self.due)

    def late_promises(self) -> list[int]:
        self._settle()
        while self.due:
            at, i = heappop(self.due)
            if at != self.end[i] and at != self.stop[i]:
                continue  # it was stopped before
            self.now = at
            self._ended(i)
            self._settle()
        for i in self.all:  # what never begins
            self.late[i] += sum(work.promised for work in self.queue[i][self.place[i] :])
        return self.late

    def _ended(self, i: int) -> None:
        """A lease is idle: its job is done, or was stopped between two layers, or it is programmed."""
        end, work = self.end[i], self.running[i]
        assert end is not None
        if work is not None and end > self.now:
            whole = work.latency_ns[self.used[i] - 1]
            rest = tuple(max(t * (end - self.now) // whole, 1) for t in work.latency_ns)
            self.queue[i][: self.place[i]] = [work._replace(latency_ns=rest)]
            self.place[i] = 0
        elif work is not None and work.promised and self.now > work.due:
            self.late[i] += 1
        self.running[i] = self.end[i] = self.stop[i] = None
        if self.place[i] >= len(self.queue[i]):
            self._deal()

    def _deal(self) -> None:
        """Somebody has no more work: even shares for the others."""
        left = [
            demand._replace(
                waiting=len(self.queue[i]) - self.place[i] + (self.end[i] is not None), held=self.shares[i]
            )
            for i, demand in enumerate(self.demands)
        ]  # fmt: skip
        self.shares = private_even(left, self.cores, self.now)

    def _settle(self) -> None:
        """Cores go to those who shall have them, and who is idle begins."""
        for i in self.all:
            self._give_up(i)
        if self.free:
            short = [i for i in self.all if self.used[i] + self.extra[i] < self.shares[i]]
            for i in sorted(short, key=lambda i: -self.shares[i]):
                taken = min(self.shares[i] - self.used[i] - self.extra[i], self.free)
                self.extra[i] += taken
                self.free -= taken
        for i in self.all:
            if self.end[i] is None:
                self._begin(i)
            elif self.extra[i]:
                self._stop_to_grow(i)

    def _give_up(self, i: int) -> None:
        over = self.used[i] + self.extra[i] - self.shares[i]
        if over <= 0:
            return
        unused = min(over, self.extra[i])
        self.extra[i] -= unused
        self.free += unused
        over -= unused
        if over and self.end[i] is None:
            self.used[i] -= over
            self.free += over
            self.fresh[i] = True
        elif over:
            self._ask_to_stop(i)

    def _ask_to_stop(self, i: int) -> None:
        """Where it switches between layers: at the end of one."""
        work, end, layers = self.running[i], self.end[i], self.demands[i].layers
        if layers and work is not None and end is not None and self.stop[i] is None:
            self.stop[i] = at = min(end, self.now + work.latency_ns[self.used[i] - 1] // layers)
            heappush(self.due, (at, i))

    def _stop_to_grow(self, i: int) -> None:
        end = self.end[i]
        complete = self.used[i] + self.extra[i] == self.shares[i]
        if complete and end is not None and end - self.now > 2 * self.demands[i].switch_ns:
            self._ask_to_stop(i)

    def _begin(self, i: int) -> None:
        """The next job, if there are cores for it and waiting for more would not end it earlier."""
        here, share, demand = self.used[i] + self.extra[i], self.shares[i], self.demands[i]
        if not here or self.place[i] >= len(self.queue[i]):
            return
        work = self.queue[i][self.place[i]]
        changing = demand.switch_ns if self.fresh[i] or self.extra[i] else 0
        end = self.now + changing + work.latency_ns[here - 1]
        if here < share and end > self._complete_at(share - here) + demand.switch_ns + work.latency_ns[share - 1]:
            return
        self.used[i], self.extra[i], self.fresh[i] = here, 0, False
        self.place[i] += 1
        self.running[i], self.end[i] = work, end
        heappush(self.due, (end, i))

    def _complete_at(self, missing: int) -> int:
        """When so many more cores have been given up."""
        coming = []
        for i in self.all:
            end, stop = self.end[i], self.stop[i]
            if end is not None and self.used[i] > self.shares[i]:
                coming.append((end if stop is None else stop, self.used[i] - self.shares[i]))
        for at, cores in sorted(coming):
            missing -= cores
            if missing <= 0:
                return at
        return NEVER
