"""Puts the REST side together: routes, error bodies, the gate around them, and the OpenAPI document.

It must not know how the parts that it translates to are made.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from corepool import __version__
from corepool.errors import CorepoolError
from corepool.server.context import RequestLog
from corepool.server.rest import schemas
from corepool.server.rest.context import Guard, Parts
from corepool.server.rest.control import PREFIX, lease_routes, model_routes
from corepool.server.rest.errors import error_response, plain_error
from corepool.server.rest.gate import BodyLimits, Gate, Scope
from corepool.server.rest.operations import operations_routes
from corepool.server.rest.protocol import (
    InferenceFirst,
    Inferring,
    inference_routes,
    nothing_at,
    protocol_routes,
)
from corepool.server.rest.tenancy import tenancy_routes


def rest_app(parts: Parts, limits: BodyLimits, log: RequestLog) -> Gate:
    """The ASGI application."""
    app = InferenceFirst(bare_app(parts), Inferring(parts.plane, Guard(parts.access), parts.turnstile))
    return Gate(app, limits, log, _is_upload)


def _is_upload(scope: Scope) -> bool:
    return bool(scope["method"] == "PUT" and scope["path"].startswith(f"{PREFIX}/models/"))


def bare_app(parts: Parts) -> FastAPI:
    """The routes without the gate."""
    app = FastAPI(
        title="corepool",
        version=__version__,
        docs_url=None,  # its pages would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            CorepoolError: _deliberate,
            HTTPException: _refused,
            RequestValidationError: _invalid,
            Exception: _crashed,
        },
    )
    guard = Guard(parts.access)
    app.include_router(inference_routes(Inferring(parts.plane, guard, parts.turnstile)))
    app.include_router(protocol_routes(parts.plane, guard))
    app.include_router(lease_routes(parts.leases, guard))
    app.include_router(model_routes(parts.library, parts.plane, guard))
    if parts.tenants is not None:
        app.include_router(tenancy_routes(parts.tenants, guard))
    if parts.operations is not None:
        app.include_router(operations_routes(parts.operations, guard))
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


async def _deliberate(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, CorepoolError):  # the gate's, on the way through the framework's own reading
        return error_response(error.__cause__)
    if error.status_code == 404:
        return error_response(nothing_at(request.url.path))
    if error.status_code == 405:
        headers = {name: value.replace("GET", "GET, HEAD") for name, value in (error.headers or {}).items()}
        return plain_error(405, f"{request.method} is not allowed here", headers)
    return plain_error(error.status_code, str(error.detail), dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()[:10]]
    return plain_error(400, f"the request is malformed: {'; '.join(found)}")


async def _crashed(request: Request, error: Exception) -> Response:
    return error_response(error)


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with errors and keys as they are here."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = made.setdefault("components", {})
        components.setdefault("schemas", {})["Error"] = schemas.Error.model_json_schema()
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, methods in made["paths"].items():
            names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
            for operation in methods.values():
                operation.get("responses", {}).pop("422", None)
                known = {each["name"] for each in operation.get("parameters", ())}
                operation.setdefault("parameters", []).extend(
                    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                    for name in names
                    if name not in known
                )
        app.openapi_schema = made
    return app.openapi_schema
