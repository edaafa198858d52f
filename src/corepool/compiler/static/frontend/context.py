"""The state of one import: values so far, the graph being made, problems found; and how unfinished sums become layers.

It must not know single ONNX operators: they stand in the operator modules, which call this one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool import numerics
from corepool.compiler.static.frontend.values import (
    Average,
    Bad,
    Codes,
    Const,
    Int8Array,
    Joined,
    Linear,
    Padded,
    Pairwise,
    Pointwise,
    QuantConst,
    RawCodes,
    RawInput,
    Real,
    Trail,
    Value,
    flat,
)
from corepool.compiler.static.frontend.views import Dims, Form, plain_form
from corepool.compiler.static.graph import (
    Add,
    AddParams,
    Conv,
    Graph,
    Mul,
    MulParams,
    Pool,
    Port,
    Requant,
    SumRequant,
    Tensor,
)

BLOCK = 8  # channels that lie together in memory; concatenation without copies needs offsets that are multiples of it
MAP_LIMIT = 1 << 28  # values in one feature map: above it a file is taken for a mistake
_HALVES = 1e-4  # of a step: how far values may lie off a grid and still count as on it


class Unsupported(ValueError):
    """A node that cannot be compiled, and why."""


class OutOfRange(Unsupported):
    """Scales or constants that the machine's whole numbers cannot express."""


