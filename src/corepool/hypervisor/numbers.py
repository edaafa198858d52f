"""Which values count as numbers: whole ones for times, sizes and counts.

It must not know what they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


def whole(value: object) -> bool:
    """True for a whole number that is not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def wholes(values: Iterable[object], least: int = 0) -> bool:
    """True if all are whole numbers of at least ``least``."""
    return all(isinstance(each, int) and not isinstance(each, bool) and each >= least for each in values)


def finite(value: object) -> bool:
    """True for a number that is neither infinite, nor no number at all, nor a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
