"""What crash tests share: a run through every arrow of a core's life, and what clients were told meanwhile; and, run as
a program, a process that makes children to be killed.

It must not know what the tests conclude.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.errors import CorepoolError
from corepool.server.api import InferRequest, LeaseRequest
from corepool.server.engine.catalog import ModelPackage
from support.engine import Net, World, who

Size = tuple[int, int] | None


class Said:
    """What clients were told: of each lease its size, or None once its release was acknowledged. ``asked``: what was
    under way when the engine ended, which may have happened or not. Each line goes to ``note`` as it is said."""

    def __init__(self, note: Callable[[str], object] = lambda line: None) -> None:
        self.leases: dict[tuple[str, str], Size] = {}
        self.asked: tuple[tuple[str, str], Size] | None = None
        self._note = note

    def call(self, tenant: str, name: str, size: Size, call: Callable[[], object]) -> None:
        words = f"{tenant} {name} {'-' if size is None else f'{size[0]} {size[1]}'}"
        self._note(f"ask {words}\n")
        self.asked = ((tenant, name), size)
        call()
        self._note(f"ack {words}\n")
        self.leases[tenant, name] = size
        self.asked = None

    @classmethod
    def read(cls, lines: Iterable[str]) -> Said:
        """What another process noted."""
        made = cls()
        for line in lines:
            what, tenant, name, *size = line.split()
            key, value = (tenant, name), None if size == ["-"] else (int(size[0]), int(size[1]))
            if what == "ask":
                made.asked = (key, value)
            else:
                made.leases[key], made.asked = value, None
        return made

    def check(self, world: World) -> None:
        """The store has what was acknowledged, and at most that which was asked for last beside it."""
        rows = {(row.tenant, row.name): (row.minimum, row.maximum) for row in world.store.leases()}
        rows = {key: size for key, size in rows.items() if key[1] != "default"}
        told = {key: size for key, size in self.leases.items() if size is not None}
        allowed = [told]
        if self.asked is not None:
            key, size = self.asked
            after = {**self.leases, key: size}
            allowed.append({key: size for key, size in after.items() if size is not None})
        assert rows in allowed, f"acknowledged {told}, asked {self.asked}, found {rows}"


def scenario(world: World, said: Said, over: Callable[[], bool] = lambda: False) -> None:
    """Passes every arrow: a tenant's cores drain while it runs, go to another lease, come back; leases come and go."""
    engine, stop, run = world.engine, threading.Event(), world.card.run
    running = threading.Event()

    def slowly(*arguments: Any, **more: Any) -> Any:
        running.set()
        time.sleep(0.005)  # so that leases run nearly all the time, and drain when they lose cores
        return run(*arguments, **more)

    world.card.run = slowly  # type: ignore[method-assign]

    def flood() -> None:
        seed = 0
        while not stop.is_set() and not over():
            seed += 1
            with suppress(CorepoolError, TimeoutError):
                jobs = [engine.submit(who("ann"), InferRequest("net", world.net.image(seed % 5))) for _ in range(20)]
                for job in jobs:
                    job.result(300)

    world.load("ann")
    flooding = threading.Thread(target=flood, daemon=True)
    try:
        world.infer("ann", timeout=300)
        running.clear()
        flooding.start()
        running.wait(10)
        ben, ann = who("ben"), who("ann")
        said.call("ben", "x", (2, 2), lambda: engine.create_lease(ben, LeaseRequest("x", 2, 2)))
        said.call("ben", "x", (1, 1), lambda: engine.resize_lease(ben, "x", 1, 1))
        said.call("ben", "x", (3, 3), lambda: engine.resize_lease(ben, "x", 3, 3))
        said.call("ben", "x", None, lambda: engine.release_lease(ben, "x"))
        said.call("ann", "y", (1, 2), lambda: engine.create_lease(ann, LeaseRequest("y", 1, 2)))
        engine.pilot.quiet(10)
    finally:
        world.card.run = run  # type: ignore[method-assign]
        stop.set()
        if flooding.ident is not None:
            flooding.join(20)


def _child(folder: Path, net: Net, seed: int, point: str, times: int) -> None:
    """Serve until killed, by its own hand at a point or by another's at any time."""
    log = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    passed = 0

    def hook(name: str) -> None:
        nonlocal passed
        passed += name == point
        if name == point and passed == times:
            os.kill(os.getpid(), signal.SIGKILL)

    world = World(folder / "state", net, hook=hook)
    said = Said(lambda line: os.write(log, line.encode()))
    scenario(world, said)
    draw = random.Random(seed)
    for number in range(10_000):  # until the kill comes
        name, tenant = f"n{number}", draw.choice(["ann", "ben"])
        low = draw.randint(0, 1)
        with suppress(CorepoolError):
            request = LeaseRequest(name, low, draw.randint(1, 2), draw.choice(["private"] * 3 + ["public"]))
            if request.sharing == "public":
                request = LeaseRequest(name, 1, 1, "public")
            size = (request.minimum, request.maximum)
            said.call(tenant, name, size, lambda: world.engine.create_lease(who(tenant), request))  # noqa: B023
            world.engine.submit(who("ann"), InferRequest("net", net.image()))
            if draw.random() < 0.8:
                said.call(tenant, name, None, lambda: world.engine.release_lease(who(tenant), name))  # noqa: B023
        said.asked = None


def _main() -> None:
    """Reads orders, a line each: folder, seed, point (or -), its n-th passing, milliseconds until a kill (or 0)."""
    net = Net(preset("tiny"), Path(sys.argv[1]))
    from corepool.runtime.session import Session

    Session(Simulator(net.config), ModelPackage.open(net.path, net.config), range(4)).run(net.image())  # compiles
    for line in sys.stdin:
        folder, seed, point, times, delay = line.split()
        child = os.fork()
        if child == 0:
            try:
                _child(Path(folder), net, int(seed), point, int(times))
            finally:
                os._exit(1)
        if int(delay):
            threading.Event().wait(int(delay) / 1000)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
