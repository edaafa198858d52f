"""The process that reads one uploaded model and makes a package of it, behind limits: python -m <this module>.

It must not know the server. It reads one JSON object from stdin (source, calibration or null, config, output, bounds)
and writes JSON lines to stdout: progress, and at the end what was made or what is wrong.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from corepool.errors import ConfigMismatchError, CorepoolError, PackageError
from corepool.server.sandbox import Bounds, confine

TAIL_BYTES = 64 << 20
TAIL_NODES = 1000


def main() -> int:
    """Do the one job that stdin names."""
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print must not be taken for our lines

    def tell(**values: Any) -> None:
        out.write(json.dumps(values) + "\n")
        out.flush()

    try:
        tell(barriers=confine(Bounds(**job["bounds"])))
        tell(done=_work(job, lambda what, share: tell(stage=what, progress=round(share, 4))))
    except CorepoolError as error:
        tell(error=str(error), kind=type(error).__name__)
    except MemoryError:
        tell(error=f"compiling took more than {job['bounds']['memory_bytes']} bytes of memory", kind="ModelError")
    except OSError as error:
        tell(error=f"{error.filename or 'a file'}: {error.strerror or error}", kind="ModelError")
    except RecursionError:
        tell(error="the model is nested too deep", kind="ModelError")
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        tell(error=f"the compiler met a model that it cannot digest ({type(error).__name__})", kind="ModelError")
    return 0


def _work(job: dict[str, Any], tell: Any) -> dict[str, Any]:
    from corepool.config import preset

    config, source, output = preset(job["config"]), Path(job["source"]), Path(job["output"])
    if source.suffix == ".cpk":
        meta = check_package(source, job["config"], tell)
        with source.open("rb") as read, output.open("xb") as write:
            while block := read.read(1 << 20):
                write.write(block)
    else:
        from corepool.compiler.static import compile_model

        calibration = None if job["calibration"] is None else Path(job["calibration"])
        made = compile_model(source, config, calibration, tell)
        made.save(output)
        meta = made.package.meta
    return {"layers": len(meta["layers"]), "macs": meta["macs"], "host_nodes": meta["host_nodes"]}


def check_package(path: Path, config_name: str, tell: Any) -> dict[str, Any]:
    """The meta section of a package that somebody else compiled. Raises PackageError, ConfigMismatchError.

    Its host parts are models that will run in the server: only operators that the compiler puts there may be in them.
    """
    from corepool.compiler.dynamic.linker import link
    from corepool.compiler.model import ModelPackage
    from corepool.config import PRESETS

    tell("checking", 0.1)
    package = ModelPackage.open(path, PRESETS)
    meta = package.meta
    if meta.get("config") != config_name:
        raise ConfigMismatchError(
            f"the package was made for {str(meta.get('config'))[:40]!r}, the card is {config_name!r}: compile it again"
        )
    config = PRESETS[config_name]
    for part in filter(None, (package.head, package.tail)):
        check_host_part(part)
    if package.head or package.tail:
        tell("host part", 0.4)
        from corepool.runtime.tail import HostSteps

        HostSteps.of(package)
    tell("linking", 0.6)
    for cores in (1, config.cores):
        link(package, range(cores), config)
    return meta


def check_host_part(model: bytes) -> None:
    """Raise PackageError unless a host part is as the compiler makes them: small, known operators, no files."""
    from corepool.compiler.static.hostpart import complaint

    if len(model) > TAIL_BYTES:
        raise PackageError(f"the host's part of the package has {len(model)} bytes; {TAIL_BYTES} are the most")
    found = complaint(model, TAIL_NODES)
    if found:
        raise PackageError(f"the host's part of the package {found}: compile it again")


if __name__ == "__main__":
    sys.exit(main())
