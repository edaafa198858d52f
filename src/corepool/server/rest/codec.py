"""Inference requests and answers as HTTP bodies: JSON, and JSON followed by binary tensors.

It must not know routes or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic_core import from_json as parse_json
from pydantic_core import to_json as write_json

from corepool.errors import RequestError, TooLargeError
from corepool.server.api import Inferred, InferRequest
from corepool.server.requests import (
    MAX_TENSORS,
    MAX_TEXT_BYTES,
    flag,
    make_request,
    refuse_classification,
    refuse_shared_memory,
    run_parameters,
    whole,
)
from corepool.server.tensors import Array, check_shape, datatype_of, from_binary, from_json, shown, to_binary, to_json

MAX_LISTS = 1 << 18  # and objects; a nested image has one for each row, or for each pixel if its channels come last
HEADER_LENGTH = "Inference-Header-Content-Length"
REMEMBERED_BYTES = 2048  # of a JSON part that is kept once it was read, unless it holds values
HEADS_REMEMBERED = 512


class Asked(NamedTuple):
    """A request, and how it wants to be answered: its id, and which outputs in binary."""

    request: InferRequest
    id: str | None
    binary: Mapping[str, bool]
    binary_default: bool


def load_json(data: bytes | memoryview, most_bytes: int = MAX_TEXT_BYTES, most_values: int | None = None) -> Any:
    """Parse JSON that nobody vouches for. Raises RequestError, and TooLargeError rather than fill the memory: a list
    of two bytes takes many times that once it is read."""
    if len(data) > most_bytes:
        raise TooLargeError(f"the JSON has {len(data)} bytes; the limit is {most_bytes}: send tensors as binary data")
    text = bytes(data)
    if text.count(b"[") + text.count(b"{") > MAX_LISTS or (most_values is not None and text.count(b",") >= most_values):
        raise RequestError(f"the JSON has too many parts: at most {MAX_LISTS} lists{_values(most_values)}")
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not sound JSON: {error}") from None


def read_request(model: str, version: str | None, body: bytes | memoryview, header_length: str | None) -> Asked:
    """An inference request from its body; the header says where binary data begins. Raises RequestError."""
    view = memoryview(body)
    split = len(view)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()) or int(header_length[:20]) > len(view):
            raise RequestError(f"{HEADER_LENGTH} {shown(header_length)} is no length within the body")
        split = int(header_length)
    if header_length is not None and split <= REMEMBERED_BYTES and not _has_values(text := bytes(view[:split])):
        head = _remembered(text)
    else:
        head = _read_head(view[:split], header_length is not None)
    said = head.said
    request = InferRequest(
        model,
        _take_inputs(head.inputs, view[split:]),
        version,
        said.outputs,
        said.lease,
        said.priority,
        said.timeout_us,
    )
    return Asked(request, head.id, head.binary, head.binary_default)


class _Input(NamedTuple):
    """An input as the JSON part describes it: its values are there, or ``size`` bytes behind that part."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    values: Array | None


class _Head(NamedTuple):
    """All that the JSON part says. ``said`` is a request without model and inputs. Nobody changes any of it."""

    inputs: tuple[_Input, ...]
    said: InferRequest
    id: str | None
    binary: Mapping[str, bool]
    binary_default: bool


def _read_head(text: bytes | memoryview, has_binary: bool) -> _Head:
    head = _an_object(load_json(text), "the request")
    parameters = _parameters(head, "the request")
    inputs = tuple(_describe(tensor, has_binary) for tensor in _list(head, "inputs"))
    names, binary = _read_outputs(head)
    ident = head.get("id")
    if ident is not None and not isinstance(ident, str):
        raise RequestError(f"id must be a text, not {shown(ident)}")
    said = make_request("", None, {}, names, parameters)
    return _Head(inputs, said, ident, binary, flag(parameters, "binary_data_output", "the request"))