@dataclass(frozen=True)
class Node:
    """An ONNX node: its name (made up if it has none), operator, value names and attributes."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    index: int  # in the file's graph

    def get(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)


@dataclass
class Context:
    """What operator handlers read and change.

    A ``rehearsal`` reads a float model before it is quantised, only to find what is wrong with it: scales are made up.
    """

    graph: Graph
    rehearsal: bool = False
    stand_ins: set[str] = field(default_factory=set)  # tensors in place of what failed, so that reading can go on
    values: dict[str, Value] = field(default_factory=dict)
    input_forms: dict[str, Form] = field(default_factory=dict)
    derived: dict[str, tuple[str, Int8Array]] = field(default_factory=dict)  # tensor -> (tensor it is a LUT of, table)
    quantised: dict[tuple[str, float, int], str] = field(default_factory=dict)  # (value, scale, zero) -> tensor

    def note(self, node: Node, what: str) -> None:
        """Records what became of a node that is no layer of its own."""
        self.graph.removed[node.name] = what

    def fresh(self, name: str) -> str:
        """``name`` or the first ``name.1``, ``name.2`` ... that no tensor bears."""
        chosen, count = name, 0
        while chosen in self.graph.tensors:
            count += 1
            chosen = f"{name}.{count}"
        return chosen

    def tensor(self, name: str, dims: Dims, scale: float, zero: int, **more: Any) -> str:
        if min(dims) < 1 or math.prod(dims) > MAP_LIMIT:
            raise Unsupported(f"its result of {dims[0]} x {dims[1]} x {dims[2]} values is empty or too large")
        made = Tensor(self.fresh(name), *dims, scale=scale, zero_point=zero, **more)
        self.graph.tensors[made.name] = made
        return made.name

    def affine(self, tensor: str) -> tuple[float, int]:
        t = self.graph.tensors[tensor]
        return t.scale, t.zero_point

    def view(self, tensor: str, form: Form, nodes: Trail = (), affine: tuple[float, int] | None = None) -> Pointwise:
        """The real values of a tensor, under its own scale unless told otherwise."""
        affine = affine or self.affine(tensor)
        return Pointwise(tensor, form, numerics.all_values(*affine), affine, nodes)

    def copy(self, source: str, output: str, nodes: Trail, lut: Int8Array | None = None, **pool: Any) -> str:
        """Emits a 1x1 max pool: identity, table or constant border."""
        layer = Pool(
            name=f"{output}:copy",
            output=output,
            origin=flat(nodes),
            lut=lut,
            input=source,
            mode="max",
            kernel=(1, 1),
            **pool,
        )
        self.graph.layers.append(layer)
        return output

    # -- making real values plain: one tensor, one scale ------------------------------------------------------------

    def plain(self, value: Value, what: str) -> Pointwise:
        """``value`` as a plain view of one tensor, emitting layers if needed; Unsupported if only a Q/DQ pair could."""
        if isinstance(value, Pointwise):
            return value if value.affine is not None else self._on_grid(value, what)
        if isinstance(value, Joined):
            parts = {part.affine for part in value.parts}
            common = next(iter(parts))
            if len(parts) == 1 and common is not None:
                return self.view(self.quantise(value, *common, f"{what}:joined", value.nodes), value.form)
        if isinstance(value, (Codes,)):
            raise Unsupported(f"input '{what}' holds codes; put a DequantizeLinear before it")
        if isinstance(value, RawInput):
            raise Unsupported(f"the graph input '{value.name}' must pass QuantizeLinear and DequantizeLinear first")
        raise Unsupported(f"input '{what}' must pass QuantizeLinear and DequantizeLinear first")

    def _on_grid(self, value: Pointwise, what: str) -> Pointwise:
        scale, zero = self.affine(value.tensor)
        table = numerics.quantise(value.table, scale, zero)
        if np.abs(numerics.dequantise(table, scale, zero) - value.table).max() > _HALVES * scale:
            scale, zero = own_scale(float(value.table.min()), float(value.table.max()))
        return self.view(self.quantise(value, scale, zero, what, value.nodes), value.form)

    def plain_output(self, value: Value, what: str) -> Pointwise:
        """As ``plain``; sums, products and factors too get a scale if their range follows from their inputs' codes."""
        if isinstance(value, Pairwise):
            ranges = [(float(part.table.min()), float(part.table.max())) for part in (value.a, value.b)]
            (low_a, high_a), (low_b, high_b) = ranges
            if value.kind == "add":
                ends = [(a + value.sign * b) for a in (low_a, high_a) for b in (low_b, high_b)]
            else:
                ends = [a * b for a in (low_a, high_a) for b in (low_b, high_b)]
        elif isinstance(value, Linear) and value.weight.shape[1:] == (1, 1, 1) and not any(value.padding):
            ends = []
            for code in (-128, 127):
                real = (code - value.zero) * (value.weight.reshape(-1) * value.unit) + value.bias
                ends += [float(real.min()), float(real.max())]
        elif isinstance(value, Average):
            ends = [value.affine[0] * (code - value.affine[1]) for code in (-128, 127)]
        else:
            return self.plain(value, what)
        scale, zero = own_scale(*(min(max(end, value.low), value.high) for end in (min(ends), max(ends))))
        return self.view(self.quantise(value, scale, zero, what, value.nodes), value.form)

    def roots(self, value: Pointwise) -> dict[str, npt.NDArray[np.float32]]:
        """The value as a table over its tensor and over every tensor that this one is a table of."""
        tensor, table = value.tensor, value.table
        found = {tensor: table}
        while tensor in self.derived:
            tensor, codes = self.derived[tensor]
            table = table[codes.astype(np.int64) + 128]
            found[tensor] = table
        return found

    def finish(self, value: Value, name: str) -> Value:
        """In a rehearsal: the value as if a QuantizeLinear and DequantizeLinear followed."""
        if isinstance(value, (Const, QuantConst, Codes, RawCodes, Bad)):
            return value
        if isinstance(value, Pointwise) and value.affine is not None:
            return value
        return self.view(self.quantise(value, 1.0, 0, name, value.nodes), value.form)

    # -- QuantizeLinear: unfinished values become layers ------------------------------------------------------------

    def quantise(self, value: Real, scale: float, zero: int, name: str, trail: Trail) -> str:
        """The tensor that holds ``value`` under (scale, zero); emits the layer that makes it."""
        nodes = flat(trail)
        if isinstance(value, RawInput):
            return self._graph_input(value, scale, zero)
        if isinstance(value, Pointwise):
            return self._table(value, scale, zero, name, nodes)
        if isinstance(value, Linear):
            return self._linear(value, scale, zero, name, nodes)
        if isinstance(value, Average):
            return self._average(value, scale, zero, name, nodes)
        if isinstance(value, Pairwise):
            return self._pairwise(value, scale, zero, name, nodes)
        if isinstance(value, Joined):
            return self._joined(value, scale, zero, name, nodes)
        return self._padded(value, scale, zero, name, nodes)

    def _graph_input(self, value: RawInput, scale: float, zero: int) -> str:
        for port in self.graph.inputs:
            if port.name == value.name:
                if self.affine(port.tensor) != (scale, zero):
                    raise Unsupported(f"the graph input '{value.name}' is quantised with two different scales")
                return port.tensor
        form = self.input_forms[value.name]
        tensor = self.tensor(value.name, form.dims, scale, zero)
        self.graph.inputs.append(Port(value.name, tensor, form.shape, form.axes, "float32"))
        return tensor

    def _table(self, value: Pointwise, scale: float, zero: int, name: str, nodes: tuple[str, ...]) -> str:
        table = numerics.quantise(value.table, scale, zero)
        if self.affine(value.tensor) == (scale, zero) and (table == np.arange(-128, 128)).all():
            return value.tensor
        tensor = self.tensor(name, value.form.dims, scale, zero)
        identity = bool((table == np.arange(-128, 128)).all())
        self.derived[tensor] = (value.tensor, table)
        return self.copy(value.tensor, tensor, nodes, None if identity else table)

    def _linear(self, value: Linear, scale: float, zero: int, name: str, nodes: tuple[str, ...]) -> str:
        with _in_range(nodes, name):
            weight, requant = linear_constants(value, scale, zero)
        tensor = self.tensor(name, value.form.dims, scale, zero)
        self.graph.layers.append(
            Conv(
                name=nodes[0] if nodes else tensor,
                output=tensor,
                origin=nodes,
                input=value.tensor,
                weight=weight,
                requant=requant,
                stride=value.stride,
                padding=value.padding,
                dilation=value.dilation,
                groups=value.groups,
                pad_value=value.zero,
            )
        )
        return tensor

    def _average(self, value: Average, scale: float, zero: int, name: str, nodes: tuple[str, ...]) -> str:
        source_scale, source_zero = value.affine
        pixels = value.kernel[0] * value.kernel[1]
        low, high = clip_codes(value.low, value.high, scale, zero)
        by_count = {}
        for count in value.counts:
            with _in_range(nodes, name):
                multiplier, shift = numerics.fixed_point(source_scale / (scale * count))
            by_count[count] = SumRequant(-pixels * source_zero, multiplier, shift, zero, low, high)
        tensor = self.tensor(name, value.form.dims, scale, zero)
        self.graph.layers.append(
            Pool(
                name=nodes[0] if nodes else tensor,
                output=tensor,
                origin=nodes,
                input=value.tensor,
                mode="sum",
                kernel=value.kernel,
                stride=value.stride,
                padding=value.padding,
                dilation=value.dilation,
                pad_value=source_zero,
                by_count=by_count,
                count_include_pad=value.include_pad,
            )
        )
        return tensor

    def _pairwise(self, value: Pairwise, scale: float, zero: int, name: str, nodes: tuple[str, ...]) -> str:
        assert value.a.affine is not None
        assert value.b.affine is not None
        (scale_a, zero_a), (scale_b, zero_b) = value.a.affine, value.b.affine
        low, high = clip_codes(value.low, value.high, scale, zero)
        tensor = self.tensor(name, value.form.dims, scale, zero)
        layer_name = nodes[0] if nodes else tensor
        a, b = value.a.tensor, value.b.tensor
        if value.kind == "add":
            with _in_range(nodes, name):
                ma, mb, shift = numerics.fixed_point_pair(scale_a / scale, value.sign * scale_b / scale)
            offset = -(zero_a * ma + zero_b * mb)
            params = AddParams(ma, mb, offset, shift, zero, low, high)
            self.graph.layers.append(Add(name=layer_name, output=tensor, origin=nodes, a=a, b=b, params=params))
        else:
            with _in_range(nodes, name):
                multiplier, shift = numerics.fixed_point(scale_a * scale_b / scale)
            product = MulParams(zero_a, zero_b, multiplier, shift, zero, low, high)
            self.graph.layers.append(Mul(name=layer_name, output=tensor, origin=nodes, a=a, b=b, params=product))
        return tensor

    def _padded(self, value: Padded, scale: float, zero: int, name: str, nodes: tuple[str, ...]) -> str:
        inner = self.quantise(value.inner, scale, zero, f"{name}:inner", nodes)
        border = int(numerics.quantise(value.value, scale, zero))
        return self.pad(inner, value.form.dims, value.padding, border, name, nodes)

    def pad(
        self,
        source: str,
        dims: Dims,
        padding: tuple[int, int, int, int],
        border: int,
        name: str,
        nodes: Trail,
    ) -> str:
        """Emits a constant border of code ``border``."""
        tensor = self.tensor(name, dims, *self.affine(source))
        return self.copy(source, tensor, nodes, padding=padding, pad_value=border)

    def _joined(self, value: Joined, scale: float, zero: int, name: str, nodes: tuple[str, ...]) -> str:
        """Copies each part to its place; parts off block boundaries go through an aligned scratch map."""
        tensor = self.tensor(name, value.form.dims, scale, zero)
        sizes = [part.form.dims[0] for part in value.parts]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        aligned = all(start % BLOCK == 0 for start in starts)
        if aligned:
            places, parent = starts, tensor
        else:
            rounded = [-(-size // BLOCK) * BLOCK for size in sizes]
            places = [sum(rounded[:i]) for i in range(len(rounded))]
            _, height, width = value.form.dims
            parent = self.tensor(f"{name}:aligned", (sum(rounded), height, width), scale, zero)
        for part, place in zip(value.parts, places, strict=True):
            table = numerics.quantise(part.table, scale, zero)
            identity = bool((table == np.arange(-128, 128)).all())
            dims = part.form.dims
            child = self.tensor(f"{name}:part{place}", dims, scale, zero, parent=parent, channel_offset=place)
            self.copy(part.tensor, child, nodes, None if identity else table)
        if not aligned:
            self._gather(parent, tensor, list(zip(starts, places, sizes, strict=True)), nodes)
        return tensor

    def _gather(self, source: str, target: str, runs: list[tuple[int, int, int]], nodes: tuple[str, ...]) -> None:
        """A 1x1 convolution with weights 0 and 1 that moves runs (to, from, count) of channels."""
        _, zero = self.affine(source)
        outputs, inputs = self.graph.tensors[target].channels, self.graph.tensors[source].channels
        if outputs * inputs > MAP_LIMIT:
            raise Unsupported(f"joining {outputs} channels at places that are no multiples of {BLOCK} is too large")
        weight = np.zeros((outputs, inputs, 1, 1), dtype=np.int8)
        for to, start, count in runs:
            weight[np.arange(to, to + count), np.arange(start, start + count)] = 1
        requant = Requant(
            np.full(outputs, -zero, dtype=np.int32),
            np.full(outputs, 1 << 15, dtype=np.int64),
            np.full(outputs, 15, dtype=np.int64),
            zero,
        )
        self.graph.layers.append(
            Conv(name=f"{target}:gather", output=target, origin=nodes, input=source, weight=weight, requant=requant,
                 pad_value=zero, copy=True)
        )  # fmt: skip


def own_scale(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point (int8) that cover low .. high, and zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / 255, 1e-30)))
    return scale, int(np.clip(round(-128 - low / scale), -128, 127))


