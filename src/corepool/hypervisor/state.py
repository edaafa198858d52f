"""The hypervisor's heart: a state machine. Events in, actions out.

It must not know devices, files or clocks: time comes with the events.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from corepool.device.base import MAX_LEASE_CORES
from corepool.errors import ConfigError, HypervisorError, TenantError
from corepool.hypervisor import actions as ac
from corepool.hypervisor import events as ev
from corepool.hypervisor import planner, requests
from corepool.hypervisor.division import depth
from corepool.hypervisor.moves import Moves
from corepool.hypervisor.numbers import wholes
from corepool.hypervisor.policies import POLICIES
from corepool.hypervisor.records import Book, Core, CoreState, Lease, Phase, Replica, Tenant
from corepool.hypervisor.settings import Settings
from corepool.hypervisor.wellformed import check_form


class Hypervisor:
    """Who holds which cores. ``handle`` takes one event after the other and returns what is to be done.

    A request that cannot be met raises a HypervisorError, and the state is as before. Reports of the device that are
    out of date are ignored.
    """

    def __init__(self, settings: Settings | None = None, epoch: int = 0, tainted: Collection[int] = ()) -> None:
        """``epoch``: the youngest that any earlier hypervisor of this device may have used; ``tainted``: cores that it
        left so. Raises ConfigError for what cannot be."""
        self.settings = Settings() if settings is None else settings
        if not isinstance(self.settings, Settings):
            raise ConfigError(f"a hypervisor has Settings, not {settings!r}")
        if not wholes((epoch,)):
            raise ConfigError(f"the youngest epoch so far is a whole number from 0 on, not {epoch!r}")
        states = [CoreState.TAINTED if core in tainted else CoreState.FREE for core in range(self.settings.cores)]
        self.book = Book([Core(state) for state in states], epoch=epoch)
        self._moves = Moves(self.book, self.settings)
        self._watches_jobs = POLICIES[self.settings.policy].watches_jobs
        self._replan = False
        self._touched: dict[str, None] = {}  # leases to look at, in the order in which they were touched
        self._handlers: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.AddTenant: self._add_tenant,
            ev.SetTenant: self._set_tenant,
            ev.RemoveTenant: self._remove_tenant,
            ev.LoadModel: self._load_model,
            ev.UnloadModel: self._unload_model,
            ev.RequestLease: self._request_lease,
            ev.ResizeLease: self._resize_lease,
            ev.ReleaseLease: self._release_lease,
            ev.SubmitJob: self._submit_job,
            ev.CancelJob: self._cancel_job,
            ev.RepairCores: self._repair_cores,
            ev.Tick: self._tick,
            ev.Cleared: self._cleared,
            ev.ClearFailed: self._clear_failed,
            ev.Programmed: self._programmed,
            ev.JobDone: self._job_done,
            ev.JobStopped: self._job_stopped,
            ev.Faulted: self._faulted,
            ev.DeviceReset: self._device_reset,
        }

    def handle(self, event: ev.Event) -> list[ac.Action]:
        """Take in one event. Returns actions in the order in which they are to be carried out."""
        check_form(event, self.book.now)
        before, self.book.now = self.book.now, event.at
        try:
            self._handlers[type(event)](event)
        except HypervisorError:
            self.book.now = before
            raise
        self._settle()
        out, self._moves.out = self._moves.out, []
        return out

    def _settle(self) -> None:
        """Deal anew if something changed, then move every lease that is not where it should be."""
        moves, leases = self._moves, self.book.leases
        self._deal()
        touched = [leases[name] for name in self._touched if name in leases]
        self._touched.clear()
        for lease in touched:
            for replica in list(lease.replicas):
                moves.release_surplus(replica)
                if moves.retire(replica):
                    self._replan = self._replan or bool(self.book.queue)  # its window may be what somebody waits for
        for lease in touched:
            if lease.admitted and not lease.faulted and not lease.releasing:
                for replica in lease.replicas:
                    moves.take_and_work(replica)
            if lease.releasing and lease.idle:
                moves.forget(lease)
                self._replan = True
        if self._replan:
            self._settle()

    def _deal(self) -> None:
        """Admit leases and write plans, if something changed since."""
        if self._replan:
            self._replan = False
            for lease in planner.admit(self.book, self.settings):
                self._touch(lease)
            for lease in planner.replan(self.book, self.settings):
                self._touch(lease)

    def _touch(self, lease: Lease) -> None:
        self._touched[lease.lease] = None

    def _touch_incomplete(self) -> None:
        """Cores came free: whoever waits for some may take them."""
        for lease in self.book.leases.values():
            if not lease.settled:
                self._touch(lease)

    # Requests: check everything, then change.

    def _add_tenant(self, event: ev.AddTenant) -> None:
        requests.check_new_tenant(self.book, self.settings, event)
        self.book.tenants[event.tenant] = Tenant(event.tenant, event.quota, event.priority)

    def _set_tenant(self, event: ev.SetTenant) -> None:
        tenant = requests.check_set_tenant(self.book, self.settings, event)
        later = (tenant.priority - event.priority) * self.settings.ageing_ns
        tenant.quota, tenant.priority = event.quota, event.priority
        if later:
            for name in tenant.leases:  # those that wait change their place
                self.book.leases[name].order += later
            self._sort_queue()
        self._replan = True

    def _remove_tenant(self, event: ev.RemoveTenant) -> None:
        tenant = requests.tenant_of(self.book, event.tenant)
        if tenant.leases:
            raise TenantError(
                f"tenant {event.tenant!r} still has leases: {', '.join(sorted(tenant.leases))}; release them first"
            )
        del self.book.tenants[event.tenant]

    def _load_model(self, event: ev.LoadModel) -> None:
        requests.check_load(self.book, self.settings, event)
        self.book.tenants[event.tenant].models[event.model.name] = event.model

    def _unload_model(self, event: ev.UnloadModel) -> None:
        requests.check_unload(self.book, event)
        tenant = self.book.tenants[event.tenant]
        del tenant.models[event.model]
        for name in tenant.leases:  # another model may be loaded under this name
            lease = self.book.leases[name]
            lease.backlog.pop(event.model, None)
            for replica in lease.replicas:
                replica.resident = {bank: model for bank, model in replica.resident.items() if model != event.model}
                if replica.model == event.model:
                    replica.model = None

    def _request_lease(self, event: ev.RequestLease) -> None:
        requests.check_lease(self.book, self.settings, event)
        book, tenant = self.book, self.book.tenants[event.tenant]
        book.serial += 1
        lease = Lease(
            event.lease, event.tenant, event.minimum, event.maximum, event.window_bytes, event.sharing, event.switching,
            order=event.at - tenant.priority * self.settings.ageing_ns,
            serial=book.serial,
            most=_replicas(event),
            ends_at=None if event.term_ns is None else event.at + event.term_ns,
            faulted=event.faulted,
        )  # fmt: skip
        book.put(lease)
        tenant.leases.add(event.lease)
        if event.faulted:
            return  # it waits for nothing, and has neither cores nor a window
        book.queue.append(event.lease)
        self._sort_queue()
        self._touch(lease)
        self._replan = True
        self._settle()
        if not lease.granted:
            self._tell_waiting(lease)

    def _sort_queue(self) -> None:
        leases = self.book.leases
        self.book.queue.sort(key=lambda name: (leases[name].order, leases[name].serial))

    def _tell_waiting(self, lease: Lease) -> None:
        """Where a new lease stands: in the queue, or admitted and waiting for its cores."""
        start = planner.predicted_grant(self.book, self.settings, lease)
        position = 0 if lease.admitted else self.book.queue.index(lease.lease)
        self._moves.out.append(ac.LeaseQueued(lease.lease, position, start))

    def _resize_lease(self, event: ev.ResizeLease) -> None:
        lease = requests.check_resize(self.book, self.settings, event)
        lease.minimum, lease.maximum = event.minimum, event.maximum
        if event.window_bytes is not None:
            lease.window_bytes = event.window_bytes
        self._touch(lease)
        self._replan = True

    def _release_lease(self, event: ev.ReleaseLease) -> None:
        lease = requests.check_release(self.book, event)
        lease.releasing = True
        self._moves.end_waiting(lease, ac.Outcome.CANCELLED)
        if lease.lease in self.book.queue:
            self.book.queue.remove(lease.lease)
        for replica in lease.replicas:
            replica.plan = frozenset()
        self._touch(lease)
        self._replan = True

    def _submit_job(self, event: ev.SubmitJob) -> None:
        lease, job = requests.check_job(self.book, self.settings, event)
        self.book.jobs[event.job] = lease.lease
        known = event.at < lease.lively_until and not self.book.unserved  # it counts as having work already
        lease.lively_until = event.at + self.settings.linger_ns
        if self._watches_jobs or not (lease.waiting or known):
            self._replan = True
        position = lease.enqueue(job, in_order=self.settings.policy == "private-deadline")
        self._look_at_depth(lease, lease.waiting - 1)
        self._deal()  # the prediction depends on it
        start = planner.predicted_start(self.book, self.settings, lease, job)
        self._moves.out.append(ac.JobAccepted(lease.lease, job.job, position, start))
        self._touch(lease)

    def _cancel_job(self, event: ev.CancelJob) -> None:
        lease, job = requests.check_cancel(self.book, event)
        lease.take(job)
        self._moves.end_job(job, lease, ac.Outcome.CANCELLED)
        self._touch(lease)  # what was behind it may begin
        self._look_at_depth(lease, lease.waiting + 1)
        self._replan = self._replan or self._watches_jobs or not lease.waiting

    def _repair_cores(self, event: ev.RepairCores) -> None:
        requests.check_repair(self.book, event)
        self._moves.repair(event.cores)
        self._replan = True

    def _tick(self, event: ev.Tick) -> None:
        self._replan = True

    def _look_at_depth(self, lease: Lease, before: int) -> None:
        """Deal anew if another depth of a lease's queue may call for other replicas."""
        waiting = lease.waiting
        if lease.most < 2 or self._watches_jobs or waiting.bit_length() == before.bit_length():
            return
        if depth(waiting) == depth(before):
            return
        if not lease.alone or planner.divisible(self.settings, lease, lease.planned):
            self._replan = True

    # Reports of the device.

    def _cleared(self, event: ev.Cleared) -> None:
        if event.epoch in self.book.clears:
            self._moves.cleared(event.epoch)
            self._touch_incomplete()

    def _clear_failed(self, event: ev.ClearFailed) -> None:
        if event.epoch in self.book.clears:
            for number in self.book.clears[event.epoch]:
                owner = self.book.cores[number].owner
                if owner is not None:  # its plan, without the lost core, may be met and not change any more
                    self._touch(self.book.replicas[owner].lease)
            self._moves.cleared(event.epoch, failed=True)
            self._replan = True

    def _current(self, name: str, epoch: int, phase: Phase) -> Replica | None:
        """The replica that a report is about, or None if the report is out of date."""
        replica = self.book.replicas.get(name)
        return replica if replica is not None and replica.epoch == epoch and replica.phase is phase else None

    def _programmed(self, event: ev.Programmed) -> None:
        replica = self._current(event.lease, event.epoch, Phase.PROGRAMMING)
        if replica is not None:
            self._moves.programmed(replica)
            self._touch(replica.lease)

    def _running(self, event: ev.JobDone | ev.JobStopped) -> Replica | None:
        found = self._current(event.lease, event.epoch, Phase.RUNNING)
        return found if found is not None and found.running is not None and found.running.job == event.job else None

    def _job_done(self, event: ev.JobDone) -> None:
        replica = self._running(event)
        if replica is None or replica.running is None:
            return
        lease = replica.lease
        job = lease.end_running(replica)
        replica.phase, replica.stopping = Phase.IDLE, False
        lease.lively_until = event.at + self.settings.linger_ns
        self._moves.end_job(job, lease, ac.Outcome.DONE)
        self._touch(lease)
        self._look_at_depth(lease, lease.waiting + 1)
        lingers = bool(self.settings.linger_ns)  # it counts as having work for a while
        if self._watches_jobs or self.book.unserved or not (lease.waiting or lingers):
            self._replan = True

    def _job_stopped(self, event: ev.JobStopped) -> None:
        replica = self._running(event)
        if replica is None or replica.running is None or not replica.stopping:
            return  # nobody asked for it, or it was told before
        if replica.running.next_layer < event.next_layer < replica.running.model.layers:
            lease = replica.lease
            self._moves.stopped(replica, event.next_layer)
            self._end_returned(lease)
            self._touch(lease)
            self._replan = self._replan or self.book.unserved

    def _faulted(self, event: ev.Faulted) -> None:
        replica = self.book.replicas.get(event.lease)
        if replica is not None and replica.epoch == event.epoch and replica.phase is not Phase.IDLE:
            self._moves.faulted(replica)
            self._touch(replica.lease)
            self._replan = True

    def _device_reset(self, event: ev.DeviceReset) -> None:
        self._moves.reset()
        for lease in self.book.leases.values():
            self._end_returned(lease)
            self._touch(lease)
        self._replan = True

    def _end_returned(self, lease: Lease) -> None:
        """Jobs that ran and wait again, on a lease that does none any more."""
        if lease.faulted or lease.releasing:
            self._moves.end_waiting(lease, ac.Outcome.FAILED if lease.faulted else ac.Outcome.CANCELLED)


def _replicas(event: ev.RequestLease) -> int:
    """How many a lease may have at most."""
    if event.replicas is not None:
        return event.replicas
    return 1 if event.sharing is ev.Sharing.PUBLIC else MAX_LEASE_CORES
