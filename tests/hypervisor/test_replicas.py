"""Replicas of a lease, as lists of events and the actions that follow.

It must not look into how divisions are chosen.
"""

from __future__ import annotations

import numpy as np
import pytest

from corepool.compiler.static.compile import compile_graph
from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.errors import LeaseError
from corepool.hypervisor import actions as ac
from corepool.hypervisor import events as ev
from corepool.hypervisor.backends import DeviceBackend, TableBackend, measure, measured_model
from corepool.hypervisor.log import replay, snapshot
from corepool.hypervisor.model import Model, model_of
from corepool.hypervisor.records import CoreState
from corepool.hypervisor.runner import Record, Runner
from corepool.hypervisor.settings import Settings
from corepool.hypervisor.state import Hypervisor
from corepool.runtime.session import Session
from support.graphs import Builder
from support.world import World, net

SLOW = net().with_latency(tuple(160_000_000 // n * (100 if n <= 4 else 125) // 100 for n in range(1, 17)))
"""Loses nothing within a bank, and a quarter of its time beyond."""


def opened(policy: str = "private-even", bank_bytes: int = 1 << 20, **more: object) -> World:
    """Ann's lease may have all cores."""
    world = World(Settings(policy=policy, bank_bytes=bank_bytes))
    world.tenant("ann", SLOW)
    world.lease("ann", "a", 0, 16, **more)
    return world


def submit(world: World, count: int, lease: str = "a", deadline: int | None = None) -> list[ac.Action]:
    tenant, first = world.hypervisor.book.leases[lease].tenant, len(world.ledger.accepted)
    actions = []
    for job in range(first, first + count):
        actions += world.do(ev.SubmitJob(world.now, tenant, lease, job, "net", deadline))
    return actions


def of(kind: type, actions: list[ac.Action]) -> list[ac.Action]:
    return [action for action in actions if isinstance(action, kind)]


def sizes(world: World, lease: str = "a") -> list[int]:
    return sorted((len(each.plan) for each in world.hypervisor.book.leases[lease].replicas if each.plan), reverse=True)


def start_all(world: World) -> list[ac.Action]:
    """Everything is cleared and programmed, and runs."""
    actions = world.clear_all()
    while any(what == "program" for what, _ in world.ledger.tasks.values()):
        actions += world.finish(min(name for name, (what, _) in world.ledger.tasks.items() if what == "program"))
        actions += world.clear_all()
    return actions


def test_a_deep_queue_has_replicas_within_banks() -> None:
    world = opened()
    submit(world, 100)
    actions = start_all(world)
    programs = {action.lease: action.cores for action in of(ac.Program, actions)}  # type: ignore[attr-defined]
    assert sorted(programs) == ["a", "a#1", "a#2", "a#3"]
    assert sorted(core for cores in programs.values() for core in cores) == list(range(16))
    assert all(len({core // 4 for core in cores}) == 1 for cores in programs.values())
    assert [action.job for action in of(ac.Start, actions)] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert world.finish("a#2")[0] == ac.JobEnded("a", 2, ac.Outcome.DONE, False), "the answer names the lease"


def test_a_single_job_gets_all_cores() -> None:
    world = opened()
    submit(world, 1)
    start_all(world)
    assert sizes(world) == [16]
    assert set(world.hypervisor.book.replicas) == {"a"}


def test_replicas_come_together_when_the_queue_is_short() -> None:
    world = opened()
    submit(world, 100)
    start_all(world)
    world.drain()
    submit(world, 1)
    assert sizes(world) == [16]
    start_all(world)
    assert len(world.hypervisor.book.leases["a"].first.cores) == 16
    world.drain()
    assert [each.name for each in world.hypervisor.book.leases["a"].replicas] == ["a"]
    assert len(world.ledger.ended) == 101
    assert snapshot(replay(world.settings, world.log)) == snapshot(world.hypervisor)


def test_memory_of_a_replica_that_is_gone_is_given_back_and_its_name_is_not_used_again() -> None:
    world = opened()
    submit(world, 100)
    start_all(world)
    dropped = []
    for _ in range(2):
        while world.ledger.tasks:
            dropped += of(ac.DropWindow, world.finish(min(world.ledger.tasks)) + world.clear_all())
        submit(world, 100)
        start_all(world)
    names = [action.lease for action in dropped]  # type: ignore[attr-defined]
    assert len(names) == len(set(names))
    assert "a" not in names


def test_public_leases_are_divided_only_if_that_was_asked_for() -> None:
    for replicas, expected in ((None, [8]), (1, [8]), (2, [4, 4]), (16, [4, 4])):
        world = World(Settings(bank_bytes=1 << 20))
        world.tenant("ann", SLOW)
        world.lease("ann", "a", 8, 8, sharing=ev.Sharing.PUBLIC, replicas=replicas)
        world.clear_all()
        held = world.cores("a")
        submit(world, 100)
        start_all(world)
        assert sizes(world) == expected
        assert world.cores("a") == held, "it divides its own cores"


@pytest.mark.parametrize("replicas", [0, 17, -1, True, 2.0, "2"])
def test_impossible_numbers_of_replicas(replicas: object) -> None:
    world = World(Settings())
    world.tenant("ann", SLOW)
    before = snapshot(world.hypervisor)
    with pytest.raises(LeaseError, match="1 to 16 replicas"):
        world.lease("ann", "a", 0, 16, replicas=replicas)
    assert snapshot(world.hypervisor) == before


def test_no_lease_has_a_replicas_name() -> None:
    world = opened()
    with pytest.raises(LeaseError, match="has no '#'"):
        world.lease("ann", "a#1", 0, 0)


def test_no_more_than_asked_for() -> None:
    world = opened(replicas=2)
    submit(world, 1000)
    start_all(world)
    assert sizes(world) == [12, 4]
    world = opened(replicas=1)
    submit(world, 1000)
    start_all(world)
    assert sizes(world) == [16]


def test_every_replica_needs_a_window() -> None:
    """A bank holds two and a half."""
    world = opened(bank_bytes=2500)
    submit(world, 1000)
    start_all(world)
    assert len(sizes(world)) == 2
    world.drain()


def test_replicas_make_room_for_a_lease_that_waits() -> None:
    world = opened(bank_bytes=3500)
    world.tenant("bob")
    submit(world, 1000)
    start_all(world)
    assert len(sizes(world)) == 3
    (queued,) = of(ac.LeaseQueued, world.do(ev.RequestLease(world.now, "bob", "b", 0, 4, 1500)))
    assert queued.position == 0  # type: ignore[attr-defined]
    actions: list[ac.Action] = []
    while not world.hypervisor.book.leases["b"].granted:
        actions += world.finish(next(iter(world.ledger.tasks))) + world.clear_all()
        assert len(actions) < 200
    assert of(ac.DropWindow, actions), "its window was a replica's"
    assert len(world.hypervisor.book.leases["a"].replicas) <= 2
    world.drain()


def test_a_window_grows_for_every_replica_or_not_at_all() -> None:
    world = opened(bank_bytes=4500)
    submit(world, 1000)
    start_all(world)
    assert len(sizes(world)) == 4
    before = snapshot(world.hypervisor)
    with pytest.raises(LeaseError, match="cannot have 1500 bytes now"):
        world.do(ev.ResizeLease(world.now, "ann", "a", 0, 16, 1500))
    assert snapshot(world.hypervisor) == before
    world.do(ev.ResizeLease(world.now, "ann", "a", 0, 16, 1125))
    world.drain()
    submit(world, 1)
    world.drain()
    world.do(ev.ResizeLease(world.now, "ann", "a", 0, 16, 1500))  # one replica is left
    submit(world, 1000)
    start_all(world)
    assert len(sizes(world)) == 3
    world.drain()


def test_another_tenant_gets_its_share() -> None:
    world = opened()
    world.tenant("bob")
    world.lease("bob", "b", 0, 16)
    submit(world, 100)
    start_all(world)
    submit(world, 1, "b")
    for _ in range(8):
        if "b" not in world.ledger.tasks:
            world.finish(next(iter(world.ledger.tasks)))
            start_all(world)
    assert world.cores("b")
    assert sizes(world, "b") == [8]
    assert sizes(world) == [4, 4]
    world.drain()
    assert len(world.ledger.ended) == 101


def test_a_fault_of_one_replica_ends_the_lease_when_the_others_have_done() -> None:
    world = opened()
    submit(world, 100)
    start_all(world)
    _, start = world.ledger.tasks.pop("a#1")
    held = world.hypervisor.book.replicas["a#1"].cores
    actions = world.do(ev.Faulted(world.now, "a#1", start.epoch))  # type: ignore[attr-defined]
    assert of(ac.LeaseFaulted, actions) == [ac.LeaseFaulted("a", tuple(sorted(held)), "a#1")]
    failed = [action.job for action in of(ac.JobEnded, actions)]  # type: ignore[attr-defined]
    assert failed == [1, *range(4, 100)], "those that run go on"
    states = [core.state for core in world.hypervisor.book.cores]
    assert states.count(CoreState.TAINTED) == 4
    for name in ("a", "a#2", "a#3"):
        ended = world.finish(name)
        assert of(ac.JobEnded, ended) == [ac.JobEnded("a", int(name[2:] or 0), ac.Outcome.DONE, False)]
        assert of(ac.Clear, ended)
    world.clear_all()
    with pytest.raises(LeaseError, match="stopped by a fault"):
        submit(world, 1)
    world.do(ev.ReleaseLease(world.now, "ann", "a"))
    assert not world.hypervisor.book.replicas
    assert len(world.ledger.ended) == 100


def test_release_waits_for_all_replicas() -> None:
    world = opened()
    submit(world, 100)
    start_all(world)
    cancelled = world.do(ev.ReleaseLease(world.now, "ann", "a"))
    assert len(of(ac.JobEnded, cancelled)) == 96
    released: list[ac.Action] = []
    for name in ("a", "a#3", "a#1", "a#2"):
        assert not of(ac.LeaseReleased, released)
        released += world.finish(name)
    assert of(ac.LeaseReleased, released) == [ac.LeaseReleased("a")]
    windows = [action.lease for action in of(ac.DropWindow, released)]  # type: ignore[attr-defined]
    assert sorted(windows) == ["a", "a#1", "a#2", "a#3"]


def test_a_reset_of_the_device_loses_no_job() -> None:
    world = opened()
    submit(world, 100)
    start_all(world)
    world.ledger.tasks.clear()
    world.ledger.clears.clear()
    world.ledger.programmed.clear()
    world.do(ev.DeviceReset(world.now))
    world.drain()
    assert sorted(world.ledger.ended) == list(range(100))
    assert set(world.ledger.ended.values()) == {ac.Outcome.DONE}


def test_promised_jobs_run_one_after_the_other() -> None:
    """They were accepted by a forecast of that; without deadlines the same queue is divided."""
    world = opened("private-deadline")
    submit(world, 30, deadline=10**12)
    submit(world, 70)
    start_all(world)
    assert sizes(world) == [16]
    world = opened("private-deadline")
    submit(world, 100)
    start_all(world)
    assert sizes(world) == [4, 4, 4, 4]
    submit(world, 1, deadline=10**12)
    assert sizes(world) == [16]
    world.drain()
    assert len(world.ledger.ended) == 101


def test_a_stopped_inference_can_go_on_in_another_replica() -> None:
    """Its maps are moved, since they lie in the memory of the first."""
    world = opened(switching=ev.Switching.LAYER)
    world.tenant("bob")
    world.lease("bob", "b", 0, 16)
    submit(world, 100)
    start_all(world)
    stops = of(ac.StopAfterLayer, submit(world, 1, "b"))
    assert stops, "bob's half comes from replicas that run"
    moved = []
    for stop in stops:
        assert isinstance(stop, ac.StopAfterLayer)
        world.ledger.tasks.pop(stop.lease)
        actions = world.do(ev.JobStopped(world.now, stop.lease, stop.epoch, stop.job, 2)) + world.clear_all()
        moved += of(ac.Program, actions)
    moved += of(ac.Program, world.finish("a"))
    world.drain()
    assert len(world.ledger.ended) == 101
    assert any(program.move_bytes for program in moved if isinstance(program, ac.Program))


TINY = preset("tiny")
JOBS = 600  # so deep a queue that a replica has a single core


def streamed(backend: TableBackend | DeviceBackend, model: Model) -> tuple[Record, set[str]]:
    """Many jobs at once on all cores of the tiny card, and who ran them."""
    settings = Settings.of(TINY, relink_ns=20_000)
    used: set[str] = set()

    def watch(_: ev.Event, actions: list[ac.Action]) -> None:
        used.update(action.lease for action in actions if isinstance(action, ac.Start))

    events: list[ev.Event] = [
        ev.AddTenant(0, "ann", 4),
        ev.LoadModel(0, "ann", model),
        ev.RequestLease(0, "ann", "a", 0, 4, model.window_bytes),
    ]
    events += [ev.SubmitJob(0, "ann", "a", job, model.name) for job in range(JOBS)]
    return Runner(Hypervisor(settings), backend, watch).run(events), used


def test_tables_agree_with_the_cycle_simulator_where_replicas_share_a_bank() -> None:
    """And replicas that run at the same time take as long as one alone, to the cycle."""
    build = Builder(np.random.default_rng(5), 8, 9, 9)
    here = "input"
    for _ in range(5):
        here = build.conv(here, 8, (3, 3), padding=(1, 1, 1, 1))
    package = compile_graph(build.finish(here), TINY).package
    by_shape = measure(Simulator(TINY, data=False), package)
    model = measured_model(model_of("net", package, TINY), by_shape, TINY.cores_per_bank)
    table, used = streamed(TableBackend({"net": model}, TINY.bank_of, {"net": by_shape}), model)
    assert len(used) > 1, "a trace without replicas shows nothing"
    assert 1 in table.cores, "two share a bank"
    cycles, same = streamed(DeviceBackend(Simulator(TINY, data=False), {"net": package}), model)
    assert same == used
    assert sorted(table.job) == sorted(cycles.job) == list(range(JOBS))
    assert np.array(table.ended) == pytest.approx(np.array(cycles.ended), rel=0.02)

    def together(cores: list[int]) -> list[int]:
        device = Simulator(TINY, data=False)
        sessions = [Session(device, package, (core,), data=False) for core in cores]
        for session in sessions:
            session.start(None)
        return [session.finish().completion.cycles for session in sessions]

    assert together([0, 1, 2, 3]) == [together([core])[0] for core in range(4)]
