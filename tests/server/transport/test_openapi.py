"""Requests made up from OpenAPI documents, our own and the protocol's: no crash, no answer that is against them.

oip_rest.json says in our own words what the protocol's published document demands: the same paths, the same required
fields and types (open-inference-protocol, Apache-2.0).
"""

import json
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


def test_the_protocols_document_holds(service: Service) -> None:
    made = json.loads(Path(__file__).with_name("oip_rest.json").read_text(encoding="utf-8"))
    assert attack(service, made, PROTOCOLS, "alice", examples=15) > 60
    assert service.notes.crashes == []


@pytest.mark.slow
@pytest.mark.parametrize("key", ["alice", "admin"])
def test_documents_hold_for_long(service: Service, key: str) -> None:
    attack(service, document(service), OURS, key, examples=150)
    assert service.notes.crashes == []


def test_a_sound_answer_is_as_the_protocols_document_says(service: Service) -> None:
    """Made-up requests hardly ever are inferences, so one that is one is checked by itself."""
    made = json.loads(Path(__file__).with_name("oip_rest.json").read_text(encoding="utf-8"))
    schema = schemathesis.openapi.from_dict(made)
    tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": image().reshape(-1).tolist()}
    names = {"MODEL_NAME": "small", "MODEL_VERSION": "1"}
    for path, method, body in (
        ("/v2/", "GET", None),
        ("/v2/models/{MODEL_NAME}/versions/{MODEL_VERSION}", "GET", None),
        ("/v2/models/{MODEL_NAME}/versions/{MODEL_VERSION}/infer", "POST", {"inputs": [tensor], "id": "4"}),
    ):
        case = schema[path][method].Case(
            path_parameters=names if "{" in path else {},
            **({} if body is None else {"body": body, "media_type": "application/json"}),
        )
        answer = case.call(base_url=service.url, headers=bearer("alice"))
        assert answer.status_code == 200, answer.text
        case.validate_response(answer, checks=(*PROTOCOLS, status_code_conformance))


def test_an_answer_against_the_document_is_found(service: Service) -> None:
    made = json.loads(Path(__file__).with_name("oip_rest.json").read_text(encoding="utf-8"))
    made["components"]["schemas"]["server"]["required"].append("colour")
    made["paths"] = {"/v2/": made["paths"]["/v2/"]}
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - failures come in a group of their own kind
        attack(service, made, PROTOCOLS, "alice", examples=2)
    assert "colour" in f"{caught.value} {getattr(caught.value, 'exceptions', ())}"
