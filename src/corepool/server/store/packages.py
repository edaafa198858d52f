"""Package files, kept under the SHA-256 of their content: whole or not there, and checked when they are used.

It must not know what packages hold, or which tenant uses which.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path

from corepool.errors import NotFoundError, PackageError, RequestError, StorageFullError, StoreError
from corepool.files import replacing
from corepool.server.store.faults import NO_ROOM, full
from corepool.server.store.guard import fsync_folder, private_folder

SUFFIX = ".cpk"
COPY_BYTES = 1 << 20


class Packages:
    """A folder of packages. All methods may be called from any thread."""

    def __init__(self, folder: Path, quarantine: Path, tidy: bool = True) -> None:
        """``tidy``: remove copies that were cut short, which only the folder's one owner may do."""
        self.folder = folder
        self.quarantine = quarantine
        private_folder(folder)
        for left in folder.glob(".*.tmp") if tidy else ():
            left.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a package lies or would lie. Raises RequestError unless ``sha256`` is 64 hexadecimal digits."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise RequestError(f"{sha256[:80]!r} is no SHA-256 of a package: 64 hexadecimal digits are")
        return self.folder / (sha256 + SUFFIX)

    def add(self, source: str | Path) -> str:
        """Copy a package in; on return it is on the disk. Returns its SHA-256.

        Raises RequestError if the source cannot be read, StorageFullError or StoreError if it cannot be kept.
        """
        try:
            with Path(source).open("rb") as file:
                sha256 = file_digest(file, "sha256").hexdigest()
                file.seek(0)
                target = self.path(sha256)
                if target.exists() and self._hash(target) == sha256:
                    return sha256
                try:
                    with replacing(target) as copy:
                        shutil.copyfileobj(file, copy, COPY_BYTES)
                        copy.flush()
                        os.fsync(copy.fileno())
                    fsync_folder(self.folder)
                except OSError as error:
                    raise self._refusal(error) from error
        except (OSError, ValueError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise RequestError(f"package {source}: {reason}") from error
        if self._hash(target) != sha256:
            target.unlink(missing_ok=True)
            raise RequestError(f"package {source} changed while it was read: hand it in again")
        return sha256

    def check(self, sha256: str) -> Path:
        """The file of a package, after a check of its content.

        Raises NotFoundError if it is not there. A wrong one is moved to quarantine and PackageError raised.
        """
        path = self.path(sha256)
        try:
            found = self._hash(path)
        except FileNotFoundError:
            raise NotFoundError(f"package {sha256} is not in {self.folder}: hand it in again") from None
        except OSError as error:
            raise StoreError(f"package {path} cannot be read: {os.strerror(error.errno or 0)}") from error
        if found == sha256:
            return path
        with suppress(OSError):
            private_folder(self.quarantine)
            path.replace(self.quarantine / path.name)
            fsync_folder(self.folder)
        raise PackageError(f"package {path.name} is damaged and was moved to {self.quarantine}: hand it in again")

    def sweep(self, used: Collection[str]) -> int:
        """Delete packages that no model uses. Returns how many."""
        count = 0
        for path in self.folder.glob("*" + SUFFIX):
            if path.stem not in used:
                path.unlink(missing_ok=True)
                count += 1
        return count

    def _hash(self, path: Path) -> str:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()

    def _refusal(self, error: OSError) -> StorageFullError | StoreError:
        if error.errno in NO_ROOM:
            return full(str(self.folder))
        return StoreError(f"packages cannot be kept in {self.folder}: {os.strerror(error.errno or 0)}")