def _has_values(text: bytes) -> bool:
    """Whether a JSON part may hold values of tensors: those are not kept longer than their request."""
    return b'"data"' in text or b"\\" in text  # a name can be written with escapes


@lru_cache(HEADS_REMEMBERED)
def _remembered(text: bytes) -> _Head:
    """As ``_read_head``, for short ones before binary data: a client sends the same one again and again."""
    return _read_head(text, True)


def _values(most: int | None) -> str:
    return "" if most is None else f" and {most} values"


def _an_object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON object")
    return value


def _parameters(owner: Mapping[str, Any], what: str) -> dict[str, Any]:
    given = owner.get("parameters")
    return {} if given is None else _an_object(given, f"parameters of {what}")


def _list(head: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Tensors of a request: objects with a name each, no name twice."""
    values = head.get(key)
    if not isinstance(values, list) or len(values) > MAX_TENSORS:
        raise RequestError(f"{key} must be a list of at most {MAX_TENSORS} tensors")
    seen: set[str] = set()
    for value in values:
        name = _an_object(value, f"each of {key}").get("name")
        if not isinstance(name, str):
            raise RequestError(f"each of {key} needs a name")
        if name in seen:
            raise RequestError(f"{key}: {shown(name)} is there twice")
        seen.add(name)
    return values


def _describe(tensor: Mapping[str, Any], has_binary: bool) -> _Input:
    name = tensor["name"]
    parameters = _parameters(tensor, shown(name))
    refuse_shared_memory(parameters, name)
    shape = check_shape(name, tensor.get("datatype"), tensor.get("shape"))
    size = whole(parameters, "binary_data_size", None)
    if size is None:
        if "data" not in tensor:
            raise RequestError(f"input {shown(name)} has neither data nor binary_data_size")
        return _Input(name, tensor["datatype"], shape, 0, from_json(name, tensor["datatype"], shape, tensor["data"]))
    if "data" in tensor or not has_binary:
        raise RequestError(
            f"input {shown(name)}: binary_data_size goes with the header {HEADER_LENGTH} and without data"
        )
    return _Input(name, tensor["datatype"], shape, size, None)


def _take_inputs(inputs: tuple[_Input, ...], rest: memoryview) -> dict[str, Array]:
    made: dict[str, Array] = {}
    place = 0
    for name, datatype, shape, size, values in inputs:
        if values is not None:
            made[name] = values
            continue
        if size > len(rest) - place:
            raise RequestError(f"input {shown(name)}: {size} bytes announced, {len(rest) - place} are left in the body")
        made[name] = from_binary(name, datatype, shape, rest[place : place + size])
        place += size
    if place != len(rest):
        raise RequestError(f"{len(rest) - place} bytes of the body belong to no input")
    return made


def _read_outputs(head: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, dict[str, bool]]:
    if head.get("outputs") is None:
        return None, {}
    binary: dict[str, bool] = {}
    names = []
    for tensor in _list(head, "outputs"):
        name = tensor["name"]
        parameters = _parameters(tensor, shown(name))
        refuse_shared_memory(parameters, name)
        refuse_classification(parameters, name)
        names.append(name)
        if "binary_data" in parameters:
            binary[name] = flag(parameters, "binary_data", shown(name))
    return tuple(names) or None, binary


def write_response(asked: Asked, result: Inferred) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part if binary data follow."""
    names = asked.request.outputs or tuple(result.outputs)
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name in names:
        array = result.outputs[name]
        output: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if asked.binary.get(name, asked.binary_default):
            blobs.append(to_binary(array))
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            output["data"] = to_json(name, array)
        outputs.append(output)
    head: dict[str, Any] = {"model_name": result.model, "model_version": result.version}
    if asked.id is not None:
        head["id"] = asked.id
    head |= {"parameters": run_parameters(result), "outputs": outputs}
    text = write_json(head)
    return (b"".join([text, *blobs]), len(text)) if blobs else (text, None)
