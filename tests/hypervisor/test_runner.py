"""The runner in virtual time: accounted costs, equal records from equal seeds, tables against the cycle simulator.

It must not know how policies decide.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from corepool.compiler.model import ModelPackage
from corepool.compiler.static.compile import compile_graph
from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.errors import DeadlineError, DeviceError
from corepool.hypervisor import actions as ac
from corepool.hypervisor import events as ev
from corepool.hypervisor.backends import (
    Backend,
    DeviceBackend,
    Faulty,
    TableBackend,
    measure,
    measured_model,
    packed,
)
from corepool.hypervisor.checks import violations
from corepool.hypervisor.log import replay, snapshot
from corepool.hypervisor.model import Model, model_of
from corepool.hypervisor.policies import POLICIES
from corepool.hypervisor.runner import Record, Runner
from corepool.hypervisor.settings import Costs, Settings
from corepool.hypervisor.state import Hypervisor
from corepool.hypervisor.workload import Source, workload
from support.graphs import Builder
from support.world import net

TINY = preset("tiny")


def mixed(
    policy: str, load: float, jobs: int, seed: int, layer: bool = False, deadline_ns: int | None = None
) -> tuple[Runner, Record]:
    """Six tenants with models of three sizes on 16 cores, by table, in bursts."""
    models = [net("small", 9_000_000, 1000), net("middle", 56_000_000, 1000), net("large", 230_000_000, 1000)]
    switching = ev.Switching.LAYER if layer else ev.Switching.TASK
    sources = [
        Source(f"t{i}", model, load * 16e9 / 6 / model.latency_ns[0], 3, deadline_ns, switching=switching)
        for i, model in enumerate(models * 2)
    ]
    settings = Settings(policy=policy)
    runner = Runner(Hypervisor(settings), TableBackend({m.name: m for m in models}, settings.bank_of))
    return runner, runner.run(workload(sources, jobs, seed))


def test_one_job_costs_what_its_parts_cost() -> None:
    model = net(weights=12_000_000, window=20_000_000)
    costs = Costs(relink_ns=300_000, pcie_bytes_per_s=12_000_000_000, pcie_latency_ns=5_000, clear_ns=14_000)
    settings = Settings(costs=costs)
    runner = Runner(Hypervisor(settings), TableBackend({"net": model}, settings.bank_of))
    opening = Source("ann", model, 1.0).opening()
    record = runner.run([*opening, *(ev.SubmitJob(at, "ann", "ann", at, "net") for at in (0, 1))])
    transfer = 5_000 + (12_000_000 + 6400) * 1000 // 12_000 + 1
    assert list(record.ended) == [14_000 + 300_000 + transfer + 1_000_000, 14_000 + 300_000 + transfer + 2_000_000]
    assert (record.spent.programs, record.spent.clears, record.spent.weight_bytes) == (1, 1, 12_000_000)
    assert list(record.busy_ns) == [1_000_000, 1_000_000]
    assert record.core_ns == 32_000_000


def test_transfers_and_links_take_turns() -> None:
    model = net(weights=120_000_000, window=200_000_000)
    settings = Settings()
    runner = Runner(Hypervisor(settings), TableBackend({"net": model}, settings.bank_of))
    events = [
        e
        for name in ("ann", "bob")
        for e in Source(name, model, 1.0, minimum=4, maximum=4, sharing=ev.Sharing.PUBLIC).opening()
    ]
    events += [ev.SubmitJob(100_000, name, name, i, "net") for i, name in enumerate(("ann", "bob"))]
    record = runner.run(events)
    first, second = record.ended
    assert second - first == pytest.approx(5_000 + 10_000_533, abs=2)  # the second upload waits for the first
    assert record.spent.queued_ns == pytest.approx(10_005_533, abs=2)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_equal_seeds_give_equal_records_and_logs_replay(policy: str) -> None:
    runner, record = mixed(policy, 0.8, 300, 7, layer=True, deadline_ns=200_000_000)
    log: list[ev.Event] = []
    again = Runner(
        Hypervisor(runner.hypervisor.settings), runner.backend.__class__(*_tables()), lambda event, _: log.append(event)
    )
    models = _tables()[0]
    sources = [
        Source(f"t{i}", model, 0.8 * 16e9 / 6 / model.latency_ns[0], 3, 200_000_000, switching=ev.Switching.LAYER)
        for i, model in enumerate([*models.values()] * 2)
    ]
    assert again.run(workload(sources, 300, 7)) == replace(record, refused=again.record.refused)
    assert [str(error) for _, error in again.record.refused] == [str(error) for _, error in record.refused]
    assert snapshot(replay(runner.hypervisor.settings, log)) == snapshot(again.hypervisor)
    _, other = mixed(policy, 0.8, 300, 8, layer=True, deadline_ns=200_000_000)
    assert other.ended != record.ended


def _tables() -> tuple[dict[str, Model], object]:
    models = [net("small", 9_000_000, 1000), net("middle", 56_000_000, 1000), net("large", 230_000_000, 1000)]
    return {m.name: m for m in models}, Settings().bank_of


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("load", [0.3, 1.2])
def test_every_job_ends_and_no_tenant_starves(policy: str, load: float) -> None:
    _, record = mixed(policy, load, 600, 3)
    assert sorted(record.job) == list(range(600))
    waits = np.array(record.ended) - np.array(record.submitted)
    busiest = max(record.core_ns / 16, 1)
    worst = [waits[np.array(record.lease) == index].max() for index in range(len(record.leases))]
    assert len(worst) == 6
    assert max(worst) < busiest, "somebody waited as long as all work together takes"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_invariants_hold_along_a_long_trace(policy: str) -> None:
    models = [net("small", 9_000_000), net("middle", 56_000_000), net("large", 230_000_000, layers=20)]
    sources = [
        Source(
            f"t{i}", models[i % 3], 0.9 * 16e9 / 6 / models[i % 3].latency_ns[0], 4,
            deadline_ns=10**8 if i == 1 else None,
            minimum=i % 2,
            maximum=(4, 9, 16)[i // 2],
            switching=list(ev.Switching)[i % 2],
        )
        for i in range(6)
    ]  # fmt: skip
    settings = Settings(policy=policy)
    hypervisor = Hypervisor(settings)

    def watch(event: ev.Event, _: list[ac.Action]) -> None:
        assert not violations(hypervisor.book, settings), event

    def events() -> Iterator[ev.Event]:
        """The same tenants also use each other's kind of model, so that a lease changes between models."""
        for event in workload(sources, 1500, 4):
            yield event
            if isinstance(event, ev.SubmitJob) and event.job in (5, 6, 7, 8, 9, 10):
                source, other = sources[event.job - 5], models[(event.job - 4) % 3]
                yield ev.LoadModel(event.at, source.tenant, other)
            if isinstance(event, ev.SubmitJob) and event.job % 9 == 0 and event.job > 10:
                number = event.job % 6
                tenant = sources[number].tenant
                yield ev.SubmitJob(event.at, tenant, tenant, 10_000 + event.job, models[(number + 1) % 3].name)

    backend = TableBackend({model.name: model for model in models}, settings.bank_of)
    record = Runner(hypervisor, backend, watch).run(events())
    assert len(record.job) + len(record.refused) == 1500 + len([n for n in range(11, 1500) if n % 9 == 0])
    assert all(isinstance(error, DeadlineError) for _, error in record.refused)
    assert not hypervisor.book.jobs


