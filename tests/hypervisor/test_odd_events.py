"""Events that are malformed, come twice or come late, and failures that hit only some: nobody else may notice.

It must not know how the hypervisor is built; it hands in events and looks at actions.
"""

from __future__ import annotations

from typing import Any

import pytest

from corepool.errors import HypervisorError, JobError, LeaseError, TenantError
from corepool.hypervisor import actions as ac
from corepool.hypervisor import events as ev
from corepool.hypervisor.log import snapshot
from corepool.hypervisor.settings import SECOND, Settings
from support.world import World

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
]


@pytest.mark.parametrize(("error", "event"), MALFORMED, ids=[f"{i}" for i in range(len(MALFORMED))])
def test_malformed_events_are_refused_in_one_line_and_change_nothing(error: type[HypervisorError], event: Any) -> None:
    world = World(Settings())
    world.tenant("ann", quota=8)
    world.lease("ann", "a", 1, 4)
    before = snapshot(world.hypervisor)
    with pytest.raises(error) as caught:
        world.hypervisor.handle(event)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert snapshot(world.hypervisor) == before


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
