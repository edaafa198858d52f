"""The page of metrics: what the server's parts have counted, named and labelled for Prometheus.

It must not know how anything is counted. Tenants beyond a cap share the label "other"; tenants that are idle have
zeros.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from corepool import __version__
from corepool.server.api import Identity, LeaseInfo, Role
from corepool.server.engine.engine import Engine
from corepool.server.exposition import CONTENT_TYPE, Family, Histogram, exposition
from corepool.server.meters import FAULTS, RELINK_BOUNDS_S, CardMeters
from corepool.server.observing import OTHER, OUTCOMES, STAGES, InferenceMeters, Key, Row, TenantLabels
from corepool.server.rest.gate import Application, Receive, Scope, Send
from corepool.server.store import TenantRow
from corepool.server.traffic import EXPECTED, Traffic

LEASES_EACH = 32  # leases of one tenant with a label of their own
_OPERATOR = Identity(Role.ADMIN, "", "metrics")
CORE_STATES = ("free", "reserved", "clearing", "programming", "active", "draining", "tainted")
NV_STAGES = {"queue": ("queue", "relink"), "compute_input": ("upload",), "compute_infer": ("compute",),
             "compute_output": ("download", "host")}  # fmt: skip
NV_REASONS = {"rejected": "REJECTED", "cancelled": "CANCELED", "fault": "BACKEND"}


@dataclass(frozen=True)
class Watched:
    """What is looked at. ``device`` is its label; ``tenants`` lists those that there are."""

    engine: Engine
    card: CardMeters
    inferences: InferenceMeters
    tenants: Callable[[], list[TenantRow]]
    traffic: Traffic
    device: str = "0"


class Metrics:
    """Makes the page. ``nv_names``: also the names that existing dashboards ask for."""

    def __init__(self, watched: Watched, cap: int = 100, nv_names: bool = False) -> None:
        self._watched = watched
        self._labels = TenantLabels(cap)
        self._nv_names = nv_names

    def text(self) -> str:
        """The page as of now."""
        tenants = self._watched.tenants()
        self._labels.refresh(row.name for row in tenants)
        rows = self._rows(tenants)
        families = [
            *inference_families(rows),
            *self._card_families(),
            *self._lease_families(tenants),
            *self._core_families(),
            *self._tenant_families(tenants),
            self._traffic_family(),
        ]
        if self._nv_names:
            families += nv_families(rows)
        return exposition(families)

    def _rows(self, tenants: list[TenantRow]) -> dict[Key, Row]:
        """Counts by labels; zeros for what nobody has asked for yet."""
        made: dict[Key, Row] = {}
        for each in tenants:
            made.setdefault((self._labels.of(each.name), "", ""), Row())
        for version in self._watched.engine.catalog.all():
            tenant = self._labels.of(version.tenant)
            if tenant != OTHER:
                mine = sum(key[0] == tenant for key in made)
                if mine <= self._watched.inferences.each:
                    made.setdefault((tenant, version.name, version.version), Row())
        with self._watched.inferences.lock:
            for (name, model, number), row in self._watched.inferences.rows.items():
                tenant = self._labels.of(name)
                key = (tenant, "", "") if tenant == OTHER else (tenant, model, number)
                made.setdefault(key, Row()).merge(row)
        return made

    def _card_families(self) -> list[Family]:
        card, device = self._watched.card, {"device": self._watched.device}
        ratio = Family(
            "corepool_core_busy_ratio", "gauge", "Share of the last 15 seconds in which a job ran on a core."
        )
        busy = Family("corepool_core_busy_seconds_total", "counter", "Time in which jobs ran on a core.")
        for core, (share, seconds) in enumerate(card.busy()):
            ratio.add(share, {**device, "core": str(core)})
            busy.add(seconds, {**device, "core": str(core)})
        traffic = Family("corepool_ddr_bytes_total", "counter", "Bytes moved between cores and a bank of memory.")
        cleared = Family(
            "corepool_cleared_bytes_total", "counter", "Bytes of memory zeroed before cores changed hands."
        )
        with card.lock:
            for bank, counts in enumerate(zip(card.read_bytes, card.written_bytes, strict=True)):
                for way, count in zip(("read", "write"), counts, strict=True):
                    traffic.add(count, {**device, "bank": str(bank), "dir": way})
            cleared.add(card.cleared_bytes, device)
        return [ratio, busy, traffic, cleared]

    def _tenant_families(self, tenants: list[TenantRow]) -> list[Family]:
        card = self._watched.card
        faults: Counter[tuple[str, str]] = Counter()
        resizes: Counter[str] = Counter()
        seconds: dict[str, Histogram] = {}
        for row in tenants:
            label = self._labels.of(row.name)
            faults.update({(label, kind): 0 for kind in FAULTS})
            resizes[label] += 0
            seconds.setdefault(label, Histogram(RELINK_BOUNDS_S))
        with card.lock:
            for (tenant, kind), count in card.faults.items():
                faults[self._labels.of(tenant), kind] += count
            for tenant, count in card.resizes.items():
                resizes[self._labels.of(tenant)] += count
            for tenant, histogram in card.resize_seconds.items():
                seconds.setdefault(self._labels.of(tenant), Histogram(RELINK_BOUNDS_S)).merge(histogram)
        families = [
            Family("corepool_faults_total", "counter", "Inferences that a fault of the device stopped."),
            Family("corepool_lease_resizes_total", "counter", "Times that a lease's model was dealt to other cores."),
            Family("corepool_resize_seconds", "histogram", "Time to deal a lease's model to other cores."),
        ]
        for (tenant, kind), count in faults.items():
            families[0].add(count, {"tenant": tenant, "kind": kind})
        for tenant, count in resizes.items():
            families[1].add(count, {"tenant": tenant})
        for tenant, histogram in seconds.items():
            families[2].add_histogram(histogram, {"tenant": tenant})
        return families

    def _traffic_family(self) -> Family:
        """Whoever shows no key has an empty label."""
        counts = Counter({(transport, "", code): 0 for transport, code in EXPECTED})
        for (transport, tenant, code), count in self._watched.traffic.counts().items():
            counts[transport, self._labels.of(tenant) if tenant else "", code] += count
        family = Family("corepool_requests_total", "counter", "Requests by status, refused ones too.")
        for (transport, tenant, code), count in counts.items():
            family.add(count, {"transport": transport, "tenant": tenant, "code": code})
        return family

    def _lease_families(self, tenants: list[TenantRow]) -> list[Family]:
        leases = self._watched.engine.leases(_OPERATOR)
        cores: Counter[tuple[str, str]] = Counter()
        counts: Counter[tuple[str, str]] = Counter()
        used: Counter[str] = Counter()
        limits: Counter[str] = Counter()
        for row in tenants:
            label = self._labels.of(row.name)
            cores[label, OTHER if label == OTHER else "default"] += 0
            counts.update({(label, "active"): 0, (label, "queued"): 0})
            used[label] += 0
            limits[label] += row.quota_cores
        for lease in leases:
            label = self._labels.of(lease.tenant)
            cores[label, self._lease_label(label, lease, cores)] += len(lease.cores)
            counts[label, lease.state] += 1
            used[label] += max(lease.maximum, len(lease.cores))
        families = [
            Family("corepool_lease_cores", "gauge", "Cores that a lease has now."),
            Family("corepool_leases", "gauge", "Leases by state."),
            Family("corepool_quota_cores_limit", "gauge", "Cores that all leases of a tenant together may ask for."),
            Family("corepool_quota_cores_used", "gauge", "Cores that the leases of a tenant ask for."),
        ]
        for (tenant, name), count in cores.items():
            families[0].add(count, {"tenant": tenant, "lease": name})
        for (tenant, state), count in counts.items():
            families[1].add(count, {"tenant": tenant, "state": state})
        for family, values in ((families[2], limits), (families[3], used)):
            for tenant, count in values.items():
                family.add(count, {"tenant": tenant})
        return families

    def _lease_label(self, tenant: str, lease: LeaseInfo, known: Iterable[tuple[str, str]]) -> str:
        if tenant == OTHER or sum(key[0] == tenant for key in known) > LEASES_EACH:
            return OTHER
        return lease.name

    def _core_families(self) -> list[Family]:
        device = {"device": self._watched.device}
        states = Counter(state for state, _ in self._watched.engine.cores())
        cores = Family("corepool_cores", "gauge", "Cores by state.")
        for state in CORE_STATES:
            cores.add(states[state], {**device, "state": state})
        ready = Family("corepool_ready", "gauge", "1 if the server takes inferences.")
        ready.add(self._watched.engine.ready())
        about = Family("corepool_build_info", "gauge", "The version that runs; always 1.")
        about.add(1, {"version": __version__, "config": self._watched.engine.config.name})
        return [cores, ready, about]


def inference_families(rows: dict[Key, Row]) -> list[Family]:
    """Requests and their times under the project's own names."""
    requests = Family("corepool_inference_requests_total", "counter", "Inferences by outcome.")
    pending = Family("corepool_inference_pending", "gauge", "Inferences that wait or run.")
    spent = Family(
        "corepool_inference_duration_seconds", "histogram", "Time of each stage of inferences that succeeded."
    )
    for (tenant, model, version), row in rows.items():
        labels = {"tenant": tenant, "model": model, "version": version}
        pending.add(row.pending, labels)
        for outcome in OUTCOMES:
            requests.add(row.outcomes[outcome], {**labels, "outcome": outcome})
        for stage in STAGES:
            spent.add_histogram(row.stages[stage], {**labels, "stage": stage})
    return [requests, pending, spent]


