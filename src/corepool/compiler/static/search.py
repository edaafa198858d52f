"""The search for tilings: prices every grid of a layer for every number of cores with a pipeline model, in compiled
code.

It must not know instructions. Sizes come as plain integer arrays, so that thousands of grids are priced in
milliseconds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.deal import deal
from corepool.jit import njit

IntArray = npt.NDArray[np.int64]

# Places in the geometry array of a layer. ``unit_h``, ``unit_w``: tiles are cut at multiples of these; ``rest``: are
# rows behind the last whole unit always cut off? The last seven: cycles of a step of the array for each arrangement of
# pixels (0: not allowed), the size of a square, and the words from one channel block to the next in DDR.
GEOMETRY = (
    "in_blocks", "in_h", "in_w", "out_blocks", "out_h", "out_w", "kernel_h", "kernel_w", "stride_y", "stride_x",
    "dilation_y", "dilation_x", "pad_top", "pad_left", "unit_h", "unit_w", "rest", "words", "has_parameters",
    "has_operand", "depthwise", "elementwise", "row_skip", "segments", "row_steps", "square_steps", "column_steps",
    "square_h", "square_w", "in_plane", "out_plane",
)  # fmt: skip
(
    IB, IH, IW, OB, OH, OW, KH, KW, SY, SX, DY, DX, PT, PL, UH, UW, REST, WORDS, PARAMS, OPERAND, DEPTH, ELEMENT, SKIP,
    SEGMENTS, ROW_STEPS, SQUARE_STEPS, COLUMN_STEPS, SQH, SQW, IPLANE, OPLANE,
) = range(31)  # fmt: skip

# The directions of a grid, outermost first; in some orders the weights stay on chip from tile to tile.
ORDERS = ("hwc", "chw", "whc", "wch", "hcw")
WEIGHTS_STAY = (1, 3, 4)
# In order 1 the places may be dealt out in bands, one after the other, each in this order.
BANDS = (2, 4)

# Places in the machine array.
MACHINE = (
    "pixels", "word_bytes", "feature_lines", "weight_words", "parameter_words", "result_words", "line_bytes",
    "line_cycles_x16", "read_latency",
    "latency", "feature_banks", "weight_word_bytes", "sync", "cores_per_bank",
)  # fmt: skip
(P, WB, FL, WW, PW, RW, LINE, LC16, RL, LAT, FB, WWB, SYNC, CPB) = range(14)


@njit(cache=True, nogil=True)
def _lines(runs: int, words: int, places: int, m: IntArray) -> int:
    """DDR lines of ``runs`` runs of so many words, on average: all begin at multiples of the largest power of two in
    ``places`` (words; numbers joined by "or")."""
    line = m[LINE] // m[WB]
    places |= line
    grain = places & -places
    return runs * (-(-words // grain) * grain - grain + line) // line


@njit(cache=True, nogil=True)
def _input_span(first: int, count: int, stride: int, dilation: int, kernel: int, pad: int, size: int) -> int:
    """Input rows (or columns) that ``count`` output rows from ``first`` read, inside the map."""
    low = first * stride - pad
    high = (first + count - 1) * stride - pad + (kernel - 1) * dilation + 1
    return max(1, min(high, size) - max(low, 0))


@njit(cache=True, nogil=True)
def conv_cycles(g: IntArray, m: IntArray, h: int, w: int) -> tuple[int, int]:
    """Cycles of a convolution for ``h`` x ``w`` pixels of an output block under the best arrangement of pixels, and its
    number (0: row, 1: square, 2: column)."""
    best, shape = h * -(-w // m[P]) * max(g[ROW_STEPS], m[P]), 0
    if g[SQUARE_STEPS]:
        cycles = -(-h // g[SQH]) * -(-w // g[SQW]) * max(g[SQUARE_STEPS], m[P])
        if cycles < best:
            best, shape = cycles, 1
    if g[COLUMN_STEPS]:
        cycles = -(-h // m[P]) * w * max(g[COLUMN_STEPS], m[P])
        if cycles < best:
            best, shape = cycles, 2
    return best, shape


@njit(cache=True, nogil=True)
def conv_shapes(g: IntArray, m: IntArray, h: IntArray, w: IntArray) -> IntArray:
    """The best arrangement of pixels for each tile of a convolution [t]."""
    shapes = np.empty(len(h), np.int64)
    for i in range(len(h)):
        shapes[i] = conv_cycles(g, m, h[i], w[i])[1]
    return shapes


@njit(cache=True, nogil=True)
def tile_costs(g: IntArray, m: IntArray, y: int, h: int, x: int, w: int, b: int) -> tuple[int, int, int, int, int]:
    """Feature lines, operand lines, compute cycles, result lines and result words of one tile; feature lines of -1 if
    it does not fit."""
    rows = h if g[SKIP] else _input_span(y, h, g[SY], g[DY], g[KH], g[PT], g[IH])
    cols = _input_span(x, w, g[SX], g[DX], g[KW], g[PL], g[IW])
    in_blocks = b if g[DEPTH] else g[IB]
    if rows * -(-cols // m[FB]) * in_blocks > m[FL] // 2:
        return -1, 0, 0, 0, 0
    words = b * h * w
    if words + b > m[RW] // (4 if g[OPERAND] else 2):
        return -1, 0, 0, 0, 0
    top, left = max(y * g[SY] - (0 if g[SKIP] else g[PT]), 0), max(x * g[SX] - g[PL], 0)
    places = g[IPLANE] | (top * g[IW] + left)
    if cols == g[IW] and not g[SKIP]:
        runs, size = in_blocks, rows * cols
        if size == g[IPLANE]:
            runs, size, places = 1, in_blocks * size, 0
    else:
        runs, size, places = in_blocks * rows, cols, places | g[IW]
    features = _lines(runs, size, places, m)
    places = g[OPLANE] | (y * g[OW] + x)
    if w == g[OW]:
        runs, size = (1, words) if h * w == g[OPLANE] else (b, h * w)
    else:
        runs, size, places = b * h, w, places | (g[OW] if h > 1 else 0)
    results = _lines(runs, size, places, m)
    operands = results if g[OPERAND] else 0
    if g[ELEMENT]:
        compute = words
    elif g[DEPTH]:
        span = (min(m[P], w) - 1) * g[SX] + (g[KW] - 1) * g[DX] + 1
        compute = b * h * -(-w // m[P]) * max(g[KH] * -(-span // m[FB]), m[P])
    else:
        compute = b * conv_cycles(g, m, h, w)[0]
    return features, operands, compute + m[P] + m[LAT], results, words


@njit(cache=True, nogil=True)
def package_latency(compute: int, lines: int, m: IntArray) -> int:
    """What a package counts for when packages are dealt: the longer of computing and moving its own lines."""
    return max(compute, lines * m[LC16] // 16)


@njit(cache=True, nogil=True)
def _steps(order: int, gh: int, gw: int, gb: int) -> tuple[int, int, int]:
    """How far apart neighbours in height, width and channels stand among the tiles."""
    if order == 0:  # height, width, channels
        return gw * gb, gb, 1
    if order == 1:  # channels, height, width
        return gw, 1, gh * gw
    if order == 2:  # width, height, channels
        return gb, gh * gb, 1
    if order == 3:  # width, channels, height
        return 1, gh * gb, gh
    return gw * gb, 1, gw  # height, channels, width


@njit(cache=True, nogil=True)
def row_cut(g: IntArray, gh: int, iy: int) -> int:
    """Where the ``iy``-th of ``gh`` row parts begins; ``gh`` -> the end."""
    if iy == gh:
        return g[OH]
    if g[REST]:
        return iy * (g[OH] // g[UH]) // (gh - 1) * g[UH]
    return iy * -(-g[OH] // g[UH]) // gh * g[UH]


@njit(cache=True, nogil=True)
def price(g: IntArray, m: IntArray, gh: int, gw: int, gb: int, order: int, bands: int, unit: int, out: IntArray) -> int:
    """Predicted cycles of the layer on 1 .. len(out) cores under a grid of gh x gw x gb tiles, into ``out``; returns
    the number of tiles.

    ``order`` is one of ``ORDERS``, with order 1 the places in so many ``bands``; ``unit`` tiles that follow each other
    are dealt together. -1 if a tile does not fit the machine's memories.
    """
    step_y, step_x, step_b = _steps(order, gh, gw, gb)
    weights_outer = order in WEIGHTS_STAY
    units_w = -(-g[OW] // g[UW])
    count = gh * gw * gb
    band = gh * gw // bands
    features, operands = np.empty(count, np.int64), np.empty(count, np.int64)
    compute, results = np.empty(count, np.int64), np.empty(count, np.int64)
    pushed, weights, latency = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    spatial, channel = np.empty(count, np.int64), np.empty(count, np.int64)
    for iy in range(gh):
        y = row_cut(g, gh, iy)
        h = row_cut(g, gh, iy + 1) - y
        for ix in range(gw):
            x = ix * units_w // gw * g[UW]
            w = min((ix + 1) * units_w // gw * g[UW], g[OW]) - x
            last_b = -1
            f, o, c, r, p = 0, 0, 0, 0, 0
            for ib in range(gb):
                b = (ib + 1) * g[OB] // gb - ib * g[OB] // gb
                if b != last_b:
                    if b * g[WORDS] > m[WW] // 2 or b + 1 > m[PW] // 2:
                        return -1
                    f, o, c, r, p = tile_costs(g, m, y, h, x, w, b)
                    last_b = b
                if f < 0:
                    return -1
                place = iy * gw + ix
                index = iy * step_y + ix * step_x + ib * step_b
                if bands > 1:
                    index = (place // band * gb + ib) * band + place % band
                features[index], operands[index], compute[index], results[index], pushed[index] = f, o, c, r, p
                weights[index] = b * g[WORDS] * m[WWB] // m[LINE] + (b + 1 if g[PARAMS] else 0)
                spatial[index], channel[index] = place, ib
                own = (
                    r
                    + o
                    + (f if weights_outer or gb == 1 or g[DEPTH] else 0)
                    + (weights[index] if not weights_outer else 0)
                )
                latency[index] = package_latency(c, own, m)
    bounds = np.empty(len(out) + 1, np.int64)
    dealt = latency if unit == 1 else latency.reshape(count // unit, unit).sum(axis=1)
    for n in range(1, len(out) + 1):
        deal(dealt, 0, count // unit, n, bounds)
        bounds[: n + 1] *= unit
        banks = -(-n // m[CPB])
        # Results go to half of the other banks; of bands only those that read them, which is about one.
        copies16 = 16 + (banks - 1) * 8 // bands
        worst = 0
        for core in range(n):
            cycles = _run(
                g, m, bounds[core], bounds[core + 1], copies16, features, operands, compute, results, pushed, weights,
                spatial, channel,
            )  # fmt: skip
            worst = max(worst, cycles)
        out[n - 1] = worst + m[SYNC]
    return count


@njit(cache=True, nogil=True)
def _run(
    g: IntArray, m: IntArray, begin: int, end: int, copies16: int, features: IntArray, operands: IntArray,
    compute: IntArray,
    results: IntArray, pushed: IntArray, weights: IntArray, spatial: IntArray, channel: IntArray,
) -> int:  # fmt: skip
    """Cycles of one core for its run of packages: load, compute and save overlap with two buffers each."""
    slot, before, before2, saved, saved2 = 0, 0, 0, 0, 0
    for i in range(begin, end):
        first = i == begin
        lines = operands[i]
        if first or spatial[i] != spatial[i - 1] or g[DEPTH]:
            lines += features[i]
        if channel[i] != channel[i - 1] or first:
            lines += weights[i] // 2 if first else weights[i]
        ready = 0
        if lines:
            slot = max(slot, before2) + lines * m[LC16] // 16
            ready = slot + m[RL]
        start = max(ready, before, saved2)
        before2 = before
        before = start + compute[i]
        saved2 = saved
        saved = max(saved, before) + pushed[i]
        slot += results[i] * m[LC16] // 16 * copies16 // 16
    if end == begin:
        return 0
    return max(saved, slot) + m[RL]


@njit(cache=True, nogil=True)
def search(
    g: IntArray, m: IntArray, heights: IntArray, widths: IntArray, blocks: IntArray, orders: IntArray, whole: bool,
    limit: int, cores: int,
) -> tuple[IntArray, IntArray]:  # fmt: skip
    """Grids [k, 8] (height, width, channel parts, order, bands, and ``unit_h``, ``unit_w``, ``rest`` of the geometry)
    that fit and have at most ``limit`` tiles, and their prices [k, cores]. ``whole``: only the outermost direction of
    each of ``orders`` is dealt out, its parts stay whole.
    """
    most = len(heights) * len(widths) * len(blocks) * (len(orders) + len(BANDS))
    grids, prices = np.empty((most, 8), np.int64), np.empty((most, cores), np.int64)
    count = 0
    for gh in heights:
        if g[REST] and (gh < 2 or gh - 1 > g[OH] // g[UH]):
            continue
        for gw in widths:
            for gb in blocks:
                if gh * gw * gb > limit:
                    continue
                for choice in range(len(orders) + len(BANDS)):
                    unit, bands, order = 1, 1, 1
                    if choice < len(orders):
                        order = orders[choice]
                    elif whole:
                        continue
                    else:
                        bands = BANDS[choice - len(orders)]
                        if gh * gw % bands or gh * gw == bands or (gh > 1 and gh % bands):
                            continue
                    if whole:
                        step_y, step_x, step_b = _steps(order, gh, gw, gb)
                        unit = step_b if order == 1 else step_x if order in (2, 3) else step_y
                    elif order in WEIGHTS_STAY and (gh * gw == 1 or gb == 1):
                        continue  # no tile shares its weights with the one before
                    if price(g, m, gh, gw, gb, order, bands, unit, prices[count]) < 0:
                        break
                    grids[count, 0], grids[count, 1], grids[count, 2], grids[count, 3] = gh, gw, gb, order
                    grids[count, 4], grids[count, 5], grids[count, 6], grids[count, 7] = bands, g[UH], g[UW], g[REST]
                    count += 1
    return grids[:count], prices[:count]
