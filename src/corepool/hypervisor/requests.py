"""Checks of requests: each raises a typed error that names the thing, before anything has changed.

It must not change the book.
"""

from __future__ import annotations

from corepool.device.base import MAX_LEASE_CORES
from corepool.errors import DeadlineError, HypervisorError, JobError, LeaseError, QuotaError, TenantError
from corepool.hypervisor import events as ev
from corepool.hypervisor import planner
from corepool.hypervisor.model import Model
from corepool.hypervisor.numbers import whole
from corepool.hypervisor.records import MARK, Book, CoreState, Job, Lease, Tenant
from corepool.hypervisor.settings import Settings
from corepool.hypervisor.wellformed import END_OF_TIME


def tenant_of(book: Book, name: str) -> Tenant:
    tenant = book.tenants.get(name)
    if tenant is None:
        raise TenantError(f"there is no tenant {name!r}; add it first")
    return tenant


def lease_of(book: Book, tenant: str, name: str) -> Lease:
    """A tenant's lease; another tenant's looks like none at all."""
    tenant_of(book, tenant)
    lease = book.leases.get(name)
    if lease is None or lease.tenant != tenant:
        raise LeaseError(f"tenant {tenant!r} has no lease {name!r}; request it first")
    return lease


def usable_lease(book: Book, tenant: str, name: str) -> Lease:
    """A tenant's lease that is neither faulted nor being released."""
    lease = lease_of(book, tenant, name)
    if lease.releasing:
        raise LeaseError(f"lease {name!r} is being released; request another")
    if lease.faulted:
        raise LeaseError(f"lease {name!r} was stopped by a fault; release it and request another")
    return lease


def model_of(tenant: Tenant, name: str) -> Model:
    model = tenant.models.get(name)
    if model is None:
        raise JobError(f"tenant {tenant.tenant!r} has no model {name!r}; load it first")
    return model


def check_new_tenant(book: Book, settings: Settings, event: ev.AddTenant) -> None:
    if not event.tenant or event.tenant in book.tenants:
        raise TenantError(f"tenant {event.tenant!r} exists already or has no name; choose another name")
    check_limits(settings, event)


def check_set_tenant(book: Book, settings: Settings, event: ev.SetTenant) -> Tenant:
    tenant = tenant_of(book, event.tenant)
    check_limits(settings, event)
    charged = sum(book.leases[name].charged for name in tenant.leases)
    if event.quota < charged:
        raise QuotaError(
            f"tenant {event.tenant!r} has leases of up to {charged} cores: release or shrink them before its quota "
            f"becomes {event.quota}"
        )
    return tenant


def check_limits(settings: Settings, event: ev.AddTenant | ev.SetTenant) -> None:
    """Quota and priority of a new or known tenant."""
    if not whole(event.quota) or not 0 <= event.quota <= settings.cores:
        raise QuotaError(f"tenant {event.tenant!r}: a quota is 0 to {settings.cores} cores, not {event.quota!r}")
    if not whole(event.priority) or not 0 <= event.priority <= 1000:
        raise TenantError(f"tenant {event.tenant!r}: a priority is 0 to 1000, not {event.priority!r}")


def check_load(book: Book, settings: Settings, event: ev.LoadModel) -> None:
    tenant, model = tenant_of(book, event.tenant), event.model
    if model.name in tenant.models:
        raise JobError(f"tenant {event.tenant!r} has a model {model.name!r} already; unload it first")
    if len(model.latency_ns) < min(settings.cores, MAX_LEASE_CORES):
        raise JobError(
            f"model {model.name!r} has latencies for {len(model.latency_ns)} cores, not for {settings.cores}"
        )
    if model.window_bytes > settings.bank_bytes:
        raise JobError(f"model {model.name!r} needs {model.window_bytes} bytes, a bank has {settings.bank_bytes}")


def check_unload(book: Book, event: ev.UnloadModel) -> None:
    tenant = tenant_of(book, event.tenant)
    model_of(tenant, event.model)
    for name in tenant.leases:
        lease = book.leases[name]
        if lease.backlog.get(event.model) or any(job.model.name == event.model for job in lease.running):
            raise JobError(f"model {event.model!r} has jobs on lease {name!r}; wait for them or cancel them")


def check_size(book: Book, settings: Settings, request: ev.RequestLease | ev.ResizeLease, sharing: ev.Sharing) -> None:
    """Numbers of cores that a new or known lease asks for."""
    minimum, maximum, tenant = request.minimum, request.maximum, book.tenants[request.tenant]
    most = min(settings.cores, MAX_LEASE_CORES)
    if not (whole(minimum) and whole(maximum)) or not 0 <= minimum <= maximum <= most or maximum < 1:
        raise LeaseError(
            f"a lease has 1 to {most} cores and a minimum not above its maximum, not {minimum!r}..{maximum!r}"
        )
    if sharing is ev.Sharing.PUBLIC and minimum != maximum:
        raise LeaseError(f"a public lease has a fixed number of cores, not {minimum}..{maximum}")
    left = tenant.quota - sum(book.leases[name].charged for name in tenant.leases if name != request.lease)
    if maximum > left:
        raise QuotaError(f"tenant {tenant.tenant!r} may lease {left} of its {tenant.quota} cores, not {maximum}")


