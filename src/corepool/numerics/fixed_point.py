"""Turns real scale factors into the integer multipliers and shifts that the machine applies.

It must not know layers, tensors or instructions: numbers in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MULTIPLIER_TOP = 1 << 15  # the multiplier's top bit (it is unsigned, 16 bit)
MULTIPLIER_MAX = (1 << 16) - 1
SHIFT_MAX = 47
ADD_SHIFT_MAX = 31


def fixed_point(real: float) -> tuple[int, int]:
    """The nearest ``multiplier / 2**shift`` to ``real >= 0``, with multiplier 2**15..2**16 - 1 and shift 1..47.

    Factors below half of the smallest such number give (0, 1): their product with any int32 rounds to zero.
    Raises ValueError for negative, infinite or too large factors.
    """
    if not math.isfinite(real) or real < 0:
        raise ValueError(f"scale factor {real} is not a finite non-negative number")
    if real == 0:
        return 0, 1
    fraction, exponent = math.frexp(real)  # real = fraction * 2**exponent, fraction in [0.5, 1)
    multiplier = round(fraction * (MULTIPLIER_MAX + 1))
    shift = 16 - exponent
    if multiplier > MULTIPLIER_MAX:
        multiplier, shift = MULTIPLIER_TOP, shift - 1
    if shift > SHIFT_MAX:
        smallest = MULTIPLIER_TOP / 2**SHIFT_MAX
        return (MULTIPLIER_TOP, SHIFT_MAX) if real >= smallest / 2 else (0, 1)
    if shift < 1:
        raise ValueError(f"scale factor {real} is above the largest possible, {MULTIPLIER_MAX / 2}")
    return multiplier, shift


def fixed_points(
    reals: Sequence[float] | npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Multipliers and shifts (int64, [C]) for a vector of factors; see :func:`fixed_point`."""
    pairs = [fixed_point(float(real)) for real in reals]
    return (
        np.array([multiplier for multiplier, _ in pairs], dtype=np.int64),
        np.array([shift for _, shift in pairs], dtype=np.int64),
    )


def fixed_point_pair(real_a: float, real_b: float) -> tuple[int, int, int]:
    """Two factors over one shift, for ADD: (multiplier_a, multiplier_b, shift), |multipliers| <= 65535, shift 1..31.

    The shift is the largest that keeps both multipliers in range, and so the most precise one.
    Raises ValueError if a factor is too large or not finite.
    """
    if not (math.isfinite(real_a) and math.isfinite(real_b)):
        raise ValueError(f"scale factors {real_a}, {real_b} are not finite")
    for shift in range(ADD_SHIFT_MAX, 0, -1):
        multiplier_a, multiplier_b = round(real_a * 2**shift), round(real_b * 2**shift)
        if max(abs(multiplier_a), abs(multiplier_b)) <= MULTIPLIER_MAX:
            return multiplier_a, multiplier_b, shift
    raise ValueError(f"scale factors {real_a}, {real_b} are above the largest possible, {MULTIPLIER_MAX / 2}")
