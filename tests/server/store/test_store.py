"""What is put into a store is found again, on both databases.

It must not know files, pages or crashes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from corepool.errors import ConfigError, ConflictError, NotFoundError, RequestError, StoreError
from corepool.server.store import DONE, VOID, AuditRow, KeyRow, LeaseRow, ModelRow, Store, TenantRow
from corepool.server.store import transaction as limits
from support import store_work

Opener = Callable[[], Store]


def test_work_is_found_after_opening_anew(opener: Opener) -> None:
    ops = store_work.work(seed=1, count=120)
    states = store_work.states(ops)
    store = opener()
    for op, state in zip(ops, states[1:], strict=True):
        store_work.apply(store, op)
        if len(state["audit"]) % 10 == 0:
            assert store_work.look(store, states[-1]) == state
    assert {op[0] for op in ops} == {"tenant", "key", "lease", "drop", "model", "intend", "done"}
    serial = store.serial
    store.close()
    again = opener()
    assert store_work.look(again, states[-1]) == states[-1]
    assert again.serial == serial


def test_rows_keep_every_value(store: Store) -> None:
    tenant = TenantRow("a", 1 << 40, -5, 0.1, 7, None, 3)
    lease = LeaseRow("a", "ö/ü", 1, 2, "public", "layer", 1e-7, "queued", 9, (3, 1), "m", {"deep": [1, {"x": None}]})
    store.put_tenant(tenant)
    store.put_lease(lease)
    store.put_key(KeyRow("id", "a", "h", "label", "revoked", "2026"))
    store.put_model(ModelRow("a", "m", "1", "0" * 64, {"y": 2.5}))
    assert store.tenant("a") == tenant
    assert store.lease("a", "ö/ü") == lease
    assert store.keys() == [KeyRow("id", "a", "h", "label", "revoked", "2026")]
    assert store.models("a") == [ModelRow("a", "m", "1", "0" * 64, {"y": 2.5})]
    assert store.models("b") == []


def test_a_block_that_raises_leaves_nothing(store: Store) -> None:
    store.put_tenant(TenantRow("a", 1))
    serial, epoch = store.serial, store.epoch()

    def half() -> None:
        with store.transaction() as t:
            t.put_tenant(TenantRow("b", 1))
            t.next_epochs(5)
            t.audit(AuditRow("op", "", "x"))
            raise RequestError("halfway")

    with pytest.raises(RequestError):
        half()
    assert [row.name for row in store.tenants()] == ["a"]
    assert (store.serial, store.epoch(), store.audits()) == (serial, epoch, [])


def test_inner_blocks_join_the_outer_one(store: Store) -> None:
    before = store.serial

    def outer(fail: bool) -> None:
        with store.transaction() as t:
            t.put_tenant(TenantRow("a", 1))
            store.put_tenant(TenantRow("b", 1))
            if fail:
                raise RequestError("after the inner one")

    with pytest.raises(RequestError):
        outer(fail=True)
    assert store.tenants() == []
    outer(fail=False)
    assert len(store.tenants()) == 2
    assert store.serial == before + 1


def test_reading_is_no_change(store: Store) -> None:
    before = store.serial
    store.tenants()
    store.delete_lease("nobody", "nothing")
    assert store.serial == before


def test_epochs_never_come_twice(opener: Opener) -> None:
    store = opener()
    taken = [store.next_epochs(), store.next_epochs(10), store.next_epochs()]
    store.close()
    again = opener()
    assert [*taken, again.next_epochs()] == [1, 2, 12, 13]
    with pytest.raises(ValueError, match="at least one"):
        again.next_epochs(0)


def test_epochs_and_entries_are_unique_among_threads(store: Store) -> None:
    epochs: list[int] = []
    entries: list[int] = []

    def take() -> None:
        for _ in range(10):
            epochs.append(store.next_epochs())
            entries.append(store.intend("k", "t", "l", 0))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(epochs) == list(range(1, 41))
    assert sorted(entries) == list(range(1, 41))


def test_journal_entries_close_once(store: Store) -> None:
    first = store.intend("clear", "a", "l", 3, {"cores": [1, 2]})
    second = store.intend("program", "a", "l", 4)
    store.done(first)
    store.done(first)
    store.done(second, VOID)
    assert store.open_intents() == []
    for number, state in ((first, VOID), (second, DONE), (99, DONE), (first, "open")):
        with pytest.raises(StoreError, match=str(number)):
            store.done(number, state)


def test_idempotency_keys_answer_once(opener: Opener) -> None:
    store = opener()
    assert store.recall("a", "key", "digest") is None
    store.remember("a", "key", "digest", {"lease": "l"})
    store.close()
    store = opener()
    assert store.recall("a", "key", "digest") == {"lease": "l"}
    assert store.recall("b", "key", "digest") is None
    with pytest.raises(ConflictError, match="another request"):
        store.recall("a", "key", "other")
    with pytest.raises(ConflictError):
        store.remember("a", "key", "digest", {"lease": "x"})
    for wrong in ("", "x" * 256, "nul\0", "\ud800"):
        with pytest.raises(RequestError):
            store.recall("a", wrong, "digest")


def test_old_answers_are_forgotten(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ANSWERS_KEPT", 3)
    for number in range(6):
        store.remember("a", f"k{number}", "d", number + 1)
        store.remember("b", f"k{number}", "d", number + 1) if number == 0 else None
    assert [store.recall("a", f"k{number}", "d") for number in range(6)] == [None, None, None, 4, 5, 6]
    assert store.recall("b", "k0", "d") == 1


def test_leases_and_models_belong_to_a_tenant(store: Store) -> None:
    with pytest.raises(NotFoundError, match="'a'"):
        store.put_lease(LeaseRow("a", "l", 1, 1))
    with pytest.raises(NotFoundError, match="'a'"):
        store.put_model(ModelRow("a", "m", "1", "0" * 64))
    store.put_tenant(TenantRow("a", 1))
    store.put_key(KeyRow("k", "a", "h"))
    store.remember("a", "key", "d", 1)
    store.put_lease(LeaseRow("a", "l", 1, 1))
    with pytest.raises(ConflictError, match="lease 'l'"):
        store.delete_tenant("a")
    assert store.delete_lease("a", "l")
    assert not store.delete_lease("a", "l")
    store.put_model(ModelRow("a", "m", "1", "0" * 64))
    with pytest.raises(ConflictError, match="model 'm'"):
        store.delete_tenant("a")
    assert store.delete_model("a", "m", "1")
    assert store.delete_tenant("a")
    assert not store.delete_tenant("a")
    assert (store.keys(), store.recall("a", "key", "d")) == ([], None)


@pytest.mark.parametrize(
    "row",
    [
        TenantRow("nul\0", 1),
        TenantRow("half\ud800", 1),
        TenantRow("big", 1 << 63),
        TenantRow("rate", 1, requests_per_s=float("nan")),
    ],
)
def test_what_no_database_holds_is_refused(store: Store, row: TenantRow) -> None:
    with pytest.raises(RequestError):
        store.put_tenant(row)
    assert store.tenants() == []
    assert store.tenant(row.name) is None


def test_text_is_data(store: Store) -> None:
    name = "x'); DROP TABLE tenants; --%s:name\x01\n"
    store.put_tenant(TenantRow(name, 1))
    assert [row.name for row in store.tenants()] == [name]


def test_the_audit_log_only_grows(store: Store) -> None:
    for number in range(5):
        store.audit(AuditRow("op", f"t{number % 2}", "act", str(number)))
    assert [row.id for row in store.audits()] == [1, 2, 3, 4, 5]
    assert [row.target for row in store.audits("t1", after=2)] == ["3"]
    assert [row.target for row in store.audits(limit=2)] == ["0", "1"]
    connection = store._database.connection
    for statement in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit WHERE id = 5"):
        with pytest.raises(Exception, match="append-only"), connection.begin():
            connection.exec_driver_sql(statement)
    assert {row.actor for row in store.audits()} == {"op"}


def test_the_audit_log_loses_its_oldest_rows_only(store: Store) -> None:
    with store.transaction() as t:
        t.put_meta("audit_number", "101998")
        t.audit(AuditRow("op", "", "old", at="1970", id=0))
    with store.transaction() as t:
        t.put_meta("audit_number", "201998")
        for _ in range(2):
            t.audit(AuditRow("op", "", "new"))
    assert [row.id for row in store.audits()] == [201999, 202000]


def test_a_second_server_is_refused(opener: Opener) -> None:
    first = opener()
    first.put_tenant(TenantRow("a", 1))
    with pytest.raises(StoreError, match="in use by another server"):
        opener()
    assert first.tenants() == [TenantRow("a", 1)]
    first.close()
    assert opener().tenants() == [TenantRow("a", 1)]


def test_a_second_server_on_one_database_is_refused(database: str, tmp_path: Path) -> None:
    with Store(database, tmp_path / "a", 0), pytest.raises(StoreError, match="in use by another server"):
        Store(database, tmp_path / "b", 0)


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.tenants()
    assert not store.alive()


@pytest.mark.parametrize("url", ["nonsense", "mysql://h/d", "sqlite:////nonexistent/folder/x.db"])
def test_unusable_addresses_are_refused_in_one_line(tmp_path: Path, url: str) -> None:
    with pytest.raises((ConfigError, StoreError)) as caught:
        Store(url, tmp_path, 0)
    assert "\n" not in str(caught.value)


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        Store("postgresql://me:geheim@127.0.0.1:1/none", tmp_path, 0)
    assert "geheim" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_cut_connection_is_made_anew(database: str, tmp_path: Path) -> None:
    import psycopg

    with Store(database, tmp_path, 0) as store:
        store.put_tenant(TenantRow("a", 1))
        with psycopg.connect(database, autocommit=True) as other:
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'corepool'"
            assert other.execute(cut + " AND datname = current_database()").fetchall() == [(True,)]
        store.put_tenant(TenantRow("b", 1))
        assert [row.name for row in store.tenants()] == ["a", "b"]
        with pytest.raises(StoreError, match="in use"):
            Store(database, tmp_path / "other", 0)


def test_a_connection_cut_inside_a_block_leaves_nothing(database: str, tmp_path: Path) -> None:
    import psycopg

    with Store(database, tmp_path, 0) as store:

        def cut_short() -> None:
            with store.transaction() as t:
                t.put_tenant(TenantRow("a", 1))
                with psycopg.connect(database, autocommit=True) as other:
                    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'corepool'"
                    other.execute(cut + " AND datname = current_database()")
                t.put_tenant(TenantRow("b", 1))

        with pytest.raises(StoreError):
            cut_short()
        assert store.tenants() == []
        store.put_tenant(TenantRow("c", 1))
    with Store(database, tmp_path, 0) as store:
        assert store.tenants() == [TenantRow("c", 1)]
