"""Runs a hypervisor in virtual time: events in order of time, actions carried out by a back end, costs accounted.

It must not know policies or what a workload means; it decides nothing.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from corepool.errors import HypervisorError
from corepool.hypervisor import actions as ac
from corepool.hypervisor import events as ev
from corepool.hypervisor.backends import Backend, Faulty
from corepool.hypervisor.settings import Costs
from corepool.hypervisor.state import Hypervisor

Watcher = Callable[[ev.Event, list[ac.Action]], None]


@dataclass
class Spent:
    """What changes cost, nanoseconds in all: linking and transfers (also waiting for their turn), and clearing."""

    programs: int = 0
    stream_bytes: int = 0
    weight_bytes: int = 0
    move_bytes: int = 0
    link_ns: int = 0
    transfer_ns: int = 0
    queued_ns: int = 0
    clears: int = 0
    clear_ns: int = 0


@dataclass
class Record:
    """What became of the jobs, one entry each in the order in which they ended. Times in nanoseconds; ``lease`` indexes
    ``leases``.

    ``cores`` on which it ran when it ended; ``late``: it missed a deadline. ``refused`` holds requests and why they
    were refused.
    """

    leases: list[str] = field(default_factory=list)
    job: array[int] = field(default_factory=lambda: array("q"))
    lease: array[int] = field(default_factory=lambda: array("q"))
    submitted: array[int] = field(default_factory=lambda: array("q"))
    ended: array[int] = field(default_factory=lambda: array("q"))
    busy_ns: array[int] = field(default_factory=lambda: array("q"))
    cores: array[int] = field(default_factory=lambda: array("b"))
    late: array[int] = field(default_factory=lambda: array("b"))
    failed: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    refused: list[tuple[ev.Event, HypervisorError]] = field(default_factory=list)
    core_ns: int = 0  # cores x nanoseconds in which a job ran on them
    events: int = 0
    now: int = 0
    spent: Spent = field(default_factory=Spent)


@dataclass(slots=True)
class _Run:
    """A job on its cores."""

    start: ac.Start
    began: int
    cores: int
    alive: bool = True  # False once another event than its end was chosen for it


class Runner:
    """A hypervisor and a back end on one clock. The host links one model at a time, and transfers to the card take
    turns.

    Inputs and outputs of jobs are taken to travel while other jobs run, so they cost nothing here.
    """

    def __init__(self, hypervisor: Hypervisor, backend: Backend, watch: Watcher | None = None) -> None:
        self.hypervisor = hypervisor
        self.backend = backend
        self.record = Record()
        self._costs: Costs = hypervisor.settings.costs
        self._watch = watch
        self._due: list[tuple[int, int, ev.Event, _Run | None]] = []
        self._count = 0
        self._host_free = 0
        self._bus_free = 0
        self._runs: dict[str, _Run] = {}
        self._submitted: dict[int, int] = {}
        self._busy: dict[int, int] = {}
        self._cores: dict[int, int] = {}  # of jobs whose end is being told
        self._index: dict[str, int] = {}

    def run(self, workload: Iterable[ev.Event], until: int | None = None) -> Record:
        """Feed a workload (events in order of time) and run until nothing is under way, or to a point in time."""
        arrivals: Iterator[ev.Event] = iter(workload)
        arrival = next(arrivals, None)
        due = self._due
        while arrival is not None or due:
            if arrival is not None and (not due or arrival.at <= due[0][0]):
                event, arrival = arrival, next(arrivals, None)
            else:
                _, _, event, run = heapq.heappop(due)
                if run is not None and not run.alive:
                    continue
            if until is not None and event.at > until:
                break
            self._take(event)
        return self.record

    def add(self, event: ev.Event) -> None:
        """One more event, not before the present: for a watcher that answers what it sees."""
        self._later(event)

    def _take(self, event: ev.Event) -> None:
        """One event: to the hypervisor, and its actions to the back end."""
        record = self.record
        record.now = event.at
        record.events += 1
        if isinstance(event, ev.JobDone | ev.JobStopped):
            self._account(event)
        elif isinstance(event, ev.Faulted):
            self._runs.pop(event.lease, None)
        elif isinstance(event, ev.DeviceReset):  # nothing that is under way will be heard of again
            self._due.clear()
            self._runs.clear()
        try:
            actions = self.hypervisor.handle(event)
        except HypervisorError as error:
            record.refused.append((event, error))
            return
        if isinstance(event, ev.SubmitJob):
            self._submitted[event.job] = event.at
        for action in actions:
            carry_out = _CARRY_OUT.get(type(action))
            if carry_out is not None:
                carry_out(self, action)
        if self._watch is not None:
            self._watch(event, actions)

    def _later(self, event: ev.Event, run: _Run | None = None) -> None:
        self._count += 1
        heapq.heappush(self._due, (event.at, self._count, event, run))

    def _account(self, event: ev.JobDone | ev.JobStopped) -> None:
        run = self._runs.pop(event.lease)
        taken = event.at - run.began
        self._busy[event.job] = self._busy.get(event.job, 0) + taken
        self.record.core_ns += taken * run.cores
        if isinstance(event, ev.JobDone):
            self._cores[event.job] = run.cores

    def _clear(self, action: ac.Clear) -> None:
        self.backend.clear(action)
        self.record.spent.clears += 1
        self.record.spent.clear_ns += self._costs.clear_ns
        self._later(ev.Cleared(self.record.now + self._costs.clear_ns, action.epoch))

    def _program(self, action: ac.Program) -> None:
        self.backend.program(action)
        costs, spent, now = self._costs, self.record.spent, self.record.now
        size = action.stream_bytes + action.weight_bytes + action.move_bytes
        linked = max(now, self._host_free) + costs.relink_ns
        moving = costs.transfer_ns(size)
        done = max(linked, self._bus_free) + moving
        self._host_free, self._bus_free = linked, done
        spent.programs += 1
        spent.stream_bytes += action.stream_bytes
        spent.weight_bytes += action.weight_bytes
        spent.move_bytes += action.move_bytes
        spent.link_ns += costs.relink_ns
        spent.transfer_ns += moving
        spent.queued_ns += done - now - costs.relink_ns - moving
        self._later(ev.Programmed(done, action.lease, action.epoch))

    def _start(self, action: ac.Start) -> None:
        now = self.record.now
        run = _Run(action, now, len(self.backend.placed(action).cores))
        self._runs[action.lease] = run
        taken = self.backend.duration_ns(action)
        if isinstance(taken, Faulty):
            self._later(ev.Faulted(now + taken.after_ns, action.lease, action.epoch), run)
        else:
            self._later(ev.JobDone(now + taken, action.lease, action.epoch, action.job), run)

    def _stop(self, action: ac.StopAfterLayer) -> None:
        run = self._runs.get(action.lease)
        if run is None or run.start.job != action.job:
            return
        stop = self.backend.stop_ns(run.start, self.record.now - run.began)
        if stop is not None:
            after, layer = stop
            run.alive = False
            stopped = _Run(run.start, run.began, run.cores)
            self._runs[action.lease] = stopped
            self._later(ev.JobStopped(run.began + after, action.lease, action.epoch, action.job, layer), stopped)

    def _ended(self, action: ac.JobEnded) -> None:
        record = self.record
        submitted = self._submitted.pop(action.job, record.now)
        if action.outcome is not ac.Outcome.DONE:
            (record.failed if action.outcome is ac.Outcome.FAILED else record.cancelled).append(action.job)
            self._busy.pop(action.job, None)
            return
        index = self._index.get(action.lease)
        if index is None:
            index = self._index[action.lease] = len(record.leases)
            record.leases.append(action.lease)
        record.job.append(action.job)
        record.lease.append(index)
        record.submitted.append(submitted)
        record.ended.append(record.now)
        record.busy_ns.append(self._busy.pop(action.job, 0))
        record.cores.append(self._cores.pop(action.job, 0))
        record.late.append(action.late)


_CARRY_OUT: dict[type[ac.Action], Callable[[Runner, Any], None]] = {
    ac.Clear: Runner._clear,
    ac.Program: Runner._program,
    ac.Start: Runner._start,
    ac.StopAfterLayer: Runner._stop,
    ac.JobEnded: Runner._ended,
}
