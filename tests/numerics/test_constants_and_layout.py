"""Fixed-point constants, quantisation as ONNX defines it, views of maps and the packing of folded stems.

It must not know the compiler.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool import numerics


@given(st.floats(2.0**-32, 32767, allow_nan=False))
def test_fixed_point_is_the_nearest(real: float) -> None:
    multiplier, shift = numerics.fixed_point(real)
    assert 2**15 <= multiplier < 2**16
    assert 1 <= shift <= 47
    assert abs(multiplier / 2**shift - real) <= 0.5 / 2**shift


def test_fixed_point_at_its_ends() -> None:
    assert numerics.fixed_point(0.0) == (0, 1)
    assert numerics.fixed_point(2.0**-34) == (0, 1)
    assert numerics.fixed_point(2.0**-33) == (2**15, 47)
    assert numerics.fixed_point(65535 / 2) == (65535, 1)
    assert numerics.fixed_point(math.nextafter(1, 0)) == (2**15, 15)
    for wrong in (-1.0, math.nan, math.inf, 40000.0):
        with pytest.raises(ValueError, match="scale factor"):
            numerics.fixed_point(wrong)
    with pytest.raises(ValueError, match="scale factors"):
        numerics.fixed_point_pair(1.0, 40000.0)


@given(st.floats(1e-9, 1000), st.floats(1e-9, 1000))
def test_fixed_point_pairs_use_the_largest_shift(real_a: float, real_b: float) -> None:
    ma, mb, shift = numerics.fixed_point_pair(real_a, real_b)
    assert (ma, mb) == (round(real_a * 2**shift), round(real_b * 2**shift))
    assert shift == 31 or max(real_a, real_b) * 2 ** (shift + 1) > 65535.4


def test_quantise_rounds_half_to_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30, np.inf, -np.inf, np.nan], dtype=np.float32)
    np.testing.assert_array_equal(numerics.quantise(x, 1.0, 3), [3, 5, 5, 3, 1, 127, -128, 127, -128, 3])


@given(st.floats(2.0**-20, 2.0**13, width=32), st.integers(-128, 127))
def test_dequantise_inverts_quantise(scale: float, zero: int) -> None:
    every = np.arange(-128, 128).astype(np.int8)
    real = numerics.all_values(scale, zero)
    np.testing.assert_array_equal(numerics.quantise(real, scale, zero), every)
    np.testing.assert_array_equal(numerics.dequantise(every, scale, zero), real)


def test_uint8_codes_are_shifted() -> None:
    q = np.array([0, 127, 128, 255], dtype=np.uint8)
    np.testing.assert_array_equal(numerics.to_int8_domain(q), [-128, -1, 0, 127])
    np.testing.assert_array_equal(numerics.to_uint8(numerics.to_int8_domain(q)), q)
    with pytest.raises(TypeError, match="int16"):
        numerics.to_int8_domain(np.zeros(3, dtype=np.int16))


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        (((), ("c",), ("h",), ("w",)), (1, 2, 3, 4)),
        (((), ("h",), ("w",), ("c",)), (1, 3, 4, 2)),
        (((), ("h", "w", "c")), (1, 24)),
        ((("w",), ("c", "h")), (4, 6)),
    ],
)
def test_views_of_maps(axes: tuple[tuple[str, ...], ...], shape: tuple[int, ...]) -> None:
    """Each value of the array stands where its axes say."""
    values = np.arange(24).reshape(2, 3, 4)
    array = numerics.from_map(values, axes, shape)
    order = [name for group in axes for name in group]
    places = array.reshape([dict(zip("chw", (2, 3, 4), strict=True))[name] for name in order])
    for place in itertools.product(*map(range, places.shape)):
        at = dict(zip(order, place, strict=True))
        assert places[place] == values[at["c"], at["h"], at["w"]]
    np.testing.assert_array_equal(numerics.to_map(array, axes, (2, 3, 4)), values)


def test_axes_of_size_one_may_be_left_out() -> None:
    vector = np.arange(5)
    np.testing.assert_array_equal(numerics.to_map(vector[None], ((), ("c",)), (5, 1, 1)).ravel(), vector)
    with pytest.raises(ValueError, match="reshape"):
        numerics.to_map(vector, (("c",),), (6, 1, 1))


@pytest.mark.parametrize("rows", [(1, 1, 1, 0), (5, 2, 1, 1), (2, 3, 4, 2), (12, 1, 1, 3)])
@pytest.mark.parametrize("columns", [(7, 2, 1, 3), (3, 1, 2, 0), (2, 4, 1, 1), (1, 1, 1, 0)])
def test_folding_keeps_every_convolution(rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    """Kernel, stride, dilation and padding in front, of rows and of columns; the kernel may be higher than the map."""
    kernel, stride, dilation, before = zip(rows, columns, strict=True)
    rng = np.random.default_rng(kernel[0])
    x = rng.integers(-128, 128, size=(3, 9, 20)).astype(np.int8)
    weight = rng.integers(-128, 128, size=(4, 3, *kernel)).astype(np.int8)
    window = {"dilation": dilation, "pad_value": -9}
    plain = numerics.conv2d(x, weight, stride=stride, padding=(*before, 2, 2), **window)
    packed = numerics.pack_fold(
        x, kernel=kernel, stride=stride, dilation=dilation, before=before, pad_value=-9, size=plain.shape[1:]
    )
    assert packed.shape == (kernel[0] * kernel[1] * 3, *plain.shape[1:])
    again = numerics.conv2d(packed, weight.transpose(0, 2, 3, 1).reshape(4, -1, 1, 1))
    np.testing.assert_array_equal(again, plain)
