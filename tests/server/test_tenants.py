"""Who may do what, with which key, and how often.

It must not know how tenants are stored, or REST and gRPC.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from corepool.errors import (
    AuthenticationError,
    ConflictError,
    CorepoolError,
    NotFoundError,
    PermissionDeniedError,
    RequestError,
    StorageFullError,
    TooLargeError,
    TooManyRequestsError,
)
from corepool.server.api import Identity, Role
from corepool.server.audit import AuditFile
from corepool.server.keys import FORM
from corepool.server.limits import Limits
from corepool.server.store import LeaseRow, ModelRow, Store, TenantRow
from corepool.server.tenants import Tenants

ADMIN = Identity(Role.ADMIN, "", "operator")


class Clock:
    """The monotonic clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A store and what stands on it; ``restart`` opens both anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.limits = Limits(requests_per_s=10, burst=20, body_bytes=1000, in_flight=4)
        self.store: Store
        self.restart()

    def restart(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        self.store = Store(None, self.folder, ballast_bytes=0)
        self.tenants = Tenants(self.store, self.limits, self.clock)

    def add(self, name: str, quota: int = 4) -> str:
        """A tenant's key, as its client sends it."""
        key = self.tenants.add(ADMIN, TenantRow(name, quota)).key
        assert key is not None
        return f"Bearer {key}"

    def who(self, header: str | None, source: str = "10.0.0.1") -> Identity:
        return self.tenants.authenticate(header, source)

    def refused(self, header: str | None, source: str = "10.0.0.9") -> str:
        self.clock.now += 100  # these are no guesses
        with pytest.raises(AuthenticationError) as caught:
            self.who(header, source)
        return str(caught.value)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "state")


def test_a_key_names_its_tenant_also_after_a_restart(world: World) -> None:
    alice, bob = world.add("alice"), world.add("bob")
    assert FORM.fullmatch(alice.removeprefix("Bearer "))
    for _ in range(2):
        assert world.tenants.recognise(alice) is None
        who = world.who(alice)
        assert (who.role, who.tenant, who.key_id) == (Role.TENANT, "alice", alice.split("_")[1])
        assert world.tenants.recognise(alice) == who
        assert world.who(f"bearer   {bob.removeprefix('Bearer ')}  ").tenant == "bob"
        world.restart()


def test_secrets_are_kept_nowhere(world: World) -> None:
    AuditFile(world.store)
    header = world.add("alice")
    key = world.tenants.rotate_key(ADMIN, header.split("_")[1])
    world.who(f"Bearer {key.text}")
    admin = world.tenants.first_start()
    assert admin is not None
    secrets = [text.rsplit("_", 1)[1].encode() for text in (header, key.text, admin.text)]
    world.store.close()
    for path in world.folder.rglob("*"):
        if path.is_file() and path.name != "admin.key":
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path.name
    assert all(secret.decode() not in repr(each) for secret in secrets for each in (key, admin))


def test_wrong_missing_unknown_and_revoked_keys_look_alike(world: World) -> None:
    alice, bob = world.add("alice"), world.add("bob")
    world.who(bob)
    world.tenants.revoke_key(ADMIN, bob.split("_")[1])
    wrong = alice[:-1] + ("a" if alice[-1] != "a" else "b")
    mixed = "_".join([*alice.split("_")[:2], bob.split("_")[2]])
    unknown = "Bearer cp_" + "x" * 12 + "_" + "y" * 43
    plain = alice.removeprefix("Bearer ")
    headers = [None, "", "Bearer", "Bearer ", plain, f"Basic {plain}", wrong, mixed, unknown, bob, alice + "x", "é\0\n"]
    assert len({world.refused(header) for header in headers}) == 1
    assert world.who(alice).tenant == "alice"


def test_refusals_take_equal_time(world: World) -> None:
    import time

    alice, bob = world.add("alice"), world.add("bob")
    world.tenants.revoke_key(ADMIN, bob.split("_")[1])
    unknown = "Bearer cp_" + "x" * 12 + "_" + "y" * 43
    spent: dict[str, list[float]] = {}
    for _ in range(9):
        for name, header in (("wrong", alice[:-1] + "é"), ("unknown", unknown), ("revoked", bob), ("missing", "")):
            begun = time.thread_time()
            world.refused(header)
            spent.setdefault(name, []).append(time.thread_time() - begun)
    least = {name: min(each) for name, each in spent.items()}
    assert max(least.values()) < 1.5 * min(least.values()), least


def test_rotation_and_revocation_hold_at_once(world: World) -> None:
    first = world.add("alice")
    assert world.who(first).tenant == "alice"
    new = world.tenants.rotate_key(ADMIN, first.split("_")[1])
    assert world.tenants.recognise(first) is None
    world.refused(first)
    header = f"Bearer {new.text}"
    assert world.who(header).tenant == "alice"
    other = world.tenants.create_key(ADMIN, "alice", "laptop")
    world.tenants.revoke_key(ADMIN, new.key_id)
    world.tenants.revoke_key(ADMIN, new.key_id)
    assert world.tenants.recognise(header) is None
    world.restart()
    world.refused(first)
    world.refused(header)
    assert world.who(f"Bearer {other.text}").tenant == "alice"
    with pytest.raises(ConflictError, match="revoked"):
        world.tenants.rotate_key(ADMIN, new.key_id)
    listed = {row.key_id: (row.label, row.state, row.hash) for row in world.tenants.keys(ADMIN, "alice")}
    assert listed[other.key_id] == ("laptop", "active", "")
    assert listed[new.key_id][1] == "revoked"


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


