"""Keeps NumPy's matrix products on one thread for a while.

It must not know what is multiplied. A core's products are small: threads that wait for each other at the end of each
gain little on an idle machine and lose a factor of ten on a busy one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

_lock = Lock()
_inside: list[int] = []  # the number of threads to go back to, once for each block that is open


@cache
def _control() -> tuple[Any, Any] | None:
    """Functions of the OpenBLAS that NumPy's wheels carry, to get and set its number of threads; None if not found."""
    folder = Path(np.__file__).resolve().parent
    for file in [*folder.parent.glob("numpy.libs/*openblas*"), *folder.glob(".dylibs/*openblas*")]:
        try:
            library = ctypes.CDLL(str(file))
        except OSError:
            continue
        for prefix, suffix in (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", "")):
            get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
            put = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
            if get is not None and put is not None:
                return get, put
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block, products use one thread where the library can be told; elsewhere nothing changes."""
    control = _control()
    if control is None:
        yield
        return
    get, put = control
    with _lock:
        _inside.append(_inside[0] if _inside else int(get()))
        put(1)
    try:
        yield
    finally:
        with _lock:
            before = _inside.pop()
            if not _inside:
                put(before)
