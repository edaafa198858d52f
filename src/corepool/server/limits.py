"""What a tenant may be called, and how much it may ask for.

It must not know keys, the store's workings, or who asks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from corepool.errors import RequestError
from corepool.server.store import TenantRow

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may do unless its own row says otherwise. Requests per second, requests, bytes, requests."""

    requests_per_s: float = 1000.0
    burst: int = 2000
    body_bytes: int = 64 << 20
    in_flight: int = 64


def check_tenant(row: TenantRow) -> None:
    """Raise RequestError for a tenant that makes no sense, naming the value."""
    if not isinstance(row.name, str) or not NAME.fullmatch(row.name):
        raise RequestError(
            f"{str(row.name)[:80]!r} cannot be a tenant's name: 1 to 63 letters, digits, '.', '_', '-', the first a "
            "letter or digit"
        )
    bounds: list[tuple[str, int | None, int, int]] = [
        ("quota_cores", row.quota_cores, 1, 4096),
        ("priority", row.priority, -1000, 1000),
        ("burst", row.burst, 1, MILLION),
        ("body_bytes", row.body_bytes, 1, 1 << 40),
        ("in_flight", row.in_flight, 1, MILLION),
    ]
    for name, value, low, high in bounds:
        if value is None and name not in ("quota_cores", "priority"):
            continue
        if type(value) is not int or not low <= value <= high:
            raise RequestError(
                f"tenant {row.name!r}: {name} must be a whole number from {low} to {high}, not {value!r}"
            )
    rate = row.requests_per_s
    if rate is not None and not (type(rate) in (int, float) and math.isfinite(rate) and 1e-6 <= rate <= MILLION):
        raise RequestError(f"tenant {row.name!r}: requests_per_s must be a number up to {MILLION}, not {rate!r}")
