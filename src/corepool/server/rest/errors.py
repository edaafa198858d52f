"""Turns errors into HTTP status codes and the protocol's error body.

It must not know routes. The first class in the table that an error belongs to decides.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from corepool import errors
from corepool.server.dataplane import describe

STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (errors.AuthenticationError, 401),
    (errors.PermissionDeniedError, 403),
    (errors.NotFoundError, 404),
    (errors.ConflictError, 409),
    (errors.ConfigMismatchError, 409),
    (errors.TooLargeError, 413),
    (errors.TooManyRequestsError, 429),
    (errors.UnsupportedError, 501),
    (errors.UnavailableError, 503),
    (errors.DeadlineExceededError, 503),
    (errors.StorageFullError, 507),
    (errors.StoreError, 500),
    (errors.FaultError, 400),
    (errors.DeviceError, 500),
    (errors.ToolError, 500),
    (errors.CorepoolError, 400),
)


def status_of(error: BaseException) -> int:
    """The status code of an error; 500 for what nobody raised on purpose."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def error_body(text: str) -> bytes:
    """The protocol's error object."""
    return to_json({"error": text})


def error_response(error: BaseException) -> Response:
    """The whole answer to a request that failed."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.TooManyRequestsError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return plain_error(status, describe(error), headers)


def plain_error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """An error answer with a text of one's own."""
    return Response(error_body(text), status, headers, "application/json")


def schema(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's view of error answers."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
