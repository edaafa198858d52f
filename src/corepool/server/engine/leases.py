"""Leases as tenants ask for them: created, listed, resized, kept alive and released; durable when a call returns.

It must not know models' contents, jobs or devices. Times to live are counted in living time.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

from corepool.errors import (
    ConflictError,
    CorepoolError,
    HypervisorError,
    NotFoundError,
    QuotaError,
    RequestError,
)
from corepool.hypervisor import events as ev
from corepool.hypervisor import planner
from corepool.hypervisor.records import Lease
from corepool.server.api import Identity, LeaseInfo, LeaseRequest, Role
from corepool.server.engine.arrows import state_of
from corepool.server.engine.clock import LivingClock
from corepool.server.engine.journal import Change, Journal, lease_id, stood
from corepool.server.engine.pilot import Pilot
from corepool.server.engine.timer import Timer
from corepool.server.store import AuditRow, LeaseRow, TenantRow
from corepool.server.store.schema import canonical

SECOND = 1_000_000_000
DEFAULT = "default"
SETTLE_S = 5.0  # a change is told when it is done, or after so long
LEAVE_S = 30.0  # a release waits so long for the inference that runs
NAME_LENGTH = 128
LONGEST_TTL_S = 10 * 366 * 86400.0
TYPICAL_LIFE_NS = 600 * SECOND  # what predictions assume of a lease until some have ended

_log = logging.getLogger(__name__)


class LeaseDesk:
    """``window_bytes``: by tenant, the memory in each bank that its largest model needs. Methods may be called from any
    thread; changes of one tenant's leases are made one after the other."""

    def __init__(
        self, pilot: Pilot, journal: Journal, clock: LivingClock, timer: Timer, window_bytes: Callable[[str], int]
    ) -> None:
        self._pilot = pilot
        self._journal = journal
        self._clock = clock
        self._timer = timer
        self._window_bytes = window_bytes
        self._mutex = threading.Lock()
        self._locks: dict[str, threading.RLock] = {}
        self._expires: dict[str, int] = {}  # lease: when its time to live is over, living nanoseconds
        self._life_ns = float(TYPICAL_LIFE_NS)
        self._made: dict[str, int] = {}  # lease: when it was requested
        self.tenants: dict[str, TenantRow] = {}

    def locked(self, tenant: str) -> threading.RLock:
        """The lock around changes of a tenant."""
        with self._mutex:
            return self._locks.setdefault(tenant, threading.RLock())

    # Tenants

    def know(self, tenant: str) -> TenantRow:
        """The tenant's row; the hypervisor hears of it if it has not. Raises NotFoundError."""
        row = self.tenants.get(tenant)
        if row is not None:
            return row
        row = self._journal.store.tenant(tenant)
        if row is None:
            raise NotFoundError(f"there is no tenant {tenant!r}")
        self.changed(row)
        return row

    def changed(self, row: TenantRow) -> None:
        """A tenant is new, or has another quota or priority. Leases that it has keep their cores under a quota that
        became too small, but it gets no more; the automatic one takes what a larger quota allows."""
        with self.locked(row.name):
            self.tenants[row.name] = row
            with self._pilot.reading:
                known = row.name in self._pilot.book.book.tenants
            if known:
                self._make_room(row.name, 0, self._quota(row))
                self._allow(row)
                self._fill_room(row)
            else:
                rows = [each for each in self._journal.rows() if each.tenant == row.name]
                quota = min(max(self._quota(row), sum(each.maximum for each in rows)), self._pilot.settings.cores)
                self._pilot.apply(lambda now: ev.AddTenant(now, row.name, quota, _priority(row)))

    def check_quota(self, tenant: str, quota: int) -> None:
        """Raise QuotaError if a tenant's leases, but for the automatic one, may have more cores than ``quota``."""
        row = self._journal.row(lease_id(tenant, DEFAULT))
        auto = row is not None and row.extra.get("auto")
        held = self._charged(tenant, but=lease_id(tenant, DEFAULT) if auto else "")
        if held > quota:
            raise QuotaError(f"tenant {tenant!r} has leases of up to {held} cores: release or shrink them first")

    def _allow(self, row: TenantRow) -> None:
        """Tell the hypervisor of a quota: what the leases have already, if that is more."""
        quota = max(self._quota(row), self._charged(row.name))
        self._pilot.apply(lambda now: ev.SetTenant(now, row.name, quota, _priority(row)))

    def _quota(self, row: TenantRow) -> int:
        return min(row.quota_cores, self._pilot.settings.cores)

    def gone(self, tenant: str) -> None:
        """A tenant was removed. Raises TenantError if it still has leases."""
        with self.locked(tenant):
            self._pilot.apply(lambda now: ev.RemoveTenant(now, tenant))
            self.tenants.pop(tenant, None)

    # What users call

    def create(self, who: Identity, request: LeaseRequest, key: str | None = None, auto: bool = False) -> LeaseInfo:
        """Raises ConflictError for a name that is taken, QuotaError, LeaseError, RequestError."""
        tenant = who.tenant
        sharing, switching = _checked(request)
        digest = _digest("create", asdict(request))
        with self.locked(tenant):
            row = self.know(tenant)
            known = self._recall(tenant, key, digest)
            if known is not None:
                return _info(known)
            name = lease_id(tenant, request.name)
            if self._pilot.standing(name) is not None:
                raise ConflictError(f"there is a lease {request.name!r} already: choose another name or release it")
            if not auto:
                self._make_room(tenant, request.maximum, self._quota(row))
            term = self._life_ns if request.ttl_s is None else request.ttl_s * SECOND
            window = self._window_bytes(tenant)
            asked = request.minimum, request.maximum, window, sharing, switching, int(term)
            self._pilot.apply(lambda now: ev.RequestLease(now, tenant, name, *asked, replicas=1))
            try:
                self._pilot.when(lambda: self._settled(name), SETTLE_S)
                kept = LeaseRow(
                    tenant, request.name, request.minimum, request.maximum, request.sharing, request.switching,
                    request.ttl_s, extra={"auto": auto, "serial": self._journal.store.serial},
                )  # fmt: skip
                self._made[name] = self._clock()
                self._keep_alive(name, request.ttl_s)
                with self._journal.transaction() as change:
                    standing = self._pilot.standing(name)
                    change.put_lease(kept if standing is None else stood(kept, standing))
                    info = self.info(tenant, request.name, kept)
                    self._note(change, who, "lease.create", request.name, key, digest, info)
                return info
            except BaseException:
                self._undo(lambda now: ev.ReleaseLease(now, tenant, name))
                self._expires.pop(name, None)
                raise

    def get(self, who: Identity, name: str, tenant: str | None = None) -> LeaseInfo:
        return self.info(self._whose(who, tenant), name)

    def all(self, who: Identity) -> list[LeaseInfo]:
        """All of a tenant's leases; an operator who acts for none sees everybody's. In order of tenant and name."""
        found = []
        for row in self._journal.rows():
            if row.tenant == who.tenant or (who.role is Role.ADMIN and not who.tenant):
                try:
                    found.append(self.info(row.tenant, row.name))
                except NotFoundError:
                    continue  # released meanwhile
        return sorted(found, key=lambda info: (info.tenant, info.name))

    def resize(self, who: Identity, name: str, minimum: int, maximum: int, key: str | None = None) -> LeaseInfo:
        """Raises NotFoundError, QuotaError, LeaseError. Inferences under way go on, and none is lost."""
        tenant = who.tenant
        digest = _digest("resize", [name, minimum, maximum])
        with self.locked(tenant):
            known = self._recall(tenant, key, digest)
            if known is not None:
                return _info(known)
            before = self._row(tenant, name)
            full = lease_id(tenant, name)
            quota = self._quota(self.know(tenant))
            if name != DEFAULT:
                self._make_room(tenant, maximum - before.maximum, quota)
            self._pilot.apply(lambda now: ev.ResizeLease(now, tenant, full, minimum, maximum))
            try:
                self._pilot.when(lambda: self._settled(full), SETTLE_S)
                with self._journal.transaction() as change:
                    current = self._row(tenant, name)
                    after = replace(current, minimum=minimum, maximum=maximum, extra={**current.extra, "auto": False})
                    change.put_lease(after)
                    info = self.info(tenant, name, after)
                    self._note(change, who, "lease.resize", name, key, digest, info)
                self._fill_room(self.know(tenant))
                return info
            except BaseException:
                self._undo(lambda now: ev.ResizeLease(now, tenant, full, before.minimum, before.maximum))
                raise

    def heartbeat(self, who: Identity, name: str) -> LeaseInfo:
        """Give a lease its whole time to live again."""
        row = self._row(who.tenant, name)
        self._keep_alive(lease_id(who.tenant, name), row.ttl_s)
        return self.info(who.tenant, name)

    def release(self, who: Identity, name: str, key: str | None = None, tenant: str | None = None) -> None:
        """The inference that runs ends; those that wait are refused. An operator may release any tenant's lease."""
        owner = self._whose(who, tenant)
        digest = _digest("release", [owner, name])
        with self.locked(owner):
            if self._recall(who.tenant, key, digest) is not None:
                return
            row = self._row(owner, name)
            full = lease_id(owner, name)
            with self._journal.transaction(freeing=True) as change:
                change.put_lease(replace(self._row(owner, name), state="draining"))
                self._note(change, who, "lease.release", name, key, digest, {"released": name})
            with suppress(HypervisorError):  # it is on its way out already
                self._pilot.apply(lambda now: ev.ReleaseLease(now, owner, full))
            self._expires.pop(full, None)
            lived = self._clock() - self._made.pop(full, 0)
            if row.ttl_s is None and not row.extra.get("auto"):
                self._life_ns += 0.2 * (lived - self._life_ns)
            self._pilot.when(lambda: self._pilot.lease(full) is None, LEAVE_S)
            if self._pilot.standing(full) is None:
                self._journal.flush()
                if owner in self.tenants:
                    self._allow(self.tenants[owner])
                    self._fill_room(self.tenants[owner])

    # For the engine

    def ensure_default(self, tenant: str) -> str:
        """Make the lease that is used where none is named, unless it is there. Raises QuotaError if all of the quota is
        in other leases."""
        full = lease_id(tenant, DEFAULT)
        with self.locked(tenant):
            quota = self._quota(self.know(tenant))
            standing = self._pilot.standing(full)
            who = Identity(Role.TENANT, tenant, "server")
            row = self._journal.row(full)
            if standing is not None and standing.state == "faulted" and row is not None and row.extra.get("auto"):
                self.release(who, DEFAULT)
                standing = None
            if standing is None:
                room = quota - self._charged(tenant, but=full)
                if room < 1:
                    raise QuotaError(
                        f"all {quota} cores of the quota are in leases: name one of them for the inference"
                    )
                self.create(who, LeaseRequest(DEFAULT, 0, room), auto=True)
        return full

    def widen(self, tenant: str, name: str) -> None:
        """Give a lease memory for the largest model that its tenant has by now. Raises LeaseError if there is none."""
        window = self._window_bytes(tenant)
        with self.locked(tenant), self._pilot.reading:
            lease = self._pilot.lease(name)
            if lease is None or lease.window_bytes >= window:
                return
            low, high = lease.minimum, lease.maximum
        self._pilot.apply(lambda now: ev.ResizeLease(now, tenant, name, low, high, window))

    def release_automatic(self, tenant: str) -> bool:
        """Release the lease that was made because none was named, if nothing is under way on it. Returns whether it is
        gone."""
        full = lease_id(tenant, DEFAULT)
        with self.locked(tenant):
            row = self._journal.row(full)
            if row is None:
                return True
            with self._pilot.reading:
                lease = self._pilot.lease(full)
                busy = lease is not None and lease.waiting
            if busy or not row.extra.get("auto"):
                return False
            self.release(Identity(Role.TENANT, tenant, "server"), DEFAULT)
            return True

    def idle(self, longest_ns: int) -> list[str]:
        """Tenants whose automatic lease has had no work for so long."""
        now = self._clock()
        with self._pilot.reading:
            return [
                lease.tenant
                for name, lease in self._pilot.book.book.leases.items()
                if name == lease_id(lease.tenant, DEFAULT)
                and not lease.waiting
                and now - max(lease.lively_until, self._made.get(name, 0)) > longest_ns
            ]

    def restore(self) -> None:
        """Ask for all leases of an earlier engine again, in their order; those that were on their way out are gone."""
        rows = sorted(self._journal.rows(), key=lambda row: int(row.extra.get("serial", 0)))
        kept = [row for row in rows if row.state != "draining"]
        for row in kept:
            try:
                self._restore(row)
            except CorepoolError as error:  # such as a smaller card than before
                _log.error("lease %s of %s cannot be had any more: %s", row.name, row.tenant, error)
        with self._journal.transaction(freeing=True) as change:
            for row in rows:
                standing = self._pilot.standing(lease_id(row.tenant, row.name))
                if row.state == "draining":
                    change.delete_lease(row.tenant, row.name)
                elif standing is None:
                    change.put_lease(replace(row, cores=(), extra={**row.extra, "programmed": []}))
                else:
                    change.put_lease(stood(row, standing))

    def _restore(self, row: LeaseRow) -> None:
        """Ask for a lease again, with its whole time to live. One that a fault stopped stays so until it is released;
        the automatic one would be made anew anyway."""
        self.know(row.tenant)
        name = lease_id(row.tenant, row.name)
        sharing, switching = ev.Sharing(row.sharing), ev.Switching(row.switching)
        window, term = self._window_bytes(row.tenant), int(self._life_ns)
        faulted = row.state == "faulted" and not row.extra.get("auto")
        asked = row.minimum, row.maximum, window, sharing, switching, term, faulted
        self._pilot.apply(lambda now: ev.RequestLease(now, row.tenant, name, *asked, replicas=1))
        self._made[name] = self._clock()
        self._keep_alive(name, row.ttl_s)

    def info(self, tenant: str, name: str, row: LeaseRow | None = None) -> LeaseInfo:
        """A lease as users see it. ``row``: one that is about to be stored. Raises NotFoundError."""
        row = row or self._row(tenant, name)
        full = lease_id(tenant, name)
        expires = self._expires.get(full)
        left = None if expires is None else max(expires - self._clock(), 0) / SECOND
        with self._pilot.reading:
            lease = self._pilot.lease(full)
            if lease is None:
                raise NotFoundError(f"there is no lease {name!r}")
            position, wait = self._queue(lease)
            model = None if lease.model is None else lease.model.partition(":")[0]
            return LeaseInfo(
                tenant, name, state_of(lease), row.minimum, row.maximum, tuple(sorted(lease.own)), row.sharing,
                row.switching, lease.epoch, row.ttl_s, left, position, wait, model,
            )  # fmt: skip

    def _queue(self, lease: Lease) -> tuple[int | None, float | None]:
        """How many leases are before one that waits, and how many seconds it predictably waits."""
        if lease.granted or lease.releasing or lease.faulted:
            return None, None
        book = self._pilot.book.book
        position = 0 if lease.admitted else book.queue.index(lease.lease)
        start = planner.predicted_grant(book, self._pilot.settings, lease)
        return position, None if start is None else max(start - self._clock(), 0) / SECOND

    def _settled(self, name: str) -> bool:
        """True if a lease has all cores that it shall have now, or waits in the queue."""
        lease = self._pilot.lease(name)
        if lease is None or lease.faulted or not lease.admitted:
            return True
        return lease.granted and lease.plan == lease.own

    def _keep_alive(self, name: str, ttl_s: float | None) -> None:
        if ttl_s is not None:
            self._expires[name] = self._clock() + int(ttl_s * SECOND)
            self._timer.at(self._expires[name], lambda: self._expire(name))

    def _expire(self, name: str) -> None:
        """On the timer's thread: release a lease whose time is over; another thread does what takes long."""
        due = self._expires.get(name)
        if due is None or self._clock() < due:
            return  # a heartbeat came; its own call follows
        tenant, _, lease = name.partition("/")
        threading.Thread(target=self._let_go, args=(tenant, lease, due), name="expiry", daemon=True).start()

    def _let_go(self, tenant: str, lease: str, due: int) -> None:
        with self.locked(tenant):
            if self._expires.get(lease_id(tenant, lease)) != due:
                return
            try:
                self.release(Identity(Role.TENANT, tenant, "expired"), lease)
            except CorepoolError as error:
                _log.error("lease %s of %s should have ended: %s", lease, tenant, error)

    def _make_room(self, tenant: str, more: int, quota: int) -> None:
        """Shrink or release the automatic lease if the quota is not enough for ``more`` cores beside it."""
        full = lease_id(tenant, DEFAULT)
        row = self._journal.row(full)
        over = self._charged(tenant) + more - quota
        if row is None or not row.extra.get("auto") or over <= 0:
            return
        who = Identity(Role.TENANT, tenant, "server")
        if row.maximum > over:
            left = row.maximum - over
            self._pilot.apply(lambda now: ev.ResizeLease(now, tenant, full, 0, left))
            self._pilot.when(lambda: self._fits(full, left), LEAVE_S)
            with self._journal.transaction(freeing=True) as change:
                change.put_lease(replace(self._row(tenant, DEFAULT), maximum=left))
        else:
            self.release(who, DEFAULT)

    def _fill_room(self, row: TenantRow) -> None:
        """Let the automatic lease have what the quota leaves to it: it was smaller before, or had to make room."""
        full = lease_id(row.name, DEFAULT)
        kept, standing = self._journal.row(full), self._pilot.standing(full)
        if kept is None or standing is None or standing.state == "faulted" or not kept.extra.get("auto"):
            return
        room = self._quota(row) - self._charged(row.name, but=full)
        if room > kept.maximum:
            try:
                self._pilot.apply(lambda now: ev.ResizeLease(now, row.name, full, 0, room))
                with self._journal.transaction() as change:
                    change.put_lease(replace(self._row(row.name, DEFAULT), maximum=room))
            except CorepoolError as error:  # what brought us here is done
                _log.warning("the automatic lease of %s stays as it is: %s", row.name, error)

    def _fits(self, name: str, cores: int) -> bool:
        lease = self._pilot.lease(name)
        return lease is None or len(lease.own) <= cores

    def _charged(self, tenant: str, but: str = "") -> int:
        with self._pilot.reading:
            book = self._pilot.book.book
            held = book.tenants.get(tenant)
            return 0 if held is None else sum(book.leases[name].charged for name in held.leases if name != but)

    def _whose(self, who: Identity, tenant: str | None) -> str:
        if who.role is Role.ADMIN:
            return tenant or who.tenant
        if tenant not in (None, who.tenant):
            raise NotFoundError("there is no such lease")
        return who.tenant

    def _row(self, tenant: str, name: str) -> LeaseRow:
        row = self._journal.row(lease_id(tenant, name))
        if row is None:
            raise NotFoundError(f"there is no lease {name!r}")
        return row

    def _recall(self, tenant: str, key: str | None, digest: str) -> Mapping[str, Any] | None:
        return None if key is None else self._journal.store.recall(tenant, key, digest)

    def _note(
        self, change: Change, who: Identity, action: str, target: str, key: str | None, digest: str, answer: Any
    ) -> None:
        """The audit row and the answer to an idempotency key, in the same transaction."""
        if key is not None:
            change.rows.remember(who.tenant, key, digest, answer if isinstance(answer, dict) else asdict(answer))
        change.rows.audit(AuditRow(who.key_id, who.tenant, action, target))

    def _undo(self, make: Callable[[int], ev.Event]) -> None:
        try:
            self._pilot.apply(make)
        except CorepoolError as error:
            _log.error("a change that could not be made durable stays until the next start: %s", error)


