"""Token buckets on the monotonic clock: how often a tenant may ask, and how often a stranger may guess.

It must not know tenants, keys or protocols; a bucket has a name and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Rate:
    """``per_s`` tokens come in each second, up to ``burst``. Raises ValueError unless both are positive."""

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        if not (0 < self.per_s < float("inf") and 1 <= self.burst < float("inf")):
            raise ValueError(f"a rate of {self.per_s}/s with a burst of {self.burst} is none")


@dataclass(slots=True)
class _Bucket:
    tokens: float
    seen: float


class Buckets:
    """Buckets by name, made full at first use. Safe from any thread.

    At most ``bound`` are kept: past that, the one used longest ago is forgotten (and would be full again).
    """

    def __init__(self, bound: int = 10_000, clock: Clock = time.monotonic) -> None:
        self._bound = bound
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, name: str, rate: Rate) -> float:
        """Take a token. Returns 0 if there was one, else the seconds until there will be."""
        with self._lock:
            bucket = self._filled(name, rate)
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return 0.0
            return (1 - bucket.tokens) / rate.per_s

    def give_back(self, name: str, rate: Rate) -> None:
        """Return a token that was taken."""
        with self._lock:
            bucket = self._filled(name, rate)
            bucket.tokens = min(bucket.tokens + 1, rate.burst)

    def forget(self, name: str) -> None:
        with self._lock:
            self._buckets.pop(name, None)

    def __len__(self) -> int:
        return len(self._buckets)

    def _filled(self, name: str, rate: Rate) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(rate.burst, now)
            if len(self._buckets) > self._bound:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        gained = max(now - bucket.seen, 0.0) * rate.per_s
        bucket.tokens = min(bucket.tokens + gained, rate.burst)
        bucket.seen = now
        return bucket
