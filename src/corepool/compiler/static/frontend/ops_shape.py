"""ONNX operators that only move or name data: views, Concat, Pad, Identity, Dropout, Shape.

It must not know arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from corepool import numerics
from corepool.compiler.static.frontend import views
from corepool.compiler.static.frontend.context import Context, Node, Unsupported, result_form
from corepool.compiler.static.frontend.ops_linear import real_constant
from corepool.compiler.static.frontend.values import Bad, Const, Joined, Padded, Pointwise, QuantConst, Value
from corepool.compiler.static.frontend.views import Form


def identity(ctx: Context, node: Node) -> Value:
    if len(node.inputs) > 2 and node.inputs[2]:
        training = ctx.values[node.inputs[2]]
        if not isinstance(training, Const) or training.array.any():
            raise Unsupported("training mode is not supported")
    ctx.note(node, "removed")
    return ctx.values[node.inputs[0]]


def _integers(ctx: Context, node: Node, position: int, attribute: str) -> list[int] | None:
    """Integers that old opsets hold in an attribute and newer ones in a constant input."""
    if len(node.inputs) > position and node.inputs[position]:
        values = real_constant(ctx.values[node.inputs[position]], f"its {attribute}")
        return [int(v) for v in values.reshape(-1)]
    found = node.get(attribute, None)
    return None if found is None else [int(v) for v in found]


def _required(values: list[int] | None, what: str) -> list[int]:
    if values is None:
        raise Unsupported(f"its {what} is missing")
    return values


def view(ctx: Context, node: Node) -> Value:
    """Reshape, Flatten, Squeeze, Unsqueeze, Transpose: another view of the same map."""
    changes: dict[str, Callable[[Form], Form]] = {
        "Reshape": lambda f: views.reshape(
            f, _required(_integers(ctx, node, 1, "shape"), "shape"), bool(node.get("allowzero", 0))
        ),
        "Flatten": lambda f: views.flatten(f, int(node.get("axis", 1))),
        "Squeeze": lambda f: views.squeeze(f, _integers(ctx, node, 1, "axes")),
        "Unsqueeze": lambda f: views.unsqueeze(f, _required(_integers(ctx, node, 1, "axes"), "axes")),
        "Transpose": lambda f: views.transpose(f, node.get("perm", list(range(len(f.shape)))[::-1])),
    }
    value = ctx.values[node.inputs[0]]
    if isinstance(value, QuantConst):
        return _constant_view(ctx, node, value)
    if isinstance(value, (Const, Bad)):
        raise Unsupported("a constant here is not supported")
    if isinstance(value, (Joined, Padded)):
        value = ctx.plain(value, node.inputs[0])
    made = replace(value, form=changes[node.op](value.form))
    ctx.note(node, "a view: no work")
    return made


def _constant_view(ctx: Context, node: Node, value: QuantConst) -> Value:
    ctx.note(node, "folded into a constant")
    if node.op == "Transpose":
        order = [int(i) for i in node.get("perm", list(range(value.codes.ndim))[::-1])]
        axis = order.index(value.axis) if value.scale.ndim else 0
        return replace(value, codes=value.codes.transpose(order), axis=axis)
    if value.scale.ndim == 0 and node.op == "Reshape":
        sizes = _required(_integers(ctx, node, 1, "shape"), "shape")
        sizes = [value.codes.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        return replace(value, codes=value.codes.reshape(sizes))
    raise Unsupported("on quantised weights only Transpose, and Reshape with one scale, are supported")


def shape(ctx: Context, node: Node) -> Value:
    value = ctx.values[node.inputs[0]]
    if isinstance(value, Const):
        sizes: tuple[int, ...] = value.array.shape
    elif isinstance(value, QuantConst):
        sizes = value.codes.shape
    elif isinstance(value, Bad):
        return value
    else:
        sizes = value.form.shape
    ctx.note(node, "folded into a constant")
    return Const(np.array(sizes[slice(node.get("start", 0), node.get("end", None))], dtype=np.int64))


def concat(ctx: Context, node: Node) -> Value:
    """Concatenation on channels; waits for QuantizeLinear, which tells the common scale."""
    parts: list[Pointwise] = []
    for name in node.inputs:
        value = ctx.values[name]
        if isinstance(value, (Const, QuantConst)):
            raise Unsupported(f"its input '{name}' is a constant")
        parts.append(value if isinstance(value, Pointwise) else ctx.plain(value, name))
    first = parts[0].form
    axis = int(node.get("axis", 1)) % len(first.shape)
    for part in parts:
        form = part.form
        if len(form.shape) != len(first.shape) or form.channel_dimension() != axis or form.dims[1:] != first.dims[1:]:
            raise Unsupported(
                f"axis {axis} of shape {list(form.shape)}; supported is concatenation of maps on channels"
            )
        if form.spatial_rank() is None and form.dims[1:] != (1, 1):
            raise Unsupported(f"its input of shape {list(form.shape)} is no [1, C, H, W] map")
    dims = (sum(part.form.dims[0] for part in parts), *first.dims[1:])
    total = tuple(dims[0] if i == axis else size for i, size in enumerate(first.shape))
    axes = tuple(("c",) if i == axis else group for i, group in enumerate(first.axes))
    return Joined(tuple(parts), Form(total, axes, dims), (*(part.nodes for part in parts), node.name))


def check_mode(node: Node) -> None:
    if node.get("mode", "constant") not in ("constant", b"constant"):
        raise Unsupported(f"mode {node.get('mode', '')}; supported is constant")


def pad(ctx: Context, node: Node) -> Value:
    check_mode(node)
    amounts = _required(_integers(ctx, node, 1, "pads"), "pads")
    border = float(node.get("value", 0.0))
    if len(node.inputs) > 2 and node.inputs[2]:
        border = float(real_constant(ctx.values[node.inputs[2]], "its value").reshape(()))
    value = ctx.values[node.inputs[0]]
    x = value if isinstance(value, Pointwise) else ctx.plain(value, node.inputs[0])
    rank = len(x.form.shape)
    if len(node.inputs) > 3 and node.inputs[3]:
        chosen = [i % rank for i in _required(_integers(ctx, node, 3, "axes"), "axes")]
        half = len(chosen)
        full = [0] * (2 * rank)
        for i, axis in enumerate(chosen):
            full[axis], full[axis + rank] = amounts[i], amounts[i + half]
        amounts = full
    spatial = x.form.spatial_rank()
    if (
        spatial is None
        or len(amounts) != 2 * rank
        or min(amounts) < 0
        or any(amounts[i] for i in (0, 1, rank, rank + 1))
    ):
        raise Unsupported(f"pads {amounts} of shape {list(x.form.shape)}; supported are borders of a [1, C, H, W] map")
    if not any(amounts):
        ctx.note(node, "removed")
        return x
    before, after = amounts[2:rank], amounts[rank + 2 :]
    top, left = (before[0], before[1]) if spatial == 2 else (0, before[0])
    bottom, right = (after[0], after[1]) if spatial == 2 else (0, after[0])
    channels, height, width = x.form.dims
    form = result_form(x.form, (channels, height + top + bottom, width + left + right))
    padding = (top, left, bottom, right)
    if x.affine is not None:
        scale, zero = x.affine
        code = numerics.quantise(border, scale, zero)
        if abs(float(numerics.dequantise(code, scale, zero)) - border) <= 1e-4 * scale:
            tensor = ctx.pad(x.tensor, form.dims, padding, int(code), node.outputs[0], (node.name,))
            return ctx.view(tensor, form, affine=x.affine)
    return Padded(x, form, padding, border, (x.nodes, node.name))
