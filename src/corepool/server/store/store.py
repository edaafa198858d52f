"""The durable store: one folder, one database, one daemon; whatever it acknowledges is on the disk.

It must not know what leases or models mean, nor who asks.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.engine import RootTransaction
from sqlalchemy.exc import DBAPIError

from corepool.errors import CorepoolError, StoreError
from corepool.server.store import schema
from corepool.server.store.database import Database, parse_url
from corepool.server.store.faults import RESTORE, full, translated
from corepool.server.store.guard import (
    BALLAST_BYTES,
    EPOCHS_SKIPPED,
    Ballast,
    FolderLock,
    Mark,
    MarkFile,
    private_folder,
    require_writable,
    roomy,
)
from corepool.server.store.migrate import migrate
from corepool.server.store.packages import Packages
from corepool.server.store.records import DONE, AuditRow, Intent, Json, KeyRow, LeaseRow, ModelRow, TenantRow
from corepool.server.store.transaction import Transaction

T = TypeVar("T")

ACCEPT = f"{RESTORE}, or accept the loss with 'corepool store accept'"


class Store:
    """Tenants, keys, leases, models, journal, answers and audit, in SQLite (``url`` None) or PostgreSQL.

    Safe to use from any thread: one transaction runs at a time. Opening locks the folder, migrates an older schema,
    and reads every row but the audit log; it raises StoreError for a folder in use, damage, or a newer schema, and
    ConfigError for an unusable URL. Methods raise StorageFullError when nothing new fits, StoreError when the database
    fails; what was not acknowledged is then as before.
    """

    def __init__(
        self,
        url: str | None,
        state_dir: str | Path,
        ballast_bytes: int = BALLAST_BYTES,
        accept_loss: bool = False,
    ) -> None:
        """``accept_loss``: open a database that is behind what was acknowledged; epochs then skip ahead."""
        self.folder = Path(state_dir).absolute()
        address = parse_url(url, self.folder)
        self.where = str(address.database) if address.get_backend_name() == "sqlite" else address.render_as_string()
        self._accept_loss = accept_loss
        self._mutex = threading.RLock()
        self._current: Transaction | None = None
        self._meta: dict[str, str] = {}
        self._closers: list[Callable[[], None]] = []
        self.audit_sinks: list[Callable[[AuditRow], None]] = []
        try:
            with translated(self.where, self.folder):
                private_folder(self.folder)
                lock = FolderLock(self.folder / "lock")
                self._closers.append(lock.release)
                self._mark = MarkFile(self.folder / "mark")
                self._closers.append(self._mark.close)
                self._database = Database(address)
                self._closers.append(self._database.close)
                self.migrated_from = self._open()
                self.ballast = Ballast(self.folder / "ballast", ballast_bytes)
                self.ballast.fill()
                self.packages = Packages(self.folder / "packages", self.folder / "quarantine")
        except BaseException:
            self.close()
            raise

    # Opening and closing

    def _open(self) -> str | None:
        self._check_pages()
        before = migrate(self._database, self._finish_migration)
        with self._database.begin():
            self._meta = self._read_meta()
            if "server_id" not in self._meta:
                raise StoreError(f"the store {self.where} has lost its first rows: {RESTORE}")
            if self._database.sqlite and self._meta.get("schema_digest") != self._schema_digest():
                raise StoreError(f"the store {self.where} is damaged (its table definitions changed): {RESTORE}")
            self._check_rows(Transaction(self._database.connection, self._meta))
        self._check_mark()
        self._note_mark()
        return before

    def _finish_migration(self) -> None:
        """What belongs into the transaction that makes or changes the tables."""
        transaction = Transaction(self._database.connection, self._read_meta())
        if transaction.meta("server_id") is None:
            first = str(self._first_epoch())
            for name, value in (("server_id", secrets.token_hex(8)), ("serial", "0"), ("epoch", first)):
                transaction.put_meta(name, value)
        if self._database.sqlite:
            transaction.put_meta("schema_digest", self._schema_digest())

    def _check_pages(self) -> None:
        """Raise StoreError if SQLite finds its pages in disorder."""
        if not self._database.sqlite:
            return
        found = self._database.handle.execute("PRAGMA integrity_check(1)").fetchall()
        if found != [("ok",)]:
            said = str(found[0][0]).splitlines()[-1]
            code = re.search(r"error code=(\d+)", said)
            if code and int(code[1]) & 0xFF == sqlite3.SQLITE_IOERR:  # no disorder: the page could not be read at all
                raise StoreError(f"the store {self.where} cannot be read ({said}): look at the disk")
            raise StoreError(f"the store {self.where} is damaged ({said}): {RESTORE}")

    def _schema_digest(self) -> str:
        rows = self._database.handle.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall()
        return schema.digest_of([list(row) for row in rows])

    def _read_meta(self) -> dict[str, str]:
        rows = self._database.connection.execute(select(schema.meta)).mappings()
        values = (schema.unsealed(schema.meta, row) for row in rows)
        return {each["name"]: each["value"] for each in values}

    def _check_rows(self, transaction: Transaction) -> None:
        for each in (transaction.tenants, transaction.keys, transaction.leases, transaction.models):
            each()
        transaction.open_intents()

    def _first_epoch(self) -> int:
        """Where a new store's epochs begin. Raises StoreError if the folder has been used with another database."""
        mark = self._mark.read()
        if mark is None:
            return 0
        if not self._accept_loss:
            raise StoreError(f"the store {self.where} is empty, but {self.folder} was used before: {ACCEPT}")
        return mark.epoch + EPOCHS_SKIPPED

    def _check_mark(self) -> None:
        mark = self._mark.read()
        if mark is None or mark.server != self.server_id:
            return
        if mark.serial <= self.serial and mark.epoch <= self.epoch():
            return
        if not self._accept_loss:
            raise StoreError(
                f"the store {self.where} has lost its last acknowledged changes (it is at {self.serial}, "
                f"{mark.serial} were made): {ACCEPT}"
            )
        with self._database.begin():
            transaction = Transaction(self._database.connection, self._meta)
            transaction.put_meta("epoch", str(max(mark.epoch, self.epoch()) + EPOCHS_SKIPPED))

    def _note_mark(self) -> None:
        self._mark.write(Mark(self.server_id, int(self._meta["serial"]), int(self._meta["epoch"])))

    def close(self) -> None:
        """Give the folder back. Nothing is lost if this is never called."""
        with self._mutex:
            while self._closers:
                with suppress(Exception):
                    self._closers.pop()()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def server_id(self) -> str:
        """Names this store for ever, also after a move."""
        return self._meta["server_id"]

    @property
    def serial(self) -> int:
        """How many transactions were committed."""
        return int(self._meta["serial"])

    # Transactions

    @contextmanager
    def transaction(self, freeing: bool = False) -> Iterator[Transaction]:
        """All writes of the block are durable when it ends, or none is if it raises.

        ``freeing``: the block gives room back (a release, a revocation, an entry done). It is admitted on a full disk
        too, if need be at the cost of the ballast. Blocks inside blocks of the same thread join the outer one.
        """
        with self._mutex:
            if self._current is not None:
                yield self._current
                return
            with translated(self.where, self.folder):
                self._require_open()
                self._database.require_present()
                yield from self._run(freeing)

    def _run(self, freeing: bool) -> Iterator[Transaction]:
        begun = self._begin()
        transaction = Transaction(self._database.connection, dict(self._meta))
        self._current = transaction
        try:
            yield transaction
            self._current = None
            if not transaction.changed:
                begun.rollback()
                return
            if not freeing:
                self._require_room()
            transaction.put_meta("serial", str(self.serial + 1))
            self._commit(begun, transaction, freeing)
        except BaseException:
            with suppress(Exception):
                begun.rollback()
            raise
        finally:
            self._current = None
        self._meta = transaction.facts()
        self._note_mark()
        for row in transaction.audited:
            for sink in self.audit_sinks:
                sink(row)

    def _require_room(self) -> None:
        """Raise StorageFullError if nothing new is to be admitted: the disk is nearly full, or the ballast was used."""
        self.ballast.fill()
        if not (self.ballast.held and roomy(self.folder)):
            raise full(self.where)

    def _begin(self) -> RootTransaction:
        if not self._database.answers():
            self._resume()
        return self._database.begin()

    def _resume(self) -> None:
        """Connect anew after the database went away. Raises StoreError if it is not as it was left."""
        self._database.reconnect()
        with self._database.begin():
            found = self._read_meta()
        if found.get("server_id") != self.server_id or int(found["serial"]) < self.serial:
            raise StoreError(f"the store {self.where} came back without acknowledged changes: {RESTORE}")
        self._meta = found

    def _commit(self, begun: RootTransaction, transaction: Transaction, freeing: bool) -> None:
        """Commit. What frees room is tried again on a full disk, at the cost of the ballast; whether a commit that a
        lost connection cut short took place, the database is asked."""
        aim = self.serial + 1
        if freeing and not roomy(self.folder):
            self.ballast.release()
        try:
            begun.commit()
        except DBAPIError as error:
            if not self._database.sqlite:
                if not error.connection_invalidated:
                    raise
                self._resume()
                if self.serial != aim:
                    raise
                return
            if not (freeing and self.ballast.release()):
                raise
            begun.rollback()  # SQLite has done so already
            with self._database.begin():
                transaction.repeat()

    def _require_open(self) -> None:
        if not self._closers:
            raise StoreError(f"the store {self.where} is closed")

    def _write(self, work: Callable[[Transaction], T], freeing: bool = False) -> T:
        with self.transaction(freeing) as transaction:
            return work(transaction)

    def _read(self, work: Callable[[Transaction], T]) -> T:
        with self.transaction(freeing=True) as transaction:
            return work(transaction)

    # One call, one transaction; see Transaction for what each does

    def tenants(self) -> list[TenantRow]:
        return self._read(lambda t: t.tenants())

    def tenant(self, name: str) -> TenantRow | None:
        return self._read(lambda t: t.tenant(name))

    def put_tenant(self, row: TenantRow) -> None:
        self._write(lambda t: t.put_tenant(row))

    def delete_tenant(self, name: str) -> bool:
        return self._write(lambda t: t.delete_tenant(name), freeing=True)

    def keys(self, tenant: str | None = None) -> list[KeyRow]:
        return self._read(lambda t: t.keys(tenant))

    def put_key(self, row: KeyRow) -> None:
        self._write(lambda t: t.put_key(row))

    def leases(self, tenant: str | None = None) -> list[LeaseRow]:
        return self._read(lambda t: t.leases(tenant))

    def lease(self, tenant: str, name: str) -> LeaseRow | None:
        return self._read(lambda t: t.lease(tenant, name))

    def put_lease(self, row: LeaseRow, freeing: bool = False) -> None:
        self._write(lambda t: t.put_lease(row), freeing)

    def delete_lease(self, tenant: str, name: str) -> bool:
        return self._write(lambda t: t.delete_lease(tenant, name), freeing=True)

    def models(self, tenant: str | None = None) -> list[ModelRow]:
        return self._read(lambda t: t.models(tenant))

    def put_model(self, row: ModelRow) -> None:
        self._write(lambda t: t.put_model(row))

    def delete_model(self, tenant: str, name: str, version: str) -> bool:
        return self._write(lambda t: t.delete_model(tenant, name, version), freeing=True)

    def intend(
        self, kind: str, tenant: str, lease: str, epoch: int, payload: Json | None = None, freeing: bool = False
    ) -> int:
        return self._write(lambda t: t.intend(kind, tenant, lease, epoch, payload), freeing)

    def done(self, number: int, state: str = DONE) -> None:
        self._write(lambda t: t.done(number, state), freeing=True)

    def open_intents(self) -> list[Intent]:
        return self._read(lambda t: t.open_intents())

    def next_epochs(self, count: int = 1, freeing: bool = False) -> int:
        return self._write(lambda t: t.next_epochs(count), freeing)

    def epoch(self) -> int:
        return int(self._meta["epoch"])

    def recall(self, tenant: str, key: str, digest: str) -> Any | None:
        return self._read(lambda t: t.recall(tenant, key, digest))

    def remember(self, tenant: str, key: str, digest: str, answer: Any) -> None:
        self._write(lambda t: t.remember(tenant, key, digest, answer))

    def audit(self, row: AuditRow) -> AuditRow:
        return self._write(lambda t: t.audit(row), freeing=True)

    def audits(self, tenant: str | None = None, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        return self._read(lambda t: t.audits(tenant, after, limit))

    # Care

    def alive(self) -> bool:
        """Whether the database answers."""
        try:
            return self._read(lambda t: t.alive())
        except CorepoolError:
            return False

    def check(self) -> None:
        """Raise StoreError unless the store can be written now. A lost connection is made anew. Nothing is written. A
        full disk is no reason: what needs no room still works."""
        with self.transaction(freeing=True) as transaction:
            transaction.alive()
            self._database.require_writable()
            require_writable(self.folder)
