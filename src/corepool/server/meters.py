"""Meters on the card: what its cores and memories did, counted where the work is done.

It must not know requests, models' names, the store or how figures are shown.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from time import monotonic_ns
from typing import TYPE_CHECKING

from corepool.compiler.model import ModelPackage
from corepool.config import HardwareConfig
from corepool.device.base import Device, Fault
from corepool.errors import FaultError
from corepool.runtime.tail import HostSteps
from corepool.server.engine.card import Arrays, Card, Placed, Stopped
from corepool.server.exposition import Histogram

if TYPE_CHECKING:
    from corepool.runtime.session import Served

SECOND = 1_000_000_000
WINDOW_S = 15  # over which cores count as more or less busy
FAULTS = (*(fault.name.lower() for fault in Fault), "other")
RELINK_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
REMEMBERED = 64  # latest re-deals
TOGETHER = 256  # runs that are counted at once

_FAULT = re.compile(r"stopped by a fault: ([A-Z_]+)")


def tenant_of(lease: str) -> str:
    """The tenant of a lease's full name."""
    return lease.partition("/")[0]


def fault_kind(error: BaseException) -> str:
    """Which of FAULTS an error tells of."""
    found = _FAULT.search(str(error))
    kind = found[1].lower() if found else "other"
    return kind if kind in FAULTS else "other"


