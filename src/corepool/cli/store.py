"""`corepool store`: back up, check and restore a server's durable state.

It must not know what the state holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corepool.cli import output
from corepool.cli.common import JsonOption, group

NAME = "store"

app = group(NAME, "The server's durable state: back up, restore, accept a loss.")

Folder = Annotated[
    Path, typer.Option("--state-dir", metavar="DIR", envvar="COREPOOL_STATE_DIR", help="The server's state folder.")
]
STATE = Path("corepool-state")


@app.command(name="backup")
def backup(
    target: Annotated[Path, typer.Argument(metavar="NEW-DIR", help="Where the copy goes; must not exist.")],
    state_dir: Folder = STATE,
    json: JsonOption = False,
) -> None:
    """Copy the database and the packages in use, also while the server runs."""
    from corepool.server import store

    made = store.backup(state_dir, target)
    if json:
        output.write_json({"folder": str(made.folder), "packages": made.packages, "missing": list(made.missing)})
        return
    output.write(f"{made.folder}: the database and {made.packages} packages")
    for sha256 in made.missing:
        output.write(f"missing or damaged, so not in the copy: package {sha256}")


@app.command(name="restore")
def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `corepool store backup` made.")],
    state_dir: Folder = STATE,
    json: JsonOption = False,
) -> None:
    """Put a backup in the place of the state; stop the server first. What was there is kept beside it."""
    from corepool.server import store

    kept = store.restore(source, state_dir)
    if json:
        output.write_json({"state_dir": str(state_dir), "kept": None if kept is None else str(kept)})
        return
    output.write(f"{state_dir}: restored from {source}" + (f"; the former database is {kept}" if kept else ""))


@app.command(name="accept")
def accept(
    state_dir: Folder = STATE,
    database_url: Annotated[
        str | None, typer.Option(envvar="COREPOOL_DATABASE_URL", help="Of a PostgreSQL database.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Accept that the database has lost its last changes, or is a new one; stop the server first."""
    from corepool.server import store

    with store.Store(database_url, state_dir, accept_loss=True) as opened:
        serial, epoch = opened.serial, opened.epoch()
    if json:
        output.write_json({"state_dir": str(state_dir), "serial": serial, "epoch": epoch})
        return
    output.write(f"{state_dir}: goes on from change {serial}, epoch {epoch}")