@contextmanager
def _in_range(nodes: tuple[str, ...], name: str) -> Iterator[None]:
    """Turns what the numerics say of factors that they cannot express into OutOfRange, with the layer's name."""
    try:
        yield
    except Unsupported:
        raise
    except ValueError as error:
        layer = f"'{nodes[0]}'" if nodes else "the layer before it"
        raise OutOfRange(f"the scales of {layer} and of its result '{name}' are out of range: {error}") from None


def clip_codes(low: float, high: float, scale: float, zero: int) -> tuple[int, int]:
    """Real clipping bounds as codes."""
    return (
        -128 if low == -math.inf else int(numerics.quantise(low, scale, zero)),
        127 if high == math.inf else int(numerics.quantise(high, scale, zero)),
    )


def linear_constants(value: Linear, scale: float, zero: int) -> tuple[Int8Array, Requant]:
    """Weights and requantisation of a convolution; Unsupported if its sums could leave int32."""
    weight, unit, bias = value.weight, value.unit.copy(), value.bias
    flat = weight.reshape(len(weight), -1)
    negative = unit < 0
    if negative.any():
        if (flat[negative] == -128).any():
            raise Unsupported("a negative factor meets a weight of -128, whose opposite is no int8")
        weight = np.where(negative.reshape(-1, 1, 1, 1), -weight, weight)
        flat, unit = weight.reshape(len(weight), -1), np.abs(unit)
    empty = (unit == 0) | ~flat.any(axis=1)
    unit[empty] = scale / 2**16  # nothing but bias: any unit fine enough will do
    if (flat[value.unit == 0]).any():
        weight = np.where((value.unit == 0).reshape(-1, 1, 1, 1), np.int8(0), weight)
        flat = weight.reshape(len(weight), -1)
    sums = flat.sum(axis=1, dtype=np.int64)
    positive = np.maximum(flat, 0).sum(axis=1, dtype=np.int64)
    top, bottom = 127 * positive - 128 * (sums - positive), -128 * positive + 127 * (sums - positive)
    units = np.rint(bias / unit)
    limit = 2.0**31 - 1
    outside = (units - value.zero * sums + top > limit) | (units - value.zero * sums + bottom < -limit)
    # a bias so large that the result saturates whatever the input may be clipped where it still does
    steps_left = (limit - np.maximum(np.abs(top), np.abs(bottom)) * 2) * unit / scale
    if (outside & (steps_left < 512)).any():
        channel = int(np.flatnonzero(outside & (steps_left < 512))[0])
        raise OutOfRange(f"sums of output channel {channel} could leave 32 bits (bias {bias[channel]:.6g})")
    bound = limit - np.maximum(np.abs(top), np.abs(bottom)) - np.abs(value.zero * sums)
    units = np.where(outside, np.clip(units, -bound, bound), units)
    multiplier, shift = numerics.fixed_points(unit / scale)
    total = (units.astype(np.int64) - value.zero * sums).astype(np.int32)
    low, high = clip_codes(value.low, value.high, scale, zero)
    return weight, Requant(total, multiplier, shift, zero, low, high)


def result_form(form: Form, dims: Dims) -> Form:
    return plain_form(dims, len(form.shape))
