"""Control routes under /v2/corepool: tenants, keys, the audit log, and who one is.

It must not know how tenants are stored or keys checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from corepool.server.api import Identity
from corepool.server.keys import NewKey
from corepool.server.rest import bodies, schemas
from corepool.server.rest.context import Guard, role
from corepool.server.rest.control import FAILURES, PREFIX, TENANT
from corepool.server.rest.protocol import as_json
from corepool.server.store import KeyRow, TenantRow
from corepool.server.tenants import Tenants

MOST_ROWS = 10_000
ADMIN: dict[str, Any] = {"openapi_extra": role("admin"), "responses": FAILURES}


def tenancy_routes(tenants: Tenants, guard: Guard) -> APIRouter:
    """All of it; tenants see themselves and their own keys and entries."""
    router = APIRouter(prefix=PREFIX, tags=["tenants"])
    _tenant_routes(router, tenants, guard)
    _key_routes(router, tenants, guard)

    @router.get("/me", **TENANT, response_model=schemas.Me, summary="Whose key this is")
    async def me(request: Request) -> Response:
        who = await guard.who(request)
        row = asdict(tenants.row(who.tenant)) if who.tenant else None
        return as_json({"role": who.role.value, "tenant": who.tenant, "key_id": who.key_id, "limits": row})

    @router.get(
        "/audit",
        openapi_extra={
            **role("tenant"),
            "parameters": [
                bodies.query("after", {"type": "integer", "minimum": 0}),
                bodies.query("limit", {"type": "integer", "minimum": 0, "maximum": MOST_ROWS}),
            ],
        },
        responses=FAILURES,
        response_model=list[schemas.AuditEntry],
        summary="The audit log",
    )
    async def audit(request: Request) -> Response:
        who = await guard.who(request)
        bodies.check_queries(request, "after", "limit")
        after = bodies.query_number(request, "after", 0, 1 << 53)
        limit = bodies.query_number(request, "limit", 1000, MOST_ROWS)
        return as_json([asdict(row) for row in await asyncio.to_thread(tenants.audits, who, after, limit)])

    return router


def _source(request: Request) -> str:
    return request.client.host if request.client else ""


def _tenant_routes(router: APIRouter, tenants: Tenants, guard: Guard) -> None:
    @router.get("/tenants", **TENANT, response_model=list[schemas.Tenant], summary="Tenants; for a tenant, itself")
    async def all_tenants(request: Request) -> Response:
        return as_json([asdict(row) for row in tenants.visible(await guard.who(request))])

    @router.post(
        "/tenants",
        status_code=201,
        openapi_extra={
            **role("admin"),
            **bodies.document(bodies.NewTenant),
            "parameters": [bodies.IDEMPOTENCY],
        },
        responses=FAILURES,
        response_model=schemas.AddedTenant,
        summary="Add a tenant; the key is shown this once",
    )
    async def add(request: Request) -> Response:
        who, key = await guard.admin(request), bodies.idempotency_key(request)
        body = await bodies.read(request, bodies.NewTenant)
        values = {name: value for name, value in body.model_dump().items() if value is not None}
        added = await asyncio.to_thread(tenants.add, who, TenantRow(**values), _source(request), key)
        return as_json({"tenant": asdict(added.tenant), "key_id": added.key_id, "key": added.key}, 201)

    @router.get("/tenants/{name}", **TENANT, response_model=schemas.Tenant, summary="A tenant")
    async def one(request: Request) -> Response:
        return as_json(asdict(tenants.get(await guard.who(request), request.path_params["name"])))

    @router.patch(
        "/tenants/{name}",
        openapi_extra={**role("admin"), **bodies.document(bodies.TenantLimits)},
        responses=FAILURES,
        response_model=schemas.Tenant,
        summary="Change a tenant's quota, priority or limits",
    )
    async def change(request: Request) -> Response:
        who = await guard.admin(request)
        body = await bodies.read(request, bodies.TenantLimits)
        values = body.model_dump(exclude_unset=True)
        name = request.path_params["name"]
        return as_json(asdict(await asyncio.to_thread(tenants.change, who, name, _source(request), **values)))

    @router.delete("/tenants/{name}", **ADMIN, summary="Remove a tenant that holds nothing")
    async def remove(request: Request) -> schemas.Empty:
        who = await guard.admin(request)
        await asyncio.to_thread(tenants.remove, who, request.path_params["name"], _source(request))
        return schemas.Empty()


def _key_routes(router: APIRouter, tenants: Tenants, guard: Guard) -> None:
    # Operators' keys belong to no tenant, so they have a path of their own.
    _keys_of(router, tenants, "/tenants/{name}/keys", TENANT, guard.who)
    _keys_of(router, tenants, "/operators/keys", ADMIN, guard.admin)

    @router.post(
        "/keys/{key_id}/rotate",
        status_code=201,
        **TENANT,
        response_model=schemas.NewKey,
        summary="A new key in the place of this one",
    )
    async def rotate(request: Request) -> Response:
        who = await guard.who(request)
        return _made(await asyncio.to_thread(tenants.rotate_key, who, request.path_params["key_id"], _source(request)))

    @router.delete("/keys/{key_id}", **TENANT, summary="Revoke a key")
    async def revoke(request: Request) -> schemas.Empty:
        who = await guard.who(request)
        await asyncio.to_thread(tenants.revoke_key, who, request.path_params["key_id"], _source(request))
        return schemas.Empty()


def _made(key: NewKey) -> Response:
    return as_json({"key_id": key.key_id, "key": key.text}, 201)


def _shown(row: KeyRow) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name != "hash"}


def _keys_of(
    router: APIRouter,
    tenants: Tenants,
    path: str,
    kind: dict[str, Any],
    known: Callable[[Request], Awaitable[Identity]],
) -> None:
    @router.get(path, **kind, response_model=list[schemas.Key], summary="Keys, without their secrets")
    async def keys(request: Request) -> Response:
        who = await known(request)
        rows = await asyncio.to_thread(tenants.keys, who, request.path_params.get("name", ""))
        return as_json([_shown(row) for row in rows])

    @router.post(
        path,
        status_code=201,
        openapi_extra={**kind["openapi_extra"], **bodies.document(bodies.NewKey, required=False)},
        responses=FAILURES,
        response_model=schemas.NewKey,
        summary="One more key; shown this once",
    )
    async def create(request: Request) -> Response:
        who = await known(request)
        label = (await bodies.read(request, bodies.NewKey)).label
        tenant = request.path_params.get("name", "")
        return _made(await asyncio.to_thread(tenants.create_key, who, tenant, label, _source(request)))
