"""The one way in: an ONNX file to a layer graph and the quantised model that it stands for.

It must not know how the steps work; it names their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from corepool.compiler.static.frontend.build import HANDLERS, Builder
from corepool.compiler.static.frontend.calibration import Calibration, input_shapes, read_calibration
from corepool.compiler.static.frontend.load import load
from corepool.compiler.static.frontend.prepare import FloatModel
from corepool.compiler.static.frontend.quantise import quantise_model
from corepool.compiler.static.graph import Graph
from corepool.compiler.static.passes import run_passes
from corepool.errors import CalibrationError, ModelError


@dataclass(frozen=True)
class Imported:
    """A layer graph and the quantised (QDQ) ONNX model of the same network, the reference for its numbers."""

    graph: Graph
    qdq_model: onnx.ModelProto


def import_model(path: Path | str, calibration: Calibration | None = None, fold_stem: bool = True) -> Imported:
    """Reads an ONNX file (float or QDQ) and builds its layer graph.

    ``calibration`` is needed for float models only: arrays [N, ...] by input name, a .npz file, or a folder; see
    ``calibration.read_calibration``. ``fold_stem`` packs kernel columns of a first convolution into channels.
    Raises ModelError naming all that is wrong or unsupported, and CalibrationError for missing or unfit data.
    """
    path = Path(path)
    model = load(path)
    try:
        quantised = any(p.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for p in model.graph.node)
        removed: dict[str, str] = {}
        if not quantised:
            model, removed = _quantise(model, calibration)
        graph = Builder(model).build()
        graph.removed = {**removed, **graph.removed}
    except CalibrationError:
        raise
    except ModelError as error:
        raise ModelError(" ".join(f"{path}: {error}".split())) from None
    return Imported(run_passes(graph, fold_stem=fold_stem), model)


def _quantise(model: onnx.ModelProto, calibration: Calibration | None) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The quantised model, and what became of nodes on the way."""
    tidied = FloatModel(model)
    model = tidied.run()
    Builder(model, rehearsal=True).build()
    samples = read_calibration(calibration, input_shapes(model))
    kept_float = {"QuantizeLinear", "DequantizeLinear", "Shape", "Identity", "Dropout"}
    return quantise_model(model, samples, sorted(set(HANDLERS) - kept_float)), tidied.removed
