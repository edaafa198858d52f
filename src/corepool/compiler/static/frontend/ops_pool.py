"""ONNX pooling operators, with everything that borders, ceil_mode and count_include_pad do to them.

It must not know how sums are requantised.
"""

from __future__ import annotations

import numpy as np

from corepool.compiler.static.frontend.context import Context, Node, Unsupported, result_form
from corepool.compiler.static.frontend.ops_linear import real_constant
from corepool.compiler.static.frontend.values import Average, Pointwise, Value
from corepool.compiler.static.frontend.views import Form
from corepool.compiler.static.frontend.window import Window, read_window
from corepool.compiler.static.graph import Pool
from corepool.numerics import window_counts


def _map_input(ctx: Context, node: Node) -> tuple[Pointwise, int]:
    x = ctx.plain(ctx.values[node.inputs[0]], node.inputs[0])
    rank = x.form.spatial_rank()
    if rank is None:
        raise Unsupported(f"its input of shape {list(x.form.shape)} is no [1, C, H, W] map")
    return x, rank


def max_pool(ctx: Context, node: Node) -> Value:
    """The largest code is the code of the largest value, so the result keeps its input's scale."""
    if len([name for name in node.outputs if name]) > 1:
        raise Unsupported("its second output, the indices, is not supported")
    x, rank = _map_input(ctx, node)
    window = read_window(node, rank, x.form.dims[1:])
    form = result_form(x.form, (x.form.dims[0], *window.out))
    return _emit_max(ctx, node, x, window, form)


def global_max_pool(ctx: Context, node: Node) -> Value:
    x, _ = _map_input(ctx, node)
    size = x.form.dims[1:]
    window = Window(size, (1, 1), (0, 0, 0, 0), (0, 0, 0, 0), (1, 1), (1, 1))
    return _emit_max(ctx, node, x, window, result_form(x.form, (x.form.dims[0], 1, 1)))


def _emit_max(ctx: Context, node: Node, x: Pointwise, window: Window, form: Form) -> Value:
    assert x.affine is not None
    tensor = ctx.tensor(node.outputs[0], form.dims, *x.affine)
    ctx.graph.layers.append(
        Pool(
            name=node.name,
            output=tensor,
            origin=(node.name,),
            input=x.tensor,
            mode="max",
            kernel=window.kernel,
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
        )
    )
    return ctx.view(tensor, form)


def average_pool(ctx: Context, node: Node) -> Value:
    x, rank = _map_input(ctx, node)
    window = read_window(node, rank, x.form.dims[1:])
    nodes = (node.name,)
    assert x.affine is not None
    padding = window.padding
    counted = window.explicit if node.get("count_include_pad", 0) else (0, 0, 0, 0)
    if any(counted) and window.overhangs:
        # borders that count, and beyond them an overhang that does not: make the borders part of the map
        channels, height, width = x.form.dims
        top, left, bottom, right = counted
        dims = (channels, height + top + bottom, width + left + right)
        border = ctx.pad(x.tensor, dims, counted, x.affine[1], f"{node.outputs[0]}:border", nodes)
        x = ctx.view(border, result_form(x.form, dims), nodes, x.affine)
        padding = (0, 0, padding[2] - bottom, padding[3] - right)
        counted = (0, 0, 0, 0)
    pixels = window.kernel[0] * window.kernel[1]
    if any(counted):
        counts: tuple[int, ...] = (pixels,)
    else:
        grid = window_counts(*x.form.dims[1:], window.kernel, window.stride, padding, window.dilation)
        counts = tuple(int(count) for count in np.unique(grid))
        if counts[0] < 1:
            raise Unsupported("a window lies in the padding altogether")
    form = result_form(x.form, (x.form.dims[0], *window.out))
    return Average(
        x.tensor, form, x.affine or (1.0, 0), window.kernel, window.stride, padding, window.dilation, counts,
        include_pad=len(counts) == 1, nodes=nodes,
    )  # fmt: skip


def _whole_map(x: Pointwise, form: Form, node: Node) -> Value:
    size = x.form.dims[1:]
    assert x.affine is not None
    return Average(
        x.tensor, form, x.affine, size, (1, 1), (0, 0, 0, 0), (1, 1), (size[0] * size[1],), include_pad=True,
        nodes=(node.name,),
    )  # fmt: skip


def global_average_pool(ctx: Context, node: Node) -> Value:
    x, _ = _map_input(ctx, node)
    return _whole_map(x, result_form(x.form, (x.form.dims[0], 1, 1)), node)


def reduce_mean(ctx: Context, node: Node) -> Value:
    """A mean over all pixels, as some exporters write global average pooling."""
    x = ctx.plain(ctx.values[node.inputs[0]], node.inputs[0])
    axes = node.get("axes", None)
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = real_constant(ctx.values[node.inputs[1]], "its axes").reshape(-1).astype(np.int64).tolist()
    rank = len(x.form.shape)
    chosen = {int(axis) % rank for axis in axes} if axes else set(range(rank))
    summed = sorted(axis for index in chosen for axis in x.form.axes[index])
    if any(axis in ("h", "w") and axis not in summed for axis in x.form.order) or "c" in summed:
        raise Unsupported(f"a mean over axes {sorted(chosen)} of {list(x.form.shape)}; supported are all spatial axes")
    keep = bool(node.get("keepdims", 1))
    if not keep and 0 in chosen:
        raise Unsupported("a mean that removes the batch axis is not supported")
    kept = [i for i in range(rank) if keep or i not in chosen]
    shape = tuple(1 if i in chosen else x.form.shape[i] for i in kept)
    groups = tuple(() if i in chosen else x.form.axes[i] for i in kept)
    return _whole_map(x, Form(shape, groups, (x.form.dims[0], 1, 1)), node)
