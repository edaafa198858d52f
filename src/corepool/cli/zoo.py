"""`corepool zoo`: writes an example network as ONNX.

It must not know how networks are made.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from corepool.cli import output
from corepool.cli.common import JsonOption
from corepool.files import require_writable

NAME = "zoo"


def command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="vgg16, resnet50, inception_v3, mobilenet_v1, mobilenet_v2")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.onnx", help="Where to write the network.")],
    seed: Annotated[int, typer.Option(help="Of the drawn weights (mobilenet_v2 has trained ones).")] = 0,
    json: JsonOption = False,
) -> None:
    """Write an example network as an ONNX file."""
    from corepool import zoo

    require_writable(out)
    begin = time.perf_counter()
    with output.progress(f"writing {name}") as show:
        zoo.write(name, out, seed=seed, progress=lambda done, steps: show(f"{done}/{steps}", done / max(steps, 1)))
    seconds, size = time.perf_counter() - begin, out.stat().st_size
    if json:
        output.write_json({"name": name, "path": str(out), "bytes": size, "seed": seed, "seconds": seconds})
    else:
        output.write(f"{out}: {name}, {size:,} bytes, written in {seconds:.1f} s")
