"""Files beside the database: the lock of the one daemon, the high-water mark, and the ballast.

It must not know tables.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from corepool.errors import StoreError

# A release writes some ten pages of 4 KiB into the log, which is used anew from 1 MiB on: 4 MiB are never used up.
BALLAST_BYTES = 4 << 20
RESERVE_BYTES = 16 << 20  # below this much free room nothing new is admitted

# After a loss that was accepted, or a restored backup, epochs go on so far above the last one known.
EPOCHS_SKIPPED = 1_000_000


class FolderLock:
    """Held while a daemon uses a state folder. Raises StoreError if another one does.

    The kernel gives it up when the process ends, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(self._file, 20).decode("ascii", "replace").strip()
            os.close(self._file)
            by = f" (process {other})" if other.isdigit() else ""
            raise StoreError(
                f"the state folder {path.parent} is in use by another server{by}: stop it, or name another folder"
            ) from None
        with suppress(OSError):  # a full disk; the number is for people only
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a store had come when it last acknowledged something."""

    server: str
    serial: int
    epoch: int


class MarkFile:
    """Remembers, outside the database, how far it had come.

    Written after each commit, without waiting for the disk: after a power cut it may be behind, never ahead. A
    database that is behind its mark has lost acknowledged operations: damage at the end of its log, or an older file.
    """

    SIZE = 128

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @staticmethod
    def _sum(body: str) -> str:
        return blake2b(body.encode(), digest_size=8).hexdigest()

    def read(self) -> Mark | None:
        """The mark, or None if there is none or it is unreadable."""
        try:
            body, found = os.pread(self._file, self.SIZE, 0).decode("ascii").rstrip().rsplit(" ", 1)
            server, serial, epoch = body.split(" ")
            return Mark(server, int(serial), int(epoch)) if found == self._sum(body) else None
        except (OSError, ValueError):
            return None

    def write(self, mark: Mark) -> None:
        """Note a mark; a full disk is borne, since the mark may be behind."""
        body = f"{mark.server} {mark.serial} {mark.epoch}"
        line = f"{body} {self._sum(body)}".ljust(self.SIZE - 1) + "\n"
        with suppress(OSError):
            os.pwrite(self._file, line.encode(), 0)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Ballast:
    """Room kept back on the disk, given up when it is full so that releasing still works."""

    def __init__(self, path: Path, size: int = BALLAST_BYTES) -> None:
        self.path = path
        self.size = size

    @property
    def held(self) -> bool:
        try:
            return self.size == 0 or self.path.stat().st_size >= self.size
        except OSError:
            return False

    def fill(self) -> None:
        """Take the room if it is there."""
        if self.held or not roomy(self.path.parent, self.size):
            return
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(os.urandom(self.size))  # incompressible: a packing file system has to keep room for it
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self.release()

    def release(self) -> bool:
        """Give the room up. Returns whether there was any."""
        try:
            freed = self.path.stat().st_size > 0
            # Truncated through a write-only handle: where not even a folder entry can be changed, this can.
            os.truncate(self.path, 0)
            return freed
        except OSError:
            return False


def roomy(folder: Path, more: int = 0) -> bool:
    """Whether the reserve is free on the folder's disk, beside ``more`` bytes; of a small disk a twentieth will do."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return True  # the write itself will tell
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    return free - more >= min(RESERVE_BYTES, size // 20)


def fsync_folder(path: Path) -> None:
    """Make new names in a folder survive a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private_folder(path: Path) -> None:
    """Make a folder that its owner alone may enter. Raises OSError."""
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fsync_folder(path.parent)


def require_writable(folder: Path) -> None:
    """Raise StoreError if a folder is gone, or nothing can be made in it."""
    if not folder.is_dir():
        raise StoreError(f"the folder {folder} is gone: restart the server once it is there again")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"the folder {folder} cannot be written: check its permissions, and how it is mounted")
