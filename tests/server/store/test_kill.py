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

    def killed_writer(self, folder: Path, done: int, wait_s: float, opened: bool) -> tuple[bool, int]:
        """Let a child go on with the work for some time, counted from when it begins to open the store or has
        ``opened`` it; kill it.

        Returns whether the store was open, and how many more operations were acknowledged.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{SEED} {done} {folder}\n".encode())
        self.process.stdin.flush()
        said = b""
        while not said.endswith(b"o" if opened else b"\n"):
            said += os.read(self.process.stdout.fileno(), 1)
        time.sleep(wait_s)
        os.kill(int(said.rstrip(b"o")), signal.SIGKILL)
        said = said.partition(b"\n")[2]
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


def kill_often(nursery: Nursery, folder: Path, trials: int, rng: np.random.Generator) -> tuple[int, int]:
    """Kill one store's writers again and again; past 300 operations begin anew. Returns how many writers were killed
    before the store was open, and how many operations were acknowledged."""
    early = total = done = stores = 0
    for _ in range(trials):
        opened, acknowledged = nursery.killed_writer(
            folder / str(stores), done, float(rng.exponential(0.06)), bool(rng.random() < 0.7)
        )
        with Store(None, folder / str(stores), ballast_bytes=0) as store:
            now = store.serial
            assert done + acknowledged <= now <= done + acknowledged + 1
            assert store_work.look(store, STATES[now]) == STATES[now]
        early += not opened
        total += acknowledged
        done = now
        if done > 300:
            stores, done = stores + 1, 0
    return early, total


def test_acknowledged_operations_survive_kills(nursery: Nursery, tmp_path: Path, rng: np.random.Generator) -> None:
    early, total = kill_often(nursery, tmp_path, 30, rng)
    assert early > 0, "none was killed while the store was opened or made"
    assert total > 30


@pytest.mark.slow
def test_acknowledged_operations_survive_500_kills(nursery: Nursery, tmp_path: Path, rng: np.random.Generator) -> None:
    early, total = kill_often(nursery, tmp_path, 500, rng)
    assert early > 10
    assert total > 500
