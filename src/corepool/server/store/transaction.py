"""What can be read and written inside one transaction of the store.

It must not know files, locks, or how the transaction begins and ends.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Table, delete, func, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from corepool.errors import ConflictError, NotFoundError, RequestError, StoreError
from corepool.server.store import schema
from corepool.server.store.records import DONE, OPEN, AuditRow, Intent, Json, KeyRow, LeaseRow, ModelRow, TenantRow

R = TypeVar("R")

ANSWERS_KEPT = 1000  # by tenant; older idempotency keys are forgotten
JOURNAL_KEPT = 10_000  # entries that are done
AUDIT_KEPT = 100_000
IDEMPOTENCY_KEY_LENGTH = 255


class Transaction:
    """Rows of all tables. Made by Store.transaction; of no use after its block.

    ``put_...`` inserts a row or replaces the one with the same key. Lists are sorted by key. Names that are not there
    raise NotFoundError where a method says so; damaged rows raise StoreError.
    """

    def __init__(self, connection: Connection, meta: dict[str, str]) -> None:
        self._connection = connection
        self._meta = meta
        self.changed = False
        self.audited: list[AuditRow] = []
        self._statements: list[Any] = []

    # Tenants and keys

    def tenants(self) -> list[TenantRow]:
        return self._all(schema.TENANTS)

    def tenant(self, name: str) -> TenantRow | None:
        return self._one(schema.TENANTS, name=name)

    def put_tenant(self, row: TenantRow) -> None:
        self._put(schema.TENANTS, row, ("name",))

    def delete_tenant(self, name: str) -> bool:
        """Forget a tenant, its keys and its remembered answers. Raises ConflictError if it still has leases or models.

        Returns whether it was there.
        """
        for what, held, verb in (("lease", self.leases(name), "release"), ("model", self.models(name), "unload")):
            for each in held:
                raise ConflictError(f"tenant {name!r} still has the {what} {each.name!r}: {verb} it first")
        self._delete(schema.keys, tenant=name)
        self._delete(schema.idempotency, tenant=name)
        return self._delete(schema.tenants, name=name)

    def keys(self, tenant: str | None = None) -> list[KeyRow]:
        """Keys of all, or of one tenant ("" for operators)."""
        return self._all(schema.KEYS) if tenant is None else self._all(schema.KEYS, tenant=tenant)

    def key(self, key_id: str) -> KeyRow | None:
        return self._one(schema.KEYS, key_id=key_id)

    def put_key(self, row: KeyRow) -> None:
        self._put(schema.KEYS, row, ("key_id",))

    def delete_key(self, key_id: str) -> bool:
        return self._delete(schema.keys, key_id=key_id)

    # Leases and models

    def leases(self, tenant: str | None = None) -> list[LeaseRow]:
        return self._all(schema.LEASES) if tenant is None else self._all(schema.LEASES, tenant=tenant)

    def lease(self, tenant: str, name: str) -> LeaseRow | None:
        return self._one(schema.LEASES, tenant=tenant, name=name)

    def put_lease(self, row: LeaseRow) -> None:
        """Raises NotFoundError if the tenant is not there."""
        self._require_tenant(row.tenant)
        self._put(schema.LEASES, row, ("tenant", "name"))

    def delete_lease(self, tenant: str, name: str) -> bool:
        """Returns whether it was there."""
        return self._delete(schema.leases, tenant=tenant, name=name)

    def models(self, tenant: str | None = None) -> list[ModelRow]:
        return self._all(schema.MODELS) if tenant is None else self._all(schema.MODELS, tenant=tenant)

    def model(self, tenant: str, name: str, version: str) -> ModelRow | None:
        return self._one(schema.MODELS, tenant=tenant, name=name, version=version)

    def put_model(self, row: ModelRow) -> None:
        """Raises NotFoundError if the tenant is not there."""
        self._require_tenant(row.tenant)
        self._put(schema.MODELS, row, ("tenant", "name", "version"))

    def delete_model(self, tenant: str, name: str, version: str) -> bool:
        """Returns whether it was there. The package file stays until Packages.sweep."""
        return self._delete(schema.models, tenant=tenant, name=name, version=version)

    # The journal

    def intend(self, kind: str, tenant: str, lease: str, epoch: int, payload: Json | None = None) -> int:
        """Note what is about to be done. Returns the entry's number, which grows."""
        number = self._next("journal_number")
        self._insert(schema.JOURNAL, Intent(number, kind, tenant, lease, epoch, payload or {}, OPEN))
        if number % 1000 == 0:
            table = schema.journal
            self._execute(delete(table).where(table.c.state != OPEN, table.c.id <= number - JOURNAL_KEPT))
        return number

    def intent(self, number: int) -> Intent | None:
        return self._one(schema.JOURNAL, id=number)

    def done(self, number: int, state: str = DONE) -> None:
        """Close an entry as "done" or "void". Closing it the same way again changes nothing.

        Raises StoreError if it is not there, or was closed the other way.
        """
        entry = self.intent(number)
        if entry is None or state == OPEN or entry.state not in (OPEN, state):
            found = "is not there" if entry is None else f"is {entry.state}"
            raise StoreError(f"journal entry {number} {found}: it cannot become {state}")
        if entry.state == state:
            return
        closed = Intent(entry.id, entry.kind, entry.tenant, entry.lease, entry.epoch, entry.payload, state)
        self._put(schema.JOURNAL, closed, ("id",))

    def open_intents(self) -> list[Intent]:
        """Entries that were begun and not closed, oldest first."""
        return self._all(schema.JOURNAL, state=OPEN)

    def next_epochs(self, count: int = 1) -> int:
        """Take ``count`` epochs that nobody ever had; returns the first. They grow for ever, also over restarts."""
        if count < 1:
            raise ValueError("at least one epoch must be asked for")
        first = int(self._meta["epoch"]) + 1
        self.put_meta("epoch", str(first + count - 1))
        return first

    def epoch(self) -> int:
        """The last epoch taken; 0 before the first."""
        return int(self._meta["epoch"])

    # Idempotency

    def recall(self, tenant: str, key: str, digest: str) -> Any | None:
        """The answer given to this idempotency key, or None for a new one.

        ``digest`` stands for the request. Raises ConflictError if the key came with another request, RequestError for
        a key that is empty or too long.
        """
        if not 0 < len(key) <= IDEMPOTENCY_KEY_LENGTH:
            raise RequestError(f"an idempotency key has 1 to {IDEMPOTENCY_KEY_LENGTH} characters, not {len(key)}")
        schema.require_text("idempotency key", key)
        table = schema.idempotency
        found = self._connection.execute(select(table).where(table.c.tenant == tenant, table.c.key == key)).mappings()
        for row in found:
            values = schema.unsealed(table, row)
            if values["digest"] != digest:
                raise ConflictError("the idempotency key was used for another request: choose a new one")
            return json.loads(values["answer"])
        return None

    def remember(self, tenant: str, key: str, digest: str, answer: Any) -> None:
        """Keep the answer (JSON, not None) given to an idempotency key; the newest 1000 of each tenant are kept.

        Raises ConflictError if the key is known.
        """
        if self.recall(tenant, key, digest) is not None:
            raise ConflictError("the idempotency key is in use: choose a new one")
        number = self._next("answer_number")
        values = {"tenant": tenant, "key": key, "number": number, "digest": digest, "answer": schema.canonical(answer)}
        table = schema.idempotency
        self._execute(insert(table).values(schema.sealed(table, values)))
        kept = select(func.count()).select_from(table).where(table.c.tenant == tenant)
        if self._connection.execute(kept).scalar_one() > ANSWERS_KEPT:
            oldest = select(func.min(table.c.number)).where(table.c.tenant == tenant).scalar_subquery()
            self._execute(delete(table).where(table.c.tenant == tenant, table.c.number == oldest))

    # Audit

    def audit(self, row: AuditRow) -> AuditRow:
        """Append to the audit log; number and time are filled in. Returns the row as stored."""
        number = self._next("audit_number")
        at = row.at or datetime.now(UTC).isoformat(timespec="milliseconds")
        stored = AuditRow(
            row.actor, row.tenant, row.action, row.target, row.outcome, row.source, row.detail, at, number
        )
        self._insert(schema.AUDIT, stored)
        self.audited.append(stored)
        if number % 1000 == 0:
            self._execute(delete(schema.audit).where(schema.audit.c.id <= number - AUDIT_KEPT))
        return stored

    def audits(self, tenant: str | None = None, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """Audit rows with numbers above ``after``, oldest first."""
        table = schema.audit
        query = select(table).where(table.c.id > after)
        if tenant is not None:
            query = query.where(table.c.tenant == tenant)
        rows = self._connection.execute(query.order_by(table.c.id).limit(limit)).mappings()
        return [schema.AUDIT.decode(row) for row in rows]

    # Small facts

    def meta(self, name: str) -> str | None:
        """A named fact, such as one about the device that must outlive the server."""
        return self._meta.get(name)

    def facts(self) -> dict[str, str]:
        """All facts as this transaction leaves them."""
        return self._meta

    def put_meta(self, name: str, value: str) -> None:
        row = schema.sealed(schema.meta, {"name": name, "value": value})
        if name in self._meta:
            self._execute(update(schema.meta).where(schema.meta.c.name == name).values(row))
        else:
            self._execute(insert(schema.meta).values(row))
        self._meta[name] = value

    def alive(self) -> bool:
        """True if the database answers at all."""
        return bool(self._connection.exec_driver_sql("SELECT 1").scalar_one())

    def repeat(self) -> None:
        """Write everything again, in a new transaction after the first was rolled back."""
        for statement in self._statements:
            self._connection.execute(statement)

    # How

    def _next(self, counter: str) -> int:
        number = int(self._meta.get(counter, "0")) + 1
        self.put_meta(counter, str(number))
        return number

    def _require_tenant(self, name: str) -> None:
        if self.tenant(name) is None:
            raise NotFoundError(f"there is no tenant {name!r}")

    def _all(self, shelf: schema.Shelf[R], **where: Any) -> list[R]:
        query = select(shelf.table).order_by(*shelf.table.primary_key.columns)
        for name, value in where.items():
            if isinstance(value, str) and not storable(name, value):
                return []
            query = query.where(shelf.table.c[name] == value)
        rows = [shelf.decode(row) for row in self._connection.execute(query).mappings()]
        if self._connection.dialect.name != "sqlite":  # collations differ; the order is ours
            names = [column.name for column in shelf.table.primary_key.columns]
            rows.sort(key=lambda row: tuple(getattr(row, name) for name in names))
        return rows

    def _one(self, shelf: schema.Shelf[R], **where: Any) -> R | None:
        found = self._all(shelf, **where)
        return found[0] if found else None

    def _insert(self, shelf: schema.Shelf[R], row: R) -> None:
        self._execute(insert(shelf.table).values(shelf.encode(row)))

    def _put(self, shelf: schema.Shelf[R], row: R, key: tuple[str, ...]) -> None:
        values = shelf.encode(row)
        query = update(shelf.table)
        for name in key:
            query = query.where(shelf.table.c[name] == values[name])
        if self._execute(query.values(values)) == 0:
            self._execute(insert(shelf.table).values(values))

    def _delete(self, table: Table, **where: Any) -> bool:
        query = delete(table)
        for name, value in where.items():
            query = query.where(table.c[name] == value)
        return self._execute(query) > 0

    def _execute(self, query: Any) -> int:
        self._statements.append(query)
        try:
            count = int(self._connection.execute(query).rowcount)
        except IntegrityError as error:
            raise ConflictError(f"a row contradicts what is stored ({error.orig})") from error
        self.changed = self.changed or count != 0  # -1: some drivers do not count inserted rows
        return count


def storable(name: str, value: str) -> bool:
    """Whether a text can be in the store at all; what cannot is not there."""
    try:
        schema.require_text(name, value)
    except RequestError:
        return False
    return True
