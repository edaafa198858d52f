"""Static stage: reads an ONNX model once and writes a package of tiled code.

It must not know how many cores a tenant will later be given.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corepool.config import HardwareConfig

if TYPE_CHECKING:
    from corepool.compiler.static.compile import Compiled, Progress

__all__ = ["compile_model"]


def compile_model(
    path: Path | str,
    config: HardwareConfig,
    calibration: Path | str | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Compile an ONNX file (float or QDQ) for a machine.

    ``calibration`` holds sample inputs, which float models need: a folder, a .npz file or arrays [N, ...] by input
    name. ``progress`` is
    called with what is being done and the share of the work behind it. Raises ModelError, CalibrationError.
    """
    from corepool.compiler.static.compile import compile_graph
    from corepool.compiler.static.frontend.entry import import_model

    tell = progress or (lambda what, share: None)
    started = time.perf_counter()
    tell("reading the model", 0.0)
    imported = import_model(path, calibration)
    read = time.perf_counter() - started
    made = compile_graph(imported.graph, config, lambda what, share: tell(what, 0.3 + 0.7 * share))
    made.report["stages_s"] = {"import": read, "compile": made.report.pop("compile_graph_s")}
    return made
