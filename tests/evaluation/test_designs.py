"""The designs on models small enough to calculate by hand.

It must not know the hypervisor's inside.
"""

from dataclasses import replace

import pytest

from corepool.config import preset
from corepool.evaluation.designs import FREE, Design, Kind, Task, arrivals, backlog, tasks_of
from corepool.evaluation.multi_task import _networks
from corepool.hypervisor.model import Model
from corepool.hypervisor.settings import Settings

MS = 1_000_000
POOL = preset("u200")


def model(name: str, work_ms: int) -> Model:
    """Scales perfectly: ``work_ms`` on one core."""
    return Model(name, tuple(work_ms * MS // n for n in range(1, 17)), (1000,) * 16, 4096)


def pool(kind: Kind = Kind.SHARED, each: int = 0, **models: int) -> Design:
    made = {name: model(name, work) for name, work in models.items()}
    return Design("pool", kind, replace(Settings.of(POOL), costs=FREE), made, each=each)


def single(**models: int) -> Design:
    made = {name: Model(name, (work * MS,), (1000,), 4096) for name, work in models.items()}
    return Design("single", Kind.TURNS, replace(Settings.of(preset("large")), costs=FREE), made)


def latencies(design: Design, tasks: list[Task], jobs: dict[str, int]) -> dict[str, list[int]]:
    """When the jobs of each task ended, in milliseconds (rounded)."""
    record = design.run(tasks, backlog(design, tasks, jobs))
    owner = _networks(tasks, jobs)
    ends: dict[str, list[int]] = {task.name: [] for task in tasks}
    for job, at in zip(record.job, record.ended, strict=True):
        ends[owner[job][0]].append(round(at / MS))
    return ends


def test_one_task_gets_the_whole_pool() -> None:
    tasks = tasks_of(["net"], 1)
    assert latencies(pool(net=160), tasks, {"task 0": 3}) == {"task 0": [10, 20, 30]}


def test_fixed_cores_are_kept() -> None:
    tasks = tasks_of(["net"], 3)
    jobs = {task.name: 2 for task in tasks}
    assert set(map(tuple, latencies(pool(Kind.FIXED, 1, net=160), tasks, jobs).values())) == {(160, 320)}
    assert set(map(tuple, latencies(pool(Kind.FIXED, 4, net=160), tasks, jobs).values())) == {(40, 80)}


def test_turns_in_order_of_arrival() -> None:
    tasks = tasks_of(["net", "big"], 2)
    assert latencies(single(net=10, big=30), tasks, {"task 0": 2, "task 1": 2}) == {
        "task 0": [10, 50],
        "task 1": [40, 80],
    }


def test_even_shares() -> None:
    tasks = tasks_of(["net"], 4)
    ends = latencies(pool(net=160), tasks, {task.name: 20 for task in tasks})
    last = [row[-1] for row in ends.values()]
    assert max(last) <= 20 * 40 + 40  # four cores each, but for the beginning
    assert min(last) >= 20 * 40 - 160


def test_arrivals_are_the_same_for_every_design() -> None:
    tasks = [replace(task, rate=50.0, burst=3.0, deadline_ns=MS) for task in tasks_of(["net"], 3)]
    seen = []
    for design in (pool(net=160), pool(Kind.FIXED, 2, net=160), single(net=10)):
        events = list(arrivals(design, tasks, 40, seed=3))
        seen.append([(event.at, event.tenant, event.job, event.deadline) for event in events])
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 40
    assert [row[2] for row in seen[0]] == list(range(40))
    other = [event.at for event in arrivals(pool(net=160), tasks, 40, seed=4)]
    assert other != [row[0] for row in seen[0]]


@pytest.mark.parametrize("count", [1, 5])
def test_owner_of_every_job(count: int) -> None:
    design = pool(net=160, big=320)
    tasks = tasks_of(["net", "big"], count)
    jobs = {task.name: 1 + number for number, task in enumerate(tasks)}
    owners = _networks(tasks, jobs)
    events = list(backlog(design, tasks, jobs))
    assert len(events) == sum(jobs.values()) == len(owners)
    for event in events:
        assert owners[event.job] == (event.tenant, event.model)


def test_leases_side_by_side_share_a_tasks_jobs() -> None:
    design = pool(each=4, net=160)
    assert [design.leases(count) for count in (1, 2, 3, 4, 5, 16)] == [4, 2, 2, 1, 1, 1]
    assert pool(net=160).leases(1) == 1
    tasks = tasks_of(["net"], 1)
    record = design.run(tasks, backlog(design, tasks, {"task 0": 12}))
    assert sorted(record.leases) == [f"task 0/{number}" for number in range(4)]
    assert sorted(record.job) == list(range(12))
    assert set(record.busy_ns) == {40 * MS}
    # Every lease does three jobs, one after the other, on the four cores of a bank.
    assert [round(at / MS) for at in record.ended] == [40] * 4 + [80] * 4 + [120] * 4
