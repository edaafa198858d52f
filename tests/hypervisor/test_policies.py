"""Policies as pure functions: what they promise, over random demands.

It must not know leases or cores.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool.hypervisor.policies import (
    POLICIES,
    Demand,
    Work,
    finishes,
    in_time,
    late_promises,
    private_deadline,
    private_even,
    private_throughput,
    public,
)


def falling(one: int) -> tuple[int, ...]:
    return tuple(one // n for n in range(1, 17))


@st.composite
def demands(draw: st.DrawFn) -> list[Demand]:
    """Up to 8 leases of up to 6 tenants; what they hold fits 16 cores."""
    made = []
    left = 16
    for number in range(draw(st.integers(1, 8))):
        maximum = draw(st.integers(1, 16))
        held = draw(st.integers(0, min(maximum, left)))
        left -= held
        # Tables need not fall everywhere: real ones do not.
        bump = draw(st.integers(0, 15))
        table = tuple(t * 5 // 4 if n == bump else t for n, t in enumerate(falling(draw(st.integers(100, 10_000)))))
        waiting = draw(st.sampled_from([0, 0, 1, 2, 30]))
        jobs = tuple(Work(draw(st.integers(0, 20_000)), draw(st.booleans()), table) for _ in range(min(waiting, 3)))
        made.append(
            Demand(
                f"l{number}",
                draw(st.sampled_from("abcdef")),
                draw(st.integers(0, min(2, maximum))),
                maximum,
                held,
                waiting,
                draw(st.integers(-50, 50)),
                table,
                draw(st.integers(0, 1000)),
                draw(st.integers(0, 2000)),
                jobs,
                leaves_at=draw(st.sampled_from([None, 50, 1500])),
            )
        )
    return made


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(given_demands=demands(), cores=st.integers(1, 16))
def test_shares_are_possible_and_nobody_with_work_is_left_out(
    name: str, given_demands: list[Demand], cores: int
) -> None:
    shares = POLICIES[name].deal(given_demands, cores, 100)
    assert len(shares) == len(given_demands)
    assert sum(shares) <= cores
    busy = [(demand, share) for demand, share in zip(given_demands, shares, strict=True) if demand.waiting]
    for demand, share in zip(given_demands, shares, strict=True):
        assert 0 <= share <= demand.maximum
    if sum(max(demand.minimum, 1) for demand, _ in busy) <= cores:
        assert all(share >= max(demand.minimum, 1) for demand, share in busy)
    elif not any(demand.minimum > 1 for demand, _ in busy):
        # Too few cores: the most urgent of those without a promise are served.
        plain = [(demand.urgency, share) for demand, share in busy if demand.minimum == 0]
        served = [urgency for urgency, share in plain if share]
        assert not served or max(served) <= min([u for u, share in plain if not share], default=10**9)


@given(given_demands=demands())
def test_even_leaves_no_core_idle_and_is_even_among_tenants(given_demands: list[Demand]) -> None:
    shares = private_even(given_demands, 16, 0)
    busy = [(demand, share) for demand, share in zip(given_demands, shares, strict=True) if demand.waiting]
    if not busy:
        return
    assert sum(share for _, share in busy) == min(16, sum(demand.maximum for demand, _ in busy))
    sums: dict[str, int] = {}
    for demand, share in busy:
        sums[demand.tenant] = sums.get(demand.tenant, 0) + share
    for demand, share in busy:
        if share < demand.maximum and share:
            richer = [
                other
                for other, got in busy
                if sums[other.tenant] > sums[demand.tenant] + 1 and got > max(other.minimum, 1)
            ]
            assert not richer, f"{demand.lease} could have a core of {richer[0].lease}"


def test_even_keeps_odd_cores_where_they_are() -> None:
    three = [Demand(f"l{i}", f"t{i}", 0, 16, held, 1, -i, falling(100)) for i, held in enumerate((5, 6, 5))]
    assert private_even(three, 16, 0) == (5, 6, 5)


def test_throughput_gives_cores_where_they_save_most() -> None:
    large, small = falling(64_000), falling(4_000)
    pair = [Demand("a", "a", 0, 16, 8, 1, 0, large), Demand("b", "b", 0, 16, 8, 1, 0, small)]
    shares = private_throughput(pair, 16, 0)
    assert shares[0] > shares[1] >= 1
    assert sum(shares) == 16


def test_throughput_weighs_by_the_root_of_what_a_model_takes() -> None:
    """Sixteen times the work: between even shares and the four times as many cores that save most time in all."""
    large, small = falling(1_600_000), falling(100_000)
    pair = [Demand("a", "a", 0, 16, 0, 1, 0, large), Demand("b", "b", 0, 16, 0, 30, 0, small)]
    # a/n is worth sqrt(a)/n, so cores go by the fourth root of the work: 2 to 1.
    assert private_throughput(pair, 15, 0) == (10, 5)


def test_throughput_stays_if_a_change_does_not_pay() -> None:
    def deal(switch_ns: int) -> tuple[int, ...]:
        tables = falling(64_000), falling(30_000)
        return private_throughput(
            [Demand(f"l{i}", f"t{i}", 0, 16, 8, 1, 0, table, switch_ns) for i, table in enumerate(tables)], 16, 0
        )

    assert deal(0) != (8, 8)
    assert deal(100_000) == (8, 8)


def test_throughput_steps_over_a_bump_in_the_table() -> None:
    bumpy = (1000, 1001, 300, *[299] * 13)
    lone = [Demand("a", "a", 0, 16, 0, 1, 0, bumpy)]
    assert private_throughput(lone, 2, 0) == (1,)
    assert private_throughput(lone, 3, 0) == (3,)


def test_public_gives_all_or_nothing_and_nobody_overtakes() -> None:
    asked = [Demand(f"l{i}", "t", n, n, held, 0, i, ()) for i, (n, held) in enumerate([(8, 8), (9, 0), (1, 0), (4, 4)])]
    assert public(asked, 16, 0) == (8, 0, 0, 4)
    assert public(asked, 32, 0) == (8, 9, 1, 4)


def test_deadline_takes_as_few_cores_as_keep_it() -> None:
    table = falling(1200)
    urgent = Demand("a", "a", 0, 16, 0, 1, 300, table, jobs=(Work(300, True, table),))
    idle_rest = Demand("b", "b", 0, 16, 0, 2, 900, table, jobs=(Work(10_000, True, table),) * 2)
    shares = private_deadline([urgent, idle_rest], 16, 0)
    assert in_time(urgent, shares[0], 0)
    assert sum(shares) == 16
    assert not late_promises([urgent, idle_rest], shares, 16, 0)
    assert late_promises([urgent, idle_rest], (3, 13), 16, 0) == {"a": 1}


def test_finish_times_wait_for_cores_of_others() -> None:
    table = falling(1600)
    job = Work(0, True, table)
    growing = Demand("a", "a", 0, 16, 2, 3, 0, table, switch_ns=10, busy_until=50, jobs=(job,) * 3)
    assert finishes(growing, 2, 0) == [850, 1650, 2450]
    assert finishes(growing, 8, 0) == [260, 460, 660]
    assert finishes(growing, 8, 0, ready=700) == [850, 1060, 1260]  # one more on two cores, then eight
    assert finishes(growing, 0, 0)[0] > 10**15


def test_deadline_is_even_while_that_keeps_all_deadlines() -> None:
    """Who switches between layers gives cores back soon, so none lie idle; else a deal that is in time stays."""
    table = falling(1600)

    def pair(leaves_at: int | None) -> list[Demand]:
        jobs = (Work(5000, True, table),)
        working = Demand("a", "a", 0, 16, 4, 1, 5000, table, busy_until=400, jobs=jobs, leaves_at=leaves_at)
        return [working, Demand("b", "b", 0, 16, 4, 1, 5000, table, jobs=jobs)]

    assert private_deadline(pair(10), 16, 0) == (8, 8)
    assert private_deadline(pair(None), 16, 0) == (4, 4)


def test_deadline_takes_the_deal_that_breaks_fewest_promises() -> None:
    """Economical, the first due gets so many cores that both others are late; evenly only it is."""
    table = falling(1600)
    dues = (101, 330, 330)
    three = [
        Demand(name, name, 0, 16, 0, 1, due, table, jobs=(Work(due, True, table),), leaves_at=10)
        for name, due in zip("abc", dues, strict=True)
    ]
    shares = private_deadline(three, 16, 0)
    assert sorted(shares) == [5, 5, 6]
    assert late_promises(three, shares, 16, 0) == {"a": 1}


def test_cores_come_at_a_layers_end_or_at_a_jobs_end() -> None:
    table = falling(1600)
    coming = Demand("b", "b", 0, 16, 0, 1, 300, table, jobs=(Work(300, True, table),))

    def late(leaves_at: int | None) -> dict[str, int]:
        holder = Demand("a", "a", 0, 16, 16, 1, 9000, table, busy_until=250, leaves_at=leaves_at)
        return late_promises([holder, coming], (8, 8), 16, 0)

    assert late(None) == {"b": 1}  # 250 to wait, 200 to run
    assert late(90) == {}
    assert late(110) == {"b": 1}
    assert late(400) == {"b": 1}  # its job ends before
