"""Events as they must look before anybody asks what they mean: a known kind, names that are text, whole times.

It must not know the book: what is said of tenants, leases and jobs is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from corepool.errors import HypervisorError, JobError, LeaseError, TenantError
from corepool.hypervisor import events as ev
from corepool.hypervisor.model import Model
from corepool.hypervisor.numbers import whole

_NAMES = {"tenant": TenantError, "lease": LeaseError, "model": JobError}
_ENUMS = {"sharing": ev.Sharing, "switching": ev.Switching}

END_OF_TIME = 1 << 62  # nanoseconds; predictions and records count in 64 bits

_FIELDS = {
    kind: tuple(each.name for each in fields(kind) if each.name in _NAMES and each.type == "str")
    for kind in ev.Event.__subclasses__()
}


def check_form(event: ev.Event, now: int) -> None:
    """Raise a HypervisorError, of the kind that fits the field, for what is no event or cannot be one at ``now``."""
    names = _FIELDS.get(type(event))
    if names is None:
        raise HypervisorError(
            f"{type(event).__name__} is no event that a hypervisor knows; see corepool.hypervisor.events"
        )
    if not whole(event.at) or not now <= event.at < END_OF_TIME:
        raise HypervisorError(f"time goes back, never comes, or is no whole number: {event.at!r} ns after {now} ns")
    for name in names:
        value = getattr(event, name)
        if type(value) is not str:
            raise _NAMES[name](f"a {name} has a name, a text, not {value!r}")
    check = _MORE.get(type(event))
    if check is not None:
        check(event)


def _lease(event: ev.RequestLease) -> None:
    for name, kind in _ENUMS.items():
        if not isinstance(getattr(event, name), kind):
            one_of = ", ".join(str(each) for each in kind)
            raise LeaseError(f"lease {event.lease!r}: {name} is one of {one_of}, not {getattr(event, name)!r}")
    if not isinstance(event.faulted, bool):
        raise LeaseError(f"lease {event.lease!r}: faulted is true or false, not {event.faulted!r}")


def _load(event: ev.LoadModel) -> None:
    if not isinstance(event.model, Model):
        raise JobError(f"tenant {event.tenant!r} can load a Model, not {event.model!r}")


def _cores(event: ev.RepairCores) -> None:
    if not isinstance(event.cores, tuple) or not all(map(whole, event.cores)):
        raise HypervisorError(f"cores to repair are a tuple of whole numbers, not {event.cores!r}")


def _epoch(event: ev.Cleared | ev.ClearFailed | ev.Programmed | ev.Faulted | ev.JobDone | ev.JobStopped) -> None:
    if type(event.epoch) is not int:
        raise HypervisorError(f"an epoch is a whole number, not {event.epoch!r}")


def _end(event: ev.JobDone | ev.JobStopped) -> None:
    _epoch(event)
    _job(event)


def _job(event: ev.JobDone | ev.JobStopped | ev.CancelJob) -> None:
    if type(event.job) is not int:
        raise JobError(f"a job has a whole number, not {event.job!r}")


def _stopped(event: ev.JobStopped) -> None:
    _end(event)
    if type(event.next_layer) is not int:
        raise JobError(f"job {event.job}: a layer has a whole number, not {event.next_layer!r}")


_MORE: dict[type[ev.Event], Callable[[Any], None]] = {
    ev.RequestLease: _lease,
    ev.LoadModel: _load,
    ev.RepairCores: _cores,
    ev.Cleared: _epoch,
    ev.ClearFailed: _epoch,
    ev.Programmed: _epoch,
    ev.Faulted: _epoch,
    ev.JobDone: _end,
    ev.JobStopped: _stopped,
    ev.CancelJob: _job,
}
