"""Copies a SQLite store and its packages while a server uses them, and puts such a copy back.

It must not know a running server: to restore, the folder must not be in use.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from corepool.errors import CorepoolError, NotFoundError, PackageError, StoreError
from corepool.server.store import schema
from corepool.server.store.database import FILE_NAME
from corepool.server.store.faults import translated
from corepool.server.store.guard import EPOCHS_SKIPPED, FolderLock, MarkFile, fsync_folder, private_folder
from corepool.server.store.migrate import copy
from corepool.server.store.packages import Packages


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy that was made: its folder, how many packages it has, and those that were missing or damaged."""

    folder: Path
    packages: int
    missing: tuple[str, ...]


def backup(state_dir: str | Path, target: str | Path) -> Backup:
    """Copy the database and the packages that models use into a new folder; a server may run meanwhile.

    Raises StoreError if there is no SQLite store, if it is damaged, or if the target exists or cannot be written;
    StorageFullError. Nothing is left of a copy that failed.
    """
    folder, made = Path(state_dir).absolute(), Path(target).absolute()
    if not (folder / FILE_NAME).is_file():
        raise StoreError(f"{folder} holds no SQLite store (PostgreSQL is backed up with pg_dump)")
    if made.exists():
        raise StoreError(f"{made} exists: name a new folder for the backup")
    try:
        with translated(str(made), made.parent):
            private_folder(made)
            _copy_database(folder / FILE_NAME, made / FILE_NAME)
            used = _checked(made / FILE_NAME)
            done, missing = _copy_packages(folder, made, used)
            fsync_folder(made)
    except CorepoolError:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return Backup(made, done, missing)


def _copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True, timeout=10)) as handle:
        copy(handle, target)
    with closing(sqlite3.connect(target)) as handle:
        handle.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
    file = os.open(target, os.O_RDWR)
    os.fsync(file)
    os.close(file)


def _copy_packages(folder: Path, made: Path, used: list[str]) -> tuple[int, tuple[str, ...]]:
    source = Packages(folder / "packages", folder / "quarantine", tidy=False)
    target = Packages(made / "packages", made / "quarantine", tidy=False)
    missing = []
    for sha256 in used:
        try:
            target.add(source.check(sha256))
        except (NotFoundError, PackageError):
            missing.append(sha256)
    return len(used) - len(missing), tuple(missing)


def _checked(path: Path) -> list[str]:
    """Hashes of the packages that the models of a database use. Raises StoreError if it is no sound store."""
    with closing(sqlite3.connect(path)) as handle:
        found = handle.execute("PRAGMA integrity_check(1)").fetchall()
        if found != [("ok",)]:
            raise StoreError(f"the store is damaged ({found[0][0]}): use another backup")
        tables = {row[0] for row in handle.execute("SELECT name FROM sqlite_master")}
        if not {"meta", "models", "tenants"} <= tables:
            raise StoreError("this is no store of corepool: use another backup")
        return sorted({str(row[0]) for row in handle.execute("SELECT sha256 FROM models")})


def restore(backup: str | Path, state_dir: str | Path) -> Path | None:
    """Make a backup (its folder, or the database file alone) the store of a state folder.

    What was there is kept; its new name is returned, None if there was nothing. Epochs go on above all that were taken.
    Raises StoreError if the folder is in use or the backup is damaged; the folder is then as before.
    """
    source, folder = Path(backup).absolute(), Path(state_dir).absolute()
    packages = []
    if source.is_dir():
        packages = sorted((source / "packages").glob("*.cpk"))
        source = source / FILE_NAME
    with translated(str(folder), folder):
        private_folder(folder)
        lock = FolderLock(folder / "lock")
        try:
            kept = Packages(folder / "packages", folder / "quarantine")
            for path in packages:
                kept.add(path)
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
    _checked(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as handle:
        rows = handle.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchall()
        if not rows:
            raise StoreError("this is no store of corepool: use another backup")
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