def test_guessing_is_slowed_down_for_the_guesser_only(world: World) -> None:
    alice, bob = world.add("alice"), world.add("bob")
    world.who(alice)
    world.tenants._hasher.matches = lambda stored, text: False  # type: ignore[method-assign]
    outcomes = {AuthenticationError: 0, TooManyRequestsError: 0}
    for number in range(10_000):
        world.clock.now += 0.00011
        guess = f"Bearer cp_{number:012}_{number:043}"
        with pytest.raises((AuthenticationError, TooManyRequestsError)) as caught:
            world.who(guess, "10.6.6.6")
        outcomes[type(caught.value)] += 1
    assert outcomes == {AuthenticationError: 21, TooManyRequestsError: 9979}
    assert isinstance(caught.value, TooManyRequestsError)
    assert 0 < caught.value.retry_after_s <= 1
    del world.tenants._hasher.matches  # type: ignore[method-assign]
    assert world.who(alice, "10.6.6.6").tenant == "alice", "a key in use is not locked out, wherever it comes from"
    assert world.who(bob, "10.0.0.2").tenant == "bob"
    with pytest.raises(TooManyRequestsError):
        world.who(None, "10.6.6.6")
    world.clock.now += 5
    assert world.who(bob, "10.6.6.6").tenant == "bob"
    entries = [row for row in world.store.audits() if row.action == "authenticate"]
    assert [(row.source, row.outcome) for row in entries] == [("10.6.6.6", "refused")]


def test_right_keys_are_no_guesses(world: World) -> None:
    headers = [world.add(f"t{number}") for number in range(22)]
    assert [world.who(header).tenant for header in headers] == [f"t{number}" for number in range(22)]


def test_one_ipv6_network_is_one_guesser(world: World) -> None:
    world.tenants._hasher.matches = lambda stored, text: False  # type: ignore[method-assign]
    refusals = []
    for number in range(30):
        with pytest.raises(CorepoolError) as caught:
            world.who(None, f"2001:db8::{number:x}")
        refusals.append(type(caught.value))
    assert refusals.count(TooManyRequestsError) == 10
    with pytest.raises(AuthenticationError):
        world.who(None, "2001:db8:0:1::1")


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


def test_operators_get_a_key_at_the_first_start(world: World) -> None:
    made = world.tenants.first_start()
    assert made is not None
    path = world.folder / "admin.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == made.text + "\n"
    assert world.who(f"Bearer {made.text}").role is Role.ADMIN
    world.restart()
    assert world.tenants.first_start() is None
    operator = world.who(f"Bearer {made.text}")
    with pytest.raises(ConflictError, match="last key"):
        world.tenants.revoke_key(operator, made.key_id)
    rotated = world.tenants.rotate_key(operator, made.key_id)
    assert path.read_text() == rotated.text + "\n"
    world.refused(f"Bearer {made.text}")
    path.unlink()
    world.restart()
    assert world.tenants.first_start() is None, "who removes the file keeps his key elsewhere"


def test_lost_operator_keys_are_replaced_by_an_empty_file(world: World) -> None:
    first = world.tenants.first_start()
    assert first is not None
    other = world.tenants.create_key(ADMIN, "", "kept elsewhere")
    (world.folder / "admin.key").write_text("")
    world.restart()
    second = world.tenants.first_start()
    assert second is not None
    assert world.who(f"Bearer {second.text}").role is Role.ADMIN
    assert world.who(f"Bearer {other.text}").role is Role.ADMIN
    world.refused(f"Bearer {first.text}")


@pytest.mark.parametrize("when", ["file", "row"])
def test_a_crash_at_the_first_start_locks_nobody_out(world: World, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    with monkeypatch.context() as patch:

        def crash(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(world.tenants, "_write_file" if when == "file" else "_publish_keys", crash)
        with pytest.raises(KeyboardInterrupt):
            world.tenants.first_start()
    world.restart()
    world.tenants.first_start()
    assert world.who("Bearer " + (world.folder / "admin.key").read_text()).role is Role.ADMIN


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


def test_keys_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corepool.server.tenants.KEYS_EACH", 3)
    world.add("alice")
    for _ in range(2):
        world.tenants.create_key(ADMIN, "alice")
    with pytest.raises(ConflictError, match="revoke some"):
        world.tenants.create_key(ADMIN, "alice")
    for _ in range(10):
        new = next(row.key_id for row in world.tenants.keys(ADMIN, "alice") if row.state == "active")
        world.tenants.revoke_key(ADMIN, new)
        world.tenants.create_key(ADMIN, "alice")
    assert len(world.tenants.keys(ADMIN, "alice")) == 6
    world.restart()
    assert len(world.tenants.keys(ADMIN, "alice")) == 6
    for label in ("x" * 101, "a\nb"):
        with pytest.raises(RequestError):
            world.tenants.create_key(ADMIN, "alice", label)


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
