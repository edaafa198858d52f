"""Tenants share the process: counts, turns and the pace of refusals, as lists of who came and who went."""

import asyncio
import random
from collections import Counter

import pytest

from corepool.errors import TooManyRequestsError
from corepool.server.turnstile import (
    LONGEST_WAIT_S,
    READ_ALONE,
    READ_AMONG_OTHERS,
    REFUSALS_AT_ONCE,
    REFUSALS_PER_S,
    SLOW_S,
    Pace,
    Turnstile,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def filled(turnstile: Turnstile, tenant: str, most: int = 1_000_000) -> int:
    """How many more of a tenant's requests may come in."""
    count = 0
    while True:
        try:
            turnstile.enter(tenant, most)
        except TooManyRequestsError:
            return count
        count += 1


def test_a_tenant_has_its_own_limit() -> None:
    turnstile = Turnstile(100)
    assert filled(turnstile, "a", 10) == 10
    turnstile.leave("a")
    assert filled(turnstile, "a", 10) == 1
    assert filled(turnstile, "b", 20) == 20


def test_one_alone_may_have_all_places() -> None:
    clock = Clock()
    turnstile = Turnstile(64, clock)
    turnstile.enter("a", 100)
    clock.now += 10
    assert filled(turnstile, "a") == 63


@pytest.mark.parametrize("floods", [1, 2, 5, 20])
def test_whoever_comes_next_finds_room(floods: int) -> None:
    turnstile = Turnstile(256, Clock())
    names = [f"flood{number}" for number in range(floods)]
    for _ in range(1000):  # all of them ask for more all the time
        for name in names:
            try:
                turnstile.enter(name, 64)
            except TooManyRequestsError:
                continue
    turnstile.enter("quiet", 64)
    turnstile.leave("quiet")
    turnstile.enter("quiet", 64)


def test_places_come_back() -> None:
    turnstile, rng, inside = Turnstile(16, Clock()), random.Random(7), Counter[str]()
    for _ in range(5000):
        tenant = rng.choice("abcd")
        if rng.random() < 0.5 and inside[tenant]:
            inside[tenant] -= 1
            turnstile.leave(tenant)
        else:
            try:
                turnstile.enter(tenant, 6)
            except TooManyRequestsError:
                assert inside[tenant] == 6 or sum(inside.values()) >= 16 * 8 // 9 - 8
                continue
            inside[tenant] += 1
        assert sum(inside.values()) <= 16
        assert max(inside.values()) <= 6
    for tenant, count in inside.items():
        for _ in range(count):
            turnstile.leave(tenant)
    assert turnstile._inside == {}
    assert turnstile._all == 0


@pytest.mark.parametrize(("crowded", "most"), [(False, READ_ALONE), (True, READ_AMONG_OTHERS)])
def test_so_many_bodies_of_a_tenant_are_read_at_a_time_and_in_order(crowded: bool, most: int) -> None:
    async def work() -> None:
        clock = Clock()
        turnstile = Turnstile(1000, clock)
        turnstile.enter("a", 100)
        if crowded:
            turnstile.enter("b", 100)
        else:
            clock.now += 10
        reading, order = 0, []

        async def one(number: int) -> None:
            nonlocal reading
            done = await turnstile.read("a")
            order.append(number)
            reading += 1
            assert reading <= most
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            reading -= 1
            done()
            done()

        await asyncio.gather(*(one(number) for number in range(100)))
        assert order == list(range(100))
        assert turnstile._reading == {}
        assert turnstile._waiting == {}

    asyncio.run(work())


def test_another_tenants_bodies_wait_for_nobody() -> None:
    async def work() -> None:
        turnstile = Turnstile(1000, Clock())
        for tenant in "ab":
            turnstile.enter(tenant, 100)
        waiting = [asyncio.create_task(turnstile.read("a")) for _ in range(50)]
        await asyncio.sleep(0)
        async with asyncio.timeout(SLOW_S / 2):
            (await turnstile.read("b"))()
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.sleep(SLOW_S * 2)
        assert turnstile._reading == {}
        assert turnstile._waiting == {}

    asyncio.run(work())


def test_slow_bodies_make_room() -> None:
    """Bodies that never come keep none of the same tenant out for longer than a moment."""

    async def work() -> None:
        turnstile = Turnstile(1000, Clock())
        for tenant in "ab":
            turnstile.enter(tenant, 100)
        async with asyncio.timeout(60):
            held = [await turnstile.read("a") for _ in range(READ_AMONG_OTHERS * 3)]
        for done in held:
            done()
        await asyncio.sleep(SLOW_S * 2)
        assert turnstile._reading == {}

    asyncio.run(work())


def test_clients_that_leave_while_they_wait_take_no_turn() -> None:
    async def work() -> None:
        turnstile, rng = Turnstile(1000, Clock()), random.Random(3)
        for tenant in "ab":
            turnstile.enter(tenant, 100)

        async def one() -> None:
            done = await turnstile.read("a")
            try:
                await asyncio.sleep(0)
            finally:
                done()

        for _ in range(200):
            tasks = [asyncio.create_task(one()) for _ in range(8)]
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            for each in rng.sample(tasks, 4):
                each.cancel()
            async with asyncio.timeout(60):
                await asyncio.gather(*tasks, return_exceptions=True)
            assert turnstile._reading == {}
            assert turnstile._waiting == {}

    asyncio.run(work())


def test_refusals_are_told_at_once_until_there_are_too_many() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert [pace.wait_s("a") for _ in range(REFUSALS_AT_ONCE)] == [0.0] * REFUSALS_AT_ONCE
    waits = [pace.wait_s("a") for _ in range(1000)]
    assert waits == sorted(waits)
    assert 0 < waits[1] < 3 / REFUSALS_PER_S
    assert waits[-1] == pytest.approx(LONGEST_WAIT_S)
    assert pace.wait_s("b") == 0.0
    clock.now += 10
    assert pace.wait_s("a") == 0.0


def test_senders_are_forgotten() -> None:
    pace = Pace(Clock())
    for number in range(20_000):
        pace.wait_s(str(number))
    assert len(pace._next) <= 10_000
