"""Brief inferences are run where they come from, unless that keeps another lease waiting; all others on threads.

It must not know how the engine tells which are brief, only how long it was told that such may take.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from corepool.server.api import Identity, Inferred, InferRequest, LeaseRequest, ModelInfo
from corepool.server.dataplane import DataPlane
from support.engine import World, who

Make = Callable[..., World]
LONG_S, NEVER_S = 3600.0, 0.0  # all inferences are brief; none is


class Home:
    """Where a world's inferences come from; notes the threads that run them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.later: list[Callable[[], None]] = []
        self.ran: list[threading.Thread] = []
        run = world.card.run

        def noted(*arguments, **more):
            self.ran.append(threading.current_thread())
            return run(*arguments, **more)

        world.card.run = noted
        world.engine.at_home(self.later.append)

    def submit(self, seed: int = 0, tenant: str = "ann", **request) -> Future[Inferred]:
        return self.world.engine.submit(who(tenant), InferRequest("net", self.world.net.image(seed), **request))

    def here(self, seed: int = 0, tenant: str = "ann", **request) -> bool:
        """Whether an inference was run by this thread, before its submission returned; its answer is checked."""
        answer = self.submit(seed, tenant, **request)
        at_once = answer.done()
        assert self.world.net.right(answer.result(300), seed)
        assert (self.ran[-1] is threading.current_thread()) == at_once
        return at_once


@pytest.fixture
def home(make: Make) -> Iterator[Home]:
    """All inferences are brief, and nobody but their lease has work; the first has been run on a thread."""
    world = make(brief_s=LONG_S, linger_s=0.0)
    world.load("ann", "ben")
    made = Home(world)
    assert not made.here(), "nobody knows yet how long it takes"
    yield made
    world.engine.at_home(None)
    world.at_rest()


def test_what_is_brief_is_run_where_it_comes_from(home: Home) -> None:
    assert all(home.here(seed) for seed in range(1, 5))
    assert not home.later


def test_nothing_is_without_a_home(home: Home) -> None:
    home.world.engine.at_home(None)
    assert not home.here()


def test_what_takes_longer_is_run_on_threads(make: Make) -> None:
    world = make(brief_s=NEVER_S)
    world.load("ann")
    home = Home(world)
    assert not any(home.here(seed) for seed in range(3))


def test_another_lease_with_work_is_not_kept_waiting(make: Make) -> None:
    world = make("u200", brief_s=LONG_S, linger_s=3600.0)  # who had work once counts as having some
    world.load("ann", "ben")
    for tenant in ("ann", "ben"):
        world.engine.create_lease(who(tenant), LeaseRequest("two", 2, 2))
    home = Home(world)
    assert [home.here(seed, lease="two") for seed in range(3)] == [False, True, True]
    assert not home.here(1, "ben", lease="two")
    assert not home.here(2, lease="two")
    assert not home.here(3, "ben", lease="two")


def test_a_lease_that_switches_between_layers_can_be_stopped(make: Make) -> None:
    world = make(brief_s=LONG_S)
    world.load("ann")
    world.engine.create_lease(who("ann"), LeaseRequest("layered", 2, 2, switching="layer"))
    home = Home(world)
    assert not any(home.here(seed, lease="layered") for seed in range(3))


def test_what_had_to_wait_is_run_at_home_in_turn(home: Home) -> None:
    """While one thread runs a job others come; when it is done the next is left to the home, not to another thread."""
    world, gate, entered = home.world, threading.Event(), threading.Event()
    run = world.card.run

    def gated(*arguments, **more):
        entered.set()
        assert gate.wait(300)
        return run(*arguments, **more)

    world.card.run = gated
    elsewhere: list[Future[Inferred]] = []
    other = threading.Thread(target=lambda: elsewhere.append(home.submit(1)))
    other.start()
    assert entered.wait(30)
    waiting = [home.submit(seed) for seed in (2, 3)]
    gate.set()
    other.join(30)
    world.card.run = run
    assert not any(each.done() for each in waiting)
    for seed, each in zip((2, 3), waiting, strict=True):
        assert len(home.later) == 1, "one at a time, so that other things come between"
        home.later.pop()()
        assert world.net.right(each.result(0), seed)
    assert home.ran[-2:] == [threading.current_thread()] * 2


def test_inputs_that_are_refused_do_not_pass_for_brief_ones(home: Home) -> None:
    """What NaN makes of an inference is short, which says nothing of the next one."""
    before = home.world.card.took_ns("ann/default", home.world.card.placed("ann/default").epoch)
    image = {name: array * float("nan") for name, array in home.world.net.image().items()}
    answer = home.world.engine.submit(who("ann"), InferRequest("net", image))
    assert "NaN" in str(answer.exception(30))
    assert home.world.card.took_ns("ann/default", home.world.card.placed("ann/default").epoch) == before
    assert home.world.card.took_ns("ann/default", 10**9) is None, "of another epoch nothing is known"


def test_the_data_plane_offers_its_event_loop(make: Make) -> None:
    world = make(brief_s=LONG_S, linger_s=0.0)
    world.load("ann")
    home = Home(world)
    plane = DataPlane(world.engine, Library())

    async def requests() -> None:
        plane.at_home(asyncio.get_running_loop())
        for seeds in ((0,), (1,), (2, 3, 4, 5)):
            asked = [plane.infer(who("ann"), InferRequest("net", world.net.image(seed))) for seed in seeds]
            for seed, answer in zip(seeds, await asyncio.gather(*asked), strict=True):
                assert world.net.right(answer, seed)
        plane.at_home(None)
        assert world.net.right(await plane.infer(who("ann"), InferRequest("net", world.net.image(6))), 6)

    asyncio.run(requests())
    here = [thread is threading.current_thread() for thread in home.ran]
    assert here == [False, *[True] * 5, False]
    assert not home.later, "the loop took its place"


class Library:
    """A catalogue without models."""

    def index(self, who: Identity) -> list[ModelInfo]:
        return []

    async def load(self, who: Identity, name: str, parameters: dict) -> None:
        raise NotImplementedError

    async def unload(self, who: Identity, name: str) -> None:
        raise NotImplementedError
