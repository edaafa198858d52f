"""The engine: puts its parts together, recovers what the store has, and answers inferences.

It must not know transports, keys or settings files.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns, perf_counter_ns
from typing import TYPE_CHECKING, Any

from corepool.config import HardwareConfig
from corepool.errors import (
    CorepoolError,
    DeadlineExceededError,
    FaultError,
    HypervisorError,
    InputError,
    LeaseError,
    NotFoundError,
    UnavailableError,
)
from corepool.hypervisor import actions as ac
from corepool.hypervisor import events as ev
from corepool.hypervisor.settings import Settings
from corepool.runtime.host import check_inputs
from corepool.server.api import (
    Identity,
    Inferred,
    InferRequest,
    LeaseInfo,
    LeaseRequest,
    ModelInfo,
    ModelState,
    Timings,
)
from corepool.server.engine.card import Card, Placed, Stopped
from corepool.server.engine.catalog import Catalog, Loaded, Version
from corepool.server.engine.clock import LivingClock
from corepool.server.engine.jobs import DEFAULT_LEVEL, Jobs, Ticket
from corepool.server.engine.journal import Journal, lease_id
from corepool.server.engine.killpoints import Hook, KillPoints
from corepool.server.engine.leases import DEFAULT, LeaseDesk
from corepool.server.engine.models import Repository
from corepool.server.engine.pilot import Pilot
from corepool.server.engine.pulse import EVERY_S, Pulse
from corepool.server.engine.timer import Timer
from corepool.server.engine.warming import Warming
from corepool.server.store import Intent, Store, TenantRow

if TYPE_CHECKING:
    from corepool.runtime.session import Served

SWITCH_INTERVAL_S = 0.001  # threads that hold the interpreter give it up so soon when others want it

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineOptions:
    """``linger_s``: how long a lease counts as having work after its last inference. ``in_flight``: inferences of a
    tenant under way at a time, unless its own row says otherwise. ``auto_repair``: cores that a fault tainted are
    cleared and used again; else an operator has to ask for it. ``default_idle_s``: an automatic lease without work
    for so long is released. ``brief_s``: an inference that takes less of a processor is brief, see ``at_home``; while
    another lease has work none is. ``look_s``: how often the store is asked whether it is there. ``checked`` and
    ``hook`` are for tests."""

    policy: str = "private-even"
    linger_s: float = 2.0
    in_flight: int = 64
    auto_repair: bool = True
    default_idle_s: float = 600.0
    brief_s: float = 0.001
    look_s: float = EVERY_S
    checked: bool = False
    hook: Hook | None = None
    source: Callable[[], int] = monotonic_ns


class Engine:
    """Implements the interfaces of ``server.api`` on one card. ``start`` recovers; ``stop`` ends what runs.

    Methods may be called from any thread; ``submit`` never waits for a device or the store.
    """

    def __init__(self, config: HardwareConfig, card: Card, store: Store, options: EngineOptions | None = None) -> None:
        self.config = config
        self.card = card
        self.store = store
        self.options = options = options or EngineOptions()
        self.clock = LivingClock(options.source)
        self._timer = Timer(self.clock)
        self._points = KillPoints(options.hook)
        self._pulse = Pulse(store.check, options.look_s)
        self.journal = Journal(store, self._points)
        settings = Settings.of(config, options.policy, linger_ns=int(options.linger_s * 1e9), lend=False)
        self.pilot = Pilot(
            settings, card, self.journal, self.clock, self._timer,
            auto_repair=options.auto_repair, checked=options.checked, brief_ns=int(options.brief_s * 1e9),
        )  # fmt: skip
        self.pilot.crew = self
        self._jobs = Jobs(self._limit)
        self.catalog = Catalog(config, store.packages.check)
        self.desk = LeaseDesk(self.pilot, self.journal, self.clock, self._timer, self._window_bytes)
        self.repository = Repository(self.catalog, store, self.pilot, self._jobs, self.desk, self._evict)
        self.warming = Warming(card)
        self._errands = ThreadPoolExecutor(4, thread_name_prefix="errands")
        self._ready = self._draining = False
        self._live = True

    # Life

    def start(self) -> None:
        """Bring card and store into agreement, ask for all leases again, and begin to answer. Raises StoreError."""
        if sys.getswitchinterval() > SWITCH_INTERVAL_S:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
        with self.pilot.reading:
            earlier = self.pilot.book.book.epoch
        self.card.fence(earlier)
        self.journal.settle(self._happened)
        self._sweep_card()
        self._timer.start()
        self.journal.start()
        self._pulse.start()
        self.repository.restore()
        self.pilot.repair_left()
        self.desk.restore()
        self._ready = True
        self._look_for_idle()
        if self.catalog.all():
            self._errand(self._open_models)

    def drain(self) -> None:
        """Refuse new inferences; those under way go on."""
        self._draining = True

    def stop(self, timeout_s: float = 30.0) -> bool:
        """Let what is under way end, at most so long, then stop. Returns whether everything has ended."""
        self.drain()
        ended = self._jobs.wait(lambda: self._jobs.under_way() == 0, timeout_s)
        self._ready = False
        self._errands.shutdown(wait=False, cancel_futures=True)
        self._pulse.stop()
        self.pilot.quiet(5)
        self.pilot.stop()
        self._timer.stop()
        self.journal.stop()
        self._jobs.abandon()
        self._live = False
        return ended

    def crash(self) -> None:
        """For tests: leave everything as it is, as if the process had ended; the card outlives it."""
        self._points.crashing = True
        self._ready = self._live = False
        self.journal.die()
        self._pulse.stop()
        self.pilot.stop()
        self._timer.stop()
        self._errands.shutdown(wait=False, cancel_futures=True)
        self._jobs.abandon()

    # Inference

    def live(self) -> bool:
        return self._live

    def ready(self) -> bool:
        """Whether inferences are taken, and the store would take what comes with them; a lost store is noticed within
        some seconds."""
        return self._ready and not self._draining and self.journal.sound and self._pulse.trouble is None

    def model(self, who: Identity, name: str, version: str | None = None) -> ModelInfo:
        return self.catalog.info(self.catalog.find(who.tenant, name, version))

    def models(self, who: Identity) -> list[ModelInfo]:
        return self.repository.models(who)

    def at_home(self, soon: Callable[[Callable[[], None]], object] | None) -> None:
        """See api.Inference. Only inferences of less than ``EngineOptions.brief_s`` are run so."""
        self.pilot.at_home(soon)

    def submit(self, who: Identity, request: InferRequest) -> Future[Inferred]:
        """Raises NotFoundError, InputError, TooManyRequestsError and UnavailableError at once; the future fails with
        these, FaultError, LeaseError, QuotaError or DeadlineExceededError."""
        if not self._ready or self._draining:
            raise UnavailableError("the server does not take inferences now: it starts or drains")
        version = self.catalog.find(who.tenant, request.model, request.version)
        if version.state not in (ModelState.READY, ModelState.LOADING):
            why = f": {version.reason}" if version.reason else ""
            raise UnavailableError(f"model {request.model!r} is {version.state.value}{why}")
        lease = lease_id(who.tenant, request.lease or DEFAULT)
        loaded = version.loaded
        level = request.priority if request.priority > 0 else DEFAULT_LEVEL
        ticket = Ticket(who.tenant, lease, request, version.version, loaded, level, perf_counter_ns())
        if loaded is not None:
            _check(loaded, request)
        self._jobs.admit(ticket)
        ticket.future.add_done_callback(partial(self._cancelled, ticket))
        if request.timeout_us:  # 0: as long as it takes
            due = self.clock() + max(request.timeout_us, 0) * 1000
            self._timer.at(due, partial(self._too_late, ticket))
        if loaded is not None and loaded.known and self.pilot.lease(lease) is not None:
            self._enter(ticket, brings=True)
        else:
            self._errand(partial(self._prepare, ticket, version))
        return ticket.future

    def _prepare(self, ticket: Ticket, version: Version) -> None:
        """What a first inference has to wait for: its package opened, its lease made."""
        try:
            if ticket.loaded is None:
                ticket.loaded = self.catalog.need(version)
                _check(ticket.loaded, ticket.request)
            self.repository.introduce(ticket.tenant, ticket.loaded)
            if ticket.request.lease is None:
                self.desk.ensure_default(ticket.tenant)
            elif self.pilot.standing(ticket.lease) is None:
                raise NotFoundError(f"there is no lease {ticket.request.lease!r}")
        except CorepoolError as error:
            self._refuse(ticket, error)
            return
        except BaseException as error:
            self._refuse(ticket, UnavailableError("the engine has stopped"))
            if not self._points.crashing:
                raise error
            return
        self._enter(ticket)

    def _enter(self, ticket: Ticket, again: bool = True, brings: bool = False) -> None:
        """Hand a ticket to the hypervisor. ``brings``: see ``Pilot.apply``."""
        if ticket.over or ticket.future.done():
            self._jobs.drop(ticket)
            return
        self._jobs.enter(ticket)
        name, key, slot = ticket.lease, ticket.queue[1], ticket.slot
        try:
            self.pilot.apply(lambda now: ev.SubmitJob(now, ticket.tenant, name, slot, key), brings)
        except LeaseError as error:
            standing = self.pilot.standing(name)
            if again and ticket.request.lease is None and (standing is None or standing.state != "active"):
                self._jobs.leave(ticket)  # the automatic lease is gone or stopped: make another
                self._errand(partial(self._enter_anew, ticket))
            else:
                self._refuse(ticket, error)
        except HypervisorError as error:
            if again:  # a larger model than the lease's window was made for
                self._jobs.leave(ticket)
                self._errand(partial(self._enter_anew, ticket))
            else:
                self._refuse(ticket, error)
        except CorepoolError as error:
            self._refuse(ticket, error)

    def _enter_anew(self, ticket: Ticket) -> None:
        try:
            if ticket.request.lease is None:
                self.desk.ensure_default(ticket.tenant)
            self.desk.widen(ticket.tenant, ticket.lease)
        except CorepoolError as error:
            self._refuse(ticket, error)
            return
        self._enter(ticket, again=False)

    def _refuse(self, ticket: Ticket, error: CorepoolError) -> None:
        self._jobs.drop(ticket)
        self._jobs.refuse(ticket, error)

    def _cancelled(self, ticket: Ticket, future: Future[Inferred]) -> None:
        if future.cancelled():
            self._withdraw(ticket)

    def _too_late(self, ticket: Ticket) -> None:
        """On the timer's thread: the time that a request allowed is over."""
        if not ticket.future.done():
            self._jobs.refuse(
                ticket,
                DeadlineExceededError(
                    f"no answer within the {ticket.request.timeout_us} microseconds that the request gave"
                ),
            )
            self._withdraw(ticket)

    def _withdraw(self, ticket: Ticket) -> None:
        """Take a ticket out of its queue; one that runs goes on, and nobody hears of it."""
        if not ticket.started and not ticket.over:
            with suppress(CorepoolError):
                self.pilot.apply(lambda now: ev.CancelJob(now, ticket.tenant, ticket.lease, ticket.slot))

    # What the pilot asks for

    def place(self, lease: str, model: str, epoch: int, cores: tuple[int, ...]) -> Placed:
        tenant = lease.partition("/")[0]
        for version in self.catalog.all(tenant):
            if version.loaded is not None and version.loaded.key == model:
                loaded = version.loaded
                return self.card.program(epoch, lease, cores, model, loaded.package, loaded.host)
        raise FaultError("the model was unloaded before it could be placed")

    def run(self, start: ac.Start, stoppable: bool) -> Callable[[], None] | Stopped | None:
        ticket = self._jobs.choose(start)
        if ticket is None:
            return None
        if ticket.future.done() or not (ticket.future.running() or ticket.future.set_running_or_notify_cancel()):
            return None
        begun = perf_counter_ns()
        try:
            wanted = ticket.request.outputs
            served = self.card.run(
                start.lease, start.epoch, ticket.request.inputs, wanted,
                first_layer=start.first_layer, stoppable=stoppable,
            )  # fmt: skip
        except InputError as error:
            return partial(self._jobs.refuse, ticket, error)
        if isinstance(served, Stopped):
            return served
        relink = self.pilot.relink_ns.pop(start.lease, 0)
        queued = max(begun - ticket.submitted_ns - relink, 0)
        return partial(self._answer, ticket, served, queued, relink)

    def _answer(self, ticket: Ticket, served: Served, queue_ns: int, relink_ns: int) -> None:
        cycles = served.cycles
        times = Timings(queue_ns, relink_ns, served.upload_ns, served.compute_ns, served.download_ns, served.host_ns)
        with suppress(InvalidStateError):  # too late: it has been told so
            ticket.future.set_result(
                Inferred(
                    ticket.request.model,
                    ticket.version,
                    served.outputs,
                    cycles,
                    cycles * 1e6 / self.config.clock_hz,
                    len(served.counters.steps),
                    ticket.lease.partition("/")[2],
                    times,
                )
            )

    def ended(self, ended: ac.JobEnded, why: str) -> Callable[[], None] | None:
        return self._jobs.ended(ended, why)

    # Leases

    def create_lease(self, who: Identity, request: LeaseRequest, idempotency_key: str | None = None) -> LeaseInfo:
        return self.desk.create(who, request, idempotency_key)

    def lease(self, who: Identity, name: str, tenant: str | None = None) -> LeaseInfo:
        return self.desk.get(who, name, tenant)

    def leases(self, who: Identity) -> list[LeaseInfo]:
        return self.desk.all(who)

    def resize_lease(
        self, who: Identity, name: str, minimum: int, maximum: int, idempotency_key: str | None = None
    ) -> LeaseInfo:
        return self.desk.resize(who, name, minimum, maximum, idempotency_key)

    def heartbeat(self, who: Identity, name: str) -> LeaseInfo:
        return self.desk.heartbeat(who, name)

    def release_lease(self, who: Identity, name: str, idempotency_key: str | None = None) -> None:
        self.desk.release(who, name, idempotency_key)

    # Models

    def load_package(self, who: Identity, name: str, version: str, package_path: str) -> ModelInfo:
        info = self.repository.load(who, name, version, package_path)
        self.warming.warm(self.catalog.need(self.catalog.find(who.tenant, name, version)).package)
        return info

    def unload(self, who: Identity, name: str, version: str | None = None) -> None:
        self.repository.unload(who, name, version)

    # Operators

    def tenant_changed(self, name: str, row: TenantRow | None) -> None:
        """A tenant was added, has another quota, priority or limit, or (None) was removed."""
        if row is None:
            with suppress(CorepoolError):
                self.desk.gone(name)
            self._jobs.forget_tenant(name)
        else:
            self.desk.changed(row)

    def repair(self, cores: tuple[int, ...]) -> None:
        """Clear tainted cores and use them again. Raises HypervisorError for cores that are not tainted."""
        self.pilot.apply(lambda now: ev.RepairCores(now, cores))

    def cores(self) -> list[tuple[str, str]]:
        """Of each core, its state and the lease (tenant/name) that has it, or ""."""
        with self.pilot.reading:
            return [(core.state.value, core.owner or "") for core in self.pilot.book.book.cores]

    def check_quota(self, tenant: str, cores: int) -> None:
        """Raise QuotaError if a tenant's leases are too large for a quota; to be asked before it is changed."""
        self.desk.check_quota(tenant, cores)

    def release_automatic(self, tenant: str) -> bool:
        """Release a tenant's automatic lease if it is idle, such as before the tenant is removed. Returns whether it is
        gone."""
        return self.desk.release_automatic(tenant)

    # Parts

    def _look_for_idle(self) -> None:
        """Now and then, release automatic leases that nobody uses."""
        longest = int(self.options.default_idle_s * 1e9)
        for tenant in self.desk.idle(longest):
            self._errand(partial(self.desk.release_automatic, tenant))
        self._timer.at(self.clock() + max(longest // 4, 10**8), self._look_for_idle)

    def _errand(self, call: Callable[[], Any]) -> None:
        def logged() -> None:
            try:
                call()
            except CorepoolError as error:
                _log.error("%s", error)
            except BaseException:
                if not self._points.crashing:
                    _log.exception("an errand failed")

        with suppress(RuntimeError):  # stopped meanwhile
            self._errands.submit(logged)

    def _open_models(self) -> None:
        """What the first inference would have to wait for."""
        for version in self.catalog.all():
            with suppress(CorepoolError):
                self.warming.warm(self.catalog.need(version).package)

    def _limit(self, tenant: str) -> int:
        row = self.desk.tenants.get(tenant)
        return self.options.in_flight if row is None or row.in_flight is None else row.in_flight

    def _window_bytes(self, tenant: str) -> int:
        return self.repository.window_bytes(tenant)

    def _evict(self, tenant: str, key: str) -> None:
        with self.pilot.reading:
            names = [lease.lease for lease in self.pilot.book.book.leases.values() if lease.tenant == tenant]
        for name in names:
            placed = self.card.placed(name)
            if placed is not None and placed.model == key:
                self.card.evict(name)

    def _happened(self, intent: Intent) -> bool:
        """True if the card has carried out what an earlier engine meant to do."""
        cores = [int(core) for core in intent.payload.get("cores", ())]
        table = self.card.table()
        owner = lease_id(intent.tenant, intent.lease) if intent.kind == "program" else None
        if intent.kind not in ("program", "wipe", "clear", "repair"):
            return True  # a fact of the book: nothing to be done
        return bool(cores) and all(
            core < len(table) and table[core].epoch == intent.epoch and table[core].lease == owner for core in cores
        )

    def _sweep_card(self) -> None:
        """Clear what an earlier engine left on the card: nobody knows what its memories hold."""
        left = [core for core, owner in enumerate(self.card.table()) if owner.lease is not None]
        if left:
            self.card.clear(self.pilot.next_epoch(), left)


def _check(loaded: Loaded, request: InferRequest) -> None:
    """Names, types and shapes of the inputs, and names of outputs. Raises InputError that lists what is wrong."""
    if request.fits is loaded.inputs:  # who submits it has looked at all of that
        return
    check_inputs(loaded.ports, request.inputs, values=False)  # those are looked at as they are laid out
    made = () if request.outputs is None else {info.name for info in loaded.outputs}
    found = [f"there is no output {name!r}" for name in request.outputs or () if name not in made]
    if found:
        raise InputError(f"{'; '.join(found)}; there are: {', '.join(info.name for info in loaded.outputs)}")
