"""Pictures of results: one plain style, figures as PNG bytes.

They must not know experiments; matplotlib is loaded when the first picture is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct also for people who see few colours (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def figure(rows: int = 1, columns: int = 1, width: float = 9.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, row by row; sizes in inches, ``height`` of one row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(made)
    axes = [made.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]
    for each in axes:
        each.grid(True, color="#dddddd", linewidth=0.6)
        each.set_axisbelow(True)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
    return made, axes


def line(axes: Axes, index: int, x: Sequence[float], y: Sequence[float], label: str, **style: Any) -> None:
    """The line number ``index`` of a plot."""
    look: dict[str, Any] = {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.5,
    } | style
    axes.plot(x, y, label=label, **look)


def legend(made: Figure, axes: Axes, columns: int = 0) -> None:
    """The labels of one plot, above all of them, where they hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper center", ncols=columns or len(labels), fontsize=8)


def bars(axes: Axes, groups: Sequence[str], series: dict[str, Sequence[float | None]], digits: str = "{:.2f}") -> None:
    """Bars side by side, a group each for ``groups``; missing values leave a gap."""
    width = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        places = [at + (index - (len(series) - 1) / 2) * width for at in range(len(groups))]
        drawn = axes.bar(
            places, [value or 0.0 for value in values], width * 0.92, label=label, color=COLOURS[index % len(COLOURS)]
        )
        if digits:
            texts = [digits.format(value) if value is not None else "" for value in values]
            axes.bar_label(drawn, texts, fontsize=7, padding=1)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.grid(False, axis="x")


def png(made: Figure) -> bytes:
    """The picture as a file in memory, without anything that differs from run to run."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
