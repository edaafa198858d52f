"""Options and checks that several commands share.

It must not know what the commands do with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corepool.errors import CorepoolError, InputError, PackageError

if TYPE_CHECKING:
    from corepool.compiler.model import ModelPackage
    from corepool.config import HardwareConfig

META_KEYS = (
    "model", "config", "macs", "window", "inputs", "outputs", "tail_outputs", "host_nodes", "removed", "layers",
    "predicted_cycles",
)  # fmt: skip

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
PackageArgument = Annotated[Path, typer.Argument(metavar="MODEL.cpk", help="A model package made by `compile`.")]


def group(name: str, purpose: str) -> typer.Typer:
    """An empty group of verbs: without a verb it shows its help."""
    return typer.Typer(
        name=name, help=purpose, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
    )


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
    """True if both paths lead to one file, whether it exists or not."""
    try:
        return first.samefile(second)
    except OSError:
        return first.resolve() == second.resolve()


def refuse_overwriting(output: Path, *inputs: Path) -> None:
    """Raise InputError if the output would take the place of an input."""
    for source in inputs:
        if same_file(output, source):
            raise InputError(f"the output {output} would overwrite the input {source}; choose another name")


@contextmanager
def naming(path: Path, *others: Path | None) -> Iterator[None]:
    """What goes wrong inside has to do with a file: errors of the project that name none of these are made to name
    the first."""
    try:
        yield
    except CorepoolError as error:
        if any(str(each) in str(error) for each in (path, *others) if each is not None):
            raise
        raise type(error)(f"{path}: {error}") from error


def open_model(path: Path) -> tuple[ModelPackage, HardwareConfig]:
    """A package and the configuration that it was made for, which must be the one of that name here.

    Raises PackageError if the package is damaged or was made for other hardware.
    """
    from corepool.compiler.model import ModelPackage
    from corepool.config import PRESETS

    package = ModelPackage.open(path, PRESETS)
    missing = [key for key in META_KEYS if key not in package.meta]
    if missing:
        raise PackageError(f"{path}: section meta lacks {', '.join(missing)}: compile the model again")
    config = PRESETS.get(package.meta["config"])
    if config is None:
        raise PackageError(f"{path}: section meta names no configuration that there is: compile the model again")
    return package, config
