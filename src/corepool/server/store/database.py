"""Opens the one connection that a store works with, SQLite or PostgreSQL, set up so that commits are durable.

It must not know the tables or what is stored in them.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.engine import Connection, RootTransaction
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError
from sqlalchemy.pool import NullPool

from corepool.errors import ConfigError, StoreError
from corepool.server.store.guard import require_writable

FILE_NAME = "corepool.db"
BUSY_MS = 5000
LOCK_PATIENCE_S = 0.5
RECONNECT_PATIENCE_S = 3.0
LOG_PAGES = 256  # the log is folded in at 1 MiB: releasing on a full disk must not need more room than the ballast
ADVISORY_LOCK = 0x636F7265706F6F6C  # "corepool"

# FULL: each commit waits for the disk. With NORMAL a power cut takes back what was acknowledged.
PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    f"busy_timeout = {BUSY_MS}",
    "cell_size_check = ON",
    "trusted_schema = OFF",
    f"wal_autocheckpoint = {LOG_PAGES}",
    "journal_size_limit = 4194304",
)


def parse_url(url: str | None, state_dir: Path) -> URL:
    """The database's address; None is a SQLite file in the state folder. Raises ConfigError for others."""
    if not url:
        return URL.create("sqlite", database=str(state_dir / FILE_NAME))
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError("database_url is no URL: use sqlite:///file.db or postgresql://user@host/name") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            return parsed.set(drivername="sqlite", database=str(state_dir / FILE_NAME))
        return parsed.set(drivername="sqlite", database=str(Path(str(parsed.database)).absolute()))
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigError(f"database_url: {backend} is not supported; use SQLite or PostgreSQL")


@contextmanager
def closed_on_failure(handle: Any) -> Iterator[None]:
    """Close a driver's connection if it cannot be set up: nobody else would."""
    try:
        yield
    except BaseException:
        handle.close()
        raise


class Database:
    """One connection, its file if it has one, and how it begins transactions.

    Raises what the libraries raise; callers translate. ``where`` names it in messages, without a password.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.sqlite = url.get_backend_name() == "sqlite"
        self.file = Path(str(url.database)) if self.sqlite else None
        self.where = str(self.file) if self.file else url.render_as_string(hide_password=True)
        self._engine = self._sqlite_engine() if self.sqlite else self._postgres_engine()
        self._identity: tuple[int, int] | None = None
        self.connection: Connection = self._patiently(self.connect, 0.0 if self.sqlite else LOCK_PATIENCE_S)

    def _sqlite_engine(self) -> Engine:
        engine = create_engine(
            self.url,
            poolclass=NullPool,
            connect_args={"check_same_thread": False, "isolation_level": None, "timeout": BUSY_MS / 1000},
        )

        @event.listens_for(engine, "connect")
        def prepare(handle: sqlite3.Connection, _record: Any) -> None:
            with closed_on_failure(handle):
                for pragma in PRAGMAS:
                    handle.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    def _postgres_engine(self) -> Engine:
        engine = create_engine(
            self.url, poolclass=NullPool, connect_args={"connect_timeout": 10, "application_name": "corepool"}
        )

        @event.listens_for(engine, "connect")
        def prepare(handle: Any, _record: Any) -> None:
            with closed_on_failure(handle):
                with handle.cursor() as cursor:
                    cursor.execute("SET synchronous_commit = on")
                    cursor.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_LOCK,))
                    taken = cursor.fetchone()[0]
                handle.commit()
                if not taken:
                    raise StoreError(
                        f"the database {self.where} is in use by another server: stop it, or name another database"
                    )

        return engine

    def connect(self) -> Connection:
        """Open the connection (anew). With PostgreSQL it takes the lock of the one server, or StoreError is raised."""
        if self.file is not None:
            if not self.file.exists():
                os.close(os.open(self.file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            status = self.file.stat()
            self._identity = (status.st_dev, status.st_ino)
        self.connection = self._engine.connect()
        return self.connection

    def reconnect(self) -> None:
        """Open a lost connection anew."""
        with suppress(Exception):
            self.connection.close()
        self._patiently(self.connect, RECONNECT_PATIENCE_S)

    @staticmethod
    def _patiently(connect: Callable[[], Connection], patience_s: float) -> Connection:
        """Connect; for some time, try again. A killed server's lock falls when PostgreSQL notices that it is gone."""
        last = time.monotonic() + patience_s
        while True:
            try:
                return connect()
            except (StoreError, DBAPIError):
                if time.monotonic() >= last:
                    raise
                time.sleep(0.05)

    def begin(self) -> RootTransaction:
        """Begin a transaction, for writing if it is SQLite's."""
        return self.connection.begin()

    def answers(self) -> bool:
        """Whether the connection still works; a SQLite file always does."""
        if self.sqlite:
            return True
        try:
            with self.connection.begin():
                self.connection.exec_driver_sql("SELECT 1")
        except (DBAPIError, InvalidRequestError):
            return False
        return True

    @property
    def handle(self) -> Any:
        """The driver's own connection."""
        return self.connection.connection.driver_connection

    def require_present(self) -> None:
        """Raise StoreError if the SQLite file was removed or replaced since it was opened."""
        if self.file is None:
            return
        try:
            status = self.file.stat()
            same = (status.st_dev, status.st_ino) == self._identity
        except OSError:
            same = False
        if not same:
            raise StoreError(f"the store {self.where} was removed or replaced while in use: restart the server")

    def require_writable(self) -> None:
        """Raise StoreError if changes would be refused, as far as that can be seen without one; within a
        transaction."""
        if self.file is None:
            if self.connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on":
                raise StoreError(f"the database {self.where} takes no changes: it is a copy that follows another one")
        elif not os.access(self.file, os.W_OK):
            raise StoreError(f"the store {self.where} cannot be written: check permissions, and how it is mounted")
        else:
            require_writable(self.file.parent)

    def close(self) -> None:
        self.connection.close()
        self._engine.dispose()
