"""Routes of the Open Inference Protocol and its extensions under /v2.

It must not know what requests mean: each route asks the data plane.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic_core import to_json as write_json
from starlette.requests import Request
from starlette.responses import Response

from corepool.errors import CorepoolError, NotFoundError, RequestError, UnavailableError, UnsupportedError
from corepool.server.api import Identity, ModelInfo, TensorInfo
from corepool.server.dataplane import DataPlane
from corepool.server.rest import schemas
from corepool.server.rest.codec import HEADER_LENGTH, load_json, read_request, write_response
from corepool.server.rest.context import Guard, headers_of, role
from corepool.server.rest.direct import TOGETHER_BYTES
from corepool.server.rest.errors import error_response, schema
from corepool.server.rest.gate import (
    Application,
    Buffer,
    Receive,
    Scope,
    Send,
    read_body,
    read_buffer,
    refuse_packed,
    unpacked,
    until_gone,
)
from corepool.server.tensors import shown
from corepool.server.turnstile import Turnstile

Result = TypeVar("Result")
MAX_VALUES = 4096  # in a body that is no inference
_HEADER_LENGTH = HEADER_LENGTH.lower().encode()
_JSON, _BYTES = (b"content-type", b"application/json"), (b"content-type", b"application/octet-stream")
MODEL, VERSION = "/models/{model}", "/models/{model}/versions/{version}"


class PlainRoute(APIRoute):
    """A route whose function takes the request and gives the response, with nothing of the framework between."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def protocol_routes(plane: DataPlane, guard: Guard) -> APIRouter:
    """All routes of the protocol but inference."""
    router = APIRouter(prefix="/v2", tags=["protocol"])
    _server_routes(router, plane)
    _model_routes(router, plane, guard)
    _repository_routes(router, plane, guard)
    return router


