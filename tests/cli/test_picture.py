"""The picture of cores over time: what it shows can be found again in its pixels.

It must not know devices.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corepool.cli.picture import COLOURS, Mark, Span, draw


def share_of(path: Path, colour: str) -> float:
    """Share of the picture's pixels that have nearly this colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return float((np.abs(pixels - wanted).max(axis=2) <= 3).mean())


def test_colours_cover_what_tenants_held(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    spans = [
        Span("A", tuple(range(12)), 0.0, 5.0, (1.0,) * 12),
        Span("B", tuple(range(12, 16)), 0.0, 5.0, (1.0,) * 4),
    ]
    draw(path, spans, [Mark(5.0, "re-dealt")], {"A": "A: 12", "B": "B: 4"}, cores=16, cores_per_bank=4, title="t")
    first, second = share_of(path, COLOURS[0]), share_of(path, COLOURS[1])
    assert first > 0.3
    assert first / second == pytest.approx(3, rel=0.15)


def test_idle_arrays_are_pale(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    shares = []
    for busy in (0.2, 0.8):
        spans = [Span("A", (0, 1), 0.0, 5.0, (busy, busy))]
        draw(path, spans, [], {"A": "A"}, cores=2, cores_per_bank=2, title="t")
        shares.append(share_of(path, COLOURS[0]))
    assert shares[1] > 2.5 * shares[0]


def test_nothing_is_left_behind_when_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="folder"):
        draw(tmp_path, [], [], {}, cores=4, cores_per_bank=2, title="t")
    assert list(tmp_path.iterdir()) == []
