"""Moves: brings every replica of a lease from what it has to what its plan says, one safe action at a time.

It must not know requests or policies; it follows plans, and asks the device for what is next.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from corepool.hypervisor import actions as ac
from corepool.hypervisor.events import Sharing, Switching
from corepool.hypervisor.placement import Cores, in_order
from corepool.hypervisor.records import Book, Core, CoreState, Job, Lease, Phase, Replica
from corepool.hypervisor.settings import Settings


def leaves_at(book: Book, replica: Replica) -> int:
    """When a replica can predictably give cores up: at the end of its layer or of its job."""
    if replica.lease.switching is Switching.LAYER and replica.running is not None:
        model = replica.running.model
        layer_ns = model.latency_ns[max(len(replica.cores), 1) - 1] // model.layers
        return min(replica.busy_until, book.now + layer_ns)
    return replica.busy_until


def complete_at(book: Book, settings: Settings, replica: Replica) -> int:
    """When a replica predictably has all planned cores: as soon as their owners can give them up and they are
    cleared."""
    missing = replica.plan - replica.own
    owners = {book.cores[core].owner for core in missing}
    ends = [leaves_at(book, book.replicas[name]) for name in owners if name is not None]
    unclean = any(not book.cores[core].clean for core in missing | replica.reserved)
    return max([book.now, *ends]) + (settings.costs.clear_ns if unclean else 0)


class Moves:
    """Works on a book and collects the actions that follow in ``out``."""

    def __init__(self, book: Book, settings: Settings) -> None:
        self.book = book
        self.settings = settings
        self.out: list[ac.Action] = []

    def next_epoch(self) -> int:
        self.book.epoch += 1
        return self.book.epoch

    def release_surplus(self, replica: Replica) -> None:
        """Give up cores that are not in the plan, or say that they will be as soon as the replica stops."""
        surplus = replica.reserved - replica.plan
        if surplus:
            replica.reserved -= surplus
            self._let_go(surplus)
        leaving = replica.cores - replica.plan
        if replica.phase is Phase.IDLE:
            if leaving:
                replica.cores -= leaving
                replica.model = None  # the streams that are loaded are for other cores
                self._clear(leaving)
            for core in replica.cores:  # those that were to be given up may stay after all
                self._mark(core, CoreState.ACTIVE)
        elif replica.phase is Phase.RUNNING:
            for core in replica.cores:
                self._mark(core, CoreState.DRAINING if core in leaving else CoreState.ACTIVE)
            if leaving and not replica.lease.releasing:
                self._stop_early(replica)

    def retire(self, replica: Replica) -> bool:
        """Forget a replica that is not needed any more and has nothing left, unless it is its lease's first."""
        lease = replica.lease
        if replica.plan or replica is lease.replicas[0] or replica.own or replica.phase is not Phase.IDLE:
            return False
        self.book.forget(replica)
        self.out.append(ac.DropWindow(replica.name))
        return True

    def take_and_work(self, replica: Replica) -> None:
        """Take planned cores that are free; if all are there, program them for the next job, or start it."""
        lease = replica.lease
        self._reserve(replica)
        complete = self._complete(replica)
        if not lease.granted and (lease.sharing is Sharing.PRIVATE or (complete and replica.plan)):
            lease.granted = True
            self.out.append(ac.LeaseGranted(lease.lease, tuple(sorted(lease.own))))
        if complete and replica.reserved and replica.phase is Phase.RUNNING and self._worth_stopping(replica):
            self._stop_early(replica)
        able = lease.queue and replica.plan and replica.phase is Phase.IDLE
        if able and (complete or self._worth_beginning(replica)):
            self._work(replica)

    def _work(self, replica: Replica) -> None:
        """Start the next job that these cores are programmed for, or program them. For each of the lease's replicas
        that are being programmed one job is left."""
        lease, queue = replica.lease, replica.lease.queue
        others = 0
        if len(lease.replicas) > 1:
            others = sum(each.phase is Phase.PROGRAMMING for each in lease.replicas)
        jobs = list(islice(queue, others + 1)) if others else [queue[0]]
        if not replica.reserved:
            for job in jobs:
                if job.model.name == replica.model and job.home in (None, replica.name):
                    self._start(replica, job)
                    return
        if others < len(queue):
            self._program(replica, jobs[others])

    def _complete(self, replica: Replica) -> bool:
        """True if the replica has exactly its planned cores, all of them cleared."""
        return replica.plan == replica.own and self._cleared(replica)

    def _cleared(self, replica: Replica) -> bool:
        return all(self.book.cores[core].state is CoreState.RESERVED for core in replica.reserved)

    def _worth_beginning(self, replica: Replica) -> bool:
        """True if the next job would end earlier on the cores that are there than on all planned ones, since others
        hold some of these for so long."""
        lease = replica.lease
        if lease.sharing is Sharing.PUBLIC or not replica.own or not self._cleared(replica):
            return False
        job, costs = lease.queue[0], self.settings.costs
        here, planned = len(replica.own), len(replica.plan)
        if replica.reserved or replica.model != job.model.name:
            changing = costs.switch_ns(job.model, here)
        else:
            changing = 0
        later = complete_at(self.book, self.settings, replica) + costs.switch_ns(job.model, planned)
        return (
            self.book.now + changing + job.model.rest_ns(here, job.next_layer)
            <= later + job.model.rest_ns(planned, job.next_layer)
        )  # fmt: skip

    def _mark(self, core: int, state: CoreState) -> None:
        if self.book.cores[core].state is not state:
            self.book.cores[core].move(state)

    def _reserve(self, replica: Replica) -> None:
        """Take the planned cores that are free; clear those that nobody has cleared yet. Another replica may have to
        give up its cores before: a lease never has more than its maximum."""
        unsure = []
        missing = replica.plan - replica.own
        room = replica.lease.maximum - len(replica.lease.own) if missing else 0
        for number in sorted(missing):
            core = self.book.cores[number]
            if core.state is CoreState.FREE and room > 0:
                room -= 1
                core.move(CoreState.RESERVED)
                core.owner = replica.name
                replica.reserved |= {number}
                if not core.clean:
                    unsure.append(number)
        if unsure:
            self._ask_clear(tuple(unsure))

    def _let_go(self, cores: Cores) -> None:
        """Reserved cores that were not used: free at once, unless they are being cleared; then when that is done."""
        for number in cores:
            core = self.book.cores[number]
            core.owner = None
            if core.state is CoreState.RESERVED:
                core.move(CoreState.FREE)

    def _clear(self, cores: Iterable[int]) -> None:
        """Take cores from their owner and clear them."""
        chosen = tuple(sorted(cores))
        for number in chosen:
            self.book.cores[number].owner = None
        if chosen:
            self._ask_clear(chosen)

    def _ask_clear(self, cores: tuple[int, ...]) -> None:
        epoch = self.next_epoch()
        for number in cores:
            self.book.cores[number].move(CoreState.CLEARING)
        self.book.clears[epoch] = cores
        self.out.append(ac.Clear(epoch, cores))

    def _worth_stopping(self, replica: Replica) -> bool:
        """More cores help the job that runs only if it would not end before they were ready."""
        job = replica.running
        if job is None or replica.lease.switching is Switching.TASK:
            return False
        return replica.busy_until - self.book.now > 2 * self.settings.costs.switch_ns(job.model, len(replica.plan))

    def _stop_early(self, replica: Replica) -> None:
        if replica.lease.switching is Switching.LAYER and not replica.stopping and replica.running is not None:
            replica.stopping = True
            self.out.append(ac.StopAfterLayer(replica.epoch, replica.name, replica.running.job))

    def _program(self, replica: Replica, job: Job) -> None:
        """Merge reserved cores with the others and load the job's model onto all."""
        bank_of, model = self.settings.bank_of, job.model
        before = {bank_of(core) for core in replica.cores}
        cores = in_order(replica.own, bank_of)
        banks = {bank_of(core) for core in cores}
        missing = tuple(sorted(bank for bank in banks if replica.resident.get(bank) != model.name))
        moving = job.next_layer > 0 and (before != banks or len(banks) > 1 or job.home != replica.name)
        job.home = replica.name if job.next_layer else None
        for number in cores:
            self.book.cores[number].move(CoreState.PROGRAMMING)
            self.book.cores[number].clean = False
        replica.cores, replica.reserved = frozenset(cores), frozenset()
        replica.epoch, replica.phase = self.next_epoch(), Phase.PROGRAMMING
        replica.model = model.name
        replica.resident.update(dict.fromkeys(banks, model.name))
        action = ac.Program(
            epoch=replica.epoch,
            lease=replica.name,
            cores=cores,
            model=model.name,
            stream_bytes=model.stream_bytes[len(cores) - 1],
            weight_bytes=model.weight_bytes if missing else 0,
            weight_banks=missing,
            move_bytes=2 * model.state_bytes if moving else 0,  # out of their banks, and into all others
        )
        costs = self.settings.costs
        size = action.weight_bytes + action.move_bytes
        replica.busy_until = self.book.now + costs.switch_ns(model, len(cores)) + costs.transfer_ns(size)
        self.out.append(action)

    def _start(self, replica: Replica, job: Job) -> None:
        replica.lease.take(job)
        replica.lease.running.append(job)
        replica.running, replica.phase, replica.stopping = job, Phase.RUNNING, False
        replica.busy_until = self.book.now + job.model.rest_ns(len(replica.cores), job.next_layer)
        self.out.append(ac.Start(replica.epoch, replica.name, job.job, job.next_layer))

    # What the device reports.

    def cleared(self, epoch: int, failed: bool = False) -> None:
        for number in self.book.clears.pop(epoch, ()):
            core = self.book.cores[number]
            if failed:
                self._taint(core, number)
                continue
            core.clean = True
            core.move(CoreState.FREE if core.owner is None else CoreState.RESERVED)
        if failed:
            self.book.count_usable()

    def _taint(self, core: Core, number: int) -> None:
        """Nobody's any more; a replica that had reserved it does not count it."""
        if core.owner is not None:
            replica = self.book.replicas[core.owner]
            replica.reserved -= {number}
            replica.plan -= {number}
        core.owner, core.clean = None, False
        core.move(CoreState.TAINTED)

    def programmed(self, replica: Replica) -> None:
        replica.phase = Phase.IDLE
        for core in replica.cores:
            self.book.cores[core].move(CoreState.ACTIVE)

    def stopped(self, replica: Replica, next_layer: int) -> None:
        """The job that ran goes on later at ``next_layer``."""
        assert replica.running is not None
        replica.running.next_layer, replica.running.home = next_layer, replica.name
        replica.lease.return_running(replica)
        replica.phase, replica.stopping = Phase.IDLE, False

    def end_job(self, job: Job, lease: Lease, outcome: ac.Outcome) -> None:
        late = job.deadline is not None and (outcome is not ac.Outcome.DONE or self.book.now > job.deadline)
        del self.book.jobs[job.job]
        lease.promised -= job.deadline is not None
        self.out.append(ac.JobEnded(lease.lease, job.job, outcome, late))

    def end_waiting(self, lease: Lease, outcome: ac.Outcome) -> None:
        """End all jobs that wait."""
        while lease.queue:
            job = lease.queue[0]
            lease.take(job)
            self.end_job(job, lease, outcome)

    def faulted(self, replica: Replica) -> None:
        """The cores that ran are tainted, the lease's others go back when what they run has ended, and no job that
        waits will be done."""
        lease = replica.lease
        lost = tuple(sorted(replica.cores))
        for number in lost:
            core = self.book.cores[number]
            if core.state is not CoreState.TAINTED:
                core.owner, core.clean = None, False
                core.move(CoreState.TAINTED)
        self.book.count_usable()
        self._let_go(replica.reserved)
        replica.cores = replica.reserved = frozenset()
        replica.phase, replica.model, replica.resident = Phase.IDLE, None, {}
        lease.faulted = True
        for each in lease.replicas:
            each.plan = frozenset()
        self.out.append(ac.LeaseFaulted(lease.lease, lost, None if replica is lease.first else replica.name))
        if replica.running is not None:
            self.end_job(lease.end_running(replica), lease, ac.Outcome.FAILED)
        self.end_waiting(lease, ac.Outcome.FAILED)

    def forget(self, lease: Lease) -> None:
        """A lease that is being released and does nothing any more: clear its cores and forget it."""
        for replica in lease.replicas:
            self._let_go(replica.reserved)
            self._clear(replica.cores)
            del self.book.replicas[replica.name]
        self.book.tenants[lease.tenant].leases.discard(lease.lease)
        del self.book.leases[lease.lease]
        if lease.admitted:
            self.out += [ac.DropWindow(replica.name) for replica in lease.replicas]
        self.out.append(ac.LeaseReleased(lease.lease))

    def repair(self, cores: Iterable[int]) -> None:
        self._ask_clear(tuple(sorted(cores)))
        self.book.count_usable()

    def reset(self) -> None:
        """Nothing that was under way will be reported. What was owned is cleared and programmed anew, what ran waits
        again."""
        book = self.book
        book.clears.clear()
        for lease in book.leases.values():
            for replica in reversed(lease.replicas):
                lease.return_running(replica)
                replica.reserved, replica.cores = replica.own, frozenset()
                replica.phase, replica.stopping, replica.model, replica.resident = Phase.IDLE, False, None, {}
                replica.epoch = self.next_epoch()
            for job in lease.queue:
                job.next_layer, job.home = 0, None
        for core in book.cores:
            core.clean = False
        busy = [i for i, core in enumerate(book.cores) if core.owner is not None or core.state is CoreState.CLEARING]
        if busy:
            self._ask_clear(tuple(busy))
