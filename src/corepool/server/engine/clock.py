"""Time as leases live by it: monotonic, and counted only while this process could have answered.

It must not know what is timed, nor the time of day.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LONGEST_STEP_NS = 1_000_000_000
"""A longer silence than this, between two looks at the clock, was no living time: the process was stopped."""


class LivingClock:
    """Nanoseconds that only grow. After a stop (SIGSTOP, a suspended machine) they go on where they were, plus at most
    ``longest_step_ns``: nobody loses a lease because the server could not hear its heartbeats.

    Somebody must look at it at least every ``longest_step_ns``; the engine's timer thread does.
    """

    def __init__(self, source: Callable[[], int] = time.monotonic_ns, longest_step_ns: int = LONGEST_STEP_NS) -> None:
        self._source = source
        self._longest = longest_step_ns
        self._lock = threading.Lock()
        self._last = source()
        self._now = 0

    def __call__(self) -> int:
        """Living nanoseconds since the clock was made."""
        with self._lock:
            now = self._source()
            self._now += min(max(now - self._last, 0), self._longest)
            self._last = now
            return self._now
