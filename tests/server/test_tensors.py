"""Tensors there and back, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corepool.errors import RequestError
from corepool.server.tensors import DTYPES, check_shape, datatype_of, from_binary, from_json, to_binary, to_json

NUMBERS = [name for name in DTYPES if name != "BYTES"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@pytest.mark.parametrize("datatype", NUMBERS)
@given(data=st.data())
def test_numbers_come_back_exactly(datatype: str, data: st.DataObject) -> None:
    dtype = DTYPES[datatype]
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    array = data.draw(hnp.arrays(dtype, SHAPES, elements=elements or None))
    binary = from_binary("x", datatype, array.shape, to_binary(array))
    assert binary.dtype == dtype
    assert binary.tobytes() == array.tobytes()
    text = json.loads(json.dumps(to_json("x", array)))
    if array.ndim:
        assert from_json("x", datatype, array.shape, text).tobytes() == array.tobytes()
        assert from_json("x", datatype, array.shape, array.tolist() if array.size else []).tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_come_back_exactly(elements: list[bytes]) -> None:
    array = np.empty(len(elements), object)
    array[:] = elements
    assert datatype_of(array) == "BYTES"
    back = from_binary("x", "BYTES", (len(elements),), to_binary(array))
    assert list(back) == elements


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=6))
def test_texts_come_back_exactly(texts: list[str]) -> None:
    array = from_json("x", "BYTES", (len(texts),), texts)
    assert [each.decode() for each in array] == texts
    assert to_json("x", array) == texts


@given(st.binary(max_size=64), st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 8), max_size=3))
def test_any_bytes_make_a_tensor_or_a_refusal(data: bytes, datatype: str, shape: list[int]) -> None:
    try:
        array = from_binary("x", datatype, check_shape("x", datatype, shape), data)
    except RequestError as error:
        assert "'x'" in str(error)  # noqa: PT017 - either is fine
    else:
        assert list(array.shape) == shape
        assert to_binary(array) == data


WRONG_SHAPES: list[Any] = [
    None, "12", [1.0], [-1], [True], ["2"], [1 << 63], [1 << 32, 1 << 32], [1] * 17, {"a": 1}, [None],
]  # fmt: skip


@pytest.mark.parametrize("shape", WRONG_SHAPES, ids=str)
def test_impossible_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(RequestError):
        check_shape("x", "FP32", shape)


@pytest.mark.parametrize("datatype", [None, 3, "fp32", "BF16", "", "FP32 ", ["FP32"]], ids=str)
def test_unknown_datatypes_are_refused(datatype: Any) -> None:
    with pytest.raises(RequestError):
        check_shape("x", datatype, [1])


WRONG_VALUES: list[tuple[str, Any]] = [
    ("INT8", [128]), ("INT8", [-129]), ("UINT8", [-1]), ("UINT64", [1 << 64]), ("INT64", [1 << 63]),
    ("INT32", [1.0]), ("INT32", ["1"]), ("INT32", [True]), ("BOOL", [1]), ("BOOL", ["true"]), ("FP32", [True]),
    ("FP32", ["1.5"]), ("FP32", [None]), ("FP32", [1e39]), ("FP16", [65520.0]), ("FP32", [10**400]), ("FP64", [{}]),
    ("BYTES", [1]), ("FP32", 1.5), ("FP32", "x"), ("FP32", {"0": 1}), ("FP32", [[1], [2, 3]]), ("FP32", [1, [2]]),
    ("FP32", [[1], 2]), ("FP32", []), ("FP32", [1, 2]), ("BYTES", [["a"], "b"]), ("INT8", [[[]]]),
]  # fmt: skip


@pytest.mark.parametrize(("datatype", "data"), WRONG_VALUES, ids=str)
def test_values_that_do_not_fit_are_refused(datatype: str, data: Any) -> None:
    with pytest.raises(RequestError):
        from_json("x", datatype, (1,), data)


def test_nesting_has_to_be_the_shape() -> None:
    assert from_json("x", "INT32", (2, 3), [[1, 2, 3], [4, 5, 6]]).tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(RequestError):
        from_json("x", "INT32", (2, 3), [[1, 2], [3, 4], [5, 6]])
    deep: Any = 1
    for _ in range(50):
        deep = [deep]
    with pytest.raises(RequestError):
        from_json("x", "INT32", (1,), deep)


def test_one_long_text_among_many_short_ones_takes_no_more_than_it_has() -> None:
    texts = [""] * 100_000 + ["x" * 1_000_000]
    assert from_json("x", "BYTES", (len(texts),), texts)[-1] == b"x" * 1_000_000
    with pytest.raises(RequestError):  # as numbers: numpy would make 100,001 texts of a million characters
        from_json("x", "FP32", (len(texts),), texts)


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x05\0\0\0abc", b"\xff\xff\xff\xff", b"\x01\0\0\0ab"])
def test_wrong_lengths_of_bytes_elements_are_refused(data: bytes) -> None:
    with pytest.raises(RequestError):
        from_binary("x", "BYTES", (1,), data)


def test_what_json_cannot_write_is_said() -> None:
    with pytest.raises(RequestError, match="binary"):
        to_json("x", np.array([np.nan], np.float32))
    raw = np.empty(1, object)
    raw[0] = b"\xff"
    with pytest.raises(RequestError, match="binary"):
        to_json("x", raw)
    with pytest.raises(RequestError, match="BOOL byte"):
        from_binary("x", "BOOL", (1,), b"\x02")
