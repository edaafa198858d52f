"""Moves: brings every lease from what it has to what its plan says, one safe action at a time.

It must not know requests or policies; it follows plans, and asks the device for what is next.
"""

from __future__ import annotations

from collections.abc import Iterable

from corepool.hypervisor import actions as ac
from corepool.hypervisor.events import Sharing, Switching
from corepool.hypervisor.placement import Cores, in_order
from corepool.hypervisor.records import Book, Core, CoreState, Job, Lease, Phase
from corepool.hypervisor.settings import Settings


def leaves_at(book: Book, settings: Settings, lease: Lease) -> int:
    """When a lease can predictably give cores up: at the end of its layer or of its job."""
    if lease.switching is Switching.LAYER and lease.running is not None:
        model = lease.running.model
        layer_ns = model.latency_ns[max(len(lease.cores), 1) - 1] // model.layers
        return min(lease.busy_until, book.now + layer_ns)
    return lease.busy_until


def complete_at(book: Book, settings: Settings, lease: Lease) -> int:
    """When a lease predictably has all planned cores: as soon as their owners can give them up and they are
    cleared."""
    missing = lease.plan - lease.own
    owners = {book.cores[core].owner for core in missing}
    ends = [leaves_at(book, settings, book.leases[name]) for name in owners if name is not None]
    unclean = any(not book.cores[core].clean for core in missing | lease.reserved)
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

    def release_surplus(self, lease: Lease) -> None:
        """Give up cores that are not in the plan, or say that they will be as soon as the lease stops."""
        surplus = lease.reserved - lease.plan
        if surplus:
            lease.reserved -= surplus
            self._let_go(surplus)
        leaving = lease.cores - lease.plan
        if lease.phase is Phase.IDLE:
            if leaving:
                lease.cores -= leaving
                lease.model = None  # the streams that are loaded are for other cores
                self._clear(leaving)
            for core in lease.cores:  # those that were to be given up may stay after all
                self._mark(core, CoreState.ACTIVE)
        elif lease.phase is Phase.RUNNING:
            for core in lease.cores:
                self._mark(core, CoreState.DRAINING if core in leaving else CoreState.ACTIVE)
            if leaving and not lease.releasing:
                self._stop_early(lease)

    def take_and_work(self, lease: Lease) -> None:
        """Take planned cores that are free; if all are there, program them for the next job, or start it."""
        self._reserve(lease)
        complete = self._complete(lease)
        if not lease.granted and (lease.sharing is Sharing.PRIVATE or (complete and lease.plan)):
            lease.granted = True
            self.out.append(ac.LeaseGranted(lease.lease, tuple(sorted(lease.own))))
        if complete and lease.reserved and lease.phase is Phase.RUNNING and self._worth_stopping(lease):
            self._stop_early(lease)
        if lease.phase is Phase.IDLE and lease.queue and (complete or self._worth_beginning(lease)) and lease.plan:
            job = lease.queue[0]
            if lease.reserved or lease.model != job.model.name:
                self._program(lease, job)
            else:
                self._start(lease, job)

    def _complete(self, lease: Lease) -> bool:
        """True if the lease has exactly its planned cores, all of them cleared."""
        return lease.plan == lease.own and self._cleared(lease)

    def _cleared(self, lease: Lease) -> bool:
        return all(self.book.cores[core].state is CoreState.RESERVED for core in lease.reserved)

    def _worth_beginning(self, lease: Lease) -> bool:
        """True if the next job would end earlier on the cores that are there than on all planned ones, since others
        hold some of these for so long."""
        if lease.sharing is Sharing.PUBLIC or not lease.own or not self._cleared(lease):
            return False
        job, costs = lease.queue[0], self.settings.costs
        here, planned = len(lease.own), len(lease.plan)
        if lease.reserved or lease.model != job.model.name:
            changing = costs.switch_ns(job.model, here)
        else:
            changing = 0
        later = complete_at(self.book, self.settings, lease) + costs.switch_ns(job.model, planned)
        return (
            self.book.now + changing + job.model.rest_ns(here, job.next_layer)
            <= later + job.model.rest_ns(planned, job.next_layer)
        )  # fmt: skip

    def _mark(self, core: int, state: CoreState) -> None:
        if self.book.cores[core].state is not state:
            self.book.cores[core].move(state)

    def _reserve(self, lease: Lease) -> None:
        """Take the planned cores that are free; clear those that nobody has cleared yet."""
        unsure = []
        for number in sorted(lease.plan - lease.own):
            core = self.book.cores[number]
            if core.state is CoreState.FREE:
                core.move(CoreState.RESERVED)
                core.owner = lease.lease
                lease.reserved |= {number}
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

    def _worth_stopping(self, lease: Lease) -> bool:
        """More cores help the job that runs only if it would not end before they were ready."""
        job = lease.running
        if job is None or lease.switching is Switching.TASK:
            return False
        return lease.busy_until - self.book.now > 2 * self.settings.costs.switch_ns(job.model, len(lease.plan))

    def _stop_early(self, lease: Lease) -> None:
        if lease.switching is Switching.LAYER and not lease.stopping and lease.running is not None:
            lease.stopping = True
            self.out.append(ac.StopAfterLayer(lease.epoch, lease.lease, lease.running.job))

    def _program(self, lease: Lease, job: Job) -> None:
        """Merge reserved cores with the others and load the job's model onto all."""
        bank_of, model = self.settings.bank_of, job.model
        before = {bank_of(core) for core in lease.cores}
        cores = in_order(lease.own, bank_of)
        banks = {bank_of(core) for core in cores}
        missing = tuple(sorted(bank for bank in banks if lease.resident.get(bank) != model.name))
        moving = job.next_layer > 0 and (before != banks or len(banks) > 1)
        for number in cores:
            self.book.cores[number].move(CoreState.PROGRAMMING)
            self.book.cores[number].clean = False
        lease.cores, lease.reserved = frozenset(cores), frozenset()
        lease.epoch, lease.phase = self.next_epoch(), Phase.PROGRAMMING
        lease.model = model.name
        lease.resident.update(dict.fromkeys(banks, model.name))
        action = ac.Program(
            epoch=lease.epoch,
            lease=lease.lease,
            cores=cores,
            model=model.name,
            stream_bytes=model.stream_bytes[len(cores) - 1],
            weight_bytes=model.weight_bytes if missing else 0,
            weight_banks=missing,
            move_bytes=2 * model.state_bytes if moving else 0,  # out of their banks, and into all others
        )
        costs = self.settings.costs
        size = action.weight_bytes + action.move_bytes
        lease.busy_until = self.book.now + costs.switch_ns(model, len(cores)) + costs.transfer_ns(size)
        self.out.append(action)

    def _start(self, lease: Lease, job: Job) -> None:
        lease.take(job)
        lease.running, lease.phase, lease.stopping = job, Phase.RUNNING, False
        lease.busy_until = self.book.now + job.model.rest_ns(len(lease.cores), job.next_layer)
        self.out.append(ac.Start(lease.epoch, lease.lease, job.job, job.next_layer))

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
        """Nobody's any more; a lease that had reserved it does not count it."""
        if core.owner is not None:
            lease = self.book.leases[core.owner]
            lease.reserved -= {number}
            lease.plan -= {number}
        core.owner, core.clean = None, False
        core.move(CoreState.TAINTED)

    def programmed(self, lease: Lease) -> None:
        lease.phase = Phase.IDLE
        for core in lease.cores:
            self.book.cores[core].move(CoreState.ACTIVE)

    def stopped(self, lease: Lease, next_layer: int) -> None:
        """The job that ran goes on later at ``next_layer``."""
        assert lease.running is not None
        lease.running.next_layer = next_layer
        lease.return_running()
        lease.phase, lease.stopping = Phase.IDLE, False

    def end_job(self, job: Job, lease: Lease, outcome: ac.Outcome) -> None:
        late = job.deadline is not None and (outcome is not ac.Outcome.DONE or self.book.now > job.deadline)
        del self.book.jobs[job.job]
        self.out.append(ac.JobEnded(lease.lease, job.job, outcome, late))

    def end_waiting(self, lease: Lease, outcome: ac.Outcome) -> None:
        """End all jobs that wait."""
        while lease.queue:
            job = lease.queue[0]
            lease.take(job)
            self.end_job(job, lease, outcome)

    def faulted(self, lease: Lease) -> None:
        """The cores that ran are tainted, the others go back, and no job of the lease will be done."""
        lost = tuple(sorted(lease.cores))
        for number in lost:
            core = self.book.cores[number]
            if core.state is not CoreState.TAINTED:
                core.owner, core.clean = None, False
                core.move(CoreState.TAINTED)
        self.book.count_usable()
        self._let_go(lease.reserved)
        lease.cores = lease.reserved = lease.plan = frozenset()
        lease.faulted, lease.phase, lease.model, lease.resident = True, Phase.IDLE, None, {}
        self.out.append(ac.LeaseFaulted(lease.lease, lost))
        if lease.running is not None:
            job, lease.running = lease.running, None
            self.end_job(job, lease, ac.Outcome.FAILED)
        self.end_waiting(lease, ac.Outcome.FAILED)

    def retire(self, lease: Lease) -> None:
        """A lease that is being released and does nothing any more: clear its cores and forget it."""
        self._let_go(lease.reserved)
        self._clear(lease.cores)
        self.book.tenants[lease.tenant].leases.discard(lease.lease)
        del self.book.leases[lease.lease]
        if lease.admitted:
            self.out.append(ac.DropWindow(lease.lease))
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
            lease.return_running()
            for job in lease.queue:
                job.next_layer = 0
            lease.reserved, lease.cores = lease.own, frozenset()
            lease.phase, lease.stopping, lease.model, lease.resident = Phase.IDLE, False, None, {}
            lease.epoch = self.next_epoch()
        for core in book.cores:
            core.clean = False
        busy = [i for i, core in enumerate(book.cores) if core.owner is not None or core.state is CoreState.CLEARING]
        if busy:
            self._ask_clear(tuple(busy))
