"""The part of multi-task in which jobs arrive by themselves: latency, deadlines and fairness at rising load.

It must not know how policies decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from corepool.evaluation import plots
from corepool.evaluation.designs import Design, Designs, Task, arrivals, tasks_of
from corepool.evaluation.lab import Lab
from corepool.evaluation.results import Claim, Outcome, Plot, Table, jain, mean
from corepool.evaluation.workers import Tell
from corepool.hypervisor.events import Switching
from corepool.hypervisor.settings import SECOND

TENANTS = 8
DEADLINE = 4  # times the latency on a tenant's even share of the pool
BURSTS = {"Poisson": 1.0, "bursty": 8.0}


@dataclass(frozen=True)
class Point:
    """One design at one load. Latencies in milliseconds over all jobs.

    ``fairness``: Jain's index over the tenants' mean slow-down against the whole pool; ``rate``: jobs a second, until
    the last was done; ``programs``: how often a lease's cores or model changed.
    """

    p50_ms: float
    p99_ms: float
    mean_ms: float
    mean_slowdown: float
    deadlines: float
    fairness: float
    rate: float
    programs: int


def study(lab: Lab, designs: Designs, tell: Tell) -> Outcome:
    """Every design at every load, with the same arrivals."""
    loads = (0.3, 0.7, 1.0) if lab.quick else tuple(round(0.1 * step, 1) for step in range(1, 13))
    jobs = 400 if lab.quick else 4000
    alone = {name: model.latency_ns[-1] for name, model in designs.pool_models.items()}
    compared = [
        designs.pool("private-even"),
        designs.pool("private-even", Switching.LAYER),
        designs.pool("private-throughput"),
        designs.pool("private-throughput", Switching.LAYER),
        designs.pool("private-deadline"),
        designs.pool("private-deadline", Switching.LAYER),
        designs.public(lab.config.cores // TENANTS),
        designs.multi(),
        *(designs.single(shape) for shape in designs.large),
    ]
    keys = [(burst, load, design) for burst in BURSTS for load in loads for design in compared]
    cases = [
        (f"{burst}, load {load:g}", _Case(design, _tasks(lab, designs, load, BURSTS[burst]), alone, jobs))
        for burst, load, design in keys
    ]
    points: dict[str, dict[str, dict[float, Point]]] = {}
    for (burst, load, design), point in zip(keys, lab.each(_point, cases, tell), strict=True):
        points.setdefault(burst, {}).setdefault(design.name, {})[load] = point
    data = {
        "tenants": TENANTS,
        "jobs": jobs,
        "deadline": f"{DEADLINE} times the latency on {lab.config.cores // TENANTS} cores of the pool",
        "points": {
            burst: {name: {str(load): vars(point) for load, point in row.items()} for name, row in by_design.items()}
            for burst, by_design in points.items()
        },
    }
    note = (
        f"Arrivals: {TENANTS} tenants, two with each network, {jobs} jobs, the same for every design. Load 1 is what "
        f"all {lab.config.cores} cores of the pool can do. A deadline is {DEADLINE} times the latency on a tenant's "
        "even share of the pool; jobs that private-deadline refuses count as missed, and its latencies are of the "
        "others. Slow-down is latency over that on "
        "the idle pool. Beyond load 1 queues grow as long as jobs come, so latencies depend on the number of jobs."
    )
    return Outcome(data, _tables(points), [_plot(points)], _claims(points), [note])


@dataclass(frozen=True)
class _Case:
    """A design, its tasks and the number of jobs; ``alone_ns``: an inference on the idle pool, by network."""

    design: Design
    tasks: list[Task]
    alone_ns: dict[str, int]
    jobs: int


def _tasks(lab: Lab, designs: Designs, load: float, burst: float) -> list[Task]:
    share = lab.config.cores // TENANTS
    made = []
    for task in tasks_of(lab.networks, TENANTS):
        latency = designs.pool_models[task.network].latency_ns
        rate = load * SECOND / latency[-1] / TENANTS
        made.append(replace(task, rate=rate, burst=burst, deadline_ns=DEADLINE * latency[share - 1]))
    return made


def _point(lab: Lab, case: _Case) -> Point:
    design, tasks = case.design, case.tasks
    network = {task.name: task.network for task in tasks}
    submitted = list(arrivals(design, tasks, case.jobs, lab.seed))
    owner = {event.job: event.tenant for event in submitted}  # type: ignore[attr-defined]
    record = design.run(tasks, submitted)
    if not len(record.job):  # every job was refused
        return Point(math.nan, math.nan, math.nan, math.nan, 0.0, math.nan, 0.0, record.spent.programs)
    latency = np.array(record.ended, np.int64) - np.array(record.submitted, np.int64)
    owners = [owner[job] for job in record.job]
    alone = np.array([case.alone_ns[network[name]] for name in owners], np.float64)
    slowdown = latency / alone
    by_tenant = [
        float(slowdown[[name == task.name for name in owners]].mean()) for task in tasks if task.name in owners
    ]
    in_time = len(record.late) - sum(record.late)
    return Point(
        p50_ms=float(np.quantile(latency, 0.5)) / 1e6,
        p99_ms=float(np.quantile(latency, 0.99)) / 1e6,
        mean_ms=float(latency.mean()) / 1e6,
        mean_slowdown=float(slowdown.mean()),
        deadlines=in_time / case.jobs,
        fairness=jain(by_tenant),
        rate=len(latency) * SECOND / record.now,
        programs=record.spent.programs,
    )


def _tables(points: dict[str, dict[str, dict[float, Point]]]) -> list[Table]:
    tables = []
    for burst, by_design in points.items():
        loads = list(next(iter(by_design.values())))
        for what, title, factor in (
            ("p50_ms", "median latency, ms", 1.0),
            ("p99_ms", "99th percentile of latency, ms", 1.0),
            ("mean_ms", "mean latency, ms", 1.0),
            ("rate", "jobs a second until the last is done", 1.0),
            ("deadlines", "deadlines met, %", 100.0),
            ("fairness", "fairness (Jain) of slow-down", 1.0),
        ):
            rows: list[tuple[Any, ...]] = [
                (name, *(factor * getattr(row[load], what) for load in loads)) for name, row in by_design.items()
            ]
            tables.append(Table(f"{burst} arrivals: {title}, by load", ("design", *(f"{x:g}" for x in loads)), rows))
    return tables


def _look(name: str) -> dict[str, Any]:
    """Policies by colour, switches by layer dashed, static designs grey."""
    base, _, by_layer = name.partition(", by layer")
    statics = ("public", "static multi-core", "static 16x16x16", "static 4x32x32")
    place = next((k for k, static in enumerate(statics) if base.startswith(static)), None)
    if place is not None:
        greys = ("#000000", "#555555", "#888888", "#bbbbbb")
        return {"color": greys[place], "marker": plots.MARKERS[4 + place], "linestyle": ":", "markersize": 4}
    colours = {"private-even": 0, "private-throughput": 1, "private-deadline": 2}
    index = colours.get(base, 3)
    style: dict[str, Any] = {"color": plots.COLOURS[index], "marker": plots.MARKERS[index], "markersize": 4}
    return style | ({"linestyle": "--", "markerfacecolor": "white"} if by_layer or name != base else {})


def _plot(points: dict[str, dict[str, dict[float, Point]]]) -> Plot:
    made, axes = plots.figure(len(points), 3, width=13, height=3.5)
    for row, (burst, by_design) in enumerate(points.items()):
        left, middle, right = axes[3 * row : 3 * row + 3]
        for name, line in by_design.items():
            loads, look = list(line), _look(name)
            plots.line(left, 0, loads, [point.p99_ms for point in line.values()], name, **look)
            plots.line(middle, 0, loads, [100 * point.deadlines for point in line.values()], name, **look)
            plots.line(right, 0, loads, [point.fairness for point in line.values()], name, **look)
        left.set(yscale="log", ylabel=f"{burst}: p99 latency, ms", xlabel="load")
        middle.set(ylabel="deadlines met, %", xlabel="load", ylim=(0, 103))
        right.set(ylabel="fairness (Jain)", xlabel="load", ylim=(0, 1.03))
    plots.legend(made, axes[0], 5)
    caption = (
        "Eight tenants with four networks at rising load: latency, deadlines met and fairness of every design. Colours "
        "are policies (dashed: switches between layers), greys fixed and static designs."
    )
    return Plot("multi-task-arrivals.png", caption, plots.png(made))


Points = dict[str, dict[str, dict[float, Point]]]
FULL, BUSY = 1.0, 0.7  # loads


def _claims(points: Points) -> list[Claim]:
    bursty = points["bursty"]
    public = next(name for name in bursty if name.startswith("public"))
    return [*(_faster(bursty, other) for other in ("private-even", public)), *_punctual(points)]


def _figures(point: Point) -> str:
    latency = f"p99 {point.p99_ms:.0f} ms, mean {point.mean_ms:.0f} ms"
    return f"{latency}, {point.rate:.1f} jobs/s, fairness {point.fairness:.2f}"


def _faster(bursty: dict[str, dict[float, Point]], other: str) -> Claim:
    """private-throughput against another way to share, where the card is full; below that all do what comes."""
    name = "private-throughput"
    load = min(bursty[name], key=lambda each: abs(each - FULL))
    less = min(bursty[name], key=lambda each: abs(each - BUSY))
    ours, theirs = bursty[name][load], bursty[other][load]
    better = ours.p99_ms < theirs.p99_ms and ours.rate > theirs.rate
    reason = (
        f"At load {less:g} the rate is that of the arrivals: {_figures(bursty[other][less])} there, against "
        f"{_figures(bursty[name][less])}. Cores follow the queues, so the longest waits become shorter; the price is "
        f"the median, {theirs.p50_ms:.0f} against {ours.p50_ms:.0f} ms, since small networks, of which most jobs "
        "are, wait longer than with even shares; tenants who mind choose private-even."
    )
    return Claim(
        f"{name} against {other}, mixed bursty load {load:g}",
        "goal of this project: better p99 and throughput",
        _figures(theirs),
        _figures(ours),
        "reached" if better else "missed",
        reason,
        main=True,
    )


def _punctual(points: Points) -> Iterator[Claim]:
    """private-deadline against all other ways to share the pool that switch as it does: by switching and arrivals."""
    for layered in (True, False):
        name = "private-deadline, by layer" if layered else "private-deadline"
        for burst, by_design in points.items():
            others = [each for each in by_design if each.startswith(("private-", "public")) and "deadline" not in each]
            if not layered:
                others = [each for each in others if not each.endswith(", by layer")]
            loads = list(by_design[name])
            ours = {load: by_design[name][load].deadlines for load in loads}
            best = {load: max(by_design[each][load].deadlines for each in others) for load in loads}
            mean_ours, mean_best = (mean(list(each.values())) for each in (ours, best))
            least = min(loads, key=lambda load: ours[load] - best[load])
            even = {load: by_design[name.replace("deadline", "even")][load].deadlines for load in loads}
            worst = min(loads, key=lambda load: ours[load] - even[load])
            yield Claim(
                f"{name}{'' if layered else ', by task'}: deadlines met under {burst} arrivals, mean over loads "
                f"{loads[0]:g} to {loads[-1]:g}",
                "goal of this project: not worse than other policies",
                f"{100 * mean_best:.1f}% (at each load the best of {len(others)})",
                f"{100 * mean_ours:.1f}%",
                "reached" if mean_ours >= mean_best else "missed",
                f"The least favourable load is {least:g}: {100 * ours[least]:.1f}% against {100 * best[least]:.1f}%. "
                f"Beside private-even alone: {100 * mean(list(even.values())):.1f}% on average; least favourable is "
                f"load {worst:g}, {100 * ours[worst]:.1f}% against {100 * even[worst]:.1f}%. Refused jobs count "
                "as missed.",
            )