def test_accepted_deadlines_hold() -> None:
    _, record = mixed("private-deadline", 0.8, 1500, 3, deadline_ns=100_000_000)
    assert len(record.refused) > 20, "under this load some jobs cannot make it"
    assert len(record.job) > 500
    assert sum(record.late) <= 0.01 * len(record.job)
    assert len(record.job) + len(record.refused) == 1500


class FaultsOnce(TableBackend):
    """A table whose third job is stopped by a fault."""

    count = 0

    def duration_ns(self, action: ac.Start) -> int | Faulty:
        self.count += 1
        return Faulty(1000) if self.count == 3 else super().duration_ns(action)


def test_a_fault_fails_the_jobs_of_that_lease_only() -> None:
    model = net()
    settings = Settings()
    runner = Runner(Hypervisor(settings), FaultsOnce({"net": model}, settings.bank_of))
    sources = [Source(name, model, 100.0, minimum=4, maximum=4, sharing=ev.Sharing.PUBLIC) for name in ("ann", "bob")]
    record = runner.run(workload(sources, 40, 1))
    refused = [event for event, _ in record.refused]
    assert len(record.failed) >= 1
    assert len(record.job) + len(record.failed) + len(refused) == 40
    assert len({event.lease for event in refused if isinstance(event, ev.SubmitJob)}) == 1


