"""Who may ask, and for how much: tenants, their keys, quotas, rates, and the record of what was done.

It must not know REST, gRPC or devices; it decides who is asking, not what for.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from corepool.errors import (
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    QuotaError,
    RequestError,
    TooLargeError,
    TooManyRequestsError,
)
from corepool.files import replacing
from corepool.server.api import Identity, Role
from corepool.server.keys import Hasher, KeyRing, NewKey, make_key, parse
from corepool.server.limits import Limits, check_tenant
from corepool.server.rates import Buckets, Clock, Rate
from corepool.server.store import ACTIVE, REVOKED, AuditRow, KeyRow, Store, TenantRow, Transaction
from corepool.server.store.guard import fsync_folder

LABEL_LENGTH = 100
KEYS_EACH = 100  # active keys of one tenant; as many revoked ones are remembered
ADMIN_FILE = "admin.key"
SYSTEM = Identity(Role.ADMIN, "", "server")


@dataclass(frozen=True, slots=True)
class Added:
    """A new tenant, and its key's text, which is shown this once: None when an earlier answer is repeated."""

    tenant: TenantRow
    key_id: str
    key: str | None

    def __repr__(self) -> str:
        return f"Added({self.tenant.name}, {self.key_id})"


Listener = Callable[[str, TenantRow | None], None]


class Holder(Protocol):
    """Who deals cores to tenants, and is asked before a tenant changes."""

    def check_quota(self, tenant: str, cores: int) -> None:
        """Raise QuotaError if the tenant's leases are too large for a quota."""

    def release_automatic(self, tenant: str) -> bool:
        """Release the lease that the tenant never asked for, if it is idle. Returns whether it is gone."""


