"""The one way in: an ONNX file to a layer graph and the quantised model that it stands for.

It must not know how the steps work; it names their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from corepool.compiler.static.frontend.build import HANDLERS, Builder
from corepool.compiler.static.frontend.calibration import Calibration, input_shapes, read_calibration
from corepool.compiler.static.frontend.head import Head, cut
from corepool.compiler.static.frontend.load import load
from corepool.compiler.static.frontend.nodes import read_nodes
from corepool.compiler.static.frontend.prepare import FloatModel
from corepool.compiler.static.frontend.quantise import quantise_model
from corepool.compiler.static.frontend.tail import find
from corepool.compiler.static.graph import Graph
from corepool.compiler.static.hostpart import check_part
from corepool.compiler.static.passes import run_passes
from corepool.errors import CalibrationError, ModelError


@dataclass(frozen=True)
class Imported:
    """A layer graph and the quantised (QDQ) ONNX model of the same network, the reference for its numbers; the host's
    first and last steps are in both."""

    graph: Graph
    qdq_model: onnx.ModelProto


def import_model(path: Path | str, calibration: Calibration | None = None) -> Imported:
    """Reads an ONNX file (float or QDQ) and builds its layer graph.

    ``calibration`` is needed for float models only: arrays [N, ...] by input name, a .npz file, or a folder; see
    ``calibration.read_calibration``.
    Raises ModelError naming all that is wrong or unsupported, and CalibrationError for missing or unfit data.
    """
    path = Path(path)
    model = load(path)
    try:
        quantised = any(p.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for p in model.graph.node)
        removed: dict[str, str] = {}
        model, head = cut(model, HANDLERS.keys(), quantised)
        if not quantised:
            model, removed = _quantise(model, calibration, head)
        graph = Builder(model).build()
        graph.removed = {**removed, **graph.removed}
        if graph.tail:
            check_part(graph.tail, "behind the last")
        if head is not None:
            graph.head, graph.head_inputs = bytes(head.model.SerializeToString()), head.inputs
            graph.host_nodes = [*head.nodes, *graph.host_nodes]
            model = head.join(model)
    except CalibrationError:
        raise
    except ModelError as error:
        raise ModelError(" ".join(f"{path}: {error}".split())) from None
    return Imported(run_passes(graph), model)


def _quantise(
    model: onnx.ModelProto, calibration: Calibration | None, head: Head | None
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The quantised model, and what became of nodes on the way. Calibration data are of the whole network's inputs."""
    tidied = FloatModel(model)
    model = tidied.run()
    Builder(model, rehearsal=True).build()
    if head is None:
        samples = read_calibration(calibration, input_shapes(model))
    else:
        shapes = {each.name: each.shape for each in head.inputs}
        samples = head.run(read_calibration(calibration, shapes, head.pixels()))
    kept_float = {"QuantizeLinear", "DequantizeLinear", "Shape", "Identity", "Dropout"}
    constants = {tensor.name for tensor in model.graph.initializer}
    last = [node.name for node in find(read_nodes(model.graph), [], HANDLERS.keys(), constants)]
    return quantise_model(model, samples, sorted(set(HANDLERS) - kept_float), last), tidied.removed