def _checked(request: LeaseRequest) -> tuple[ev.Sharing, ev.Switching]:
    """Raises RequestError for names and values that mean nothing; numbers of cores are the hypervisor's to judge."""
    name = request.name
    if not 0 < len(name) <= NAME_LENGTH or not all(c.isalnum() or c in "._-" for c in name):
        raise RequestError(f"a lease's name has 1 to {NAME_LENGTH} letters, digits, '.', '_' or '-', not {name!r:.200}")
    ttl = request.ttl_s
    if ttl is not None and not (math.isfinite(ttl) and 0 < ttl <= LONGEST_TTL_S):
        raise RequestError(f"a time to live is more than 0 and at most {LONGEST_TTL_S:.0f} seconds, not {ttl!r}")
    try:
        return ev.Sharing(request.sharing), ev.Switching(request.switching)
    except ValueError:
        raise RequestError(
            f"sharing is 'private' or 'public' and switching 'task' or 'layer', not {request.sharing!r} and "
            f"{request.switching!r}"
        ) from None


def _priority(row: TenantRow) -> int:
    """The hypervisor's priorities go from 0 to 1000."""
    return min(max(row.priority, 0), 1000)


def _digest(what: str, request: Any) -> str:
    return sha256(canonical([what, request]).encode()).hexdigest()


def _info(answer: Mapping[str, Any]) -> LeaseInfo:
    return LeaseInfo(**{**answer, "cores": tuple(answer["cores"])})
