"""Inference requests and answers as messages, with raw and with typed contents.

It must not know calls or models.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from corepool.errors import DeadlineExceededError, RequestError
from corepool.server.api import Inferred, InferRequest
from corepool.server.requests import (
    MAX_TENSORS,
    make_request,
    refuse_classification,
    refuse_shared_memory,
    run_parameters,
)
from corepool.server.rpc.messages import MESSAGES
from corepool.server.tensors import DTYPES, Array, check_shape, datatype_of, from_binary, shown, to_binary

Response = MESSAGES["ModelInferResponse"]

# Which list holds the values of a datatype; values of 16-bit floats travel raw only.
CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parameters_of(owner: Any) -> dict[str, Any]:
    """Parameters by name; those without a value are left out."""
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in owner.parameters.items())
    return {name: getattr(value, kind) for name, value, kind in chosen if kind is not None}


def read_request(message: Any, remaining_s: float | None) -> InferRequest:
    """The request in a message; ``remaining_s`` is what is left of the call's own deadline. Raises RequestError,
    DeadlineExceededError."""
    raw = message.raw_input_contents
    if len(message.inputs) > MAX_TENSORS or len(message.outputs) > MAX_TENSORS:
        raise RequestError(f"a request has at most {MAX_TENSORS} inputs and outputs")
    if raw and len(raw) != len(message.inputs):
        raise RequestError(f"{len(raw)} raw contents for {len(message.inputs)} inputs")
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(message.inputs):
        name, datatype = tensor.name, tensor.datatype
        if name in inputs:
            raise RequestError(f"inputs: {shown(name)} is there twice")
        refuse_shared_memory(parameters_of(tensor), name)
        shape = check_shape(name, datatype, list(tensor.shape))
        if not raw:
            inputs[name] = _from_contents(name, datatype, shape, tensor.contents)
        elif tensor.HasField("contents"):
            raise RequestError(f"input {shown(name)} has contents of its own beside the raw ones")
        else:
            inputs[name] = from_binary(name, datatype, shape, raw[index])
    request = make_request(
        message.model_name, message.model_version or None, inputs, _outputs(message), parameters_of(message)
    )
    return request if remaining_s is None else _within(request, remaining_s)


def _outputs(message: Any) -> tuple[str, ...] | None:
    names = tuple(tensor.name for tensor in message.outputs)
    for tensor in message.outputs:
        refuse_shared_memory(parameters_of(tensor), tensor.name)
        refuse_classification(parameters_of(tensor), tensor.name)
    if len(set(names)) < len(names):
        raise RequestError("outputs: a name is there twice")
    return names or None


def _within(request: InferRequest, remaining_s: float) -> InferRequest:
    """The request with a timeout no later than the call's deadline."""
    left = int(remaining_s * 1e6)
    if left <= 0:
        raise DeadlineExceededError("the call's deadline has passed")
    return replace(request, timeout_us=min(left, request.timeout_us or left))


def _from_contents(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Array:
    field = CONTENTS.get(datatype)
    if field is None:
        raise RequestError(f"input {shown(name)}: {datatype} travels in raw contents only")
    used = [each.name for each, _ in contents.ListFields()]
    if used not in ([field], []):
        raise RequestError(f"input {shown(name)}: {datatype} values belong in {field}, not {', '.join(used)}")
    values = getattr(contents, field)
    if len(values) != math.prod(shape):
        raise RequestError(f"input {shown(name)}: {len(values)} values, but the shape is {list(shape)}")
    if datatype == "BYTES":
        made: Array = np.empty(len(values), dtype=object)
        made[:] = list(values)
        return made.reshape(shape)
    try:
        return np.array(list(values), DTYPES[datatype]).reshape(shape)
    except OverflowError:
        raise RequestError(f"input {shown(name)}: a value does not fit into {datatype}") from None


def write_response(message: Any, request: InferRequest, result: Inferred) -> Any:
    """The answer to a message: raw contents if the request had some, else typed ones where there are any."""
    names = request.outputs or tuple(result.outputs)
    raw = bool(message.raw_input_contents) or any(datatype_of(result.outputs[name]) not in CONTENTS for name in names)
    answer = Response(model_name=result.model, model_version=result.version, id=message.id)
    for name, value in run_parameters(result).items():
        kind = {int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(answer.parameters[name], kind, value)
    for name in names:
        array = result.outputs[name]
        datatype = datatype_of(array)
        tensor = answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            answer.raw_output_contents.append(to_binary(array))
        elif datatype == "BYTES":
            flat = array.reshape(-1)
            tensor.contents.bytes_contents.extend(
                each if isinstance(each, bytes) else str(each).encode() for each in flat
            )
        else:
            getattr(tensor.contents, CONTENTS[datatype]).extend(array.reshape(-1).tolist())
    return answer
