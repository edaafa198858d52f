"""`corepool serve`: the server, with every setting as a flag.

It must not know what the settings mean: names and texts are looked up in the server's settings when the command runs,
as loading those takes a moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corepool.cli import output
from corepool.errors import InputError

if TYPE_CHECKING:
    from corepool.server.app import Server
    from corepool.server.run import Ports
    from corepool.server.settings import Key

NAME = "serve"
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def command(
    context: typer.Context,
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", metavar="FILE.toml", envvar="COREPOOL_SETTINGS", help="Settings in a file."),
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings as a file and end.")] = False,
    help_: Annotated[bool, typer.Option("-h", "--help", help="Show this message and end.")] = False,
) -> None:
    """Serve models over REST and gRPC: many tenants on one card."""
    from corepool.server.settings import as_toml, keys, load_settings

    known = list(keys())
    if help_:
        _show_help(context, known)
        return
    settings = load_settings(settings_file, parse_flags(context.args, known))
    if print_config:
        output.write(as_toml(settings).rstrip("\n"))
        return
    import os

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it says about ports in use, we say too
    from corepool.server.app import serve

    serve(settings, _tell)


def parse_flags(arguments: Sequence[str], known: Sequence[Key]) -> dict[tuple[str, ...], Any]:
    """Values by the settings' paths, from --flag value or --flag=value. Raises InputError."""
    by_flag = {key.flag: key for key in known}
    given: dict[tuple[str, ...], Any] = {}
    left = list(arguments)
    while left:
        flag, equals, value = left.pop(0).partition("=")
        off = flag.startswith("--no-") and f"--{flag[5:]}" in by_flag
        key = by_flag.get(f"--{flag[5:]}" if off else flag)
        if key is None or (off and not key.is_flag):
            raise InputError(f"there is no option {flag} (see 'corepool serve --help')")
        if key.is_flag:
            value = value if equals else str(not off).lower()
        elif not equals:
            if not left:
                raise InputError(f"{flag} needs a value")
            value = left.pop(0)
        given[key.path] = value
    return given


def _show_help(context: typer.Context, known: Sequence[Key]) -> None:
    lines = [
        f"Usage: {context.command_path} [--settings FILE.toml] [--print-config] [settings]",
        "",
        "  Serve models over REST and gRPC: many tenants on one card.",
        "",
        "Options:",
        f"  {'--settings FILE.toml':<32}Settings in a file; --print-config shows its form",
        f"  {'--print-config':<32}Print the settings as a file and end",
        f"  {'-h, --help':<32}Show this message and end",
        "",
        "Settings, each also a key of the file and COREPOOL_... in the environment ([default]):",
    ]
    for key in known:
        name = key.flag if key.is_flag else f"{key.flag} {key.path[-1].rpartition('_')[2].upper()}"
        default = "" if key.default is None else f" [{key.default}]"
        lines.append(f"  {name:<38} {key.description}{default}")
    output.write("\n".join(lines))


def _tell(server: Server, ports: Ports) -> None:
    if server.first_key is not None:
        place = server.settings.state_dir / "admin.key"
        output.write(f"operators' key, also in {place}: {server.first_key.text}")
    output.write(
        f"corepool serves {server.settings.config} ({server.settings.device}): REST http://{ports.host}:{ports.rest}"
        f" - gRPC {ports.host}:{ports.grpc} - metrics http://{ports.host}:{ports.metrics}/metrics"
    )
