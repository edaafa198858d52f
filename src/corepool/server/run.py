"""Runs the transports in one event loop: opens ports, waits for the request to end, drains, closes.

It must not know what is behind the data plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Compilers run in processes of their own. gRPC's threads must not come to life in those: the process might crash.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc  # type: ignore[import-untyped]
import uvicorn

from corepool.errors import ConfigError
from corepool.server.context import RequestLog
from corepool.server.dataplane import DataPlane
from corepool.server.logging import ServerLog
from corepool.server.rest.app import rest_app
from corepool.server.rest.connection import connections
from corepool.server.rest.context import Parts
from corepool.server.rest.gate import Application, BodyLimits
from corepool.server.rpc.service import handlers
from corepool.server.settings import Settings
from corepool.server.traffic import CountedLog

BACKLOG = 1024
METADATA_BYTES = 32 << 10
STOP_S = 5.0  # for calls that are open but have nothing in flight, such as streams


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens."""

    host: str
    rest: int
    grpc: int
    metrics: int


def run(settings: Settings, parts: Parts, metrics: Application, log: ServerLog, ready: Callable[[Ports], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second one ends at once. ``ready`` is called when all ports answer.

    Raises ConfigError if a port cannot be had.
    """
    import uvloop

    async def until_signal() -> None:
        await serve_until(_asked_to_end(), settings, parts, metrics, log, ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signal())


class _Server(uvicorn.Server):
    """Uvicorn's server, which leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_until(
    ending: asyncio.Event,
    settings: Settings,
    parts: Parts,
    metrics: Application,
    log: ServerLog,
    ready: Callable[[Ports], None],
) -> None:
    """Serve until the event, then drain and close. See ``run``."""
    limits = settings.limits
    with contextlib.ExitStack() as stack:
        rest_socket = stack.enter_context(_listen(settings.host, settings.rest_port, "rest_port"))
        metrics_socket = stack.enter_context(_listen(settings.host, settings.metrics_port, "metrics_port"))
        counted = CountedLog(log, parts.traffic)
        rpc, rpc_port = _rpc_server(settings, parts, counted)
        bodies = BodyLimits(
            limits.body_bytes,
            limits.upload_bytes,
            limits.body_timeout_s,
            limits.upload_timeout_s,
            limits.held_bytes,
            limits.tenant_held_bytes,
        )
        servers = [
            (_http_server(rest_app(parts, bodies, counted), settings, parts.traffic.refused), rest_socket),
            (_http_server(metrics, settings, lambda status: None), metrics_socket),
        ]
        ports = Ports(settings.host, rest_socket.getsockname()[1], rpc_port, metrics_socket.getsockname()[1])
        await rpc.start()
        tasks = [asyncio.create_task(server.serve(sockets=[listener])) for server, listener in servers]
        while not all(server.started for server, _ in servers):
            await asyncio.sleep(0.01)
        log.event("ready", host=ports.host, rest_port=ports.rest, grpc_port=ports.grpc, metrics_port=ports.metrics)
        parts.plane.at_home(asyncio.get_running_loop())
        try:
            ready(ports)
            await ending.wait()
            await _drain(settings, parts.plane, log)
        finally:
            parts.plane.at_home(None)
            # Answers that are ready still have to leave.
            await rpc.stop(STOP_S)
            await parts.library.compilations.close()
            for server, _ in servers:
                server.should_exit = True
            await asyncio.gather(*tasks)
    log.event("ended")


def _asked_to_end() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process as if nobody handled it."""
    loop, ending = asyncio.get_running_loop(), asyncio.Event()

    def asked() -> None:
        ending.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    return ending


async def _drain(settings: Settings, plane: DataPlane, log: ServerLog) -> None:
    log.event("draining", in_flight=plane.in_flight)
    if not await plane.drain(settings.limits.drain_timeout_s):
        log.warning("cut off", in_flight=plane.in_flight, after_s=settings.limits.drain_timeout_s)


def _listen(host: str, port: int, name: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(_no_port(host, port, name, error)) from None


def _no_port(host: str, port: int, name: str, error: OSError | None) -> str:
    if error is None or error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: stop what listens there, or choose another {name} (0: any)"
    return f"cannot listen on port {port} of {host} ({name}): {error.strerror or error}"


def _http_server(app: Application, settings: Settings, refused: Callable[[int], None]) -> _Server:
    limits = settings.limits
    return _Server(
        uvicorn.Config(
            app,
            http=connections(limits, refused),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, int(limits.idle_timeout_s)),
            timeout_graceful_shutdown=max(1, int(limits.body_timeout_s)),
        )
    )


def _rpc_server(settings: Settings, parts: Parts, log: RequestLog) -> tuple[grpc.aio.Server, int]:
    # Messages hold names and shapes beside the tensors.
    size = settings.limits.body_bytes + METADATA_BYTES
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # else two servers could share the port, and clients would find either
            ("grpc.max_receive_message_length", min(size, (1 << 31) - 1)),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES),
            ("grpc.max_concurrent_streams", settings.limits.connections),
        ],
        maximum_concurrent_rpcs=settings.limits.connections,
    )
    server.add_generic_rpc_handlers((handlers(parts.plane, parts.access, log, parts.turnstile),))
    host, port = settings.host, settings.grpc_port
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise ConfigError(_no_port(host, port, "grpc_port", None))
    return server, int(bound)
