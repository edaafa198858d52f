"""Who may do what, and how often.

It must not know how tenants are stored, or REST and gRPC.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corepool.errors import (
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RequestError,
    StorageFullError,
    TooLargeError,
    TooManyRequestsError,
)
from corepool.server.audit import AuditFile
from corepool.server.store import LeaseRow, ModelRow, TenantRow
from support.tenancy import ADMIN, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "state")


def test_a_tenant_sees_itself_only(world: World) -> None:
    alice, bob = world.who(world.add("alice")), world.who(world.add("bob"))
    tenants = world.tenants
    assert [row.name for row in tenants.visible(alice)] == ["alice"]
    assert [row.name for row in tenants.visible(ADMIN)] == ["alice", "bob"]

    def text_of(call: object, *values: object) -> str:
        with pytest.raises(NotFoundError) as caught:
            call(alice, *values)  # type: ignore[operator]
        return str(caught.value)

    for call in (tenants.get, tenants.keys, tenants.create_key):
        assert text_of(call, "bob") == text_of(call, "zed").replace("zed", "bob")
        text_of(call, "")
    for call in (tenants.rotate_key, tenants.revoke_key):
        assert text_of(call, bob.key_id) == text_of(call, "none").replace("none", bob.key_id)
    assert tenants.get(alice, "alice").name == "alice"
    mine = tenants.create_key(alice, "alice")
    assert {row.key_id for row in tenants.keys(alice, "alice")} == {alice.key_id, mine.key_id}
    tenants.revoke_key(alice, mine.key_id)
    assert {row.tenant for row in tenants.audits(alice)} == {"alice"}
    for work in (
        lambda: tenants.add(alice, TenantRow("carol", 1)),
        lambda: tenants.change(alice, "alice", quota_cores=16),
        lambda: tenants.remove(alice, "alice"),
    ):
        with pytest.raises(PermissionDeniedError):
            work()


def test_names_are_taken_once(world: World) -> None:
    world.add("alice")
    with pytest.raises(ConflictError, match="'alice'"):
        world.add("alice", 8)
    assert world.tenants.get(ADMIN, "alice").quota_cores == 4
    assert len(world.tenants.keys(ADMIN, "alice")) == 1


def test_adding_twice_with_one_idempotency_key_adds_once(world: World) -> None:
    first = world.tenants.add(ADMIN, TenantRow("alice", 4), idempotency_key="k")
    world.restart()
    again = world.tenants.add(ADMIN, TenantRow("alice", 4), idempotency_key="k")
    assert (again.tenant, again.key_id, again.key) == (first.tenant, first.key_id, None)
    with pytest.raises(ConflictError, match="idempotency"):
        world.tenants.add(ADMIN, TenantRow("alice", 5), idempotency_key="k")
    with pytest.raises(ConflictError, match="idempotency"):
        world.tenants.add(ADMIN, TenantRow("bob", 4), idempotency_key="k")
    assert [row.name for row in world.tenants.rows()] == ["alice"]


@pytest.mark.parametrize(
    "values",
    [
        {"name": ""},
        {"name": "-a"},
        {"name": "a/b"},
        {"name": "a" * 64},
        {"name": "a\0"},
        {"name": "a\n"},
        {"name": "ä"},
        {"name": 5},
        {"quota_cores": 0},
        {"quota_cores": True},
        {"quota_cores": None},
        {"quota_cores": 1.5},
        {"priority": 10**9},
        {"burst": 0},
        {"body_bytes": -1},
        {"in_flight": "4"},
        {"requests_per_s": 0},
        {"requests_per_s": float("inf")},
        {"requests_per_s": float("nan")},
        {"requests_per_s": "1"},
    ],
    ids=str,
)
def test_tenants_that_make_no_sense_are_refused(world: World, values: dict[str, object]) -> None:
    fit: dict[str, object] = {"name": "alice", "quota_cores": 4, **values}
    with pytest.raises(RequestError) as caught:
        world.tenants.add(ADMIN, TenantRow(**fit))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert world.tenants.rows() == []


def test_changes_hold_at_once_and_survive(world: World) -> None:
    world.add("alice")
    heard: list[tuple[str, int | None]] = []
    world.tenants.subscribe(lambda name, row: heard.append((name, row.quota_cores if row else None)))
    row = world.tenants.change(ADMIN, "alice", quota_cores=8, priority=3, body_bytes=10)
    world.add("bob")
    world.tenants.remove(ADMIN, "bob")
    assert heard == [("alice", 8), ("bob", 4), ("bob", None)]
    world.restart()
    assert world.tenants.rows() == [row]
    assert world.tenants.in_flight_limit("alice") == 4
    for values in ({"name": "x"}, {"colour": 1}, {"quota_cores": 0}):
        with pytest.raises(RequestError):
            world.tenants.change(ADMIN, "alice", **values)
    with pytest.raises(NotFoundError):
        world.tenants.change(ADMIN, "zed", priority=1)


def test_a_quota_is_never_below_what_leases_hold(world: World) -> None:
    world.add("alice", 8)
    world.store.put_lease(LeaseRow("alice", "a", 1, 4))
    world.store.put_lease(LeaseRow("alice", "b", 1, 2))
    with pytest.raises(ConflictError, match="6 cores"):
        world.tenants.change(ADMIN, "alice", quota_cores=5)
    assert world.tenants.change(ADMIN, "alice", quota_cores=6).quota_cores == 6
    world.store.delete_lease("alice", "b")
    assert world.tenants.change(ADMIN, "alice", quota_cores=4).quota_cores == 4


def test_only_who_holds_nothing_is_removed(world: World) -> None:
    header = world.add("alice")
    world.who(header)
    world.store.put_lease(LeaseRow("alice", "l", 1, 1))
    world.store.put_model(ModelRow("alice", "m", "1", "0" * 64))
    with pytest.raises(ConflictError, match="lease 'l'"):
        world.tenants.remove(ADMIN, "alice")
    world.store.delete_lease("alice", "l")
    with pytest.raises(ConflictError, match="model 'm'"):
        world.tenants.remove(ADMIN, "alice")
    world.store.delete_model("alice", "m", "1")
    assert world.who(header).tenant == "alice"
    world.tenants.remove(ADMIN, "alice")
    world.refused(header)
    with pytest.raises(NotFoundError):
        world.tenants.remove(ADMIN, "alice")
    world.add("alice")
    world.restart()
    world.refused(header)


def test_rates_and_sizes_are_limited_by_tenant(world: World) -> None:
    alice, bob = world.who(world.add("alice")), world.who(world.add("bob"))
    for _ in range(20):
        world.tenants.admit(alice, 1000)
    with pytest.raises(TooManyRequestsError, match="10 requests a second") as caught:
        world.tenants.admit(alice)
    assert caught.value.retry_after_s == pytest.approx(0.1)
    world.tenants.admit(bob)
    world.clock.now += 0.1
    world.tenants.admit(alice)
    with pytest.raises(TooLargeError, match="1001 bytes"):
        world.tenants.admit(bob, 1001)
    world.tenants.change(ADMIN, "alice", requests_per_s=0.5, burst=2, body_bytes=5000)
    assert world.tenants.body_limit(alice) == 5000
    world.tenants.admit(alice, 5000)
    world.tenants.admit(alice, 5000)
    with pytest.raises(TooManyRequestsError) as caught:
        world.tenants.admit(alice)
    assert caught.value.retry_after_s == pytest.approx(2)
    for _ in range(100):
        world.tenants.admit(ADMIN, 10**9)


def test_a_rate_of_ones_own_has_a_burst_of_as_many_seconds(world: World) -> None:
    alice = world.who(world.add("alice"))
    for per_s, burst in ((3.0, 6), (0.2, 1), (50.0, 100)):
        world.tenants.change(ADMIN, "alice", requests_per_s=per_s)
        world.clock.now += 1000
        for _ in range(burst):
            world.tenants.admit(alice)
        with pytest.raises(TooManyRequestsError):
            world.tenants.admit(alice)


def test_what_is_not_durable_does_not_hold(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    header = world.add("alice")
    world.who(header)
    heard: list[str] = []
    world.tenants.subscribe(lambda name, row: heard.append(name))

    def fail(*_: object) -> None:
        raise StorageFullError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "_commit", fail)
        for work in (
            lambda: world.add("bob"),
            lambda: world.tenants.change(ADMIN, "alice", quota_cores=1),
            lambda: world.tenants.remove(ADMIN, "alice"),
            lambda: world.tenants.rotate_key(ADMIN, header.split("_")[1]),
            lambda: world.tenants.revoke_key(ADMIN, header.split("_")[1]),
            lambda: world.tenants.create_key(ADMIN, "alice"),
        ):
            with pytest.raises(StorageFullError):
                work()
    assert heard == []
    assert world.tenants.recognise(header) is not None
    before = (world.tenants.rows(), world.tenants.keys(ADMIN, "alice"))
    world.restart()
    assert (world.tenants.rows(), world.tenants.keys(ADMIN, "alice")) == before


def test_everything_done_is_in_the_audit_log(world: World) -> None:
    AuditFile(world.store)
    header = world.tenants.add(ADMIN, TenantRow("alice", 2), source="10.1.1.1").key
    assert header is not None
    key_id = header.split("_")[1]
    world.tenants.change(ADMIN, "alice", "10.1.1.2", priority=1)
    new = world.tenants.rotate_key(ADMIN, key_id, "10.1.1.3")
    world.tenants.create_key(ADMIN, "alice", source="10.1.1.4")
    world.tenants.revoke_key(ADMIN, new.key_id, "10.1.1.5")
    world.tenants.note(ADMIN, "10.1.1.6", "lease.create", "l", "refused", "quota")
    world.tenants.remove(ADMIN, "alice", "10.1.1.7")
    rows = world.tenants.audits(ADMIN)
    assert [row.action for row in rows] == [
        *("tenant.add", "tenant.change", "key.rotate", "key.create", "key.revoke", "lease.create", "tenant.remove")
    ]
    assert [row.source[-1] for row in rows] == list("1234567")
    assert {row.actor for row in rows} == {"operator"}
    lines = [json.loads(line) for line in (world.folder / "audit.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row.id for row in rows]
    assert all(line["at"].endswith("+00:00") for line in lines)


@pytest.mark.parametrize("year", [1970, 2016, 2036, 9999])
def test_the_wall_clock_decides_nothing(world: World, monkeypatch: pytest.MonkeyPatch, year: int) -> None:
    import datetime as real

    class Elsewhen(real.datetime):
        @classmethod
        def now(cls, tz: real.tzinfo | None = None) -> Elsewhen:
            return cls(year, 1, 1, tzinfo=tz)

    alice = world.add("alice")
    world.who(alice)
    before = world.store.epoch()
    monkeypatch.setattr("corepool.server.tenants.datetime", Elsewhen)
    monkeypatch.setattr("corepool.server.store.transaction.datetime", Elsewhen)
    monkeypatch.setattr("time.time", lambda: (year - 1970) * 31556952.0)
    bob = world.add("bob")
    for _ in range(20):
        world.tenants.admit(world.who(alice))
    with pytest.raises(TooManyRequestsError):
        world.tenants.admit(world.who(alice))
    world.store.put_lease(LeaseRow("alice", "l", 1, 1, ttl_s=5.0))
    assert world.store.next_epochs() == before + 1
    world.restart()
    assert world.who(alice).tenant == "alice"
    assert world.who(bob).tenant == "bob"
    assert [row.name for row in world.store.leases()] == ["l"]
    assert [row.action for row in world.store.audits()] == ["tenant.add", "tenant.add"]
