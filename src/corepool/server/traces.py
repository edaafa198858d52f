"""Traces of the latest inferences, one for each request id, as Perfetto and Chrome read them.

It must not know transports. What is kept is bounded.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import OrderedDict
from contextvars import ContextVar
from typing import Any, NamedTuple

from corepool.errors import NotFoundError
from corepool.server.api import Identity, Inferred, InferRequest, Role
from corepool.server.observing import STAGES, outcome_of, stages_ns
from corepool.server.tensors import shown

KEPT = 1000

_numbers = random.Random()  # asking the system each time would give the interpreter away for a while
_IDENT = re.compile(r"[A-Za-z0-9._-]{1,64}")

request_id: ContextVar[str] = ContextVar("request_id", default="")  # of the request that is being answered


def ident_of(given: str) -> str:
    """The id of a request: the client's own, or a new one if that is none."""
    return given if _IDENT.fullmatch(given) else f"{_numbers.getrandbits(64):016x}"


class Trace(NamedTuple):
    """``ended_us`` is wall time in microseconds since 1970; ``stages`` are nanoseconds by STAGES, all 0 without an
    answer."""

    tenant: str
    model: str
    version: str
    outcome: str
    ended_us: int
    total_ns: int
    stages: tuple[int, ...]
    run: tuple[int, float, int, str] | None  # cycles, microseconds on the device, cores, lease

    @property
    def about(self) -> dict[str, Any]:
        """The run by names, for users."""
        return {} if self.run is None else dict(zip(("cycles", "device_us", "cores", "lease"), self.run, strict=True))


class Traces:
    """An observer of the data plane that remembers the ``kept`` latest inferences that have a request id."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._all: OrderedDict[tuple[str, str], Trace] = OrderedDict()

    def started(self, who: Identity, request: InferRequest) -> None:
        pass

    def ended(self, who: Identity, request: InferRequest, outcome: Inferred | BaseException, total_ns: int) -> None:
        ident = request_id.get()
        if not ident:
            return
        stages: tuple[int, ...] = (0,) * len(STAGES)
        version, run = request.version or "", None
        if isinstance(outcome, Inferred):
            stages, version = stages_ns(outcome.timings), outcome.version
            run = int(outcome.cycles), float(outcome.device_us), int(outcome.cores), outcome.lease
        now = time.time_ns() // 1000
        made = Trace(who.tenant, request.model, version, outcome_of(outcome), now, total_ns, stages, run)
        with self._lock:
            self._all.pop((who.tenant, ident), None)
            self._all[who.tenant, ident] = made
            while len(self._all) > self._kept:
                self._all.popitem(last=False)

    def get(self, who: Identity, ident: str) -> dict[str, Any]:
        """The trace of a request of the tenant's, of anybody's for an operator. Raises NotFoundError."""
        with self._lock:
            found = [
                trace
                for (tenant, each), trace in self._all.items()
                if each == ident and (tenant == who.tenant or (who.role is Role.ADMIN and not who.tenant))
            ]
        if not found:
            raise NotFoundError(f"there is no trace of request {shown(ident)}")
        return as_events(ident, found[-1])

    def forget(self, tenant: str) -> None:
        """A tenant is gone."""
        with self._lock:
            for key in [key for key in self._all if key[0] == tenant]:
                del self._all[key]


def as_events(ident: str, trace: Trace) -> dict[str, Any]:
    """The request as one slice, its stages one after the other within; times in microseconds."""
    total = trace.total_ns / 1000
    begin = trace.ended_us - total
    common = {"ph": "X", "pid": 1, "tid": 1}
    arguments = {"id": ident, "outcome": trace.outcome, "version": trace.version, **trace.about}
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": 1, "name": "process_name", "args": {"name": f"tenant {trace.tenant}"}},
        {"ph": "M", "pid": 1, "tid": 1, "name": "thread_name", "args": {"name": f"request {ident}"}},
        {**common, "name": f"infer {trace.model}", "ts": begin, "dur": total, "args": arguments},
    ]
    at = begin
    for name, spent in zip(STAGES, trace.stages, strict=True):
        if spent:
            length = min(spent / 1000, begin + total - at)
            events.append({**common, "name": name, "ts": at, "dur": length, "args": {"ns": spent}})
            at += length
    return {"traceEvents": events, "displayTimeUnit": "ms"}
