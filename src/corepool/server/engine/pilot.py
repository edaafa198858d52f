"""Flies the card: hands events to the hypervisor, has what follows made durable, and carries it out on threads.

It must not know requests, users or protocols; it decides nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter_ns
from typing import Protocol

from corepool.errors import CorepoolError, DeviceError, HypervisorError, UnavailableError
from corepool.hypervisor import actions as ac
from corepool.hypervisor import events as ev
from corepool.hypervisor.checks import violations
from corepool.hypervisor.records import CoreState, Lease
from corepool.hypervisor.settings import Settings
from corepool.hypervisor.state import Hypervisor
from corepool.server.engine.arrows import ACTS, Arrow, Standing, Step, Watch, standing_of
from corepool.server.engine.card import Card, Placed, Stopped
from corepool.server.engine.clock import LivingClock
from corepool.server.engine.journal import Journal
from corepool.server.engine.timer import Timer

Make = Callable[[int], ev.Event]
Soon = Callable[[Callable[[], None]], object]

CROWD = 2  # a lease with so many jobs behind the one that runs is busy: its threads step back behind those of others
NICENESS = 5  # about a third of a processor's time beside a thread that has not stepped back

_log = logging.getLogger(__name__)


def _step_back() -> None:
    """Let this thread give way to others where the processor is short, if the system can do that by thread."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)


class Crew(Protocol):
    """What the pilot needs of those who know models and jobs."""

    def place(self, lease: str, model: str, epoch: int, cores: tuple[int, ...]) -> Placed:
        """Program a lease's cores with one of its tenant's models."""
        ...

    def run(self, start: ac.Start, stoppable: bool) -> Callable[[], None] | Stopped | None:
        """Run a job on the card. Returns what is to be called once the hypervisor knows that it has ended, or where it
        stopped.

        Raises FaultError or DeviceError if the lease was stopped.
        """
        ...

    def ended(self, ended: ac.JobEnded, why: str) -> Callable[[], None] | None:
        """A job is over. Called under the pilot's lock: must be short, and must not call the pilot. Returns what is to
        be called without the lock."""
        ...


class _Here(threading.local):
    """Of a thread: the pool that it works for, and the job that it is to do next."""

    pool: ThreadPoolExecutor | None = None
    next: Callable[[], None] | None = None


