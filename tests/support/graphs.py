"""Random layer graphs for property tests of everything behind the frontend."""

from __future__ import annotations

import numpy as np

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
    Residual,
    SumRequant,
    Tensor,
)

KINDS = ("conv", "pointwise", "depthwise", "grouped", "max", "sum", "add", "mul", "scale", "residual", "lut", "pad")


class Builder:
    """Grows a graph layer by layer from one seeded source of random numbers."""

    def __init__(self, rng: np.random.Generator, channels: int, height: int, width: int) -> None:
        self.rng = rng
        self.graph = Graph("random", {}, [], [], [])
        self.tensor("input", channels, height, width)
        shape = (1, channels, height, width)
        axes = ((), ("c",), ("h",), ("w",))
        self.graph.inputs.append(Port("input", "input", shape, axes, "int8"))

    def tensor(self, name: str, channels: int, height: int, width: int) -> str:
        zero = int(self.rng.integers(-128, 128))
        self.graph.tensors[name] = Tensor(name, channels, height, width, 0.05, zero)
        return name

    def finish(self, *outputs: str) -> Graph:
        for name in outputs:
            t = self.graph.tensors[name]
            axes = ((), ("c",), ("h",), ("w",))
            self.graph.outputs.append(Port(name, name, (1, *t.shape), axes, "float32"))
        return self.graph

    def lut(self):
        return self.rng.permutation(np.arange(-128, 128)).astype(np.int8)

    def _clamp(self):
        low = int(self.rng.integers(-128, 0))
        return int(self.rng.integers(-128, 128)), low, int(self.rng.integers(0, 128))

    def add_params(self) -> AddParams:
        a, b = (int(v) for v in self.rng.integers(-40000, 40000, 2))
        return AddParams(
            a, b, int(self.rng.integers(-(1 << 20), 1 << 20)), int(self.rng.integers(10, 18)), *self._clamp()
        )

    def requant(self, products: int, count: int) -> Requant:
        """Scales results to about the int8 range, so that tests see more than saturated values."""
        shift = 15 + max(1, int(np.log2(max(products, 1) ** 0.5 * 73 * 73 / 60)))
        bias = self.rng.integers(-products * 100 - 1, products * 100 + 1, count)
        shifts = np.clip(shift + self.rng.integers(-1, 2, count), 1, 47)
        return Requant(
            bias.astype(np.int32), self.rng.integers(1 << 15, 1 << 16, count), shifts.astype(np.int64), *self._clamp()
        )

    def conv(
        self,
        source: str,
        out: int,
        kernel,
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
        residual=None,
        lut=False,
    ):
        t, number = self.graph.tensors[source], len(self.graph.layers)
        height = (t.height + padding[0] + padding[2] - (kernel[0] - 1) * dilation[0] - 1) // stride[0] + 1
        width = (t.width + padding[1] + padding[3] - (kernel[1] - 1) * dilation[1] - 1) // stride[1] + 1
        name = self.tensor(f"t{number}", out, height, width)
        per_group = t.channels // groups
        weight = self.rng.integers(-127, 128, (out, per_group, *kernel)).astype(np.int8)
        self.graph.layers.append(
            Conv(
                name=f"l{number}",
                output=name,
                input=source,
                weight=weight,
                requant=self.requant(per_group * kernel[0] * kernel[1], out),
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                pad_value=t.zero_point,
                residual=None if residual is None else Residual(residual, self.add_params()),
                lut=self.lut() if lut else None,
                lut_after_add=bool(self.rng.integers(2)),
            )
        )
        return name

    def pool(self, source: str, mode: str, kernel, stride=(1, 1), padding=(0, 0, 0, 0), lut=False, include_pad=True):
        t, number = self.graph.tensors[source], len(self.graph.layers)
        height = (t.height + padding[0] + padding[2] - kernel[0]) // stride[0] + 1
        width = (t.width + padding[1] + padding[3] - kernel[1]) // stride[1] + 1
        name = self.tensor(f"t{number}", t.channels, height, width)
        counts = {kernel[0] * kernel[1]}
        if not include_pad:

            def valid(size, count, axis):
                starts = (i * stride[axis] - padding[axis] for i in range(count))
                return {sum(0 <= s + k < size for k in range(kernel[axis])) for s in starts}

            counts = {a * b for a in valid(t.height, height, 0) for b in valid(t.width, width, 1)}
        zero, low, high = self._clamp()
        by_count = {
            c: SumRequant(
                -t.zero_point * kernel[0] * kernel[1],
                (1 << 22) // max(c, 1) % (1 << 15) + (1 << 15),
                16,
                zero,
                low,
                high,
            )
            for c in counts
        }
        self.graph.layers.append(
            Pool(
                name=f"l{number}",
                output=name,
                input=source,
                mode=mode,
                kernel=kernel,
                stride=stride,
                padding=padding,
                pad_value=t.zero_point if mode == "sum" else -128,
                by_count=by_count if mode == "sum" else {},
                count_include_pad=include_pad,
                lut=self.lut() if lut else None,
            )
        )
        return name

    def elementwise(self, a: str, b: str, product: bool, lut=False) -> str:
        t, number = self.graph.tensors[a], len(self.graph.layers)
        name = self.tensor(f"t{number}", *t.shape)
        shared = {"name": f"l{number}", "output": name, "a": a, "b": b, "lut": self.lut() if lut else None}
        if product:
            zeros = (t.zero_point, self.graph.tensors[b].zero_point)
            params = MulParams(
                *zeros, int(self.rng.integers(1 << 15, 1 << 16)), int(self.rng.integers(20, 24)), *self._clamp()
            )
            self.graph.layers.append(Mul(**shared, params=params))
        else:
            self.graph.layers.append(Add(**shared, params=self.add_params()))
        return name


