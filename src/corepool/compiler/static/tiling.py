"""Tilings: how a layer's output map is cut into tiles, and which cuts serve which number of cores best.

It must not know instructions or addresses. A tile becomes an instruction frame package in code generation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from corepool.compiler.static import search
from corepool.compiler.static.lower import Operation
from corepool.config import HardwareConfig
from corepool.errors import ModelError
from corepool.isa.table import Opcode, Shape

MAX_CORES = 16
MAX_TILES = 320  # of one layer: 20 for each of 16 cores
# A tiling may cost so much more than the best alone, and still be the best in its place: a fifth, or less in networks
# with more layers than these, so that trying all takes about as long.
WORTH_TRYING, FEW_LAYERS = 0.2, 30
TILE_COST = 4  # cycles that a tile must save for each cycle that an instruction must


@dataclass(frozen=True)
class Options:
    """Switches of the tiling search, for studies; the defaults are the best known."""

    pixel_shapes: bool = True
    flatten: bool = True
    whole_network: bool = True  # choose tilings with regard to the layers that read the results
    cuts: tuple[str, ...] = ()  # deal only whole parts in one of these directions: width, height, channel; () is free
    fold_stem: bool = True  # pack the kernel of a first convolution into its few channels, as suits best


class Cut(NamedTuple):
    """Rows and columns at multiples of which maps are cut, and whether the rows behind the last whole unit are always
    cut off: they may need another arrangement of pixels."""

    rows: int
    cols: int
    rest: bool = False


@dataclass(frozen=True)
class Tiling:
    """Cuts of the output map (rows, columns, blocks; first is 0, last the size) and the order of tiles.

    ``order`` (see ``search.ORDERS``): 1: all tiles of one block range follow each other (their weights stay), 0: all of
    one place (its input stays). ``bands``: in order 1 the places stand in so many equal bands, one behind the other.
    ``unit`` tiles are to be dealt together; above 1 in studies only.
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    blocks: tuple[int, ...]
    order: int = 0
    unit: int = 1
    bands: int = 1

    @property
    def count(self) -> int:
        return (len(self.rows) - 1) * (len(self.cols) - 1) * (len(self.blocks) - 1)

    def __str__(self) -> str:
        grid = f"{len(self.rows) - 1}h x {len(self.cols) - 1}w x {len(self.blocks) - 1}c"
        return (
            grid
            + ("", " weights first", " by width", " by width, weights first", " by height, weights first")[self.order]
            + (f" in {self.bands} bands" if self.bands > 1 else "")
        )


class Found(NamedTuple):
    """Tilings worth compiling, for 1, 2, ... cores the number of the cheapest, which are worth trying in its place
    [tilings, cores], and for each of ``search.BANDS`` the cheapest of those that cut maps into so many bands, if that
    is worth trying: beside neighbours that do the same it may be best."""

    tilings: list[Tiling]
    choice: list[int]
    worth: npt.NDArray[np.bool_]
    parted: list[list[int]] | None = None


