"""What was answered is counted by transport, tenant and status, also what never became an inference."""

import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from corepool.server.rpc.messages import MESSAGES, SERVICE
from corepool.server.traces import KEPT
from corepool.server.traffic import STATUSES, CountedLog, Traffic

from .conftest import Notes, Service, bearer, image

INFER = "/v2/models/small/infer"


@contextlib.contextmanager
def counts(service: Service, expected: dict[tuple[str, str, str], int]) -> Iterator[None]:
    """What is done here is counted so; an answer may be there a moment before it is counted."""
    before = Counter(service.parts.traffic.counts())
    yield
    deadline = time.monotonic() + 5
    while (more := Counter(service.parts.traffic.counts()) - before) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert more == expected


def test_refusals_over_rest_are_counted(service: Service) -> None:
    tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": image().reshape(-1).tolist()}
    expected = {
        ("rest", "alice", "200"): 1,
        ("rest", "", "401"): 1,
        ("rest", "alice", "404"): 1,
        ("rest", "alice", "403"): 1,
        ("rest", "alice", "400"): 1,
        ("rest", "", "413"): 1,  # refused before anybody looks at the key
        ("rest", "", "400"): 1,
    }
    with counts(service, expected):
        service.ask("POST", INFER, json={"inputs": [tensor]})
        service.ask("POST", INFER, key=None, json={"inputs": [tensor]})
        service.ask("GET", "/v2/models/none")
        service.ask("GET", "/v2/corepool/status")
        service.ask("POST", INFER, json={"inputs": []})
        service.ask("POST", INFER, content=b"x" * (service.settings.limits.body_bytes + 1))
        with socket.create_connection(("127.0.0.1", service.ports.rest), timeout=10) as connection:
            connection.sendall(b"this is not HTTP\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 400"


def test_refusals_over_grpc_are_counted(service: Service) -> None:
    sound = MESSAGES["ModelInferRequest"](model_name="small", raw_input_contents=[image().tobytes()])
    sound.inputs.add(name="input", datatype="INT8", shape=[1, 3, 12, 12])
    absent = MESSAGES["ModelInferRequest"](model_name="none").SerializeToString()
    expected = {("grpc", "alice", "OK"): 1, ("grpc", "", "UNAUTHENTICATED"): 1, ("grpc", "bob", "NOT_FOUND"): 1}
    with counts(service, expected), grpc.insecure_channel(service.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for data, key in ((sound.SerializeToString(), "alice"), (sound.SerializeToString(), None), (absent, "bob")):
            with contextlib.suppress(grpc.RpcError):
                call(data, timeout=30, metadata=tuple(bearer(key).items()))


def test_statuses_are_grpcs() -> None:
    assert {code.value[0]: code.name for code in grpc.StatusCode} == dict(enumerate(STATUSES))


def test_names_that_clients_make_up_are_no_labels() -> None:
    """Whatever is asked for, counts are as many as tenants, transports and statuses."""
    traffic = Traffic()
    log = CountedLog(Notes(), traffic)
    rng = np.random.default_rng(1)
    for number in range(20_000):
        status = int(rng.choice([200, 404, 429, 0]))
        log.request("GET", f"/v2/models/{number}", status, 0.1, f"{number}", "10.0.0.1", str(rng.choice(["", "a"])))
        log.request("gRPC", f"Call{number}", int(rng.integers(0, 17)), 0.1, f"{number}", "10.0.0.1", "a")
    assert len(traffic.counts()) <= 2 * 4 + 17
    assert sum(traffic.counts().values()) == 40_000
    traffic.forget("a")
    assert {tenant for _, tenant, _ in traffic.counts()} == {""}


def trace(service: Service, ident: str, key: str = "alice") -> Any:
    return service.ask("GET", f"/v2/corepool/traces/{ident}", key=key)


def test_inferences_over_grpc_leave_traces(service: Service) -> None:
    sound = MESSAGES["ModelInferRequest"](model_name="small", raw_input_contents=[image().tobytes()])
    sound.inputs.add(name="input", datatype="INT8", shape=[1, 3, 12, 12])
    data = sound.SerializeToString()
    key = tuple(bearer("alice").items())
    with grpc.insecure_channel(service.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        _, told = call.with_call(data, timeout=30, metadata=(*key, ("x-request-id", "mine.7")))
        assert dict(told.trailing_metadata())["x-request-id"] == "mine.7"
        _, told = call.with_call(data, timeout=30, metadata=(*key, ("x-request-id", "not one!")))
        made_up = dict(told.trailing_metadata())["x-request-id"]
        assert made_up != "not one!"
        with pytest.raises(grpc.RpcError) as caught:
            call(MESSAGES["ModelInferRequest"](model_name="none").SerializeToString(), timeout=30, metadata=key)
        assert dict(caught.value.trailing_metadata())["x-request-id"]
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        answers = stream(iter([data, data]), timeout=30, metadata=(*key, ("x-request-id", "row")))
        assert len(list(answers)) == 2
        assert dict(answers.trailing_metadata())["x-request-id"] == "row"
    for ident in ("mine.7", made_up, "row-1", "row-2"):
        events = trace(service, ident).json()["traceEvents"]
        (whole,) = [each for each in events if each["name"] == "infer small"]
        assert whole["args"]["outcome"] == "success"
        assert whole["args"]["cycles"] > 0
        assert {"queue", "compute"} <= {each["name"] for each in events}
        assert trace(service, ident, "bob").status_code == 404
        assert trace(service, ident, "admin").status_code == 200
    assert KEPT >= 4
    assert json.loads(trace(service, "row-3").text)["error"]
