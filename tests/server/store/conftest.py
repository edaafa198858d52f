"""Stores for tests: on SQLite, and on the real PostgreSQL server of the folder above.

It must not know what is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from corepool.server.store import Store

Opener = Callable[[], Store]


@pytest.fixture(params=["sqlite", "postgresql"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens the test's store (anew): first empty, then as it was left. All are closed in the end."""
    url = None if request.param == "sqlite" else request.getfixturevalue("database")
    opened: list[Store] = []

    def open_store() -> Store:
        opened.append(Store(url, tmp_path / "state", ballast_bytes=0))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()
