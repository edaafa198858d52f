"""Events that are malformed, ask for what cannot be, come twice or late, and failures that hit only some cores.

It must not know how the hypervisor is built; it hands in events and looks at actions.
"""

from __future__ import annotations

from typing import Any

import pytest

from corepool.errors import ConfigError, HypervisorError, JobError, LeaseError, QuotaError, TenantError
from corepool.hypervisor import actions as ac
from corepool.hypervisor import events as ev
from corepool.hypervisor.log import snapshot
from corepool.hypervisor.model import Model
from corepool.hypervisor.settings import SECOND, Costs, Settings
from corepool.hypervisor.state import Hypervisor
from corepool.hypervisor.workload import Source
from support.world import World, net

ANY: Any = ev  # what is built here is wrong on purpose

MALFORMED = [
    (HypervisorError, ANY.Event(0)),
    (HypervisorError, "an event"),
    (HypervisorError, ac.Clear(1, (1,))),
    (HypervisorError, ANY.Tick("1")),
    (HypervisorError, ANY.Tick(1.0)),
    (HypervisorError, ANY.Tick(True)),
    (TenantError, ANY.AddTenant(0, 5, 4)),
    (TenantError, ANY.AddTenant(0, ["eve"], 4)),
    (TenantError, ANY.AddTenant(0, None, 4)),
    (TenantError, ANY.RemoveTenant(0, ["ann"])),
    (JobError, ANY.LoadModel(0, "ann", "net")),
    (JobError, ANY.LoadModel(0, "ann", None)),
    (JobError, ANY.UnloadModel(0, "ann", ["net"])),
    (LeaseError, ANY.RequestLease(0, "ann", 7, 1, 1, 10)),
    (LeaseError, ANY.RequestLease(0, "ann", ["x"], 1, 1, 10)),
    (LeaseError, ANY.RequestLease(0, "ann", "x", 1, 1, 10, "public")),
    (LeaseError, ANY.RequestLease(0, "ann", "x", 1, 1, 10, ev.Sharing.PRIVATE, "task")),
    (LeaseError, ANY.RequestLease(0, "ann", "x", 1, 1, 10, faulted=1)),
    (LeaseError, ANY.SubmitJob(0, "ann", ["a"], 3, "net")),
    (JobError, ANY.SubmitJob(0, "ann", "a", 3, ["net"])),
    (HypervisorError, ANY.RepairCores(0, 5)),
    (HypervisorError, ANY.RepairCores(0, ([1],))),
    (HypervisorError, ANY.Cleared(0, [1])),
    (LeaseError, ANY.Programmed(0, ["a"], 1)),
    (HypervisorError, ANY.Tick(float("nan"))),
    (HypervisorError, ANY.Tick(10**30)),
    (HypervisorError, ANY.Programmed(0, "a", 1.0)),
    (HypervisorError, ANY.Programmed(0, "a", None)),
    (HypervisorError, ANY.Faulted(0, "a", float("nan"))),
    (HypervisorError, ANY.JobDone(0, "a", True, 1)),
    (HypervisorError, ANY.JobStopped(0, "a", "1", 1, 1)),
    (JobError, ANY.JobDone(0, "a", 1, True)),
    (JobError, ANY.JobDone(0, "a", 1, 1.0)),
    (JobError, ANY.JobStopped(0, "a", 1, 1, 2.5)),
    (JobError, ANY.JobStopped(0, "a", 1, 1, float("nan"))),
    (JobError, ANY.CancelJob(0, "ann", "a", 1.0)),
    (JobError, ANY.CancelJob(0, "ann", "a", True)),
    (JobError, ANY.SubmitJob(0, "ann", "a", 1.0, "net")),
    (JobError, ANY.SubmitJob(0, "ann", "a", 10**30, "net")),
    (JobError, ANY.SubmitJob(0, "ann", "a", 3, "net", float("nan"))),
    (JobError, ANY.SubmitJob(0, "ann", "a", 3, "net", float("inf"))),
    (LeaseError, ANY.RequestLease(0, "ann", "x", float("nan"), 4, 10)),
    (LeaseError, ANY.RequestLease(0, "ann", "x", 1, 4, float("inf"))),
    (LeaseError, ANY.RequestLease(0, "ann", "x", 1, 4, 10, term_ns=float("nan"))),
    (LeaseError, ANY.ResizeLease(0, "ann", "a", 1, float("nan"))),
    (LeaseError, ANY.ResizeLease(0, "ann", "a", 1, 4, float("nan"))),
    (QuotaError, ANY.SetTenant(0, "ann", float("nan"))),
    (TenantError, ANY.SetTenant(0, "ann", 8, float("nan"))),
]

