"""The one door to numba: its decorator, with a cache on disk that can never be stale.

It must not know what is compiled. numba keeps compiled code until the function's own file changes, even if a function
that it calls in another file did change. So the cache's folder is named after the contents of all files that matter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

_COMPILED = (b"njit", b"@hot", b"@inlined")  # what files with compiled functions hold
_CONSTANTS = ("table.py", "tables.py", "rows.py")  # whose numbers compiled code has taken in
_KEPT_SECONDS = 14 * 86400  # folders of other versions go when nobody has used them for so long


def _digest() -> str:
    """16 hex digits over numba's version and all files with compiled functions or their constants."""
    root = Path(__file__).parent
    state = hashlib.sha256(numba.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        text = path.read_bytes()
        if path.name in _CONSTANTS or any(mark in text for mark in _COMPILED):
            state.update(str(path.relative_to(root)).encode())
            state.update(text)
    return state.hexdigest()[:16]


def _prepare() -> None:
    """Point numba at a folder for exactly this source, unless the user has chosen one (NUMBA_CACHE_DIR)."""
    if numba.config.CACHE_DIR:  # type: ignore[attr-defined]
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corepool" / "compiled"
    folder = base / _digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        for other in base.iterdir():
            if time.time() - other.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:
        return  # no home to write to: numba falls back to folders of its own
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]


def _own_names() -> None:
    """Give each piece of compiled code that is saved a file name of its own.

    numba numbers the files of a function: two processes that compile it for different types at the same time both take
    the first free number, and the code of one may then be found under the other's types. Whoever loads it crashes.
    """

    def data_name(self: Any, number: int) -> str:
        return f"{self._index_name.removesuffix('.nbi')}.{number}-{uuid.uuid4().hex[:16]}.nbc"

    caching.IndexDataCacheFile._data_name = data_name  # type: ignore[method-assign]


_prepare()
_own_names()

njit: Callable[..., Any] = numba.njit
