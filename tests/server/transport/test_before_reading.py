"""What is decided before a request's body is read: who asks, and whether he may. Nothing is sent but the beginning."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from corepool.errors import TooManyRequestsError
from corepool.server.api import Identity
from corepool.server.rpc.messages import MESSAGES, SERVICE
from support.toy_engine import ToyAccess

from .conftest import Service, bearer, image

CALL, STREAM = f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer"


def sound() -> bytes:
    made = MESSAGES["ModelInferRequest"](model_name="small", raw_input_contents=[image().tobytes()])
    made.inputs.add(name="input", datatype="INT8", shape=[1, 3, 12, 12])
    data: bytes = made.SerializeToString()
    return data


@contextmanager
def nothing_sent() -> Iterator[Iterator[bytes]]:
    """Requests of which none ever comes."""
    over = threading.Event()

    def requests() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    try:
        yield requests()
    finally:
        over.set()


def refuse(self: ToyAccess, who: Identity, body_bytes: int) -> int:
    raise TooManyRequestsError("not now", 3.0)


@pytest.mark.parametrize("path", [CALL, STREAM])
def test_a_stranger_is_refused_before_his_message_is_read(service: Service, path: str) -> None:
    with grpc.insecure_channel(service.grpc) as channel, nothing_sent() as requests:
        call = channel.stream_stream(path)(requests, timeout=30)
        with pytest.raises(grpc.RpcError) as refused:
            next(call)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_who_asks_too_often_is_refused_before_his_message_is_read(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyAccess, "admit", refuse)
    key = tuple(bearer("alice").items())
    with (
        grpc.insecure_channel(service.grpc) as channel,
        nothing_sent() as requests,
        pytest.raises(grpc.RpcError) as refused,
    ):
        channel.stream_unary(CALL)(requests, timeout=30, metadata=key)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(refused.value.trailing_metadata())["retry-after"] == "3"


def test_a_tenants_own_limit_holds_for_messages(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    data, key = sound(), tuple(bearer("alice").items())
    with grpc.insecure_channel(service.grpc) as channel:
        for limit, code in ((len(data), None), (len(data) - 1, grpc.StatusCode.RESOURCE_EXHAUSTED)):
            monkeypatch.setattr(ToyAccess, "admit", lambda self, who, count, limit=limit: limit)
            if code is None:
                assert channel.unary_unary(CALL)(data, timeout=30, metadata=key)
                continue
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(CALL)(data, timeout=30, metadata=key)
            assert refused.value.code() is code
            assert str(limit) in refused.value.details()


def test_a_call_without_a_request_and_one_with_two(service: Service) -> None:
    """Clients that do not follow the definition: none is an error, of two the first is answered."""
    data, key = sound(), tuple(bearer("alice").items())
    with grpc.insecure_channel(service.grpc) as channel:
        call = channel.stream_unary(CALL)
        with pytest.raises(grpc.RpcError) as refused:
            call(iter(()), timeout=30, metadata=key)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert MESSAGES["ModelInferResponse"].FromString(call(iter((data, data)), timeout=30, metadata=key)).outputs


@pytest.mark.parametrize("name", ["ServerLive", "ServerReady", "ServerMetadata"])
def test_what_strangers_may_ask_is_not_read_at_all(service: Service, name: str) -> None:
    with grpc.insecure_channel(service.grpc) as channel, nothing_sent() as requests:
        assert channel.stream_unary(f"/{SERVICE}/{name}")(requests, timeout=30)
    with grpc.insecure_channel(service.grpc) as channel:
        assert channel.unary_unary(f"/{SERVICE}/{name}")(b"", timeout=30)


def test_calls_that_are_given_up_are_written_down_so(service: Service) -> None:
    admitted = service.engine.gate
    admitted.clear()
    try:
        with grpc.insecure_channel(service.grpc) as channel:
            metadata = (*bearer("alice").items(), ("x-request-id", "given-up"))
            call = channel.unary_unary(CALL).future(sound(), timeout=30, metadata=metadata)
            until(lambda: service.parts.plane.in_flight == 1)
            call.cancel()
            until(lambda: line_of(service, "given-up") is not None)
    finally:
        admitted.set()
    line = line_of(service, "given-up")
    assert line is not None
    assert line["status"] == grpc.StatusCode.CANCELLED.value[0]


def line_of(service: Service, ident: str) -> dict[str, Any] | None:
    """What was written down about a request."""
    return next((values for _, values in service.notes.lines if values.get("id") == ident), None)


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def begin(service: Service, length: int, key: str = "alice", more: str = "") -> socket.socket:
    """The head of an inference, and nothing of its body."""
    client = socket.create_connection(("127.0.0.1", service.ports.rest), 30)
    head = f"POST /v2/models/small/infer HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-{key}\r\n{more}"
    client.sendall(f"{head}content-length: {length}\r\n\r\n".encode())
    return client


def answer(file: Any) -> tuple[int, dict[str, str]]:
    status = int(file.readline().split()[1])
    headers = {}
    while line := file.readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    assert "error" in json.loads(file.read(int(headers["content-length"])))
    return status, headers


def test_who_asks_too_often_is_told_from_the_head_alone(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stays: what comes of the body is thrown away, and the next request is answered."""
    monkeypatch.setattr(ToyAccess, "admit", refuse)
    with begin(service, 600_000) as client, client.makefile("rb") as file:
        status, headers = answer(file)
        assert (status, headers["retry-after"], headers.get("connection")) == (429, "3", None)
        monkeypatch.undo()
        client.sendall(bytes(600_000))
        data = json.dumps({"inputs": []}).encode()
        head = "POST /v2/models/small/infer HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-alice\r\n"
        client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        assert answer(file)[0] == 400


