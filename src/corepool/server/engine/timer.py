"""Calls functions at points in living time, on one thread that also keeps the clock alive.

It must not know what is called.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable

from corepool.server.engine.clock import LivingClock

LOOK_S = 0.25  # at least so often somebody looks at the clock

_log = logging.getLogger(__name__)


class Timer:
    """``at`` may be called from any thread; calls must be short, and what they raise is logged."""

    def __init__(self, clock: LivingClock) -> None:
        self._clock = clock
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="timer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def at(self, when_ns: int, call: Callable[[], None]) -> None:
        """Call at or soon after a point in living time (nanoseconds)."""
        with self._changed:
            self._count += 1
            heapq.heappush(self._due, (when_ns, self._count, call))
            if self._due[0][1] == self._count:
                self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(5)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                now = self._clock()
                wait = LOOK_S if not self._due else min((self._due[0][0] - now) / 1e9, LOOK_S)
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                _, _, call = heapq.heappop(self._due)
            try:
                call()
            except Exception:
                _log.exception("a timed call failed")