def nv_families(rows: dict[Key, Row]) -> list[Family]:
    """The same in microseconds and under the names that dashboards for other servers use."""
    names = {
        "request_success": "Successful requests.",
        "request_failure": "Failed requests.",
        "count": "Inferences performed, a batch of n counts as n.",
        "exec_count": "Executions of models.",
        "request_duration_us": "Time of requests from end to end.",
        **{f"{stage}_duration_us": f"Time that requests spent in {stage}." for stage in NV_STAGES},
    }
    made = {name: Family(f"nv_inference_{name}", "counter", text) for name, text in names.items()}
    pending = Family("nv_inference_pending_request_count", "gauge", "Requests that wait or run.")
    for (tenant, model, version), row in rows.items():
        if not model:
            continue
        labels = {"model": model, "version": version, "tenant": tenant}
        good = row.outcomes["success"]
        for name in ("request_success", "count", "exec_count"):
            made[name].add(good, labels)
        failures = Counter(dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0))
        for outcome, count in row.outcomes.items():
            if outcome != "success":
                failures[NV_REASONS.get(outcome, "OTHER")] += count
        for reason, count in failures.items():
            made["request_failure"].add(count, {**labels, "reason": reason})
        made["request_duration_us"].add(row.request_ns // 1000, labels)
        for name, stages in NV_STAGES.items():
            made[f"{name}_duration_us"].add(int(sum(row.stages[each].total for each in stages) * 1e6), labels)
        pending.add(row.pending, labels)
    return [*made.values(), pending]


def metrics_app(metrics: Metrics) -> Application:
    """The application on the port of metrics: GET /metrics, and nothing else."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, body, kind = 404, b"metrics are at /metrics\n", "text/plain; charset=utf-8"
        if scope["path"].rstrip("/") == "/metrics":
            if scope["method"] in ("GET", "HEAD"):
                text = await asyncio.to_thread(metrics.text)
                status, body, kind = 200, text.encode(), CONTENT_TYPE
            else:
                status, body = 405, b"only GET\n"
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app
