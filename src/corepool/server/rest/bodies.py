"""JSON bodies of the control routes: what may be in them, read only after the asker is known.

It must not know routes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from corepool.errors import RequestError, TooLargeError
from corepool.server.rest.gate import read_body, refuse_packed
from corepool.server.tensors import shown

MAX_BYTES = 1 << 16  # of such a body
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Cores = Annotated[int, Field(ge=1, le=4096)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]


class Body(BaseModel):
    """A body: unknown keys are refused, and a number is no text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NewLease(Body):
    """Cores to lease: exactly ``cores``, or from ``minimum`` to ``maximum`` as the policy deals them."""

    name: Name
    cores: Cores | None = None
    minimum: Cores | None = None
    maximum: Cores | None = None
    sharing: Literal["private", "public"] = "private"
    switching: Literal["task", "layer"] = "task"
    ttl_s: Seconds | None = None

    def bounds(self) -> tuple[int, int]:
        """Minimum and maximum. Raises RequestError."""
        return bounds(self.cores, self.minimum, self.maximum)


class Resize(Body):
    """Another number of cores for a lease."""

    cores: Cores | None = None
    minimum: Cores | None = None
    maximum: Cores | None = None

    def bounds(self) -> tuple[int, int]:
        """Minimum and maximum. Raises RequestError."""
        return bounds(self.cores, self.minimum, self.maximum)


class TenantLimits(Body):
    """What a tenant may do; null for the server's own limit."""

    quota_cores: Cores | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    requests_per_s: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    body_bytes: Annotated[int, Field(ge=1, le=1 << 40)] | None = None
    in_flight: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class NewTenant(TenantLimits):
    """A tenant to add."""

    name: Name
    quota_cores: Cores


class NewKey(Body):
    """A key to make."""

    label: Annotated[str, Field(max_length=100)] = ""


def bounds(cores: int | None, minimum: int | None, maximum: int | None) -> tuple[int, int]:
    """Minimum and maximum of a lease. Raises RequestError unless they are given one way and in order."""
    if (cores is None) == (minimum is None and maximum is None):
        raise RequestError("give either cores, or minimum and maximum")
    low = cores if cores is not None else (1 if minimum is None else minimum)
    high = cores if cores is not None else (low if maximum is None else maximum)
    if low > high:
        raise RequestError(f"minimum {low} is more than maximum {high}")
    return low, high


Kind = TypeVar("Kind", bound=Body)


async def read(request: Request, kind: type[Kind]) -> Kind:
    """The request's body as one of the kinds above. Raises RequestError that lists what is wrong, TooLargeError."""
    refuse_packed(request.headers.get("content-encoding"))
    body = await read_body(request.receive)
    if len(body) > MAX_BYTES:
        raise TooLargeError(f"the body has {len(body)} bytes; the limit is {MAX_BYTES} here")
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        found = [f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}" for each in error.errors()[:10]]
        raise RequestError(f"the request is malformed: {'; '.join(found)}") from None


def document(kind: type[Body], required: bool = True) -> dict[str, Any]:
    """OpenAPI's view of a body."""
    return {
        "requestBody": {"required": required, "content": {"application/json": {"schema": kind.model_json_schema()}}}
    }


FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def check_queries(request: Request, *known: str) -> None:
    """Raise RequestError for a query parameter that means nothing here, or is there twice."""
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            raise RequestError(f"there is no query parameter {shown(name)} here, only {' and '.join(known)}")
    if len(set(names)) < len(names):
        raise RequestError("a query parameter is there twice")


def query_flag(request: Request, name: str, default: bool) -> bool:
    """A query parameter that is true or false. Raises RequestError."""
    value = request.query_params.get(name)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise RequestError(f"{name} must be true or false")
    return value == "true"


def query_number(request: Request, name: str, default: int, most: int) -> int:
    """A query parameter that counts. Raises RequestError."""
    value = request.query_params.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit()) or len(value) > 18 or int(value) > most:
        raise RequestError(f"{name} must be a whole number from 0 to {most}")
    return int(value)


def query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's view of a query parameter."""
    return {"name": name, "in": "query", "required": False, "schema": schema}


IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    "description": "A repeated call with the same key changes nothing more and gets the first answer.",
}


def idempotency_key(request: Request) -> str | None:
    """The header Idempotency-Key. Raises RequestError for one that is empty or too long."""
    value = request.headers.get("idempotency-key")
    if value is not None and not 1 <= len(value) <= 200:
        raise RequestError("Idempotency-Key must have 1 to 200 characters")
    return value
