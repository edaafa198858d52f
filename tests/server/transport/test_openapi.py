"""Requests made up from OpenAPI documents, our own and the protocol's: no crash, no answer that is against them.

The protocol's documents (data plane and model repository) are data files of the package that protocol.txt names; make
downloads it, nothing of it is installed or imported.
"""

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from corepool.server.rest.app import bare_app

from .conftest import Service, bearer, image

OURS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
    negative_data_rejection,
)
PROTOCOLS = (not_a_server_error, content_type_conformance, response_schema_conformance)
# What JSON Schema cannot say or says otherwise: bodies that are files, and numbers that are whole but written as 1.0.
NOT_JUDGED_BY_INPUT = ("/infer", "/model", "/calibration", "/index", "/load", "/unload")
OF_ANOTHER_SERVER = ("/infer_stream", "/generate", "/generate_stream")  # in the documents, but no part of the protocol
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def attack(service: Service, document: dict[str, Any], checks: tuple[Any, ...], key: str, examples: int) -> int:
    """Send made-up requests to all operations; returns how many were answered."""
    schema = schemathesis.openapi.from_dict(document)
    sent = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            chosen = tuple(
                check
                for check in checks
                if check is not negative_data_rejection or not operation.path.endswith(NOT_JUDGED_BY_INPUT)
            )

            def run(case: Any) -> None:
                nonlocal sent
                sent += 1
                case.call_and_validate(base_url=service.url, headers=bearer(key), checks=chosen, timeout=60)  # noqa: B023

            made_up = given(case=operation.as_strategy(generation_mode=mode))(run)
            bounded = settings(max_examples=examples, deadline=None, suppress_health_check=SUPPRESSED, derandomize=True)
            try:
                bounded(made_up)()
            except schemathesis.errors.SchemathesisError as error:  # nothing can be wrong with what has no input
                if "negative" not in str(error).lower():
                    raise
            except Exception as error:
                if type(error).__name__ not in ("Unsatisfiable", "SkipTest"):
                    raise
    return sent


def document(service: Service) -> dict[str, Any]:
    made: dict[str, Any] = httpx.get(f"{service.url}/openapi.json").json()
    return made


@pytest.mark.parametrize("key", ["alice", "admin"])
def test_our_own_document_holds(service: Service, key: str) -> None:
    made = document(service)
    assert made == json.loads(json.dumps(bare_app(service.parts).openapi()))
    assert attack(service, made, OURS, key, examples=4) > 100
    assert service.notes.crashes == []


def published(name: str) -> dict[str, Any]:
    """One of the protocol's documents, without what is no part of the protocol and with its slips mended."""
    wheels = sorted(Path(sys.prefix, "share", "protocol").glob("mlserver-*.whl"))
    assert len(wheels) == 1, f"{len(wheels)} packages with the protocol's documents in .venv: run make install"
    with zipfile.ZipFile(wheels[0]) as wheel:
        made: dict[str, Any] = json.loads(wheel.read(f"mlserver/rest/openapi/{name}.json"))
    made["paths"] = {path: each for path, each in made["paths"].items() if not path.endswith(OF_ANOTHER_SERVER)}
    data = made["components"]["schemas"].get("TensorData", {"oneOf": []})["oneOf"]
    if {"type": "bytes"} in data:
        data.remove({"type": "bytes"})  # JSON Schema has no such type
    return made


@pytest.mark.parametrize(("name", "operations"), [("dataplane", 9), ("model_repository", 3)])
def test_the_protocols_documents_hold(service: Service, name: str, operations: int) -> None:
    made = published(name)
    assert len(made["paths"]) == operations
    assert attack(service, made, PROTOCOLS, "alice", examples=8) > 5 * operations
    assert service.notes.crashes == []


def test_all_that_the_protocol_has_is_there(service: Service) -> None:
    """Each operation of its documents is one of ours, with the same method and the same names of statuses."""
    ours = bare_app(service.parts).openapi()["paths"]
    known = {re.sub(r"\{\w+\}", "{}", path): set(methods) for path, methods in ours.items()}
    for name in ("dataplane", "model_repository"):
        for path, methods in published(name)["paths"].items():
            assert set(methods) - {"parameters"} <= known[re.sub(r"\{\w+\}", "{}", path)], path


@pytest.mark.slow
@pytest.mark.parametrize("key", ["alice", "admin"])
def test_documents_hold_for_long(service: Service, key: str) -> None:
    attack(service, document(service), OURS, key, examples=150)
    for name in ("dataplane", "model_repository"):
        attack(service, published(name), PROTOCOLS, key, examples=150)
    assert service.notes.crashes == []


SOUND: list[tuple[str, str, str, Any]] = [
    ("dataplane", "/v2", "GET", None),
    ("dataplane", "/v2/health/live", "GET", None),
    ("dataplane", "/v2/health/ready", "GET", None),
    *(
        ("dataplane", f"/v2/models/{{model_name}}{version}{end}", method, body)
        for version in ("", "/versions/{model_version}")
        for end, method, body in (("", "GET", None), ("/ready", "GET", None), ("/infer", "POST", "an inference"))
    ),
    ("model_repository", "/v2/repository/index", "POST", {"ready": True}),
    ("model_repository", "/v2/repository/models/{model_name}/load", "POST", None),
    ("model_repository", "/v2/repository/models/{model_name}/unload", "POST", None),
]


@pytest.mark.parametrize(("name", "path", "method", "body"), SOUND, ids=[path for _, path, _, _ in SOUND])
def test_sound_answers_are_as_the_protocols_documents_say(
    service: Service, name: str, path: str, method: str, body: Any
) -> None:
    """Made-up requests hardly ever name a model, so each operation is asked once with what is there."""
    schema = schemathesis.openapi.from_dict(published(name))
    tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": image().reshape(-1).tolist()}
    if body == "an inference":
        body = {"inputs": [tensor], "id": "4"}
    values = {"model_name": "shared" if name == "model_repository" else "small", "model_version": "1"}
    case = schema[path][method].Case(
        path_parameters={key: value for key, value in values.items() if f"{{{key}}}" in path},
        **({} if body is None else {"body": body, "media_type": "application/json"}),
    )
    answer = case.call(base_url=service.url, headers=bearer("alice"), timeout=300)  # loading compiles
    assert answer.status_code == 200, answer.text
    case.validate_response(answer, checks=(*PROTOCOLS, status_code_conformance))


def test_an_answer_against_the_document_is_found(service: Service) -> None:
    made = published("dataplane")
    made["components"]["schemas"]["MetadataServerResponse"]["required"].append("colour")
    made["paths"] = {"/v2": made["paths"]["/v2"]}
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - failures come in a group of their own kind
        attack(service, made, PROTOCOLS, "alice", examples=2)
    assert "colour" in f"{caught.value} {getattr(caught.value, 'exceptions', ())}"