def test_what_is_large_is_not_thrown_away_but_cut_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyAccess, "admit", refuse)
    monkeypatch.setattr("corepool.server.rest.gate.THROWN_BYTES", 100_000)
    with begin(service, 600_000) as client, client.makefile("rb") as file:
        status, headers = answer(file)
        assert (status, headers["connection"]) == (429, "close")
        assert file.read() == b""


def test_a_refused_body_that_never_comes_holds_no_connection(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyAccess, "admit", refuse)
    monkeypatch.setattr("corepool.server.rest.gate.THROWN_S", 0.2)
    with begin(service, 600_000) as client, client.makefile("rb") as file:
        assert answer(file)[0] == 429
        assert file.read() == b""


def test_more_than_a_tenant_may_have_in_flight_is_told_from_the_head_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyAccess, "in_flight_limit", lambda self, tenant: 2)
    with begin(service, 600_000), begin(service, 600_000):  # two that are under way
        until(lambda: service.parts.turnstile._inside["alice"] == 2)
        with begin(service, 600_000) as client, client.makefile("rb") as file:
            status, headers = answer(file)
            assert status == 429
            assert int(headers["retry-after"]) >= 1
        with (
            grpc.insecure_channel(service.grpc) as channel,
            nothing_sent() as requests,
            pytest.raises(grpc.RpcError) as refused,
        ):
            channel.stream_unary(CALL)(requests, timeout=30, metadata=tuple(bearer("alice").items()))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert service.ask("POST", "/v2/models/secret/infer", key="bob", json={"inputs": []}).status_code == 400
    until(lambda: not service.parts.turnstile._inside)


def test_refusals_count_for_the_tenant_that_was_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    before = service.parts.traffic.counts().get(("rest", "alice", "429"), 0)
    monkeypatch.setattr(ToyAccess, "admit", refuse)
    assert service.ask("GET", "/v2/models/small").status_code == 429
    until(lambda: service.parts.traffic.counts().get(("rest", "alice", "429"), 0) == before + 1)
