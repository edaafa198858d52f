"""Placement: few banks, no core twice, nothing moves that need not.

It must not know leases.
"""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from corepool.hypervisor.backends import shapes
from corepool.hypervisor.placement import arrange, grow, in_order, pick, shape


def bank_of(core: int) -> int:
    return core // 4


def banks(cores: frozenset[int]) -> int:
    return len({bank_of(core) for core in cores})


CORES = st.frozensets(st.integers(0, 15))


@given(available=CORES, count=st.integers(0, 16), ready=CORES)
def test_pick_uses_as_few_banks_as_any_choice(available: frozenset[int], count: int, ready: frozenset[int]) -> None:
    chosen = pick(count, available, bank_of, ready)
    assert chosen <= available
    assert len(chosen) == min(count, len(available))
    used = {bank_of(core) for core in available}
    enough = [
        len(some)
        for size in range(len(used) + 1)
        for some in combinations(sorted(used), size)
        if sum(bank_of(core) in some for core in available) >= len(chosen)
    ]
    assert banks(chosen) == min(enough)


@given(own=CORES, free=CORES, count=st.integers(0, 16))
def test_growth_keeps_everything_and_fills_own_banks_first(
    own: frozenset[int], free: frozenset[int], count: int
) -> None:
    free -= own
    grown = grow(count, own, free, bank_of)
    assert own <= grown <= own | free
    assert len(grown) == max(len(own), min(count, len(own) + len(free)))
    homes = {bank_of(core) for core in own}
    if any(bank_of(core) not in homes for core in grown):
        assert all(core in grown for core in free if bank_of(core) in homes)


@given(
    owners=st.lists(st.integers(0, 4), min_size=16, max_size=16),
    wanted=st.lists(st.integers(0, 6), min_size=4, max_size=4),
    lost=CORES,
)
def test_arrangements_do_not_overlap_and_move_little(
    owners: list[int], wanted: list[int], lost: frozenset[int]
) -> None:
    own = {str(i): frozenset(core for core, owner in enumerate(owners) if owner == i) for i in range(4)}
    usable = frozenset(range(16)) - lost
    targets: dict[str, int] = {}
    for name, count in enumerate(wanted):
        targets[str(name)] = min(count, len(usable) - sum(targets.values()))
    plan = arrange(targets, own, usable, frozenset(), bank_of)
    assert sum(len(cores) for cores in plan.values()) == len(frozenset().union(*plan.values()))
    for name, cores in plan.items():
        assert len(cores) == targets[name]
        assert cores <= usable
        mine = own[name] & usable
        assert cores <= mine or mine <= cores


def test_order_puts_the_fullest_bank_first_so_that_the_shape_says_all() -> None:
    assert in_order([0, 9, 8, 4, 10], bank_of) == (8, 9, 10, 0, 4)
    assert shape([0, 9, 8, 4, 10], bank_of) == (3, 1, 1)
    assert len(set(shapes(16, 4))) == len(shapes(16, 4)) == 69
    assert set(shapes(4, 2)) == {(1,), (2,), (1, 1), (2, 1), (2, 2)}
