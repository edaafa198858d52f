"""Window geometry: kernels, strides, dilations and all ways in which ONNX spells padding, for one or two spatial axes.

It must not know values or layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from corepool.compiler.static.frontend.context import MAP_LIMIT, Node, Unsupported
from corepool.compiler.static.graph import Padding, Pair
from corepool.numerics import out_size


@dataclass(frozen=True)
class Window:
    """A window operation on a map. ``explicit`` is the padding asked for, ``padding`` includes ceil_mode's overhang."""

    kernel: Pair
    stride: Pair
    padding: Padding
    explicit: Padding
    dilation: Pair
    out: Pair

    @property
    def overhangs(self) -> bool:
        return self.padding != self.explicit


def _pair(values: Sequence[int] | None, rank: int, what: str, default: int = 1) -> Pair:
    chosen = [default] * rank if values is None else [int(v) for v in values]
    if len(chosen) != rank or min(chosen) < 1:
        raise Unsupported(f"{what} {chosen} should be {rank} positive numbers")
    return (chosen[0], chosen[1]) if rank == 2 else (1, chosen[0])


def auto_pad(node: Node) -> str:
    """How the node wants to be padded."""
    auto = str(node.get("auto_pad", "NOTSET") or "NOTSET")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad {auto}; supported are NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    return auto


def read_window(node: Node, rank: int, size: Pair, kernel: Sequence[int] | None = None) -> Window:
    """The geometry of Conv (``kernel`` from its weights) and pooling nodes over a map of ``size`` = (height, width)."""
    shape = node.get("kernel_shape", kernel)
    if shape is None:
        raise Unsupported("attribute kernel_shape is missing")
    if kernel is not None and list(shape) != list(kernel):
        raise Unsupported(f"kernel_shape {list(shape)} differs from its weights' {list(kernel)}")
    kernel_pair = _pair(shape, rank, "kernel_shape")
    stride = _pair(node.get("strides", None), rank, "strides")
    dilation = _pair(node.get("dilations", None), rank, "dilations")
    auto = auto_pad(node)
    begins, ends = _padding(node, rank, size, kernel_pair, stride, dilation, auto)
    explicit = (begins[0], begins[1], ends[0], ends[1])
    out = []
    final = list(ends)
    for axis in range(2):
        span = (kernel_pair[axis] - 1) * dilation[axis] + 1
        count = out_size(size[axis], kernel_pair[axis], stride[axis], begins[axis], ends[axis], dilation[axis])
        if node.get("ceil_mode", 0) and auto == "NOTSET":
            padded = size[axis] + begins[axis] + ends[axis]
            count = ceil((padded - span) / stride[axis]) + 1
            if (count - 1) * stride[axis] >= size[axis] + begins[axis]:
                count -= 1  # the last window would lie in the padding altogether
            final[axis] = max(ends[axis], (count - 1) * stride[axis] + span - size[axis] - begins[axis])
        if count < 1:
            raise Unsupported(f"its window of {span} does not fit the padded map of {size[axis]}")
        out.append(count)
    if (size[0] + begins[0] + final[0]) * (size[1] + begins[1] + final[1]) > MAP_LIMIT:
        raise Unsupported(f"its padding makes a map of {size[0]} x {size[1]} too large")
    padding = (begins[0], begins[1], final[0], final[1])
    return Window(kernel_pair, stride, padding, explicit, dilation, (out[0], out[1]))


def _padding(
    node: Node, rank: int, size: Pair, kernel: Pair, stride: Pair, dilation: Pair, auto: str
) -> tuple[Pair, Pair]:
    if auto == "NOTSET":
        pads = [int(p) for p in node.get("pads", [0] * (2 * rank))]
        if len(pads) != 2 * rank or min(pads) < 0:
            raise Unsupported(f"pads {pads} should be {2 * rank} non-negative numbers")
        return ((pads[0], pads[1]), (pads[2], pads[3])) if rank == 2 else ((0, pads[0]), (0, pads[1]))
    if auto == "VALID":
        return (0, 0), (0, 0)
    small, large = [], []
    for axis in range(2):
        span = (kernel[axis] - 1) * dilation[axis] + 1
        total = max((ceil(size[axis] / stride[axis]) - 1) * stride[axis] + span - size[axis], 0)
        small.append(total // 2)
        large.append(total - total // 2)
    first, last = (small, large) if auto == "SAME_UPPER" else (large, small)
    return (first[0], first[1]), (last[0], last[1])
