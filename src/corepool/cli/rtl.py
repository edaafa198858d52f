"""`corepool rtl`: what can be done with the hardware itself.

It must not know how it is built.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from corepool.cli import output
from corepool.cli.common import JsonOption, group, hardware
from corepool.errors import InputError

NAME = "rtl"

app = group(NAME, "The hardware: emit Verilog, synthesise it.")


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


@app.command(name="synth")
def synth(
    config: Annotated[
        str, typer.Option(help="Hardware configuration: u200, large or tiny.", show_default="u200; tiny with --ecp5")
    ] = "",
    block: Annotated[str, typer.Option(help="What to synthesise: pool, core, or a part of them.")] = "pool",
    ecp5: Annotated[
        bool,
        typer.Option(
            "--ecp5",
            help="Place and route the pool for a Lattice ECP5-85K, down to a bitstream; of tiny two cores on one bank, "
            "unless told otherwise, since more do not fit.",
        ),
    ] = False,
    cores: Annotated[int, typer.Option(min=0, help="Other than the configuration's number of cores.")] = 0,
    banks: Annotated[int, typer.Option(min=0, help="Other than the configuration's number of banks.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the placement for ECP5.")] = 1,
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where results go; made if missing.")
    ] = Path("synth-out"),
    json: JsonOption = False,
) -> None:
    """Synthesise for Xilinx UltraScale+, or make a bitstream for a Lattice ECP5. Takes minutes."""
    config = config or ("tiny" if ecp5 else "u200")
    if ecp5 and config == "tiny" and not cores and not banks:
        cores, banks = 2, 1
    chosen = hardware(config)
    if cores or banks:
        config = f"{config}-{cores or chosen.cores}x{banks or chosen.banks}"
        chosen = replace(chosen, name=config, cores=cores or chosen.cores, banks=banks or chosen.banks)
    from corepool.files import replacing
    from corepool.hardware.synth import synthesise
    from corepool.hardware.synth_ecp5 import place_and_route

    if ecp5 and block != "pool":
        raise InputError(f"--ecp5 takes the whole pool, not block {block!r}")
    out.mkdir(parents=True, exist_ok=True)
    with output.progress("synthesis") as show:

        def tell(what: str) -> None:
            if sys.stderr.isatty():
                show(what, 0.0)
            else:
                print(what, file=sys.stderr, flush=True)

        result = place_and_route(chosen, out, tell, seed) if ecp5 else synthesise(chosen, block, tell)
    name = "ecp5" if ecp5 else config if block == "pool" else f"{config}-{block}"
    with replacing(out / f"{name}.json") as file:
        file.write((dumps(result, indent=1) + "\n").encode())
    if json:
        output.write_json(result | {"file": str(out / f"{name}.json")})
        return
    sums = result["used"] | {"MHz": result["megahertz"]} if ecp5 else result["total"]
    output.show(output.facts(f"{config} {block} on {'ECP5' if ecp5 else 'UltraScale+'}", sums))
    output.write(f"{result['seconds']:.0f} s. Result: {out / f'{name}.json'}")
