"""Connects what counts with what is shown: the observer of the data plane, the page of metrics, traces.

It must not count or show anything itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from corepool.errors import NotFoundError
from corepool.server import settings
from corepool.server.dataplane import Observer
from corepool.server.engine.engine import Engine
from corepool.server.meters import MeteredCard
from corepool.server.metrics import Metrics, Watched, metrics_app
from corepool.server.observing import InferenceMeters, Observers
from corepool.server.rest.gate import Application
from corepool.server.store import TenantRow
from corepool.server.tenants import Tenants
from corepool.server.traces import Traces
from corepool.server.traffic import Traffic


@dataclass(frozen=True)
class Watching:
    """``observer`` is for the data plane, ``metrics`` for its own port."""

    observer: Observer
    metrics: Application
    watched: Watched
    traces: Traces
    traffic: Traffic


def watch(
    wanted: settings.Metrics, engine: Engine, card: MeteredCard, tenants: Tenants, more: Observer | None = None
) -> Watching:
    """``more``: another observer. What was counted of a tenant is dropped when it is removed."""

    def version(tenant: str, model: str, number: str | None) -> str | None:
        try:
            return engine.catalog.find(tenant, model, number or None).version
        except NotFoundError:
            return None

    meters, traces, traffic = InferenceMeters(version), Traces(), Traffic()

    def tenant_changed(name: str, row: TenantRow | None) -> None:
        if row is None:
            card.meters.forget(name)
            meters.forget(name)
            traces.forget(name)
            traffic.forget(name)

    tenants.subscribe(tenant_changed)
    observers: Sequence[Observer] = [meters, traces] if more is None else [meters, traces, more]
    watched = Watched(engine, card.meters, meters, tenants.rows, traffic)
    page = metrics_app(Metrics(watched, wanted.tenants, wanted.nv_names))
    return Watching(Observers(observers), page, watched, traces, traffic)
