"""`corepool rtl`: what can be done with the hardware itself.

It must not know how it is built.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from corepool.cli import output
from corepool.cli.common import JsonOption, hardware

NAME = "rtl"

app = typer.Typer(
    name=NAME,
    help="The hardware: emit Verilog.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(name="emit")
def emit(
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where to write; made if missing.")],
    config: Annotated[str, typer.Option(help="Hardware configuration: u200, large or tiny.")] = "u200",
    json: JsonOption = False,
) -> None:
    """Write the pool as Verilog, with a file list."""
    chosen = hardware(config)
    from corepool.hardware.emit import TOP
    from corepool.hardware.emit import emit as write_files

    begin = time.perf_counter()
    with output.progress(f"writing the hardware of {config}"):
        files = write_files(chosen, out)
    seconds = time.perf_counter() - begin
    if json:
        report = {"config": config, "top": TOP, "files": [str(file) for file in files], "seconds": seconds}
        output.write_json(report)
    else:
        size = sum(file.stat().st_size for file in files)
        output.write(f"{out}: {TOP} of {config}, {size:,} bytes in {len(files)} files, written in {seconds:.1f} s")