def as_json(value: object, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(write_json(value), status, media_type="application/json")


def _server_routes(router: APIRouter, plane: DataPlane) -> None:
    @router.get("/health/live", openapi_extra=role("public"), responses=schema(503), summary="Server live")
    async def live() -> schemas.Empty:
        if not plane.server_live():
            raise UnavailableError("the engine has stopped")
        return schemas.Empty()

    @router.get("/health/ready", openapi_extra=role("public"), responses=schema(503), summary="Server ready")
    async def ready() -> schemas.Empty:
        if not plane.server_ready():
            raise UnavailableError("the server is not ready")
        return schemas.Empty()

    @router.get("", openapi_extra=role("public"), response_model=schemas.ServerMetadata, summary="Server metadata")
    async def server() -> Response:
        info = plane.server_metadata()
        return as_json({"name": info.name, "version": info.version, "extensions": info.extensions})


def _tensors(tensors: tuple[TensorInfo, ...]) -> list[dict[str, Any]]:
    return [{"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in tensors]


def _metadata(info: ModelInfo) -> Response:
    return as_json(
        {
            "name": info.name,
            "versions": info.versions,
            "platform": info.platform,
            "inputs": _tensors(info.inputs),
            "outputs": _tensors(info.outputs),
        }
    )


def _model_config(info: ModelInfo) -> dict[str, Any]:
    def tensors(chosen: tuple[TensorInfo, ...]) -> list[dict[str, Any]]:
        return [
            {
                "name": each.name,
                "data_type": "TYPE_STRING" if each.datatype == "BYTES" else f"TYPE_{each.datatype}",
                "dims": each.shape,
            }
            for each in chosen
        ]

    return {
        "name": info.name,
        "platform": info.platform,
        "backend": "corepool",
        "max_batch_size": 0,
        "version_policy": {"specific": {"versions": [int(each) for each in info.versions if each.isdigit()]}},
        "input": tensors(info.inputs),
        "output": tensors(info.outputs),
    }


def _model_routes(router: APIRouter, plane: DataPlane, guard: Guard) -> None:
    common: dict[str, Any] = {"openapi_extra": role("tenant")}
    failures = schema(400, 401, 403, 404, 429, 503)

    @router.get(
        "/models/stats", **common, responses=failures, response_model=schemas.Statistics, summary="All statistics"
    )
    async def all_statistics(request: Request) -> Response:
        return _statistics(plane, await guard.who(request), None, None)

    for path, suffix in ((MODEL, ""), (VERSION, " of a version")):

        @router.get(
            path, **common, responses=failures, response_model=schemas.ModelMetadata, summary=f"Model metadata{suffix}"
        )
        async def metadata(request: Request) -> Response:
            return _metadata(plane.model_metadata(await guard.who(request), *_named(request)))

        @router.get(f"{path}/ready", **common, responses=failures, summary=f"Model ready{suffix}")
        async def ready(request: Request) -> schemas.Empty:
            name, version = _named(request)
            if not plane.model_ready(await guard.who(request), name, version):
                raise UnavailableError(f"model {shown(name)} is not ready")
            return schemas.Empty()

        @router.get(
            f"{path}/config",
            **common,
            responses=failures,
            response_model=schemas.ModelConfig,
            summary=f"Model configuration{suffix}",
        )
        async def config(request: Request) -> Response:
            return as_json(_model_config(plane.config(await guard.who(request), *_named(request))))

        @router.get(
            f"{path}/stats",
            **common,
            responses=failures,
            response_model=schemas.Statistics,
            summary=f"Model statistics{suffix}",
        )
        async def statistics(request: Request) -> Response:
            return _statistics(plane, await guard.who(request), *_named(request))


def _named(request: Request) -> tuple[str, str | None]:
    """The model and version in the path."""
    return request.path_params["model"], request.path_params.get("version")


def _statistics(plane: DataPlane, who: Identity, name: str | None, version: str | None) -> Response:
    rows = plane.statistics(who, name, version)
    return as_json(
        {
            "model_stats": [
                {
                    "name": row.name,
                    "version": row.version,
                    "last_inference": row.last_inference_ms,
                    "inference_count": row.inference_count,
                    "execution_count": row.execution_count,
                    "inference_stats": {
                        stage: {"count": each.count, "ns": each.ns} for stage, each in row.stages.items()
                    },
                    "batch_stats": [],
                }
                for row in rows
            ]
        }
    )


def inference_routes(inferring: Inferring) -> APIRouter:
    """The routes of inference. They go before all others, as finding a route takes longer the later it stands."""
    router = APIRouter(prefix="/v2", tags=["protocol"], route_class=PlainRoute)
    failures = schema(400, 401, 403, 404, 413, 429, 500, 501, 503)
    extra = {**role("tenant"), **schemas.INFER_BODY}
    for path, suffix in ((MODEL, ""), (VERSION, " by a version")):

        @router.post(
            f"{path}/infer",
            openapi_extra=extra,
            responses={**failures, **schemas.INFER_ANSWER},
            response_class=Response,
            summary=f"Inference{suffix}",
        )
        async def infer(request: Request) -> Response:
            return await inferring.answer(request)

    return router


class InferenceFirst:
    """ASGI middleware that takes inferences straight to their function: finding a route among all costs more than all
    else that a framework does for them. The routes above stay, for the document and for other methods."""

    def __init__(self, app: Application, inferring: Inferring) -> None:
        self._app = app
        self._inferring = inferring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = _inference(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if named is None:
            await self._app(scope, receive, send)
            return
        scope["path_params"] = named
        request = Request(scope, receive, send)
        try:
            response = await self._inferring.answer(request)
        except CorepoolError as error:
            response = error_response(error)
        await response(scope, receive, send)


def _inference(scope: Scope) -> dict[str, str] | None:
    """The model, and perhaps the version, that the path of an inference names; None for other paths."""
    match scope["path"].split("/"):
        case ["", "v2", "models", model, "infer"] if model:
            return {"model": model}
        case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
            return {"model": model, "version": version}
    return None


class Inferring:
    """Answers requests for inferences: who asks and whether he may come in is decided before a body is read."""

    def __init__(self, plane: DataPlane, guard: Guard, turnstile: Turnstile) -> None:
        self._plane = plane
        self._guard = guard
        self._turnstile = turnstile

    async def answer(self, request: Request) -> Response:
        """Raises CorepoolError."""
        who = await self._guard.tenant(request)
        self._plane.refuse_when_draining()
        self._turnstile.enter(who.tenant, self._guard.most(who))
        try:
            return await self._infer(who, request)
        finally:
            self._turnstile.leave(who.tenant)

    async def _infer(self, who: Identity, request: Request) -> Response:
        name, version = _named(request)
        scope, headers = request.scope, headers_of(request.scope)
        limit = min(scope["server_limit"], scope["body_limit"])
        body, encoding = await self._body(who, request), headers.get("content-encoding")
        if encoding is not None:  # in a thread: a small body may become a large one
            body = await asyncio.to_thread(unpacked, body, encoding, limit)
        asked = read_request(name, version, body, headers.get(HEADER_LENGTH.lower()))
        result = await _unless_gone(self._plane.infer(who, asked.request), request)
        return _Answer(*write_response(asked, result))

    async def _body(self, who: Identity, request: Request) -> Buffer:
        """The body, once it is the tenant's turn to have one read."""
        cycle = request.scope.get("cycle")
        if cycle is None or not cycle.more_body:  # it is there
            return await read_buffer(request.receive)
        if self._turnstile.full(who.tenant):
            cycle.flow.pause_reading()
        done = await self._turnstile.read(who.tenant)
        try:
            return await read_buffer(request.receive)
        finally:
            done()


class _Answer(Response):
    """A good answer, all of whose headers are known: no need to look for them. ``split``: where binary data begin."""

    def __init__(self, body: bytes, split: int | None) -> None:
        self.status_code, self.body, self.background = 200, body, None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), _JSON if split is None else _BYTES]
        if split is not None:
            self.raw_headers.append((_HEADER_LENGTH, b"%d" % split))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "cycle" not in scope or len(self.body) > TOGETHER_BYTES:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers, "whole": self.body})