NAN = float("nan")
IMPOSSIBLE = [
    *((Model, ("net", latency, (0,) * 16, 10)) for latency in ((NAN,) * 16, (1.5,) * 16, (True,) * 16, (0,) * 16, 16)),
    *((Model, ("net", (1,), (0,), window)) for window in (NAN, 0, 1.0, None)),
    *((Model, ("net", (1,), (0,), 10, 0, 0, ends)) for ends in ((NAN,), (-1, 1_000_000), (2, 1, 1_000_000), (), None)),
    (Model, (None, (1,), (0,), 10)),
    *((Settings, (cores, 4)) for cores in (0, -16, 16.0, NAN, "16", None, True, 15)),
    *((Settings, (16, banks)) for banks in (0, NAN, None)),
    *((Settings, (16, 4, 10, policy)) for policy in ("private-odd", "", None, ["private-even"])),
    *((Settings, (16, 4, 10, "private-even", *times)) for times in ((0,), (NAN,), (1, 0), (1, 1, -1), (1, 1, NAN))),
    (Settings, (16, 4, 10, "private-even", 1, 1, 1, True, None)),
    *((Costs, costs) for costs in ((-1,), (NAN,), (0, 0), (0, NAN), (0, 1, None), (0, 1, 0, 0.5))),
    *((Source, ("ann", net(), rate)) for rate in (0, -1, NAN, float("inf"), None)),
    *((Source, ("ann", net(), 1.0, burst)) for burst in (0.5, NAN, float("inf"), "2")),
    *((Source, ("ann", net(), 1.0, 1.0, deadline)) for deadline in (0, -5, NAN, 1.0)),
    (Source, ("ann", "net", 1.0)),
    *((Hypervisor, (Settings(), epoch)) for epoch in (-1, NAN, None, 1.0)),
    (Hypervisor, (16,)),
]


