"""Counts what was answered, by transport, tenant and status: also what never came as far as an inference.

It must not know what requests mean. Statuses are those of the two protocols, tenants those that have a key.
"""

from __future__ import annotations

import threading
from collections import Counter

from corepool.server.context import RequestLog

REST, GRPC = "rest", "grpc"
LEFT = "left"  # the client did not wait for an answer
# Refusals that operators watch for; they are shown before they happen.
EXPECTED = (
    *((REST, code) for code in ("200", "400", "401", "403", "404", "413", "429", "500", "503", "507")),
    *((GRPC, code) for code in ("OK", "INVALID_ARGUMENT", "UNAUTHENTICATED", "NOT_FOUND", "RESOURCE_EXHAUSTED")),
    *((GRPC, code) for code in ("INTERNAL", "UNAVAILABLE")),
)
# gRPC's statuses by their numbers.
STATUSES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)


class Traffic:
    """The counts. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def answered(self, transport: str, tenant: str, code: str) -> None:
        """One more; ``tenant`` is empty where nobody's key was shown."""
        with self._lock:
            self._counts[transport, tenant, code] += 1

    def refused(self, status: int) -> None:
        """One more connection whose beginning was no request."""
        self.answered(REST, "", str(status))

    def counts(self) -> dict[tuple[str, str, str], int]:
        """By transport, tenant and status."""
        with self._lock:
            return dict(self._counts)

    def forget(self, tenant: str) -> None:
        """A tenant is gone."""
        with self._lock:
            for key in [key for key in self._counts if key[1] == tenant]:
                del self._counts[key]


class CountedLog:
    """A log of requests that counts them as well."""

    def __init__(self, log: RequestLog, traffic: Traffic) -> None:
        self._log = log
        self._traffic = traffic

    def request(
        self, method: str, path: str, status: int, seconds: float, request_id: str, source: str, tenant: str = ""
    ) -> None:
        """See RequestLog."""
        if method == "gRPC":
            self._traffic.answered(GRPC, tenant, STATUSES[status])
        else:
            self._traffic.answered(REST, tenant, str(status) if status else LEFT)
        self._log.request(method, path, status, seconds, request_id, source, tenant)

    def crashed(self, request_id: str, error: BaseException) -> None:
        """See RequestLog."""
        self._log.crashed(request_id, error)
