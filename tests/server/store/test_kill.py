"""A writer that is killed at any time has kept everything that it acknowledged, and nothing halfway.

It must not know the store's files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from corepool.server.store import Store
from support import store_work

SEED = 6
STATES = store_work.states(store_work.work(SEED, store_work.WRITTEN))


class Nursery:
    """A process with everything loaded, whose children are the writers."""

    def __init__(self) -> None:
        command = [sys.executable, store_work.__file__]
        paths = os.pathsep.join(str(Path(__file__).resolve().parents[3] / each) for each in ("src", "tests"))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
        )

    def killed_writer(
        self, url: str | None, folder: Path, done: int, least: int | None, wait_s: float
    ) -> tuple[bool, int]:
        """Let a child go on with the work until it has acknowledged ``least`` operations (None: until it begins to open
        the store) and for some time more; kill it.

        Returns whether the store was open, and how many operations were acknowledged.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{SEED} {done} {url or '-'} {folder}\n".encode())
        self.process.stdin.flush()
        said = b""
        while b"\n" not in said or (least is not None and (b"o" not in said or said.count(b"a") < least)):
            said += os.read(self.process.stdout.fileno(), 1)
        time.sleep(wait_s)
        number, _, said = said.partition(b"\n")
        os.kill(int(number), signal.SIGKILL)
        while not said.endswith(b"x"):
            said += os.read(self.process.stdout.fileno(), 65536)
        return said.startswith(b"o"), said.count(b"a")

    def close(self) -> None:
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def kill_often(
    nursery: Nursery, folder: Path, trials: int, rng: np.random.Generator, url: str | None = None
) -> tuple[int, int]:
    """Kill one store's writers again and again; past 300 operations begin anew. Returns how many writers were killed
    before the store was open, and how many operations were acknowledged."""
    early = total = done = stores = 0
    for _ in range(trials):
        least = None if rng.random() < 0.3 else int(rng.integers(0, 8))
        opened, acknowledged = nursery.killed_writer(
            url, folder / str(stores), done, least, float(rng.exponential(0.02))
        )
        early += not opened
        with Store(url, folder / str(stores), ballast_bytes=0) as store:
            now = store.serial
            assert done + acknowledged <= now <= done + acknowledged + 1
            assert store_work.look(store, STATES[now]) == STATES[now]
        total += acknowledged
        done = now
        if done > 300 and url is None:
            stores, done = stores + 1, 0
    return early, total


def test_acknowledged_operations_survive_kills(nursery: Nursery, tmp_path: Path, rng: np.random.Generator) -> None:
    early, total = kill_often(nursery, tmp_path, 30, rng)
    assert early > 0, "none was killed while the store was opened or made"
    assert total > 30


def test_acknowledged_operations_survive_kills_on_postgresql(
    nursery: Nursery, database: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    _, total = kill_often(nursery, tmp_path, 12, rng, database)
    assert total > 10


@pytest.mark.slow
def test_acknowledged_operations_survive_500_kills(nursery: Nursery, tmp_path: Path, rng: np.random.Generator) -> None:
    early, total = kill_often(nursery, tmp_path, 500, rng)
    assert early > 10
    assert total > 500
