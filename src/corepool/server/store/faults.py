"""Turns what databases and file systems raise into the project's own errors.

It must not know tables or transactions.
"""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from corepool.errors import ConflictError, StorageFullError, StoreError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
PROBE_BYTES = 65536
RESTORE = "restore a backup (see docs/operations.md)"


def full(where: str) -> StorageFullError:
    return StorageFullError(f"no room left for the store in {where}: free some space; releasing still works")


def has_room(folder: Path, size: int = PROBE_BYTES) -> bool:
    """Whether ``size`` more bytes can be written into the folder, and to the end of its largest file."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    try:
        largest = max((each.stat().st_size for each in folder.iterdir()), default=0)
        if limit != resource.RLIM_INFINITY and largest + size > limit:
            return False
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            left = size
            while left > 0:
                left -= file.write(b"\xa5" * min(left, PROBE_BYTES))
    except OSError as error:
        return error.errno not in NO_ROOM
    return True


def one_line(error: BaseException) -> str:
    """What an error says, on one line that is not long."""
    return " ".join(str(error).split())[:200]


def of_sqlite(error: sqlite3.Error, where: str, folder: Path) -> StoreError | StorageFullError | ConflictError:
    """The project's error for one of SQLite's."""
    said = one_line(error)
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary == sqlite3.SQLITE_FULL:
        return full(where)
    if primary == sqlite3.SQLITE_IOERR:
        if not has_room(folder):
            return full(where)
        return StoreError(f"the store {where} cannot be read or written ({said}): look at the disk")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(f"the store {where} is damaged ({said}): {RESTORE}")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(f"the store {where} is held by another process: stop it, or use another state folder")
    if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        advice = "check the folder's permissions; if they are right, restore a backup"
        return StoreError(f"the store {where} cannot be opened for writing ({said}): {advice}")
    if primary == sqlite3.SQLITE_CONSTRAINT:
        return ConflictError(f"a row contradicts what is stored ({said})")
    return StoreError(f"the store {where} does not answer as it should ({said}): {RESTORE}")


def of_postgres(error: DBAPIError, where: str) -> StoreError | StorageFullError | ConflictError:
    """The project's error for one of PostgreSQL's."""
    state = str(getattr(error.orig, "sqlstate", "") or "")
    said = one_line(error.orig) if error.orig else type(error).__name__
    if state in ("53100", "53200"):
        return full(where)
    if state.startswith("23") or state == "P0001":
        return ConflictError(f"a row contradicts what is stored ({said})")
    return StoreError(f"the database {where} does not answer as it should ({said})")


@contextmanager
def translated(where: str, folder: Path) -> Iterator[None]:
    """Raise StoreError, StorageFullError or ConflictError in place of what the libraries raise; ``where`` names the
    store, ``folder`` is where its files lie."""
    try:
        yield
    except StoreError as error:
        if where in str(error) or str(folder) in str(error):
            raise
        raise StoreError(f"the store {where}: {error}") from error
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise of_sqlite(error.orig, where, folder) from error
        raise of_postgres(error, where) from error
    except sqlite3.Error as error:
        raise of_sqlite(error, where, folder) from error
    except SQLAlchemyError as error:
        raise StoreError(f"the store {where} does not answer as it should ({one_line(error)}): {RESTORE}") from error
    except (UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise StoreError(f"the store {where} is damaged ({type(error).__name__}): {RESTORE}") from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise full(where) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StoreError(f"the store {where} cannot be used: {reason}") from error
