"""Puts the server together from its settings: the one place that constructs and connects its parts.

It must not do anything else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from corepool.config import HardwareConfig, preset
from corepool.device.base import Device
from corepool.server.access import KeyAccess
from corepool.server.audit import AuditFile
from corepool.server.compilations import Compilations
from corepool.server.compile_process import compile_model
from corepool.server.dataplane import DataPlane, Observer
from corepool.server.engine.engine import Engine, EngineOptions
from corepool.server.engine.warming import keep_for_good
from corepool.server.keys import NewKey
from corepool.server.library import Library
from corepool.server.limits import Limits
from corepool.server.logging import ServerLog, set_up
from corepool.server.meters import MeteredCard
from corepool.server.repository import ModelFolder
from corepool.server.rest.context import Parts
from corepool.server.rest.gate import Application, Message, Receive, Scope, Send
from corepool.server.run import Ports, run
from corepool.server.settings import Settings
from corepool.server.status import Operator
from corepool.server.store import Store, TenantRow
from corepool.server.tenants import Tenants
from corepool.server.turnstile import Turnstile
from corepool.server.uploads import Uploads
from corepool.server.validation import Validation
from corepool.server.watching import watch


@dataclass(frozen=True)
class Server:
    """All parts, connected. ``first_key`` is the operators' key if it was made now."""

    settings: Settings
    engine: Engine
    tenants: Tenants
    parts: Parts
    metrics: Application
    log: ServerLog
    first_key: NewKey | None


def serve(settings: Settings, ready: Callable[[Server, Ports], None]) -> None:
    """Run a server until it is asked to end. Raises ConfigError, StoreError, and OSError for the state folder."""
    log = set_up(settings.log.level, settings.log.format)
    with assembled(settings, log) as server:
        keep_for_good()
        run(settings, server.parts, server.metrics, log, lambda ports: ready(server, ports))


@contextlib.contextmanager
def assembled(settings: Settings, log: ServerLog, observer: Observer | None = None) -> Iterator[Server]:
    """The connected parts, the engine at work; everything is closed at the end."""
    hardware = preset(settings.config)
    limits, rates = settings.limits, settings.rates
    url = None if settings.database_url is None else settings.database_url.get_secret_value()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(url, settings.state_dir))
        bounds = Limits(rates.requests_per_s, rates.burst, limits.body_bytes, limits.tenant_in_flight)
        AuditFile(store)
        tenants = Tenants(store, bounds)
        first_key = tenants.first_start()
        access = KeyAccess(tenants)
        stack.callback(access.close)
        card = MeteredCard(hardware, _device(settings.device, hardware), separate=settings.device == "simulator")
        engine = Engine(
            hardware,
            card,
            store,
            EngineOptions(policy=settings.policy, in_flight=limits.tenant_in_flight),
        )
        tenants.subscribe(engine.tenant_changed)
        tenants.consult(engine)
        engine.start()
        stack.callback(engine.stop, 1.0)
        library = _library(settings, engine, log)
        watching = watch(settings.metrics, engine, card, tenants, observer)
        plane = DataPlane(engine, library, in_flight=limits.in_flight, observer=watching.observer)

        def tenant_changed(name: str, row: TenantRow | None) -> None:
            if row is None:
                library.forget(name)
                plane.forget(name)

        tenants.subscribe(tenant_changed)
        parts = Parts(
            plane,
            access,
            engine,
            library,
            tenants,
            Operator(
                watching.watched, watching.traces, Validation(engine, tenants, _device(settings.device, hardware))
            ),
            traffic=watching.traffic,
            turnstile=Turnstile(limits.in_flight),
        )
        yield Server(settings, engine, tenants, parts, watching.metrics, log, first_key)


def _library(settings: Settings, engine: Engine, log: ServerLog) -> Library:
    state = settings.state_dir.resolve()
    if settings.model_repository is not None and not settings.model_repository.is_dir():
        raise NotADirectoryError(20, "the model repository must be a folder", str(settings.model_repository))
    return Library(
        Uploads(state / "uploads", settings.limits.stored_bytes),
        None if settings.model_repository is None else ModelFolder(settings.model_repository.resolve()),
        state / "compiled",
        Compilations(state / "compiling", settings.config, settings.compilation, compile_model, log.warning),
        engine,
        settings.config,
    )


def _device(kind: str, hardware: HardwareConfig) -> Callable[[], Device]:
    """How the device is opened, once it is needed: both kinds are slow to load."""

    def simulator() -> Device:
        from corepool.device.simulator import Simulator

        return Simulator(hardware)

    def rtl() -> Device:
        from corepool.device.rtl import RtlDevice

        return RtlDevice(hardware)

    return rtl if kind == "rtl" else simulator


async def no_metrics(scope: Scope, receive: Receive, send: Send) -> None:
    """Says that there is nothing to see."""
    if scope["type"] == "http":
        message: Message = {"type": "http.response.start", "status": 404, "headers": []}
        await send(message)
        await send({"type": "http.response.body", "body": b""})
