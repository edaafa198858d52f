"""Lowering: each layer of the graph becomes an operation of the machine, with its geometry in channel blocks and its
constants as bytes.

It must not know tilings, addresses or cores. Tiling and code generation read operations only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from corepool.compiler.static.graph import Add, Conv, Graph, Layer, Mul, Pool, Requant
from corepool.config import HardwareConfig
from corepool.errors import ModelError
from corepool.isa.table import Opcode, PoolMode

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Segment:
    """Output blocks ``out`` of a convolution that read input blocks ``inp`` (half-open ranges)."""

    out: tuple[int, int]
    inp: tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """A part of a convolution's or a sum's products: kernel rows, kernel columns and input blocks (half-open
    ranges)."""

    ky: tuple[int, int]
    kx: tuple[int, int]
    blocks: tuple[int, int]


@dataclass
class Operation:
    """One layer as the machine sees it: heights and widths in pixels, channels in blocks.

    ``flat`` maps have their rows joined (height 1). ``words`` are the weight words of one output block; ``weights`` has
    shape [output blocks, words, word bytes], ``parameters`` [words, parameter word bytes].
    """

    name: str
    layer: Layer
    opcode: Opcode
    mode: int
    input: str
    output: str
    operand: str | None
    operand_is_vector: bool
    in_size: tuple[int, int, int]  # blocks, height, width
    out_size: tuple[int, int, int]
    true_width: int  # of the output map, before flattening: to tell rows from pixels
    in_plane: int = 0  # words from one channel block of a map to the next; 0: as many as a block has pixels
    out_plane: int = 0
    operand_plane: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)  # top, left
    pad_value: int = 0
    zero_point: int = 0
    low: int = -128
    high: int = 127
    flat: bool = False
    dense: bool = False  # fully connected: the input is one row of words, the kernel as wide as it
    lut_after_add: bool = False
    segments: tuple[Segment, ...] = ()
    pieces: tuple[Piece, ...] = ()  # more than one: products are accumulated over several instructions
    words: int = 0
    block_words: npt.NDArray[np.int64] | None = (
        None  # words of each output block where they differ; ``words`` is the most
    )
    weights: Bytes | None = None
    parameters: Bytes | None = None
    constants: Bytes | None = None  # the parameter word of an addition or product
    lut: Bytes | None = None
    row_cuts: tuple[int, ...] = ()  # tiles must not cross these output rows and columns (average pooling borders)
    col_cuts: tuple[int, ...] = ()
    count_of: dict[tuple[int, int], int] = field(
        default_factory=dict
    )  # (row, column) of a cut's begin -> parameter word

    @property
    def depthwise(self) -> bool:
        """Each output block reads only the input block of the same number."""
        return self.opcode is not Opcode.CONV

    @property
    def accumulates(self) -> bool:
        return len(self.pieces) > 1


def normalise(graph: Graph, config: HardwareConfig) -> Graph:
    """Split what one instruction cannot do: a residual behind a depthwise or grouped convolution becomes an Add of its
    own."""
    tensors = dict(graph.tensors)
    layers: list[Layer] = []
    for layer in graph.layers:
        if isinstance(layer, Conv) and layer.residual is not None and layer.groups > 1:
            inner = layer.name + ":conv"
            tensors[inner] = replace(tensors[layer.output], name=inner, parent=None, channel_offset=0)
            before = None if layer.lut_after_add else layer.lut
            after = layer.lut if layer.lut_after_add else None
            layers.append(replace(layer, output=inner, residual=None, lut=before, lut_after_add=False))
            layers.append(
                Add(
                    name=layer.name + ":add",
                    output=layer.output,
                    origin=layer.origin,
                    lut=after,
                    a=inner,
                    b=layer.residual.tensor,
                    params=layer.residual.params,
                )
            )
        else:
            layers.append(layer)
    return replace(graph, tensors=tensors, layers=layers)


def lower(graph: Graph, config: HardwareConfig, flatten: bool = True) -> list[Operation]:
    """All operations of a normalised graph, in order. ``flatten`` joins the rows of maps on which pixels are
    independent.

    Raises ModelError for what no instruction field can hold.
    """
    lowering = {Conv: _lower_conv, Pool: _lower_pool, Add: _lower_elementwise, Mul: _lower_elementwise}
    operations = []
    for layer in graph.layers:
        operation = lowering[type(layer)](graph, layer, config, flatten)  # type: ignore[operator]
        _check_limits(operation)
        operations.append(operation)
    return operations


def _blocks(channels: int, config: HardwareConfig) -> int:
    return -(-channels // config.channels)


def _size(graph: Graph, tensor: str, config: HardwareConfig) -> tuple[int, int, int]:
    channels, height, width = graph.tensors[tensor].shape
    return _blocks(channels, config), height, width


def _base(graph: Graph, layer: Layer, source: str, opcode: Opcode, config: HardwareConfig) -> Operation:
    out = _size(graph, layer.output, config)
    return Operation(
        name=layer.name,
        layer=layer,
        opcode=opcode,
        mode=0,
        input=source,
        output=layer.output,
        operand=None,
        operand_is_vector=False,
        in_size=_size(graph, source, config),
        out_size=out,
        true_width=out[2],
        lut=None if layer.lut is None else layer.lut.view(np.uint8),
    )


def _flatten(operation: Operation) -> None:
    """Join the rows of input and output where the operation works pixel by pixel."""
    blocks, height, width = operation.in_size
    operation.in_size = (blocks, 1, height * width)
    operation.out_size = (operation.out_size[0], 1, height * width)
    operation.flat = True


def _lower_conv(graph: Graph, layer: Conv, config: HardwareConfig, flatten: bool) -> Operation:
    depthwise = layer.groups > 1 and layer.groups == layer.weight.shape[0] and layer.weight.shape[1] == 1
    depthwise = depthwise and layer.groups == graph.tensors[layer.input].channels
    narrow = layer.weight.shape[3] <= config.channels
    opcode = Opcode.DWCONV if depthwise and narrow else Opcode.CONV
    operation = _base(graph, layer, layer.input, opcode, config)
    operation.kernel = (layer.weight.shape[2], layer.weight.shape[3])
    operation.stride, operation.dilation = layer.stride, layer.dilation
    operation.padding = (layer.padding[0], layer.padding[1])
    operation.pad_value = layer.pad_value
    operation.zero_point, operation.low, operation.high = (
        layer.requant.zero_point,
        layer.requant.low,
        layer.requant.high,
    )
    operation.parameters = pack_parameters(layer.requant, operation.out_size[0], config)
    operation.lut_after_add = layer.lut_after_add
    if layer.residual is not None:
        operation.operand = layer.residual.tensor
        p = layer.residual.params
        operation.constants = pack_constants(
            config, (p.multiplier_a, p.multiplier_b, p.offset), p.shift, (p.zero_point, p.low, p.high)
        )
    if opcode is Opcode.DWCONV:
        operation.weights = _pack_depthwise(layer.weight, config)
        operation.words = operation.kernel[0]
        return operation
    whole_map = operation.kernel == operation.in_size[1:] and not any(layer.padding) and layer.groups == 1
    if whole_map and layer.dilation == (1, 1):
        return _as_dense(operation, layer, config)
    if flatten and operation.kernel == (1, 1) and operation.stride == (1, 1) and not any(layer.padding):
        _flatten(operation)
    operation.segments = tuple(_segments(layer, operation, config))
    if layer.groups == 1:
        operation.pieces = tuple(_split(operation, config))
        operation.weights = _pack_dense(layer.weight, operation.pieces, config)
        operation.words = operation.weights.shape[1]
    else:
        operation.weights, operation.block_words = _pack_grouped(layer, operation.segments, config)
        operation.words = int(operation.block_words.max())
    return operation


def _as_dense(operation: Operation, layer: Conv, config: HardwareConfig) -> Operation:
    """Fully connected: the input is one row of blocks * height * width words, the kernel as wide as it."""
    blocks, height, width = operation.in_size
    length = blocks * height * width
    operation.in_size, operation.kernel, operation.stride = (1, 1, length), (1, length), (1, 1)
    operation.flat = operation.dense = True
    packed = _pack_dense(layer.weight, (Piece((0, height), (0, width), (0, blocks)),), config, block_first=True)
    # Pieces of about equal size: a short one would be loaded before the memory of the one before it is free again.
    line = config.feature_banks
    most = min(config.weight_words // 2, 4088) // line
    count = -(-length // (most * line))
    step = -(-length // (count * line)) * line
    operation.pieces = tuple(Piece((0, 1), (a, min(a + step, length)), (0, 1)) for a in range(0, length, step))
    operation.segments = (Segment((0, operation.out_size[0]), (0, 1)),)
    operation.weights, operation.words = packed, length
    return operation


def _segments(layer: Conv, operation: Operation, config: HardwareConfig) -> Iterator[Segment]:
    """Runs of output blocks that read the same input blocks."""
    c, out_blocks, in_blocks = config.channels, operation.out_size[0], operation.in_size[0]
    if layer.groups == 1:
        yield Segment((0, out_blocks), (0, in_blocks))
        return
    per_out, per_in = layer.weight.shape[0] // layer.groups, layer.weight.shape[1]
    begin = 0
    current: tuple[int, int] | None = None
    for block in range(out_blocks):
        first = block * c // per_out
        last = (min((block + 1) * c, layer.weight.shape[0]) - 1) // per_out
        inp = (first * per_in // c, -(-((last + 1) * per_in) // c))
        if current is not None and inp != current:
            yield Segment((begin, block), current)
            begin = block
        current = inp
    assert current is not None
    yield Segment((begin, out_blocks), current)


def _split(operation: Operation, config: HardwareConfig) -> Iterator[Piece]:
    """One piece if the weights of an output block and the input of a few pixels fit half their memories, otherwise as
    many as it takes."""
    (kh, kw), blocks = operation.kernel, operation.in_size[0]
    weight_cap, line_cap = config.weight_words // 2, config.feature_lines // 2
    span = (config.pixels - 1) * operation.stride[1] + (kw - 1) * operation.dilation[1] + 1
    lines = -(-min(span, operation.in_size[2]) // config.feature_banks)
    rows = min((kh - 1) * operation.dilation[0] + 1, operation.in_size[1])
    # Row tiles must be possible for at least one output row of P pixels.
    if kh * kw * blocks <= weight_cap and rows * lines * blocks <= line_cap:
        yield Piece((0, kh), (0, kw), (0, blocks))
        return
    if kw > weight_cap or lines > line_cap:
        raise ModelError(f"layer {operation.name}: a kernel of {kw} columns does not fit the machine")
    ky_step = max(1, min(kh, weight_cap // kw))
    while ky_step > 1 and ((ky_step - 1) * operation.dilation[0] + 1) * lines > line_cap:
        ky_step -= 1
    tile_rows = (ky_step - 1) * operation.dilation[0] + 1
    block_step = max(1, min(blocks, weight_cap // (ky_step * kw), line_cap // (tile_rows * lines)))
    for ky in range(0, kh, ky_step):
        for block in range(0, blocks, block_step):
            yield Piece((ky, min(ky + ky_step, kh)), (0, kw), (block, min(block + block_step, blocks)))


def _pad_channels(weight: npt.NDArray[np.int8], out: int, inp: int) -> npt.NDArray[np.int8]:
    if weight.shape[:2] == (out, inp):
        return weight
    padded = np.zeros((out, inp, *weight.shape[2:]), np.int8)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded


def _pack_dense(
    weight: npt.NDArray[np.int8], pieces: tuple[Piece, ...], config: HardwareConfig, block_first: bool = False
) -> Bytes:
    """[output blocks, words, C * C]: for each piece kernel row, kernel column, input block (block first: the block
    outermost)."""
    c = config.channels
    out_blocks, in_blocks = _blocks(weight.shape[0], config), _blocks(weight.shape[1], config)
    kh, kw = weight.shape[2:]
    blocked = _pad_channels(weight, out_blocks * c, in_blocks * c).reshape(out_blocks, c, in_blocks, c, kh, kw)
    order = (0, 2, 4, 5, 1, 3) if block_first else (0, 4, 5, 2, 1, 3)
    if len(pieces) == 1:
        return np.ascontiguousarray(blocked.transpose(order)).view(np.uint8).reshape(out_blocks, -1, c * c)
    parts = [
        blocked[:, :, p.blocks[0] : p.blocks[1], :, p.ky[0] : p.ky[1], p.kx[0] : p.kx[1]]
        .transpose(order)
        .reshape(out_blocks, -1, c * c)
        for p in pieces
    ]
    return np.ascontiguousarray(np.concatenate(parts, axis=1)).view(np.uint8)


def _pack_grouped(
    layer: Conv, segments: tuple[Segment, ...], config: HardwareConfig
) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """As _pack_dense for one piece, each output block over the input blocks of its segment; and the words of each
    block."""
    c, (co, per_in, kh, kw) = config.channels, layer.weight.shape
    per_out = co // layer.groups
    parts, counts = [], []
    for segment in segments:
        span = segment.inp[1] - segment.inp[0]
        dense = np.zeros(((segment.out[1] - segment.out[0]) * c, span * c, kh, kw), np.int8)
        for channel in range(segment.out[0] * c, min(segment.out[1] * c, co)):
            first = channel // per_out * per_in - segment.inp[0] * c
            dense[channel - segment.out[0] * c, first : first + per_in] = layer.weight[channel]
        parts.append(_pack_dense(dense, (Piece((0, kh), (0, kw), (0, span)),), config).reshape(-1, c * c))
        counts += [kh * kw * span] * (segment.out[1] - segment.out[0])
    return np.concatenate(parts), np.array(counts, np.int64)


def _pack_depthwise(weight: npt.NDArray[np.int8], config: HardwareConfig) -> Bytes:
    """[blocks, kernel rows, C * C]: tap of the row, channel."""
    c, (channels, _, kh, kw) = config.channels, weight.shape
    blocks = _blocks(channels, config)
    packed = np.zeros((blocks, c, kh, c), np.int8)  # block, channel, row, tap
    padded = _pad_channels(weight, blocks * c, 1).reshape(blocks, c, kh, kw)
    packed[..., :kw] = padded
    return np.ascontiguousarray(packed.transpose(0, 2, 3, 1)).view(np.uint8).reshape(blocks, kh, c * c)


_PARAMETER = np.dtype([("bias", "<i4"), ("multiplier", "<u2"), ("shift", "u1"), ("zero", "u1")])


def pack_parameters(requant: Requant, blocks: int, config: HardwareConfig) -> Bytes:
    """[blocks, parameter word bytes]; channels that are missing get zeros."""
    packed = np.zeros(blocks * config.channels, _PARAMETER)
    count = len(requant.bias)
    packed["shift"] = 1
    packed["bias"][:count], packed["multiplier"][:count], packed["shift"][:count] = (
        requant.bias,
        requant.multiplier,
        requant.shift,
    )
    return packed.view(np.uint8).reshape(blocks, config.parameter_word_bytes)


def pack_constants(
    config: HardwareConfig, integers: tuple[int, int, int], shift: int, clamp: tuple[int, int, int]
) -> Bytes:
    """The parameter word of an addition or product: a, b, c (int32), shift (uint8), zero point, low, high (int8)."""
    word = np.zeros(config.parameter_word_bytes, np.uint8)
    word[:12] = np.array(integers, "<i4").view(np.uint8)
    word[12] = shift
    word[13:16] = np.array(clamp, np.int8).view(np.uint8)
    return word


def _lower_elementwise(graph: Graph, layer: Add | Mul, config: HardwareConfig, flatten: bool) -> Operation:
    operation = _base(graph, layer, layer.a, Opcode.ADD if isinstance(layer, Add) else Opcode.MUL, config)
    operation.operand = layer.b
    p = layer.params
    clamp = (p.zero_point, p.low, p.high)
    if isinstance(layer, Add):
        a = layer.params
        operation.constants = pack_constants(config, (a.multiplier_a, a.multiplier_b, a.offset), a.shift, clamp)
    else:
        m = layer.params
        operation.constants = pack_constants(config, (m.zero_a, m.zero_b, m.multiplier), m.shift, clamp)
        operand, result = graph.tensors[layer.b], graph.tensors[layer.output]
        operation.operand_is_vector = operand.height * operand.width == 1 and result.height * result.width > 1
        operation.mode = int(operation.operand_is_vector)
    if flatten:
        _flatten(operation)
    return operation


def _lower_pool(graph: Graph, layer: Pool, config: HardwareConfig, flatten: bool) -> Operation:
    operation = _base(graph, layer, layer.input, Opcode.POOL, config)
    operation.kernel, operation.stride, operation.dilation = layer.kernel, layer.stride, layer.dilation
    operation.padding, operation.pad_value = (layer.padding[0], layer.padding[1]), layer.pad_value
    if layer.mode == "max":
        operation.mode = int(PoolMode.MAX)
        if flatten and layer.kernel == (1, 1) and layer.stride == (1, 1) and not any(layer.padding):
            _flatten(operation)
        return operation
    operation.mode = int(PoolMode.SUM)
    _sum_parameters(operation, layer, config)
    lines = -(-operation.in_size[2] // config.feature_banks)
    rows = (operation.kernel[0] - 1) * operation.dilation[0] + 1
    if min(rows, operation.in_size[1]) * lines > config.feature_lines // 2:
        kh, kw = operation.kernel
        step = max(1, config.feature_lines // 2 // lines // operation.dilation[0])
        operation.pieces = tuple(Piece((a, min(a + step, kh)), (0, kw), (0, 1)) for a in range(0, kh, step))
    return operation


def _sum_parameters(operation: Operation, layer: Pool, config: HardwareConfig) -> None:
    """Parameter words by the number of pixels that count, and the cuts between regions that count alike."""
    counts = sorted(layer.by_count)
    first = layer.by_count[counts[0]]
    operation.zero_point, operation.low, operation.high = first.zero_point, first.low, first.high
    words = []
    for count in counts:
        p = layer.by_count[count]
        same = np.full(config.channels, 1, np.int64)
        requant = Requant((same * p.bias).astype(np.int32), same * p.multiplier, same * p.shift, p.zero_point)
        words.append(pack_parameters(requant, 1, config)[0])
    operation.parameters = np.stack(words)
    if len(counts) == 1:
        return
    _, out_h, out_w = operation.out_size
    rows = [_valid(y, 0, layer, operation) for y in range(out_h)]
    cols = [_valid(x, 1, layer, operation) for x in range(out_w)]
    operation.row_cuts = tuple(y for y in range(1, out_h) if rows[y] != rows[y - 1])
    operation.col_cuts = tuple(x for x in range(1, out_w) if cols[x] != cols[x - 1])
    for y in (0, *operation.row_cuts):
        for x in (0, *operation.col_cuts):
            operation.count_of[y, x] = counts.index(rows[y] * cols[x])


def _valid(position: int, axis: int, layer: Pool, operation: Operation) -> int:
    """How many kernel positions of an output row (axis 0) or column (axis 1) lie inside the input."""
    start = position * layer.stride[axis] - layer.padding[axis]
    size = operation.in_size[1 + axis]
    return sum(0 <= start + k * layer.dilation[axis] < size for k in range(layer.kernel[axis]))


def _check_limits(operation: Operation) -> None:
    """Fields of the instruction set that a layer's geometry could exceed."""
    limits = {
        "kernel rows": (operation.kernel[0], 255),
        "kernel columns": (1 if operation.pieces else operation.kernel[1], 4095),
        "stride": (max(operation.stride), 15),
        "dilation": (max(operation.dilation), 31),
        "padding": (max(operation.padding), 255),
        "input blocks": (operation.in_size[0], 4095),
    }
    for what, (value, limit) in limits.items():
        if value > limit:
            raise ModelError(f"layer {operation.name}: {what} of {value} exceed the machine's {limit}")
