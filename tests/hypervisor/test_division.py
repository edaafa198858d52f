"""How cores are divided: by brute force and by playing queues through.

It must not know leases.
"""

from __future__ import annotations

import heapq
from itertools import combinations, combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool.hypervisor.division import MARGIN, Change, depth, divide, divisions, gains


def table(loss: float) -> tuple[int, ...]:
    """A network that loses this share of its time to every further core."""
    return tuple(int(16_000_000 / n * (1 + loss * (n - 1))) for n in range(1, 17))


TABLES = st.lists(st.integers(1_000, 1_000_000), min_size=16, max_size=16).map(
    lambda rates: tuple(sorted(rates, reverse=True))
)


def played_ns(latency: tuple[int, ...], sizes: tuple[int, ...], jobs: int) -> float:
    """Mean time until a job of a queue is done, each replica taking the next as soon as it is free."""
    free = [(0, latency[size - 1]) for size in sizes]
    heapq.heapify(free)
    ends = []
    for _ in range(jobs):
        at, each = heapq.heappop(free)
        ends.append(at + each)
        heapq.heappush(free, (at + each, each))
    return sum(ends) / jobs


def fits_banks(sizes: tuple[int, ...], cores: int, per_bank: int) -> bool:
    """True if every replica has whole banks, perhaps with the rest, or a part of one, and together they fit."""
    banks = [per_bank] * (cores // per_bank) + ([cores % per_bank] if cores % per_bank else [])

    def place(left: tuple[int, ...], free: tuple[int, ...]) -> bool:
        if not left:
            return True
        size, others = left[0], left[1:]
        if any(size <= each and place(others, (*free[:i], each - size, *free[i + 1 :])) for i, each in enumerate(free)):
            return True
        whole = [i for i, each in enumerate(free) if each == banks[i]]
        for count in range(2, len(whole) + 1):
            for some in combinations(whole, count):
                if sum(free[i] for i in some) == size:
                    rest = tuple(0 if i in some else each for i, each in enumerate(free))
                    if place(others, rest):
                        return True
        return False

    return place(sizes, tuple(banks))


@given(latency=TABLES, cores=st.integers(1, 16), per_bank=st.sampled_from([1, 2, 4, 8, 16]))
def test_divisions_use_all_cores_and_fit_banks(latency: tuple[int, ...], cores: int, per_bank: int) -> None:
    found = divisions(latency, cores, per_bank)
    assert [len(sizes) for sizes, _ in found] == list(range(1, cores + 1))
    for sizes, rate in found:
        assert sum(sizes) == cores
        assert list(sizes) == sorted(sizes, reverse=True)
        assert rate == pytest.approx(sum(1 / latency[size - 1] for size in sizes))
        assert fits_banks(sizes, cores, per_bank)


@given(latency=TABLES, cores=st.integers(2, 8))
def test_divisions_have_the_highest_rate_of_all_that_fit(latency: tuple[int, ...], cores: int) -> None:
    best = {len(sizes): rate for sizes, rate in divisions(latency, cores, 4)}
    for count in range(1, cores + 1):
        for sizes in combinations_with_replacement(range(1, cores + 1), count):
            if sum(sizes) == cores and fits_banks(sizes[::-1], cores, 4):
                rate = sum(1 / latency[size - 1] for size in sizes)
                assert rate <= best[count] * (1 + 1e-9)


@given(latency=TABLES, cores=st.integers(1, 16), waiting=st.integers(0, 5000), most=st.integers(1, 16))
def test_sizes_are_possible(latency: tuple[int, ...], cores: int, waiting: int, most: int) -> None:
    sizes = divide(latency, cores, 4, most, waiting)
    assert sum(sizes) == cores
    assert len(sizes) <= max(min(most, depth(waiting)), 1)
    if waiting < 2 or most < 2:
        assert sizes == (cores,)


@pytest.mark.parametrize("loss", [0.0, 0.001, 0.005, 0.02, 0.06])
@pytest.mark.parametrize("waiting", [1, 2, 4, 8, 16, 64, 256, 1024])
def test_no_other_division_does_a_queue_sooner(loss: float, waiting: int) -> None:
    """Of those with equal replicas, whose play is simple; to the margin, and what the formula leaves out."""
    latency = table(loss)
    chosen = divide(latency, 16, 4, 16, waiting)
    for sizes in ((16,), (8, 8), (4,) * 4, (2,) * 8, (1,) * 16):
        if len(sizes) <= waiting:
            assert played_ns(latency, chosen, waiting) <= 1.03 * played_ns(latency, sizes, waiting)


def test_deeper_queues_have_more_replicas() -> None:
    counts = [len(divide(table(0.02), 16, 4, 16, waiting)) for waiting in (1, 4, 16, 64, 256, 1024, 1 << 20)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == 16


def test_no_replica_is_without_a_job() -> None:
    flat = (1_000_000,) * 16  # further cores gain nothing
    assert [len(divide(flat, 16, 4, 16, waiting)) for waiting in (1, 2, 3, 4, 15, 16, 100)] == [1, 2, 2, 4, 8, 16, 16]


def test_perfect_scaling_is_never_divided() -> None:
    perfect = tuple(16_000_000 // n for n in range(1, 17))
    assert {divide(perfect, n, 4, 16, waiting) for n in range(1, 17) for waiting in (2, 64, 4096)} == {
        (n,) for n in range(1, 17)
    }
    assert not any(gains(perfect, n, 4) for n in range(1, 17))
    assert gains(table(0.02), 16, 4)


def test_what_there_is_stays_unless_a_change_pays() -> None:
    latency = table(0.02)
    assert divide(latency, 16, 4, 16, 64) == (4, 4, 4, 4)
    dear = Change(part_ns=10**9)
    for now in ((16,), (8, 8), (4, 4, 4, 4), (4, 4, 4, 2, 2)):
        assert divide(latency, 16, 4, 16, 64, now, dear) == now
    for now in ((16,), (8, 8)):
        assert divide(latency, 16, 4, 16, 64, now, Change(part_ns=1000, copy_ns=10**9)) == now, "weights are copied"
    cheap = Change(part_ns=1000, copy_ns=1000)
    assert divide(latency, 16, 4, 16, 64, (16,), cheap) == (4, 4, 4, 4)
    assert divide(latency, 16, 4, 16, 1, (4, 4, 4, 4), cheap) == (16,)


@given(latency=TABLES, waiting=st.integers(2, 4096), cores=st.integers(2, 16))
def test_asking_twice_changes_nothing(latency: tuple[int, ...], waiting: int, cores: int) -> None:
    change = Change(1000, 2000)
    once = divide(latency, cores, 4, 16, waiting, (cores,), change)
    assert divide(latency, cores, 4, 16, waiting, once, change) == once


def test_depth_counts_in_powers_of_two() -> None:
    assert [depth(n) for n in (0, 1, 2, 3, 4, 7, 8, 4095, 4096, 10**6)] == [1, 1, 2, 2, 4, 4, 8, 2048, 4096, 4096]
    assert 0 < MARGIN < 0.1
