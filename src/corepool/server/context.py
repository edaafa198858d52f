"""Who asks and for whom, and who writes requests down: what both transports need before a request reaches its place.

It must not know HTTP or gRPC.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from corepool.errors import NotFoundError, PermissionDeniedError, RequestError
from corepool.server.api import Access, Identity, Role
from corepool.server.tensors import shown

TENANT_HEADER = "Corepool-Tenant"  # an operator's wish to act for a tenant


class RequestLog(Protocol):
    """Who writes down requests."""

    def request(
        self, method: str, path: str, status: int, seconds: float, request_id: str, source: str, tenant: str = ""
    ) -> None: ...

    def crashed(self, request_id: str, error: BaseException) -> None: ...


def acting_for(access: Access, who: Identity, tenant: str) -> Identity:
    """An operator who acts for a tenant; tenants can name themselves only. Raises NotFoundError and
    PermissionDeniedError."""
    if who.role is Role.ADMIN:
        if not access.knows(tenant):
            raise NotFoundError(f"there is no tenant {shown(tenant)} to act for")
        return replace(who, tenant=tenant)
    if who.tenant != tenant:
        raise PermissionDeniedError(f"the key is not one of tenant {shown(tenant)}")
    return who


def require_tenant(who: Identity) -> Identity:
    """``who``, if a tenant is meant. Raises RequestError."""
    if not who.tenant:
        raise RequestError(f"an operator must name the tenant to act for: --tenant NAME, or the header {TENANT_HEADER}")
    return who
