"""Counts inferences per tenant, model and version for those who watch; what is kept is bounded whatever clients do.

It must not know transports, devices or how figures are shown.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from corepool.errors import (
    DeadlineExceededError,
    FaultError,
    TooManyRequestsError,
    UnavailableError,
)
from corepool.server.api import Identity, Inferred, InferRequest, Timings
from corepool.server.dataplane import Observer
from corepool.server.exposition import Histogram

OUTCOMES = ("success", "rejected", "cancelled", "timeout", "fault", "error")
STAGES = ("queue", "relink", "upload", "compute", "download", "host")
BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OTHER = "other"
TOGETHER = 256  # inferences whose stages are counted at once
MODELS_EACH = 64  # versions of models of one tenant with rows of their own

_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (asyncio.CancelledError, "cancelled"),
    (DeadlineExceededError, "timeout"),
    (TooManyRequestsError, "rejected"),
    (UnavailableError, "rejected"),
    (FaultError, "fault"),
)
Key = tuple[str, str, str]  # tenant, model, version


def outcome_of(result: Inferred | BaseException) -> str:
    """Which of OUTCOMES it is."""
    if isinstance(result, Inferred):
        return "success"
    return next((name for kind, name in _REASONS if isinstance(result, kind)), "error")


def stages_ns(times: Timings) -> tuple[int, ...]:
    """Nanoseconds by STAGES, which are the fields of Timings in their order."""
    return times


@dataclass(slots=True)
class Row:
    """Of one version of a tenant's model. ``request_ns``: from arrival to answer, those that succeeded."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    request_ns: int = 0
    pending: int = 0
    _counted: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram(BOUNDS_S) for name in STAGES})
    _latest: list[Timings] = field(default_factory=list)  # not counted yet

    @property
    def stages(self) -> dict[str, Histogram]:
        """Of those that succeeded, by STAGES."""
        if self._latest:
            self._count()
        return self._counted

    def _count(self) -> None:
        spent = np.array(self._latest, np.float64) / 1e9
        self._latest.clear()
        for histogram, values in zip(self._counted.values(), spent.T, strict=True):
            histogram.observe_all(values)

    def succeeded(self, timings: Timings) -> None:
        """Note the stages of one more; to count many at once takes little longer than to count one."""
        self._latest.append(timings)
        if len(self._latest) >= TOGETHER:
            self._count()

    def merge(self, other: Row) -> None:
        """Add another row's counts."""
        for name, count in other.outcomes.items():
            self.outcomes[name] += count
        for name, histogram in other.stages.items():
            self.stages[name].merge(histogram)
        self.request_ns += other.request_ns
        self.pending += other.pending


class TenantLabels:
    """The label of each tenant: its name for the first ``cap`` of them, "other" for the rest. A name that was given
    stays until its tenant is gone."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._own: set[str] = set()

    def refresh(self, tenants: Iterable[str]) -> None:
        """These are all tenants that there are now."""
        there = list(tenants)
        self._own &= set(there)
        for name in there:
            if len(self._own) >= self._cap:
                break
            if name != OTHER:
                self._own.add(name)

    def of(self, tenant: str) -> str:
        return tenant if tenant in self._own else OTHER


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def started(self, who: Identity, request: InferRequest) -> None:
        for each in self._observers:
            each.started(who, request)

    def ended(self, who: Identity, request: InferRequest, outcome: Inferred | BaseException, total_ns: int) -> None:
        for each in self._observers:
            each.ended(who, request, outcome, total_ns)


class InferenceMeters:
    """An observer of the data plane. ``resolve`` gives the version of a tenant's model that a request means, None if
    there is none any more: rows of what is gone make room when there are too many. ``lock`` protects ``rows``."""

    def __init__(
        self, resolve: Callable[[str, str, str | None], str | None] = lambda *_: "1", each: int = MODELS_EACH
    ) -> None:
        self.lock = threading.Lock()
        self.rows: dict[Key, Row] = {}
        self._resolve = resolve
        self.each = each
        self._open: dict[int, tuple[Row, str]] = {}  # requests under way, and the versions that they mean

    def started(self, who: Identity, request: InferRequest) -> None:
        version = self._resolve(who.tenant, request.model, request.version) or ""
        with self.lock:
            row = self._row(who.tenant, request.model, version)
            row.pending += 1
            self._open[id(request)] = row, version

    def ended(self, who: Identity, request: InferRequest, outcome: Inferred | BaseException, total_ns: int) -> None:
        name = outcome_of(outcome)
        with self.lock:
            begun = self._open.pop(id(request), None)
            version = "" if begun is None else begun[1]
            if begun is not None:
                begun[0].pending -= 1
            if isinstance(outcome, Inferred):
                version = outcome.version
            row = self._row(who.tenant, request.model, version)
            row.outcomes[name] += 1
            if isinstance(outcome, Inferred):
                row.request_ns += total_ns
                row.succeeded(outcome.timings)

    def forget(self, tenant: str) -> None:
        """A tenant is gone."""
        with self.lock:
            for key in [key for key in self.rows if key[0] == tenant]:
                del self.rows[key]

    def _row(self, tenant: str, model: str, version: str) -> Row:
        row = self.rows.get((tenant, model, version))
        if row is not None:
            return row
        mine = [each for each in self.rows if each[0] == tenant]
        if len(mine) < self.each:
            return self.rows.setdefault((tenant, model, version), Row())
        other = self.rows.setdefault((tenant, OTHER, ""), Row())
        for each in mine:
            if each[1] != OTHER and not self.rows[each].pending and self._resolve(*each) is None:
                other.merge(self.rows.pop(each))
                return self.rows.setdefault((tenant, model, version), Row())
        return other
