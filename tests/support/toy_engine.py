"""A small true engine on a simulated card, for tests of the transports: every answer is computed, nothing is durable.

It must not know HTTP or gRPC.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corepool.compiler.model import ModelPackage
from corepool.compiler.static.compile import compile_graph
from corepool.config import PRESETS, HardwareConfig
from corepool.device.simulator import Simulator
from corepool.errors import AuthenticationError, DeadlineExceededError, NotFoundError
from corepool.runtime.host import HostPort
from corepool.runtime.session import Session
from corepool.server.api import (
    Identity,
    Inferred,
    InferRequest,
    LeaseInfo,
    LeaseRequest,
    ModelInfo,
    ModelState,
    Role,
    TensorInfo,
    Timings,
)
from support.graphs import Builder


@dataclass
class Loaded:
    package: ModelPackage
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class ToyEngine:
    """All of a tiny card's cores for whoever is next; ``gate`` lets tests hold the device back."""

    def __init__(self, config: str = "tiny") -> None:
        self.config = PRESETS[config]
        self.device = Simulator(self.config)
        self.loaded: dict[tuple[str, str], dict[str, Loaded]] = {}
        self.leases_held: dict[tuple[str, str], LeaseInfo] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.alive = True
        self._pool = ThreadPoolExecutor(1)
        self._session: tuple[int, Session] | None = None

    def close(self) -> None:
        self._pool.shutdown()
        if self._session is not None:
            self._session[1].close()

    def live(self) -> bool:
        return self.alive

    def ready(self) -> bool:
        return self.alive

    def model(self, who: Identity, name: str, version: str | None = None) -> ModelInfo:
        versions = self.loaded.get((who.tenant, name), {})
        chosen = version or max(versions, key=int, default="")
        if chosen not in versions:
            raise NotFoundError(f"there is no model {name!r}" + (f" version {version!r}" if version else ""))
        one = versions[chosen]
        return ModelInfo(
            name, chosen, tuple(sorted(versions)), ModelState.READY, "", "corepool", one.inputs, one.outputs, who.tenant
        )

    def models(self, who: Identity) -> list[ModelInfo]:
        return [
            self.model(Identity(who.role, tenant, ""), name, version)
            for (tenant, name), versions in self.loaded.items()
            if (who.role is Role.ADMIN and not who.tenant) or tenant == who.tenant
            for version in versions
        ]

    def load_package(self, who: Identity, name: str, version: str, package_path: str) -> ModelInfo:
        self.put(who.tenant, name, version, ModelPackage.open(Path(package_path), self.config))
        return self.model(who, name, version)

    def put(self, tenant: str, name: str, version: str, package: ModelPackage) -> None:
        def ports(kind: str) -> list[HostPort]:
            return [HostPort.from_meta(entry, self.config.channels) for entry in package.meta[kind]]

        inputs = tuple(TensorInfo(port.name, _kind(port.dtype), port.shape) for port in ports("inputs"))
        made = tuple(TensorInfo(port.name, "FP32", port.shape) for port in ports("outputs"))
        self.loaded.setdefault((tenant, name), {})[version] = Loaded(package, inputs, made)

    def unload(self, who: Identity, name: str, version: str | None = None) -> None:
        self.model(who, name, version)
        del self.loaded[who.tenant, name]

    def at_home(self, soon: Callable[[Callable[[], None]], object] | None) -> None:
        pass

    def submit(self, who: Identity, request: InferRequest) -> Future[Inferred]:
        info = self.model(who, request.model, request.version)
        begin = time.perf_counter_ns()
        return self._pool.submit(self._run, who, request, info, begin)

    def _run(self, who: Identity, request: InferRequest, info: ModelInfo, begin: int) -> Inferred:
        self.gate.wait()
        started = time.perf_counter_ns()
        if request.timeout_us is not None and started - begin > request.timeout_us * 1000:
            raise DeadlineExceededError(f"the request waited longer than its {request.timeout_us} microseconds")
        package = self.loaded[who.tenant, info.name][info.version].package
        if self._session is None or self._session[0] != id(package):
            if self._session is not None:
                self._session[1].close()
            self._session = (id(package), Session(self.device, package, range(self.config.cores)))
        session = self._session[1]
        result = session.run({name: np.ascontiguousarray(array) for name, array in request.inputs.items()})
        wanted = request.outputs or tuple(result.outputs)
        cycles = result.completion.cycles
        return Inferred(
            model=info.name,
            version=info.version,
            outputs={name: result.outputs[name] for name in wanted},
            cycles=cycles,
            device_us=cycles / self.config.clock_hz * 1e6,
            cores=self.config.cores,
            lease=request.lease or "default",
            timings=Timings(queue_ns=started - begin, compute_ns=time.perf_counter_ns() - started),
        )

    def create_lease(self, who: Identity, request: LeaseRequest, idempotency_key: str | None = None) -> LeaseInfo:
        made = LeaseInfo(
            tenant=who.tenant,
            name=request.name,
            state="active",
            minimum=request.minimum,
            maximum=request.maximum,
            cores=tuple(range(request.maximum)),
            sharing=request.sharing,
            switching=request.switching,
            epoch=1,
            ttl_s=request.ttl_s,
            expires_in_s=request.ttl_s,
            position=None,
            predicted_wait_s=None,
            model=None,
        )
        self.leases_held[who.tenant, request.name] = made
        return made

    def lease(self, who: Identity, name: str, tenant: str | None = None) -> LeaseInfo:
        found = self.leases_held.get((tenant or who.tenant, name))
        if found is None or (who.role is not Role.ADMIN and found.tenant != who.tenant):
            raise NotFoundError(f"there is no lease {name!r}")
        return found

    def leases(self, who: Identity) -> list[LeaseInfo]:
        everyone = who.role is Role.ADMIN and not who.tenant
        return [each for each in self.leases_held.values() if everyone or each.tenant == who.tenant]

    def resize_lease(
        self, who: Identity, name: str, minimum: int, maximum: int, idempotency_key: str | None = None
    ) -> LeaseInfo:
        old = self.lease(who, name)
        return self.create_lease(who, LeaseRequest(name, minimum, maximum, old.sharing, old.switching, old.ttl_s))

    def heartbeat(self, who: Identity, name: str) -> LeaseInfo:
        return self.lease(who, name)

    def release_lease(self, who: Identity, name: str, idempotency_key: str | None = None) -> None:
        self.lease(who, name)
        del self.leases_held[who.tenant, name]


def toy_package(config: HardwareConfig, size: int = 12) -> ModelPackage:
    """INT8 "input" [1, 3, size, size] in, FP32 "t1" [1, 5, size, size] out."""
    build = Builder(np.random.default_rng(5), 3, size, size)
    build.conv(build.conv("input", 8, (3, 3), padding=(1, 1, 1, 1)), 5, (1, 1))
    return compile_graph(build.finish("t1"), config).package


def _kind(dtype: str) -> str:
    return {"float32": "FP32", "int8": "INT8", "uint8": "UINT8"}[dtype]


class ToyAccess:
    """Keys are ``key-<tenant>``; ``key-admin`` is the operator's."""

    async def identify(self, authorization: str | None, source: str) -> Identity:
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.startswith("key-"):
            raise AuthenticationError("a valid API key is needed: Authorization: Bearer <key>")
        name = key.removeprefix("key-")
        return Identity(Role.ADMIN, "", name) if name == "admin" else Identity(Role.TENANT, name, name)

    def admit(self, who: Identity, body_bytes: int) -> int:
        return 1 << 30

    def in_flight_limit(self, tenant: str) -> int:
        return 64

    def knows(self, tenant: str) -> bool:
        return tenant in ("alice", "bob")