class Pilot:
    """All methods may be called from any thread. ``checked``: the hypervisor's invariants are checked at every event,
    and a broken one raises AssertionError: for tests. ``brief_ns``: a job that takes less of a processor may be run by
    the thread that brings it."""

    def __init__(
        self, settings: Settings, card: Card, journal: Journal, clock: LivingClock, timer: Timer, *,
        auto_repair: bool = True, checked: bool = False, brief_ns: int = 0,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.card = card
        self.journal = journal
        self.crew: Crew | None = None
        self._clock = clock
        self._timer = timer
        self._auto_repair = auto_repair
        self._checked = checked
        self._brief_ns = brief_ns
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._hypervisor = Hypervisor(settings, journal.first_epoch(), journal.tainted())
        self._watch = Watch(self._hypervisor.book)
        self._faults: dict[str, str] = {}  # lease: why it was stopped
        self._answers: list[Callable[[], None]] = []  # to be given when the lock is free
        self._home: Soon | None = None
        self._brought = False  # the event at hand brings a job, and its thread would run it
        self._mine: Callable[[], None] | None = None  # the job that this thread is to run when the lock is free
        self._busy = 0  # actions that threads are at
        self._ticking = False
        self._stopped = False
        self._pool = ThreadPoolExecutor(settings.cores + 4, thread_name_prefix="card")
        self._here = _Here()
        self._crowd = ThreadPoolExecutor(settings.cores, thread_name_prefix="crowd", initializer=_step_back)
        self.relink_ns: dict[str, int] = {}  # lease: what its latest programming took, until a job is charged for it

    # For everyone

    @property
    def book(self) -> Hypervisor:
        """The hypervisor, to look at under ``reading`` only."""
        return self._hypervisor

    @property
    def reading(self) -> threading.Lock:
        return self._lock

    def apply(self, make: Make, brings: bool = False) -> list[ac.Action]:
        """Hand in an event, made for the present; returns what followed. Raises HypervisorError for a refused one.

        With ``brings`` the event is a job that this thread would run: it has ended on return if it is brief and there
        is nobody whom that keeps waiting."""
        with self._lock:
            if self._stopped:
                raise UnavailableError("the engine has stopped")
            self._brought = brings
            actions = self._apply(make)
            answers, self._answers = self._answers, []
            mine, self._mine, self._brought = self._mine, None, False
        for answer in answers:
            answer()
        if mine is not None:
            mine()
        return actions

    def at_home(self, soon: Soon | None) -> None:
        """From now on brief jobs are run by the thread that brings them, or by one that calls what ``soon`` is given,
        from any thread, when it comes to it. None: no more."""
        self._home = soon

    def when(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a condition on the book holds; it is looked at under the lock whenever leases or cores change."""
        with self._changed:
            return self._changed.wait_for(lambda: condition() or self._stopped, timeout_s) and condition()

    def lease(self, name: str) -> Lease | None:
        """A lease; under ``reading`` only."""
        return self._hypervisor.book.leases.get(name)

    def standing(self, name: str) -> Standing | None:
        with self._lock:
            lease = self._hypervisor.book.leases.get(name)
            return None if lease is None else standing_of(lease)

    def next_epoch(self) -> int:
        """An epoch for an action that the hypervisor does not ask for."""
        with self._lock:
            self._hypervisor.book.epoch += 1
            return self._hypervisor.book.epoch

    def fault(self, lease: str) -> str:
        """Why a lease was stopped, or "" if it was not."""
        return self._faults.get(lease, "")

    def quiet(self, timeout_s: float = 30.0) -> bool:
        """Wait until no thread is at anything and all rows are written."""
        return self.when(lambda: self._busy == 0, timeout_s) and self.journal.quiet(timeout_s) and self._busy == 0

    def stop(self) -> None:
        """End what runs, start nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for pool in (self._pool, self._crowd):
            pool.shutdown(wait=not self.journal.points.crashing, cancel_futures=True)

    def repair_left(self) -> None:
        """Cores that an earlier engine left tainted are used again, if that is wanted."""
        with self._lock:
            left = tuple(i for i, core in enumerate(self._hypervisor.book.cores) if core.state is CoreState.TAINTED)
        if left and self._auto_repair:
            self._repair(left)

    # Under the lock

    def _apply(self, make: Make) -> list[ac.Action]:
        now = max(self._clock(), self._hypervisor.book.now)
        actions = self._hypervisor.handle(make(now))
        if self._checked:
            broken = violations(self._hypervisor.book, self.settings)
            assert not broken, broken
        arrows, tainted = self._watch.look()
        self._follow(actions, arrows, tainted)
        return actions

    def _follow(self, actions: list[ac.Action], arrows: list[Arrow], tainted: tuple[int, ...] | None) -> None:
        """Have everything done that follows from an event."""
        work: list[Callable[[], None]] = []
        touched = {arrow.lease for arrow in arrows}
        released: list[str] = []
        for action in actions:
            match action:  # what each inference brings comes first
                case ac.JobAccepted():
                    pass
                case ac.Start():
                    self._start(action, self._hypervisor.book.leases[action.lease])
                case ac.JobEnded():
                    self._ended(action)
                case ac.Clear():
                    mine = [a for a in arrows if a.epoch == action.epoch and a.name in ACTS and a.name != "program"]
                    work.append(self._task(self._clear, action, mine))
                case ac.Program():
                    mine = [a for a in arrows if a.lease == action.lease and a.name == "program"]
                    work.append(self._task(self._program, action, mine))
                case ac.DropWindow():
                    work.append(self._task(self._drop, action, self._hypervisor.book.epoch))
                case ac.StopAfterLayer():
                    self.card.stop_after_layer(action.lease, action.epoch)
                case ac.LeaseGranted() | ac.LeaseQueued():
                    touched.add(action.lease)
                case ac.LeaseFaulted():
                    touched.add(action.lease)
                    work.append(self._task(self._drop, action, self._hypervisor.book.epoch))
                    if self._auto_repair:
                        work.append(self._task(self._repair, action.cores))
                case ac.LeaseReleased():
                    released.append(action.lease)
                    self._faults.pop(action.lease, None)
        book = self._hypervisor.book
        if arrows or tainted is not None or released or (work and book.epoch > self.journal.epochs_until):
            leases = [book.leases[name] for name in sorted(touched) if name in book.leases]
            standings = tuple(standing_of(lease) for lease in leases)
            self.journal.hand_in(Step(tuple(arrows), standings, tuple(released), tainted, book.epoch, tuple(work)))
            self._changed.notify_all()
        else:
            for each in work:
                each()

    def _start(self, start: ac.Start, lease: Lease) -> None:
        """Have a job run: on a thread of a pool, or where it came from."""
        layered, home = lease.switching is ev.Switching.LAYER, self._home
        if home is not None and not layered and self._is_brief(start) and self._is_alone(lease):
            run = self._counted(self._run, start, layered)
            if self._brought:
                self._mine = run
            else:
                home(run)
            return
        crowded = len(lease.queue) >= (1 if self._here.pool is self._crowd else CROWD)  # nobody goes to and fro
        self._task(self._run, start, layered, pool=self._crowd if crowded else self._pool)()

    def _is_brief(self, start: ac.Start) -> bool:
        """Whether handing a job to another thread would take about as long as the job itself."""
        took = self.card.took_ns(start.lease, start.epoch)
        return took is not None and took < self._brief_ns

    def _is_alone(self, lease: Lease) -> bool:
        """Whether no other lease has work, or had some of late: then only its own jobs wait for this one."""
        now, leases = self._hypervisor.book.now, self._hypervisor.book.leases.values()
        return all(each is lease or (each.lively_until < now and not each.waiting) for each in leases)

    def _counted(self, function: Callable[..., None], *arguments: object) -> Callable[[], None]:
        """A function as a task, which counts as busy from now on until it has been carried out."""
        self._busy += 1

        def carry_out() -> None:
            try:
                function(*arguments)
            except BaseException as error:
                if not self.journal.points.crashing and not isinstance(error, UnavailableError):
                    _log.exception("%s failed", function.__name__)
            finally:
                with self._changed:
                    self._busy -= 1
                    if not self._busy:
                        self._changed.notify_all()

        return carry_out

    def _task(
        self, function: Callable[..., None], *arguments: object, pool: ThreadPoolExecutor | None = None
    ) -> Callable[[], None]:
        """What starts a task on a thread."""
        on_thread = self._counted(function, *arguments)

        def begin() -> None:
            chosen, here = pool or self._pool, self._here
            if here.pool is chosen and here.next is None and function == self._run:
                here.next = on_thread  # what this thread does is about to end: waking another would take longer
                return
            try:
                chosen.submit(self._work, chosen, on_thread)
            except RuntimeError:  # shut down meanwhile
                self._busy -= 1

        return begin

    def _work(self, pool: ThreadPoolExecutor, call: Callable[[], None]) -> None:
        """On a thread of a pool: a task, and the job that it may have left for this thread."""
        here = self._here
        here.pool = pool
        try:
            while True:
                call()
                if here.next is None:
                    return
                call, here.next = here.next, None
        finally:
            here.pool = None

    def _ended(self, action: ac.JobEnded) -> None:
        answer = None if self.crew is None else self.crew.ended(action, self._faults.get(action.lease, ""))
        if answer is not None:
            self._answers.append(answer)
        lease = self._hypervisor.book.leases.get(action.lease)
        if lease is not None and not lease.waiting:
            self._tick_later(lease.lively_until)

    def _tick_later(self, when: int) -> None:
        """Cores that linger are dealt anew when that is over."""
        if self.settings.linger_ns and not self._ticking:
            self._ticking = True
            self._timer.at(max(when, self._clock() + self.settings.linger_ns // 2), self._tick)

    def _tick(self) -> None:
        with self._lock:
            if self._stopped:
                return
            self._ticking = False
        self.apply(ev.Tick)
        with self._lock:
            now = self._hypervisor.book.now
            lively = [each.lively_until for each in self._hypervisor.book.leases.values()]
            later = [when for when in lively if when > now]
            if later:
                self._tick_later(min(later))

    # On threads

    def _clear(self, action: ac.Clear, arrows: Iterable[Arrow]) -> None:
        try:
            self.card.clear(action.epoch, action.cores)
        except DeviceError as error:
            _log.error("cores %s could not be cleared: %s", action.cores, error)
            self.apply(lambda now: ev.ClearFailed(now, action.epoch))
            return
        for arrow in arrows:
            self.journal.acted(arrow)
        self.apply(lambda now: ev.Cleared(now, action.epoch))

    def _program(self, action: ac.Program, arrows: Iterable[Arrow]) -> None:
        assert self.crew is not None
        begin = perf_counter_ns()
        try:
            self.crew.place(action.lease, action.model, action.epoch, action.cores)
        except CorepoolError as error:
            self._fail(action.lease, action.epoch, error)
            return
        self.relink_ns[action.lease] = perf_counter_ns() - begin
        for arrow in arrows:
            self.journal.acted(arrow)
        self.apply(lambda now: ev.Programmed(now, action.lease, action.epoch))

    def _run(self, start: ac.Start, stoppable: bool) -> None:
        assert self.crew is not None
        try:
            answer = self.crew.run(start, stoppable)
        except CorepoolError as error:
            self._fail(start.lease, start.epoch, error)
            return
        if isinstance(answer, Stopped):
            layer = answer.next_layer
            self.apply(lambda now: ev.JobStopped(now, start.lease, start.epoch, start.job, layer))
            return
        try:
            self.apply(lambda now: ev.JobDone(now, start.lease, start.epoch, start.job))
        finally:
            if answer is not None:
                answer()

    def _fail(self, lease: str, epoch: int, error: CorepoolError) -> None:
        _log.warning("lease %s was stopped: %s", lease, error)
        with self._lock:
            held = self._hypervisor.book.leases.get(lease)
            if held is not None and held.epoch == epoch:
                self._faults[lease] = str(error)
        self.apply(lambda now: ev.Faulted(now, lease, epoch))

    def _drop(self, action: ac.DropWindow | ac.LeaseFaulted, epoch: int) -> None:
        self.card.drop(action.lease, epoch)

    def _repair(self, cores: tuple[int, ...]) -> None:
        try:
            self.apply(lambda now: ev.RepairCores(now, cores))
        except HypervisorError as error:
            _log.error("cores %s stay tainted: %s", cores, error)
