"""Requests that are small on the way in and would be huge in memory: refused before they are read, and at once."""

import asyncio
import gzip
import json
import os
import time
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest

from corepool.errors import CorepoolError, RequestError, TooLargeError
from corepool.server.rest.codec import load_json
from corepool.server.rest.gate import unpacked
from corepool.server.rpc.messages import MESSAGES, SERVICE
from corepool.server.rpc.wire import MAX_FIELDS, check_size
from corepool.server.tensors import MAX_TEXTS, from_binary

from .conftest import Service, bearer, image

INFER = "/v2/models/small/infer"
BODY = 1_000_000  # bytes; the service under test takes a little more
CALL = f"/{SERVICE}/ModelInfer"
DESCRIPTOR = MESSAGES["ModelInferRequest"].DESCRIPTOR


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


MESSAGES_OF_LITTLE: dict[str, bytes] = {
    "empty inputs": b"\x2a\x00" * (BODY // 2),
    "empty raw contents": b"\x3a\x00" * (BODY // 2),
    "fields that nobody knows": b"\xc2\x3e\x00" * (BODY // 3),
    "numbers that nobody knows": b"\xc0\x3e\x01" * (BODY // 3),
    "empty texts": field(5, field(5, b"\x42\x00" * (BODY // 2))),
    "parameters": b"\x22\x00" * (BODY // 2),
    "parameters of an input": field(5, b"\x22\x00" * (BODY // 2)),
}


@pytest.mark.parametrize("data", MESSAGES_OF_LITTLE.values(), ids=MESSAGES_OF_LITTLE.keys())
def test_messages_of_many_small_fields_are_refused(service: Service, data: bytes) -> None:
    with pytest.raises(RequestError, match=f"more than {MAX_FIELDS} fields"):
        check_size(data, DESCRIPTOR)
    with grpc.insecure_channel(service.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(CALL)(data, metadata=tuple(bearer("alice").items()), timeout=20)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "fields" in refused.value.details()


@pytest.mark.parametrize("path", [(3,), (5, 1), (5, 3)])
def test_numbers_that_grow_eightfold_are_bounded(path: tuple[int, ...]) -> None:
    data = b"\x01" * ((16 << 20) + 1)
    for number in reversed(path):
        data = field(number, data)
    with pytest.raises(TooLargeError, match="raw contents"):
        check_size(field(5, data), DESCRIPTOR)


def test_raw_contents_may_be_large() -> None:
    made = MESSAGES["ModelInferRequest"](model_name="m", raw_input_contents=[bytes(32 << 20)])
    made.inputs.add(name="input", datatype="UINT8", shape=[32 << 20])
    check_size(made.SerializeToString(), DESCRIPTOR)


def test_files_to_load_may_be_large() -> None:
    made = MESSAGES["RepositoryModelLoadRequest"](model_name="m")
    made.parameters["file:1/model.onnx"].bytes_param = bytes(32 << 20)
    check_size(made.SerializeToString(), made.DESCRIPTOR)


@pytest.mark.parametrize("data", [b"\xff" * 100_000, b"\x2a\xff\xff\xff\x0f" + bytes(100_000), b"\x07" * 100_000])
def test_what_is_no_message_is_the_parsers_matter(data: bytes) -> None:
    check_size(data, DESCRIPTOR)
    with pytest.raises(Exception, match=r"[Pp]ars"):
        MESSAGES["ModelInferRequest"].FromString(data)


def test_random_messages_are_let_through_as_the_parser_does() -> None:
    random = np.random.default_rng(5)
    for _ in range(200):
        made = MESSAGES["ModelInferRequest"](model_name="m", id="i" * int(random.integers(1, 99_999)))
        for number in range(int(random.integers(0, 9))):
            tensor = made.inputs.add(name=str(number), shape=random.integers(0, 1 << 62, 5))
            tensor.parameters["p"].int64_param = int(random.integers(0, 1 << 62))
            tensor.contents.fp32_contents.extend(random.random(int(random.integers(0, 20_000))))
        check_size(made.SerializeToString(), DESCRIPTOR)


def test_a_stranger_cannot_have_a_message_read(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr("corepool.server.rpc.service.check_size", lambda data, descriptor: looked.append(len(data)))
    with grpc.insecure_channel(service.grpc) as channel:
        for key, code in ((None, grpc.StatusCode.UNAUTHENTICATED), ("alice", grpc.StatusCode.INVALID_ARGUMENT)):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(CALL)(b"\xff\xff", metadata=tuple(bearer(key).items()), timeout=20)
            assert refused.value.code() is code
    assert looked == [2]


JSON_OF_LITTLE: dict[str, bytes] = {
    "lists": b'{"inputs":[' + b"[]," * (BODY // 3) + b"0]}",
    "objects": b'{"inputs":[' + b"{}," * (BODY // 3) + b"0]}",
    "rows": b'{"inputs":[{"name":"input","datatype":"INT8","shape":[1],"data":[' + b"[]," * (BODY // 3) + b"0]}]}",
}


@pytest.mark.parametrize("body", JSON_OF_LITTLE.values(), ids=JSON_OF_LITTLE.keys())
@pytest.mark.parametrize("packed", [False, True])
def test_json_of_many_small_parts_is_refused(service: Service, body: bytes, packed: bool) -> None:
    headers = {"content-encoding": "gzip"} if packed else {}
    answer = service.ask("POST", INFER, content=gzip.compress(body) if packed else body, headers=headers)
    assert answer.status_code == 400
    assert "lists" in answer.json()["error"]


def test_json_has_a_limit_of_its_own() -> None:
    with pytest.raises(TooLargeError, match="binary"):
        load_json(b" " * (16 << 20) + b"{}")
    assert load_json(b" " * ((16 << 20) - 2) + b"{}") == {}


@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (1, 299, 299, 3)])
def test_nested_tensors_fit(shape: tuple[int, ...]) -> None:
    rows = json.dumps(np.zeros(shape).tolist()).encode()
    assert np.shape(load_json(rows)) == shape


def test_bodies_that_are_no_inferences_have_few_values(service: Service) -> None:
    many = json.dumps({"parameters": {str(number): 0 for number in range(5000)}}).encode()
    assert service.ask("POST", "/v2/repository/models/small/load", content=many).status_code == 400
    lease = json.dumps({"name": "x", **{str(number): 0 for number in range(20_000)}}).encode()
    assert service.ask("POST", "/v2/corepool/leases", content=lease).status_code == 413


def test_texts_have_a_limit() -> None:
    with pytest.raises(RequestError, match="BYTES elements"):
        from_binary("x", "BYTES", (MAX_TEXTS + 1,), bytes(4 * (MAX_TEXTS + 1)))
    assert from_binary("x", "BYTES", (MAX_TEXTS,), bytes(4 * MAX_TEXTS)).shape == (MAX_TEXTS,)


def seconds_and_bytes(work: Callable[[], Any]) -> tuple[float, int]:
    process = psutil.Process(os.getpid())
    before, begin = process.memory_info().rss, time.process_time()
    with pytest.raises(CorepoolError):
        work()
    return time.process_time() - begin, process.memory_info().rss - before


def test_a_refusal_costs_next_to_nothing() -> None:
    for work in (
        lambda: check_size(b"\x2a\x00" * (30 << 20), DESCRIPTOR),
        lambda: load_json(b"[" + b"[]," * (5 << 20) + b"0]"),
    ):
        spent, grown = seconds_and_bytes(work)
        assert spent < 1.0
        assert grown < 64 << 20


def test_a_packed_body_stops_nobody_while_it_is_unpacked(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    true = unpacked

    def slow(*arguments: Any) -> Any:
        time.sleep(1.0)
        return true(*arguments)

    monkeypatch.setattr("corepool.server.rest.protocol.unpacked", slow)
    tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": image().reshape(-1).tolist()}
    body = gzip.compress(json.dumps({"inputs": [tensor]}).encode())

    async def both() -> tuple[int, list[float]]:
        waits: list[float] = []
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
            packed = asyncio.ensure_future(
                client.post(INFER, content=body, headers={**bearer("alice"), "content-encoding": "gzip"})
            )
            while not packed.done():
                begin = time.perf_counter()
                await client.get("/v2/health/live")
                waits.append(time.perf_counter() - begin)
            return (await packed).status_code, waits

    status, waits = asyncio.run(both())
    assert status == 200
    assert max(waits) < 0.9
