"""Real processes killed at every kill point and at random times: the next one finds what was acknowledged.

It must not know how the engine keeps anything.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import corepool
from corepool.server.api import LeaseRequest
from corepool.server.engine.killpoints import KILL_POINTS
from support.crashes import Said
from support.engine import Net, World, who

TESTS = Path(__file__).resolve().parents[2]
SOURCES = str(Path(corepool.__file__).parents[1])  # those that this process uses, wherever they are


class Victims:
    """A process that has everything loaded and makes children to be killed."""

    def __init__(self, net: Net, folder: Path) -> None:
        self.net, self.folder, self.count = net, folder, 0
        command = [sys.executable, "-W", "error", "-m", "support.crashes", str(net.path)]
        self._process = subprocess.Popen(
            command,
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": SOURCES},
        )

    def kill(self, seed: int, point: str = "-", times: int = 1, delay_ms: int = 0) -> Path:
        """Let a child serve until it is killed. Returns its folder."""
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{folder} {seed} {point} {times} {delay_ms}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == "-9", "the child ended before it was killed"
        return folder

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def victims(nets: dict[str, Net], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    made = Victims(nets["tiny"], tmp_path_factory.mktemp("victims"))
    yield made
    made.close()


def recovered(folder: Path, net: Net) -> None:
    """A new server on a killed one's folder keeps every promise."""
    log = folder / "said"
    said = Said.read(log.read_text().splitlines()) if log.exists() else Said()
    begin = time.process_time()
    world = World(folder / "state", net)
    try:
        assert time.process_time() - begin < 2
        assert world.engine.ready()
        world.at_rest()
        said.check(world)
        if world.store.models():
            world.infer("ann", 1)
        world.at_rest()
        for row in world.store.leases():
            world.engine.release_lease(who(row.tenant), row.name)
        assert len(world.engine.create_lease(who("ben"), LeaseRequest("all", 4, 4)).cores) == 4, "a core was lost"
    finally:
        world.close()


@pytest.mark.parametrize("point", KILL_POINTS)
def test_killed_at(point: str, victims: Victims) -> None:
    times = 1 if point.startswith(("wipe", "drain")) else 1 + KILL_POINTS.index(point) % 2  # these pass but once
    recovered(victims.kill(1, point, times), victims.net)


def killed_at_random(victims: Victims, first: int, count: int) -> None:
    for seed in range(first, first + count):
        recovered(victims.kill(seed, delay_ms=Random(seed).randint(5, 600)), victims.net)


def test_killed_at_random_times(victims: Victims) -> None:
    killed_at_random(victims, 0, 25)


@pytest.mark.slow
def test_killed_at_500_random_times(victims: Victims) -> None:
    killed_at_random(victims, 1000, 500)
