"""What a hypervisor wants done: actions for the device, and answers for tenants.

It must not know how anything is carried out. An action for the device carries an epoch: a device that has seen a
younger one for the same core must not act on it. To the device every replica of a lease is a lease of its own, by the
replica's name (the first has that of the lease); answers for tenants name the lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """How a job ended."""

    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Action:
    """Base of all."""


@dataclass(frozen=True, slots=True)
class Clear(Action):
    """Clear the on-chip memories of these cores, then report Cleared or ClearFailed."""

    epoch: int
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Program(Action):
    """Link a model for these cores and load its streams, then report Programmed.

    Its weights are to be written to ``weight_banks``; ``move_bytes`` of maps to other banks, for an inference that goes
    on there.
    """

    epoch: int
    lease: str
    cores: tuple[int, ...]
    model: str
    stream_bytes: int
    weight_bytes: int
    weight_banks: tuple[int, ...]
    move_bytes: int


@dataclass(frozen=True, slots=True)
class Start(Action):
    """Run the programmed streams from a layer's entry point on, then report JobDone (or Faulted, or JobStopped if
    asked)."""

    epoch: int
    lease: str
    job: int
    first_layer: int


@dataclass(frozen=True, slots=True)
class StopAfterLayer(Action):
    """Stop at the end of the layer that runs and report JobStopped; if it is the last one, report JobDone."""

    epoch: int
    lease: str
    job: int


@dataclass(frozen=True, slots=True)
class DropWindow(Action):
    """The lease, or one of its replicas, is gone: its memory may be given to others, zeroed. Nothing is reported."""

    lease: str


@dataclass(frozen=True, slots=True)
class LeaseQueued(Action):
    """``position`` leases are before it; ``predicted_start`` (nanoseconds) is None where no term tells it."""

    lease: str
    position: int
    predicted_start: int | None


@dataclass(frozen=True, slots=True)
class LeaseGranted(Action):
    """A public lease has its cores. A private one is promised its minimum, and has these now."""

    lease: str
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LeaseFaulted(Action):
    """The lease lost these cores by a fault; it can only be released. ``replica``: on which, if not on its
    first."""

    lease: str
    cores: tuple[int, ...]
    replica: str | None = None


@dataclass(frozen=True, slots=True)
class LeaseReleased(Action):
    lease: str


@dataclass(frozen=True, slots=True)
class JobAccepted(Action):
    """The job will end in a JobEnded. ``position`` jobs of its lease are before it."""

    lease: str
    job: int
    position: int
    predicted_start: int


@dataclass(frozen=True, slots=True)
class JobEnded(Action):
    """``late``: it had a deadline and missed it."""

    lease: str
    job: int
    outcome: Outcome
    late: bool
