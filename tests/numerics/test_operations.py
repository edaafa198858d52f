"""Every operation against a plain definition with Python's integers, over random shapes.

It must not know the compiler.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool import numerics


def codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """int8 values, the extremes among them."""
    return rng.choice([-128, -127, -1, 0, 1, 126, 127, *range(-128, 128, 5)], size=shape).astype(np.int8)


def slow_conv(x, weight, stride, padding, dilation, groups, pad_value):  # type: ignore[no-untyped-def]
    top, left, bottom, right = padding
    outputs, per_group, kh, kw = weight.shape
    height = (x.shape[1] + top + bottom - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    width = (x.shape[2] + left + right - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    result = np.zeros((outputs, height, width), dtype=object)
    for o, y, z in itertools.product(range(outputs), range(height), range(width)):
        first = o // (outputs // groups) * per_group
        for c, ky, kx in itertools.product(range(per_group), range(kh), range(kw)):
            row, column = y * stride[0] - top + ky * dilation[0], z * stride[1] - left + kx * dilation[1]
            inside = 0 <= row < x.shape[1] and 0 <= column < x.shape[2]
            value = int(x[first + c, row, column]) if inside else pad_value
            result[o, y, z] += value * int(weight[o, c, ky, kx])
    return result


@pytest.mark.parametrize("seed", range(30))
def test_conv2d(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 4))
    per_group, share = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    kernel = rng.integers(1, 4, size=2)
    x = codes(rng, groups * per_group, int(rng.integers(6, 10)), int(rng.integers(6, 10)))
    weight = codes(rng, groups * share, per_group, *kernel)
    stride, dilation = tuple(rng.integers(1, 5, size=2)), tuple(rng.integers(1, 3, size=2))
    padding = tuple(int(v) for v in rng.integers(0, 4, size=4))
    pad_value = int(rng.integers(-128, 128))
    made = numerics.conv2d(
        x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups, pad_value=pad_value
    )
    assert made.dtype == np.int32
    np.testing.assert_array_equal(made, slow_conv(x, weight, stride, padding, dilation, groups, pad_value))


@pytest.mark.parametrize("channels", [1023, 1024, 1025, 5000])
def test_long_sums_are_exact(channels: int) -> None:
    """Sums of the largest products beyond what one float32 can hold."""
    x = np.full((channels, 1, 3), -128, dtype=np.int8)
    x[0] = 127
    weight = np.full((2, channels, 1, 1), -128, dtype=np.int8)
    weight[1, -1] = 127
    first = (channels - 1) * 16384 - 127 * 128
    np.testing.assert_array_equal(numerics.conv2d(x, weight)[:, 0, 1], [first, first - 16384 - 128 * 127])


def test_maps_cut_into_strips_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, weight = codes(rng, 5, 40, 9), codes(rng, 4, 5, 3, 3)
    whole = numerics.conv2d(x, weight, padding=(1, 1, 1, 1))
    monkeypatch.setattr("corepool.numerics.operations._COLUMN_BYTES", 5000)
    np.testing.assert_array_equal(numerics.conv2d(x, weight, padding=(1, 1, 1, 1)), whole)


def test_conv2d_refuses_what_does_not_fit() -> None:
    x = np.zeros((4, 3, 3), dtype=np.int8)
    with pytest.raises(ValueError, match="do not match"):
        numerics.conv2d(x, np.zeros((2, 3, 1, 1), dtype=np.int8))
    with pytest.raises(ValueError, match="does not fit"):
        numerics.conv2d(x, np.zeros((2, 4, 4, 1), dtype=np.int8))


@given(
    acc=st.integers(-(2**30), 2**30),
    bias=st.integers(-(2**30), 2**30 - 1),
    multiplier=st.integers(2**15, 2**16 - 1) | st.just(0),
    shift=st.integers(1, 47),
    zero=st.integers(-128, 127),
    bounds=st.tuples(st.integers(-128, 127), st.integers(-128, 127)).map(sorted),
)
def test_requantise(acc: int, bias: int, multiplier: int, shift: int, zero: int, bounds: list[int]) -> None:
    low, high = bounds
    expected = min(max((((acc + bias) * multiplier + (1 << (shift - 1))) >> shift) + zero, low), high)
    sums = np.array([[[acc]]], dtype=np.int32)
    assert numerics.requantise(sums, bias, multiplier, shift, zero, low, high).item() == expected
    vector = numerics.requantise(np.repeat(sums, 2, axis=0), [bias, 0], [multiplier] * 2, [shift] * 2, zero, low, high)
    assert vector[0].item() == expected


def test_requantise_rounds_halves_up_and_asserts_its_range() -> None:
    halves = np.array([-3, -1, 1, 3], dtype=np.int32).reshape(1, 1, 4)
    np.testing.assert_array_equal(numerics.requantise(halves, 0, 2**15, 16, 0).ravel(), [-1, 0, 1, 2])
    with pytest.raises(AssertionError, match="int32"):
        numerics.requantise(np.full((1, 1, 1), 2**31 - 1, dtype=np.int32), 1, 2**15, 16, 0)


@given(
    a=st.integers(-128, 127), b=st.integers(-128, 127),
    reals=st.tuples(st.floats(-50, 50), st.floats(1e-6, 50)), zero=st.integers(-128, 127),
)  # fmt: skip
def test_add_and_its_constants(a: int, b: int, reals: tuple[float, float], zero: int) -> None:
    ma, mb, shift = numerics.fixed_point_pair(*reals)
    assert max(abs(ma), abs(mb)) <= 65535
    assert 1 <= shift <= 31
    offset = -(3 * ma - 7 * mb)
    total = a * ma + b * mb + offset + (1 << (shift - 1))
    assert -(2**31) <= total < 2**31
    expected = min(max((total >> shift) + zero, -128), 127)
    one = np.array([[[a]]], dtype=np.int8), np.array([[[b]]], dtype=np.int8)
    assert numerics.add(*one, ma, mb, offset, shift, zero).item() == expected
    real = (a - 3) * reals[0] + (b + 7) * reals[1] + zero
    assert abs(min(max(real, -128), 127) - expected) <= 0.51 + 300 / 2**shift


@given(
    a=st.integers(-128, 127), b=st.integers(-128, 127), za=st.integers(-128, 127), zb=st.integers(-128, 127),
    real=st.floats(1e-6, 2), zero=st.integers(-128, 127),
)  # fmt: skip
def test_mul(a: int, b: int, za: int, zb: int, real: float, zero: int) -> None:
    multiplier, shift = numerics.fixed_point(real)
    total = (((a - za) * (b - zb) * multiplier + (1 << (shift - 1))) >> shift) + zero
    one = np.array([[[a]]], dtype=np.int8), np.array([[[b]]], dtype=np.int8)
    assert numerics.mul(*one, za, zb, multiplier, shift, zero).item() == min(max(total, -128), 127)


def test_mul_by_a_vector_scales_channels() -> None:
    rng = np.random.default_rng(0)
    a, b = codes(rng, 3, 4, 5), codes(rng, 3, 1, 1)
    made = numerics.mul(a, b, 1, 2, 2**15, 20, 3)
    np.testing.assert_array_equal(made, numerics.mul(a, np.broadcast_to(b, a.shape), 1, 2, 2**15, 20, 3))


@pytest.mark.parametrize("seed", range(10))
def test_pooling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = codes(rng, 3, 8, 9)
    kernel, stride = tuple(rng.integers(1, 4, size=2)), tuple(rng.integers(1, 4, size=2))
    padding = tuple(int(v) for v in rng.integers(0, 2, size=4))
    dilation = tuple(rng.integers(1, 3, size=2))
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    largest = numerics.pool_max(x, kernel, **window)
    total = numerics.pool_sum(x, kernel, pad_value=9, **window)
    counts = numerics.window_counts(8, 9, kernel, stride, padding, dilation)
    for y, z in itertools.product(*map(range, counts.shape)):
        taps = [
            (y * stride[0] - padding[0] + ky * dilation[0], z * stride[1] - padding[1] + kx * dilation[1])
            for ky, kx in itertools.product(*map(range, kernel))
        ]
        inside = [x[:, r, c].astype(int) for r, c in taps if 0 <= r < 8 and 0 <= c < 9]
        assert counts[y, z] == len(inside)
        assert list(largest[:, y, z]) == list(np.max([*inside, [-128] * 3], axis=0))
        assert list(total[:, y, z]) == list(np.sum([*inside, [0] * 3], axis=0) + 9 * (len(taps) - len(inside)))


def test_lut_is_indexed_by_code_plus_128() -> None:
    table = np.arange(127, -129, -1).astype(np.int8)
    x = np.arange(-128, 128).astype(np.int8).reshape(4, 8, 8)
    np.testing.assert_array_equal(numerics.lut(x, table), -1 - x)
    with pytest.raises(ValueError, match="256 entries"):
        numerics.lut(x, table[:-1])
