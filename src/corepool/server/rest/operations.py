"""Control routes under /v2/corepool for operators who watch the card.

It must not know how anything is counted.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from corepool.server.rest.context import Guard, Operations, role
from corepool.server.rest.control import FAILURES, PREFIX
from corepool.server.rest.protocol import as_json

ADMIN: dict[str, Any] = {"openapi_extra": role("admin"), "responses": FAILURES}


class Status(BaseModel):
    """What the card does now; see the operator's manual."""

    config: str
    ready: bool
    kernels: str = ""  # cold, warming, warm: whether a first inference has to wait for what is compiled once
    cores: list[dict[str, Any]]
    banks: list[dict[str, Any]]
    tenants: list[dict[str, Any]]
    leases: list[dict[str, Any]]
    redeals: list[dict[str, Any]]


class Trace(BaseModel):
    """Events in the format that Perfetto and Chrome read; times in microseconds."""

    traceEvents: list[dict[str, Any]]
    displayTimeUnit: str


class Validation(BaseModel):
    """Where the attacks took place, and what became of each: its name, whether it failed as it must, what was seen."""

    device: str
    attacks: list[dict[str, Any]]


def operations_routes(operations: Operations, guard: Guard) -> APIRouter:
    """For operators, save for traces: tenants get those of their own requests."""
    router = APIRouter(prefix=PREFIX, tags=["operations"])

    @router.get("/status", **ADMIN, response_model=Status, summary="Cores, banks, queues and re-deals")
    async def status(request: Request) -> Response:
        await guard.admin(request)
        return as_json(await asyncio.to_thread(operations.status))

    @router.post("/validate", **ADMIN, response_model=Validation, summary="Attack the isolation of leases")
    async def validate(request: Request) -> Response:
        await guard.admin(request)
        return as_json(await asyncio.to_thread(operations.validate))

    @router.get(
        "/traces/{id}",
        openapi_extra=role("tenant"),
        responses=FAILURES,
        response_model=Trace,
        summary="The stages of a late inference by its x-request-id, for Perfetto",
    )
    async def trace(request: Request) -> Response:
        return as_json(operations.trace(await guard.who(request), request.path_params["id"]))

    return router
