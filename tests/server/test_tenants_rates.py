"""Token buckets: never more than the rate and the burst allow, in any sequence of asking and waiting.

It must not know who asks.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool.server.rates import Buckets, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


steps = st.lists(st.floats(0, 3), min_size=1, max_size=60)


@given(steps, st.floats(0.1, 20), st.integers(1, 10))
def test_a_bucket_gives_what_its_rate_allows(waits: list[float], per_s: float, burst: int) -> None:
    clock = Clock()
    buckets = Buckets(clock=clock)
    rate = Rate(per_s, burst)
    taken: list[float] = []
    for wait in waits:
        clock.now += wait
        delay = buckets.take("a", rate)
        if delay == 0:
            taken.append(clock.now)
        else:
            assert 0 < delay <= 1 / per_s + 1e-9
    for first, begun in enumerate(taken):
        for last, ended in enumerate(taken[first:], first):
            assert last - first + 1 <= burst + (ended - begun) * per_s + 1e-6


def test_the_delay_told_is_the_time_until_the_next_token() -> None:
    clock = Clock()
    buckets = Buckets(clock=clock)
    rate = Rate(4, 1)
    assert buckets.take("a", rate) == 0
    clock.now += 0.1
    delay = buckets.take("a", rate)
    clock.now += delay - 0.01
    assert buckets.take("a", rate) > 0
    clock.now += 0.011
    assert buckets.take("a", rate) == 0


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    clock = Clock()
    buckets = Buckets(clock=clock)
    assert buckets.take("a", Rate(1, 1)) == 0
    clock.now -= 100
    assert buckets.take("a", Rate(1, 1)) > 0


def test_tokens_given_back_never_exceed_the_burst() -> None:
    buckets = Buckets(clock=Clock())
    for _ in range(5):
        buckets.give_back("a", Rate(1, 2))
    assert [buckets.take("a", Rate(1, 2)) == 0 for _ in range(3)] == [True, True, False]


def test_buckets_are_bounded_and_the_oldest_goes() -> None:
    buckets = Buckets(bound=3, clock=Clock())
    rate = Rate(1, 1)
    for name in "abcad":
        buckets.take(name, rate)
    assert len(buckets) == 3
    assert buckets.take("a", rate) > 0, "used lately, so still there"
    assert buckets.take("b", rate) == 0, "forgotten"
    buckets.forget("a")
    assert buckets.take("a", rate) == 0


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (-1, 1), (1, 0), (float("inf"), 1), (float("nan"), 1)])
def test_rates_that_are_none(per_s: float, burst: float) -> None:
    with pytest.raises(ValueError, match="is none"):
        Rate(per_s, burst)
