"""The static compiler from end to end: layer graph to model package.

It must not know ONNX (the frontend does) or how many cores a tenant will get.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.linker import link
from corepool.compiler.model import ModelPackage
from corepool.compiler.static import codegen
from corepool.compiler.static.choose import choose, instruction_cost, predict
from corepool.compiler.static.clock import run_time
from corepool.compiler.static.graph import Graph, Port
from corepool.compiler.static.lower import Operation, lower, normalise
from corepool.compiler.static.memory import align, place_constants, place_maps, set_planes
from corepool.compiler.static.order import in_order
from corepool.compiler.static.search import BANDS
from corepool.compiler.static.stem import fold_stems
from corepool.compiler.static.tiling import MAX_CORES, Options, Tiling, best_shape, shapes_of, tilings
from corepool.compiler.tables import IDLE
from corepool.config import HardwareConfig
from corepool.errors import ModelError
from corepool.isa.table import ISA_VERSION, Shape

FIRST_COLUMN = np.array([1] + [0] * 63, np.int32)  # tables count from 0 within their tiling: the first column moves

Progress = Callable[[str, float], None]


@dataclass
class Compiled:
    """A model package, the graph that it came from and what compiling took."""

    package: ModelPackage
    graph: Graph
    config: HardwareConfig
    report: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        self.package.save(path, self.config)


@dataclass
class _Layer:
    """What tiling and code generation made of one operation."""

    operation: Operation
    shape: Shape
    tilings: list[Tiling]
    choice: list[int]
    code: list[codegen.Code]


def compile_graph(
    graph: Graph, config: HardwareConfig, progress: Progress | None = None, options: Options | None = None
) -> Compiled:
    """Compile a layer graph for a machine. ``progress`` is told what is done and the share of the work behind it
    (0..1).

    Raises ModelError for what does not fit the machine.
    """
    started = time.perf_counter()
    tell = progress or (lambda what, share: None)
    options = options or Options()
    if not graph.layers:
        raise ModelError(f"{graph.name}: the network has no layer for the device")
    if options.fold_stem:
        tell("folding", 0.0)
        graph = fold_stems(graph, config, partial(_trial, config=config, options=options))
    graph = in_order(normalise(graph, config))
    tell("lowering", 0.0)
    operations = lower(graph, config, options.flatten)
    weights, constants = place_constants(operations)
    planes = set_planes(graph, operations, config)
    maps, end = place_maps(graph, operations, planes, align(len(weights)), config)
    layers: list[_Layer] = []
    worth: list[npt.NDArray[np.bool_]] = []
    plain: list[bool] = []
    parted: list[list[list[int]]] = [[] for _ in BANDS]
    for number, operation in enumerate(operations):
        tell(operation.name, 0.05 + 0.85 * number / len(operations))
        where = _addresses(graph, operation, maps, config)
        where.constants = constants[number]
        shapes = shapes_of(operation, options)
        shape = best_shape(operation, config, shapes)
        found = tilings(
            operation, config, shapes, cuts=options.cuts, cost=instruction_cost(len(operations)), layers=len(operations)
        )
        code = [codegen.generate(operation, tiling, shapes, where, config) for tiling in found.tilings]
        worth.append(found.worth)
        plain += [tiling.bands == 1 for tiling in found.tilings]
        for starts, own in zip(parted, found.parted or [found.choice] * len(parted), strict=True):
            starts.append(own)
        layers.append(_Layer(operation, shape, found.tilings, found.choice, code))
    tell("package", 0.9)
    package = _package(graph, layers, weights, maps, align(end, 4096), config)
    if options.whole_network:
        _prune(layers, choose(package, config, np.concatenate(worth), np.array(plain), np.array(parted, np.int32)))
    else:
        _prune(layers, package.choice)
    package = _package(graph, layers, weights, maps, align(end, 4096), config)
    tell("latency table", 0.95)
    package.meta["predicted_cycles"] = [predict(package, n, config) for n in range(1, MAX_CORES + 1)]
    package.check(graph.name)
    tell("done", 1.0)
    report = {"compile_graph_s": time.perf_counter() - started}
    return Compiled(package, graph, config, report)


def _trial(graph: Graph, config: HardwareConfig, options: Options) -> int:
    """What a few layers cost, each tiled as is best for it alone: cycles times cores, by the device's clock, summed up
    for one core and for one, two, ... whole banks."""
    options = replace(options, fold_stem=False, whole_network=False)
    package = compile_graph(graph, config, options=options).package
    offset, cost = package.meta["window"]["streams_offset"], 0
    for n in {1, *range(config.cores_per_bank, min(config.cores, MAX_CORES) + 1, config.cores_per_bank)}:
        cost += n * run_time(link(package, range(n), config).streams, offset, config)
    return cost


def _prune(layers: list[_Layer], choice: npt.NDArray[np.int32]) -> None:
    """Set the choice of each layer, and drop the tilings that no number of cores uses."""
    for layer, row in zip(layers, choice, strict=True):
        used = sorted({int(c) % IDLE for c in row})
        layer.tilings = [layer.tilings[k] for k in used]
        layer.code = [layer.code[k] for k in used]
        layer.choice = [used.index(int(c) % IDLE) + int(c) // IDLE * IDLE for c in row]


def _addresses(graph: Graph, operation: Operation, maps: dict[str, int], config: HardwareConfig) -> codegen.Addresses:
    def block(tensor: str) -> int:
        return graph.storage(tensor)[1] // config.channels

    operand = operation.operand
    return codegen.Addresses(
        input=maps[operation.input],
        output=maps[operation.output],
        operand=0 if operand is None else maps[operand],
        constants=None,  # type: ignore[arg-type]  # set by the caller
        input_block=block(operation.input),
        output_block=block(operation.output),
        operand_block=0 if operand is None else block(operand),
    )


def _package(
    graph: Graph,
    layers: list[_Layer],
    weights: np.ndarray[Any, Any],
    maps: dict[str, int],
    end: int,
    config: HardwareConfig,
) -> ModelPackage:
    """Join the code of all layers into the tables of a package."""
    layer_rows: list[tuple[int, ...]] = []
    tiling_rows: list[tuple[int, int]] = []
    ifps, steps, code = [], [], []
    ifp_count = step_count = code_count = 0
    consumers = _consumers(graph, layers)
    consumer_rows: list[tuple[int, int]] = []
    outputs = {graph.storage(port.tensor)[0] for port in graph.outputs}
    latest = _producers(graph, layers)
    for number, layer in enumerate(layers):
        root = graph.storage(layer.operation.output)[0]
        buffers = 4 if layer.operation.operand is not None else 2
        readers = consumers[root]
        layer_rows.append(
            (
                len(tiling_rows), len(layer.tilings), buffers, int(root in outputs), len(consumer_rows), len(readers),
                latest[number],
            )
        )  # fmt: skip
        consumer_rows += readers
        for part in layer.code:
            tiling_rows.append((ifp_count, len(part.packages)))
            ifps.append(part.packages + np.int32(step_count) * FIRST_COLUMN[: part.packages.shape[1]])
            steps.append(part.steps + np.int32(code_count) * FIRST_COLUMN[: part.steps.shape[1]])
            code.append(part.instructions)
            ifp_count += len(part.packages)
            step_count += len(part.steps)
            code_count += len(part.instructions)
    return ModelPackage(
        meta=_meta(graph, layers, len(weights), maps, end, config),
        weights=weights,
        code=np.concatenate(code),
        layers=np.array(layer_rows, np.int32),
        choice=np.array([layer.choice for layer in layers], np.int32),
        tilings=np.array(tiling_rows, np.int32),
        ifps=np.concatenate(ifps),
        steps=np.concatenate(steps),
        consumers=np.array(consumer_rows, np.int32).reshape(-1, 2),
        tail=graph.tail,
        head=graph.head,
    )


def _consumers(graph: Graph, layers: list[_Layer]) -> dict[str, list[tuple[int, int]]]:
    """For each storage the layers that read it, as input (0) or operand (1)."""
    readers: dict[str, list[tuple[int, int]]] = {}
    for number, layer in enumerate(layers):
        readers.setdefault(graph.storage(layer.operation.output)[0], [])
        for as_operand, name in enumerate((layer.operation.input, layer.operation.operand)):
            if name is not None:
                readers.setdefault(graph.storage(name)[0], []).append((number, as_operand))
    return readers


def _producers(graph: Graph, layers: list[_Layer]) -> list[int]:
    """For each layer the last one whose result it reads, or -1."""
    latest: dict[str, int] = {}
    found = []
    for number, layer in enumerate(layers):
        sources = [layer.operation.input, layer.operation.operand]
        found.append(max(latest.get(graph.storage(name)[0], -1) for name in sources if name is not None))
        latest[graph.storage(layer.operation.output)[0]] = number
    return found


def _meta(
    graph: Graph, layers: list[_Layer], weight_bytes: int, maps: dict[str, int], end: int, config: HardwareConfig
) -> dict[str, Any]:
    return {
        "model": graph.name,
        "config": config.name,
        "isa_version": ISA_VERSION,
        "macs": sum(graph.macs(layer.operation.layer) for layer in layers),
        "window": {"weights_bytes": weight_bytes, "streams_offset": end, "window_bytes": end},
        "inputs": [_port(graph, port, maps) for port in graph.inputs],
        "outputs": [_port(graph, port, maps) for port in graph.outputs],
        "tail_outputs": list(graph.tail_outputs),
        **({"head_inputs": _feeds(graph)} if graph.head else {}),
        "host_nodes": [asdict(node) for node in graph.host_nodes],
        "removed": dict(graph.removed),
        "layers": [_layer_meta(graph, layer) for layer in layers],
        "predicted_cycles": [],
    }


def _feeds(graph: Graph) -> list[dict[str, Any]]:
    return [{"name": each.name, "dtype": each.dtype, "shape": list(each.shape)} for each in graph.head_inputs]


def _layer_meta(graph: Graph, layer: _Layer) -> dict[str, Any]:
    operation = layer.operation
    seldom: dict[str, Any] = {}
    if max(layer.choice) >= IDLE:
        seldom["idle"] = [number // IDLE for number in layer.choice]
    if any(tiling.unit > 1 for tiling in layer.tilings):
        seldom["units"] = [tiling.unit for tiling in layer.tilings]
    return {
        "name": operation.name,
        "kind": operation.opcode.name,
        "origin": list(operation.layer.origin),
        "output": list(graph.tensors[operation.output].shape),
        "macs": graph.macs(operation.layer),
        "shape": layer.shape.name.lower(),
        "tilings": [str(tiling) for tiling in layer.tilings],
        "choice": [number % IDLE for number in layer.choice],
    } | seldom


def _port(graph: Graph, port: Port, maps: dict[str, int]) -> dict[str, Any]:
    tensor = graph.tensors[port.tensor]
    return {
        "name": port.name,
        "shape": list(port.shape),
        "axes": [list(axes) for axes in port.axes],
        "dtype": port.dtype,
        "scale": float(tensor.scale),
        "zero_point": int(tensor.zero_point),
        "offset": maps[port.tensor],
        "channels": tensor.channels,
        "height": tensor.height,
        "width": tensor.width,
        "fold": None if tensor.fold is None else asdict(tensor.fold),
    }
