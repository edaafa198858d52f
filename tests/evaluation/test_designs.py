"""The designs on models small enough to calculate by hand.

It must not know the hypervisor's inside.
"""

from dataclasses import replace

import pytest

from corepool.config import preset
from corepool.evaluation.designs import FREE, Design, Kind, Task, arrivals, tasks_of
from corepool.hypervisor.events import SubmitJob
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
    owner = [task for turn in range(max(jobs.values())) for task in tasks if turn < jobs[task.name]]
    record = design.run(
        tasks, [SubmitJob(0, task.name, task.name, number, task.network) for number, task in enumerate(owner)]
    )
    ends: dict[str, list[int]] = {task.name: [] for task in tasks}
    for job, at in zip(record.job, record.ended, strict=True):
        ends[owner[job].name].append(round(at / MS))
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


@pytest.mark.parametrize("design", [pool(net=160), pool(Kind.FIXED, 2, net=160), single(net=10)])
def test_tasks_that_always_have_work(design: Design) -> None:
    """Each of two tasks has five jobs under way at all times; by turns, on eight cores or on two fixed ones."""
    served = design.saturate(tasks_of(["net"], 2), 5, 1600 * MS)
    ended = [served.owner[job] for job in served.record.job]
    each = {Kind.SHARED: 80, Kind.FIXED: 20, Kind.TURNS: 80}[design.kind]
    assert abs(ended.count("task 0") - each) <= 1
    assert abs(ended.count("task 1") - each) <= 1
    assert len(served.owner) - len(ended) == 10


def test_the_hypervisor_divides_the_cores_of_a_busy_task() -> None:
    """On 16 cores 20 ms, on 4 cores 40: two by two banks do twice as much."""
    table = tuple((160, 80, 60, 40, 38, 36, 34, 32, 31, 30, 29, 28, 27, 26, 25, 20)[n] * MS for n in range(16))
    slow = replace(pool(net=160), models={"net": replace(model("net", 160), latency_ns=table)})
    served = slow.saturate(tasks_of(["net"], 1), 64, 4000 * MS)
    assert served.replicas == {"task 0": (4, 4, 4, 4)}
    assert abs(len(served.record.job) - 4000 // 40 * 4) <= 8
    assert set(served.record.cores) == {4}
    alone = replace(slow, replicas=1).saturate(tasks_of(["net"], 1), 64, 4000 * MS)
    assert alone.replicas == {"task 0": (16,)}
    assert abs(len(alone.record.job) - 4000 // 20) <= 2
    few = replace(slow, each=5).saturate(tasks_of(["net"], 1), 64, 4000 * MS)
    assert few.replicas == {"task 0": (4, 1)}
