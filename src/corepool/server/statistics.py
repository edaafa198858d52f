"""Counts and times of inferences per tenant, model and version, in the terms of the statistics extension.

It must not know transports or engines.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from corepool.server.api import Inferred, ModelInfo

STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class Duration:
    """How often, and how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class ModelStatistics:
    """``last_inference_ms`` is in milliseconds since 1970, 0 before the first; ``stages`` are by names of STAGES."""

    name: str
    version: str
    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    stages: dict[str, Duration] = field(default_factory=lambda: {stage: Duration() for stage in STAGES})


class Statistics:
    """What happened since the server's start. Only models that exist are counted, so the table stays bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str, str], ModelStatistics] = {}

    def succeeded(self, tenant: str, result: Inferred, total_ns: int) -> None:
        """Count an inference that was answered; relinking counts as queueing, host steps as making outputs."""
        times = result.timings
        with self._lock:
            row = self._row(tenant, result.model, result.version)
            row.last_inference_ms = int(time.time() * 1000)
            row.inference_count += 1
            row.execution_count += 1
            stages = row.stages
            stages["success"].add(total_ns)
            stages["queue"].add(times.queue_ns + times.relink_ns)
            stages["compute_input"].add(times.upload_ns)
            stages["compute_infer"].add(times.compute_ns)
            stages["compute_output"].add(times.download_ns + times.host_ns)

    def failed(self, tenant: str, model: str, version: str, total_ns: int) -> None:
        """Count an inference of an existing model that was not answered."""
        with self._lock:
            self._row(tenant, model, version).stages["fail"].add(total_ns)

    def of(self, tenant: str, model: ModelInfo) -> ModelStatistics:
        """A copy of a model's row, zeros if there was no inference yet."""
        with self._lock:
            row = self._rows.get((tenant, model.name, model.version))
            if row is None:
                return ModelStatistics(model.name, model.version)
            copied = {stage: Duration(each.count, each.ns) for stage, each in row.stages.items()}
            return ModelStatistics(
                row.name, row.version, row.last_inference_ms, row.inference_count, row.execution_count, copied
            )

    def forget(self, tenant: str, model: str | None = None) -> None:
        """Drop the rows of a model, or of all models of a tenant."""
        with self._lock:
            for key in [key for key in self._rows if key[0] == tenant and model in (None, key[1])]:
                del self._rows[key]

    def _row(self, tenant: str, model: str, version: str) -> ModelStatistics:
        row = self._rows.get((tenant, model, version))
        if row is None:
            row = self._rows[tenant, model, version] = ModelStatistics(model, version)
        return row
