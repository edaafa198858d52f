"""Backups are made while the store is in use, and put back.

It must not know how pages are copied.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from corepool.errors import StoreError
from corepool.server.store import ModelRow, Store, TenantRow, backup, restore
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
            backup(tmp_path / "state", tmp_path / f"backup{number}")
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
    state, made = tmp_path / "state", tmp_path / "backup"
    with Store(None, state, 0) as store:
        for op in OPS[:20]:
            store_work.apply(store, op)
        backup(state, made)
        for op in OPS[20:]:
            store_work.apply(store, op)
        last = store.next_epochs(5000)
    damaged = b"x" + (state / FILE_NAME).read_bytes()[1:]
    (state / FILE_NAME).write_bytes(damaged)
    with pytest.raises(StoreError, match="restore a backup"):
        Store(None, state, 0)
    kept = restore(made, state)
    assert kept is not None
    assert kept.read_bytes() == damaged
    with Store(None, state, 0) as store:
        assert store.serial == 20
        assert [row.name for row in store.tenants()] == sorted(STATES[20]["tenants"])
        assert store.next_epochs() > last + 5000
    assert restore(made, state) not in (None, kept)


@pytest.mark.parametrize("what", ["missing", "text", "cut short", "another database", "in use"])
def test_what_is_no_backup_changes_nothing(tmp_path: Path, what: str) -> None:
    import sqlite3

    state, made = tmp_path / "state", tmp_path / "backup"
    store = Store(None, state, 0)
    for op in OPS[:20]:
        store_work.apply(store, op)
    if what in ("cut short", "in use"):
        backup(state, made)
    if what == "cut short":
        (made / FILE_NAME).write_bytes((made / FILE_NAME).read_bytes()[:20000])
    elif what == "text":
        made.write_text("hello" * 1000)
    elif what == "another database":
        other = sqlite3.connect(made)
        other.execute("CREATE TABLE meta (name, value)")
        other.commit()
        other.close()
    if what != "in use":
        store.close()
    with pytest.raises(StoreError) as caught:
        restore(made, state)
    assert "\n" not in str(caught.value)
    store.close()
    with Store(None, state, 0) as again:
        assert store_work.look(again, STATES[-1]) == STATES[20]
    assert not list(state.glob("*.restoring"))


def test_a_backup_never_overwrites_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("mine")
    with Store(None, tmp_path / "state", 0):
        with pytest.raises(StoreError, match="exists"):
            backup(tmp_path / "state", tmp_path / "there")
        with pytest.raises(StoreError):
            backup(tmp_path / "state", tmp_path / "file" / "below")
        with pytest.raises(StoreError, match="no SQLite store"):
            backup(tmp_path / "nowhere", tmp_path / "made")
    (tmp_path / "state" / FILE_NAME).write_bytes(b"damaged" * 5000)
    with pytest.raises(StoreError) as caught:
        backup(tmp_path / "state", tmp_path / "made")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()
    assert list((tmp_path / "there").iterdir()) == []
    assert (tmp_path / "file").read_text() == "mine"


def test_packages_travel_with_the_backup(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"good")
    (tmp_path / "bad").write_bytes(b"bad")
    with Store(None, tmp_path / "state", 0) as store:
        store.put_tenant(TenantRow("a", 1))
        good, bad, unused = (store.packages.add(tmp_path / name) for name in ("good", "bad", "state/lock"))
        for name, sha256 in (("g", good), ("b", bad), ("n", "0" * 64)):
            store.put_model(ModelRow("a", name, "1", sha256))
        store.packages.path(bad).write_bytes(b"wrong")
        made = backup(tmp_path / "state", tmp_path / "made")
    assert (made.packages, set(made.missing)) == (1, {bad, "0" * 64})
    restore(tmp_path / "made", tmp_path / "new")
    with Store(None, tmp_path / "new", 0) as store:
        assert [row.name for row in store.models()] == ["b", "g", "n"]
        assert store.packages.check(good).read_bytes() == b"good"
        assert not store.packages.path(unused).exists()


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from corepool.cli.main import invoke

    state, made = str(tmp_path / "state"), str(tmp_path / "made")
    with Store(None, state, 0) as store:
        store.put_tenant(TenantRow("a", 1))
        assert invoke(["store", "backup", made, "--state-dir", state]) == 0
        assert invoke(["store", "restore", made, "--state-dir", state]) == 2
        assert "in use by another server" in capsys.readouterr().err
        store.put_tenant(TenantRow("b", 1))
    assert invoke(["store", "restore", made, "--state-dir", state, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"].endswith("replaced1")
    with Store(None, state, 0) as store:
        assert [row.name for row in store.tenants()] == ["a"]
    (tmp_path / "state" / FILE_NAME).unlink()
    assert invoke(["store", "accept", "--state-dir", state, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epoch"] > 1_000_000
    assert invoke(["store", "backup", made, "--state-dir", state]) == 2
    assert "exists" in capsys.readouterr().err
