"""Every route with every role, against the table in roles.toml."""

import itertools
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corepool.server.api import Identity, LeaseRequest, Role
from corepool.server.rest.app import bare_app
from corepool.server.store import TenantRow
from corepool.server.tenants import SYSTEM

from .conftest import Service, image

TABLE = tomllib.loads(Path(__file__).with_name("roles.toml").read_text(encoding="utf-8"))
ROLES = (None, "alice", "bob", "admin")
NUMBERS = itertools.count()


def test_the_table_has_all_routes_and_no_other(service: Service) -> None:
    paths = bare_app(service.parts).openapi()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == set(TABLE)


def test_the_document_tells_roles_as_the_table_does(service: Service) -> None:
    paths = bare_app(service.parts).openapi()["paths"]
    for route, row in TABLE.items():
        method, path = route.split()
        nobody, tenant, _, _ = row["status"]
        kind = "public" if nobody == 200 else "admin" if tenant == 403 else "tenant"
        assert paths[path][method.lower()]["x-role"] == kind, route


def upload(service: Service, name: str) -> dict[str, Any]:
    made = service.ask("PUT", f"/v2/corepool/models/{name}/versions/1/model?load=false", content=b"no model")
    assert made.status_code == 202, made.text
    answer: dict[str, Any] = made.json()
    service.ask("DELETE", f"/v2/corepool/compilations/{answer['id']}")
    return answer


def prepared(service: Service, route: str) -> tuple[str, dict[str, Any]]:
    """A path to something of alice's that is there, and a body."""
    name = f"n{next(NUMBERS)}"
    path = route.split()[1]
    alice = Identity(Role.TENANT, "alice", "alice")
    more: dict[str, Any] = {}
    values: dict[str, Callable[[], str]] = {
        "{model}": lambda: "small",
        "{version}": lambda: "1",
        "{id}": lambda: str(upload(service, name)["id"]),
        "{key_id}": lambda: service.parts.tenants.create_key(alice, "alice").key_id,  # type: ignore[union-attr]
        "{name}": lambda: "alice",
    }
    if "/leases" in path:
        service.engine.create_lease(alice, LeaseRequest(name, 1, 2))
        values["{name}"] = lambda: name
    if path.startswith("/v2/corepool/models"):
        upload(service, name)
        values["{model}"] = lambda: name
    if path.endswith("/unload"):
        service.engine.loaded["alice", name] = dict(service.engine.loaded["alice", "small"])
        values["{model}"] = lambda: name
    if route == "DELETE /v2/corepool/tenants/{name}":
        service.parts.tenants.add(SYSTEM, TenantRow(name, 1))  # type: ignore[union-attr]
        values["{name}"] = lambda: name
    for part, value in values.items():
        if part in path:
            path = path.replace(part, value())
    if path.endswith("/infer"):
        tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": image().reshape(-1).tolist()}
        more["json"] = {"inputs": [tensor]}
    bodies = {
        "POST /v2/corepool/leases": {"name": name, "cores": 1},
        "PATCH /v2/corepool/leases/{name}": {"cores": 1},
        "POST /v2/corepool/tenants": {"name": name, "quota_cores": 1},
        "PATCH /v2/corepool/tenants/{name}": {"priority": 1},
    }
    if route in bodies:
        more["json"] = bodies[route]
    if route.startswith("PUT"):
        more["content"] = b"PK\x03\x04" if "calibration" in route else b"no model"
    return path, more


@pytest.mark.parametrize("route", TABLE)
@pytest.mark.parametrize("role", ROLES, ids=str)
def test_route_and_role(service: Service, route: str, role: str | None) -> None:
    path, more = prepared(service, route)
    answer = service.ask(route.split()[0], path, key=role, **more)
    expected = TABLE[route]["status"][ROLES.index(role)]
    assert answer.status_code == expected, f"{route} as {role}: {answer.text}"
    if expected >= 400:
        assert set(json.loads(answer.text)) == {"error"}


def test_an_operator_acts_for_a_tenant_that_it_names(service: Service) -> None:
    named = {"Corepool-Tenant": "alice"}
    assert service.ask("GET", "/v2/models/small", key="admin", headers=named).status_code == 200
    assert service.ask("GET", "/v2/models/small", key="alice", headers=named).status_code == 200
    assert service.ask("GET", "/v2/models/small", key="bob", headers=named).status_code == 403
