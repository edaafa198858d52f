"""Inferences on their way: a ticket for each, who is next, how many a tenant may have, and what became of them.

It must not know how cores are dealt or how anything is made durable.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, perf_counter_ns

from corepool.errors import CorepoolError, FaultError, TooManyRequestsError, UnavailableError
from corepool.hypervisor import actions as ac
from corepool.server.api import Inferred, InferRequest
from corepool.server.engine.catalog import Loaded

DEFAULT_LEVEL = 100  # of a request without a priority: room before it and behind it
SMOOTHING = 0.1  # how much the latest job counts in the average that predictions use


@dataclass(slots=True, eq=False)
class Ticket:
    """One inference. ``level``: smaller goes first. ``slot`` is its number in the hypervisor; tickets of one lease and
    model may swap theirs. ``loaded`` is None until the package is open."""

    tenant: str
    lease: str
    request: InferRequest
    version: str
    loaded: Loaded | None
    level: int
    submitted_ns: int
    future: Future[Inferred] = field(default_factory=Future)
    number: int = 0
    slot: int = -1
    started: bool = False
    over: bool = False

    @property
    def queue(self) -> tuple[str, str]:
        """Where it waits: its lease, and its model's key."""
        return self.lease, "" if self.loaded is None else self.loaded.key

    def __lt__(self, other: Ticket) -> bool:
        return (self.level, self.number) < (other.level, other.number)


@dataclass(slots=True)
class Count:
    """Of one tenant: inferences under way, and how long one takes on average (nanoseconds)."""

    under_way: int = 0
    average_ns: float = 1e6


class Jobs:
    """All tickets. ``limit``: by tenant, how many inferences may be under way at a time."""

    def __init__(self, limit: Callable[[str], int]) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._slots: dict[int, Ticket] = {}
        self._waiting: dict[tuple[str, str], list[Ticket]] = {}  # lease and model: a heap
        self._counts: dict[str, Count] = {}
        self._number = 0
        self._idle = threading.Condition(self._lock)

    def admit(self, ticket: Ticket) -> None:
        """Count a new ticket. Raises TooManyRequestsError if its tenant has too many under way."""
        with self._lock:
            count = self._counts.setdefault(ticket.tenant, Count())
            limit = self._limit(ticket.tenant)
            if count.under_way >= limit:
                wait = min(max(count.average_ns * count.under_way / 1e9, 0.01), 60.0)
                raise TooManyRequestsError(
                    f"{count.under_way} inferences are under way, {limit} is the limit: wait for some to end", wait
                )
            count.under_way += 1
            self._number += 1
            ticket.number = ticket.slot = self._number

    def enter(self, ticket: Ticket) -> None:
        """From now on the ticket may be chosen; call before the hypervisor hears of its slot."""
        with self._lock:
            self._slots[ticket.slot] = ticket
            heapq.heappush(self._waiting.setdefault(ticket.queue, []), ticket)

    def choose(self, start: ac.Start) -> Ticket | None:
        """The ticket that runs in a slot: of those that wait for this lease and model the first by level and number.

        None if it is over already.
        """
        with self._lock:
            ticket = self._slots.get(start.job)
            if ticket is None or ticket.started:
                return ticket
            heap = self._waiting.get(ticket.queue, [])
            while heap and (heap[0].over or heap[0].started):
                heapq.heappop(heap)
            best = heapq.heappop(heap) if heap else ticket
            if not heap:
                self._waiting.pop(ticket.queue, None)
            if best is not ticket:
                best.slot, ticket.slot = ticket.slot, best.slot
                self._slots[best.slot], self._slots[ticket.slot] = best, ticket
            best.started = True
            return best

    def ended(self, action: ac.JobEnded, why: str) -> Callable[[], None] | None:
        """A slot is over. Returns what answers it if it did not run or failed; what ran is answered by who ran it."""
        with self._lock:
            ticket = self._slots.pop(action.job, None)
            if ticket is None:
                return None
            self._forget(ticket)
        error: CorepoolError
        if action.outcome is ac.Outcome.DONE:
            return None
        if action.outcome is ac.Outcome.CANCELLED:
            error = UnavailableError("the lease was released before the inference ran: send it again")
        else:
            error = FaultError(why or "the lease was stopped by a fault: create it again")
        return partial(self.refuse, ticket, error)

    def drop(self, ticket: Ticket) -> None:
        """Forget a ticket that the hypervisor never heard of."""
        with self._lock:
            self._slots.pop(ticket.slot, None)
            self._forget(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Take back what ``enter`` did; the ticket still counts as under way."""
        with self._lock:
            self._slots.pop(ticket.slot, None)
            self._unqueue(ticket)

    def _unqueue(self, ticket: Ticket) -> None:
        waiting = self._waiting.get(ticket.queue)
        if not ticket.started and waiting is not None and ticket in waiting:
            waiting.remove(ticket)
            heapq.heapify(waiting)
        if not waiting:
            self._waiting.pop(ticket.queue, None)

    def _forget(self, ticket: Ticket) -> None:
        if ticket.over:
            return
        ticket.over = True
        self._unqueue(ticket)
        count = self._counts[ticket.tenant]
        count.under_way -= 1
        if ticket.started:
            spent = perf_counter_ns() - ticket.submitted_ns
            count.average_ns += SMOOTHING * (spent / max(count.under_way + 1, 1) - count.average_ns)
        self._idle.notify_all()

    def refuse(self, ticket: Ticket, error: CorepoolError) -> None:
        """Answer with an error, unless there is an answer or its future was cancelled."""
        with suppress(InvalidStateError):
            ticket.future.set_exception(error)

    def under_way(self, tenant: str | None = None) -> int:
        """Inferences that are not over, of one tenant or of all."""
        with self._lock:
            chosen = self._counts.values() if tenant is None else [self._counts.get(tenant, Count())]
            return sum(count.under_way for count in chosen)

    def using(self, key: str) -> int:
        """Inferences under way with a model."""
        with self._lock:
            return sum(ticket.queue[1] == key for ticket in self._slots.values())

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a condition holds; it is looked at whenever an inference is over, without the lock."""
        limit = monotonic() + timeout_s
        while not condition():
            with self._idle:
                if monotonic() >= limit:
                    return False
                self._idle.wait(0.05)
        return True

    def abandon(self) -> None:
        """Answer everything that is left: the engine has stopped."""
        with self._lock:
            left = list(self._slots.values())
            self._slots.clear()
            self._waiting.clear()
        for ticket in left:
            self.refuse(ticket, UnavailableError("the server has stopped: send the inference again"))

    def forget_tenant(self, tenant: str) -> None:
        with self._lock:
            if tenant in self._counts and not self._counts[tenant].under_way:
                del self._counts[tenant]
