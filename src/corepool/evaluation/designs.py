"""The designs that serve many tasks: the pool under its policies, one large core in turns, one small core each.

All of them are run by the hypervisor in virtual time; they must not know which workload comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from corepool.compiler.tables import MAX_CORES
from corepool.config import HardwareConfig
from corepool.evaluation.lab import Lab, Tell
from corepool.hypervisor.backends import ByShape, TableBackend, measure, measured_model, packed, shapes
from corepool.hypervisor.events import AddTenant, Event, LoadModel, RequestLease, Sharing, SubmitJob, Switching
from corepool.hypervisor.model import Model, model_of
from corepool.hypervisor.runner import Record, Runner
from corepool.hypervisor.settings import SECOND, Costs, Settings
from corepool.hypervisor.state import Hypervisor
from corepool.hypervisor.workload import Source, workload

FREE = Costs(relink_ns=0, pcie_bytes_per_s=1 << 60, pcie_latency_ns=0, clear_ns=0)  # what baselines pay for changes
CARD = "card"


class Kind(Enum):
    """SHARED: private leases, dealt by a policy. FIXED: public cores for each task. TURNS: one queue for the card."""

    SHARED = "shared"
    FIXED = "fixed"
    TURNS = "turns"


@dataclass(frozen=True)
class Design:
    """A card, the latencies of networks on it, and how it is shared. ``each``: cores of a task, if they are fixed."""

    name: str
    kind: Kind
    settings: Settings
    models: Mapping[str, Model]
    by_shape: ByShape = field(default_factory=dict)
    each: int = 0
    switching: Switching = Switching.TASK

    def run(self, tasks: Sequence[Task], events: Iterable[Event], until: int | None = None) -> Record:
        """Serve jobs (SubmitJob of a task's name) from time 0 on."""
        hypervisor = Hypervisor(self.settings)
        backend = TableBackend(self.models, self.settings.bank_of, self.by_shape)
        runner = Runner(hypervisor, backend)
        return runner.run(self._events(tasks, events), until)

    def source(self, task: Task) -> Source:
        """A task as the hypervisor's workloads know it."""
        fixed = self.kind is Kind.FIXED
        return Source(
            task.name, self.models[task.network], task.rate, task.burst, task.deadline_ns,
            minimum=self.each if fixed else 0,
            maximum=self.each if fixed else self.settings.cores,
            sharing=Sharing.PUBLIC if fixed else Sharing.PRIVATE,
            switching=self.switching,
        )  # fmt: skip

    def _events(self, tasks: Sequence[Task], events: Iterable[Event]) -> Iterator[Event]:
        if self.kind is not Kind.TURNS:
            for task in tasks:
                yield from self.source(task).opening()
            yield from events
            return
        window = max(model.window_bytes for model in self.models.values())
        yield AddTenant(0, CARD, 1)
        for model in self.models.values():
            yield LoadModel(0, CARD, model)
        yield RequestLease(0, CARD, CARD, 1, 1, window, Sharing.PUBLIC)
        for event in events:
            yield replace(event, tenant=CARD, lease=CARD) if isinstance(event, SubmitJob) else event


@dataclass(frozen=True)
class Task:
    """A tenant with one network; ``rate`` jobs a second on average; deadlines in nanoseconds from submission."""

    name: str
    network: str
    rate: float = 1.0
    burst: float = 1.0
    deadline_ns: int | None = None


def tasks_of(networks: Sequence[str], count: int) -> list[Task]:
    """So many tasks with the networks in turn."""
    return [Task(f"task {number}", networks[number % len(networks)]) for number in range(count)]


def arrivals(design: Design, tasks: Sequence[Task], jobs: int, seed: int) -> Iterator[Event]:
    """``jobs`` jobs as they come; the same times for every design."""
    sources = [design.source(task) for task in tasks]
    return (event for event in workload(sources, jobs, seed) if isinstance(event, SubmitJob))


def backlog(design: Design, tasks: Sequence[Task], jobs: Mapping[str, int]) -> Iterator[Event]:
    """So many jobs of each task, all there from the start, in turns."""
    left = {task.name: jobs[task.name] for task in tasks}
    number = 0
    while any(left.values()):
        for task in tasks:
            if left[task.name]:
                left[task.name] -= 1
                yield SubmitJob(0, task.name, task.name, number, design.models[task.network].name)
                number += 1


class Designs:
    """All designs, with latencies measured on the simulator once."""

    def __init__(self, lab: Lab, large: Mapping[str, HardwareConfig], tell: Tell, relink_ns: int) -> None:
        self.lab = lab
        self.relink_ns = relink_ns
        self.by_shape: dict[str, dict[tuple[int, ...], int]] = {}
        self.pool_models: dict[str, Model] = {}
        self.large_models: dict[str, dict[str, Model]] = {shape: {} for shape in large}
        self.large = dict(large)
        config = lab.config
        most = min(config.cores, MAX_CORES)
        some = [packed(n, config.cores_per_bank) for n in range(1, most + 1)]
        every = [shape for shape in shapes(config.cores, config.banks) if sum(shape) <= most]
        for place, name in enumerate(lab.networks):
            tell(f"measuring {name}", place / len(lab.networks))
            package = lab.package(name)
            measured = measure(lab.simulator(), package, some if lab.quick else every)
            model = model_of(name, package, config)
            self.by_shape[name] = measured
            self.pool_models[name] = measured_model(model, measured, config.cores_per_bank)
            for shape, wide in large.items():
                taken = measure(lab.simulator(wide), lab.package(name, wide), [(1,)])
                self.large_models[shape][name] = model_of(name, lab.package(name, wide), wide).with_latency(
                    (taken[(1,)],)
                )

    def pool(self, policy: str = "private-even", switching: Switching = Switching.TASK) -> Design:
        """The pool with all that its changes cost."""
        settings = Settings.of(self.lab.config, policy, self.relink_ns)
        name = policy if switching is Switching.TASK else f"{policy}, by layer"
        return Design(name, Kind.SHARED, settings, self.pool_models, self.by_shape, switching=switching)

    def public(self, each: int) -> Design:
        """The pool in a public cloud: so many cores for each task."""
        settings = Settings.of(self.lab.config, relink_ns=self.relink_ns)
        return Design(f"public, {each} each", Kind.FIXED, settings, self.pool_models, self.by_shape, each)

    def multi(self) -> Design:
        """Static small cores, one for each task; changes cost nothing."""
        settings = replace(Settings.of(self.lab.config), costs=FREE)
        return Design("static multi-core", Kind.FIXED, settings, self.pool_models, self.by_shape, 1)

    def single(self, shape: str) -> Design:
        """A static large core, taken in turns in order of arrival; changes cost nothing."""
        settings = replace(Settings.of(self.large[shape]), costs=FREE)
        return Design(f"static {shape}", Kind.TURNS, settings, self.large_models[shape])


def seconds(nanoseconds: float) -> float:
    return nanoseconds / SECOND
