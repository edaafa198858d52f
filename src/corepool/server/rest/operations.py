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
    cores: list[dict[str, Any]]
    banks: list[dict[str, Any]]
    tenants: list[dict[str, Any]]
    leases: list[dict[str, Any]]
    redeals: list[dict[str, Any]]


def operations_routes(operations: Operations, guard: Guard) -> APIRouter:
    """For operators only."""
    router = APIRouter(prefix=PREFIX, tags=["operations"])

    @router.get("/status", **ADMIN, response_model=Status, summary="Cores, banks, queues and re-deals")
    async def status(request: Request) -> Response:
        await guard.admin(request)
        return as_json(await asyncio.to_thread(operations.status))

    return router
