"""Asks the store now and then whether it would take a change, so that its loss is known before somebody needs it.

It must not know what is stored, nor what follows from its loss.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from corepool.errors import CorepoolError, StoreError

EVERY_S = 2.0
PATIENCE_S = 5.0  # an answer that takes longer is none

_log = logging.getLogger(__name__)


class Pulse:
    """``check`` raises a CorepoolError if the store is of no use now; it may take its time, and is called on a thread
    of its own. ``trouble`` never waits for it."""

    def __init__(self, check: Callable[[], None], every_s: float = EVERY_S, patience_s: float = PATIENCE_S) -> None:
        self._check = check
        self._every_s = every_s
        self._patience_s = patience_s
        self._found: CorepoolError | None = None
        self._began: float | None = None  # when the check under way began
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    @property
    def trouble(self) -> CorepoolError | None:
        """Why the store is of no use, as far as is known."""
        began = self._began
        if began is not None and time.monotonic() - began > self._patience_s:
            return StoreError(f"the store has not answered for {self._patience_s:g} seconds")
        return self._found

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No further check begins; one under way is not waited for long."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(self._every_s)

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            self._began = time.monotonic()
            try:
                self._check()
                found: CorepoolError | None = None
            except CorepoolError as error:
                found = error
            except Exception as error:
                found = StoreError("the store cannot be asked; the server's log has the details")
                _log.error("the store cannot be asked: %r", error)
            if found is not None and self._found is None:
                _log.warning("not ready: %s", found)
            if found is None and self._found is not None:
                _log.warning("ready again: the store answers")
            self._found, self._began = found, None
