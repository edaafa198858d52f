"""What can happen to a hypervisor: requests of tenants and operators, and reports of the device.

It must not know what follows from an event. Every event carries its time in nanoseconds; time never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from corepool.hypervisor.model import Model


class Sharing(Enum):
    """PUBLIC: fixed, exclusive cores, never moved. PRIVATE: between minimum and maximum, dealt anew as load changes."""

    PUBLIC = "public"
    PRIVATE = "private"


class Switching(Enum):
    """When a lease's cores can change hands: after the inference that runs, or after the layer that runs."""

    TASK = "task"
    LAYER = "layer"


@dataclass(frozen=True, slots=True)
class Event:
    """``at``: when it happened, nanoseconds."""

    at: int


# Requests. One that is refused raises a HypervisorError and changes nothing.


@dataclass(frozen=True, slots=True)
class AddTenant(Event):
    """A tenant may lease up to ``quota`` cores in all; a higher ``priority`` waits less."""

    tenant: str
    quota: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class SetTenant(Event):
    """Another quota and priority. A quota below what the tenant's leases may have already is refused."""

    tenant: str
    quota: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class RemoveTenant(Event):
    tenant: str


@dataclass(frozen=True, slots=True)
class LoadModel(Event):
    tenant: str
    model: Model


@dataclass(frozen=True, slots=True)
class UnloadModel(Event):
    tenant: str
    model: str


@dataclass(frozen=True, slots=True)
class RequestLease(Event):
    """Cores for a tenant, under a name of its choice; ``term_ns`` is how long it expects to keep them, for
    predictions. One that is ``faulted`` gets none: a fault stopped it before a restart, and its owner has to release
    it.

    At most so many ``replicas`` work for it side by side, each at one inference with some of its cores. None is what
    its sharing lets expect: a private lease has as many as its queue is served best by, a public one a single one,
    so that every inference has all cores of the fixed share.
    """

    tenant: str
    lease: str
    minimum: int
    maximum: int
    window_bytes: int
    sharing: Sharing = Sharing.PRIVATE
    switching: Switching = Switching.TASK
    term_ns: int | None = None
    faulted: bool = False
    replicas: int | None = None


@dataclass(frozen=True, slots=True)
class ResizeLease(Event):
    """``window_bytes`` None: as it is; a window never shrinks."""

    tenant: str
    lease: str
    minimum: int
    maximum: int
    window_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ReleaseLease(Event):
    """The inference that runs ends; those that wait are cancelled; then the cores go back."""

    tenant: str
    lease: str


@dataclass(frozen=True, slots=True)
class SubmitJob(Event):
    """One inference; ``job`` is a number of the caller's choice; ``deadline`` a point in time, nanoseconds."""

    tenant: str
    lease: str
    job: int
    model: str
    deadline: int | None = None


@dataclass(frozen=True, slots=True)
class CancelJob(Event):
    tenant: str
    lease: str
    job: int


@dataclass(frozen=True, slots=True)
class RepairCores(Event):
    """An operator wants tainted cores back in use; they are cleared first."""

    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tick(Event):
    """Only time has passed: cores that lingered with idle leases may be dealt anew."""


# Reports of the device. One with an old epoch is ignored.


@dataclass(frozen=True, slots=True)
class Cleared(Event):
    epoch: int


@dataclass(frozen=True, slots=True)
class ClearFailed(Event):
    epoch: int


@dataclass(frozen=True, slots=True)
class Programmed(Event):
    lease: str
    epoch: int


@dataclass(frozen=True, slots=True)
class JobDone(Event):
    lease: str
    epoch: int
    job: int


@dataclass(frozen=True, slots=True)
class JobStopped(Event):
    """The device stopped a job where it was asked to: it goes on at ``next_layer``."""

    lease: str
    epoch: int
    job: int
    next_layer: int


@dataclass(frozen=True, slots=True)
class Faulted(Event):
    """The device stopped a lease with a fault, while it was programmed or ran."""

    lease: str
    epoch: int


@dataclass(frozen=True, slots=True)
class DeviceReset(Event):
    """The device, or what drives it, began anew: nothing that was under way will be reported, no memory can be
    trusted."""
