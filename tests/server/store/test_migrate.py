"""Older schemas are brought up to date, newer ones refused.

It must not know more of the tables than a migration changes.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import MetaData, inspect

from corepool.errors import StoreError
from corepool.server.store import AuditRow, Store, migrate, schema
from corepool.server.store.database import FILE_NAME, Database, parse_url
from support import store_work

OPS = store_work.work(seed=2, count=30)
STATES = store_work.states(OPS)


def run(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as handle:
        for statement in statements:
            handle.execute(statement)
        handle.commit()


def make_older(url: str | None, folder: Path) -> None:
    """A store of the first schema, with rows in it."""
    folder.mkdir()
    database = Database(parse_url(url, folder))
    migrate.upgrade(database.connection, "0001", Store._finish_migration.__get__(_Half(database)))
    database.close()


class _Half:
    """What a store has of itself while its tables are made."""

    def __init__(self, database: Database) -> None:
        self._database = database

    _read_meta = Store._read_meta
    _schema_digest = Store._schema_digest

    def _first_epoch(self) -> int:
        return 0


def append_only(store: Store) -> bool:
    store.audit(AuditRow("op", "", "x"))
    try:
        with store._database.connection.begin():
            store._database.connection.exec_driver_sql("UPDATE audit SET actor = 'y'")
    except Exception as error:
        return "append-only" in str(error)
    return False


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_older_store_is_migrated(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    url = None if kind == "sqlite" else request.getfixturevalue("database")
    make_older(url, tmp_path / "state")
    with Store(url, tmp_path / "state", 0) as store:
        assert store.migrated_from == "0001"
        assert append_only(store)
        for op in OPS[:5]:
            store_work.apply(store, op)
    with Store(url, tmp_path / "state", 0) as store:
        assert store.migrated_from is None


def test_rows_survive_and_a_copy_is_kept(tmp_path: Path) -> None:
    make_older(None, tmp_path / "state")
    file = tmp_path / "state" / FILE_NAME
    seal = schema.sealed(schema.meta, {"name": "epoch", "value": "77"})["seal"]
    run(file, f"UPDATE meta SET value = '77', seal = '{seal}' WHERE name = 'epoch'")
    with Store(None, tmp_path / "state", 0) as store:
        assert store.next_epochs() == 78
    with closing(sqlite3.connect(f"{file}.0001.bak")) as handle:
        assert handle.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        assert handle.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchall() == [("77",)]


def test_a_failing_migration_leaves_the_older_store(tmp_path: Path) -> None:
    make_older(None, tmp_path / "state")
    file = tmp_path / "state" / FILE_NAME
    run(file, "CREATE TABLE blocker (x)", "CREATE TRIGGER audit_no_delete AFTER INSERT ON blocker BEGIN SELECT 1; END")
    with pytest.raises(StoreError) as caught:
        Store(None, tmp_path / "state", 0)
    assert "\n" not in str(caught.value)
    with closing(sqlite3.connect(file)) as handle:
        assert handle.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        assert handle.execute("SELECT name FROM sqlite_master WHERE name = 'audit_no_update'").fetchall() == []
    run(file, "DROP TABLE blocker")
    Store(None, tmp_path / "state", 0).close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_newer_store_is_refused(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    url = None if kind == "sqlite" else request.getfixturevalue("database")
    with Store(url, tmp_path, 0) as store, store._database.connection.begin():
        store._database.connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"schema 9999, newer than .* install the newer version"):
        Store(url, tmp_path, 0)
    assert not list(tmp_path.glob("*.bak"))


def test_a_store_without_its_version_is_refused(tmp_path: Path) -> None:
    Store(None, tmp_path, 0).close()
    run(tmp_path / FILE_NAME, "DROP TABLE alembic_version")
    with pytest.raises(StoreError, match="schema version"):
        Store(None, tmp_path, 0)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_migrations_make_the_tables_that_the_code_uses(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    url = None if kind == "sqlite" else request.getfixturevalue("database")
    with Store(url, tmp_path, 0) as store:
        made = MetaData()
        made.reflect(store._database.connection)
        indices = {
            name: {each["name"] for each in inspect(store._database.connection).get_indexes(name)}
            for name in made.tables
        }
    assert set(made.tables) == {*schema.metadata.tables, "alembic_version"}
    for name, table in schema.metadata.tables.items():
        found = made.tables[name]
        assert [column.name for column in found.columns] == [column.name for column in table.columns], name
        assert [column.nullable for column in found.columns] == [column.nullable for column in table.columns], name
        assert found.primary_key.columns.keys() == table.primary_key.columns.keys(), name
        assert {each.target_fullname for each in found.foreign_keys} == {
            each.target_fullname for each in table.foreign_keys
        }
        assert {index.name for index in table.indexes} <= indices[name]


def test_versions_known_are_the_files_shipped() -> None:
    shipped = sorted(path.stem[1:5] for path in (migrate.FOLDER / "versions").glob("v*.py"))
    assert shipped == list(migrate.KNOWN)
