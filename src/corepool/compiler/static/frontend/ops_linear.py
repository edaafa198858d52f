"""ONNX operators that multiply by constant weights: Conv, Gemm, MatMul, BatchNormalization.

It must not know how their results are requantised: they make values that wait for QuantizeLinear.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from corepool.compiler.static.frontend.context import Context, Node, Unsupported, result_form
from corepool.compiler.static.frontend.values import Const, Int8Array, Linear, Pointwise, QuantConst, Value
from corepool.compiler.static.frontend.views import Form, plain_form
from corepool.compiler.static.frontend.window import read_window

Float64 = npt.NDArray[np.float64]


def real_constant(value: Value, what: str) -> Float64:
    """A constant's real values as float64; Unsupported if it is computed at run time."""
    if isinstance(value, QuantConst):
        return value.real().astype(np.float64)
    if isinstance(value, Const) and value.array.dtype.kind in "fiu":
        return np.asarray(value.array, dtype=np.float64)
    raise Unsupported(f"{what} must be a constant")


def _weights(ctx: Context, value: Value, output_axis: int) -> tuple[Int8Array, Float64]:
    """Codes of constant weights and the scale of each output channel."""
    if ctx.rehearsal and isinstance(value, Const) and value.array.dtype == np.float32 and value.array.ndim:
        return np.zeros(value.array.shape, dtype=np.int8), np.ones(value.array.shape[output_axis])
    if isinstance(value, Const):
        raise Unsupported("its weights are float; quantise them too (QuantizeLinear and DequantizeLinear)")
    if not isinstance(value, QuantConst):
        raise Unsupported("its weights must be constant")
    if value.codes.dtype != np.int8:
        raise Unsupported(f"its weights are {value.codes.dtype}; supported are int8 and uint8")
    if value.zero.any():
        raise Unsupported("its weights have a zero point; supported are symmetric weights (int8: 0, uint8: 128)")
    outputs = value.codes.shape[output_axis]
    if value.scale.ndim and value.axis != output_axis:
        raise Unsupported(f"its weights' scales lie along axis {value.axis}, not along the output channels")
    return value.codes.astype(np.int8, copy=False), np.broadcast_to(value.scale.astype(np.float64), (outputs,))


def check_weights(ctx: Context, node: Node) -> None:
    """What can be said of a node's weights when its other input is not known."""
    weight = ctx.values[node.inputs[1]]
    if isinstance(weight, (Const, QuantConst)):
        _weights(ctx, weight, 0 if node.op == "Conv" or node.get("transB", 0) else 1)


def conv(ctx: Context, node: Node) -> Value:
    x = ctx.plain(ctx.values[node.inputs[0]], node.inputs[0])
    weight, scales = _weights(ctx, ctx.values[node.inputs[1]], 0)
    rank = x.form.spatial_rank()
    if rank is None or weight.ndim != rank + 2:
        raise Unsupported(
            f"its input of shape {list(x.form.shape)} is no [1, C, H, W] map for weights {list(weight.shape)}"
        )
    groups = int(node.get("group", 1))
    channels, height, width = x.form.dims
    outputs = weight.shape[0]
    if groups < 1 or weight.shape[1] * groups != channels or outputs % groups:
        raise Unsupported(f"weights {list(weight.shape)} in {groups} groups do not fit {channels} input channels")
    window = read_window(node, rank, (height, width), weight.shape[2:])
    bias = np.zeros(outputs)
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = real_constant(ctx.values[node.inputs[2]], "its bias").reshape(-1)
    if len(bias) != outputs:
        raise Unsupported(f"its bias has {len(bias)} values for {outputs} output channels")
    assert x.affine is not None
    return Linear(
        tensor=x.tensor,
        form=result_form(x.form, (outputs, *window.out)),
        weight=weight.reshape(outputs, weight.shape[1], *window.kernel),
        zero=x.affine[1],
        unit=x.affine[0] * scales,
        bias=bias,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=groups,
        nodes=(node.name,),
    )


