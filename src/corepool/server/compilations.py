"""Compilations of models: queued, run a few at a time, to be asked how far they are, remembered for a while.

It must not know transports, engines or how a compilation is carried out.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from corepool.errors import CorepoolError, NotFoundError, ToolError, TooManyRequestsError
from corepool.server.compile_process import Job, Progress
from corepool.server.repository import Source
from corepool.server.settings import Compilation
from corepool.server.tensors import shown

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"


class Compiler(Protocol):
    """Carries a compilation out; compile_process.compile_model is one."""

    async def __call__(
        self, job: Job, limits: Compilation, progress: Progress, warn: Callable[..., None]
    ) -> dict[str, Any]: ...


@dataclass
class Compiling:
    """One compilation. ``progress`` goes from 0 to 1; ``error`` says what went wrong, ``made`` what came out.

    ``seconds`` is the time that it has run.
    """

    id: str
    tenant: str
    source: Source
    state: str = QUEUED
    stage: str = ""
    progress: float = 0.0
    error: CorepoolError | None = None
    made: dict[str, Any] = field(default_factory=dict)
    began: float | None = None
    ended: float | None = None
    task: asyncio.Task[Path] | None = None

    @property
    def seconds(self) -> float:
        if self.began is None:
            return 0.0
        return (time.monotonic() if self.ended is None else self.ended) - self.began

    def tell(self, stage: str, share: float) -> None:
        """How far it is; it never goes back."""
        self.stage, self.progress = stage, max(self.progress, min(share, 1.0))


class Compilations:
    """``work`` is a folder for what is half done; it is emptied at the start."""

    def __init__(
        self, work: Path, config: str, limits: Compilation, compiler: Compiler, warn: Callable[..., None]
    ) -> None:
        self._work = work
        self._config = config
        self._limits = limits
        self._compiler = compiler
        self._warn = warn
        self._slots = asyncio.Semaphore(limits.parallel)
        self._all: dict[str, Compiling] = {}
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, mode=0o700)

    def start(
        self,
        tenant: str,
        source: Source,
        finish: Callable[[Path], Path],
        give_up: Callable[[], None] = lambda: None,
    ) -> Compiling:
        """Compile a version for a tenant, or join the compilation of it that is under way.

        ``finish`` puts the package in its place; what it returns is the task's result. ``give_up`` is called if there
        is no package. Raises TooManyRequestsError.
        """
        open_ones = [each for each in self._all.values() if each.tenant == tenant and each.state in (QUEUED, RUNNING)]
        for each in open_ones:
            if (each.source.name, each.source.version) == (source.name, source.version):
                return each
        if len(open_ones) >= self._limits.waiting:
            raise TooManyRequestsError(
                f"{len(open_ones)} compilations of tenant {tenant!r} are under way: wait for one to end", 5.0
            )
        made = Compiling(secrets.token_hex(8), tenant, source)
        self._all[made.id] = made
        self._forget_old()
        made.task = asyncio.create_task(self._run(made, finish, give_up))
        made.task.add_done_callback(lambda task: None if task.cancelled() else task.exception())
        return made

    def get(self, tenant: str | None, ident: str) -> Compiling:
        """A compilation of the tenant's, anybody's for None. Raises NotFoundError."""
        found = self._all.get(ident)
        if found is None or tenant not in (None, found.tenant):
            raise NotFoundError(f"there is no compilation {shown(ident)}")
        return found

    def all(self, tenant: str | None) -> list[Compiling]:
        """The tenant's compilations, everybody's for None, oldest first."""
        return [each for each in self._all.values() if tenant in (None, each.tenant)]

    def latest(self, tenant: str, name: str, version: str) -> Compiling | None:
        """The newest compilation of a version."""
        found = [each for each in self.all(tenant) if (each.source.name, each.source.version) == (name, version)]
        return found[-1] if found else None

    def cancel(self, tenant: str | None, ident: str) -> Compiling:
        """Stop a compilation; one that has ended stays as it is. Raises NotFoundError."""
        found = self.get(tenant, ident)
        if found.task is not None:
            found.task.cancel()
        return found

    def cancel_all(self, tenant: str) -> None:
        """Stop what a tenant compiles, and forget it. May be called from any thread."""
        for one in [each for each in self._all.values() if each.tenant == tenant]:
            if one.task is not None and not one.task.done():
                one.task.get_loop().call_soon_threadsafe(one.task.cancel)
            self._all.pop(one.id, None)

    async def stop(self, one: Compiling) -> None:
        """Cancel, and wait until nothing of it is left."""
        if one.task is not None:
            one.task.cancel()
            await asyncio.wait((one.task,))

    async def wait(self, compiling: Compiling) -> Path:
        """What ``finish`` returned. Raises the compilation's error. Cancelling this leaves the compilation alone."""
        assert compiling.task is not None
        try:
            return await asyncio.shield(compiling.task)
        except asyncio.CancelledError:
            if compiling.task.cancelled():
                raise CorepoolError("the compilation was cancelled") from None
            raise

    async def close(self) -> None:
        """Stop everything."""
        tasks = [each.task for each in self._all.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, one: Compiling, finish: Callable[[Path], Path], give_up: Callable[[], None]) -> Path:
        folder = self._work / one.id
        try:
            async with self._slots:
                one.state, one.began = RUNNING, time.monotonic()
                folder.mkdir(mode=0o700)
                job = Job(one.source.path, one.source.calibration, self._config, folder / "package.cpk")
                one.made = await self._compiler(job, self._limits, one.tell, self._warn)
                result = await asyncio.to_thread(finish, job.output)
                one.state = DONE
                one.tell("done", 1.0)
                return result
        except CorepoolError as error:
            await self._fail(one, error, give_up)
            raise
        except asyncio.CancelledError:
            one.state = CANCELLED
            raise
        except Exception as error:
            self._warn("compilation crashed", model=one.source.name, error=f"{type(error).__name__}: {error}")
            await self._fail(one, internal := ToolError("internal error; the server's log has the details"), give_up)
            raise internal from None
        finally:
            one.ended = time.monotonic() if one.began is not None else None
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _fail(self, one: Compiling, error: CorepoolError, give_up: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(give_up)
        except OSError as trouble:
            self._warn("the upload before could not be restored", model=one.source.name, error=str(trouble))
        one.state, one.error = FAILED, error

    def _forget_old(self) -> None:
        ended = [each.id for each in self._all.values() if each.state in (DONE, FAILED, CANCELLED)]
        for ident in ended[: max(0, len(self._all) - self._limits.kept)]:
            del self._all[ident]
