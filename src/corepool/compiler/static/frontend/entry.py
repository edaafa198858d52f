"""The one way in: an ONNX file to a layer graph and the quantised model that it stands for.

It must not know how the steps work; it names their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from corepool.compiler.static.frontend.build import Builder
from corepool.compiler.static.frontend.load import load
from corepool.compiler.static.graph import Graph
from corepool.compiler.static.passes import run_passes


@dataclass(frozen=True)
class Imported:
    """A layer graph and the quantised (QDQ) ONNX model of the same network, the reference for its numbers."""

    graph: Graph
    qdq_model: onnx.ModelProto


def import_model(path: Path | str, calibration: object = None, fold_stem: bool = True) -> Imported:
    """Reads ``path`` and builds its layer graph. Raises ModelError, or CalibrationError for float models without data."""
    model = load(Path(path))
    graph = run_passes(Builder(model).build(), fold_stem=fold_stem)
    return Imported(graph, model)