def random_layer(build: Builder, kind: str, source: str) -> str:
    """Append one random layer of a kind that reads ``source``; returns its output."""
    rng, t = build.rng, build.graph.tensors[source]

    def window(limit: int):
        kernel = tuple(int(v) for v in rng.integers(1, limit + 1, 2))
        stride = tuple(int(v) for v in rng.integers(1, 5, 2))
        padding = [int(rng.integers(0, k)) for k in (*kernel, *kernel)]
        dilation = tuple(int(v) for v in rng.integers(1, 3, 2))
        for axis, size in enumerate((t.height, t.width)):  # the window must fit into the padded map
            lack = (kernel[axis] - 1) * dilation[axis] + 1 - size - padding[axis] - padding[axis + 2]
            padding[axis + 2] += max(0, lack)
        return kernel, stride, tuple(padding), dilation

    lut = bool(rng.integers(2))
    if kind == "conv":
        return build.conv(source, int(rng.integers(1, 40)), *window(5), lut=lut)
    if kind == "pointwise":
        return build.conv(source, int(rng.integers(1, 70)), (1, 1), lut=lut)
    if kind == "depthwise":
        return build.conv(source, t.channels, *window(4), groups=t.channels, lut=lut)
    if kind == "grouped":
        groups = int(rng.choice([g for g in range(1, t.channels + 1) if t.channels % g == 0]))
        return build.conv(source, groups * int(rng.integers(1, 5)), *window(3), groups=groups, lut=lut)
    if kind in ("max", "sum"):
        kernel, stride, padding, _ = window(4)
        padding = tuple(min(p, k - 1) for p, k in zip(padding, (*kernel, *kernel), strict=True))
        if any(s + padding[i] + padding[i + 2] < kernel[i] for i, s in enumerate((t.height, t.width))):
            kernel, padding = (1, 1), (0, 0, 0, 0)
        return build.pool(source, kind, kernel, stride, padding, lut=lut, include_pad=bool(rng.integers(2)))
    if kind in ("add", "mul"):
        other = build.conv(source, t.channels, (1, 1)) if rng.integers(2) else source
        return build.elementwise(source, other, kind == "mul", lut=lut)
    if kind == "scale":
        vector = build.pool(source, "sum", (t.height, t.width))
        return build.elementwise(source, vector, True, lut=lut)
    if kind == "residual":
        middle = build.conv(source, int(rng.integers(1, 20)), (1, 1))
        return build.conv(middle, t.channels, (3, 3), padding=(1, 1, 1, 1), residual=source, lut=lut)
    if kind == "lut":
        return build.pool(source, "max", (1, 1), lut=True)
    return build.pool(source, "max", (1, 1), padding=tuple(int(v) for v in rng.integers(0, 3, 4)))


def random_graph(rng: np.random.Generator, layers: int, kinds=KINDS, size: int = 24) -> Graph:
    """A chain of ``layers`` random steps (some of several layers) over a small random map."""
    channels, height, width = int(rng.integers(1, 33)), int(rng.integers(1, size)), int(rng.integers(1, size))
    build = Builder(rng, channels, height, width)
    here = "input"
    for _ in range(layers):
        here = random_layer(build, str(rng.choice(kinds)), here)
    return build.finish(here)


def random_input(rng: np.random.Generator, graph: Graph):
    """INT8 values for the graph's inputs by name."""
    return {port.name: rng.integers(-128, 128, port.shape).astype(np.int8) for port in graph.inputs}
