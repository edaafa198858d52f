"""Has compiled what runs of models need before somebody waits for an answer: where nothing is kept from earlier, that
takes a minute.

It must not know leases, jobs or tenants.
"""

from __future__ import annotations

import gc
import logging
import threading
from enum import Enum
from time import perf_counter
from typing import ClassVar

from corepool.compiler.model import ModelPackage
from corepool.config import HardwareConfig
from corepool.errors import CorepoolError
from corepool.server.engine.card import Card

SLOW_S = 5.0  # longer than it takes where all was compiled before, even on a busy machine
YOUNG = 10_000  # new objects between two searches: a request leaves none behind, but has hundreds while it is answered

_log = logging.getLogger(__name__)


def keep_for_good() -> None:
    """Have the search for garbage pass over what there is now: modules and compiled code are hundreds of thousands of
    objects, to look at them all takes 0.1 s and more, and every thread would have to wait for it now and then."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


class Warmth(Enum):
    """COLD: nobody has needed anything yet; WARMING: it is being compiled; WARM: the first run takes no longer than the
    others."""

    COLD = "cold"
    WARMING = "warming"
    WARM = "warm"


class Warming:
    """What is compiled serves all cards of the process that have the same configuration."""

    _lock = threading.Lock()
    _done: ClassVar[set[HardwareConfig]] = set()

    def __init__(self, card: Card) -> None:
        self._card = card
        self._busy = False

    @property
    def state(self) -> Warmth:
        """How far it has come."""
        if self._card.config in self._done:
            return Warmth.WARM
        return Warmth.WARMING if self._busy else Warmth.COLD

    def warm(self, package: ModelPackage) -> None:
        """Return when all is there that models such as this one need."""
        if self._card.config in self._done:
            return
        self._busy = True
        try:
            with self._lock:
                if self._card.config not in self._done:
                    self._compile(package)
                    self._done.add(self._card.config)
        finally:
            self._busy = False

    def _compile(self, package: ModelPackage) -> None:
        begin = perf_counter()
        told = threading.Timer(SLOW_S, _log.warning, ["kernels are being compiled, which takes a minute once"])
        told.daemon = True
        told.start()
        try:
            self._card.warm(package)
        except CorepoolError as error:  # whoever runs the model will hear of it
            _log.warning("kernels were not compiled ahead: %s", error)
        finally:
            told.cancel()
        keep_for_good()
        spent = perf_counter() - begin
        if spent > SLOW_S:
            _log.warning("kernels were compiled in %.0f s; from now on they are kept", spent)
