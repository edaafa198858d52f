"""Brings a store's schema up to date with Alembic, and refuses one that is newer than the code.

It must not know what the tables mean. Alembic is loaded only when there is something to do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from corepool.errors import StoreError
from corepool.server.store.database import Database

KNOWN = ("0001", "0002")
HEAD = KNOWN[-1]
FOLDER = Path(__file__).with_name("migrations")


def version_of(connection: Connection) -> str | None:
    """The schema's version; None for an empty database."""
    names = set(inspect(connection).get_table_names())
    if "alembic_version" in names:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
        return str(found[0]) if found else None
    if names & {"meta", "tenants", "leases", "journal"}:
        raise StoreError("tables are there, but not the schema version: restore a backup")
    return None


def migrate(database: Database, finish: Callable[[], None]) -> str | None:
    """Upgrade to HEAD. Returns the version before if anything was done, "" for a new store.

    ``finish`` is called at the end of the transaction that does it, so that nothing in between is ever seen. A SQLite
    file is copied first, to <file>.<version>.bak. Raises StoreError for a schema that this code does not know.
    """
    with database.connection.begin():
        found = version_of(database.connection)
    if found == HEAD:
        return None
    if found is not None and found not in KNOWN:
        raise StoreError(
            f"the store {database.where} has schema {found}, newer than {HEAD}, which this version knows: "
            "install the newer version, or restore a backup"
        )
    if found is not None and database.file is not None:
        copy(database.handle, database.file.with_name(f"{database.file.name}.{found}.bak"))
    upgrade(database.connection, finish=finish)
    return found or ""


def upgrade(connection: Connection, target: str = HEAD, finish: Callable[[], None] | None = None) -> None:
    """Run the migrations up to ``target``, and ``finish``, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    with connection.begin():
        command.upgrade(config, target)
        if finish is not None:
            finish()


def copy(handle: Any, target: Path) -> None:
    """Copy a SQLite database, also while it is in use."""
    target.unlink(missing_ok=True)
    copied = sqlite3.connect(target)
    try:
        handle.backup(copied)
    finally:
        copied.close()
    target.chmod(0o600)
