"""Every route with every role, against the table in roles.toml."""

import itertools
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fastapi import FastAPI
from starlette.routing import Route

from corepool.server.api import Identity, LeaseRequest, Role
from corepool.server.app import assembled
from corepool.server.logging import set_up
from corepool.server.rest.app import bare_app
from corepool.server.rpc.messages import CALLS, MESSAGES, SERVICE, STREAMS
from corepool.server.settings import Settings
from corepool.server.store import TenantRow
from corepool.server.tenants import SYSTEM

from .conftest import Service, bearer, image

WHOLE = tomllib.loads(Path(__file__).with_name("roles.toml").read_text(encoding="utf-8"))
TABLE = {route: row for route, row in WHOLE.items() if not route.startswith("gRPC ")}
OVER_GRPC = {route.removeprefix("gRPC "): row for route, row in WHOLE.items() if route not in TABLE}
ROLES = (None, "alice", "bob", "admin")
NUMBERS = itertools.count()


def routes(app: FastAPI) -> set[str]:
    """What the application answers, told by its routes themselves: also what its document would hide."""
    found: set[str] = set()
    waiting = list(app.routes)
    while waiting:
        route = waiting.pop()
        inner = getattr(route, "original_router", None)  # of routers that were included
        if inner is not None:
            waiting += inner.routes
            continue
        assert isinstance(route, Route), f"{route} is of a kind that the table does not know"
        found |= {f"{method} {route.path}" for method in (route.methods or ()) if method != "HEAD"}
    return found - {"GET /openapi.json"}


def test_the_table_has_all_routes_and_no_other(service: Service) -> None:
    assert routes(bare_app(service.parts)) == set(TABLE)


def test_a_server_has_no_route_beyond_the_table(tmp_path: Path) -> None:
    """As it is put together for users, with all of its parts."""
    settings = Settings(state_dir=tmp_path / "state", config="tiny")
    with assembled(settings, set_up("error", "json")) as server:
        assert routes(bare_app(server.parts)) == set(TABLE)


def test_a_route_that_the_table_lacks_is_found(service: Service) -> None:
    app = bare_app(service.parts)

    @app.get("/v2/corepool/secret", include_in_schema=False)
    def secret() -> None: ...

    assert routes(app) - set(TABLE) == {"GET /v2/corepool/secret"}


def test_the_table_has_all_calls() -> None:
    assert set(OVER_GRPC) == set(CALLS)


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
    if "/traces/" in path:
        tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": image().reshape(-1).tolist()}
        asked = {"json": {"inputs": [tensor]}, "headers": {"x-request-id": name}}
        assert service.ask("POST", "/v2/models/small/infer", **asked).status_code == 200
        values["{id}"] = lambda: name
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


def message(service: Service, name: str) -> bytes:
    """A request about something of alice's that is there."""
    made = MESSAGES[CALLS[name][0]]()
    fields = {each.name for each in made.DESCRIPTOR.fields}
    model = "small"
    if name == "RepositoryModelUnload":
        model = f"n{next(NUMBERS)}"
        service.engine.loaded["alice", model] = dict(service.engine.loaded["alice", "small"])
    for field in {"name", "model_name"} & fields:
        setattr(made, field, model)
    if "raw_input_contents" in fields:
        made.inputs.add(name="input", datatype="INT8", shape=[1, 3, 12, 12])
        made.raw_input_contents.append(image().tobytes())
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("name", OVER_GRPC)
@pytest.mark.parametrize("role", ROLES, ids=str)
def test_call_and_role(service: Service, name: str, role: str | None) -> None:
    data, code = message(service, name), "OK"
    with grpc.insecure_channel(service.grpc) as channel:
        try:
            if name in STREAMS:
                call = channel.stream_stream(f"/{SERVICE}/{name}")
                list(call(iter([data]), timeout=30, metadata=tuple(bearer(role).items())))
            else:
                channel.unary_unary(f"/{SERVICE}/{name}")(data, timeout=30, metadata=tuple(bearer(role).items()))
        except grpc.RpcError as error:
            code = error.code().name
    assert code == OVER_GRPC[name]["status"][ROLES.index(role)]


def test_an_operator_cannot_act_for_a_tenant_that_is_none(service: Service) -> None:
    for method, path, more in (
        ("GET", "/v2/models/small", {}),
        ("PUT", "/v2/corepool/models/new/versions/1/model", {"content": b"no model"}),
        ("POST", "/v2/corepool/leases", {"json": {"name": "l", "cores": 1}}),
    ):
        answer = service.ask(method, path, key="admin", headers={"Corepool-Tenant": "nobody"}, **more)
        assert answer.status_code == 404
        assert "there is no tenant 'nobody'" in answer.json()["error"]
    metadata = (*bearer("admin").items(), ("corepool-tenant", "nobody"))
    with grpc.insecure_channel(service.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/RepositoryIndex")(b"", timeout=30, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_an_operator_acts_for_a_tenant_that_it_names(service: Service) -> None:
    named = {"Corepool-Tenant": "alice"}
    assert service.ask("GET", "/v2/models/small", key="admin", headers=named).status_code == 200
    assert service.ask("GET", "/v2/models/small", key="alice", headers=named).status_code == 200
    assert service.ask("GET", "/v2/models/small", key="bob", headers=named).status_code == 403