def shape_size(shape: Shape, pixels: int) -> tuple[int, int]:
    """Rows and columns of the output pixels that one step of the array works on."""
    if shape is Shape.ROW:
        return 1, pixels
    if shape is Shape.COLUMN:
        return pixels, 1
    rows = 1 << ((pixels.bit_length() - 1) // 2)
    return rows, pixels // rows


@cache
def conflict(shape: Shape, pixels: int, stride: tuple[int, int]) -> int:
    """Cycles that one tap takes: the most pixels of a step that lie in one bank of the feature memory."""
    rows, cols = shape_size(shape, pixels)
    factor = max(1, pixels - 1)
    hits = [0] * (2 * pixels)
    for y in range(rows):
        for x in range(cols):
            hits[(x * stride[1] + factor * y * stride[0]) % (2 * pixels)] += 1
    return max(hits)


def best_shape(operation: Operation, config: HardwareConfig, shapes: tuple[Shape, ...]) -> Shape:
    """The arrangement of pixels that needs the fewest cycles for the whole map; rows if it does not matter."""
    _, height, width = operation.out_size

    def cost(shape: Shape) -> tuple[int, int]:
        rows, cols = shape_size(shape, config.pixels)
        cycles = max(_taps(operation) * conflict(shape, config.pixels, chip_stride(operation)), config.pixels)
        return -(-height // rows) * -(-width // cols) * cycles, int(shape)

    return min(shapes, key=cost)


def _steps(operation: Operation, config: HardwareConfig, shape: Shape) -> int:
    """Cycles of the array for one step: P pixels of one output block."""
    return _taps(operation) * (conflict(shape, config.pixels, chip_stride(operation)) if operation.segments else 1)


def _taps(operation: Operation) -> int:
    width = max((s.inp[1] - s.inp[0] for s in operation.segments), default=1)
    return operation.kernel[0] * operation.kernel[1] * width


def array_steps(operation: Operation, config: HardwareConfig, shape: Shape) -> int:
    """Cycles in which the array multiplies for this operation on one core in one piece, without drain, fill or memory
    effects."""
    if operation.opcode is not Opcode.CONV:
        return 0
    rows, cols = shape_size(shape, config.pixels)
    groups = -(-operation.out_size[1] // rows) * -(-operation.out_size[2] // cols)
    blocks = sum((s.out[1] - s.out[0]) * (s.inp[1] - s.inp[0]) for s in operation.segments)
    return (
        groups
        * blocks
        * operation.kernel[0]
        * operation.kernel[1]
        * conflict(shape, config.pixels, chip_stride(operation))
    )


def _balanced(size: int, unit: int, parts: int) -> tuple[int, ...]:
    units = -(-size // unit)
    return tuple(min(i * units // parts * unit, size) for i in range(parts + 1))


def _counts(units: int, small: int = 16) -> list[int]:
    """Numbers of parts worth trying for so many units: all up to 16, then what gives parts of 1, 2, 3 ... units."""
    values = set(range(1, min(units, small) + 1)) | {-(-units // size) for size in range(1, 9)}
    return sorted(values)


def shapes_of(operation: Operation, options: Options = Options()) -> tuple[Shape, ...]:
    """The arrangements of pixels that tiles may choose among."""
    if operation.opcode is not Opcode.CONV or not options.pixel_shapes or operation.accumulates:
        return (Shape.ROW,)
    return tuple(Shape)


def geometry(
    operation: Operation, config: HardwareConfig, shapes: tuple[Shape, ...], cut: Cut | None = None
) -> npt.NDArray[np.int64]:
    """The operation as the array that the search reads (places: ``search.GEOMETRY``)."""
    cut = cut or Cut(1, config.pixels)
    square = shape_size(Shape.SQUARE, config.pixels)
    segments = len(operation.segments)
    inp = operation.segments[0].inp if segments else (0, operation.in_size[0])
    values = {
        "in_blocks": inp[1] - inp[0],
        "in_h": operation.in_size[1],
        "in_w": operation.in_size[2],
        "out_blocks": operation.out_size[0],
        "out_h": operation.out_size[1],
        "out_w": operation.out_size[2],
        "kernel_h": operation.kernel[0],
        "kernel_w": operation.kernel[1],
        "stride_y": operation.stride[0],
        "stride_x": operation.stride[1],
        "dilation_y": operation.dilation[0],
        "dilation_x": operation.dilation[1],
        "pad_top": operation.padding[0],
        "pad_left": operation.padding[1],
        "unit_h": cut.rows,
        "unit_w": cut.cols,
        "rest": int(cut.rest),
        "words": operation.words,
        "has_parameters": int(operation.parameters is not None),
        "has_operand": int(operation.operand is not None),
        "depthwise": int(operation.depthwise),
        "elementwise": int(operation.opcode in (Opcode.ADD, Opcode.MUL)),
        "row_skip": int(row_skip(operation)),
        "segments": segments,
        "row_steps": _steps(operation, config, Shape.ROW),
        "square_steps": _steps(operation, config, Shape.SQUARE) if Shape.SQUARE in shapes else 0,
        "column_steps": _steps(operation, config, Shape.COLUMN) if Shape.COLUMN in shapes else 0,
        "square_h": square[0],
        "square_w": square[1],
        "in_plane": operation.in_plane or operation.in_size[1] * operation.in_size[2],
        "out_plane": operation.out_plane or operation.out_size[1] * operation.out_size[2],
    }
    return np.array([values[name] for name in search.GEOMETRY], np.int64)


def row_skip(operation: Operation) -> bool:
    """Whether a load may leave out the input rows that no output row reads."""
    inside = (operation.out_size[1] - 1) * operation.stride[0] < operation.in_size[1]
    return operation.kernel[0] == 1 and operation.stride[0] > 1 and operation.padding[0] == 0 and inside


def chip_stride(operation: Operation) -> tuple[int, int]:
    """Rows and columns between the inputs of neighbouring outputs in the feature memory, once loads have left rows
    out."""
    return (1 if row_skip(operation) else operation.stride[0]), operation.stride[1]


@cache
def machine(config: HardwareConfig) -> npt.NDArray[np.int64]:
    """The configuration as the array that the search reads (places: ``search.MACHINE``)."""
    values = {
        "pixels": config.pixels,
        "word_bytes": config.word_bytes,
        "feature_lines": config.feature_lines,
        "weight_words": config.weight_words,
        "parameter_words": config.parameter_words,
        "result_words": config.result_words,
        "line_bytes": config.ddr.line_bytes,
        "line_cycles_x16": 16 * config.cores_per_bank * config.ddr.period_rounds // config.ddr.active_rounds,
        "read_latency": config.ddr.read_latency,
        "latency": config.compute_latency,
        "feature_banks": config.feature_banks,
        "weight_word_bytes": config.weight_word_bytes,
        "sync": config.sync_cycles + config.ddr.write_latency,
        "cores_per_bank": config.cores_per_bank,
    }
    return np.array([values[name] for name in search.MACHINE], np.int64)


def tilings(
    operation: Operation,
    config: HardwareConfig,
    shapes: tuple[Shape, ...],
    cores: int = MAX_CORES,
    cuts: tuple[str, ...] = (),
    cost: int = 3,
    layers: int = 1,
) -> Found:
    """The tilings of an operation that are worth compiling.

    ``cuts`` as in ``Options``; ``layers`` of the network, and ``cost`` of an instruction (``choose.instruction_cost``).
    """
    if cuts and len(operation.segments) <= 1:
        return _whole(operation, config, shapes, cores, cuts)
    if operation.accumulates:
        return Found([_accumulating(operation, config)], [0] * cores, np.ones((1, cores), np.bool_))
    blocks, height, width = operation.out_size
    grouped = len(operation.segments) > 1
    block_counts = [blocks] if grouped else _counts(blocks)
    limit = max(MAX_TILES, blocks if grouped else 0)
    cuts_tried = _row_cuts(operation, config, shapes)
    found = []
    for cut in cuts_tried:
        heights, widths = _counts(-(-height // cut.rows)), _counts(-(-width // cut.cols), 16 if operation.flat else 4)
        found.append(_search(operation, config, shapes, cut, heights, widths, block_counts, limit, cores))
    grids, prices = np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])
    if not len(grids):  # very large maps: any number of tiles that fits
        cut = cuts_tried[0]
        heights, widths = _all_counts(-(-height // cut.rows)), _all_counts(-(-width // cut.cols))
        block_counts = block_counts[-1:] if grouped else _all_counts(blocks)
        grids, prices = _search(operation, config, shapes, cut, heights, widths, block_counts, 1 << 16, cores)
    if not len(grids):
        raise ModelError(f"layer {operation.name}: no tile of it fits the memories of a core")
    worth_trying = 1 + WORTH_TRYING * min(1, FEW_LAYERS / layers)
    prices = prices + TILE_COST * cost * grids[:, :3].prod(axis=1, keepdims=True)
    kept, choice, worth = _keep(grids, prices, worth_trying)
    parts = tuple(sorted({0, *(s.out[1] for s in operation.segments)})) if grouped else ()
    made = [_tiling(operation, grids[k], parts) for k in kept]
    if operation.opcode is Opcode.CONV and not grouped:
        picked = {(kept[k], n) for n, k in enumerate(choice[0], 1)}
        for bands in (1, *search.BANDS):
            staying = np.flatnonzero((grids[kept, 3] == 1) & (grids[kept, 4] == bands))
            if len(staying):
                best = staying[prices[kept][staying].argmin(axis=0)]
                picked |= {(kept[k], n) for n, k in enumerate(best, 1) if worth[k, n - 1]}
        more = _with_short_first(operation, [(grids[k], n) for k, n in sorted(picked)])
        made += list(more)
        worth = np.concatenate([worth, np.zeros((len(more), cores), np.bool_)])
        for place, counts in enumerate(more.values(), len(kept)):
            worth[place, [n - 1 for n in counts]] = True
    return Found(made, choice[0], worth, choice[1:])


def _row_cuts(operation: Operation, config: HardwareConfig, shapes: tuple[Shape, ...]) -> list[Cut]:
    """The ways of cutting a map that are worth searching: by the one arrangement of pixels that is best for all of it,
    by whole lines of the memory, and, where the first wastes places of the array, by columns of pixels, with other
    arrangements for the rows left over."""
    if operation.opcode is not Opcode.CONV:
        return [Cut(1, config.pixels)]
    best = best_shape(operation, config, shapes)
    cuts = [Cut(*shape_size(best, config.pixels))]
    _, height, width = operation.out_size
    line = config.ddr.line_bytes // config.word_bytes
    if operation.flat and operation.out_plane % line == 0 and line > config.pixels and width > 2 * line:
        cuts.append(Cut(1, line))  # pieces that begin at lines take fewer of them
    if Shape.COLUMN not in shapes or height <= config.pixels or not height % config.pixels:
        return cuts
    numbers, m = geometry(operation, config, shapes), machine(config)
    whole = height // config.pixels * config.pixels
    mixed = sum(search.conv_cycles(numbers, m, h, width)[0] for h in (whole, height - whole))
    if mixed < search.conv_cycles(numbers, m, height, width)[0]:
        column = Cut(config.pixels, 1)
        cuts += [column._replace(rest=True)] if column in cuts else [column, column._replace(rest=True)]
    return cuts


def _with_short_first(operation: Operation, picked: list[tuple[npt.NDArray[np.int64], int]]) -> dict[Tiling, list[int]]:
    """Grids with a short tile more in front of what each of n cores gets (or of each of its rounds through a band), so
    that it can begin early. Only for grids whose tiles are dealt evenly, the weights staying from tile to tile. With
    each tiling those n.
    """
    blocks, height, width = operation.out_size
    made: dict[Tiling, list[int]] = {}
    for grid, n in picked:
        gh, gw, gb, outer, bands, unit_h, unit_w, rest = (int(v) for v in grid)
        run, left = divmod(gh * gw * gb, n)
        band = gh * gw // bands
        if left or (band % run and (run % band or band == 1)):
            continue
        run = min(run, band)
        if (gb > 1 and not outer and gh * gw > 1) or gh * gw * gb + max(n, gb * bands) > MAX_TILES:
            continue
        rows, cols = _balanced(height, unit_h, gh), _balanced(width, unit_w, gw)
        if gh == 1 and gw % run == 0:
            cols = _short_first(width, unit_w, gw, run, 2)
        elif run % gw == 0 and gh % (run // gw) == 0 and not rest:
            rows = _short_first(height, unit_h, gh, run // gw, 1)
        else:
            continue
        tiling = Tiling(rows, cols, _balanced(blocks, 1, gb), 1, bands=bands)
        more = gw if gh > 1 else 1  # tiles that a short part adds
        if bands == 1 or tiling.count == (gh * gw + gh * gw // run * more) * gb:  # each band has got its short part
            made.setdefault(tiling, []).append(n)
    return made


def _short_first(size: int, unit: int, parts: int, run: int, shortest: int) -> tuple[int, ...]:
    """As ``_balanced``, but every ``run`` parts have a short one of at least ``shortest`` units in front."""
    units = -(-size // unit)
    cuts = {size}
    for first in range(0, parts, run):
        begin, end = first * units // parts, (first + run) * units // parts
        short = min(max(shortest, (end - begin) // (2 * run)), end - begin - 1)
        rest = end - begin - short
        cuts |= {begin * unit} | {min((begin + short + i * rest // run) * unit, size) for i in range(run)}
    return tuple(sorted(cuts))


def _all_counts(units: int) -> list[int]:
    return sorted({1 << i for i in range(units.bit_length())} | {units})


def _search(
    operation: Operation,
    config: HardwareConfig,
    shapes: tuple[Shape, ...],
    cut: Cut,
    heights: list[int],
    widths: list[int],
    blocks: list[int],
    limit: int,
    cores: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    numbers = geometry(operation, config, shapes, cut).tobytes()
    return _search_cached(numbers, config, tuple(heights), tuple(widths), tuple(blocks), limit, cores)


# Orders of ``search`` in which the features, or the weights, stay on chip from tile to tile.
_BOTH_ORDERS = np.array([0, 1], np.int64)


@lru_cache(maxsize=512)
def _search_cached(
    numbers: bytes, config: HardwareConfig, heights: tuple[int, ...], widths: tuple[int, ...], blocks: tuple[int, ...],
    limit: int, cores: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:  # fmt: skip
    """The search, once for all layers of the same geometry."""
    parts = (np.array(values, np.int64) for values in (heights, widths, blocks))
    layer = np.frombuffer(numbers, np.int64).copy()
    grids, prices = search.search(layer, machine(config), *parts, _BOTH_ORDERS, False, limit, cores)
    return grids, prices


def _keep(
    grids: npt.NDArray[np.int64], prices: npt.NDArray[np.int64], worth_trying: float
) -> tuple[list[int], list[list[int]], npt.NDArray[np.bool_]]:
    """The grids [k, 8] worth compiling, the cheapest of these for each number of cores by ``prices`` [k, cores], and
    which are worth trying on how many cores.

    For each number of cores the cheapest of every kind, for the most cores also that of every kind and unit: what is
    best alone may not be best beside its neighbours, since results go to the banks of the cores that read them.
    """
    places, channels, outer = grids[:, 0] * grids[:, 1], grids[:, 2], grids[:, 3] == 1
    bands = grids[:, 4]
    units = [grids[:, 6] == unit for unit in np.unique(grids[:, 6])]
    kept: dict[int, None] = {}
    usual = 0  # that many are not only there for the most cores
    for n in (*range(1, prices.shape[1] + 1), prices.shape[1]):
        kinds = (
            channels == 1,
            places == 1,
            ~outer & (channels > 1) & (places > 1),
            outer & (bands == 1),
            *(outer & (bands == count) for count in search.BANDS),
            *(~outer & (places == count) & (channels > 1) for count in search.BANDS),
            places % n == 0,
            ~outer & (places >= n),
        )
        if usual:
            kinds = tuple(kind & unit for kind in kinds for unit in units)
        column = prices[:, n - 1]
        for kind in kinds:
            if kind.any():
                pick = int(np.flatnonzero(kind)[column[kind].argmin()])
                if column[pick] <= column.min() * worth_trying:
                    kept[pick] = None
        if n == prices.shape[1] and not usual:
            usual = len(kept)
    order = sorted(kept)
    choice = prices[order].argmin(axis=0)
    worth = prices[order] <= prices.min(axis=0) * worth_trying
    worth[[place for place, pick in enumerate(order) if pick in list(kept)[usual:]], :-1] = False
    worth[choice, range(len(choice))] = True
    apart = [[int(c) for c in choice]]
    for count in search.BANDS:
        parted = np.where(outer[order], bands[order], places[order]) % count == 0
        own = np.where(parted[:, None] & worth, prices[order], np.iinfo(np.int64).max)
        best = np.where(own.min(axis=0) < np.iinfo(np.int64).max, own.argmin(axis=0), choice)
        apart.append([int(c) for c in best])
    return order, apart, worth


def _tiling(operation: Operation, grid: npt.NDArray[np.int64], segment_cuts: tuple[int, ...]) -> Tiling:
    gh, gw, gb, order, bands, unit_h, unit_w, rest = (int(v) for v in grid)
    blocks, height, width = operation.out_size
    rows = set(_balanced(height // unit_h * unit_h, unit_h, gh - 1) if rest else _balanced(height, unit_h, gh))
    rows |= {height, *operation.row_cuts}
    cols = set(_balanced(width, unit_w, gw)) | set(operation.col_cuts)
    parts = set(_balanced(blocks, 1, gb)) | set(segment_cuts)
    if operation.row_cuts or operation.col_cuts:
        bands = 1  # cuts more may leave a number of places that bands do not divide
    return Tiling(tuple(sorted(rows)), tuple(sorted(cols)), tuple(sorted(parts)), order, bands=bands)


def _accumulating(operation: Operation, config: HardwareConfig) -> Tiling:
    """One output group a tile, since only one can be accumulated over several instructions."""
    blocks, height, width = operation.out_size
    cols = set(range(0, width, config.pixels)) | {width} | set(operation.col_cuts)
    return Tiling(tuple(range(height + 1)), tuple(sorted(cols)), tuple(range(blocks + 1)))


_DIRECTIONS = {"width": (2, 3), "height": (0, 4), "channel": (1,)}  # orders in which a direction is outermost


def _whole(
    operation: Operation, config: HardwareConfig, shapes: tuple[Shape, ...], cores: int, cuts: tuple[str, ...]
) -> Found:
    """Tilings that deal only whole parts in one of the directions; other cuts are there because memories are small."""
    if operation.accumulates:
        made = _accumulating(operation, config)
        made = made if "channel" in cuts else replace(made, unit=made.count)
        return Found([made], [0] * cores, np.ones((1, cores), np.bool_))
    unit = _row_cuts(operation, config, shapes)[0]
    blocks, height, width = operation.out_size
    units = (-(-height // unit.rows), -(-width // unit.cols), blocks)
    found, costs = [], []
    for cut in cuts:
        dealt = {"height": 0, "width": 1, "channel": 2}[cut]
        counts = [np.array(_counts(n) if i == dealt else _all_counts(n), np.int64) for i, n in enumerate(units)]
        orders = np.array(_DIRECTIONS[cut], np.int64)
        numbers = geometry(operation, config, shapes, unit)
        grids, prices = search.search(numbers, machine(config), *counts, orders, True, 1 << 12, cores)
        found.append(grids)
        costs.append(prices)
    grids, prices = np.concatenate(found), np.concatenate(costs)
    if not len(grids):
        raise ModelError(f"layer {operation.name}: no tile of it fits the memories of a core")
    best = prices.argmin(axis=0)
    order = sorted({int(k) for k in best})
    made_of = [_tiling(operation, grids[k], ()) for k in order]
    made_of = [replace(tiling, unit=_unit(tiling)) for tiling in made_of]
    return Found(made_of, [order.index(int(k)) for k in best], np.ones((len(order), cores), np.bool_))


def _unit(tiling: Tiling) -> int:
    """Tiles of one part in the outermost direction."""
    outermost = {"h": tiling.rows, "w": tiling.cols, "c": tiling.blocks}[search.ORDERS[tiling.order][0]]
    return tiling.count // (len(outermost) - 1)
