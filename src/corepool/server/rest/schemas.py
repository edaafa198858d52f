"""The shapes of JSON bodies, for the OpenAPI document; hot paths do not validate with them.

It must not know routes.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from corepool.server.tensors import DTYPES


class Empty(BaseModel):
    """Nothing to say."""


class Error(BaseModel):
    """Every error's body."""

    error: str


class ServerMetadata(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class Tensor(BaseModel):
    """An input or output of a model."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class ConfigTensor(BaseModel):
    """An input or output, as configurations write it."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(BaseModel):
    """A model's configuration, in the terms of the configuration extension."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    version_policy: dict[str, Any]
    input: list[ConfigTensor]
    output: list[ConfigTensor]


class Duration(BaseModel):
    """How often, and nanoseconds in all."""

    count: int
    ns: int


class ModelStatistics(BaseModel):
    """Counts since the server's start; ``last_inference`` in milliseconds since 1970."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: dict[str, Duration]
    batch_stats: list[Any]


class Statistics(BaseModel):
    """One row for each version of a model."""

    model_stats: list[ModelStatistics]


class ModelIndex(BaseModel):
    """A version of a model in the repository."""

    name: str
    version: str
    state: str
    reason: str
    tenant: str | None = Field(default=None, description="Whose it is, for an operator who acts for no tenant")


class Lease(BaseModel):
    """A lease; ``position`` and ``predicted_wait_s`` while it is queued."""

    tenant: str
    name: str
    state: str
    minimum: int
    maximum: int
    cores: list[int]
    sharing: str
    switching: str
    epoch: int
    ttl_s: float | None
    expires_in_s: float | None
    position: int | None
    predicted_wait_s: float | None
    model: str | None


class Compilation(BaseModel):
    """A compilation; ``status`` is the HTTP status that its error would have had."""

    id: str
    tenant: str
    model: str
    version: str
    state: str
    stage: str
    progress: float
    seconds: float
    error: str | None
    status: int | None


class Tenant(BaseModel):
    """A tenant; null for a limit means the server's own."""

    name: str
    quota_cores: int
    priority: int
    requests_per_s: float | None
    burst: int | None
    body_bytes: int | None
    in_flight: int | None


class AddedTenant(BaseModel):
    """A new tenant; ``key`` is null when a first answer is repeated."""

    tenant: Tenant
    key_id: str
    key: str | None


class Key(BaseModel):
    """A key without its secret."""

    key_id: str
    tenant: str
    label: str
    state: str
    created_at: str


class NewKey(BaseModel):
    """A key, shown this once."""

    key_id: str
    key: str


class Me(BaseModel):
    """Whose key it is."""

    role: str
    tenant: str
    key_id: str
    limits: Tenant | None


class AuditEntry(BaseModel):
    """Who did what, when, with which outcome."""

    id: int
    at: str
    actor: str
    tenant: str
    action: str
    target: str
    outcome: str
    source: str
    detail: str


_PARAMETERS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_NAME: dict[str, Any] = {"type": "string"}
_SHAPE: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 16}
_DATATYPE: dict[str, Any] = {
    "type": "string",
    "enum": list(DTYPES),
}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": _NAME,
        "shape": _SHAPE,
        "datatype": _DATATYPE,
        "parameters": _PARAMETERS,
        "data": {"type": "array", "items": {}},
    },
}
_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": _NAME, "parameters": _PARAMETERS},
            },
        },
    },
}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["model_name", "model_version", "parameters", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": {
            "type": "object",
            "required": ["cycles", "device_us", "cores", "lease"],
            "properties": {
                "cycles": {"type": "integer"},
                "device_us": {"type": "number"},
                "cores": {"type": "integer"},
                "lease": {"type": "string"},
            },
        },
        "outputs": {"type": "array", "items": _TENSOR},
    },
}


def _body(schema: dict[str, Any], required: bool) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


INFER_BODY = _body(_REQUEST, required=True)
INFER_BODY["requestBody"]["description"] = (
    "JSON; or, with the header Inference-Header-Content-Length, JSON of that length followed by the binary data of the"
    " inputs that have binary_data_size, as application/octet-stream."
)
INFER_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Outputs, and what the device tells of the run",
        "content": {
            "application/json": {"schema": _ANSWER},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
INDEX_BODY = _body({"type": "object", "properties": {"ready": {"type": "boolean"}}}, required=False)
LOAD_BODY = _body({"type": "object", "properties": {"parameters": {"type": "object"}}}, required=False)
