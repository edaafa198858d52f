"""An ONNX file to a compiled model, as the commands need it: import, then compile.

It must not know how either works.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from corepool.cli.output import Progress

if TYPE_CHECKING:
    from corepool.compiler.static.compile import Compiled
    from corepool.config import HardwareConfig

IMPORT_SHARE = 0.5  # of the time, as the progress bar shows it: float networks are calibrated and quantised meanwhile


def compile_model(path: Path, config: HardwareConfig, calibration: Path | None, progress: Progress) -> Compiled:
    """Import and compile a network. Raises ModelError, CalibrationError and OSError."""
    progress("reading", 0.0)
    from corepool.compiler.static.compile import compile_graph
    from corepool.compiler.static.frontend import import_model

    progress("reading and quantising", 0.02)
    imported = import_model(path, calibration=calibration)

    def rest(what: str, share: float) -> None:
        progress(what, IMPORT_SHARE + (1 - IMPORT_SHARE) * share)

    return compile_graph(imported.graph, config, rest)