class Tenants:
    """All of this is durable when a method returns, and holds from then on without a restart.

    ``source`` is the address of whoever asks. Methods raise NotFoundError alike for what is absent and what is another
    tenant's, PermissionDeniedError where a tenant asks for what only operators do, RequestError for values that make
    no sense, and the store's errors. Safe from any thread; reading never waits for writing.
    """

    def __init__(self, store: Store, limits: Limits | None = None, clock: Clock | None = None) -> None:
        self.store = store
        self.limits = limits or Limits()
        self._hasher = Hasher()
        timed: dict[str, Any] = {} if clock is None else {"clock": clock}
        self._ring = KeyRing(self._hasher, **timed)
        self._rates = Buckets(**timed)
        self._writing = threading.RLock()
        self._tenants: Mapping[str, TenantRow] = MappingProxyType({row.name: row for row in store.tenants()})
        self._publish_keys(*store.keys())
        self._listeners: list[Listener] = []
        self._holder: Holder | None = None

    def subscribe(self, listener: Listener) -> None:
        """Call with each tenant's row after it is added or changed, and with None after it is removed."""
        self._listeners.append(listener)

    def consult(self, holder: Holder) -> None:
        """Ask before a quota shrinks or a tenant is removed; without, all leases in the store count."""
        self._holder = holder

    # Each request

    def recognise(self, header: str | None) -> Identity | None:
        """Who sends this Authorization header, if its key was verified lately, else None. Takes microseconds."""
        row = self._ring.recall(header)
        return None if row is None else identity_of(row)

    def authenticate(self, header: str | None, source: str) -> Identity:
        """Who sends this Authorization header. May take some 20 ms of processor time: call it on a worker thread.

        Raises AuthenticationError for a key that is missing, malformed, unknown, wrong or revoked, alike and in equal
        time; TooManyRequestsError after too many of those from one address.
        """
        try:
            return identity_of(self._ring.verify(header, source))
        except TooManyRequestsError:
            self._note_guessing(source)
            raise

    def admit(self, who: Identity, body_bytes: int = 0) -> int:
        """Count a request; returns its body limit, see there. Raises TooManyRequestsError over the tenant's rate,
        TooLargeError over its body limit."""
        limit = self.body_limit(who)
        if who.role is Role.ADMIN:
            return limit
        row = self.row(who.tenant)
        if body_bytes > limit:
            raise TooLargeError(f"the request has {body_bytes} bytes; tenant {who.tenant!r} may send {limit}")
        per_s = self.limits.requests_per_s if row.requests_per_s is None else row.requests_per_s
        burst = row.burst
        if burst is None:  # the same number of seconds' worth for every rate
            burst = math.ceil(self.limits.burst * per_s / self.limits.requests_per_s)
        wait = self._rates.take(who.tenant, _rate(per_s, burst))
        if wait:
            raise TooManyRequestsError(
                f"tenant {who.tenant!r} may send {per_s:g} requests a second: try again in {wait:.3g} s", wait
            )
        return limit

    def body_limit(self, who: Identity) -> int:
        """Bytes that one request of this sender may have; the server's own limit for operators."""
        own = None if who.role is Role.ADMIN else self.row(who.tenant).body_bytes
        return self.limits.body_bytes if own is None else own

    def in_flight_limit(self, tenant: str) -> int:
        own = self.row(tenant).in_flight
        return self.limits.in_flight if own is None else own

    def row(self, name: str) -> TenantRow:
        """A tenant, from memory. Raises NotFoundError."""
        found = self._tenants.get(name)
        if found is None:
            raise no_tenant(name)
        return found

    def rows(self) -> list[TenantRow]:
        """All tenants, from memory, for the server's own parts."""
        return sorted(self._tenants.values(), key=lambda row: row.name)

    def knows(self, name: str) -> bool:
        """Whether there is such a tenant."""
        return name in self._tenants

    # Tenants

    def visible(self, who: Identity) -> list[TenantRow]:
        """All tenants for an operator, itself for a tenant."""
        return self.rows() if who.role is Role.ADMIN else [self.row(who.tenant)]

    def get(self, who: Identity, name: str) -> TenantRow:
        self._require_sight(who, name)
        return self.row(name)

    def add(self, who: Identity, row: TenantRow, source: str = "", idempotency_key: str | None = None) -> Added:
        """Add a tenant with one key. Raises ConflictError if the name is taken.

        With an idempotency key a repeated call answers with the same tenant and key id, but not the key's text.
        """
        self._require_admin(who)
        check_tenant(row)
        digest = repr(row)
        key, kept = self._new_key(row.name, "first")
        with self._writing:
            with self.store.transaction() as t:
                if idempotency_key is not None:
                    answer = t.recall(who.tenant, idempotency_key, digest)
                    if answer is not None:
                        return Added(self.row(row.name), str(answer["key_id"]), None)
                if t.tenant(row.name) is not None:
                    raise ConflictError(f"there is a tenant {row.name!r} already: choose another name")
                t.put_tenant(row)
                t.put_key(kept)
                if idempotency_key is not None:
                    t.remember(who.tenant, idempotency_key, digest, {"key_id": key.key_id})
                note(t, who, source, "tenant.add", row.name, f"quota {row.quota_cores}")
            self._publish(row.name, row)
            self._publish_keys(kept)
        return Added(row, key.key_id, key.text)

    def change(self, who: Identity, name: str, /, source: str = "", **values: Any) -> TenantRow:
        """Change quota_cores, priority, requests_per_s, burst, body_bytes or in_flight of a tenant.

        Raises ConflictError if its leases hold more than the new quota.
        """
        self._require_admin(who)
        unknown = set(values) - set(TenantRow.__dataclass_fields__) | set(values) & {"name"}
        if unknown:
            raise RequestError(f"a tenant has no {', '.join(sorted(unknown))} that could be changed")
        with self._writing:
            row = replace(self.row(name), **values)
            check_tenant(row)
            if row.quota_cores < self.row(name).quota_cores:
                self._check_quota(name, row.quota_cores)
            with self.store.transaction() as t:
                t.put_tenant(row)
                note(t, who, source, "tenant.change", name, ", ".join(f"{k}={v}" for k, v in sorted(values.items())))
            self._rates.forget(name)
            self._publish(name, row)
        return row

    def _check_quota(self, name: str, cores: int) -> None:
        if self._holder is not None:
            try:
                self._holder.check_quota(name, cores)
            except QuotaError as error:
                raise ConflictError(str(error)) from None
            return
        with self.store.transaction() as t:
            charged = sum(lease.maximum for lease in t.leases(name))
        if cores < charged:
            raise ConflictError(
                f"the leases of tenant {name!r} may have {charged} cores: shrink or release them before its "
                f"quota becomes {cores}"
            )

    def remove(self, who: Identity, name: str, source: str = "") -> None:
        """Forget a tenant and its keys. Raises ConflictError if it still has leases or models."""
        self._require_admin(who)
        with self._writing:
            self.row(name)
            if self._holder is not None:
                self._holder.release_automatic(name)
            with self.store.transaction(freeing=True) as t:
                t.delete_tenant(name)
                note(t, who, source, "tenant.remove", name)
            self._publish_keys(gone=[key_id for key_id, row in self._ring.rows.items() if row.tenant == name])
            self._rates.forget(name)
            self._publish(name, None)

    # Keys

    def keys(self, who: Identity, tenant: str) -> list[KeyRow]:
        """Keys of a tenant ("": of operators), newest last, without their hashes."""
        self._require_sight(who, tenant)
        rows = [replace(row, hash="") for row in self._ring.rows.values() if row.tenant == tenant]
        return sorted(rows, key=lambda row: (row.created_at, row.key_id))

    def create_key(self, who: Identity, tenant: str, label: str = "", source: str = "") -> NewKey:
        """One more key for a tenant ("": for operators). Its text is shown this once."""
        self._require_sight(who, tenant)
        key, kept = self._new_key(tenant, label)
        with self._writing:
            if tenant:
                self.row(tenant)
            if sum(row.state == ACTIVE for row in self.keys(who, tenant)) >= KEYS_EACH:
                raise ConflictError(f"{KEYS_EACH} keys are the most that one tenant may have: revoke some")
            with self.store.transaction() as t:
                t.put_key(kept)
                note(t, who, source, "key.create", key.key_id, f"for {tenant or 'operators'}")
            self._publish_keys(kept)
        return key

    def rotate_key(self, who: Identity, key_id: str, source: str = "") -> NewKey:
        """A new key in the place of an old one, which stops to hold at once."""
        with self._writing:
            old = self._own_key(who, key_id)
            if old.state != ACTIVE:
                raise ConflictError(f"key {key_id} is revoked: create a new one")
            key, kept = self._new_key(old.tenant, old.label)
            revoked = replace(old, state=REVOKED)
            with self.store.transaction() as t:
                t.put_key(revoked)
                t.put_key(kept)
                note(t, who, source, "key.rotate", key_id, f"replaced by {key.key_id}")
            self._publish_keys(revoked, kept)
            if not old.tenant and self._in_file() == key_id:
                self._write_file(key)
        return key

    def revoke_key(self, who: Identity, key_id: str, source: str = "") -> None:
        """From now on the key does not hold. Revoking it again changes nothing.

        Raises ConflictError for the last key of the operators: it can be rotated.
        """
        with self._writing:
            old = self._own_key(who, key_id)
            if old.state != ACTIVE:
                return
            others = [row for row in self.keys(who, old.tenant) if row.state == ACTIVE and row.key_id != key_id]
            if not old.tenant and not others:
                raise ConflictError("the last key of the operators cannot be revoked: rotate it")
            revoked = replace(old, state=REVOKED)
            with self.store.transaction(freeing=True) as t:
                t.put_key(revoked)
                note(t, who, source, "key.revoke", key_id)
                forgotten = self._old_keys(old.tenant)
                for each in forgotten:
                    t.delete_key(each)
            self._publish_keys(revoked, gone=forgotten)

    def first_start(self) -> NewKey | None:
        """Make sure that operators have a key. Returns a new one if it was made, also written to ``admin.key``.

        That happens if there is none, or if the file is there but holds no key that is in force: to get a new key
        after all were lost, put an empty file there and start again. Keys made so before are revoked.
        """
        path = self.store.folder / ADMIN_FILE
        with self._writing:
            held = [row for row in self._ring.rows.values() if not row.tenant and row.state == ACTIVE]
            stale = path.exists() and self._in_file() not in {row.key_id for row in held}
            if held and not stale:
                return None
            key, kept = self._new_key("", ADMIN_FILE)
            self._write_file(key)  # before the row: a crash between the two leads here again
            revoked = [replace(row, state=REVOKED) for row in held if row.label == ADMIN_FILE]
            with self.store.transaction() as t:
                for row in [*revoked, kept]:
                    t.put_key(row)
                note(t, SYSTEM, "", "key.create", key.key_id, "for operators, at the start")
            self._publish_keys(*revoked, kept)
        return key

    # Audit

    def note(self, who: Identity, source: str, action: str, target: str, outcome: str = "ok", detail: str = "") -> None:
        """Add to the audit log what no transaction of its own does, such as a refusal."""
        self.store.audit(AuditRow(who.key_id, who.tenant, action, target, outcome, source, detail))

    def audits(self, who: Identity, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """The audit log after an entry's number: all of it for an operator, a tenant's own entries for a tenant."""
        return self.store.audits(None if who.role is Role.ADMIN else who.tenant, after, limit)

    # How

    def _new_key(self, tenant: str, label: str) -> tuple[NewKey, KeyRow]:
        if len(label) > LABEL_LENGTH or not label.isprintable():
            raise RequestError(f"a key's label is at most {LABEL_LENGTH} printable characters")
        key = make_key()
        made = datetime.now(UTC).isoformat(timespec="seconds")
        return key, KeyRow(key.key_id, tenant, self._hasher.hash(key.text), label, ACTIVE, made)

    def _own_key(self, who: Identity, key_id: str) -> KeyRow:
        row = self._ring.rows.get(key_id)
        if row is None or (who.role is not Role.ADMIN and row.tenant != who.tenant):
            raise NotFoundError(f"there is no key {key_id!r}")
        return row

    def _old_keys(self, tenant: str) -> list[str]:
        revoked = [row for row in self._ring.rows.values() if row.tenant == tenant and row.state != ACTIVE]
        revoked.sort(key=lambda row: (row.created_at, row.key_id))
        return [row.key_id for row in revoked[: max(len(revoked) + 1 - KEYS_EACH, 0)]]

    def _publish(self, name: str, row: TenantRow | None) -> None:
        """Make a tenant that was committed hold in memory, and tell the listeners."""
        others = {each: kept for each, kept in self._tenants.items() if each != name}
        self._tenants = MappingProxyType(others if row is None else {**others, name: row})
        for listener in self._listeners:
            listener(name, row)

    def _publish_keys(self, *rows: KeyRow, gone: Collection[str] = ()) -> None:
        """Make keys that were committed hold in memory."""
        changed = {**self._ring.rows, **{row.key_id: row for row in rows}}
        self._ring.replace({key_id: row for key_id, row in changed.items() if key_id not in gone})

    def _note_guessing(self, source: str) -> None:
        """One entry for a source that guesses, not one for each guess."""
        if self._rates.take(f"guessing {source}", Rate(1 / 3600, 1)) == 0:
            self.note(Identity(Role.TENANT, "", ""), source, "authenticate", "", "refused", "too many wrong keys")

    def _in_file(self) -> str:
        try:
            found = parse("Bearer " + (self.store.folder / ADMIN_FILE).read_text("ascii").strip())
        except (OSError, ValueError):
            return ""
        return found.key_id if found else ""

    def _write_file(self, key: NewKey) -> None:
        path: Path = self.store.folder / ADMIN_FILE
        with replacing(path) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"{key.text}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(path.parent)

    def _require_admin(self, who: Identity) -> None:
        if who.role is not Role.ADMIN:
            raise PermissionDeniedError("only an operator may do this: use an admin key")

    def _require_sight(self, who: Identity, tenant: str) -> None:
        """Raise NotFoundError unless ``who`` may know of the tenant, and it is there."""
        if who.role is not Role.ADMIN and (tenant != who.tenant or not tenant):
            raise no_tenant(tenant)
        if tenant:
            self.row(tenant)


_rate = lru_cache(1024)(Rate)  # made once: each request asks for its tenant's


def identity_of(row: KeyRow) -> Identity:
    return Identity(Role.TENANT if row.tenant else Role.ADMIN, row.tenant, row.key_id)


def no_tenant(name: str) -> NotFoundError:
    return NotFoundError(f"there is no tenant {name[:80]!r}")


def note(t: Transaction, who: Identity, source: str, action: str, target: str, detail: str = "") -> None:
    """Add to the audit log what a transaction does."""
    t.audit(AuditRow(who.key_id, who.tenant, action, target, "ok", source, detail))
