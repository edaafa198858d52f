"""What the routes have at hand: the server's parts, who asks, and what a route demands of him.

It must not know single routes.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request

from corepool.errors import PermissionDeniedError
from corepool.server.api import Access, Identity, Leases, Role
from corepool.server.context import TENANT_HEADER, acting_for, require_tenant
from corepool.server.dataplane import DataPlane
from corepool.server.library import Library
from corepool.server.tenants import Tenants
from corepool.server.traffic import Traffic
from corepool.server.turnstile import Turnstile


class Operations(Protocol):
    """What operators can ask of the server beyond tenants and leases."""

    def status(self) -> dict[str, Any]:
        """What the card does now."""
        ...

    def trace(self, who: Identity, ident: str) -> dict[str, Any]:
        """What became of a request, by its id. Raises NotFoundError."""
        ...

    def validate(self) -> dict[str, Any]:
        """Attacks on the isolation of leases (``attacks``), and where they took place (``device``). Raises
        UnavailableError if that runs already or no two cores can be had."""
        ...


@dataclass(frozen=True)
class Parts:
    """All that REST translates to."""

    plane: DataPlane
    access: Access
    leases: Leases
    library: Library
    tenants: Tenants | None = None  # None: no routes for them
    operations: Operations | None = None  # likewise
    turnstile: Turnstile = field(default_factory=lambda: Turnstile(256))
    traffic: Traffic = field(default_factory=Traffic)  # what was answered


def headers_of(scope: MutableMapping[str, Any]) -> Mapping[str, str]:
    """A request's headers by their names in small letters; of several alike the first. Read once."""
    found: Mapping[str, str] | None = scope.get("by_name")
    if found is None:
        found = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        scope["by_name"] = found
    return found


class Guard:
    """Says who asks."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def who(self, request: Request) -> Identity:
        """The key's identity; an operator may name a tenant to act for. Raises AuthenticationError,
        PermissionDeniedError and TooManyRequestsError."""
        scope = request.scope
        client, headers = scope.get("client"), headers_of(scope)
        who = await self._access.identify(headers.get("authorization"), client[0] if client else "")
        scope["tenant"] = who.tenant
        announced = headers.get("content-length", "0")
        uploads = scope.get("is_upload", False)  # files have a limit of their own
        limit = self._access.admit(who, 0 if uploads or not announced.isdigit() else int(announced[:20]))
        if not uploads:
            scope["body_limit"] = limit
        tenant = headers.get(TENANT_HEADER.lower())
        if tenant is not None:
            who = acting_for(self._access, who, tenant)
        scope["tenant"] = who.tenant
        return who

    async def tenant(self, request: Request) -> Identity:
        """As ``who``, but there must be a tenant."""
        return require_tenant(await self.who(request))

    def most(self, who: Identity) -> int:
        """Inferences that his tenant may have under way."""
        return self._access.in_flight_limit(who.tenant)

    async def admin(self, request: Request) -> Identity:
        """As ``who``, but only for operators."""
        who = await self.who(request)
        if who.role is not Role.ADMIN:
            raise PermissionDeniedError("this needs an operator's key")
        return who


def role(kind: str) -> dict[str, Any]:
    """OpenAPI's note of who may use a route: public, tenant (operators too) or admin."""
    security: list[dict[str, list[str]]] = [] if kind == "public" else [{"key": []}]
    return {"security": security, "x-role": kind}