class CoreMeter:
    """How long jobs ran on one core, by second of the last WINDOW_S."""

    def __init__(self) -> None:
        self.total_ns = 0
        self._seconds = [(-1, 0)] * (WINDOW_S + 1)  # a ring: which second, and the busy nanoseconds in it

    def add(self, total_ns: int, seconds: Mapping[int, int]) -> None:
        """Jobs ran for so long, and for so many nanoseconds within each of the seconds, which come in order."""
        self.total_ns += total_ns
        for second, ns in seconds.items():
            slot = second % len(self._seconds)
            there, before = self._seconds[slot]
            if there <= second:
                self._seconds[slot] = (second, min((before if there == second else 0) + ns, SECOND))

    def ratio(self, now: int, since: int) -> float:
        """Share of the last whole WINDOW_S seconds, or since the start if that is later."""
        current = now // SECOND
        first = max(current - WINDOW_S, since // SECOND)
        busy = sum(ns for second, ns in self._seconds if first <= second < current)
        return min(busy / (max(current - first, 1) * SECOND), 1.0)


class CardMeters:
    """All counts. Methods may be called from any thread; ``lock`` protects what is read, once ``fold`` was called: runs
    are noted as they end, and many are counted together."""

    def __init__(self, config: HardwareConfig, clock: Callable[[], int] = monotonic_ns) -> None:
        self.config = config
        self.lock = threading.Lock()
        self.clock = clock
        self.since = clock()
        self.cores = [CoreMeter() for _ in range(config.cores)]
        self.running: dict[int, int] = {}  # core: since when a job runs on it
        self._ended: list[tuple[tuple[int, ...], int, int, object]] = []  # runs to count: cores, begin, end, counters
        self.read_bytes = [0] * config.banks
        self.written_bytes = [0] * config.banks
        self.cleared_bytes = 0
        self.faults: dict[tuple[str, str], int] = defaultdict(int)  # tenant and kind
        self.resizes: dict[str, int] = defaultdict(int)  # by tenant
        self.resize_seconds: dict[str, Histogram] = {}
        self.redeals: deque[tuple[int, str, int, int, float]] = deque(maxlen=REMEMBERED)

    def ran(self, cores: tuple[int, ...], begin: int, counters: object) -> None:
        """A run ended. ``counters`` are the device's, or None if it was stopped."""
        end = self.clock()
        with self.lock:
            for core in cores:
                self.running.pop(core, None)
            self._ended.append((cores, begin, end, counters))
            full = len(self._ended) >= TOGETHER
        if full:
            self.fold()

    def fold(self) -> None:
        """Count the runs that were only noted."""
        with self.lock:
            ended, self._ended = self._ended, []
            totals: dict[tuple[int, ...], int] = defaultdict(int)
            seconds: dict[tuple[int, ...], dict[int, int]] = defaultdict(lambda: defaultdict(int))
            for cores, begin, end, counters in ended:
                totals[cores] += end - begin
                first = max(begin, end - WINDOW_S * SECOND)
                while first < end:
                    second = first // SECOND
                    last = min(end, (second + 1) * SECOND)
                    seconds[cores][second] += last - first
                    first = last
                for banks, name in ((self.read_bytes, "bytes_read"), (self.written_bytes, "bytes_written")):
                    for bank, count in enumerate(getattr(counters, name, ())):
                        banks[bank] += int(count)
            for cores, total in totals.items():
                spans = dict(sorted(seconds[cores].items()))
                for core in cores:
                    self.cores[core].add(total, spans)

    def started(self, cores: tuple[int, ...]) -> int:
        begin = self.clock()
        with self.lock:
            for core in cores:
                self.running[core] = begin
        return begin

    def faulted(self, tenant: str, kind: str) -> None:
        with self.lock:
            self.faults[tenant, kind] += 1

    def cleared(self, count: int) -> None:
        with self.lock:
            self.cleared_bytes += count

    def resized(self, lease: str, before: int, after: int, seconds: float) -> None:
        """A lease's model was dealt anew to another set of cores."""
        tenant = tenant_of(lease)
        with self.lock:
            self.resizes[tenant] += 1
            self.resize_seconds.setdefault(tenant, Histogram(RELINK_BOUNDS_S)).observe(seconds)
            self.redeals.append((self.clock(), lease, before, after, seconds))

    def busy(self) -> list[tuple[float, float]]:
        """Of each core, the share of late that a job ran on it, and the seconds in all."""
        self.fold()
        now = self.clock()
        with self.lock:
            found = []
            for core, meter in enumerate(self.cores):
                begin = self.running.get(core)
                total, ratio = meter.total_ns, meter.ratio(now, self.since)
                if begin is not None:  # what has not ended yet
                    total += now - begin
                    ratio = min(1.0, ratio + (now - max(begin, now - WINDOW_S * SECOND)) / (WINDOW_S * SECOND))
                found.append((ratio, total / SECOND))
            return found

    def forget(self, tenant: str) -> None:
        """A tenant is gone."""
        with self.lock:
            for key in [key for key in self.faults if key[0] == tenant]:
                del self.faults[key]
            self.resizes.pop(tenant, None)
            self.resize_seconds.pop(tenant, None)


class MeteredCard(Card):
    """A card whose work is counted."""

    def __init__(self, config: HardwareConfig, open_device: Callable[[], Device], separate: bool) -> None:
        super().__init__(config, open_device, separate)
        self.meters = CardMeters(config)
        self._core_bytes = config.feature_bytes + config.weight_bytes + config.result_bytes + config.parameter_bytes
        self._dealt: dict[str, tuple[int, ...]] = {}  # lease: the cores that it was last programmed for
        self._windows: dict[str, int] = {}  # lease: bytes of its window in each bank

    def clear(self, epoch: int, cores: Iterable[int]) -> None:
        chosen = tuple(cores)
        before = self.table()
        super().clear(epoch, chosen)
        if any(before[core].epoch != epoch for core in chosen):
            self.meters.cleared(len(chosen) * self._core_bytes)

    def program(
        self, epoch: int, lease: str, cores: Iterable[int], model: str, package: ModelPackage, host: HostSteps
    ) -> Placed:
        begin, chosen = self.meters.clock(), tuple(cores)
        placed = super().program(epoch, lease, chosen, model, package, host)
        before = self._dealt.get(lease)
        self._dealt[lease] = chosen
        self._windows[lease] = int(package.meta["window"]["window_bytes"])
        if before is not None and before != chosen:
            self.meters.resized(lease, len(before), len(chosen), (self.meters.clock() - begin) / SECOND)
        return placed

    def run(
        self, lease: str, epoch: int, inputs: Arrays, outputs: Collection[str] | None = None, *,
        first_layer: int = 0, stoppable: bool = False,
    ) -> Served | Stopped:  # fmt: skip
        placed = self.placed(lease)
        cores = () if placed is None else placed.cores
        begin = self.meters.started(cores)
        counters: object = None
        try:
            ended = super().run(lease, epoch, inputs, outputs, first_layer=first_layer, stoppable=stoppable)
            counters = getattr(ended, "counters", None)
            return ended
        except FaultError as error:
            self.meters.faulted(tenant_of(lease), fault_kind(error))
            raise
        finally:
            self.meters.ran(cores, begin, counters)

    def drop(self, lease: str, epoch: int) -> None:
        super().drop(lease, epoch)
        self._dealt.pop(lease, None)
        self._windows.pop(lease, None)

    def _forget(self, placed: Placed) -> None:
        banks = {core // self.config.cores_per_bank for core in placed.cores}
        super()._forget(placed)  # whoever calls this closes the session next, which zeroes its windows
        self.meters.cleared(self._windows.get(placed.lease, 0) * len(banks))
