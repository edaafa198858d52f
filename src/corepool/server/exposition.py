"""The text in which Prometheus reads metrics (version 0.0.4): families of samples, histograms among them.

It must not know what is measured.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]


@dataclass
class Family:
    """Samples of one metric. ``kind`` is counter, gauge or histogram. Names and help texts are the program's own, label
    values may be anything."""

    name: str
    kind: str
    help: str
    lines: list[str] = field(default_factory=list)

    def add(self, value: float, labels: Labels | None = None, suffix: str = "") -> None:
        """One sample."""
        inside = ",".join(f'{name}="{_escaped(text)}"' for name, text in (labels or {}).items())
        self.lines.append(f"{self.name}{suffix}{{{inside}}} {_number(value)}" if inside else
                          f"{self.name}{suffix} {_number(value)}")  # fmt: skip

    def add_histogram(self, histogram: Histogram, labels: Labels) -> None:
        """The samples of one histogram."""
        total = 0
        for bound, count in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
            total += count
            self.add(total, {**labels, "le": _number(bound)}, "_bucket")
        self.add(histogram.total, labels, "_sum")
        self.add(total, labels, "_count")


@dataclass(slots=True)
class Histogram:
    """Counts of values by upper bounds, the last without one, and the values' sum."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_all(self, values: npt.NDArray[np.float64]) -> None:
        """As ``observe`` for each of the values."""
        found = np.bincount(np.searchsorted(self.bounds, values, "left"), minlength=len(self.counts))
        self.counts = [mine + its for mine, its in zip(self.counts, found.tolist(), strict=True)]
        self.total += float(values.sum())

    def merge(self, other: Histogram) -> None:
        """Add the values of another histogram of the same bounds."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


def exposition(families: Iterable[Family]) -> str:
    """The whole page; families without samples still tell that they exist."""
    lines: list[str] = []
    for family in families:
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}", *family.lines]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
