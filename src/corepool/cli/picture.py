"""Draws which tenant had which cores when. The only user of matplotlib here.

It must not know devices or sessions: it is given spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corepool.files import replacing

COLOURS = ("#3b6fb6", "#e08a2b", "#3f9d6b", "#b5477f", "#7d6bb3", "#8a7a55", "#4aa3b8", "#c0504d")
INK = "#22303c"


@dataclass(frozen=True)
class Span:
    """One frame: tenant, its cores, start and end in ms of device time, and each core's share of busy cycles."""

    tenant: str
    cores: tuple[int, ...]
    start_ms: float
    end_ms: float
    busy: tuple[float, ...]


@dataclass(frozen=True)
class Mark:
    """An instant at which cores changed hands."""

    at_ms: float
    text: str


def draw(
    path: Path,
    spans: Sequence[Span],
    marks: Sequence[Mark],
    labels: dict[str, str],
    *,
    cores: int,
    cores_per_bank: int,
    title: str,
) -> None:
    """Write a PNG: cores from top to bottom, device time from left to right, one colour for each tenant.

    ``labels`` gives each tenant's text in the legend. The file appears whole or not at all. Raises OSError.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = {tenant: COLOURS[index % len(COLOURS)] for index, tenant in enumerate(labels)}
    figure = Figure(figsize=(11, 5.6), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    end = max((span.end_ms for span in spans), default=1.0)
    for span in spans:
        _draw_span(axes, span, colours[span.tenant], end)
    for bank in range(1, cores // cores_per_bank):
        axes.axhline(bank * cores_per_bank - 0.5, color="white", linewidth=3, zorder=3)
        axes.axhline(bank * cores_per_bank - 0.5, color=INK, linewidth=0.6, alpha=0.5, zorder=4)
    for mark in marks:
        axes.axvline(mark.at_ms, color=INK, linewidth=1.4, linestyle=(0, (4, 2)), zorder=5)
        axes.annotate(
            mark.text, (mark.at_ms, -0.5), (0, 5), textcoords="offset points", ha="center", va="bottom",
            fontsize=9.5, color=INK,
        )  # fmt: skip
    axes.set_xlim(0, end * 1.002)
    axes.set_ylim(cores - 0.5, -0.5)
    axes.set_yticks(range(cores), [str(core) for core in range(cores)])
    axes.set_xlabel("time on the card, ms", color=INK, loc="left")
    axes.set_ylabel("core", color=INK)
    for bank in range(cores // cores_per_bank):
        middle = (bank + 0.5) * cores_per_bank - 0.5
        axes.text(end * 1.012, middle, f"bank {bank}", rotation=270, va="center", fontsize=9, color=INK, alpha=0.7)
    axes.tick_params(length=0, labelsize=9, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    axes.annotate(
        "one block is one frame; height of the full colour: share of cycles in which the array is busy",
        (1, 0), (0, -20), xycoords="axes fraction", textcoords="offset points", ha="right", va="top", fontsize=8.5,
        color=INK, alpha=0.8,
    )  # fmt: skip
    patches = [Patch(color=colours[tenant], label=text) for tenant, text in labels.items()]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=min(len(patches), 2), frameon=False, fontsize=10,
        labelcolor=INK,
    )  # fmt: skip
    with replacing(path) as file:
        canvas.print_png(file)


def _draw_span(axes: object, span: Span, colour: str, end: float) -> None:
    """A frame: a light block over its cores, filled in strong colour by its busy share; then a gap."""
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    gap = end * 0.0012
    width = max(span.end_ms - span.start_ms - gap, gap)
    for core, busy in zip(span.cores, span.busy, strict=True):
        axes.broken_barh([(span.start_ms, width)], (core - 0.46, 0.92), color=colour, alpha=0.30, linewidth=0, zorder=1)
        height = 0.92 * min(busy, 1.0)
        axes.broken_barh([(span.start_ms, width)], (core + 0.46 - height, height), color=colour, linewidth=0, zorder=2)
    middle = (min(span.cores) + max(span.cores)) / 2
    if width > end * 0.03:
        axes.text(
            span.start_ms + width / 2, middle, span.tenant, ha="center", va="center", fontsize=11, fontweight="bold",
            color="white", zorder=6, bbox={"boxstyle": "circle,pad=0.25", "facecolor": colour, "edgecolor": "white"},
        )  # fmt: skip
