"""The engine's part of the store: leases as they stand, and an intent and a done row around each move of cores.

It must not know hypervisors or devices. One thread commits what all others hand in, in that order, many at a time:
whatever waits for a row to be durable goes on when its commit is done.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from corepool.errors import CorepoolError, UnavailableError
from corepool.server.engine.arrows import ACTS, Arrow, Standing, Step
from corepool.server.engine.killpoints import KillPoints
from corepool.server.store import Intent, LeaseRow, Store, Transaction

EPOCHS_AT_ONCE = 4096  # taken from the store at a time; those left at a crash are skipped
DONE_LINGER_S = 0.02  # done rows wait so long for company: nothing waits for them
RETRY_S = 0.2
TAINTED = "tainted_cores"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Done:
    arrow: Arrow


def lease_id(tenant: str, name: str) -> str:
    """How a tenant's lease is called in the hypervisor and on the card."""
    return f"{tenant}/{name}"


class Journal:
    """Holds the durable image of all leases. Raises nothing when the store fails, but tries again: moves of cores wait
    meanwhile, inferences on cores that leases have go on."""

    def __init__(self, store: Store, points: KillPoints) -> None:
        self.store = store
        self.points = points
        self.trouble: CorepoolError | None = None  # why nothing can be committed at the moment
        self._changed = threading.Condition()
        self._queue: list[Step | _Done] = []
        self._handed_in = self._committed = 0
        self._open: dict[Arrow, int] = {}  # arrow: its journal row
        self._image = threading.RLock()  # held around a commit and the change of rows that goes with it
        self._rows = {lease_id(row.tenant, row.name): row for row in store.leases()}
        self._top = 0
        self._stopping = self._dead = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    # Before the thread runs

    def first_epoch(self) -> int:
        """Take epochs from the store; returns the last that an earlier engine may have used."""
        first = self.store.next_epochs(EPOCHS_AT_ONCE, freeing=True)
        self._top = first + EPOCHS_AT_ONCE - 1
        return first - 1

    def settle(self, happened: Callable[[Intent], bool]) -> tuple[int, int]:
        """Close what an earlier engine left open: done if the device had done it, else void. Returns how many of
        each."""
        counts = [0, 0]
        with self.store.transaction(freeing=True) as t:
            for intent in t.open_intents():
                forward = happened(intent)
                t.done(intent.id, "done" if forward else "void")
                counts[not forward] += 1
        return counts[0], counts[1]

    def tainted(self) -> tuple[int, ...]:
        """Cores that were tainted when the store heard of them last."""
        with self.store.transaction(freeing=True) as t:
            return tuple(int(core) for core in (t.meta(TAINTED) or "").split())

    def start(self) -> None:
        self._thread.start()

    # From any thread

    @property
    def sound(self) -> bool:
        """True while changes can be made durable, as far as is known."""
        return self.trouble is None and not self._dead

    @property
    def epochs_until(self) -> int:
        """The youngest epoch that is taken from the store already."""
        return self._top

    def row(self, lease: str) -> LeaseRow | None:
        """A lease as the store has it."""
        return self._rows.get(lease)

    def rows(self) -> list[LeaseRow]:
        with self._image:
            return list(self._rows.values())

    def hand_in(self, step: Step) -> None:
        """Have a step committed; its ``then`` is called afterwards, on the journal's thread."""
        with self._changed:
            self._queue.append(step)
            self._handed_in += 1
            self._changed.notify_all()

    def acted(self, arrow: Arrow) -> None:
        """The device has done its part of an arrow."""
        self.points.passed(arrow.name, "acted")
        with self._changed:
            self._queue.append(_Done(arrow))
            self._handed_in += 1
            self._changed.notify_all()

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until everything handed in is durable. Raises UnavailableError if that takes too long."""
        with self._changed:
            goal = self._handed_in
            done = self._changed.wait_for(lambda: self._committed >= goal or self._dead, timeout_s)
            if not done or self._dead:
                why = f": {self.trouble}" if self.trouble is not None else ""
                raise UnavailableError(f"changes cannot be made durable at the moment{why}")

    def quiet(self, timeout_s: float = 30.0) -> bool:
        """Wait until nothing is left to commit."""
        with self._changed:
            return self._changed.wait_for(lambda: self._committed == self._handed_in or self._dead, timeout_s)

    @contextmanager
    def transaction(self, freeing: bool = False) -> Iterator[Change]:
        """A transaction of the store with the image of leases changed along."""
        with self._image:
            if self._dead:
                raise UnavailableError("the engine has stopped")
            with self.store.transaction(freeing) as t:
                change = Change(t)
                yield change
            self._rows.update(change.put)
            for gone in change.gone:
                self._rows.pop(gone, None)

    def stop(self) -> None:
        """Commit what was handed in, then end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(10)

    def die(self) -> None:
        """End at once, as a crash would: nothing more is committed."""
        with self._changed:
            self._dead = True
            self._changed.notify_all()

    # The thread

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._commit_all(batch)
        except BaseException:
            self.die()
            if not self.points.crashing:
                _log.exception("the journal has stopped")

    def _next(self) -> list[Step | _Done] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping or self._dead)
            if self._dead or (self._stopping and not self._queue):
                return None
            self._changed.wait_for(self._urgent, DONE_LINGER_S)
            batch, self._queue = self._queue, []
            return batch

    def _urgent(self) -> bool:
        return self._stopping or self._dead or any(isinstance(each, Step) for each in self._queue)

    def _commit_all(self, batch: list[Step | _Done]) -> None:
        if self._dead:
            return
        steps = [each for each in batch if isinstance(each, Step)]
        for step in steps:
            for arrow in step.arrows:
                self.points.passed(arrow.name, "before")
        while not self._commit(batch, steps):
            with self._changed:
                if self._changed.wait_for(lambda: self._dead, RETRY_S) or self._stopping:
                    return
        for step in steps:
            for arrow in step.arrows:
                self.points.passed(arrow.name, "intended")
                if arrow.name not in ACTS:
                    self.acted(arrow)
            for call in step.then:
                call()
        with self._changed:
            self._committed += len(batch)
            self._changed.notify_all()

    def _commit(self, batch: list[Step | _Done], steps: list[Step]) -> bool:
        """One transaction for all. Returns False, and notes why, if the store cannot take it now."""
        opened: dict[Arrow, int] = {}
        closed: list[Arrow] = []
        top = self._top
        try:
            with self.transaction(freeing=True) as change:
                t = change.rows
                for each in batch:
                    if isinstance(each, _Done):
                        row = self._open.get(each.arrow, opened.get(each.arrow))
                        if row is not None:
                            t.done(row)
                            closed.append(each.arrow)
                        continue
                    for arrow in each.arrows:
                        tenant, _, name = arrow.lease.partition("/")
                        payload = {"cores": list(arrow.cores)}
                        opened[arrow] = t.intend(arrow.name, tenant, name, arrow.epoch, payload)
                    self._note(change, each)
                if max((step.epoch for step in steps), default=0) + EPOCHS_AT_ONCE // 2 > top:
                    top = t.next_epochs(EPOCHS_AT_ONCE) + EPOCHS_AT_ONCE - 1
        except CorepoolError as error:
            if self.trouble is None:
                _log.error("moves of cores wait: %s", error)
            self.trouble = error
            return False
        self.trouble = None
        self._top = top
        self._open.update(opened)
        for arrow in closed:
            self._open.pop(arrow, None)
        return True

    def _note(self, change: Change, step: Step) -> None:
        for standing in step.standings:
            row = change.put.get(standing.lease, self._rows.get(standing.lease))
            if row is not None and standing.lease not in step.released:
                change.put_lease(stood(row, standing))
        for lease in step.released:
            tenant, _, name = lease.partition("/")
            change.delete_lease(tenant, name)
        if step.tainted is not None:
            change.rows.put_meta(TAINTED, " ".join(str(core) for core in step.tainted))


class Change:
    """A transaction, and what it does to leases. ``rows`` is the store's transaction, for everything else."""

    def __init__(self, rows: Transaction) -> None:
        self.rows = rows
        self.put: dict[str, LeaseRow] = {}
        self.gone: set[str] = set()

    def put_lease(self, row: LeaseRow) -> None:
        self.rows.put_lease(row)
        self.put[lease_id(row.tenant, row.name)] = row
        self.gone.discard(lease_id(row.tenant, row.name))

    def delete_lease(self, tenant: str, name: str) -> None:
        self.rows.delete_lease(tenant, name)
        self.put.pop(lease_id(tenant, name), None)
        self.gone.add(lease_id(tenant, name))


def stood(row: LeaseRow, standing: Standing) -> LeaseRow:
    """A row with what changes as cores move; what its tenant asked for stays."""
    return replace(
        row,
        state=standing.state,
        epoch=standing.epoch,
        cores=standing.cores,
        model=standing.model,
        extra={**row.extra, "programmed": list(standing.programmed)},
    )
