"""Options and checks that several commands share.

It must not know what the commands do with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corepool.errors import InputError, PackageError

if TYPE_CHECKING:
    from corepool.config import HardwareConfig

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
PackageArgument = Annotated[Path, typer.Argument(metavar="MODEL.cpk", help="A model package made by `compile`.")]


def hardware(name: str) -> HardwareConfig:
    """A hardware configuration by name; raises ConfigError."""
    from corepool.config import preset

    return preset(name)


def check_cores(cores: int, config: HardwareConfig) -> int:
    """``cores`` if the configuration has so many; raises InputError."""
    if not 1 <= cores <= config.cores:
        raise InputError(f"--cores must be 1 to {config.cores} for configuration {config.name!r}, not {cores}")
    return cores


def same_file(first: Path, second: Path) -> bool:
    """True if both paths lead to one existing file."""
    try:
        return first.samefile(second)
    except OSError:
        return False


def refuse_overwriting(output: Path, *inputs: Path) -> None:
    """Raise InputError if the output would take the place of an input."""
    for source in inputs:
        if same_file(output, source):
            raise InputError(f"the output {output} would overwrite the input {source}; choose another name")


def unknown_config(name: str) -> PackageError:
    """A package made for a configuration that is not among the presets."""
    return PackageError(f"the package was made for the hardware configuration {name!r}, which is unknown here")