def test_jobs_survive_a_reset_of_the_device() -> None:
    model = net()
    settings = Settings()
    runner = Runner(Hypervisor(settings), TableBackend({"net": model}, settings.bank_of))
    events = list(workload([Source(name, model, 500.0) for name in ("ann", "bob")], 60, 2))
    events = sorted([*events, ev.DeviceReset(20_000_000), ev.DeviceReset(50_123_456)], key=lambda event: event.at)
    record = runner.run(events)
    assert sorted(record.job) == list(range(60))


@pytest.fixture(scope="module")
def packages() -> dict[str, ModelPackage]:
    """Two small networks for the tiny card."""
    made = {}
    for name, channels, size in (("one", 8, 20), ("two", 16, 28)):
        build = Builder(np.random.default_rng(5), channels, size, size)
        here = "input"
        for _ in range(5):
            here = build.conv(here, channels, (3, 3), padding=(1, 1, 1, 1))
        made[name] = compile_graph(build.finish(here), TINY).package
    return made


@pytest.fixture(scope="module")
def models(packages: dict[str, ModelPackage]) -> dict[str, Model]:
    return {name: model_of(name, package, TINY) for name, package in packages.items()}


def test_model_of_a_package(models: dict[str, Model], packages: dict[str, ModelPackage]) -> None:
    for name, model in models.items():
        assert model.layers == len(packages[name].layers) == 5
        assert len(model.latency_ns) == 4
        assert model.latency_ns[0] > model.latency_ns[3]
        assert model.rest_ns(2, 0) == model.latency_ns[1]
        assert 0 < model.rest_ns(2, 4) < model.latency_ns[1] // 2
        assert model.window_bytes >= packages[name].meta["window"]["window_bytes"]


def record_on(backend: Backend, models: dict[str, Model], switching: ev.Switching) -> Record:
    settings = Settings.of(TINY, "private-even", relink_ns=20_000)
    sources = [
        Source(f"{name}{i}", model, 0.35 * 1e9 / model.latency_ns[0], 2, maximum=4, switching=switching)
        for i in range(2)
        for name, model in models.items()
    ]
    return Runner(Hypervisor(settings), backend).run(workload(sources, 120, 11))


@pytest.mark.parametrize("switching", list(ev.Switching))
def test_tables_agree_with_the_cycle_simulator(
    packages: dict[str, ModelPackage], models: dict[str, Model], switching: ev.Switching
) -> None:
    by_shape = {name: measure(Simulator(TINY, data=False), package) for name, package in packages.items()}
    measured = {name: measured_model(model, by_shape[name], 2) for name, model in models.items()}
    table = record_on(TableBackend(measured, Settings.of(TINY).bank_of, by_shape), measured, switching)
    device = DeviceBackend(Simulator(TINY, data=False), packages)
    cycles = record_on(device, measured, switching)
    assert device.runs >= 120
    assert sorted(table.job) == sorted(cycles.job) == list(range(120))
    assert table.spent.programs > 10, "a trace without changes shows nothing"

    def mean(record: Record) -> float:
        return float(np.mean(np.array(record.ended) - np.array(record.submitted)))

    assert mean(table) == pytest.approx(mean(cycles), rel=0.02)
    assert table.now == pytest.approx(cycles.now, rel=0.02)
    assert table.core_ns == pytest.approx(cycles.core_ns, rel=0.02)
    if switching is ev.Switching.TASK:
        remembering = DeviceBackend(Simulator(TINY, data=False), packages, remember=True)
        assert mean(record_on(remembering, measured, switching)) == pytest.approx(mean(cycles), rel=0.001)
        assert remembering.runs < 20


