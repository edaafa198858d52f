"""Reads an ONNX file that nobody vouches for: file checks, external data, opset, functions, shapes of inputs.

It must not know operators beyond what ONNX itself says about them.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, inliner, version_converter

from corepool.errors import ModelError

BASE_OPSET = 13  # older files are converted to it; newer ones are read as they are
OLDEST_OPSET = 9
FILE_LIMIT = 1 << 31  # bytes; protobuf's own limit for one message
DATA_LIMIT = 4 << 30  # bytes of external data in all


def load(path: Path) -> onnx.ModelProto:
    """The model, complete in memory, with opset >= 13, batch 1 and static input shapes. Raises ModelError."""
    model = _parse(path)
    _check_frame(path, model)
    _load_external(path, model)
    if model.functions:
        inlined: onnx.ModelProto = inliner.inline_local_functions(model)
        model = inlined
    _fix_inputs(path, model)
    return _convert(path, model)


def read_regular(path: Path, limit: int, offset: int = 0, length: int | None = None) -> bytes:
    """Bytes of a regular file; never blocks on a FIFO. Raises OSError for anything else, or if there is too much."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        wanted = status.st_size - offset if length is None else length
        if wanted > limit:
            raise OSError(f"it has {wanted} bytes; the limit is {limit}")
        if wanted < 0 or offset < 0 or offset + wanted > status.st_size:
            raise OSError(f"it has {status.st_size} bytes; {wanted} at {offset} were asked for")
        file.seek(offset)
        return file.read(wanted)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        data = read_regular(path, FILE_LIMIT)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise ModelError(f"{path}: is not an ONNX file, or is truncated") from None
    if not model.ir_version or not model.HasField("graph") or not model.graph.node:
        raise ModelError(f"{path}: is not an ONNX file: it holds no graph")
    parsed: onnx.ModelProto = model
    return parsed


def _check_frame(path: Path, model: onnx.ModelProto) -> None:
    graph = model.graph
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if not versions:
        raise ModelError(f"{path}: names no version of the ONNX operator set")
    if not OLDEST_OPSET <= max(versions) <= newest:
        raise ModelError(f"{path}: uses ONNX opset {max(versions)}; supported are {OLDEST_OPSET} to {newest}")
    if not graph.output:
        raise ModelError(f"{path}: is not complete: the graph has no output")
    if graph.sparse_initializer:
        raise ModelError(f"{path}: holds sparse constants, which are not supported")
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    if not inputs:
        raise ModelError(f"{path}: has no input: all that it computes is constant")
    made: set[str] = set()
    for name in [
        *(tensor.name for tensor in graph.initializer),
        *inputs,
        *(name for node in graph.node for name in node.output if name),
    ]:
        if name in made:
            raise ModelError(f"{path}: the name '{name}' is given to more than one value")
        made.add(name)
    for value in graph.output:
        if value.name not in made:
            raise ModelError(f"{path}: graph output '{value.name}' is made by no node")
        if value.name in inputs:
            raise ModelError(f"{path}: graph output '{value.name}' is a graph input; there is nothing to compute")
    for tensor in graph.initializer:
        _check_data(f"{path}: the constant '{tensor.name}'", tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                name = f"attribute {attribute.name} of node '{node.name or node.op_type}'"
                _check_data(f"{path}: {name}", attribute.t)


def _check_data(what: str, tensor: TensorProto) -> None:
    """ModelError if a constant's data, where it lies in the model's file, is not as long as its shape says."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
        return
    try:
        bits = _item_bits(tensor)
        field = helper.tensor_dtype_to_field(tensor.data_type)
    except (ValueError, KeyError):
        raise ModelError(f"{what} has an unknown type ({tensor.data_type})") from None
    if min(tensor.dims, default=1) < 0:
        raise ModelError(f"{what} has the shape {list(tensor.dims)}; sizes are not negative")
    count = math.prod(tensor.dims)
    shape = f"its shape {list(tensor.dims)} needs"
    if tensor.HasField("raw_data"):
        needed, found, unit = -(-count * bits // 8), len(tensor.raw_data), "bytes"
    else:
        parts = 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
        needed = -(-count * bits // 8) if bits < 8 else count * parts
        found, unit = len(getattr(tensor, field)), "values"
    if found != needed:
        raise ModelError(f"{what} has {found} {unit} of data; {shape} {needed}: the file is damaged")


def _load_external(path: Path, model: onnx.ModelProto) -> None:
    """Reads constants that lie in other files, which must be regular and inside the model's folder."""
    folder = path.parent.resolve()
    left = DATA_LIMIT
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        place = f"{path}: the data of '{tensor.name}' in '{fields.get('location', '')}'"
        try:
            target = (folder / fields["location"]).resolve()
            offset, length = int(fields.get("offset", "0")), -(-math.prod(tensor.dims) * _item_bits(tensor) // 8)
            if "length" in fields and int(fields["length"]) != length:
                raise ValueError(f"has {fields['length']} bytes; its shape needs {length}")
            if not target.is_relative_to(folder) or target == folder:
                raise ModelError(f"{place} lies outside the model's folder; move it there")
            tensor.raw_data = read_regular(target, left, offset, length)
        except (OSError, ValueError, KeyError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ModelError(f"{place} cannot be read: {reason}") from None
        left -= length
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _item_bits(tensor: TensorProto) -> int:
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        raise ValueError("holds no numbers")
    packed = {
        "INT4": 4,
        "UINT4": 4,
        "FLOAT4E2M1": 4,
        "INT2": 2,
        "UINT2": 2,
    }  # bits; all others fill whole bytes
    name = TensorProto.DataType.Name(tensor.data_type)
    return packed.get(name) or int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize) * 8


def _fix_inputs(path: Path, model: onnx.ModelProto) -> None:
    """Sets a symbolic first dimension to 1; all others must be known."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"{path}: the shape of input '{value.name}' is not known; export the model with fixed shapes"
            )
        for index, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.HasField("dim_value") and dimension.dim_value > 0:
                continue
            if index:
                name = dimension.dim_param or "?"
                raise ModelError(
                    f"{path}: dimension {index} of input '{value.name}' ({name}) is dynamic; only the batch may be:"
                    " export the model with fixed shapes"
                )
            dimension.dim_value = 1


def _convert(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    version = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if version >= BASE_OPSET:
        return model
    model.ir_version = max(model.ir_version, 4)  # from 4 on, constants need not be graph inputs
    del model.graph.value_info[:]
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    try:
        converted: onnx.ModelProto = version_converter.convert_version(model, BASE_OPSET)
        return converted
    except Exception as error:  # the converter raises what it likes
        line = str(error).strip().splitlines()
        reason = line[0] if line else type(error).__name__
        raise ModelError(f"{path}: cannot be converted from opset {version} to {BASE_OPSET}: {reason}") from None
