"""What is decided before a request's body is read: who asks, and whether he may. Nothing is sent but the beginning."""

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
