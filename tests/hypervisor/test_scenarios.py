"""Scenarios that read as lists of events and the actions that follow.

They must not look into policies; each shows one promise of the hypervisor.
"""

from __future__ import annotations

import pytest

from corepool.errors import DeadlineError, HypervisorError, LeaseError, QuotaError
from corepool.hypervisor import actions as ac
from corepool.hypervisor import events as ev
from corepool.hypervisor.log import from_record, replay, snapshot, to_record
from corepool.hypervisor.records import CoreState
from corepool.hypervisor.settings import Settings
from support.world import World, net


def kinds(actions: list[ac.Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def submit(world: World, lease: str, job: int, deadline: int | None = None) -> list[ac.Action]:
    tenant = world.hypervisor.book.leases[lease].tenant
    return world.do(ev.SubmitJob(world.now, tenant, lease, job, "net", deadline))


def pair(policy: str = "private-even", switching: ev.Switching = ev.Switching.TASK) -> World:
    """Two tenants with a private lease each, that may have all 16 cores."""
    world = World(Settings(policy=policy))
    for name in ("ann", "bob"):
        world.tenant(name)
        world.lease(name, name[0], 0, 16, switching=switching)
    return world


def test_public_lease_is_cleared_programmed_run_and_given_back() -> None:
    world = World(Settings())
    world.tenant("ann")
    assert world.lease("ann", "a", 4, 4, sharing=ev.Sharing.PUBLIC) == [
        ac.Clear(1, (0, 1, 2, 3)),
        ac.LeaseQueued("a", 0, 13_654),
    ]
    assert world.clear_all() == [ac.LeaseGranted("a", (0, 1, 2, 3))]
    switch_ns = 300_000 + 5_000 + 534  # relink, transfer latency, 6400 bytes at 12 GB/s
    assert submit(world, "a", 7) == [
        ac.JobAccepted("a", 7, 0, switch_ns),
        ac.Program(2, "a", (0, 1, 2, 3), "net", 6400, 600, (0,), 0),
    ]
    assert world.finish("a") == [ac.Start(2, "a", 7, 0)]
    assert submit(world, "a", 8) == [ac.JobAccepted("a", 8, 1, 4_000_000)]
    assert world.finish("a") == [ac.JobEnded("a", 7, ac.Outcome.DONE, False), ac.Start(2, "a", 8, 0)]
    assert world.do(ev.ReleaseLease(world.now, "ann", "a")) == []  # the job that runs ends first
    assert world.finish("a") == [
        ac.JobEnded("a", 8, ac.Outcome.DONE, False),
        ac.Clear(3, (0, 1, 2, 3)),
        ac.DropWindow("a"),
        ac.LeaseReleased("a"),
    ]
    assert world.clear_all() == []
    assert {core.state for core in world.hypervisor.book.cores} == {CoreState.FREE}


def test_leases_are_packed_into_few_banks() -> None:
    world = World(Settings())
    world.tenant("ann")
    for name, cores in (("a", 3), ("b", 4), ("c", 1), ("d", 6)):
        world.lease("ann", name, cores, cores, sharing=ev.Sharing.PUBLIC)
        world.clear_all()
    assert [world.cores(name) for name in "abc"] == [(0, 1, 2), (4, 5, 6, 7), (3,)]
    assert world.cores("d") == (8, 9, 10, 11, 12, 13)


def test_leases_wait_in_order_with_position_and_predicted_start() -> None:
    world = World(Settings())
    for name in ("ann", "bob", "cyd"):
        world.tenant(name, priority=3 if name == "cyd" else 0)
    world.lease("ann", "a", 12, 12, sharing=ev.Sharing.PUBLIC, term_ns=10**9)
    world.clear_all()
    assert world.lease("bob", "b", 6, 6, sharing=ev.Sharing.PUBLIC) == [ac.LeaseQueued("b", 0, 10**9)]
    # A small one does not overtake, though it would fit; one of higher priority does.
    assert world.lease("bob", "c", 2, 2, sharing=ev.Sharing.PUBLIC) == [ac.LeaseQueued("c", 1, 10**9)]
    assert world.lease("cyd", "d", 9, 9, sharing=ev.Sharing.PUBLIC) == [ac.LeaseQueued("d", 0, 10**9)]
    actions = world.do(ev.ReleaseLease(world.now + 5, "ann", "a")) + world.clear_all()
    granted = [action.lease for action in actions if isinstance(action, ac.LeaseGranted)]
    assert granted == ["d", "b"]  # 9 + 6 of 16; c waits again
    actions = world.do(ev.ReleaseLease(world.now, "bob", "b")) + world.clear_all()
    assert [a.lease for a in actions if isinstance(a, ac.LeaseGranted)] == ["c"]


def test_waiting_outweighs_priority_in_the_end() -> None:
    def granted_first(release_at: int) -> str:
        """Who of an old and a prior lease gets the card, if the prior one asks at this time."""
        world = World(Settings(ageing_ns=1000))
        world.tenant("low")
        world.tenant("high", priority=5)
        world.lease("low", "all", 12, 12, sharing=ev.Sharing.PUBLIC)
        world.clear_all()
        world.tenant("late", quota=16)
        world.do(ev.RequestLease(0, "late", "old", 16, 16, 1000, ev.Sharing.PUBLIC))
        world.do(ev.RequestLease(release_at, "high", "prior", 16, 16, 1000, ev.Sharing.PUBLIC))
        actions = world.do(ev.ReleaseLease(release_at, "low", "all")) + world.clear_all()
        return next(action.lease for action in actions if isinstance(action, ac.LeaseGranted))

    assert granted_first(4000) == "prior"
    assert granted_first(6000) == "old"


def test_task_level_redeal_waits_for_the_job_then_clears_what_moves() -> None:
    world = pair()
    submit(world, "a", 1)
    submit(world, "a", 2)
    world.clear_all()
    world.finish("a")
    assert world.cores("a") == tuple(range(16))
    assert kinds(submit(world, "b", 3)) == ["JobAccepted"]
    states = [core.state for core in world.hypervisor.book.cores]
    assert states.count(CoreState.DRAINING) == 8
    assert kinds(world.finish("a")) == ["JobEnded", "Clear", "Program"]
    assert len(world.cores("a")) == 8
    after = world.clear_all()
    assert kinds(after) == ["Program"]
    assert sorted(world.cores("a") + world.cores("b")) == list(range(16))
    assert len({core // 4 for core in world.cores("b")}) == 2


def some_free(busy_ns: int) -> World:
    """Ann's lease runs a job of so many nanoseconds (on one core) on 14 cores; Bob's may have all, and two are free."""
    world = World(Settings())
    world.tenant("ann", net(one_ns=busy_ns))
    world.tenant("bob")
    world.lease("ann", "a", 0, 14)
    world.lease("bob", "b", 0, 16)
    submit(world, "a", 1)
    world.clear_all()
    world.finish("a")
    world.do(ev.Tick(world.now))
    world.clear_all()
    return world


def test_work_begins_on_some_cores_while_others_hold_the_rest_for_long() -> None:
    world = some_free(14 * 100_000_000)
    accepted = submit(world, "b", 2) + world.clear_all()
    submit(world, "b", 3)
    programs = [action for action in accepted if isinstance(action, ac.Program)]
    assert [len(program.cores) for program in programs] == [2], "six more come in 100 ms; on two it takes 8 ms"
    assert kinds(world.finish("b")) == ["Start"]
    assert kinds(world.finish("b")) == ["JobEnded", "Start"], "it goes on with what it has"
    world.finish("a")
    world.clear_all()
    assert len(world.cores("b")) == 16
    world.drain()
    assert set(world.ledger.ended.values()) == {ac.Outcome.DONE}


def test_work_waits_for_cores_that_come_soon() -> None:
    world = some_free(14 * 1_000_000)
    assert not [each for each in submit(world, "b", 2) + world.clear_all() if isinstance(each, ac.Program)]
    (program,) = [each for each in world.finish("a") + world.clear_all() if isinstance(each, ac.Program)]
    assert (program.lease, len(program.cores)) == ("b", 16)


def test_a_public_lease_never_begins_on_some_of_its_cores() -> None:
    world = World(Settings())
    world.tenant("ann", net(one_ns=14 * 100_000_000))
    world.tenant("bob")
    world.lease("ann", "a", 0, 14)
    submit(world, "a", 1)
    world.clear_all()
    world.finish("a")
    world.lease("bob", "b", 8, 8, sharing=ev.Sharing.PUBLIC)
    assert "Program" not in kinds(submit(world, "b", 2) + world.clear_all())
    world.finish("a")
    (program,) = [each for each in world.clear_all() if isinstance(each, ac.Program)]
    assert len(program.cores) == 8


def test_layer_level_redeal_stops_early_and_goes_on_at_the_next_layer() -> None:
    world = pair(switching=ev.Switching.LAYER)
    submit(world, "a", 1)
    world.clear_all()
    world.finish("a")
    actions = submit(world, "b", 2)
    assert actions[1:] == [ac.StopAfterLayer(2, "a", 1)]
    del world.ledger.tasks["a"]
    actions = world.do(ev.JobStopped(world.now + 100_000, "a", 2, 1, 2))
    assert kinds(actions) == ["Clear", "Program"]
    program = actions[1]
    assert isinstance(program, ac.Program)
    assert (len(program.cores), program.move_bytes, program.weight_banks) == (8, 200, ())
    assert world.finish("a") == [ac.Start(program.epoch, "a", 1, 2)]
    world.drain()
    assert world.ledger.ended == {1: ac.Outcome.DONE, 2: ac.Outcome.DONE}


def test_cores_that_were_to_be_given_up_may_stay_after_all() -> None:
    world = World(Settings(policy="private-throughput"))
    sizes = {"net": 64_000_000, "small": 1_000_000, "big": 1_000_000_000}
    for name in ("ann", "bob"):
        world.tenant(name, *(net(model, one_ns) for model, one_ns in sizes.items()))
        world.lease(name, name[0], 0, 8)
        submit(world, name[0], ord(name[0]))
    world.drain()
    for name in ("ann", "bob"):
        world.do(ev.ResizeLease(world.now, name, name[0], 0, 16))
    world.do(ev.SubmitJob(world.now, "ann", "a", 1, "small"))
    world.finish("a")
    world.do(ev.SubmitJob(world.now, "ann", "a", 2, "big"))
    world.do(ev.SubmitJob(world.now, "bob", "b", 3, "big"))  # for a small job a need not have so many cores
    states = [world.hypervisor.book.cores[core].state for core in world.cores("a")]
    assert len(states) == 8
    assert CoreState.DRAINING in states
    world.finish("a")  # the next one is big
    states = [world.hypervisor.book.cores[core].state for core in world.cores("a")]
    assert len(states) >= 8
    assert CoreState.DRAINING not in states
    world.drain()
    assert {1, 2, 3} <= set(world.ledger.ended)


def test_weights_are_uploaded_only_to_banks_that_lack_them() -> None:
    world = pair()
    for number, lease in enumerate("aba"):
        submit(world, lease, number)
        world.drain()
        program = world.ledger.programmed[lease]
        expected = (600, (0, 1, 2, 3)) if number < 2 else (0, ())  # a's windows, with its weights, were kept
        assert (program.weight_bytes, program.weight_banks) == expected
    assert len(world.cores("a")) == 16


def test_weights_stay_in_banks_that_a_lease_has_left() -> None:
    world = pair()
    submit(world, "a", 1)
    world.drain()
    submit(world, "b", 2)
    submit(world, "a", 3)
    world.drain()
    assert len(world.ledger.programmed["a"].cores) == 8
    submit(world, "a", 4)
    world.drain()
    again = world.ledger.programmed["a"]
    assert (len(again.cores), again.weight_banks, again.weight_bytes) == (16, (), 0)


def test_more_tenants_with_work_than_cores_take_turns() -> None:
    world = World(Settings(cores=2, banks=1))
    for number in range(4):
        world.tenant(f"t{number}", quota=2)
        world.lease(f"t{number}", f"l{number}", 0, 2)
    for job in range(5):
        for number in range(4):
            world.do(ev.SubmitJob(world.now + 1, f"t{number}", f"l{number}", 10 * number + job, "net"))
    order: list[int] = []
    while len(order) < 20:
        world.clear_all()
        world.finish(next(iter(world.ledger.tasks)))  # what began first ends first
        order = [job // 10 for job in world.ledger.ended]
    # Whoever waits longest is next: nobody is more than two jobs ahead of another.
    for count in range(1, 21):
        done = [order[:count].count(number) for number in range(4)]
        assert max(done) - min(done) <= 2, order


def test_cores_reserved_by_a_released_lease_go_to_who_waits_for_them() -> None:
    world = World(Settings(cores=4, banks=1))
    for name in ("ann", "bob"):
        world.tenant(name, quota=4)
    world.lease("ann", "a", 3, 3, sharing=ev.Sharing.PUBLIC)
    world.clear_all()
    world.lease("bob", "b", 0, 4)
    submit(world, "b", 1)
    world.drain()
    assert len(world.cores("b")) == 1
    submit(world, "b", 2)
    assert kinds(world.do(ev.ReleaseLease(world.now, "ann", "a"))) == ["DropWindow", "LeaseReleased"]
    assert len(world.cores("b")) == 4, "cores that were never used need no clearing"


def test_fault_taints_the_leases_cores_and_harms_nobody_else() -> None:
    world = World(Settings())
    world.tenant("ann")
    world.tenant("bob")
    for name, lease in (("ann", "a"), ("bob", "b")):
        world.lease(name, lease, 4, 4, sharing=ev.Sharing.PUBLIC)
        world.clear_all()
        submit(world, lease, ord(lease))
        submit(world, lease, ord(lease) + 10)
        world.finish(lease)
    epoch = world.ledger.programmed["a"].epoch
    del world.ledger.tasks["a"]
    assert world.do(ev.Faulted(world.now, "a", epoch)) == [
        ac.LeaseFaulted("a", (0, 1, 2, 3)),
        ac.JobEnded("a", ord("a"), ac.Outcome.FAILED, False),
        ac.JobEnded("a", ord("a") + 10, ac.Outcome.FAILED, False),
    ]
    assert [core.state for core in world.hypervisor.book.cores[:5]] == [CoreState.TAINTED] * 4 + [CoreState.ACTIVE]
    with pytest.raises(LeaseError, match="stopped by a fault"):
        world.do(ev.ResizeLease(world.now, "ann", "a", 2, 2))
    with pytest.raises(LeaseError, match="stopped by a fault"):
        submit(world, "a", 99)
    world.do(ev.ReleaseLease(world.now, "ann", "a"))
    # Tainted cores come back only when somebody says so, and cleared.
    world.lease("ann", "c", 9, 9, sharing=ev.Sharing.PUBLIC)
    assert world.hypervisor.book.queue == ["c"]
    world.do(ev.RepairCores(world.now, (0, 1, 2, 3)))
    assert [a.lease for a in world.clear_all() if isinstance(a, ac.LeaseGranted)] == ["c"]
    world.drain()
    assert world.ledger.ended[ord("b") + 10] is ac.Outcome.DONE


def test_fault_while_more_cores_are_reserved_gives_those_back() -> None:
    world = World(Settings(cores=4, banks=1))
    for name in ("ann", "bob"):
        world.tenant(name, quota=4)
        world.lease(name, name[0], 1, 4)
        submit(world, name[0], ord(name[0]))
    submit(world, "a", 1)
    world.clear_all()
    for lease in "ab":
        world.finish(lease)  # programmed: both run
    world.finish("b")
    world.clear_all()
    book = world.hypervisor.book
    assert len(book.leases["a"].reserved) == 2  # bob lends his; they wait to be merged at the end of the job
    epoch = world.ledger.programmed["a"].epoch
    del world.ledger.tasks["a"]
    world.do(ev.Faulted(world.now, "a", epoch))
    assert sorted(core.state.value for core in book.cores) == ["free", "free", "tainted", "tainted"]


def test_failed_clearing_taints_and_the_plan_does_without() -> None:
    world = World(Settings(cores=4, banks=1))
    for name in ("ann", "bob"):
        world.tenant(name, quota=4)
        world.lease(name, name[0], 0, 2)
    submit(world, "a", 1)
    submit(world, "b", 2)
    for epoch in sorted(world.ledger.clears):
        if 0 in world.ledger.clears[epoch]:
            del world.ledger.clears[epoch]
            world.do(ev.ClearFailed(world.now, epoch))
    world.drain()
    assert world.ledger.ended == {1: ac.Outcome.DONE, 2: ac.Outcome.DONE}
    assert world.hypervisor.book.cores[0].state is CoreState.TAINTED


def test_a_plan_does_not_wait_for_cores_that_could_not_be_cleared() -> None:
    world = World(Settings(cores=8, banks=2))
    world.tenant("ann", quota=8)
    world.tenant("bob", quota=8)
    for name, cores in (("a", 2), ("b", 2), ("c", 3)):
        world.lease("ann", name, cores, cores, sharing=ev.Sharing.PUBLIC)
        world.clear_all()
        submit(world, name, ord(name))
        world.finish(name)  # they run
    world.lease("bob", "d", 0, 2)
    for name in "ab":
        world.do(ev.ReleaseLease(world.now, "ann", name))
        world.finish(name)
    submit(world, "d", 1)  # two cores of one bank will be free, as soon as they are cleared
    epoch = next(epoch for epoch, cores in world.ledger.clears.items() if set(cores) == _plan(world, "d"))
    del world.ledger.clears[epoch]
    world.do(ev.ClearFailed(world.now, epoch))
    world.drain()
    assert world.ledger.ended[1] is ac.Outcome.DONE


def _plan(world: World, lease: str) -> set[int]:
    return set(world.hypervisor.book.leases[lease].plan)


def test_cores_that_are_not_given_back_yet_count_against_the_quota() -> None:
    world = World(Settings())
    world.tenant("ann", quota=10)
    world.lease("ann", "a", 0, 10)
    submit(world, "a", 1)
    world.clear_all()
    world.finish("a")
    world.do(ev.ResizeLease(world.now, "ann", "a", 0, 4))  # the job runs on 10 until it ends
    with pytest.raises(QuotaError, match="may lease 0 of its 10"):
        world.lease("ann", "b", 0, 6)
    world.finish("a")
    world.lease("ann", "b", 0, 6)


def test_after_a_reset_everything_owned_is_cleared_and_jobs_run_again() -> None:
    world = pair()
    submit(world, "a", 1)
    world.clear_all()
    world.finish("a")
    world.ledger.tasks.clear()
    world.ledger.programmed.clear()
    stale = world.hypervisor.book.leases["a"].epoch
    assert kinds(world.do(ev.DeviceReset(world.now))) == ["Clear"]
    assert world.do(ev.JobDone(world.now, "a", stale, 1)) == []
    world.drain()
    assert world.ledger.ended == {1: ac.Outcome.DONE}


def test_after_a_reset_a_stopped_job_begins_at_its_first_layer() -> None:
    """What its layers left in memory is lost."""
    world = pair(switching=ev.Switching.LAYER)
    submit(world, "a", 1)
    world.clear_all()
    world.finish("a")
    submit(world, "b", 2)
    _, start = world.ledger.tasks.pop("a")
    world.do(ev.JobStopped(world.now, "a", start.epoch, 1, 2))  # type: ignore[attr-defined]
    world.ledger.tasks.clear()
    world.ledger.clears.clear()
    world.ledger.programmed.clear()
    world.do(ev.DeviceReset(world.now))
    world.clear_all()
    starts = [action for name in "ab" for action in world.finish(name) if isinstance(action, ac.Start)]
    assert [(action.job, action.first_layer) for action in starts] == [(1, 0), (2, 0)]
    world.drain()


def test_more_cores_stop_a_job_between_layers_only_if_that_ends_it_earlier() -> None:
    for one_ns, stops in ((4_000_000, False), (64_000_000, True)):  # linking takes 0.3 ms
        world = World(Settings())
        for name in ("ann", "bob"):
            world.tenant(name, net(one_ns=one_ns))
            world.lease(name, name[0], 0, 16, switching=ev.Switching.LAYER)
            submit(world, name[0], ord(name[0]))
        world.drain()
        submit(world, "a", 1)
        submit(world, "b", 2)
        for name in "ab":
            while world.ledger.tasks.get(name, ("",))[0] != "run":
                world.clear_all()
                world.finish(name)
        assert (len(world.cores("a")), len(world.cores("b"))) == (8, 8)
        actions = world.finish("b") + world.clear_all()
        assert [action.lease for action in actions if isinstance(action, ac.StopAfterLayer)] == ["a"] * stops
        world.drain()


def test_deadlines_are_kept_or_refused_at_once() -> None:
    world = pair("private-deadline")
    world.clear_all()
    with pytest.raises(DeadlineError, match="job 1 cannot be done"):
        submit(world, "a", 1, deadline=world.now + 1_200_000)  # 1 ms on all cores, and 0.3 ms to get there
    submit(world, "a", 2, deadline=world.now + 2_000_000)
    with pytest.raises(DeadlineError):  # it would make job 2 late
        submit(world, "b", 3, deadline=world.now + 1_700_000)
    submit(world, "b", 4, deadline=world.now + 60_000_000)
    submit(world, "b", 5, deadline=world.now + 50_000_000)
    assert [job.job for job in world.hypervisor.book.leases["b"].queue] == [5, 4], "earliest due first"
    world.drain()
    assert set(world.ledger.ended) == {2, 4, 5}


def test_double_release_is_refused_while_the_last_job_ends() -> None:
    world = pair()
    submit(world, "a", 1)
    submit(world, "a", 2)
    world.clear_all()
    world.finish("a")
    assert world.do(ev.ReleaseLease(world.now, "ann", "a")) == [ac.JobEnded("a", 2, ac.Outcome.CANCELLED, False)]
    with pytest.raises(LeaseError, match="being released already"):
        world.do(ev.ReleaseLease(world.now, "ann", "a"))
    world.drain()
    with pytest.raises(LeaseError, match="has no lease 'a'"):
        world.do(ev.ReleaseLease(world.now, "ann", "a"))


def test_public_growth_beyond_what_is_free_is_refused() -> None:
    world = World(Settings())
    world.tenant("ann")
    world.tenant("bob")
    world.lease("ann", "a", 10, 10, sharing=ev.Sharing.PUBLIC)
    world.lease("bob", "b", 4, 4, sharing=ev.Sharing.PUBLIC)
    world.clear_all()
    with pytest.raises(LeaseError, match="cannot have 7 cores now"):
        world.do(ev.ResizeLease(world.now, "bob", "b", 7, 7))
    world.do(ev.ResizeLease(world.now, "bob", "b", 6, 6))
    world.clear_all()
    assert (len(world.cores("a")), len(world.cores("b"))) == (10, 6)


def test_records_of_all_events_survive_json_and_replay() -> None:
    import json

    world = pair(switching=ev.Switching.LAYER)
    submit(world, "a", 1)
    world.clear_all()
    world.finish("a")
    submit(world, "b", 2)
    world.ledger.tasks.clear()
    world.do(ev.DeviceReset(world.now + 3))
    records = json.loads(json.dumps([to_record(event) for event in world.log]))
    again = replay(world.settings, map(from_record, records))
    assert snapshot(again) == snapshot(world.hypervisor)
    for broken in ({}, {"event": "Nothing"}, {"event": "Cleared"}, {"event": "Cleared", "at": 1, "epoch": 1, "x": 2}):
        with pytest.raises(HypervisorError, match="no event"):
            from_record(broken)


def test_who_needs_no_more_than_what_could_be_cleared_begins() -> None:
    """The plan is the same before and after the deal that follows, so nobody else wakes the lease."""
    world = World(Settings(cores=4, banks=2))
    world.tenant("ann", quota=4)
    world.lease("ann", "never used", 2, 2, sharing=ev.Sharing.PUBLIC)
    world.clear_all()
    world.do(ev.ReleaseLease(world.now, "ann", "never used"))
    world.lease("ann", "a", 0, 4)
    submit(world, "a", 1)
    ((epoch, cores),) = world.ledger.clears.items()
    assert cores == (2, 3), "the others are clean"
    world.ledger.clears.clear()
    (program,) = world.do(ev.ClearFailed(world.now, epoch))
    assert isinstance(program, ac.Program)
    assert program.cores == (0, 1)
    world.drain()
    assert world.ledger.ended == {1: ac.Outcome.DONE}


def test_who_hoped_for_cores_that_could_not_be_cleared_goes_on_with_its_own() -> None:
    world = World(Settings(cores=4, banks=2))
    world.tenant("ann", quota=4)
    world.tenant("bob", quota=4)
    world.lease("bob", "b", 2, 2, sharing=ev.Sharing.PUBLIC)
    world.clear_all()
    submit(world, "b", 1)
    world.finish("b")
    world.lease("ann", "a", 0, 4)
    submit(world, "a", 2)
    submit(world, "a", 3)
    world.clear_all()
    world.finish("a")
    world.do(ev.ReleaseLease(world.now, "bob", "b"))
    world.finish("b")
    ((epoch, lost),) = world.ledger.clears.items()
    assert kinds(world.finish("a")) == ["JobEnded"], "it waits for the other two, which are being cleared"
    world.ledger.clears.clear()
    assert kinds(world.do(ev.ClearFailed(world.now, epoch))) == ["Start"]
    world.drain()
    assert len(world.cores("a")) == 2
    assert not set(lost) & set(world.cores("a"))


def test_what_waited_behind_a_cancelled_job_begins_at_once() -> None:
    """Bob's long job holds half of the cores; the long job in front was better off waiting for these."""
    world = World(Settings())
    world.tenant("ann", net(), net("big", 1_600_000_000))
    world.tenant("bob", net("long", 400_000_000))
    world.lease("bob", "b", 0, 16)
    world.lease("ann", "a", 0, 16)
    submit(world, "a", 1)
    world.do(ev.SubmitJob(world.now, "bob", "b", 2, "long"))
    world.clear_all()
    world.finish("a")
    world.finish("b")
    world.do(ev.ReleaseLease(world.now, "bob", "b"))  # its job goes on
    world.do(ev.SubmitJob(world.now, "ann", "a", 3, "big"))
    world.do(ev.SubmitJob(world.now, "ann", "a", 4, "net"))
    assert kinds(world.finish("a")) == ["JobEnded"], "what is left of it waits for the other half"
    assert kinds(world.do(ev.CancelJob(world.now, "ann", "a", 3))) == ["JobEnded", "Start"]
    world.drain()


def test_a_lease_that_was_faulted_before_a_restart_holds_no_memory() -> None:
    world = World(Settings(bank_bytes=2500))
    for name in ("ann", "bob"):
        world.tenant(name)
        world.lease(name, name[0], 1, 8)
    assert world.do(ev.RequestLease(world.now, "ann", "old", 2, 4, 2000, faulted=True)) == []
    assert world.hypervisor.book.queue == []
    world.lease("ann", "new", 0, 4)
    assert world.hypervisor.book.queue == ["new"], "only that of the other two is taken"
    world.do(ev.ReleaseLease(world.now, "bob", "b"))
    assert world.hypervisor.book.leases["new"].admitted
    with pytest.raises(LeaseError, match="stopped by a fault"):
        world.do(ev.SubmitJob(world.now, "ann", "old", 1, "net"))
    assert kinds(world.do(ev.ReleaseLease(world.now, "ann", "old"))) == ["LeaseReleased"]
