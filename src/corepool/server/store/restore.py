"""Puts a backup in the place of a damaged or lost SQLite store.

It must not know a running server: the folder must not be in use.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from corepool.errors import StoreError
from corepool.server.store import schema
from corepool.server.store.database import FILE_NAME
from corepool.server.store.faults import translated
from corepool.server.store.guard import FolderLock, MarkFile, fsync_folder, private_folder

# Epochs taken after the backup was made must not be taken again; the mark tells the last, unless it is lost too.
EPOCHS_SKIPPED = 1_000_000


def restore(backup: str | Path, state_dir: str | Path) -> Path | None:
    """Make a backup the store of a state folder. What was there is kept; its new name is returned, None if there was
    nothing.

    Raises StoreError if the folder is in use or the backup is damaged; the folder is then as before.
    """
    source, folder = Path(backup).absolute(), Path(state_dir).absolute()
    with translated(str(folder), folder):
        private_folder(folder)
        lock = FolderLock(folder / "lock")
        try:
            return _replace(source, folder)
        finally:
            lock.release()


def _replace(source: Path, folder: Path) -> Path | None:
    target, fresh = folder / FILE_NAME, folder / (FILE_NAME + ".restoring")
    with translated(str(source), source.parent):
        if not source.is_file():
            raise StoreError(f"the backup {source} is not a file")
        shutil.copyfile(source, fresh)
    fresh.chmod(0o600)
    mark = MarkFile(folder / "mark")
    noted = mark.read()
    mark.close()
    try:
        with translated(str(source), folder):
            _skip_epochs(fresh, noted.epoch if noted else 0)
    except StoreError:
        fresh.unlink(missing_ok=True)
        raise
    kept = _set_aside(target)
    # Without its mark the folder counts as new; with the database away and the mark there, opening is refused.
    fresh.replace(target)
    fsync_folder(folder)
    (folder / "mark").unlink(missing_ok=True)
    fsync_folder(folder)
    return kept


def _skip_epochs(path: Path, noted: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as handle:
        found = handle.execute("PRAGMA integrity_check(1)").fetchall()
        if found != [("ok",)]:
            raise StoreError(f"the backup is damaged ({found[0][0]}): use another")
        rows = handle.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchall()
        if not rows:
            raise StoreError("the backup is no store of corepool: use another")
        epoch = max(int(rows[0][0]), noted) + EPOCHS_SKIPPED
        row = schema.sealed(schema.meta, {"name": "epoch", "value": str(epoch)})
        handle.execute("UPDATE meta SET value = :value, seal = :seal WHERE name = :name", row)
        handle.execute("PRAGMA journal_mode = DELETE")
    file = os.open(path, os.O_RDWR)
    os.fsync(file)
    os.close(file)


def _set_aside(target: Path) -> Path | None:
    """Rename a database and its log; both are needed to look at it later."""
    kept = None
    number = 1
    while (aside := target.with_name(f"{target.name}.replaced{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        part = target.with_name(target.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
            kept = aside
    return kept
