"""What tenants upload: files on disk, bounded per tenant, put in place whole or not at all.

It must not know compilers or transports.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from corepool.errors import CorepoolError, NotFoundError, RequestError, StorageFullError, StoreError, TooLargeError
from corepool.server.repository import CALIBRATION, ModelFolder, check_name, check_version
from corepool.server.tensors import shown

ONNX, PACKAGE = "model.onnx", "model.cpk"
STAMP = "package.sha256"  # beside a version's files once they have been compiled
ASIDE = ".before"  # a folder beside them: what was compiled, until what took its place has been too
PACKAGE_MAGIC = b"COREPOOL"
ZIP_MAGIC = b"PK\x03\x04"
RESERVE_BYTES = 256 << 20  # of the disk is left for durable state


class Uploads:
    """Each tenant's own folder of models below ``root``."""

    def __init__(self, root: Path, stored_bytes: int) -> None:
        self.root = root
        self._limit = stored_bytes
        self._writing: dict[str, int] = {}  # bytes of a tenant's uploads that are under way
        self._open: dict[str, list[threading.Event]] = {}  # of those, by tenant: set when the tenant was removed
        self._lock = threading.RLock()

    def folder(self, tenant: str) -> ModelFolder:
        """The tenant's models."""
        return ModelFolder(self.root / check_name(tenant))

    def used(self, tenant: str) -> int:
        """Bytes that a tenant's files take."""
        total = self._writing.get(tenant, 0)
        for folder, _, files in os.walk(self.root / check_name(tenant)):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    async def put_model(self, tenant: str, name: str, version: str, body: AsyncIterator[bytes]) -> Path:
        """Store an ONNX file or a package in the place of what was there; which of both, its beginning tells."""
        async with self._received(tenant, name, version, body) as (path, head):
            if not head:
                raise RequestError("the body is empty: send an ONNX file or a package")
            target, other = (PACKAGE, ONNX) if head.startswith(PACKAGE_MAGIC) else (ONNX, PACKAGE)
            _set_aside(path.parent)
            path.replace(path.parent / target)
            (path.parent / other).unlink(missing_ok=True)
            return path.parent / target

    async def put_calibration(self, tenant: str, name: str, version: str, body: AsyncIterator[bytes]) -> Path:
        """Store the calibration data of a version: a .npz file. Raises RequestError for anything else."""
        async with self._received(tenant, name, version, body) as (path, head):
            if not head.startswith(ZIP_MAGIC):
                raise RequestError("calibration data must be a .npz file with an array [N, ...] for each input")
            _set_aside(path.parent)
            path.replace(path.parent / CALIBRATION)
            return path.parent / CALIBRATION

    def prove(self, folder: Path) -> None:
        """What was uploaded into a version's folder has been compiled: what was there before is of no use any more."""
        shutil.rmtree(folder / ASIDE, ignore_errors=True)

    def restore(self, folder: Path) -> None:
        """What was uploaded cannot be compiled: put what was there before in its place, if that could be. May be
        repeated after a crash."""
        if not (folder / ASIDE).is_dir():
            return
        for name in (ONNX, PACKAGE, CALIBRATION):
            if (folder / ASIDE / name).exists():
                link = folder / f".{secrets.token_hex(8)}.part"
                os.link(folder / ASIDE / name, link)
                link.replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        self.prove(folder)

    def remove(self, tenant: str, name: str, version: str | None = None) -> None:
        """Delete a version, or all. Raises NotFoundError."""
        check_name(tenant)
        there = self.folder(tenant).sources(name)
        if not there or (version is not None and version not in there):
            raise NotFoundError(no_model(name, version))
        folder = self.root / tenant / name
        shutil.rmtree(folder / version if version is not None else folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if that was the last version

    def forget(self, tenant: str) -> None:
        """Delete all of a tenant's files, and those that are on their way: another one may get its name. May be called
        from any thread."""
        with self._lock:
            for each in self._open.get(tenant, ()):
                each.set()
            shutil.rmtree(self.root / check_name(tenant), ignore_errors=True)

    @contextlib.asynccontextmanager
    async def _received(
        self, tenant: str, name: str, version: str, body: AsyncIterator[bytes]
    ) -> AsyncIterator[tuple[Path, bytes]]:
        """A temporary file with the body, and its first bytes, to be put in its place; removed if it is not. Raises
        NotFoundError if the tenant was removed meanwhile."""
        gone = threading.Event()
        with self._lock:
            folder = self._version_folder(tenant, name, version)
            self._open.setdefault(tenant, []).append(gone)
        try:
            try:
                path, head = await self._receive(tenant, folder, body)
            except CorepoolError:
                if gone.is_set():
                    raise _gone(tenant) from None
                raise
            with self._lock:
                if gone.is_set():
                    raise _gone(tenant)
                try:
                    yield path, head
                finally:
                    path.unlink(missing_ok=True)
        finally:
            with self._lock:
                self._open[tenant].remove(gone)
                if not self._open[tenant]:
                    del self._open[tenant]

    def _version_folder(self, tenant: str, name: str, version: str) -> Path:
        folder = self.root / check_name(tenant) / check_name(name) / check_version(version)
        if not self.root.parent.is_dir():  # not to be made anew: what is stored there would be all that there is
            raise StoreError("the server's state folder is gone: nothing can be stored")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    async def _receive(self, tenant: str, folder: Path, body: AsyncIterator[bytes]) -> tuple[Path, bytes]:
        """A temporary file with the body, on disk when this returns, and its first bytes."""
        path = folder / f".{secrets.token_hex(8)}.part"
        left = self._limit - self.used(tenant)
        head, written = b"", 0
        try:
            with path.open("xb") as file:
                async for block in body:
                    written += len(block)
                    self._writing[tenant] = self._writing.get(tenant, 0) + len(block)
                    if written > left:
                        raise TooLargeError(
                            f"tenant {tenant!r} may store {self._limit} bytes of models: remove some first"
                        )
                    if shutil.disk_usage(folder).free < RESERVE_BYTES + len(block):
                        raise StorageFullError("the disk is nearly full: uploads are refused, the rest still works")
                    file.write(block)
                    head = head or bytes(block[:16])
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise StorageFullError(f"the upload cannot be stored: {error.strerror or error}") from None
            raise
        finally:
            others = self._writing.pop(tenant, 0) - written  # nothing is noted if not one byte came
            if others:
                self._writing[tenant] = others
        return path, head


def _set_aside(folder: Path) -> None:
    """Keep what was compiled while something else takes its place."""
    if (folder / ASIDE).is_dir() or not (folder / STAMP).is_file():
        return
    made = folder / f"{ASIDE}.part"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700)
    for name in (ONNX, PACKAGE, CALIBRATION):
        if (folder / name).exists():
            os.link(folder / name, made / name)
    made.rename(folder / ASIDE)


def _gone(tenant: str) -> NotFoundError:
    return NotFoundError(f"tenant {shown(tenant)} was removed while this was on its way")


def no_model(name: str, version: str | None = None) -> str:
    """The text for what is not there, or not the asker's."""
    return f"there is no model {shown(name)}" + ("" if version is None else f" version {shown(version)}")
