"""Packing and unpacking against a plain, slow rendering of the rules, element by element.

It must not know devices or compilers.
"""

import re
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool.errors import InputError, PackageError
from corepool.numerics import dequantise, quantise
from corepool.runtime import packing
from corepool.runtime.host import HostFold, HostPort, check_inputs, pack, unpack, unpack_float
from corepool.runtime.packing import STRIP, Packer

VIEWS = {  # ONNX shapes as views of a map
    (("",), ("c",), ("h",), ("w",)): lambda c, h, w: (1, c, h, w),
    (("",), ("h",), ("w",), ("c",)): lambda c, h, w: (1, h, w, c),
    (("",), ("c", "h", "w")): lambda c, h, w: (1, c * h * w),
    (("",), ("h", "w", "c")): lambda c, h, w: (1, c * h * w),
    (("c",), ("h", "w")): lambda c, h, w: (c, h * w),
    (("",), ("w",), ("",), ("c", "h")): lambda c, h, w: (1, w, 1, c * h),
}


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def ports(draw: st.DrawFn, folded: bool = False) -> HostPort:
    sizes = draw(st.tuples(st.integers(1, 5 if folded else 19), st.integers(1, 5), st.integers(1, 9)))
    view = draw(st.sampled_from(list(VIEWS)))
    channels, height, width = sizes
    fold = None
    if folded:
        kernel, stride = draw(st.tuples(st.integers(1, 5), st.integers(1, 7))), draw(pairs(1, 4))
        before = draw(st.tuples(st.integers(-2, 6), st.integers(0, 6)))
        fold = HostFold(*sizes, kernel, stride, draw(pairs(1, 3)), before, draw(st.integers(-128, 127)))
        channels, height, width = channels * kernel[0] * kernel[1], draw(st.integers(1, 7)), draw(st.integers(1, 12))
        if draw(st.booleans()):  # rows that are as far apart in the source as in the map
            sizes = (sizes[0], sizes[1], stride[1] * width)
            fold = replace(fold, width=sizes[2])
    return HostPort(
        name="x",
        shape=VIEWS[view](*sizes),
        axes=tuple(tuple(axis for axis in group if axis) for group in view),
        dtype=draw(st.sampled_from(("float32", "int8", "uint8"))),
        scale=draw(st.sampled_from((0.5, 0.0173, 1.0, 3e-5, 0.03))),
        zero_point=draw(st.integers(-128, 127)),
        offset=0,
        channels=channels,
        height=height,
        width=width,
        block=draw(st.sampled_from((4, 8, 16))),
        fold=fold,
    )


