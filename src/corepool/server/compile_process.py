"""Runs the compiler on a model that nobody vouches for, in a process of its own that is limited and can be killed.

It must not know tenants or where models come from.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corepool import errors
from corepool.errors import CalibrationError, CorepoolError, ModelError
from corepool.files import replacing
from corepool.server.settings import Compilation

CHILD = "corepool.server.compile_child"
PASSED = ("PATH", "LANG", "LC_ALL", "TZ", "NUMBA_CACHE_DIR")  # all else of the environment stays with the server
KEPT_BYTES = 4000  # of what the process says on stderr
LINE_BYTES = 1 << 20

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What to compile: an .onnx or .cpk file, calibration data or None, for which card, and where the package goes.

    Paths are absolute."""

    source: Path
    calibration: Path | None
    config: str
    output: Path


async def compile_model(job: Job, limits: Compilation, progress: Progress, warn: Callable[..., None]) -> dict[str, Any]:
    """Compile and return what was made. ``progress`` is told stages and shares; ``warn`` what operators should see.

    Raises ModelError and its like with the compiler's own words. Cancelling kills the process and all that it started.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", CHILD),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=LINE_BYTES,
        cwd=job.output.parent,
        env=await asyncio.to_thread(_environment),
    )
    assert process.stdin is not None
    assert process.stderr is not None
    said = asyncio.ensure_future(_last_words(process.stderr))
    try:
        async with asyncio.timeout(limits.wall_s):
            with contextlib.suppress(OSError, RuntimeError):  # it ended already; why, its last words tell
                process.stdin.write(_order(job, limits))
                process.stdin.close()
            made = await _listen(process, progress)
            await process.wait()
    except TimeoutError:
        raise ModelError(f"compiling took more than {limits.wall_s:g} seconds") from None
    finally:
        _kill(process)
        await process.wait()
        words = await said
    if process.returncode and words:
        warn("compiler said", words=words, returncode=process.returncode)
    return _outcome(job, made, process.returncode or 0, limits)


def _order(job: Job, limits: Compilation) -> bytes:
    bounds = {
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.file_bytes,
        "files": limits.files,
    }
    calibration = None if job.calibration is None else str(job.calibration)
    order = {"source": str(job.source), "calibration": calibration, "config": job.config, "output": str(job.output)}
    return (json.dumps({**order, "bounds": bounds}) + "\n").encode()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corepool"


def _seed(confined: Path) -> None:
    """Hand on what code the user has compiled already. Copies, so nothing comes back."""
    target = confined / "corepool" / "compiled"
    with contextlib.suppress(OSError):
        # Code (.nbc) goes before the index (.nbi) that names it.
        for file in sorted((_cache() / "compiled").rglob("*.nb?")):
            wanted = target / file.relative_to(_cache() / "compiled")
            if not wanted.exists():
                wanted.parent.mkdir(parents=True, exist_ok=True)
                with replacing(wanted) as copy:
                    copy.write(file.read_bytes())


def _environment() -> dict[str, str]:
    """No secrets, and a cache of compiled code that the server itself never reads."""
    cache = _cache() / "confined"
    _seed(cache)
    passed = {name: os.environ[name] for name in PASSED if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    return {**passed, **threads, "XDG_CACHE_HOME": str(cache), "HOME": str(cache), "ORT_DISABLE_TELEMETRY": "1"}


async def _listen(process: asyncio.subprocess.Process, progress: Progress) -> dict[str, Any]:
    """The process's lines until its end; the last that tells of an end counts."""
    assert process.stdout is not None
    end: dict[str, Any] = {}
    while True:
        try:
            line = await process.stdout.readline()
            said = json.loads(line) if line else None
        except ValueError:  # no JSON, or a line without end: whoever writes that is not our compiler any more
            raise ModelError("the compiler was led astray by this model") from None
        if said is None:
            return end
        if "stage" in said:
            progress(str(said["stage"])[:200], float(said["progress"]))
        elif "done" in said or "error" in said:
            end = said


async def _last_words(stream: asyncio.StreamReader) -> str:
    kept = b""
    while block := await stream.read(1 << 16):
        kept = (kept + block)[-KEPT_BYTES:]
    return kept.decode(errors="replace")


def _kill(process: asyncio.subprocess.Process) -> None:
    """End the process and everything in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _outcome(job: Job, end: dict[str, Any], code: int, limits: Compilation) -> dict[str, Any]:
    if "done" in end and code == 0:
        made: dict[str, Any] = end["done"]
        return made
    if "error" in end:
        kind = getattr(errors, str(end.get("kind")), ModelError)
        text = str(end["error"])
        if job.calibration is None and kind is CalibrationError:
            text += "; give it with --calibration, or PUT it before the model to .../versions/<version>/calibration"
        for folder in {job.source.parent, job.output.parent}:
            text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), "the upload")
        raise (kind if isinstance(kind, type) and issubclass(kind, CorepoolError) else ModelError)(text)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise ModelError(f"compiling took more than {limits.cpu_s} seconds of processor time, or was killed")
    if code < 0:
        raise ModelError(
            f"the compiler was stopped by {signal.Signals(-code).name}; its memory limit is {limits.memory_bytes} bytes"
        )
    raise ModelError(f"the compiler ended with code {code} and said nothing")
