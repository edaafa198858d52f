"""`corepool run`: one inference of a package on some cores of a card, simulated or in its own Verilog.

It must not know how devices execute anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corepool.cli import devices, output
from corepool.cli.common import (
    JsonOption,
    PackageArgument,
    check_cores,
    naming,
    open_model,
    refuse_overwriting,
    same_file,
)
from corepool.errors import InputError
from corepool.files import require_writable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from corepool.compiler.model import ModelPackage
    from corepool.config import HardwareConfig
    from corepool.device.base import Device
    from corepool.runtime.session import Result

    Inputs = Mapping[str, npt.NDArray[np.generic]]

NAME = "run"

WARM_UP = 3


def command(
    model: PackageArgument,
    cores: Annotated[int, typer.Option(metavar="N", help="How many cores to run on.")],
    input_file: Annotated[Path | None, typer.Option("--input", metavar="IN.npz", help="Inputs by ONNX name.")] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", metavar="OUT.npz", help="Where to put the outputs (by ONNX name).")
    ] = None,
    timing_only: Annotated[bool, typer.Option("--timing-only", help="Count cycles, compute nothing.")] = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="T.json", help="Write what each unit did when (Chrome, Perfetto).")
    ] = None,
    device: devices.DeviceOption = devices.SIMULATOR,
    json: JsonOption = False,
) -> None:
    """Run a package once on N cores and tell how long it takes."""
    package, config = open_model(model)
    check_cores(cores, config)
    devices.check_device(device)
    if trace is not None and device != devices.SIMULATOR:
        raise InputError(f"--trace needs --device {devices.SIMULATOR}: the hardware does not tell what ran when")
    if input_file is None and not timing_only:
        raise InputError("--input IN.npz is missing (only --timing-only runs without)")
    if timing_only and output_file is not None:
        raise InputError("--timing-only computes nothing, so there are no outputs for --output")
    sources = [model, *([] if input_file is None else [input_file])]
    for target in (output_file, trace):
        if target is not None:
            require_writable(target)
            refuse_overwriting(target, *sources)
    if output_file is not None and trace is not None and same_file(output_file, trace):
        raise InputError(f"--output and --trace name the same file {trace}; choose another name for one of them")
    with naming(model, input_file):
        inputs = _read_inputs(package, config, input_file)
    opened = devices.open_device(device, config, (lambda _: None) if json else output.write, data=not timing_only)
    with naming(model, input_file):
        result, report = _run(opened, package, cores, inputs, timing_only, trace)
    report["device"] = device
    if output_file is not None:
        from corepool.runtime.outputs import write_npz

        write_npz(output_file, result.outputs)
    if json:
        output.write_json(report)
    else:
        _show(report, output_file, trace)


def _read_inputs(package: ModelPackage, config: HardwareConfig, input_file: Path | None) -> Inputs | None:
    from corepool.runtime.inputs import read_npz
    from corepool.runtime.tail import users_inputs

    ports = users_inputs(package, config.channels)
    return None if input_file is None else read_npz(input_file, ports)


def _run(
    device: Device, package: ModelPackage, cores: int, inputs: Inputs | None, timing_only: bool, trace: Path | None
) -> tuple[Result, dict[str, Any]]:
    """Carry out one inference and measure it."""
    from corepool.compiler.dynamic.linker import link
    from corepool.runtime.session import Session, save_trace

    config = device.config
    for _ in range(WARM_UP):  # the first call loads compiled code; the time reported is that of a warm one
        link(package, range(cores), config)
    with output.progress("running") as show:
        show("linking", 0.1)
        with Session(device, package, range(cores), data=not timing_only) as session:
            expected = package.meta["predicted_cycles"][cores - 1]
            session.start(inputs)
            while session.running:  # in pieces, so that progress is seen and requests to end are heard
                show(f"{device.cycle:,} cycles", 0.2 + 0.7 * min(device.cycle / expected, 1))
                session.advance(max(expected // 100, 1))
            result = session.finish()
            placement = session.placement
            if trace is not None:
                show("writing the trace", 0.9)
                save_trace(trace, config, [session.traced(package.meta["model"])])
    return result, _report(package, config, cores, result, placement.link_ms, placement.stream_bytes)


def _report(
    package: ModelPackage, config: HardwareConfig, cores: int, result: Result, link_ms: float, stream_bytes: int
) -> dict[str, Any]:
    cycles = result.completion.cycles
    return {
        "model": package.meta["model"],
        "config": config.name,
        "cores": cores,
        "dynamic_compile_ms": link_ms,
        "cycles": cycles,
        "predicted_cycles": package.meta["predicted_cycles"][cores - 1],
        "latency_ms": cycles / config.clock_hz * 1e3,
        "fps": config.clock_hz / cycles,
        "share_of_peak": package.meta["macs"] / (cycles * cores * config.macs_per_cycle),
        "ddr_bytes": result.ddr_bytes,
        "instructions": sum(result.counters.instructions),
        "stream_bytes": stream_bytes,
        "outputs": {name: list(value.shape) for name, value in result.outputs.items()},
    }


def _show(report: dict[str, Any], output_file: Path | None, trace: Path | None) -> None:
    lines: dict[str, object] = {
        "dynamic compilation": f"{report['dynamic_compile_ms']:.3f} ms",
        "cycles": f"{report['cycles']:,} (predicted {report['predicted_cycles']:,})",
        "latency": f"{report['latency_ms']:.3f} ms",
        "frames per second": f"{report['fps']:.1f}",
        "share of peak": f"{report['share_of_peak'] * 100:.1f} %",
        "DDR traffic": f"{report['ddr_bytes'] / 2**20:.2f} MiB",
    }
    if output_file is not None:
        lines["outputs"] = f"{output_file}: {', '.join(f'{name} {shape}' for name, shape in report['outputs'].items())}"
    if trace is not None:
        lines["trace"] = f"{trace} (open it in ui.perfetto.dev)"
    where = f"{report['cores']} cores of {report['config']}, {report['device']}"
    output.show(output.facts(f"{report['model']} on {where}", lines))
