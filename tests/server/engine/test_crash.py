"""Crashes at every kill point: what was acknowledged is there, no core is leased twice, card and store agree.

In these the engine ends as a killed process would, in all its threads, while the card keeps its table, as real hardware
does. test_kill.py kills real processes.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from corepool.errors import CorepoolError, DeviceError, NotFoundError
from corepool.server.api import LeaseRequest
from corepool.server.engine.killpoints import ARROWS, KILL_POINTS
from support.crashes import Said, scenario
from support.engine import Net, World, who


class Crash(BaseException):
    """What a kill point raises; nothing in the engine catches it as an error."""


class Hooked:
    """Passes kill points until the one that is wanted comes for the n-th time, then ends the world."""

    def __init__(self, point: str | None, times: int = 1, after: int | None = None) -> None:
        self.point, self.times, self.after = point, times, after
        self.seen: list[str] = []
        self.world: World | None = None
        self.crashed = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        with self._lock:
            if self.crashed.is_set():
                raise Crash
            self.seen.append(name)
            here = name == self.point and self.seen.count(name) == self.times
            if not here and len(self.seen) != self.after:
                return
            self.crashed.set()
        if self.world is not None:
            threading.Thread(target=self.world.engine.crash, daemon=True).start()
        raise Crash


def crash_and_recover(make_world: Callable[..., World], hooked: Hooked) -> None:
    world = make_world(hook=hooked)
    hooked.world = world
    said = Said()
    with suppress(CorepoolError, TimeoutError, Crash):
        scenario(world, said, hooked.crashed.is_set)
    epochs = [owner.epoch for owner in world.card.table()]
    reserved = world.store.epoch()
    card = world.crash()
    begin = time.process_time()
    again = make_world(card=card)
    spent = time.process_time() - begin
    assert again.engine.ready()
    assert spent < 2
    again.at_rest()
    said.check(again)
    assert again.store.epoch() >= reserved
    assert all(now.epoch >= before for now, before in zip(card.table(), epochs, strict=True))
    if again.store.models():
        again.infer("ann", 3)
    again.at_rest()
    for row in again.store.leases():
        again.engine.release_lease(who(row.tenant), row.name)
    again.at_rest()
    assert len(again.engine.create_lease(who("ben"), LeaseRequest("all", 4, 4)).cores) == 4, "a core was lost"


def test_scenario_passes_every_kill_point(make: Callable[..., World]) -> None:
    hooked = Hooked(None)
    world = make(hook=hooked)
    scenario(world, Said())
    world.at_rest()
    assert len(KILL_POINTS) == 3 * len(ARROWS) == 21
    assert set(KILL_POINTS) <= set(hooked.seen)


@pytest.mark.parametrize("point", KILL_POINTS)
def test_crash_at(point: str, make: Callable[..., World]) -> None:
    hooked = Hooked(point)
    crash_and_recover(make, hooked)
    assert hooked.crashed.is_set(), f"{point} was never passed"


@pytest.mark.parametrize("seed", range(8))
def test_crash_anywhere(seed: int, make: Callable[..., World]) -> None:
    crash_and_recover(make, Hooked(None, after=Random(seed).randint(1, 40)))


def test_an_old_engines_actions_are_refused(make: Callable[..., World]) -> None:
    world = make()
    world.load("ann")
    world.infer("ann")
    placed = world.card.placed("ann/default")
    card = world.crash()
    again = make(card=card)
    again.infer("ann")
    for call in (
        lambda: card.clear(placed.epoch + 1, placed.cores),
        lambda: card.program(placed.epoch, "ann/default", placed.cores, "old", None, None),
        lambda: card.run("ann/default", placed.epoch, world.net.image()),
    ):
        with pytest.raises(DeviceError, match="epoch"):
            call()
    again.infer("ann", 1)
    again.at_rest()


def test_answers_to_idempotency_keys_outlive_a_crash(make: Callable[..., World]) -> None:
    world = make()
    first = world.engine.create_lease(who("ann"), LeaseRequest("one", 2, 2), "key")
    again = make(card=world.crash())
    assert again.engine.create_lease(who("ann"), LeaseRequest("one", 2, 2), "key") == first
    assert len(again.engine.leases(who("ann"))) == 1
    again.engine.release_lease(who("ann"), "one", "gone")
    third = make(card=again.crash())
    third.engine.release_lease(who("ann"), "one", "gone")
    with pytest.raises(NotFoundError):
        third.engine.lease(who("ann"), "one")


def test_leases_come_back_in_their_order(make: Callable[..., World], nets: dict[str, Net], tmp_path: Path) -> None:
    world = make()
    for tenant, name in (("ann", "zz"), ("ben", "b"), ("ann", "a")):
        world.engine.create_lease(who(tenant), LeaseRequest(name, 2, 2, "public"))
    states = {(each.tenant, each.name): each.state for each in world.engine.leases(who("ann"))}
    assert states == {("ann", "zz"): "active", ("ann", "a"): "queued"}
    again = make(card=world.crash())
    assert again.engine.pilot.quiet()
    after = {each.name: (each.state, each.position) for each in again.engine.leases(who("ann"))}
    assert after == {"zz": ("active", None), "a": ("queued", 0)}
    again.at_rest()
