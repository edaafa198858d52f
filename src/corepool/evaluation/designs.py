"""The designs that serve many tasks: the pool under its policies, one large core in turns, one small core each.

All of them are run by the hypervisor in virtual time; they must not know which workload comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from corepool.compiler.tables import MAX_CORES
from corepool.config import HardwareConfig
from corepool.evaluation.lab import Lab, Need
from corepool.evaluation.workers import Tell
from corepool.hypervisor.actions import Action, JobEnded
from corepool.hypervisor.backends import ByShape, TableBackend, measure, measured_model, shapes
from corepool.hypervisor.events import AddTenant, Event, LoadModel, RequestLease, Sharing, SubmitJob, Switching
from corepool.hypervisor.model import Model, model_of
from corepool.hypervisor.runner import Record, Runner, Watcher
from corepool.hypervisor.settings import Costs, Settings
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
    """A card, the latencies of networks on it, and how it is shared.

    ``each``: cores of a task if they are fixed; on a card that is shared, at most so many (0: all). ``replicas``: so
    many inferences of a task side by side at most; None leaves it to the hypervisor.
    """

    name: str
    kind: Kind
    settings: Settings
    models: Mapping[str, Model]
    by_shape: ByShape = field(default_factory=dict)
    each: int = 0
    switching: Switching = Switching.TASK
    replicas: int | None = None

    def run(self, tasks: Sequence[Task], events: Iterable[Event], until: int | None = None) -> Record:
        """Serve jobs (SubmitJob of a task's name) from time 0 on."""
        return self._runner().run(self._events(tasks, events), until)

    def saturate(self, tasks: Sequence[Task], in_flight: int, until: int) -> Served:
        """Every task has so many jobs under way at all times: when one ends the next comes."""
        waiting = [task for _ in range(in_flight) for task in tasks]
        owner: list[Task] = []

        def job(at: int, task: Task) -> Event:
            owner.append(task)
            event = SubmitJob(at, task.name, task.name, len(owner) - 1, self.models[task.network].name)
            return self._addressed(event)

        def follow(event: Event, actions: list[Action]) -> None:
            for action in actions:
                if isinstance(action, JobEnded):
                    runner.add(job(event.at, owner[action.job]))

        runner = self._runner(follow)
        record = runner.run(self._events(tasks, (job(0, task) for task in waiting)), until)
        sizes: dict[str, tuple[int, ...]] = {}
        for name, lease in runner.hypervisor.book.leases.items():
            planned = (len(replica.plan) for replica in lease.replicas if replica.plan)
            sizes[name] = tuple(sorted(planned, reverse=True))
        return Served(record, [task.name for task in owner], sizes)

    def _runner(self, watch: Watcher | None = None) -> Runner:
        backend = TableBackend(self.models, self.settings.bank_of, self.by_shape)
        return Runner(Hypervisor(self.settings), backend, watch)

    def source(self, task: Task) -> Source:
        """A task as the hypervisor's workloads know it."""
        fixed = self.kind is Kind.FIXED
        return Source(
            task.name, self.models[task.network], task.rate, task.burst, task.deadline_ns,
            minimum=self.each if fixed else 0,
            maximum=self.each or self.settings.cores,
            sharing=Sharing.PUBLIC if fixed else Sharing.PRIVATE,
            switching=self.switching,
            replicas=self.replicas,
        )  # fmt: skip

    def _events(self, tasks: Sequence[Task], events: Iterable[Event]) -> Iterator[Event]:
        if self.kind is Kind.TURNS:
            window = max(model.window_bytes for model in self.models.values())
            yield AddTenant(0, CARD, 1)
            for model in self.models.values():
                yield LoadModel(0, CARD, model)
            yield RequestLease(0, CARD, CARD, 1, 1, window, Sharing.PUBLIC)
        else:
            for task in tasks:
                yield from self.source(task).opening()
        for event in events:
            yield self._addressed(event)

    def _addressed(self, event: Event) -> Event:
        """Where all take turns a job is the card's."""
        if self.kind is Kind.TURNS and isinstance(event, SubmitJob):
            return replace(event, tenant=CARD, lease=CARD)
        return event


@dataclass(frozen=True)
class Served:
    """What became of tasks that always have work: ``owner`` is the task of each job, ``replicas`` the sizes of each
    lease's, at the end."""

    record: Record
    owner: list[str]
    replicas: dict[str, tuple[int, ...]]


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


@dataclass(frozen=True)
class Designs:
    """All designs, with latencies measured on the simulator. ``large`` has single cores by array shape, and
    ``large_models`` networks on each; ``macs`` are useful multiply-accumulates of one inference."""

    config: HardwareConfig
    relink_ns: int
    by_shape: Mapping[str, Mapping[tuple[int, ...], int]]
    pool_models: Mapping[str, Model]
    large: Mapping[str, HardwareConfig]
    large_models: Mapping[str, Mapping[str, Model]]
    macs: Mapping[str, int]

    def pool(self, policy: str = "private-even", switching: Switching = Switching.TASK) -> Design:
        """The pool with all that its changes cost."""
        settings = Settings.of(self.config, policy, self.relink_ns)
        name = policy if switching is Switching.TASK else f"{policy}, by layer"
        return Design(name, Kind.SHARED, settings, self.pool_models, self.by_shape, switching=switching)

    def whole(self) -> Design:
        """The pool, one inference of a task at a time, on all of its cores."""
        return replace(self.pool(), name="private-even, one at a time", replicas=1)

    def public(self, each: int) -> Design:
        """The pool in a public cloud: so many cores for each task."""
        settings = Settings.of(self.config, relink_ns=self.relink_ns)
        return Design(f"public, {each} each", Kind.FIXED, settings, self.pool_models, self.by_shape, each)

    def multi(self) -> Design:
        """Static small cores, one for each task; changes cost nothing."""
        settings = replace(Settings.of(self.config), costs=FREE)
        return Design("static multi-core", Kind.FIXED, settings, self.pool_models, self.by_shape, 1)

    def single(self, shape: str) -> Design:
        """A static large core, taken in turns in order of arrival; changes cost nothing."""
        settings = replace(Settings.of(self.large[shape]), costs=FREE)
        return Design(f"static {shape}", Kind.TURNS, settings, self.large_models[shape])


def needs(lab: Lab, large: Mapping[str, HardwareConfig]) -> list[Need]:
    """The packages of all designs."""
    return [Need(name, config) for name in lab.networks for config in (None, *large.values())]


def measure_designs(lab: Lab, large: Mapping[str, HardwareConfig], tell: Tell, relink_ns: int) -> Designs:
    """Measure every network on every shape of leases (in a quick look: on those of few banks), and on large cores."""
    config = lab.config
    some = lab.packed()
    every = [shape for shape in shapes(config.cores, config.banks) if sum(shape) <= min(config.cores, MAX_CORES)]
    by_shape, pool_models, macs = {}, {}, {}
    large_models: dict[str, dict[str, Model]] = {shape: {} for shape in large}
    for place, name in enumerate(lab.networks):
        chosen = some if lab.quick else every
        measured = lab.latencies(name, chosen, lambda what, s, p=place: tell(what, (p + s) / len(lab.networks)))  # type: ignore[misc]
        by_shape[name] = measured
        package = lab.package(name)
        pool_models[name] = measured_model(model_of(name, package, config), measured, config.cores_per_bank)
        macs[name] = package.meta["macs"]
        for shape, wide in large.items():
            package = lab.package(name, wide)
            taken = measure(lab.simulator(wide), package, [(1,)])[(1,)]
            large_models[shape][name] = model_of(name, package, wide).with_latency((taken,))
    return Designs(config, relink_ns, by_shape, pool_models, dict(large), large_models, macs)
