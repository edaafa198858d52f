"""How the compiler's hot loops are compiled: one place for numba's options.

It must not know any loop. Functions compiled with it may not allocate: their scratch arrays come from the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from corepool.jit import EIGHT, fetch, meet, njit, one_by_one

__all__ = ["EIGHT", "fetch", "hot", "inlined", "meet", "one_by_one"]

# Without numba's runtime no reference counts are kept for arrays, which more than halves the linker's time. The option
# is numba's own, though not in its manual: bounds on numba's version and the tests guard it.
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}

hot: Callable[..., Any] = njit(**_OPTIONS)
inlined: Callable[..., Any] = njit(inline="always", **_OPTIONS)
