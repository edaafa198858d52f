"""Structured logs on stderr: one event a line, as JSON or for people. Never a key, a tensor or a body.

It must not know the parts that log.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

_QUIET_PATHS = (
    "/infer",
    "/ready",
    "/live",
    "ModelInfer",
    "ModelStreamInfer",
    "ServerReady",
    "ServerLive",
    "ModelReady",
)


def set_up(level: str, form: str) -> ServerLog:
    """Configure logging for the process and return the server's log."""
    render: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, render],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    for name in ("uvicorn", "uvicorn.error", "grpc", "asyncio", "corepool"):
        logger = logging.getLogger(name)
        logger.handlers = [_Forward()]
        logger.propagate = name == "corepool"  # nobody else listens, unless in tests
        logger.setLevel(logging.WARNING)
    return ServerLog(structlog.get_logger().bind())


class _Forward(logging.Handler):
    """Hands what libraries log on to the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        error = record.exc_info if record.exc_info and record.exc_info[0] else None
        log.log(record.levelno, record.getMessage().strip(), logger=record.name, exc_info=error)


class ServerLog:
    """Events of the server by name."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def event(self, name: str, **values: Any) -> None:
        """Something worth knowing happened."""
        self._log.info(name, **values)

    def warning(self, name: str, **values: Any) -> None:
        """Something that an operator should look at."""
        self._log.warning(name, **values)

    def request(
        self, method: str, path: str, status: int, seconds: float, request_id: str, source: str, tenant: str = ""
    ) -> None:
        """A request was answered. What comes often and went well is told at level debug only."""
        tell = self._log.info
        if method == "gRPC":
            severe, fine = status in (2, 13, 15), status == 0  # UNKNOWN, INTERNAL, DATA_LOSS; OK
        else:
            severe, fine = status >= 500 and status not in (501, 503, 507), status < 400
        if severe:
            tell = self._log.error
        elif fine and path.endswith(_QUIET_PATHS):
            if not self._log.is_enabled_for(logging.DEBUG):
                return
            tell = self._log.debug
        tell(
            "request",
            method=method,
            path=path[:200],
            status=status,
            ms=round(seconds * 1e3, 3),
            request_id=request_id,
            source=source,
            **({"tenant": tenant} if tenant else {}),
        )

    def crashed(self, request_id: str, error: BaseException) -> None:
        """A request met an error that nobody raised on purpose."""
        self._log.error("crash", request_id=request_id, exc_info=(type(error), error, error.__traceback__))
