"""Placement: which cores a lease gets, in as few banks as possible, moving as little as possible.

It must not know leases, policies or time; it is pure functions over sets of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

BankOf = Callable[[int], int]
Cores = frozenset[int]


def pick(count: int, available: Iterable[int], bank_of: BankOf, ready: Cores = frozenset()) -> Cores:
    """``count`` of the available cores in as few banks as possible; of a bank those that are ``ready`` first.

    A bank that fits exactly is preferred, so that large gaps stay whole. Takes all if there are fewer.
    """
    banks: dict[int, list[int]] = {}
    for core in sorted(available, key=lambda core: (core not in ready, core)):
        banks.setdefault(bank_of(core), []).append(core)
    taken: list[int] = []
    while banks and len(taken) < count:
        need = count - len(taken)
        enough = [bank for bank in banks if len(banks[bank]) >= need]
        if enough:
            best = min(enough, key=lambda bank: (len(banks[bank]), -sum(c in ready for c in banks[bank]), bank))
        else:
            best = max(banks, key=lambda bank: (len(banks[bank]), -bank))
        taken += banks.pop(best)[:need]
    return frozenset(taken)


def grow(count: int, own: Cores, free: Cores, bank_of: BankOf, ready: Cores = frozenset()) -> Cores:
    """``own`` and as many free cores as are missing to ``count``: of own banks first, then of as few others as
    possible."""
    homes = {bank_of(core) for core in own}
    near = pick(count - len(own), [core for core in free if bank_of(core) in homes], bank_of, ready)
    far = pick(count - len(own) - len(near), free - near, bank_of, ready)
    return own | near | far


def arrange(
    targets: Mapping[str, int], own: Mapping[str, Cores], usable: Cores, ready: Cores, bank_of: BankOf
) -> dict[str, Cores]:
    """Cores for every lease: who shrinks keeps some of its own, who grows keeps all and gets others, larger leases
    first.

    ``own``: what each lease has now; ``ready``: cores that are free already. Results do not overlap.
    """
    plan: dict[str, Cores] = {}
    growing: list[str] = []
    free = set(usable)
    for lease, count in targets.items():
        mine = own[lease] & usable
        if count >= len(mine):
            plan[lease] = mine
            if count > len(mine):
                growing.append(lease)
        else:
            plan[lease] = pick(count, mine, bank_of)
        free -= plan[lease]
    left = frozenset(free)
    for lease in sorted(growing, key=lambda each: -targets[each]):
        plan[lease] = grow(targets[lease], plan[lease], left, bank_of, ready)
        left -= plan[lease]
    return plan


def in_order(cores: Iterable[int], bank_of: BankOf) -> tuple[int, ...]:
    """Cores as they are programmed: those of the fullest bank first. ``shape`` then tells a model's time, to a slot."""
    chosen = sorted(cores)
    size: dict[int, int] = {}
    for core in chosen:
        size[bank_of(core)] = size.get(bank_of(core), 0) + 1
    return tuple(sorted(chosen, key=lambda core: (-size[bank_of(core)], core)))


def shape(cores: Iterable[int], bank_of: BankOf) -> tuple[int, ...]:
    """How many cores lie in each bank that is used, largest first."""
    size: dict[int, int] = {}
    for core in cores:
        size[bank_of(core)] = size.get(bank_of(core), 0) + 1
    return tuple(sorted(size.values(), reverse=True))
