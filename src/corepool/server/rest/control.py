"""Control routes under /v2/corepool: leases, uploads and compilations.

It must not know what requests mean: each route asks the part that does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from corepool.errors import RequestError
from corepool.server.api import Identity, LeaseInfo, LeaseRequest, Leases, Role
from corepool.server.compilations import Compiling
from corepool.server.context import require_tenant
from corepool.server.dataplane import DataPlane
from corepool.server.library import Library
from corepool.server.rest import bodies, schemas
from corepool.server.rest.context import Guard, role
from corepool.server.rest.errors import schema, status_of
from corepool.server.rest.gate import refuse_packed
from corepool.server.rest.protocol import as_json

PREFIX = "/v2/corepool"
FAILURES = schema(400, 401, 403, 404, 409, 413, 429, 500, 503, 507)
TENANT: dict[str, Any] = {"openapi_extra": role("tenant"), "responses": FAILURES}


def lease_routes(leases: Leases, guard: Guard) -> APIRouter:
    """Leases of the asking tenant; an operator sees all, and names the tenant to change some."""
    router = APIRouter(prefix=PREFIX, tags=["leases"])

    @router.get("/leases", **TENANT, response_model=list[schemas.Lease], summary="Leases, held and queued")
    async def all_leases(request: Request) -> Response:
        who = await guard.who(request)
        return as_json([asdict(each) for each in await asyncio.to_thread(leases.leases, who)])

    @router.post(
        "/leases",
        status_code=201,
        openapi_extra={
            **role("tenant"),
            **bodies.document(bodies.NewLease),
            "parameters": [bodies.IDEMPOTENCY],
        },
        responses=FAILURES,
        response_model=schemas.Lease,
        summary="Lease cores, or queue for them",
    )
    async def create(request: Request) -> Response:
        who, key = await guard.tenant(request), bodies.idempotency_key(request)
        body = await bodies.read(request, bodies.NewLease)
        low, high = body.bounds()
        wish = LeaseRequest(body.name, low, high, body.sharing, body.switching, body.ttl_s)
        return _lease(await asyncio.to_thread(leases.create_lease, who, wish, key), 201)

    @router.get("/leases/{name}", **TENANT, response_model=schemas.Lease, summary="A lease")
    async def one(request: Request) -> Response:
        who = await guard.tenant(request)
        return _lease(await asyncio.to_thread(leases.lease, who, request.path_params["name"]))

    @router.patch(
        "/leases/{name}",
        openapi_extra={
            **role("tenant"),
            **bodies.document(bodies.Resize),
            "parameters": [bodies.IDEMPOTENCY],
        },
        responses=FAILURES,
        response_model=schemas.Lease,
        summary="Resize a lease while it is used",
    )
    async def resize(request: Request) -> Response:
        who, key = await guard.tenant(request), bodies.idempotency_key(request)
        low, high = (await bodies.read(request, bodies.Resize)).bounds()
        name = request.path_params["name"]
        return _lease(await asyncio.to_thread(leases.resize_lease, who, name, low, high, key))

    @router.post("/leases/{name}/heartbeat", **TENANT, response_model=schemas.Lease, summary="Keep a lease alive")
    async def heartbeat(request: Request) -> Response:
        who = await guard.tenant(request)
        return _lease(await asyncio.to_thread(leases.heartbeat, who, request.path_params["name"]))

    @router.delete(
        "/leases/{name}",
        openapi_extra={**role("tenant"), "parameters": [bodies.IDEMPOTENCY]},
        responses=FAILURES,
        summary="Release a lease",
    )
    async def release(request: Request) -> schemas.Empty:
        who, key = await guard.tenant(request), bodies.idempotency_key(request)
        await asyncio.to_thread(leases.release_lease, who, request.path_params["name"], key)
        return schemas.Empty()

    return router


def _lease(info: LeaseInfo, status: int = 200) -> Response:
    return as_json(asdict(info), status)


def model_routes(library: Library, plane: DataPlane, guard: Guard) -> APIRouter:
    """Uploads of the asking tenant, and what became of their compilations."""
    router = APIRouter(prefix=PREFIX, tags=["models"])
    _upload_routes(router, library, plane, guard)
    _compilation_routes(router, library, guard)
    return router


def _upload_routes(router: APIRouter, library: Library, plane: DataPlane, guard: Guard) -> None:
    load_flag = bodies.query("load", {"type": "boolean"})
    path = "/models/{model}/versions/{version}"

    @router.put(
        f"{path}/model",
        status_code=202,
        openapi_extra={**role("tenant"), **bodies.FILE_BODY, "parameters": [load_flag]},
        responses=FAILURES,
        response_model=schemas.Compilation,
        summary="Upload an ONNX file or a package; it is compiled, then loaded unless load=false",
    )
    async def upload(request: Request) -> Response:
        who = await guard.tenant(request)
        bodies.check_queries(request, "load")
        load = bodies.query_flag(request, "load", True)
        made = await library.upload(who, *_version(request), blocks(request), load)
        return as_json(_compilation(made), 202)

    @router.put(
        f"{path}/calibration",
        openapi_extra={**role("tenant"), **bodies.FILE_BODY},
        responses=FAILURES,
        summary="Upload calibration data (.npz), which float models need; before the model",
    )
    async def calibration(request: Request) -> schemas.Empty:
        who = await guard.tenant(request)
        await library.uploads.put_calibration(who.tenant, *_version(request), blocks(request))
        return schemas.Empty()

    @router.post(
        f"{path}/compile",
        status_code=202,
        openapi_extra={**role("tenant"), "parameters": [load_flag]},
        responses=FAILURES,
        response_model=schemas.Compilation,
        summary="Compile an uploaded model again",
    )
    async def compile_again(request: Request) -> Response:
        who = await guard.tenant(request)
        bodies.check_queries(request, "load")
        load = bodies.query_flag(request, "load", True)
        return as_json(_compilation(await library.compile(who, library.source(who, *_version(request)), load)), 202)

    for where in ("/models/{model}", path):

        @router.delete(where, **TENANT, summary="Unload an uploaded model and delete its files")
        async def remove(request: Request) -> schemas.Empty:
            who = await guard.tenant(request)
            name, version = request.path_params["model"], request.path_params.get("version")
            await library.remove(who, name, version)
            plane.forget(who.tenant, name)
            return schemas.Empty()


def _compilation_routes(router: APIRouter, library: Library, guard: Guard) -> None:
    @router.get(
        "/compilations", **TENANT, response_model=list[schemas.Compilation], summary="Compilations, oldest first"
    )
    async def all_compilations(request: Request) -> Response:
        who = await guard.who(request)
        return as_json([_compilation(each) for each in library.compilations.all(_scope(who))])

    @router.get("/compilations/{id}", **TENANT, response_model=schemas.Compilation, summary="How far it is")
    async def one(request: Request) -> Response:
        who = await guard.who(request)
        return as_json(_compilation(library.compilations.get(_scope(who), request.path_params["id"])))

    @router.delete("/compilations/{id}", **TENANT, response_model=schemas.Compilation, summary="Cancel")
    async def cancel(request: Request) -> Response:
        who = await guard.who(request)
        found = library.compilations.get(_scope(who), request.path_params["id"])
        await library.compilations.stop(found)
        return as_json(_compilation(found))


def _scope(who: Identity) -> str | None:
    """Whose things are seen: None for everybody's."""
    return None if who.role is Role.ADMIN and not who.tenant else require_tenant(who).tenant


def _version(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params["version"]


def _compilation(one: Compiling) -> dict[str, Any]:
    return {
        "id": one.id,
        "tenant": one.tenant,
        "model": one.source.name,
        "version": one.source.version,
        "state": one.state,
        "stage": one.stage,
        "progress": round(one.progress, 4),
        "seconds": round(one.seconds, 3),
        "error": None if one.error is None else str(one.error),
        "status": None if one.error is None else status_of(one.error),
    }


async def blocks(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes. Raises RequestError if it is compressed, or the client leaves before its end."""
    refuse_packed(request.headers.get("content-encoding"))
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise RequestError("the client left before the end of the body")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return