@pytest.mark.parametrize(
    ("kind", "values"), IMPOSSIBLE, ids=[f"{k.__name__}-{i}" for i, (k, _) in enumerate(IMPOSSIBLE)]
)
def test_impossible_values_are_refused_in_one_line(kind: Any, values: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(*values)
    assert "\n" not in str(caught.value)


BAD = [
    (QuotaError, ev.RequestLease(0, "ann", "x", 0, 9, 1000)),
    (LeaseError, ev.RequestLease(0, "bob", "x", 0, 17, 1000)),
    (LeaseError, ev.RequestLease(0, "bob", "x", 5, 4, 1000)),
    (LeaseError, ev.RequestLease(0, "bob", "x", 0, 0, 1000)),
    (LeaseError, ev.RequestLease(0, "bob", "x", -1, 4, 1000)),
    (LeaseError, ev.RequestLease(0, "bob", "x", 1, 4, 1000, ev.Sharing.PUBLIC)),
    (LeaseError, ev.RequestLease(0, "bob", "x", 1, 4, 5 << 30)),
    (LeaseError, ev.RequestLease(0, "bob", "x", 1, 4, 0)),
    (LeaseError, ev.RequestLease(0, "bob", "x", 1, 4, 1000, term_ns=-1)),
    (LeaseError, ev.RequestLease(0, "bob", "a", 1, 4, 1000)),
    (TenantError, ev.RequestLease(0, "eve", "x", 0, 1, 1000)),
    (TenantError, ev.AddTenant(0, "ann", 4)),
    (QuotaError, ev.AddTenant(0, "eve", 17)),
    (QuotaError, ev.AddTenant(0, "eve", True)),
    (TenantError, ev.AddTenant(0, "eve", 4, -1)),
    (TenantError, ev.RemoveTenant(0, "eve")),
    (TenantError, ev.RemoveTenant(0, "ann")),
    (TenantError, ev.LoadModel(0, "eve", net())),
    (JobError, ev.LoadModel(0, "ann", net())),
    (JobError, ev.LoadModel(0, "ann", net("x", window=5 << 30))),
    (JobError, ev.UnloadModel(0, "ann", "x")),
    (JobError, ev.UnloadModel(0, "ann", "net")),
    (JobError, ev.SubmitJob(0, "ann", "a", 1, "net")),
    (JobError, ev.SubmitJob(0, "ann", "a", -1, "net")),
    (JobError, ev.SubmitJob(0, "ann", "a", 2, "x")),
    (JobError, ev.SubmitJob(0, "ann", "a", 2, "large")),
    (JobError, ev.SubmitJob(0, "ann", "a", 2, "net", deadline=-5)),
    (JobError, ev.SubmitJob(0, "ann", "a", 2, "net", deadline=0)),
    (LeaseError, ev.SubmitJob(0, "bob", "a", 2, "net")),
    (TenantError, ev.SubmitJob(0, "eve", "a", 2, "net")),
    (JobError, ev.CancelJob(0, "ann", "a", 5)),
    (LeaseError, ev.ReleaseLease(0, "ann", "gone")),
    (LeaseError, ev.ReleaseLease(0, "bob", "a")),
    (LeaseError, ev.ResizeLease(0, "ann", "gone", 1, 2)),
    (QuotaError, ev.ResizeLease(0, "ann", "a", 1, 9)),
    (LeaseError, ev.ResizeLease(0, "ann", "a", 3, 2)),
    (HypervisorError, ev.RepairCores(0, (1,))),
    (HypervisorError, ev.RepairCores(0, (99,))),
    (HypervisorError, ev.RepairCores(0, ())),
    (HypervisorError, ev.ReleaseLease(-1, "ann", "a")),
]


def named(cases: list[Any]) -> list[Any]:
    """Cases of a refusal by number and event."""
    return [pytest.param(*case, id=f"{i}-{type(case[1]).__name__}") for i, case in enumerate(cases)]


def refused(world: World, error: type[HypervisorError], event: Any) -> None:
    """In one line, by just this error, and all is as it was."""
    before = snapshot(world.hypervisor)
    with pytest.raises(error) as caught:
        world.hypervisor.handle(event)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert snapshot(world.hypervisor) == before


@pytest.mark.parametrize(("error", "event"), named(MALFORMED))
def test_malformed_events_are_refused_in_one_line_and_change_nothing(error: type[HypervisorError], event: Any) -> None:
    world = World(Settings())
    world.tenant("ann", quota=8)
    world.lease("ann", "a", 1, 4)
    refused(world, error, event)


@pytest.mark.parametrize(("error", "event"), named(BAD))
def test_bad_requests_are_refused_and_change_nothing(error: type[HypervisorError], event: ev.Event) -> None:
    world = World(Settings())
    world.tenant("ann", net(), net("large", window=2000), quota=8)
    world.tenant("bob")
    world.lease("ann", "a", 1, 8)
    world.do(ev.SubmitJob(world.now, "ann", "a", 1, "net"))
    refused(world, error, event)


def test_a_job_that_stopped_is_not_stopped_again_by_the_same_report() -> None:
    """Its lease goes on with the same epoch, since it keeps its cores: the second report is of the first run."""
    world = World(Settings())
    world.tenant("ann")
    world.tenant("bob")
    world.lease("ann", "a", 1, 16, switching=ev.Switching.LAYER)
    world.lease("bob", "b", 1, 16)
    world.do(ev.SubmitJob(0, "ann", "a", 1, "net"))
    world.clear_all()
    world.finish("a")
    world.do(ev.SubmitJob(0, "bob", "b", 2, "net"))  # a is asked to stop
    world.do(ev.CancelJob(0, "bob", "b", 2))
    epoch = world.hypervisor.book.leases["a"].epoch
    stopped = ev.JobStopped(0, "a", epoch, 1, 2)
    world.ledger.tasks.pop("a")
    assert world.do(stopped) == [ac.Start(epoch, "a", 1, 2)]
    assert world.do(stopped) == []
    world.do(ev.SubmitJob(0, "bob", "b", 3, "net"))  # asked once more: an old report is still not the answer
    assert world.do(stopped) == []
    world.drain()
    assert world.ledger.ended[1] is ac.Outcome.DONE


def test_a_stop_that_nobody_asked_for_is_ignored() -> None:
    world = World(Settings())
    world.tenant("ann")
    world.lease("ann", "a", 1, 16)
    world.do(ev.SubmitJob(0, "ann", "a", 1, "net"))
    world.clear_all()
    world.finish("a")
    assert world.do(ev.JobStopped(0, "a", world.hypervisor.book.leases["a"].epoch, 1, 2)) == []
    world.drain()
    assert world.ledger.ended == {1: ac.Outcome.DONE}


def test_a_failed_clearing_costs_no_other_public_lease_its_cores() -> None:
    """The newcomer is more urgent, but who has all its cores keeps them."""
    world = World(Settings())
    world.tenant("ann")
    world.tenant("bob", priority=5)
    world.tenant("cyd")
    for name in ("c", "d"):
        world.lease("cyd", name, 4, 4, sharing=ev.Sharing.PUBLIC)
    world.lease("ann", "a", 8, 8, sharing=ev.Sharing.PUBLIC)
    world.clear_all()
    kept = world.cores("a")
    for number, name in enumerate("cd"):
        world.do(ev.SubmitJob(0, "cyd", name, number, "net"))
        world.finish(name)
        world.finish(name)
        world.do(ev.ReleaseLease(0, "cyd", name))
    world.do(ev.SubmitJob(0, "ann", "a", 5, "net"))
    world.finish("a")
    world.lease("bob", "b", 8, 8, sharing=ev.Sharing.PUBLIC)
    fine, failing = sorted(world.ledger.clears)
    world.ledger.report_cleared(fine)
    world.do(ev.Cleared(0, fine))
    assert len(world.cores("b")) == 4
    del world.ledger.clears[failing]
    world.do(ev.ClearFailed(0, failing))
    assert world.cores("a") == kept
    assert world.hypervisor.book.leases["a"].plan == frozenset(kept)
    assert world.cores("b") == ()
    tainted = tuple(core for core in range(16) if core not in world.hypervisor.book.usable)
    world.do(ev.RepairCores(0, tainted))
    world.drain()
    assert len(world.cores("b")) == 8


def test_a_new_priority_moves_leases_that_wait() -> None:
    world = World(Settings())
    for name in ("ann", "bob", "cyd"):
        world.tenant(name)
    world.lease("ann", "a", 16, 16)
    world.lease("bob", "b", 16, 16)
    world.lease("cyd", "c", 16, 16)
    assert world.hypervisor.book.queue == ["b", "c"]
    world.do(ev.SetTenant(0, "cyd", 16, 3))
    assert world.hypervisor.book.queue == ["c", "b"]
    world.do(ev.SetTenant(5 * SECOND, "cyd", 16, 0))
    assert world.hypervisor.book.queue == ["b", "c"]
