"""Keys: what they open, when they end, who guesses them.

It must not know how keys are stored, or REST and gRPC.
"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from corepool.errors import (
    AuthenticationError,
    ConflictError,
    CorepoolError,
    RequestError,
    TooManyRequestsError,
)
from corepool.server.api import Role
from corepool.server.audit import AuditFile
from corepool.server.keys import FORM
from support.tenancy import ADMIN, World


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