def test_shape_decides_the_time_but_for_a_slot(packages: dict[str, ModelPackage]) -> None:
    device = Simulator(TINY, data=False)
    times = set()
    for epoch, cores in enumerate([(0, 1, 2), (0, 1, 3), (2, 3, 0), (2, 3, 1)], 1):
        backend = DeviceBackend(device, packages)
        backend.program(ac.Program(epoch, "l", cores, "two", 0, 0, (), 0))
        times.add(backend.duration_ns(ac.Start(epoch, "l", 0, 0)))
        backend.clear(ac.Clear(9, cores))
    assert max(times) <= 1.001 * min(times)  # cores of a bank have their slots a few cycles apart


def test_back_ends_refuse_what_no_sound_hypervisor_asks() -> None:
    model = net()
    backend = TableBackend({"net": model}, Settings().bank_of)

    def program(epoch: int, lease: str, cores: tuple[int, ...]) -> None:
        backend.program(ac.Program(epoch, lease, cores, "net", 0, 0, (), 0))

    program(5, "a", (0, 1))
    with pytest.raises(DeviceError, match="epoch 4 is old"):
        program(4, "a", (0,))
    with pytest.raises(DeviceError, match="not cleared between"):
        program(6, "b", (1,))
    with pytest.raises(DeviceError, match="not programmed for epoch 3"):
        backend.duration_ns(ac.Start(3, "a", 1, 0))
    backend.clear(ac.Clear(7, (0, 1)))
    with pytest.raises(DeviceError, match="not programmed"):
        backend.duration_ns(ac.Start(5, "a", 1, 0))
    program(8, "b", (1,))


def test_packed_shapes() -> None:
    assert [packed(n, 4) for n in (1, 4, 5, 16)] == [(1,), (4,), (4, 1), (4, 4, 4, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["private-even", "private-throughput"])
def test_a_million_jobs_take_at_most_ten_minutes(policy: str) -> None:
    begin = time.perf_counter()
    _, record = mixed(policy, 0.8, 1_000_000, 1)
    assert len(record.job) == 1_000_000
    assert time.perf_counter() - begin <= 600


@pytest.mark.parametrize("burst", [1, 6])
@pytest.mark.parametrize("load", [0.7, 1.0])
def test_deadlines_are_met_at_least_as_often_as_with_even_shares(burst: int, load: float) -> None:
    """By task, where a large network holds its cores longer than a small one's whole deadline."""
    models = [net("small", 9_000_000), net("middle", 56_000_000), net("large", 230_000_000)]
    sources = [
        Source(f"t{i}", model, load * 16e9 / 6 / model.latency_ns[0], burst, 4 * model.latency_ns[1])
        for i, model in enumerate(models * 2)
    ]
    met = dict.fromkeys(("private-even", "private-deadline"), 0)
    for policy in met:
        for seed in (5, 6):
            settings = Settings(policy=policy)
            runner = Runner(Hypervisor(settings), TableBackend({m.name: m for m in models}, settings.bank_of))
            record = runner.run(workload(sources, 400, seed))
            assert len(record.job) + len(record.refused) == 400
            met[policy] += len(record.late) - sum(record.late)
    assert met["private-deadline"] > met["private-even"]


@pytest.mark.slow
def test_deadlines_cost_at_most_a_millisecond_a_job() -> None:
    """Of processor time, with a promise for every job."""
    begin = time.process_time()
    _, record = mixed("private-deadline", 0.8, 10_000, 1, deadline_ns=100_000_000)
    assert len(record.job) + len(record.refused) == 10_000
    assert time.process_time() - begin <= 10
