"""Tenants and keys in any order of operations, restarts and failing disks among them, against a model in dictionaries.

It must not know how any of it is stored.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from corepool.errors import AuthenticationError, ConflictError, NotFoundError, StorageFullError
from corepool.server.api import Identity, Role
from corepool.server.keys import Hasher
from corepool.server.store import LeaseRow, Store, TenantRow
from corepool.server.tenants import Tenants

ADMIN = Identity(Role.ADMIN, "", "operator")
NAMES = st.sampled_from(["ann", "bob", "cy"])


class Quick(Hasher):
    """Hashes that cost nothing: the machine is about which keys hold."""

    def __init__(self) -> None:
        self.nobody = "nobody"

    def hash(self, text: str) -> str:
        return "hash " + text

    def matches(self, stored: str, text: str) -> bool:
        return stored == "hash " + text


class Machine(RuleBasedStateMachine):
    keys = Bundle("keys")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="corepool-machine-"))
        self.quotas: dict[str, int] = {}
        self.leases: dict[str, int] = {}
        self.owners: dict[str, str] = {}  # key text to tenant, of all keys that hold
        self.seen: list[str] = []
        self.failing = False
        self.now = 0.0
        self.open()

    def open(self) -> None:
        self.store = Store(None, self.folder, ballast_bytes=0)
        self.store._database.handle.execute("PRAGMA synchronous = OFF")  # no power is cut here
        self.tenants = Tenants(self.store, clock=lambda: self.now)
        quick = Quick()
        self.tenants._hasher = quick
        self.tenants._ring._hasher = quick
        self.heard = {row.name: row.quota_cores for row in self.tenants.rows()}
        self.tenants.subscribe(self.hear)

    def hear(self, name: str, row: TenantRow | None) -> None:
        if row is None:
            del self.heard[name]
        else:
            self.heard[name] = row.quota_cores

    def attempt(self, work: Any, *values: Any, refusal: type[Exception] | None = None, **named: Any) -> Any:
        """The result, or None if it was refused as expected or the disk was full."""
        expected = refusal or (StorageFullError if self.failing else None)
        if expected is None:
            return work(*values, **named)
        with pytest.raises(expected):
            work(*values, **named)
        return None

    @rule(name=NAMES, quota=st.integers(1, 16), target=keys)
    def add(self, name: str, quota: int) -> str:
        refusal = ConflictError if name in self.quotas else None
        added = self.attempt(self.tenants.add, ADMIN, TenantRow(name, quota), refusal=refusal)
        if added is None:
            return ""
        self.quotas[name] = quota
        self.owners[added.key] = name
        return str(added.key)

    @rule(name=NAMES, quota=st.integers(1, 16))
    def change(self, name: str, quota: int) -> None:
        refusal: type[Exception] | None = None
        if name not in self.quotas:
            refusal = NotFoundError
        elif quota < min(self.leases.get(name, 0), self.quotas[name]):
            refusal = ConflictError
        if self.attempt(self.tenants.change, ADMIN, name, quota_cores=quota, refusal=refusal):
            self.quotas[name] = quota

    @rule(name=NAMES, maximum=st.integers(1, 16))
    def lease(self, name: str, maximum: int) -> None:
        if name in self.quotas and maximum <= self.quotas[name] and not self.failing:
            self.store.put_lease(LeaseRow(name, "l", 1, maximum))
            self.leases[name] = maximum

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        if not self.failing:
            assert self.store.delete_lease(name, "l") == (self.leases.pop(name, None) is not None)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        refusal: type[Exception] | None = None
        if name not in self.quotas:
            refusal = NotFoundError
        elif name in self.leases:
            refusal = ConflictError
        self.attempt(self.tenants.remove, ADMIN, name, refusal=refusal)
        if refusal is None and not self.failing:
            del self.quotas[name]
            self.owners = {key: owner for key, owner in self.owners.items() if owner != name}

    @rule(name=NAMES, target=keys)
    def create_key(self, name: str) -> str:
        refusal = None if name in self.quotas else NotFoundError
        key = self.attempt(self.tenants.create_key, ADMIN, name, refusal=refusal)
        if key is None:
            return ""
        self.owners[key.text] = name
        return str(key.text)

    @rule(key=keys, target=keys)
    def rotate(self, key: str) -> str:
        if not key:
            return ""
        new = None
        if key in self.owners:
            new = self.attempt(self.tenants.rotate_key, ADMIN, key.split("_")[1])
        else:
            with pytest.raises((ConflictError, NotFoundError)):
                self.tenants.rotate_key(ADMIN, key.split("_")[1])
        if new is None:
            return ""
        self.owners[new.text] = self.owners.pop(key)
        return str(new.text)

    @rule(key=keys)
    def revoke(self, key: str) -> None:
        if key in self.owners:
            self.attempt(self.tenants.revoke_key, ADMIN, key.split("_")[1])
            if not self.failing:
                del self.owners[key]

    @rule(key=keys)
    def use(self, key: str) -> None:
        self.now += 10
        header = f"Bearer {key}"
        if key in self.owners:
            who = self.tenants.authenticate(header, "here")
            assert (who.role, who.tenant) == (Role.TENANT, self.owners[key])
            assert self.tenants.recognise(header) == who
            self.seen.append(key)
        else:
            assert self.tenants.recognise(header) is None
            with pytest.raises(AuthenticationError):
                self.tenants.authenticate(header, "here")

    @rule()
    def restart(self) -> None:
        self.failing = False
        self.store.close()
        self.open()
        self.seen = []

    @rule(full=st.booleans())
    def fill_disk(self, full: bool) -> None:
        self.failing = full
        if full:
            self.store._commit = self.refuse  # type: ignore[method-assign]
        elif "_commit" in vars(self.store):
            del self.store._commit  # type: ignore[method-assign]

    @staticmethod
    def refuse(*_: object) -> None:
        raise StorageFullError("no room")

    @invariant()
    def memory_store_and_model_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        rows = {row.name: row.quota_cores for row in self.tenants.rows()}
        assert rows == self.quotas == self.heard == {row.name: row.quota_cores for row in self.store.tenants()}
        keys = self.store.keys()
        held = {row.key_id: row.tenant for row in keys if row.state == "active"}
        assert held == {key.split("_")[1]: owner for key, owner in self.owners.items()}
        assert all(self.leases[name] <= self.quotas[name] for name in self.leases)

    @invariant()
    def no_key_holds_longer_than_it_may(self) -> None:
        for key in getattr(self, "seen", []):
            who = self.tenants.recognise(f"Bearer {key}")
            assert (who.tenant if who else None) == self.owners.get(key)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


Machine.TestCase.settings = settings(max_examples=15, stateful_step_count=30)
TestMachine = Machine.TestCase


@pytest.mark.slow
class TestManyRuns(Machine.TestCase):  # type: ignore[misc, valid-type, name-defined]
    settings = settings(max_examples=300, stateful_step_count=50)
