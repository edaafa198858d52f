"""QuantizeLinear and DequantizeLinear, on activations and on constants.

It must not know the operators between them.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from corepool import numerics
from corepool.compiler.static.frontend.context import Context, Node, Unsupported
from corepool.compiler.static.frontend.values import Codes, Const, Pointwise, QuantConst, RawCodes, Value
from corepool.compiler.static.graph import Port


def _parameters(ctx: Context, node: Node) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any] | None]:
    """Scale and zero point arrays, checked."""
    scale = ctx.values[node.inputs[1]]
    if not isinstance(scale, Const):
        raise Unsupported("its scale must be a constant")
    if scale.array.dtype != np.float32:
        raise Unsupported(f"its scale is {scale.array.dtype}; supported is float32")
    if not (np.isfinite(scale.array).all() and (scale.array > 0).all()):
        raise Unsupported(f"its scale '{node.inputs[1]}' is zero, negative, NaN or infinite")
    if node.get("block_size", 0) or scale.array.ndim > 1:
        raise Unsupported("blocked quantisation is not supported")
    zero = None
    if len(node.inputs) > 2 and node.inputs[2]:
        found = ctx.values[node.inputs[2]]
        if not isinstance(found, Const):
            raise Unsupported("its zero point must be a constant")
        zero = found.array
        if zero.size not in (1, scale.array.size):
            raise Unsupported(f"it has {scale.array.size} scales and {zero.size} zero points")
    return scale.array.astype(np.float32).reshape(() if scale.array.size == 1 else -1), zero


def _scalar(ctx: Context, node: Node, default: type[np.generic]) -> tuple[float, int, Literal["int8", "uint8"]]:
    scale, zero = _parameters(ctx, node)
    if scale.ndim:
        raise Unsupported(f"activations with {scale.size} scales; supported is one scale for the whole tensor")
    code = np.zeros((), dtype=default) if zero is None else zero.reshape(())
    if code.dtype not in (np.int8, np.uint8):
        raise Unsupported(f"activations of type {code.dtype}; supported are int8 and uint8")
    kind: Literal["int8", "uint8"] = "int8" if code.dtype == np.int8 else "uint8"
    return float(scale), int(numerics.to_int8_domain(code.reshape(1))[0]), kind


def quantize_linear(ctx: Context, node: Node) -> Value:
    value = ctx.values[node.inputs[0]]
    if isinstance(value, (Const, QuantConst)):
        return _quantise_constant(ctx, node, value)
    if isinstance(value, (Codes, RawCodes)):
        raise Unsupported("its input is quantised already")
    default = np.int8 if node.get("output_dtype", 0) == 3 else np.uint8
    scale, zero, kind = _scalar(ctx, node, default)
    key = (node.inputs[0], scale, zero)
    if key not in ctx.quantised:
        nodes = (value.nodes, node.name)  # type: ignore[union-attr]
        ctx.quantised[key] = ctx.quantise(value, scale, zero, node.outputs[0], nodes)  # type: ignore[arg-type]
    return Codes(ctx.quantised[key], value.form, kind)  # type: ignore[union-attr]


def _quantise_constant(ctx: Context, node: Node, value: Const | QuantConst) -> Value:
    array = value.real() if isinstance(value, QuantConst) else value.array
    if array.dtype != np.float32:
        raise Unsupported(f"its constant is {array.dtype}; supported is float32")
    scale, zero = _parameters(ctx, node)
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if kind not in (np.int8, np.uint8):
        raise Unsupported(f"constants of type {kind}; supported are int8 and uint8")
    axis = int(node.get("axis", 1)) % max(array.ndim, 1)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)] if scale.ndim else []
    bounds = np.iinfo(kind)
    steps = np.rint(array / scale.reshape(shape))
    if zero is not None:
        steps = steps + zero.astype(np.float32).reshape(shape if zero.size > 1 else [])
    ctx.note(node, "folded into a constant")
    return Const(np.clip(steps, bounds.min, bounds.max).astype(kind))


def dequantize_linear(ctx: Context, node: Node) -> Value:
    value = ctx.values[node.inputs[0]]
    if isinstance(value, Const):
        return _constant(ctx, node, value)
    if not isinstance(value, (Codes, RawCodes)):
        raise Unsupported("its input is not quantised")
    scale, zero, kind = _scalar(ctx, node, np.int8 if value.dtype == "int8" else np.uint8)
    if kind != value.dtype:
        raise Unsupported(f"its zero point is {kind}, its input {value.dtype}")
    if isinstance(value, RawCodes):
        return _code_input(ctx, value, scale, zero)
    if ctx.affine(value.tensor) == (scale, zero):
        return ctx.view(value.tensor, value.form, value.nodes)
    return Pointwise(value.tensor, value.form, numerics.all_values(scale, zero), (scale, zero), value.nodes)


def _code_input(ctx: Context, value: RawCodes, scale: float, zero: int) -> Value:
    for port in ctx.graph.inputs:
        if port.name == value.name:
            return ctx.view(port.tensor, value.form, affine=(scale, zero))
    form = ctx.input_forms[value.name]
    tensor = ctx.tensor(value.name, form.dims, scale, zero)
    ctx.graph.inputs.append(Port(value.name, tensor, form.shape, form.axes, value.dtype))
    return ctx.view(tensor, value.form)


def _constant(ctx: Context, node: Node, value: Const) -> Value:
    scale, zero = _parameters(ctx, node)
    array = value.array
    if array.dtype not in (np.int8, np.uint8, np.int32):
        raise Unsupported(f"constants of type {array.dtype}; supported are int8, uint8, and int32 for biases")
    axis = int(node.get("axis", 1))
    axis = axis % array.ndim if array.ndim else 0
    if scale.ndim and (array.ndim == 0 or array.shape[axis] != scale.size):
        raise Unsupported(f"it has {scale.size} scales for axis {axis} of a constant of shape {list(array.shape)}")
    codes = array if array.dtype == np.int32 else numerics.to_int8_domain(array)
    zeros = (
        np.zeros((), dtype=np.int64) if zero is None else zero.astype(np.int64).reshape(() if zero.size == 1 else -1)
    )
    if array.dtype == np.uint8:
        zeros = zeros - 128
    ctx.note(node, "constant")
    return QuantConst(codes, scale, zeros, axis)