def check_lease(book: Book, settings: Settings, event: ev.RequestLease) -> None:
    tenant_of(book, event.tenant)
    if not event.lease or event.lease in book.leases:
        raise LeaseError(f"lease {event.lease!r} exists already or has no name; choose another name")
    if MARK in event.lease:
        raise LeaseError(f"a lease's name has no {MARK!r}, not {event.lease!r}: replicas are counted behind it")
    check_size(book, settings, event, event.sharing)
    check_replicas(event)
    if not whole(event.window_bytes) or not 1 <= event.window_bytes <= settings.bank_bytes:
        raise LeaseError(
            f"lease {event.lease!r}: a window has 1 to {settings.bank_bytes} bytes, not {event.window_bytes!r}"
        )
    if event.term_ns is not None and (not whole(event.term_ns) or event.term_ns < 0):
        raise LeaseError(f"lease {event.lease!r}: a term is not negative, not {event.term_ns!r} ns")


def check_replicas(event: ev.RequestLease) -> None:
    most = event.replicas
    if most is not None and (not whole(most) or not 1 <= most <= MAX_LEASE_CORES):
        raise LeaseError(f"lease {event.lease!r} can have 1 to {MAX_LEASE_CORES} replicas, or None, not {most!r}")


def check_resize(book: Book, settings: Settings, event: ev.ResizeLease) -> Lease:
    lease = usable_lease(book, event.tenant, event.lease)
    check_size(book, settings, event, lease.sharing)
    window = lease.window_bytes if event.window_bytes is None else event.window_bytes
    if not whole(window) or not lease.window_bytes <= window <= settings.bank_bytes:
        raise LeaseError(
            f"lease {event.lease!r}: its window can have {lease.window_bytes} to {settings.bank_bytes} bytes, "
            f"not {window!r}"
        )
    if (
        lease.admitted
        and window > lease.window_bytes
        and not planner.fits(book, settings, lease.minimum, window, but=lease.lease)
    ):
        raise LeaseError(f"lease {event.lease!r} cannot have {window} bytes now: others hold them; release some")
    grows = lease.admitted and event.minimum > lease.minimum
    if grows and not planner.fits(book, settings, event.minimum, lease.window_bytes, but=lease.lease):
        raise LeaseError(f"lease {event.lease!r} cannot have {event.minimum} cores now: others hold them; try fewer")
    return lease


def check_job(book: Book, settings: Settings, event: ev.SubmitJob) -> tuple[Lease, Job]:
    lease = usable_lease(book, event.tenant, event.lease)
    tenant = book.tenants[event.tenant]
    model = model_of(tenant, event.model)
    if not whole(event.job) or not 0 <= event.job < END_OF_TIME or event.job in book.jobs:
        raise JobError(f"job {event.job!r} is no number from 0 on or is under way already; choose another number")
    if model.window_bytes > lease.window_bytes:
        raise JobError(
            f"model {model.name!r} needs a window of {model.window_bytes} bytes, "
            f"lease {lease.lease!r} has {lease.window_bytes}; request a larger one"
        )
    if event.deadline is not None and (not whole(event.deadline) or event.deadline <= event.at):
        raise JobError(f"job {event.job}: the deadline {event.deadline!r} is not after its submission at {event.at} ns")
    due = event.at + settings.patience_ns - tenant.priority * settings.ageing_ns
    job = Job(event.job, model, event.at, event.deadline, due if event.deadline is None else event.deadline)
    promised = event.deadline is not None and lease.sharing is ev.Sharing.PRIVATE
    if promised and settings.policy == "private-deadline":
        if not lease.admitted:
            raise DeadlineError(f"job {event.job}: lease {lease.lease!r} still waits for cores, so no deadline holds")
        if planner.breaks_promises(book, settings, lease, job):
            raise DeadlineError(
                f"job {event.job} cannot be done until {event.deadline} ns beside what is promised; give it longer"
            )
    return lease, job


def check_cancel(book: Book, event: ev.CancelJob) -> tuple[Lease, Job]:
    lease = lease_of(book, event.tenant, event.lease)
    job = next((job for job in lease.queue if job.job == event.job), None)
    if job is None:
        raise JobError(f"job {event.job!r} does not wait on lease {event.lease!r}: it runs, ended, or never was")
    return lease, job


def check_release(book: Book, event: ev.ReleaseLease) -> Lease:
    lease = lease_of(book, event.tenant, event.lease)
    if lease.releasing:
        raise LeaseError(f"lease {event.lease!r} is being released already")
    return lease


def check_repair(book: Book, event: ev.RepairCores) -> None:
    if not event.cores or len(set(event.cores)) != len(event.cores):
        raise HypervisorError("name the cores to repair, each once")
    for core in event.cores:
        if not 0 <= core < len(book.cores):
            raise HypervisorError(f"core {core!r} does not exist; there are 0..{len(book.cores) - 1}")
        if book.cores[core].state is not CoreState.TAINTED:
            raise HypervisorError(f"core {core} is {book.cores[core].state.value}, not tainted")
