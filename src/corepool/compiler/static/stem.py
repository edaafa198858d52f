"""Folds the kernel of a first convolution, or a part of it, into its few input channels: what ways there are, how each
is written, and which is best.

It must not know how the host packs the image (see ``numerics.pack_fold``), nor instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, inf

import numpy as np

from corepool.compiler.static.graph import Conv, Fold, Graph, Layer, Pair, Port
from corepool.compiler.static.passes.base import changed, parents, readers, swap
from corepool.compiler.static.tiling import conflict, shape_size
from corepool.config import HardwareConfig
from corepool.errors import ModelError
from corepool.isa.table import Shape

MOST_BYTES = 4  # the packed image may have so many times the bytes of the plain one: the host makes and sends them
TRIED, TRY_BELOW = 5, 1.6  # ways that are tried at most, and only if they promise not so many times the best one's time
SMALL = 20_000  # cycles of one core: below, promises will do
LAYERS = 3  # a trial is the convolution and the next layers, so many in all
MOST_REACH = 31  # what an instruction can hold
IN_PIECES = 8  # times as long: kernels that do not fit the memories are summed up piece by piece, for few pixels each
CLOSE = 256  # of ways within a 256th of the best, the one with the fewest bytes is taken, then with the fewest rows


@dataclass(frozen=True)
class _Axis:
    """What folding ``taps`` rows (or columns) of a kernel leaves: ``groups`` of them, ``reach`` places of the packed
    map apart; outputs are ``stride`` places apart. A place of the map stands for every ``step``-th of the source, the
    first for that at ``-before``; there are ``size`` places, and ``padding`` before and behind them."""

    taps: int
    groups: int
    reach: int
    stride: int
    step: int
    before: int
    size: int
    padding: Pair


def _axis(taps: int, kernel: int, stride: int, dilation: int, padding: Pair, source: int, out: int) -> _Axis:
    if taps == 1 and kernel > 1:  # as it is
        return _Axis(1, kernel, dilation, stride, 1, 0, source, padding)
    groups = -(-kernel // taps)
    step = gcd(stride, taps * dilation) if groups > 1 else stride
    reach = taps * dilation // step if groups > 1 else 1
    size = (out - 1) * (stride // step) + (groups - 1) * reach + 1
    return _Axis(taps, groups, reach, stride // step, step, padding[0], size, (0, 0))


def stems(graph: Graph) -> Iterator[Conv]:
    """The convolutions that alone read an input of the network, which nothing else needs as it is."""
    used, taken = readers(graph), parents(graph) | {port.tensor for port in graph.outputs}
    names = [port.tensor for port in graph.inputs]
    for name in names:
        users, tensor = used[name], graph.tensors[name]
        if len(users) != 1 or name in taken or tensor.parent is not None or tensor.fold is not None:
            continue
        conv = users[0]
        fused = isinstance(conv, Conv) and conv.residual is not None and conv.residual.tensor == name
        if isinstance(conv, Conv) and conv.groups == 1 and not fused and names.count(name) == 1:
            yield conv


def _axes(graph: Graph, conv: Conv, taps: Pair) -> tuple[_Axis, _Axis]:
    source, out, kernel = graph.tensors[conv.input].shape, graph.tensors[conv.output].shape, conv.weight.shape
    y, x = (
        _axis(taps[i], kernel[2 + i], conv.stride[i], conv.dilation[i], pads, source[1 + i], out[1 + i])
        for i, pads in enumerate((conv.padding[0::2], conv.padding[1::2]))
    )
    return y, x


def folded(graph: Graph, conv: Conv, taps: Pair) -> Graph:
    """The graph with ``taps`` rows and columns of the kernel of ``conv``, one of its ``stems``, in the channels; the
    kernel that is left steps from group to group of so many. With one of several rows (or columns), the map keeps those
    of the source; else it has what the convolution reads, the padding too."""
    source = graph.tensors[conv.input]
    outputs, channels, *kernel = conv.weight.shape
    y, x = _axes(graph, conv, taps)
    fold = Fold(
        channels, source.height, source.width, (y.taps, x.taps), (y.step, x.step), conv.dilation, (y.before, x.before),
        conv.pad_value,
    )  # fmt: skip
    whole = np.zeros((outputs, channels, y.groups * y.taps, x.groups * x.taps), np.int8)
    whole[:, :, : kernel[0], : kernel[1]] = conv.weight
    weight = whole.reshape(outputs, channels, y.groups, y.taps, x.groups, x.taps).transpose(0, 3, 5, 1, 2, 4)
    made = replace(graph, tensors=dict(graph.tensors), layers=list(graph.layers))
    made.tensors[source.name] = replace(
        source, channels=y.taps * x.taps * channels, height=y.size, width=x.size, fold=fold
    )
    new = changed(
        conv,
        weight=np.ascontiguousarray(weight.reshape(outputs, -1, y.groups, x.groups)),
        stride=(y.stride, x.stride),
        padding=(y.padding[0], x.padding[0], y.padding[1], x.padding[1]),
        dilation=(y.reach, x.reach),
        taps=channels * kernel[0] * kernel[1],
    )
    swap(made, conv, new)
    return made


@dataclass(frozen=True)
class Way:
    """What to fold, None for nothing; bytes of the image then, and the least cycles that one core takes: it has to
    compute, and to move all bytes, the slower of which counts."""

    taps: Pair | None
    bytes: int
    cycles: int


def ways(graph: Graph, conv: Conv, config: HardwareConfig) -> list[Way]:
    """The ways to fold a convolution that may be best, those that promise most first."""
    height, width = conv.weight.shape[2:]
    size = graph.tensors[conv.input].shape[1:]
    plain = _way(graph, conv, None, config)
    found = [plain]
    for taps in product(_counts(height), _counts(width)):
        y, x = _axes(graph, conv, taps)
        nothing = taps == (1, 1) and (y.size, x.size) == size and (y.before, x.before) == (0, 0)
        if nothing or max(y.reach, x.reach) > MOST_REACH:
            continue
        way = _way(graph, conv, taps, config)
        if way.bytes <= MOST_BYTES * plain.bytes:
            found.append(way)
    found.sort(key=lambda way: (way.cycles, way.bytes))  # of equal ones the plain one stays first
    kept: list[Way] = []
    for way in found:
        beaten = any(16 * other.bytes < 15 * way.bytes for other in kept)
        if not beaten and way.cycles < TRY_BELOW * found[0].cycles:
            kept.append(way)
    return kept[:TRIED]


def _counts(kernel: int) -> list[int]:
    """Rows or columns that are folded together if a kernel is left with 1, 2, 3 ... groups."""
    return sorted({-(-kernel // groups) for groups in range(1, kernel + 1)})


def _way(graph: Graph, conv: Conv, taps: Pair | None, config: HardwareConfig) -> Way:
    source, out = graph.tensors[conv.input], graph.tensors[conv.output]
    if taps is None:
        y, x = (
            _Axis(1, conv.weight.shape[2 + i], conv.dilation[i], conv.stride[i], 1, 0, source.shape[1 + i], pads)
            for i, pads in enumerate((conv.padding[0::2], conv.padding[1::2]))
        )
    else:
        y, x = _axes(graph, conv, taps)
    pixels, word = config.pixels, config.word_bytes
    blocks, out_blocks = (-(-n // config.channels) for n in (y.taps * x.taps * source.channels, out.channels))
    steps, padded = y.groups * x.groups * blocks, any((*y.padding, *x.padding))
    if steps == blocks and (y.stride, x.stride) == (1, 1) and not padded:
        places = -(-out.height * out.width // pixels) * max(steps, pixels)
    else:
        stride = y.stride, x.stride
        places = min(
            -(-out.height // rows) * -(-out.width // cols) * max(steps * conflict(shape, pixels, stride), pixels)
            for shape in Shape
            for rows, cols in (shape_size(shape, pixels),)
        )
    bytes_in = blocks * y.size * x.size * word
    moved = bytes_in + out_blocks * (out.height * out.width * word + steps * config.weight_word_bytes)
    rate = config.ddr.line_bytes * config.ddr.active_rounds / config.ddr.period_rounds / config.cores_per_bank
    cycles = max(out_blocks * places, int(moved / rate))
    if not ((y.groups, x.groups) == (y.size, x.size) and not padded):
        lines = -(-min((pixels - 1) * x.stride + (x.groups - 1) * x.reach + 1, x.size) // config.feature_banks)
        lines *= min((y.groups - 1) * y.reach + 1, y.size) * blocks
        if steps > config.weight_words // 2 or lines > config.feature_lines // 2:
            cycles *= IN_PIECES
    return Way(taps, bytes_in, cycles)


def fold_stems(graph: Graph, config: HardwareConfig, measure: Callable[[Graph], int]) -> Graph:
    """The graph with each of its ``stems`` folded in the way that is best. ``measure`` says what a graph costs; it is
    asked for the first few layers, and may raise ModelError."""
    for conv in list(stems(graph)):
        found = ways(graph, conv, config)
        graphs = [graph if way.taps is None else folded(graph, conv, way.taps) for way in found]
        best = 0
        if len(found) > 1 and found[0].cycles >= SMALL:
            costs = [_cost(made, conv.name, measure) for made in graphs]
            close = [k for k, cost in enumerate(costs) if cost * CLOSE <= min(costs) * (CLOSE + 1)]
            best = min(close, key=lambda k: (found[k].bytes, found[k].taps or (0, 0), costs[k]))
        graph = graphs[best]
    return graph


def _cost(graph: Graph, name: str, measure: Callable[[Graph], int]) -> float:
    try:
        return measure(beginning(graph, name))
    except ModelError:
        return inf


def beginning(graph: Graph, name: str) -> Graph:
    """A network of the layer ``name``, which reads an input, and of the next ones that need nothing else."""
    layers: list[Layer] = []
    made: list[str] = []
    for layer in graph.layers:
        if layer.name == name or (made and set(layer.inputs) <= {*made}):
            layers.append(layer)
            made.append(layer.output)
        if len(layers) == LAYERS:
            break
    image = layers[0].inputs[0]
    tensors = {each: replace(graph.tensors[each], parent=None, channel_offset=0) for each in (image, *made)}
    read = {each for layer in layers for each in layer.inputs}
    outputs = [
        Port(each, each, (1, *tensors[each].shape), ((), ("c",), ("h",), ("w",)), "int8")
        for each in made
        if each not in read
    ]
    return Graph(graph.name, tensors, layers, [port for port in graph.inputs if port.tensor == image], outputs)
