"""A server with both transports in a thread, over a small true engine; and clients for it.

It must not know what the tests look for.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvloop

from corepool.device.simulator import Simulator
from corepool.server.api import Identity, InferRequest, Role
from corepool.server.app import no_metrics
from corepool.server.attacks import run_attacks
from corepool.server.compilations import Compilations
from corepool.server.compile_process import compile_model
from corepool.server.dataplane import DataPlane
from corepool.server.library import Library
from corepool.server.limits import Limits
from corepool.server.logging import ServerLog
from corepool.server.repository import ModelFolder
from corepool.server.rest.context import Parts
from corepool.server.run import Ports, serve_until
from corepool.server.settings import Settings
from corepool.server.store import Store, TenantRow
from corepool.server.tenants import SYSTEM, Tenants
from corepool.server.traces import Traces
from corepool.server.turnstile import Turnstile
from corepool.server.uploads import Uploads
from support.toy_engine import ToyAccess, ToyEngine, toy_package

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # see corepool.server.run

CASES = Path(__file__).resolve().parents[2] / "cases"


class Notes(ServerLog):
    """Keeps what would have been written down."""

    def __init__(self) -> None:
        self.crashes: list[BaseException] = []
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, **values: Any) -> None:
        self.lines.append((name, values))

    warning = event

    def request(
        self, method: str, path: str, status: int, seconds: float, request_id: str, source: str, tenant: str = ""
    ) -> None:
        self.lines.append(("request", {"method": method, "path": path, "status": status, "id": request_id}))

    def crashed(self, request_id: str, error: BaseException) -> None:
        self.crashes.append(error)


@dataclass
class Service:
    """A running server and what stands behind it."""

    settings: Settings
    engine: ToyEngine
    parts: Parts
    ports: Ports
    notes: Notes
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports.rest}"

    @property
    def rest(self) -> str:
        return f"127.0.0.1:{self.ports.rest}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"

    def ask(self, method: str, path: str, key: str | None = "alice", **more: Any) -> httpx.Response:
        """A REST request with the key of a tenant, or "admin", or none."""
        headers = {**bearer(key), **more.pop("headers", {})}
        return httpx.request(method, self.url + path, headers=headers, timeout=60, **more)


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer key-{key}"}


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (1, 3, 12, 12)).astype(np.int8)


class ToyOperations:
    """Traces and attacks are true ones; of the card only its name is told."""

    def __init__(self, traces: Traces, engine: ToyEngine) -> None:
        self.traces = traces
        self.engine = engine

    def status(self) -> dict[str, Any]:
        empty: dict[str, Any] = {key: [] for key in ("cores", "banks", "tenants", "leases", "redeals")}
        return {"config": self.engine.config.name, "ready": self.engine.ready(), **empty}

    def trace(self, who: Identity, ident: str) -> dict[str, Any]:
        return self.traces.get(who, ident)

    def validate(self) -> dict[str, Any]:
        device = Simulator(self.engine.config)
        verdicts = run_attacks(lambda: contextlib.nullcontext(device), device.config)
        return {"device": "a device of its own", "attacks": [asdict(each) for each in verdicts]}


def build(folder: Path, settings: Settings, engine: ToyEngine, store: Store, notes: Notes) -> Parts:
    tenants = Tenants(store, Limits())
    tenants.first_start()
    for name in ("alice", "bob"):
        tenants.add(SYSTEM, TenantRow(name, quota_cores=4))
    catalogue = folder / "catalogue"
    (catalogue / "shared" / "3").mkdir(parents=True)
    toy_package(engine.config).save(catalogue / "shared" / "3" / "model.cpk", engine.config)
    library = Library(
        Uploads(folder / "uploads", settings.limits.stored_bytes),
        ModelFolder(catalogue),
        folder / "built",
        Compilations(folder / "work", settings.config, settings.compilation, compile_model, notes.warning),
        engine,
        settings.config,
    )
    traces = Traces()
    plane = DataPlane(engine, library, in_flight=16, observer=traces)
    return Parts(plane, ToyAccess(), engine, library, tenants, ToyOperations(traces, engine), turnstile=Turnstile(16))


def running(folder: Path, settings: Settings) -> Iterator[Service]:
    """A service in a thread until the generator is closed."""
    engine, notes = ToyEngine(settings.config), Notes()
    for version in ("1", "2"):
        engine.put("alice", "small", version, toy_package(engine.config))
    engine.put("bob", "secret", "1", toy_package(engine.config))
    # The first run compiles code, unless that is cached; clients would not wait for it.
    engine.submit(Identity(Role.TENANT, "alice", ""), InferRequest("small", {"input": image()})).result()
    with Store(None, folder / "state") as store:
        made: list[Service] = []
        started = threading.Event()
        stop: list[asyncio.Event] = []

        async def live() -> None:
            parts = build(folder, settings, engine, store, notes)
            ending = asyncio.Event()
            stop.append(ending)

            def ready(ports: Ports) -> None:
                made.append(Service(settings, engine, parts, ports, notes, asyncio.get_running_loop()))
                started.set()

            await serve_until(ending, settings, parts, no_metrics, notes, ready)

        def thread() -> None:
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(live())
            finally:
                started.set()

        worker = threading.Thread(target=thread)
        worker.start()
        started.wait(60)
        service = made[0]
        try:
            yield service
        finally:
            engine.gate.set()
            service.loop.call_soon_threadsafe(stop[0].set)
            worker.join(30)
            engine.close()
    assert not worker.is_alive()


def free_ports(**more: Any) -> Settings:
    return Settings(rest_port=0, grpc_port=0, metrics_port=0, config="tiny", **more)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with the usual settings but small limits of time, for all tests of a module. No test may crash it."""
    settings = free_ports()
    limits = settings.limits.model_copy(
        update={"header_timeout_s": 1.5, "body_timeout_s": 1.5, "body_bytes": 1 << 20, "upload_bytes": 2 << 20}
    )
    settings = settings.model_copy(update={"limits": limits})
    generator = running(tmp_path_factory.mktemp("service"), settings)
    made = next(generator)
    yield made
    generator.close()
    assert made.notes.crashes == []


@pytest.fixture
def small_case() -> tuple[bytes, dict[str, np.ndarray]]:
    """A quantised ONNX model, and inputs for it."""
    folder = CASES / "groups"
    with np.load(folder / "inputs.npz") as inputs:
        return (folder / "model.onnx").read_bytes(), dict(inputs)
