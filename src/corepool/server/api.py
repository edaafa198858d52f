"""The seam inside the server: what its parts hand each other, and what each can be asked.

It must not know REST, gRPC, databases or devices. Errors are those of corepool.errors; they carry no HTTP codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, npt.NDArray[np.generic]]


class Role(Enum):
    """ADMIN: an operator, who sees all tenants. TENANT: sees what is its own, and nothing else."""

    ADMIN = "admin"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. ``tenant`` is the tenant's name, empty for an operator; ``key_id`` names the key, never its secret."""

    role: Role
    tenant: str
    key_id: str


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """``datatype`` is the protocol's (FP32, INT64, ...); the shape has no unknown sizes."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelState(Enum):
    """States of a model version as repository indices tell them."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One version of a model, a tenant's or one that any may load. ``reason`` says why it is not ready; inputs and
    outputs are empty unless it is or was loaded."""

    name: str
    version: str
    versions: tuple[str, ...]
    state: ModelState
    reason: str = ""
    platform: str = "corepool"
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    tenant: str = ""


@dataclass(slots=True, eq=False)
class InferRequest:
    """One inference. ``version`` None: the highest that is ready. ``lease`` None: the tenant's default lease.

    ``priority`` is 0 (default) or 1, the highest, and up; ``timeout_us`` bounds the wait and the run together.
    ``fits``: inputs of a version that this was compared with, and found to fit.
    """

    model: str
    inputs: Tensors
    version: str | None = None
    outputs: tuple[str, ...] | None = None
    lease: str | None = None
    priority: int = 0
    timeout_us: int | None = None
    fits: tuple[TensorInfo, ...] | None = None


class Timings(NamedTuple):
    """Wall-clock nanoseconds of the stages of one inference; ``host_ns`` are the model's steps on the processor."""

    queue_ns: int = 0
    relink_ns: int = 0
    upload_ns: int = 0
    compute_ns: int = 0
    download_ns: int = 0
    host_ns: int = 0


class Inferred(NamedTuple):
    """The answer: outputs by ONNX name, and what the device tells of the run."""

    model: str
    version: str
    outputs: dict[str, Array]
    cycles: int
    device_us: float
    cores: int
    lease: str
    timings: Timings = Timings()


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """Cores for a tenant. ``ttl_s`` None: until released; else the lease ends unless a heartbeat comes within it."""

    name: str
    minimum: int
    maximum: int
    sharing: str = "private"  # or "public": fixed and exclusive
    switching: str = "task"  # or "layer"
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease. ``position`` and ``predicted_wait_s`` are of the queue, None once it is granted."""

    tenant: str
    name: str
    state: str  # queued, active, draining, faulted
    minimum: int
    maximum: int
    cores: tuple[int, ...]
    sharing: str
    switching: str
    epoch: int
    ttl_s: float | None
    expires_in_s: float | None
    position: int | None
    predicted_wait_s: float | None
    model: str | None


class Inference(Protocol):
    """What the data plane asks of the engine. All methods may be called from any thread.

    They raise NotFoundError alike for what is absent and what is another tenant's.
    """

    def live(self) -> bool: ...

    def ready(self) -> bool: ...

    def model(self, who: Identity, name: str, version: str | None = None) -> ModelInfo: ...

    def models(self, who: Identity) -> list[ModelInfo]: ...

    def at_home(self, soon: Callable[[Callable[[], None]], object] | None) -> None:
        """The thread that submits may be used for what is over sooner than another would wake: within ``submit``, or in
        functions that ``soon``, called from any thread, has it call. None: no more."""
        ...

    def submit(self, who: Identity, request: InferRequest) -> Future[Inferred]:
        """Queue an inference; cancelling the future cancels it. Refusals are raised at once or set on the future."""
        ...


class Leases(Protocol):
    """What the control interface asks of the engine; every change is durable when the call returns.

    ``idempotency_key``: a repeated call with the same key by the same tenant returns the first answer, also after a
    crash between.
    """

    def create_lease(self, who: Identity, request: LeaseRequest, idempotency_key: str | None = None) -> LeaseInfo: ...

    def lease(self, who: Identity, name: str, tenant: str | None = None) -> LeaseInfo: ...

    def leases(self, who: Identity) -> list[LeaseInfo]: ...

    def resize_lease(
        self, who: Identity, name: str, minimum: int, maximum: int, idempotency_key: str | None = None
    ) -> LeaseInfo: ...

    def heartbeat(self, who: Identity, name: str) -> LeaseInfo: ...

    def release_lease(self, who: Identity, name: str, idempotency_key: str | None = None) -> None: ...


class Models(Protocol):
    """What the model repository asks of the engine."""

    def load_package(self, who: Identity, name: str, version: str, package_path: str) -> ModelInfo:
        """Check a compiled package and make it ready for the tenant; durable when the call returns."""
        ...

    def unload(self, who: Identity, name: str, version: str | None = None) -> None:
        """Forget a model (all versions if None) and give its memory back; inferences that run or wait end first."""
        ...


class Access(Protocol):
    """What the transports ask before anything else."""

    async def identify(self, authorization: str | None, source: str) -> Identity:
        """Who sends the header ``Authorization`` (``Bearer <key>``) from the address ``source``.

        Raises AuthenticationError alike for missing, unknown and revoked keys, TooManyRequestsError for guessing.
        """
        ...

    def admit(self, who: Identity, body_bytes: int) -> int:
        """Count a request whose body is announced to have so many bytes; returns the bytes that it may have.

        Raises TooManyRequestsError over the tenant's rate, TooLargeError over its limit.
        """
        ...

    def in_flight_limit(self, tenant: str) -> int:
        """Inferences that a tenant may have under way. Raises NotFoundError."""
        ...

    def knows(self, tenant: str) -> bool:
        """Whether there is such a tenant."""
        ...