def values(port: HostPort, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if port.dtype == "float32":
        spread = random.normal(0, 200, port.shape) * port.scale
        halves = (random.integers(-300, 300, port.shape) + 0.5) * port.scale  # ties of rounding
        mixed = np.where(random.random(port.shape) < 0.5, spread, halves).astype(np.float32)
        return np.where(random.random(port.shape) < 0.05, np.float32(1e38) * np.sign(mixed), mixed).astype(np.float32)
    return random.integers(0, 256, port.shape).astype(np.uint8).view(port.dtype)


def codes(port: HostPort, array: np.ndarray) -> np.ndarray:
    if port.dtype == "float32":
        return quantise(array, port.scale, port.zero_point)
    return (array.astype(np.int32) - (128 if port.dtype == "uint8" else 0)).astype(np.int8)


def as_map(port: HostPort, array: np.ndarray) -> np.ndarray:
    """The array as [C, H, W], by writing each element's coordinates down."""
    c, h, w = port.map_shape
    grid = dict(zip("chw", np.meshgrid(np.arange(c), np.arange(h), np.arange(w), indexing="ij"), strict=True))
    sizes = dict(zip("chw", (c, h, w), strict=True))
    index = []
    for group in port.axes:
        place = np.zeros((c, h, w), dtype=int)
        for axis in group:
            place = place * sizes[axis] + grid[axis]
        index.append(place)
    return array[tuple(index)]


def expected_words(port: HostPort, source: np.ndarray) -> np.ndarray:
    words = np.zeros((-(-port.channels // port.block), port.height, port.width, port.block), dtype=np.int8)
    for channel in range(port.channels):
        for y in range(port.height):
            for x in range(port.width):
                if port.fold is None:
                    value = source[channel, y, x]
                else:
                    fold = port.fold
                    tap, plane = divmod(channel, fold.channels)
                    row = y * fold.stride[0] - fold.before[0] + tap // fold.kernel[1] * fold.dilation[0]
                    column = x * fold.stride[1] - fold.before[1] + tap % fold.kernel[1] * fold.dilation[1]
                    inside = 0 <= row < fold.height and 0 <= column < fold.width
                    value = source[plane, row, column] if inside else fold.pad_value
                words[channel // port.block, y, x, channel % port.block] = value
    return words


@given(ports() | ports(folded=True), st.integers(0, 1000))
def test_packed_bytes_are_those_of_the_rules(port: HostPort, seed: int) -> None:
    array = values(port, seed)
    packed = pack(port, array)
    assert packed.dtype == np.uint8
    assert packed.shape == (port.bytes,)
    expected = expected_words(port, as_map(port, codes(port, array)))
    assert np.array_equal(packed.view(np.int8), expected.reshape(-1))
    packer = Packer(port)
    packer.pack(values(port, seed + 1))  # nothing of it must be left
    assert np.array_equal(packer.pack(array), packed)


@pytest.mark.parametrize(
    ("kernel", "stride", "left"), [(1, 1, 0), (3, 1, 1), (3, 2, 0), (7, 2, 3), (3, 4, 1), (5, 3, 2), (2, 2, 5)]
)
@pytest.mark.parametrize("rows", [(1, 1, 1, 0), (3, 1, 1, 1), (3, 2, 1, 0), (2, 1, 25, 4), (1, 3, 1, 0), (4, 4, 2, 2)])
def test_many_rows_are_packed_as_few_are(
    kernel: int, stride: int, left: int, rows: tuple[int, int, int, int]
) -> None:  # fmt: skip
    """More rows than are gathered at once, which stand as far apart in the source as in the map; and some that do
    not. ``rows``: kernel, stride, dilation, above."""
    high, down, apart, above = rows
    for width, source_width in ((6, 6 * stride), (6, 6 * stride + 1), (1, stride)):
        for source_height in (STRIP - 1, STRIP, 2 * STRIP + 3, 4 * STRIP):
            height = max(1, (source_height + 2 * above - (high - 1) * apart - 1) // down + 1)
            fold = HostFold(
                3, source_height, source_width, (high, kernel), (down, stride), (apart, 1), (above, left), -7
            )
            port = replace(
                PORT, shape=(1, 3, source_height, source_width), zero_point=5, channels=3 * high * kernel,
                height=height, width=width, fold=fold,
            )  # fmt: skip
            array = values(port, height)
            assert np.array_equal(Packer(port).pack(array), pack(port, array)), (width, source_width, source_height)


@pytest.mark.parametrize("held", [1, 500, 4000])
def test_rows_that_are_not_held_are_gathered_again(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "HELD", held)
    for apart in (1, 3, 20):
        fold = HostFold(3, 50, 12, (3, 3), (1, 2), (apart, 1), (apart, 1), 9)
        port = replace(PORT, shape=(1, 3, 50, 12), channels=27, height=50, width=6, fold=fold)
        array = values(port, apart)
        assert np.array_equal(Packer(port).pack(array), pack(port, array)), apart


@given(ports(), st.integers(0, 1000))
def test_unpacking_undoes_packing(port: HostPort, seed: int) -> None:
    array = values(port, seed)
    packed = pack(port, array)
    back = unpack(port, packed)
    assert (back.dtype, back.shape) == (np.dtype(port.dtype), port.shape)
    real = dequantise(codes(port, array), port.scale, port.zero_point)
    assert np.array_equal(back, real if port.dtype == "float32" else array)
    assert np.array_equal(unpack_float(port, packed), real)


def test_words_by_hand() -> None:
    port = HostPort("x", (1, 3, 1, 2), ((), ("c",), ("h",), ("w",)), "float32", 0.5, 1, 0, 3, 1, 2, block=4)
    array = np.array([[[[0.0, 0.25]], [[0.75, -1.0]], [[1000.0, -1000.0]]]], dtype=np.float32)
    # steps 0, 0.5 -> 0 (to even), 1.5 -> 2 (to even), -2, saturated; plus the zero point 1; the fourth channel is zero
    assert pack(port, array).view(np.int8).tolist() == [1, 3, 127, 0, 1, -1, -128, 0]


def test_packing_refuses_what_is_no_number() -> None:
    port = HostPort("x", (1, 3, 1, 2), ((), ("c",), ("h",), ("w",)), "float32", 0.5, 1, 0, 3, 1, 2, block=4)
    packer, array = Packer(port), np.array([[[[0, np.inf]], [[0, 0]], [[0, -np.inf]]]], np.float32)
    assert packer.pack(array).view(np.int8).tolist() == [1, 1, 1, 0, 127, 1, -128, 0]
    array[0, 1, 0, 1] = np.nan
    with pytest.raises(InputError, match="'x' holds NaN"):
        packer.pack(array)


def test_folding_by_hand() -> None:
    fold = HostFold(1, 1, 4, kernel=(1, 3), stride=(1, 2), dilation=(1, 1), before=(0, 1), pad_value=-7)
    port = HostPort("x", (1, 1, 1, 4), ((), ("c",), ("h",), ("w",)), "int8", 1.0, 0, 0, 3, 1, 3, block=4, fold=fold)
    array = np.array([[[[10, 11, 12, 13]]]], dtype=np.int8)
    # column 0 covers sources -1 0 1, column 1 covers 1 2 3, column 2 covers 3 4 5
    expected = [-7, 10, 11, 0, 11, 12, 13, 0, 13, -7, -7, 0]
    assert pack(port, array).view(np.int8).tolist() == Packer(port).pack(array).view(np.int8).tolist() == expected
    # Rows instead: the same turned around, 2 rows of the kernel that stand 2 apart.
    fold = HostFold(1, 4, 1, kernel=(2, 1), stride=(2, 1), dilation=(2, 1), before=(1, 0), pad_value=-7)
    port = HostPort("x", (1, 1, 4, 1), ((), ("c",), ("h",), ("w",)), "int8", 1.0, 0, 0, 2, 3, 1, block=4, fold=fold)
    array = np.array([[[[10], [11], [12], [13]]]], dtype=np.int8)
    expected = [-7, 11, 0, 0, 11, 13, 0, 0, 13, -7, 0, 0]
    assert pack(port, array).view(np.int8).tolist() == Packer(port).pack(array).view(np.int8).tolist() == expected


PORT = HostPort("image", (1, 3, 2, 2), ((), ("c",), ("h",), ("w",)), "float32", 0.1, 0, 0, 3, 2, 2, block=8)
GOOD = np.zeros((1, 3, 2, 2), dtype=np.float32)
BAD = {
    "missing": ({}, "'image' is missing"),
    "extra": ({"image": GOOD, "mask": GOOD}, "there is no input 'mask'"),
    "other name": ({"input": GOOD}, "there is no input 'input'; 'image' is missing"),
    "shape": ({"image": GOOD[0]}, "must have the shape [1, 3, 2, 2], not [3, 2, 2]"),
    "type": ({"image": GOOD.astype(np.float64)}, "must be float32, not float64"),
    "both": ({"image": GOOD[0].astype(np.int8)}, "must be float32, not int8; 'image' must have the shape"),
    "byte order": ({"image": GOOD.astype(">f4")}, "must be float32"),
    "NaN": ({"image": np.full_like(GOOD, np.nan)}, "'image' holds NaN"),
    "text": ({"image": np.array("a")}, "must be float32"),
}


@pytest.mark.parametrize(("inputs", "message"), BAD.values(), ids=BAD.keys())
def test_wrong_inputs_are_listed_with_what_is_expected(inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        check_inputs([PORT], inputs)
    assert str(caught.value).endswith("expected: 'image' float32[1, 3, 2, 2]")
    if set(inputs) == {"image"}:
        with pytest.raises(InputError):
            pack(PORT, inputs["image"])


def test_right_inputs_and_infinities_pass() -> None:
    check_inputs([PORT], {"image": GOOD})
    packed = pack(PORT, np.full_like(GOOD, -np.inf))
    assert packed.view(np.int8).reshape(2, 2, 8)[..., :3].tolist() == [[[-128] * 3] * 2] * 2


META = {
    "name": "x", "shape": [1, 9, 4], "axes": [[], ["c"], ["w"]], "dtype": "uint8", "scale": 0.1, "zero_point": -3,
    "offset": 64, "channels": 9, "height": 1, "width": 4, "fold": None,
}  # fmt: skip
FOLD = {
    "channels": 3, "height": 9, "width": 4, "kernel": [3, 1], "stride": [4, 1], "dilation": [1, 1], "before": [1, 0],
    "pad_value": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1, 4, 9]},
        {"axes": [[], ["c"], ["w", "w"]]},
        {"axes": [[], ["c"], ["z"]]},
        {"height": 2},
        {"dtype": "int4"},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"zero_point": 300},
        {"offset": -1},
        {"offset": None},
        {"fold": {"channels": 9}},
        {"fold": {"channels": 9, "width": 4, "kernel": 2, "stride": 1, "dilation": 1, "left": 0, "pad_value": 0}},
        {"fold": FOLD | {"kernel": [2, 2]}},
        {"fold": FOLD | {"kernel": 3}},
        {"fold": FOLD | {"kernel": [3, 1, 1]}},
        {"fold": FOLD | {"channels": -3, "kernel": [3, -1]}},
        {"fold": FOLD | {"stride": [0, 1]}},
        {"fold": FOLD | {"dilation": [1, 0]}},
        {"fold": FOLD | {"height": 0}},
        {"fold": {"channels": 3}},
        {"shape": None},
    ],
)
def test_unsound_descriptions_are_refused(change: dict[str, object]) -> None:
    assert HostPort.from_meta(META, 8).bytes == 64
    with pytest.raises(PackageError):
        HostPort.from_meta(META | change, 8)


def test_folds_of_packages_are_read_old_ones_too() -> None:
    """Packages made before rows were packed have whole numbers, for the columns alone."""
    meta = META | {"shape": [1, 3, 9, 4], "axes": [[], ["c"], ["h"], ["w"]], "height": 2, "fold": FOLD}
    assert HostPort.from_meta(meta, 8).fold == HostFold(3, 9, 4, (3, 1), (4, 1), (1, 1), (1, 0), 0)
    old = {"channels": 3, "width": 8, "kernel": 3, "stride": 2, "dilation": 1, "left": 1, "pad_value": -4}
    meta |= {"shape": [1, 3, 2, 8], "fold": old}
    assert HostPort.from_meta(meta, 8).fold == HostFold(3, 2, 8, (1, 3), (1, 2), (1, 1), (0, 1), -4)


def test_wrong_number_of_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="31 bytes instead of 32"):
        unpack(PORT, np.zeros(31, dtype=np.uint8))


def test_a_photo_is_packed_in_milliseconds() -> None:
    fold = HostFold(3, 224, 224, kernel=(3, 3), stride=(2, 2), dilation=(1, 1), before=(1, 1), pad_value=0)
    port = replace(PORT, shape=(1, 3, 224, 224), channels=27, height=112, width=112, fold=fold)
    array = np.random.default_rng(0).normal(size=port.shape).astype(np.float32)
    best = 1.0
    for _ in range(5):
        begin = time.perf_counter()
        pack(port, array)
        best = min(best, time.perf_counter() - begin)
    assert best < 0.02, f"{best * 1000:.1f} ms"  # 1 to 2 ms on an idle machine; the bound leaves room for a busy one
