"""The JSON part of a request is read once if it comes again: no request may feel what another one was.

It must not know servers.
"""

import json

import numpy as np
import pytest

from corepool.errors import RequestError
from corepool.server.rest import codec
from corepool.server.rest.codec import REMEMBERED_BYTES, read_request


def request(values: np.ndarray, **more: object) -> tuple[bytes, str]:
    """A body with the values in binary, and the length of its JSON part."""
    described = {
        "name": "x",
        "datatype": "FP32",
        "shape": values.shape,
        "parameters": {"binary_data_size": values.nbytes},
    }
    text = json.dumps({"inputs": [described], **more}).encode()
    return text + values.astype("<f4").tobytes(), str(len(text))


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    codec._remembered.cache_clear()


def test_the_same_words_with_other_bytes_are_another_request() -> None:
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 7, np.float32)
    asked = [read_request(model, "1", *request(values)) for model, values in (("a", first), ("b", second))]
    assert codec._remembered.cache_info().hits == 1
    assert [each.request.model for each in asked] == ["a", "b"]
    for each, values in zip(asked, (first, second), strict=True):
        assert np.array_equal(each.request.inputs["x"], values)
    assert asked[0].request is not asked[1].request
    assert asked[0].request.inputs is not asked[1].request.inputs


def test_words_that_are_remembered_fit_only_their_bytes() -> None:
    body, length = request(np.zeros((2, 3), np.float32))
    read_request("a", None, body, length)
    for wrong in (body[:-1], body + b"\0"):
        with pytest.raises(RequestError, match="bytes"):
            read_request("a", None, wrong, length)


def test_what_is_wrong_is_told_each_time() -> None:
    body, length = request(np.zeros(2, np.float32), parameters={"timeout": -1})
    for _ in range(2):
        with pytest.raises(RequestError, match="timeout must be a whole number"):
            read_request("a", None, body, length)


@pytest.mark.parametrize("name", ["data", "d\\u0061ta"])
def test_words_with_values_are_not_kept(name: str) -> None:
    text = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "%s": [1, 2]}]}' % name.encode()
    for _ in range(2):
        assert read_request("a", None, text, str(len(text))).request.inputs["x"].tolist() == [1, 2]
    assert codec._remembered.cache_info().currsize == 0


def test_parameters_ids_and_outputs_come_with_their_words() -> None:
    said = {
        "id": "seven",
        "parameters": {"priority": 3, "lease": "four", "binary_data_output": True},
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
    }
    for _ in range(2):
        asked = read_request("a", None, *request(np.zeros(2, np.float32), **said))
        assert (asked.id, asked.binary, asked.binary_default) == ("seven", {"y": False}, True)
        assert (asked.request.priority, asked.request.lease, asked.request.outputs) == (3, "four", ("y",))
    assert read_request("a", None, *request(np.zeros(2, np.float32))).id is None


def test_long_words_and_those_without_binary_data_are_not_kept() -> None:
    values = np.zeros(2, np.float32)
    read_request("a", None, *request(values, id="i" * REMEMBERED_BYTES))
    text = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}).encode()
    read_request("a", None, text, None)
    assert codec._remembered.cache_info().currsize == 0
