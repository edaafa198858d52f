"""Tenants on a store and a clock that is moved by hand, for tests of who may do what.

It must not know what the tests look for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from corepool.errors import (
    AuthenticationError,
)
from corepool.server.api import Identity, Role
from corepool.server.limits import Limits
from corepool.server.store import Store, TenantRow
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
