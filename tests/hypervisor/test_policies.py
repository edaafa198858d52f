"""Policies as pure functions: what they promise, over random demands.

It must not know leases or cores.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool.hypervisor.deadline import finishes, in_time, late_promises, private_deadline
from corepool.hypervisor.demand import Demand, Work, private_even
from corepool.hypervisor.forecast import forecast
from corepool.hypervisor.policies import POLICIES, private_throughput, public


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
                own=held,
                ready=draw(st.booleans()),
                ends_at=draw(st.integers(100, 2000)) if held and draw(st.booleans()) else None,
                layers=draw(st.sampled_from([0, 5])),
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
    pair = [Demand("a", "a", 0, 16, 0, 1, 0, large), Demand("b", "b", 0, 16, 0, 1, 0, small)]
    # a/n is worth sqrt(a)/n, so cores go by the fourth root of the work: 2 to 1.
    assert private_throughput(pair, 15, 0) == (10, 5)


def test_throughput_counts_the_jobs_that_gain() -> None:
    """k/n is worth k/n, so cores go by the root of the number of jobs; but not to who floods the card."""
    table = falling(1_600_000)

    def deal(first: int, second: int) -> tuple[int, ...]:
        return private_throughput(
            [Demand(n, n, 0, 16, 0, k, 0, table) for n, k in (("a", first), ("b", second))], 15, 0
        )

    assert deal(16, 1) == (12, 3)
    assert deal(4, 16) == (5, 10)
    assert deal(19, 17) == deal(17, 19), "of about as many both have about as much"
    assert deal(1 << 12, 2) == deal(64, 2)
    assert deal(1 << 12, 8) == (11, 4)


def test_throughput_stays_if_a_change_does_not_pay() -> None:
    def deal(switch_ns: int, other: int = 8_000) -> tuple[int, ...]:
        tables = falling(64_000), falling(other)
        return private_throughput(
            [Demand(f"l{i}", f"t{i}", 0, 16, 8, 1, 0, table, switch_ns) for i, table in enumerate(tables)], 16, 0
        )

    assert deal(0) != (8, 8)
    assert deal(100_000) == (8, 8)
    assert deal(0, 30_000) == (8, 8), "that would be better by less than a prediction can tell"


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


@pytest.mark.parametrize("layers", [0, 160])
def test_deadline_is_even_while_that_keeps_all_deadlines(layers: int) -> None:
    """No core lies idle while somebody has work."""
    table = falling(1600)
    jobs = (Work(5000, True, table),)
    working = Demand(
        "a", "a", 0, 16, 4, 1, 5000, table, busy_until=400, jobs=jobs, own=4, ready=True, ends_at=400, layers=layers,
        leaves_at=10 if layers else None,
    )  # fmt: skip
    assert private_deadline([working, Demand("b", "b", 0, 16, 4, 1, 5000, table, jobs=jobs)], 16, 0) == (8, 8)


def test_deadline_takes_the_deal_that_breaks_fewest_promises() -> None:
    """Economical, the first due gets so many cores that both others are late; evenly only it is."""
    table = falling(1600)
    dues = (101, 330, 330)
    three = [
        Demand(name, name, 0, 16, 0, 1, due, table, jobs=(Work(due, True, table),))
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


FOUR = falling(1600)


def lease(name: str, *dues: int, own: int = 0, ends_at: int | None = None, layers: int = 0, switch: int = 0) -> Demand:
    """A demand with jobs that are due then, each 1600 ns on one core; a busy one works for the first of them."""
    jobs = tuple(Work(due, True, FOUR) for due in dues)
    running, waiting = (jobs[0], jobs[1:]) if ends_at is not None else (None, jobs)
    return Demand(
        name, name, 0, 16, own, len(dues), min(dues, default=0), FOUR, switch, ends_at or 0, waiting,
        own=own, ready=own > 0, ends_at=ends_at, layers=layers, running=running,
    )  # fmt: skip


def test_forecast_waits_for_cores_until_their_holder_ends() -> None:
    """16 cores until 100; then 8 for each: 200 more. Without a second job of the holder all 16: 100 more."""
    for due, late in ((299, 1), (300, 0)):
        assert forecast([lease("a", 900, 900, own=16, ends_at=100), lease("b", due)], (8, 8), 16, 0) == (0, late)
    assert forecast([lease("a", 900, own=16, ends_at=100), lease("b", 200)], (8, 8), 16, 0) == (0, 0)


def test_forecast_stops_between_layers() -> None:
    """The holder gives up half after a tenth of its 100 ns; its other 90 take twice as long."""
    for due, late in ((209, 1), (210, 0)):
        holder = lease("a", 190, own=16, ends_at=100, layers=10)
        assert forecast([holder, lease("b", due)], (8, 8), 16, 0) == (0, late)
    assert forecast([lease("a", 189, own=16, ends_at=100, layers=10), lease("b", 900)], (8, 8), 16, 0) == (1, 0)


def test_forecast_deals_anew_when_somebody_has_done() -> None:
    """Each 200 on 8; then b has all 16 for its second: 100."""
    pair = [lease("a", 200), lease("b", 200, 300)]
    assert forecast(pair, (8, 8), 16, 0) == (0, 0)
    assert forecast([pair[0], lease("b", 200, 299)], (8, 8), 16, 0) == (0, 1)


def test_forecast_begins_on_some_cores_if_that_ends_earlier() -> None:
    """Two are free, six more come at 1000: 800 on two, not 1200."""
    holder = lease("a", 5000, own=14, ends_at=1000)
    assert forecast([holder, lease("b", 800)], (8, 8), 16, 0) == (0, 0)
    assert forecast([holder, lease("b", 799)], (8, 8), 16, 0) == (0, 1)
    soon = lease("a", 5000, own=14, ends_at=100)  # worth waiting for: 100 + 200
    assert forecast([soon, lease("b", 300)], (8, 8), 16, 0) == (0, 0)


def test_forecast_counts_the_time_of_changes() -> None:
    assert forecast([lease("a", 105, switch=5)], (16,), 16, 0) == (0,)
    assert forecast([lease("a", 104, switch=5)], (16,), 16, 0) == (1,)
    assert forecast([lease("a", 100, own=16, switch=5)], (16,), 16, 0) == (0,)  # programmed already


@given(given_demands=demands(), cores=st.integers(1, 16))
def test_forecast_sees_every_job_once(given_demands: list[Demand], cores: int) -> None:
    shares = private_even(given_demands, cores, 100)
    if sum(demand.own for demand in given_demands) > cores:
        return
    late = forecast(given_demands, shares, cores, 100)
    for demand, count in zip(given_demands, late, strict=True):
        assert 0 <= count <= sum(work.promised for work in demand.jobs)
    unbounded = [
        demand._replace(jobs=tuple(work._replace(due=1 << 63) for work in demand.jobs)) for demand in given_demands
    ]
    never = forecast(unbounded, shares, cores, 100)
    # All begin in the end, unless there are more leases with minima than cores.
    if sum(max(demand.minimum, 1) for demand in given_demands if demand.waiting) <= cores:
        assert not any(never)
