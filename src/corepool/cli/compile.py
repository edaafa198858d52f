"""`corepool compile`: turns an ONNX file into a model package, once for any number of cores.

It must not know how compilation works.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from corepool.cli import output
from corepool.cli.common import JsonOption, hardware, naming, refuse_overwriting
from corepool.files import require_writable

NAME = "compile"


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A float or quantised (QDQ) network.")],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="MODEL.cpk", help="Where to write the package.")],
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER_OR_NPZ", help="Sample inputs; float networks need them for their ranges."),
    ] = None,
    config: Annotated[str, typer.Option(help="Hardware configuration: u200, large or tiny.")] = "u200",
    json: JsonOption = False,
) -> None:
    """Compile a network to a model package that runs on any number of cores."""
    chosen = hardware(config)
    require_writable(out)
    refuse_overwriting(out, model, *([] if calibration is None else [calibration]))
    from corepool.compiler.static import compile_model

    begin = time.perf_counter()
    with naming(model, calibration), output.progress("compiling") as show:
        made = compile_model(model, chosen, calibration, show)
    seconds = time.perf_counter() - begin
    made.save(out)
    report = summary(made.report, made.package.meta, out, seconds)
    if json:
        output.write_json(report)
    else:
        _show(report)


def summary(report: dict[str, Any], meta: dict[str, Any], path: Path, seconds: float) -> dict[str, Any]:
    """The report of a compilation under the names that `--json` promises."""
    return {
        "model": meta["model"],
        "config": meta["config"],
        "output": str(path),
        "static_compile_s": seconds,
        "layers": len(meta["layers"]),
        "macs": meta["macs"],
        "host_nodes": meta["host_nodes"],
        "removed": meta["removed"],
        "package_bytes": path.stat().st_size,
        "weights_bytes": meta["window"]["weights_bytes"],
        "predicted_cycles": predicted(meta),
        "stages_s": report["stages_s"],
    }


def predicted(meta: dict[str, Any]) -> dict[int, int]:
    """Predicted cycles by number of cores, as far as the configuration has cores."""
    cores = hardware(meta["config"]).cores
    return dict(zip(range(1, cores + 1), meta["predicted_cycles"], strict=False))


def _show(report: dict[str, Any]) -> None:
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["stages_s"].items())
    output.show(
        output.facts(
            f"{report['model']} compiled for {report['config']}",
            {
                "package": report["output"],
                "time": f"{report['static_compile_s']:.1f} s ({stages})",
                "layers": report["layers"],
                "work": f"{report['macs'] / 1e9:.3f} GMAC",
                "package size": f"{report['package_bytes'] / 2**20:.1f} MiB",
                "folded or fused": f"{len(report['removed'])} nodes",
                "on the host": ", ".join(f"{node['name']} ({node['op']})" for node in report["host_nodes"])
                or "nothing",
            },
        ),
        "",
        predictions(report["config"], report["predicted_cycles"]),
    )


def predictions(config: str, cycles: dict[int, int]) -> Any:
    """A table of predicted cycles and frames/s for each number of cores."""
    clock = hardware(config).clock_hz
    first = next(iter(cycles.values()))
    rows = [(n, each, each / clock * 1e3, clock / each, first / each) for n, each in cycles.items()]
    return output.table("predicted", ("cores", "cycles", "latency ms", "frames/s", "speed-up"), rows, left=0)
