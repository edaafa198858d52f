"""The part of single-task about a stream: one tenant with many requests under way, its cores divided by the hypervisor.

It must not know how cores are divided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from corepool.evaluation import anchors
from corepool.evaluation.anchors import TITLES
from corepool.evaluation.designs import Design, Kind, Task
from corepool.evaluation.lab import Lab, Shape
from corepool.evaluation.results import Claim, Outcome, Table
from corepool.evaluation.workers import Tell
from corepool.hypervisor.backends import measured_model
from corepool.hypervisor.model import Model, model_of
from corepool.hypervisor.settings import SECOND, Settings

IN_FLIGHT = (1, 4, 16, 64, 256)
CLAIMED = 64  # requests under way in the claim
ROUNDS = 50  # inferences on one core in a measurement

Streams = dict[str, dict[int, dict[int, dict[str, Any]]]]  # network, requests under way, cores: figures


@dataclass(frozen=True)
class _Case:
    """A network, the requests that are under way at all times, and the cores of the lease."""

    model: Model
    by_shape: dict[Shape, int]
    in_flight: int
    cores: int


def study(lab: Lab, tell: Tell) -> Outcome:
    """Throughput on 1 to 16 cores by the number of requests under way, as the hypervisor divides the cores."""
    counts = lab.counts()
    keys, cases = [], []
    for place, name in enumerate(lab.networks):
        by_shape = lab.latencies(
            name,
            lab.packed(),
            lambda what, s, p=place: tell(what, 0.5 * (p + s) / len(lab.networks)),  # type: ignore[misc]
        )
        model = measured_model(model_of(name, lab.package(name), lab.config), by_shape, lab.config.cores_per_bank)
        for in_flight in IN_FLIGHT:
            for n in counts:
                keys.append((name, in_flight, n))
                cases.append(
                    (f"{TITLES[name]}, {n} cores, {in_flight} under way", _Case(model, by_shape, in_flight, n))
                )
    rows = lab.each(_stream, cases, lambda what, share: tell(what, 0.5 + 0.5 * share))
    streams: Streams = {}
    for (name, in_flight, n), row in zip(keys, rows, strict=True):
        streams.setdefault(name, {}).setdefault(in_flight, {})[n] = row
    for by_depth in streams.values():
        for by_cores in by_depth.values():
            for n, row in by_cores.items():
                row["scaling"] = row["fps"] / (n * by_cores[counts[0]]["fps"])
    data = {
        name: {str(depth): {str(n): row for n, row in by_cores.items()} for depth, by_cores in by_depth.items()}
        for name, by_depth in streams.items()
    }
    return Outcome(data, [_least(streams), _sizes(streams)], [], [_claim(streams)], [])


def _stream(lab: Lab, case: _Case) -> dict[str, Any]:
    """Frames per second from the first end to the last, but for the first of each replica."""
    model, settings = case.model, Settings.of(lab.config)
    design = Design("stream", Kind.SHARED, settings, {model.name: model}, {model.name: case.by_shape}, case.cores)
    task = Task("stream", model.name)
    served = design.saturate([task], case.in_flight, (ROUNDS + 2) * model.latency_ns[0])
    sizes = served.replicas[task.name]
    ends = list(served.record.ended)[len(sizes) - 1 :]
    return {"fps": (len(ends) - 1) * SECOND / (ends[-1] - ends[0]), "replicas": list(sizes)}


def least(by_cores: dict[int, dict[str, Any]]) -> tuple[float, int]:
    """The least throughput over n times that of one core, and for which n."""
    return min((row["scaling"], n) for n, row in by_cores.items())


def _least(streams: Streams) -> Table:
    rows: list[tuple[Any, ...]] = []
    for name, by_depth in streams.items():
        found = [least(by_cores) for by_cores in by_depth.values()]
        rows.append((TITLES[name], *(f"{scaling:.3f} ({n} cores)" for scaling, n in found)))
    columns = ("network", *(str(depth) for depth in IN_FLIGHT))
    note = "One request under way is one image at a time; the more there are, the more replicas share the cores."
    title = "A stream: least throughput on n cores over n times that of one, by requests under way"
    return Table(title, columns, rows, note)


def _sizes(streams: Streams) -> Table:
    """What the hypervisor makes of the cores, for the claim's number of requests."""
    rows: list[tuple[Any, ...]] = []
    counts: list[int] = []
    for name, by_depth in streams.items():
        by_cores = by_depth[CLAIMED]
        counts = list(by_cores)
        rows.append((f"{TITLES[name]}, frames/s", *(row["fps"] for row in by_cores.values())))
        rows.append(("over n times one core", *(row["scaling"] for row in by_cores.values())))
        rows.append(("cores of each replica", *("+".join(map(str, row["replicas"])) for row in by_cores.values())))
    title = f"A stream with {CLAIMED} requests under way, by number of cores"
    return Table(title, ("network", *(str(n) for n in counts)), rows)


def _claim(streams: Streams) -> Claim:
    found = {name: least(by_depth[CLAIMED]) for name, by_depth in streams.items()}
    worst = min(found, key=lambda name: found[name])
    scaling, n = found[worst]
    goal = anchors.GOAL_SCALING
    by_name = ", ".join(f"{TITLES[name]} {each[0]:.2f} ({each[1]} cores)" for name, each in found.items())
    return Claim(
        f"Scaling of a stream with {CLAIMED} requests under way, cores divided by the hypervisor: throughput on n "
        "cores over that of one, least of all networks and n",
        "goal of this project",
        f">= {goal:.2f} n",
        f"{scaling:.2f} n ({TITLES[worst]}, {n} cores)",
        "reached" if scaling >= goal else "missed",
        f"Throughput of one tenant, not the latency of one image: that is the line above. Least of each: {by_name}. "
        "Latencies by table, in the hypervisor's virtual time, with linking, loading and clearing.",
        main=True,
    )
