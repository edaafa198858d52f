"""Division: into how many replicas a lease's cores are divided, each of which does one inference at a time.

It must not know leases, cores or time; it is pure functions over latency tables, in nanoseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

Sizes = tuple[int, ...]
Table = tuple[int, ...]  # entry n - 1: one inference on n cores in as few banks as possible

DEEPEST = 1 << 12  # a queue of so many jobs is as good as endless
MARGIN = 0.02  # another division has to be better by so much: below that, a prediction decides nothing


class Change(NamedTuple):
    """What it takes to get from the replicas that there are to others: ``part_ns`` for each that gets other cores (the
    host links one at a time), and ``copy_ns`` for each beyond those that there are, which needs the weights."""

    part_ns: int = 0
    copy_ns: int = 0


NO_CHANGE = Change()


def depth(waiting: int) -> int:
    """How deep a queue counts: the next smaller power of two. Divisions change with it, not with each job."""
    return 1 << min(max(waiting, 1), DEEPEST).bit_length() - 1


def divide(
    table: Table, cores: int, per_bank: int, most: int, waiting: int, now: Sizes = (), change: Change = NO_CHANGE
) -> Sizes:
    """Sizes of up to ``most`` replicas, largest first, by which ``waiting`` jobs (the running ones included) are done
    soonest on average.

    One job gets all cores. The deeper a queue is the more its rate counts, and the less how long the inference itself
    takes. ``now`` are the replicas that there are: they stay unless others are better by more than the change takes.
    """
    if most < 2 or cores < 2 or waiting < 2:
        return (cores,)
    return _divide(table, cores, per_bank, most, depth(waiting), now, change)


@lru_cache(maxsize=1 << 12)
def gains(table: Table, cores: int, per_bank: int) -> bool:
    """True if any division has a higher rate than one replica by more than the margin."""
    return cores > 1 and any(rate * table[cores - 1] > 1 + MARGIN for _, rate in divisions(table, cores, per_bank))


@lru_cache(maxsize=1 << 14)
def _divide(table: Table, cores: int, per_bank: int, most: int, jobs: int, now: Sizes, change: Change) -> Sizes:
    here = Counter(now)

    def mean_ns(sizes: Sizes, rate: float) -> float:
        """Until a job is done, over all of them: those that run end one after the other, too."""
        moved = Counter(sizes) - here
        extra = max(len(sizes) - len(now), 0)
        wait = change.part_ns * moved.total() + change.copy_ns * extra if now else 0
        if len(sizes) < len(now) and moved:  # cores of several come together: who ends first waits
            wait += table[max(now) - 1] // 2
        return (jobs + len(sizes)) / (2 * rate) + wait

    options = [each for each in divisions(table, cores, per_bank) if len(each[0]) <= min(most, jobs)]
    best = min(options, key=lambda each: (mean_ns(*each), len(each[0])))[0]
    stay = (now, sum(1 / table[size - 1] for size in now))
    possible = sum(now) == cores and len(now) <= min(most, jobs)
    if possible and mean_ns(*stay) <= (1 + MARGIN) * min(mean_ns(*each) for each in options):
        return now
    return best


@lru_cache(maxsize=1 << 10)
def divisions(table: Table, cores: int, per_bank: int) -> tuple[tuple[Sizes, float], ...]:
    """For each number of replicas the division with the highest rate, and that rate: jobs a nanosecond. A replica lies
    within a bank, or has whole ones."""
    banks, rest = divmod(cores, per_bank)
    best: dict[int, tuple[float, Sizes]] = {}
    for sizes in _groups(banks, rest, per_bank):
        rate = sum(1 / table[size - 1] for size in sizes)
        if len(sizes) not in best or (rate, sizes) > best[len(sizes)]:
            best[len(sizes)] = rate, sizes
    return tuple((best[count][1], best[count][0]) for count in sorted(best))


@lru_cache(maxsize=1 << 8)
def _groups(banks: int, rest: int, per_bank: int) -> tuple[Sizes, ...]:
    """All ways to divide some full banks and the rest of one more."""
    found: set[Sizes] = set()
    for whole in _partitions(banks, banks):
        wide = tuple(per_bank * count for count in whole if count > 1)
        single = whole.count(1)
        for parts in _in_banks(single, per_bank):
            for last in _partitions(rest, rest):
                found.add(tuple(sorted(wide + parts + last, reverse=True)))
            if rest:  # a whole group takes the rest in, too
                for place in range(len(wide)):
                    joined = (*wide[:place], wide[place] + rest, *wide[place + 1 :])
                    found.add(tuple(sorted(joined + parts, reverse=True)))
        if rest and single:
            for parts in _in_banks(single - 1, per_bank):
                found.add(tuple(sorted((*wide, per_bank + rest, *parts), reverse=True)))
    return tuple(sorted(found))


def _in_banks(banks: int, per_bank: int) -> set[Sizes]:
    """All ways to divide full banks, each for itself."""
    found: set[Sizes] = {()}
    for _ in range(banks):
        found = {
            tuple(sorted(before + parts, reverse=True)) for before in found for parts in _partitions(per_bank, per_bank)
        }
    return found


def _partitions(total: int, largest: int) -> Iterator[Sizes]:
    """All ways to write a number as a sum of parts, largest first."""
    if total == 0:
        yield ()
        return
    for part in range(min(total, largest), 0, -1):
        for others in _partitions(total - part, part):
            yield (part, *others)
