"""Elementwise ONNX operators: tables of unary functions, clipping of unfinished sums, sums and products of maps.

It must not know how tables and sums are laid out in layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.compiler.static.frontend.context import Context, Node, Unsupported
from corepool.compiler.static.frontend.ops_linear import Float64, per_channel, real_constant, scaled
from corepool.compiler.static.frontend.values import (
    Average,
    Const,
    FloatTable,
    Joined,
    Linear,
    Pairwise,
    Pointwise,
    QuantConst,
    Value,
)
from corepool.compiler.static.frontend.views import Form

Function = Callable[[FloatTable], npt.NDArray[Any]]


def _sigmoid(x: FloatTable) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def _softplus(x: FloatTable) -> npt.NDArray[Any]:
    return np.asarray(np.logaddexp(np.float32(0), x))


def _hard_sigmoid(x: FloatTable, alpha: float, beta: float) -> npt.NDArray[Any]:
    return np.asarray(np.clip(np.float32(alpha) * x + np.float32(beta), 0, 1))


def _leaky(x: FloatTable, slope: float) -> npt.NDArray[Any]:
    return np.where(x < 0, np.float32(slope) * x, x)


def _elu(x: FloatTable, alpha: float) -> npt.NDArray[Any]:
    return np.where(x < 0, np.float32(alpha) * np.expm1(np.minimum(x, 0)), x)


def _function(node: Node) -> Function:
    get = node.get
    functions: dict[str, Function] = {
        "Relu": lambda x: np.maximum(x, 0),
        "Sigmoid": _sigmoid,
        "Tanh": np.tanh,
        "Softplus": _softplus,
        "HardSwish": lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5),
        "HardSigmoid": lambda x: _hard_sigmoid(x, get("alpha", 0.2), get("beta", 0.5)),
        "LeakyRelu": lambda x: _leaky(x, get("alpha", 0.01)),
        "Elu": lambda x: _elu(x, get("alpha", 1.0)),
        "Neg": np.negative,
        "Abs": np.abs,
    }
    return functions[node.op]


UNARY = ("Relu", "Sigmoid", "Tanh", "Softplus", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Neg", "Abs")


def _apply(value: Pointwise, function: Function, name: str) -> Pointwise:
    table = np.asarray(function(value.table), dtype=np.float32)
    return replace(value, table=table, affine=None, nodes=(value.nodes, name))


def _map(ctx: Context, node: Node, value: Value, function: Function) -> Value:
    """A unary function of a finished value; Unsupported on sums that have no scale yet."""
    if isinstance(value, Pointwise):
        ctx.note(node, "part of a table")
        return _apply(value, function, node.name)
    if isinstance(value, Joined):
        ctx.note(node, "part of a table")
        parts = tuple(_apply(part, function, node.name) for part in value.parts)
        return replace(value, parts=parts, nodes=(value.nodes, node.name))
    return _map(ctx, node, ctx.plain(value, node.inputs[0]), function)


def _clamp(ctx: Context, node: Node, low: float, high: float, function: Function) -> Value:
    value = ctx.values[node.inputs[0]]
    if isinstance(value, (Linear, Average, Pairwise)):
        ctx.note(node, "clipping bounds of the layer before it")
        bottom = min(max(value.low, low), high)
        return replace(value, low=bottom, high=max(min(value.high, high), bottom), nodes=(value.nodes, node.name))
    return _map(ctx, node, value, function)


def unary(ctx: Context, node: Node) -> Value:
    if node.op == "Relu":
        return _clamp(ctx, node, 0.0, math.inf, _function(node))
    return _map(ctx, node, ctx.values[node.inputs[0]], _function(node))


def clip(ctx: Context, node: Node) -> Value:
    bounds = [float(node.get("min", -math.inf)), float(node.get("max", math.inf))]
    for i, name in enumerate(node.inputs[1:3]):
        if name:
            bounds[i] = float(real_constant(ctx.values[name], "its bounds").reshape(()))
    low, high = bounds
    if math.isnan(low) or math.isnan(high):
        raise Unsupported("its bounds are not numbers")
    return _clamp(ctx, node, low, high, lambda x: np.minimum(np.maximum(x, np.float32(low)), np.float32(high)))


def binary(ctx: Context, node: Node) -> Value:
    """Add, Sub, Mul, Div, and Sum of two."""
    if node.op == "Sum":
        if len(node.inputs) != 2:
            raise Unsupported(f"{len(node.inputs)} inputs; supported are two")
        node = replace(node, op="Add")
    left, right = (ctx.values[name] for name in node.inputs)
    constants = [isinstance(value, (Const, QuantConst)) for value in (left, right)]
    if any(constants):
        swapped = constants[0]
        constant = real_constant(left if swapped else right, "one input")
        return _with_constant(ctx, node, right if swapped else left, constant, swapped)
    if node.op == "Div":
        raise Unsupported("division by a computed value is not supported")
    return _of_two(ctx, node, left, right)


def _with_constant(ctx: Context, node: Node, value: Value, constant: Float64, swapped: bool) -> Value:
    op = node.op
    if not np.isfinite(constant).all():
        raise Unsupported("its constant holds NaN or infinity")
    if op == "Div" and (swapped or not constant.all()):
        raise Unsupported("supported is division by a constant other than zero")
    form = getattr(value, "form", None)
    scalar = constant.size == 1 and (form is None or constant.ndim <= len(form.shape))
    if scalar and isinstance(value, (Pointwise, Joined)):
        number = np.float32(constant.reshape(()))
        functions: dict[str, Function] = {
            "Add": lambda x: x + number,
            "Mul": lambda x: x * number,
            "Div": lambda x: x / number,
            "Sub": (lambda x: number - x) if swapped else (lambda x: x - number),
        }
        return _map(ctx, node, value, functions[op])
    if not isinstance(value, Linear):
        value = per_channel(ctx, ctx.plain(value, node.inputs[1 if swapped else 0]))
    vector = _channel_vector(value.form, constant)
    value = replace(value, nodes=(value.nodes, node.name))
    ctx.note(node, "factors or biases of a convolution")
    if op == "Mul":
        return scaled(value, vector, 0.0)
    if op == "Div":
        return scaled(value, 1 / vector, 0.0)
    if op == "Add":
        return scaled(value, 1.0, vector)
    return scaled(value, -1.0, vector) if swapped else scaled(value, 1.0, -vector)


def _channel_vector(form: Form, constant: Float64) -> Float64:
    """A constant that broadcasts over a map, as one value per channel."""
    channels = form.dims[0]
    if constant.size == 1 and constant.ndim <= len(form.shape):
        return np.full(channels, float(constant.reshape(())))
    dimension = form.channel_dimension()
    shape = (1,) * (len(form.shape) - constant.ndim) + constant.shape
    if dimension is None or len(shape) != len(form.shape) or shape[dimension] != channels or constant.size != channels:
        raise Unsupported(
            f"a constant of shape {list(constant.shape)} with a map of shape {list(form.shape)}; supported are scalars"
            " and one value per channel"
        )
    return constant.reshape(-1)


def _of_two(ctx: Context, node: Node, left: Value, right: Value) -> Value:
    names = node.inputs
    if isinstance(left, Pointwise) and isinstance(right, Pointwise) and left.form == right.form:
        joint = _same_root(ctx, node, left, right)
        if joint is not None:
            ctx.note(node, "part of a table")
            return joint
    a, b = ctx.plain(left, names[0]), ctx.plain(right, names[1])
    nodes = (a.nodes, b.nodes, node.name)
    if a.form == b.form:
        kind = "mul" if node.op == "Mul" else "add"
        return Pairwise(kind, a, b, a.form, sign=-1 if node.op == "Sub" else 1, nodes=nodes)  # type: ignore[arg-type]
    if node.op == "Mul":
        if a.form.dims[1:] == (1, 1):
            a, b = b, a
        vector = (b.form.dims[0], 1, 1)
        if b.form.dims == vector and a.form.dims[0] == vector[0] and a.form.with_dims(vector) == b.form:
            return Pairwise("mul", a, b, a.form, nodes=nodes)
    supported = "maps of one shape, or a map and one value per channel" if node.op == "Mul" else "maps of one shape"
    raise Unsupported(f"shapes {list(a.form.shape)} and {list(b.form.shape)}; supported are {supported}")


def _same_root(ctx: Context, node: Node, left: Pointwise, right: Pointwise) -> Pointwise | None:
    """Both operands as functions of one tensor, if there is one: then the result is a table too."""
    roots = ctx.roots(right)
    for tensor, table in ctx.roots(left).items():
        if tensor in roots:
            combine = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[node.op]
            joint = np.asarray(combine(table, roots[tensor]), dtype=np.float32)
            return Pointwise(tensor, left.form, joint, None, (left.nodes, right.nodes, node.name))
    return None
