"""Backups are made while the store is in use, and put back.

It must not know how pages are copied.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from corepool.errors import StoreError
from corepool.server.store import Store, restore
from corepool.server.store.database import FILE_NAME
from support import store_work

OPS = store_work.work(seed=4, count=60)
STATES = store_work.states(OPS)


def test_a_backup_of_a_store_in_use_is_whole(tmp_path: Path) -> None:
    with Store(None, tmp_path / "state", 0) as store:
        for op in OPS[:10]:
            store_work.apply(store, op)
        writer = threading.Thread(target=lambda: [store_work.apply(store, op) for op in OPS[10:]])
        writer.start()
        for number in range(5):
            store.backup(tmp_path / f"backup{number}")
        writer.join()
        assert store_work.look(store, STATES[-1]) == STATES[-1]
    for number in range(5):
        restore(tmp_path / f"backup{number}", tmp_path / f"new{number}")
        with Store(None, tmp_path / f"new{number}", 0) as store:
            found = store_work.look(store, STATES[-1])
            epoch = found.pop("epoch")
            expected = {**STATES[store.serial], "epoch": 0}
            expected.pop("epoch")
            assert found == expected
            assert store.serial >= 10
            assert epoch > STATES[-1]["epoch"]


def test_restoring_keeps_what_was_there_and_no_epoch_comes_twice(tmp_path: Path) -> None:
    state, backup = tmp_path / "state", tmp_path / "backup"
    with Store(None, state, 0) as store:
        for op in OPS[:20]:
            store_work.apply(store, op)
        store.backup(backup)
        for op in OPS[20:]:
            store_work.apply(store, op)
        last = store.next_epochs(5000)
    damaged = b"x" + (state / FILE_NAME).read_bytes()[1:]
    (state / FILE_NAME).write_bytes(damaged)
    with pytest.raises(StoreError, match="restore a backup"):
        Store(None, state, 0)
    kept = restore(backup, state)
    assert kept is not None
    assert kept.read_bytes() == damaged
    with Store(None, state, 0) as store:
        assert store.serial == 20
        assert [row.name for row in store.tenants()] == sorted(STATES[20]["tenants"])
        assert store.next_epochs() > last + 5000
    assert restore(backup, state) not in (None, kept)


@pytest.mark.parametrize("what", ["missing", "text", "cut short", "another database", "in use"])
def test_what_is_no_backup_changes_nothing(tmp_path: Path, what: str) -> None:
    import sqlite3

    state, backup = tmp_path / "state", tmp_path / "backup"
    store = Store(None, state, 0)
    for op in OPS[:20]:
        store_work.apply(store, op)
    if what in ("cut short", "in use"):
        store.backup(backup)
    if what == "cut short":
        backup.write_bytes(backup.read_bytes()[:20000])
    elif what == "text":
        backup.write_text("hello" * 1000)
    elif what == "another database":
        other = sqlite3.connect(backup)
        other.execute("CREATE TABLE meta (name, value)")
        other.commit()
        other.close()
    if what != "in use":
        store.close()
    with pytest.raises(StoreError) as caught:
        restore(backup, state)
    assert "\n" not in str(caught.value)
    store.close()
    with Store(None, state, 0) as again:
        assert store_work.look(again, STATES[-1]) == STATES[20]
    assert not list(state.glob("*.restoring"))


def test_a_backup_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with Store(None, tmp_path / "state", 0) as store:
        with pytest.raises(StoreError, match="exists"):
            store.backup(tmp_path / "there")
        with pytest.raises(StoreError):
            store.backup(tmp_path / "no" / "folder")
    assert (tmp_path / "there").read_text() == "mine"


def test_postgresql_says_how_it_is_backed_up(database: str, tmp_path: Path) -> None:
    with Store(database, tmp_path, 0) as store, pytest.raises(StoreError, match="pg_dump"):
        store.backup(tmp_path / "backup")
