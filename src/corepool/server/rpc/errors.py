"""Turns errors into gRPC status codes.

It must not know calls. The first class in the table that an error belongs to decides.
"""

from __future__ import annotations

from grpc import StatusCode  # type: ignore[import-untyped]

from corepool import errors

CODES: tuple[tuple[type[BaseException], StatusCode], ...] = (
    (errors.AuthenticationError, StatusCode.UNAUTHENTICATED),
    (errors.PermissionDeniedError, StatusCode.PERMISSION_DENIED),
    (errors.NotFoundError, StatusCode.NOT_FOUND),
    (errors.ConflictError, StatusCode.FAILED_PRECONDITION),
    (errors.ConfigMismatchError, StatusCode.FAILED_PRECONDITION),
    (errors.TooLargeError, StatusCode.RESOURCE_EXHAUSTED),
    (errors.TooManyRequestsError, StatusCode.RESOURCE_EXHAUSTED),
    (errors.UnsupportedError, StatusCode.UNIMPLEMENTED),
    (errors.UnavailableError, StatusCode.UNAVAILABLE),
    (errors.DeadlineExceededError, StatusCode.DEADLINE_EXCEEDED),
    (errors.StorageFullError, StatusCode.RESOURCE_EXHAUSTED),
    (errors.StoreError, StatusCode.INTERNAL),
    (errors.FaultError, StatusCode.FAILED_PRECONDITION),
    (errors.DeviceError, StatusCode.INTERNAL),
    (errors.ToolError, StatusCode.INTERNAL),
    (errors.CorepoolError, StatusCode.INVALID_ARGUMENT),
)


def code_of(error: BaseException) -> StatusCode:
    """The status code of an error; INTERNAL for what nobody raised on purpose."""
    return next((code for kind, code in CODES if isinstance(error, kind)), StatusCode.INTERNAL)