async def _unless_gone(work: Coroutine[Any, Any, Result], request: Request) -> Result:
    """The work's result; it is cancelled if the client leaves before. Raises RequestError then, which nobody reads."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    def stop() -> None:
        nonlocal left
        left = True
        task.cancel()

    watched = _watch(request, stop)
    try:
        return await work
    except asyncio.CancelledError:
        if not left:
            raise
        task.uncancel()
        raise RequestError("the client left") from None
    finally:
        watched()


def _watch(request: Request, stop: Callable[[], None]) -> Callable[[], None]:
    """Have a function called when the client leaves; returns what ends that."""
    cycle = request.scope.get("cycle")
    if cycle is not None:  # the connection tells, which costs next to nothing
        if cycle.disconnected:
            stop()
        cycle.left = stop
        return partial(setattr, cycle, "left", None)

    def gone(leaving: asyncio.Task[None]) -> None:
        if not leaving.cancelled():
            stop()

    leaving = asyncio.create_task(until_gone(request.receive))
    leaving.add_done_callback(gone)

    def end() -> None:
        leaving.remove_done_callback(gone)
        leaving.cancel()

    return end


async def _optional_object(request: Request) -> dict[str, Any]:
    """The body's JSON object, {} for none; files may be in it. Raises RequestError, TooLargeError."""
    refuse_packed(request.headers.get("content-encoding"))
    body = await read_body(request.receive)
    value = load_json(body, len(body), MAX_VALUES) if body.strip() else {}
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    return value


def _repository_routes(router: APIRouter, plane: DataPlane, guard: Guard) -> None:
    failures = schema(400, 401, 403, 404, 409, 413, 429, 500, 501, 503, 507)

    @router.post(
        "/repository/index",
        openapi_extra={**role("tenant"), **schemas.INDEX_BODY},
        responses=failures,
        response_model=list[schemas.ModelIndex],
        summary="Models of the repository",
    )
    async def index(request: Request) -> Response:
        who = await guard.who(request)
        ready = (await _optional_object(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise RequestError(f"ready must be true or false, not {shown(ready)}")
        return as_json([_index_row(who, row) for row in plane.index(who, ready)])

    @router.post(
        "/repository/models/{model}/load",
        openapi_extra={**role("tenant"), **schemas.LOAD_BODY},
        responses=failures,
        summary="Load a model",
    )
    async def load(request: Request) -> schemas.Empty:
        who = await guard.tenant(request)
        parameters = (await _optional_object(request)).get("parameters", {})
        if not isinstance(parameters, dict):
            raise RequestError("parameters must be a JSON object")
        await plane.load(who, request.path_params["model"], parameters)
        return schemas.Empty()

    @router.post(
        "/repository/models/{model}/unload",
        openapi_extra={**role("tenant"), **schemas.LOAD_BODY},
        responses=failures,
        summary="Unload a model",
    )
    async def unload(request: Request) -> schemas.Empty:
        who = await guard.tenant(request)
        await _optional_object(request)
        await plane.unload(who, request.path_params["model"])
        return schemas.Empty()


def _index_row(who: Identity, row: ModelInfo) -> dict[str, str]:
    made = {"name": row.name, "version": row.version, "state": row.state.value, "reason": row.reason}
    return made if who.tenant else {"tenant": row.tenant, **made}


# What clients made for Triton may ask for beyond the extensions that there are, and what to say.
UNSUPPORTED = (
    (re.compile(r"/v2/(system|cuda)sharedmemory/.*"), "shared memory is not supported; send the data"),
    (
        re.compile(r"/v2/(models/[^/]+/)?trace/setting"),
        "there are no trace settings: the latest inferences are at /v2/corepool/traces/<x-request-id>",
    ),
    (re.compile(r"/v2/logging"), "logging is set when the server starts"),
    (re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/generate(_stream)?"), "models here generate no text; use infer"),
)


def nothing_at(path: str) -> CorepoolError:
    """The error for a path that no route has."""
    for pattern, text in UNSUPPORTED:
        if pattern.fullmatch(path):
            return UnsupportedError(text)
    return NotFoundError(f"there is nothing at {shown(path)}")