def _dense(ctx: Context, node: Node, x: Pointwise, weight: Int8Array, scales: Float64) -> Linear:
    """``x[..., K] times weight[K, N]`` as a convolution whose kernel is all of the map axes that K joins."""
    joined = x.form.axes[-1]
    inputs, outputs = weight.shape
    if inputs != x.form.shape[-1]:
        raise Unsupported(f"weights {list(weight.shape)} do not fit an input of shape {list(x.form.shape)}")
    if "c" not in joined and x.form.dims[0] > 1:
        raise Unsupported(f"it sums over map axes {list(joined)} but not over channels")
    sizes = [x.form.size(axis) for axis in joined]
    spread = weight.T.reshape(outputs, *sizes)
    order = sorted(range(len(joined)), key=lambda i: "chw".index(joined[i]))
    kernel = tuple(x.form.size(axis) if axis in joined else 1 for axis in "chw")
    codes = np.ascontiguousarray(spread.transpose(0, *(1 + i for i in order))).reshape(outputs, *kernel)
    dims = (outputs, x.form.dims[1] // kernel[1], x.form.dims[2] // kernel[2])
    last = ("c",) if outputs > 1 else ()
    form = Form((*x.form.shape[:-1], outputs), (*x.form.axes[:-1], last), dims)
    assert x.affine is not None
    return Linear(
        tensor=x.tensor, form=form, weight=codes, zero=x.affine[1], unit=x.affine[0] * scales, bias=np.zeros(outputs),
        stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1, nodes=(node.name,),
    )  # fmt: skip


def gemm(ctx: Context, node: Node) -> Value:
    x = ctx.plain(ctx.values[node.inputs[0]], node.inputs[0])
    transposed = bool(node.get("transB", 0))
    weight, scales = _weights(ctx, ctx.values[node.inputs[1]], 0 if transposed else 1)
    if node.get("transA", 0) and x.form.shape != (1, 1):
        raise Unsupported("transA is not supported")
    if len(x.form.shape) != 2 or weight.ndim != 2:
        raise Unsupported(f"its input of shape {list(x.form.shape)} is no [1, K] row")
    made = _dense(ctx, node, x, weight.T if transposed else weight, scales)
    outputs = made.form.dims[0]
    bias = np.zeros(outputs)
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = bias + _last_axis(real_constant(ctx.values[node.inputs[2]], "its bias"), outputs)
    return replace(made, unit=made.unit * float(node.get("alpha", 1.0)), bias=bias * float(node.get("beta", 1.0)))


def _last_axis(values: Float64, count: int) -> Float64:
    if values.size not in (1, count) or (values.ndim and values.shape[-1] != values.size):
        raise Unsupported(f"its bias of shape {list(values.shape)} does not fit {count} outputs")
    return values.reshape(-1)


def matmul(ctx: Context, node: Node) -> Value:
    if isinstance(ctx.values[node.inputs[0]], (Const, QuantConst)):
        raise Unsupported("constant weights must be its second input")
    right = ctx.values[node.inputs[1]]
    if not isinstance(right, (Const, QuantConst)):
        raise Unsupported("products of two computed matrices are not supported; its second input must be constant")
    x = ctx.plain(ctx.values[node.inputs[0]], node.inputs[0])
    weight, scales = _weights(ctx, right, 1)
    if weight.ndim != 2:
        raise Unsupported(f"its weights have {weight.ndim} dimensions; supported are 2")
    return _dense(ctx, node, x, weight, scales)


def batch_normalization(ctx: Context, node: Node) -> Value:
    scale, shift, mean, variance = (real_constant(ctx.values[name], "its parameters") for name in node.inputs[1:5])
    if node.get("training_mode", 0) or len(node.outputs) > 1:
        raise Unsupported("training mode is not supported")
    factor = scale / np.sqrt(variance + float(node.get("epsilon", 1e-5)))
    value = ctx.values[node.inputs[0]]
    if not isinstance(value, Linear):
        value = per_channel(ctx, ctx.plain(value, node.inputs[0]))
    return scaled(replace(value, nodes=(value.nodes, node.name)), factor, shift - mean * factor)


def per_channel(ctx: Context, x: Pointwise) -> Linear:
    """``x`` as a depthwise 1x1 convolution by one, ready for factors and offsets per channel."""
    channels = x.form.dims[0]
    assert x.affine is not None
    scale, zero = x.affine
    return Linear(
        tensor=x.tensor,
        form=x.form,
        weight=np.full((channels, 1, 1, 1), 127, dtype=np.int8),  # 127, not 1: the bias is rounded to scale / 127
        zero=zero,
        unit=np.full(channels, scale / 127),
        bias=np.zeros(channels),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=channels,
        nodes=x.nodes,
    )


def scaled(value: Linear, factor: Float64 | float, offset: Float64 | float) -> Linear:
    """``value * factor + offset`` per channel; Unsupported behind a Relu or Clip."""
    if np.isfinite([value.low, value.high]).any():
        raise Unsupported("a factor or offset behind Relu or Clip needs QuantizeLinear and DequantizeLinear before it")
    return replace(value, unit=value.unit * factor, bias=value.bias * factor + offset)


__all__ = [
    "batch_normalization",
    "check_weights",
    "conv",
    "gemm",
    "matmul",
    "per_channel",
    "plain_form",
    "real_constant",
    "scaled",
]
