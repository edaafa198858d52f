"""What an experiment is, and the list of them all in the order of the report.

It must not know how results are shown. Experiments are loaded when they are run.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from corepool.errors import InputError
from corepool.evaluation.lab import Lab, Need
from corepool.evaluation.results import Finding, Outcome, provenance
from corepool.evaluation.workers import Tell

Run = Callable[[Lab, Tell], Outcome]

COMPILING = 6  # what compiling for all takes, in the units of Experiment.weight


@dataclass(frozen=True)
class Experiment:
    """``name`` on the command line is also that of its module; ``weight`` is its part of the time."""

    name: str
    title: str
    question: str
    weight: int = 1

    @property
    def _module(self) -> ModuleType:
        return importlib.import_module(f"corepool.evaluation.{self.name.replace('-', '_')}")

    @property
    def run(self) -> Run:
        return cast(Run, self._module.run)

    def needs(self, lab: Lab) -> list[Need]:
        """The packages that it will ask for, if its module names some."""
        needs = getattr(self._module, "needs", None)
        return [] if needs is None else cast(list[Need], needs(lab))


EXPERIMENTS = (
    Experiment(
        "public-splits",
        "Public cloud: four ways to split a card",
        "Does each user of VGG16 get the share of the throughput that it leases, whatever the others do?",
    ),
    Experiment(
        "private-relink",
        "Private cloud: two cores, then four",
        "What does it cost to give ResNet50 or VGG16 other cores, and what does it bring?",
    ),
    Experiment(
        "isolation",
        "Isolation",
        "By how many cycles can neighbours, idle, busy or hostile, change a victim's latency?",
        weight=4,
    ),
    Experiment(
        "single-task",
        "One task on 1 to 16 cores",
        "How much of the peak does one image reach, by number of cores and way of tiling?",
        weight=4,
    ),
    Experiment(
        "compile-cost",
        "What compiling costs",
        "How long do the static and the dynamic compiler take, and how large is what they make?",
    ),
    Experiment(
        "multi-task",
        "Many tasks: the pool against static designs",
        "What do 1 to 16 tasks get from the pool, from one large core in turns, and from one small core each?",
        weight=8,
    ),
    Experiment(
        "switch-cost",
        "What it takes to switch",
        "How long until cores work for somebody else, after the task or after the layer that runs?",
    ),
    Experiment(
        "resources",
        "Area",
        "What does the pool cost on the card beside one large core of equal peak?",
    ),
)


def choose(names: Sequence[str]) -> list[Experiment]:
    """Experiments by name, in the order of the list; ``all`` is all. Raises InputError that lists the names."""
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    for name in names:
        if name not in known and name != "all":
            raise InputError(f"no experiment is called {name!r}; there are {', '.join(known)}, and all")
    return [each for each in EXPERIMENTS if "all" in names or each.name in names]


def carry_out(chosen: Sequence[Experiment], lab: Lab, folder: Path, tell: Tell) -> list[Finding]:
    """Run experiments one after the other and write each one's results at once. Packages that several will need are
    compiled before. Raises OSError."""
    findings = []
    total, done = COMPILING + sum(each.weight for each in chosen), COMPILING
    clock = _Clock(lab)
    lab.prepare(
        [need for each in chosen for need in each.needs(lab)],
        lambda what, share: tell(what, COMPILING * share / total),
    )
    compiling = clock.lap()
    for each in chosen:

        def inside(what: str, share: float, each: Experiment = each, done: int = done) -> None:
            tell(f"{each.name}: {what}", (done + each.weight * min(share, 1.0)) / total)

        inside("starting", 0.0)
        outcome = each.run(lab, inside)
        origin = provenance(lab.config, lab.seed, lab.quick, clock.lap() | {"compiling_before": compiling})
        finding = Finding(each.name, each.title, each.question, outcome, origin)
        finding.save(folder)
        findings.append(finding)
        done += each.weight
    return findings


class _Clock:
    """Seconds on the wall, and of processors in this process and the crew's."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._last = self._now()

    def _now(self) -> tuple[float, float]:
        crew = 0.0 if self._lab.crew is None else self._lab.crew.cpu_s
        return time.perf_counter(), time.process_time() + crew

    def lap(self) -> dict[str, float]:
        """Since the last lap."""
        before, self._last = self._last, self._now()
        wall, cpu = (round(now - then, 2) for now, then in zip(self._last, before, strict=True))
        return {"seconds": wall, "cpu_seconds": cpu}
