"""The ways of tiling that single-task compares: what is compiled for each, and streams that keep whole parts together.

It must not know results. Only studies need this: the compiler itself deals tiles as suits best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.deal import NOWHERE, deal, describe_layer
from corepool.compiler.dynamic.emit import emit_streams
from corepool.compiler.dynamic.linker import link, place_of, state_of
from corepool.compiler.dynamic.meet import plan_syncs
from corepool.compiler.dynamic.prepare import tables_of
from corepool.compiler.dynamic.rows import INSTRUCTION, Rows
from corepool.compiler.model import ModelPackage
from corepool.compiler.static.tiling import Options
from corepool.compiler.tables import IDLE, IFP_COLUMNS
from corepool.config import HardwareConfig
from corepool.device.base import STREAM_ALIGNMENT, WINDOW_ALIGNMENT
from corepool.device.simulator import Simulator
from corepool.evaluation.lab import Lab, Need, Timing

Ints = npt.NDArray[np.int64]

_PLAIN = Options(pixel_shapes=False, flatten=False, whole_network=False, fold_stem=False)

# Name: title, options. The first four have the same plain array as the paper's machine.
WAYS: dict[str, tuple[str, Options]] = {
    "width": ("width only", replace(_PLAIN, cuts=("width",))),
    "channel": ("channel only", replace(_PLAIN, cuts=("channel",))),
    "paper": ("best of width and channel: the paper", replace(_PLAIN, cuts=("width", "channel"))),
    "height": ("with height", replace(_PLAIN, cuts=("width", "channel", "height"))),
    "grid": ("any grid (2-D and more)", _PLAIN),
    "best": ("any grid, pixel shapes, flattened rows, folded stem, whole network", Options()),
}


def need_of(name: str, way: str) -> Need:
    """The package for a way of tiling."""
    return Need(name) if way == "best" else Need(name, None, WAYS[way][1])


def timing(lab: Lab, name: str, way: str, cores: int) -> Timing:
    """One inference of a network, tiled in one of the ways, on the first ``cores`` cores."""
    package = lab.package(*need_of(name, way))
    if not WAYS[way][1].cuts:
        return lab.timing(package, range(cores))
    return _run(lab.simulator(), package, streams_of_whole_parts(package, cores, lab.config), cores)


def _run(device: Simulator, package: ModelPackage, streams: Sequence[npt.NDArray[np.uint8]], cores: int) -> Timing:
    """Time streams that were made apart from the linker."""
    window = package.meta["window"]
    room = sum(-(-stream.nbytes // STREAM_ALIGNMENT) * STREAM_ALIGNMENT for stream in streams)
    size = max(window["window_bytes"], window["streams_offset"] + room)
    lease = device.open_lease(range(cores), -(-size // WINDOW_ALIGNMENT) * WINDOW_ALIGNMENT)
    try:
        device.load_streams(lease, streams, window["streams_offset"])
        completion = device.run(lease)
        if completion.fault is not None:
            raise AssertionError(f"streams of whole parts faulted: {completion.fault}")
        return Timing.of(device.counters(lease))
    finally:
        device.close_lease(lease)


def streams_of_whole_parts(package: ModelPackage, cores: int, config: HardwareConfig) -> list[npt.NDArray[np.uint8]]:
    """As ``link``, but tiles of one part (``units`` of a layer's tilings) all go to one core."""
    tables, where = tables_of(package), place_of(range(cores), config)
    state = state_of(package, cores, config)
    dealt, layers = state.dealt, len(package.layers)
    for number in range(layers):
        idle, choice = divmod(int(package.choice[number, cores - 1]), IDLE)
        first, count = (int(value) for value in package.tilings[package.layers[number, 0] + choice])
        units = package.meta["layers"][number].get("units")
        unit = 1 if units is None else units[choice]
        latency = (
            package.ifps[first : first + count, IFP_COLUMNS.index("latency")]
            .astype(np.int64)
            .reshape(-1, unit)
            .sum(axis=1)
        )
        bounds = np.empty(cores + 1, np.int64)
        deal(latency, 0, len(latency), cores - idle, bounds)
        bounds[cores - idle :] = len(latency)
        dealt[number] = first + bounds * unit
        describe_layer(number, tables, state)
        _boxes(package.ifps, dealt[number], where.bank_of, state.boxes[number])
    plan_syncs(0, layers, tables.layers, tables.ifps, tables.consumers, dealt, state.holds)
    out = np.empty(int(package.stream_bound[cores - 1]), INSTRUCTION)
    starts, places, ends = np.empty((cores, layers), np.int32), np.empty(cores + 1, np.int64), np.empty(cores, np.int64)
    emit_streams(0, layers, tables, where, state, out, places, ends, starts)
    return [out[a:b].view(np.uint8) for a, b in zip(places, ends, strict=False)]


def _boxes(ifps: npt.NDArray[np.int32], dealt: Ints, bank_of: Ints, boxes: Rows) -> None:
    """The regions of input and operand that the cores of each bank read: rows, rows end, blocks, blocks end."""
    for operand, column in enumerate(("in_row", "operand_row")):
        base = IFP_COLUMNS.index(column)
        for bank in range(boxes.shape[1]):
            mine = [ifps[dealt[c] : dealt[c + 1], base : base + 4] for c in np.flatnonzero(bank_of == bank)]
            read = np.concatenate(mine) if mine else ifps[:0, :4]
            if len(read):
                low, high = read.min(axis=0), read.max(axis=0)
                boxes[operand, bank] = (low[0], max(high[1], 0), low[2], max(high[3], 0))
            else:
                boxes[operand, bank] = (NOWHERE, 0, NOWHERE, 0)


def same_as_link(package: ModelPackage, cores: int, config: HardwareConfig) -> bool:
    """True if streams without parts that belong together are those of the linker, byte for byte."""
    ours, theirs = streams_of_whole_parts(package, cores, config), link(package, range(cores), config).streams
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
