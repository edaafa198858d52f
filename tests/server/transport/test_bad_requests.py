"""Requests that are wrong in one way each: a clear refusal, and the server goes on for everybody else."""

import asyncio
import gzip
import json
import resource
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from corepool.server.rpc.messages import MESSAGES, SERVICE

from .conftest import Service, bearer, image

INFER = "/v2/models/small/infer"


def request(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": image().reshape(-1).tolist()}
    return {"inputs": [{**tensor, **changes}]}


@pytest.fixture(autouse=True)
def still_well(service: Service) -> Iterator[None]:
    """After each test a sound request is answered."""
    yield
    assert service.ask("POST", INFER, json=request()).status_code == 200


def refused(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    text = str(body["error"])
    assert text
    assert "Traceback" not in text
    assert "\n" not in text
    return text


BAD: dict[str, Any] = {
    "no inputs": {},
    "inputs no list": {"inputs": {}},
    "an input no object": {"inputs": [3]},
    "no name": {"inputs": [{"datatype": "INT8", "shape": [1], "data": [1]}]},
    "missing": {"inputs": []},
    "unknown input": {"inputs": [*request()["inputs"], {"name": "zz", "datatype": "INT8", "shape": [1], "data": [1]}]},
    "twice": {"inputs": request()["inputs"] * 2},
    "another type": request(datatype="FP32"),
    "no type": request(datatype=None),
    "another shape": request(shape=[1, 12, 12, 3]),
    "shape that wraps": request(shape=[1 << 33, 1 << 33]),
    "no elements of a huge size": request(shape=[0, 1 << 63], data=[]),
    "negative size": request(shape=[1, 3, -12, -12]),
    "too few data": request(data=[1, 2, 3]),
    "too many data": request(data=[1] * 433),
    "out of range": request(data=[128] * 432),
    "texts": request(data=["1"] * 432),
    "data and size": request(parameters={"binary_data_size": 432}),
    "parameters no object": request(parameters=[1]),
    "parameters an empty list": request(parameters=[]),
    "parameters of all no object": {**request(), "parameters": False},
    "binary size no number": request(parameters={"binary_data_size": "432"}, data=None),
    "id no text": {**request(), "id": 7},
    "priority no number": {**request(), "parameters": {"priority": "high"}},
    "negative timeout": {**request(), "parameters": {"timeout": -1}},
    "lease no text": {**request(), "parameters": {"lease": 5}},
    "unknown output": {**request(), "outputs": [{"name": "nothing"}]},
    "output twice": {**request(), "outputs": [{"name": "t1"}, {"name": "t1"}]},
    "binary flag no flag": {**request(), "outputs": [{"name": "t1", "parameters": {"binary_data": "yes"}}]},
    "outputs no list": {**request(), "outputs": "t1"},
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_wrong_requests_are_refused(service: Service, body: Any) -> None:
    refused(service.ask("POST", INFER, json=body))


def test_what_is_not_built_is_said(service: Service) -> None:
    for more in (
        {**request(), "parameters": {"sequence_id": 4}},
        {**request(), "outputs": [{"name": "t1", "parameters": {"classification": 3}}]},
        request(parameters={"shared_memory_region": "r"}),
    ):
        refused(service.ask("POST", INFER, json=more), 501)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"inputs": "\xff"}', b'"' + b"\\ud800" + b'"', b"[" * 100_000,
     b'{"a":' * 50_000, b"\x00", b"1e99999", b'{"inputs": [' + b"{}," * 5000 + b"{}]}"],
    ids=lambda each: each[:12],
)  # fmt: skip
def test_bodies_that_are_no_request_are_refused(service: Service, content: bytes) -> None:
    refused(service.ask("POST", INFER, content=content))


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "1" * 400, "", "0", "²"])
def test_header_lengths_that_lie_are_refused(service: Service, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    refused(service.ask("POST", INFER, content=json.dumps(request()).encode(), headers=headers))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "sent"), [(432, 431), (432, 433), (431, 431), (433, 433), (0, 0), (1 << 62, 432)])
def test_binary_sizes_that_lie_are_refused(service: Service, size: int, sent: int) -> None:
    tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    refused(service.ask("POST", INFER, content=head + bytes(sent), headers=headers))


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v2/nothing", "/v2/models", "/v2/models/..%2fsecret", "/v2/models/a%00b", "/v2/models/%ff%fe",
     "/v2/models/" + "a" * 5000, "/v2/models/small/versions/0", "/v2/models/small/versions/..%2f1",
     "/v2/models/%0d%0aX:1",
     "/v2/models/secret", "/v2/models/secret/versions/1", "/v2/models/secret/config", "/v2/models/secret/stats",
     "/v2/models/secret/ready", "/v2//models/small", "/v2/corepool/compilations/x", "/v2/corepool/leases/x"],
    ids=lambda path: path[:24],
)  # fmt: skip
def test_what_is_not_there_is_not_found(service: Service, path: str) -> None:
    text = refused(service.ask("GET", path), 404)
    assert all(each.isprintable() for each in text)


@pytest.mark.parametrize("query", ["=0", "afer=5", "after=1&after=2", "after=-1", "after=1e3", "limit=%ff", "limit="])
def test_queries_that_mean_nothing_are_refused(service: Service, query: str) -> None:
    refused(service.ask("GET", f"/v2/corepool/audit?{query}"))
    if "after" not in query and "limit" not in query:
        refused(service.ask("PUT", f"/v2/corepool/models/x/versions/1/model?{query}", content=b"x"))


def test_not_yours_looks_like_not_there(service: Service) -> None:
    for suffix in ("", "/config", "/stats", "/ready", "/versions/1"):
        other = service.ask("GET", f"/v2/models/secret{suffix}")
        absent = service.ask("GET", f"/v2/models/absent{suffix}")
        assert other.status_code == absent.status_code
        assert other.text.replace("secret", "absent") == absent.text
    body = request()
    other, absent = (service.ask("POST", f"/v2/models/{name}/infer", json=body) for name in ("secret", "absent"))
    assert (other.status_code, other.text.replace("secret", "absent")) == (absent.status_code, absent.text)


def test_methods_that_are_not_allowed_say_which_are(service: Service) -> None:
    answer = service.ask("DELETE", "/v2/models/small/ready")
    assert "not allowed" in refused(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("key", [None, "", "nobody else", "Basic a2V5"])
def test_no_sound_key_is_no_entry(service: Service, key: str | None) -> None:
    headers = {} if key is None else {"authorization": key}
    answer = service.ask("POST", INFER, key=None, headers=headers, json=request())
    refused(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_bodies_over_the_limit_are_refused_before_they_are_read(service: Service) -> None:
    limit = service.settings.limits.body_bytes
    refused(service.ask("POST", INFER, content=b"x" * (limit + 1)), 413)

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    begin = time.monotonic()
    refused(service.ask("POST", INFER, content=endless()), 413)
    assert time.monotonic() - begin < 20


def test_compressed_bodies_that_lie_are_refused(service: Service) -> None:
    bomb = gzip.compress(bytes(200 << 20), 1)
    assert len(bomb) < service.settings.limits.body_bytes
    sound = gzip.compress(json.dumps(request()).encode())
    for content, encoding, status in (
        (bomb, "gzip", 413),
        (b"no gzip", "gzip", 400),
        (sound[:-9], "gzip", 400),
        (sound + b"x", "gzip", 400),
        (sound, "br", 501),
    ):
        refused(service.ask("POST", INFER, content=content, headers={"Content-Encoding": encoding}), status)
    plain = json.dumps(request()).encode()
    for content, encoding in ((sound, "gzip"), (sound, "X-GZip"), (plain, "identity"), (plain, "")):
        assert service.ask("POST", INFER, content=content, headers={"Content-Encoding": encoding}).status_code == 200
    for method, path in (("POST", "/v2/repository/index"), ("PUT", "/v2/corepool/models/packed/versions/1/model"),
                         ("POST", "/v2/corepool/leases")):  # fmt: skip
        refused(service.ask(method, path, content=sound, headers={"Content-Encoding": "gzip"}))


def raw(service: Service, data: bytes, wait_s: float = 10.0) -> bytes:
    """What the server answers to these bytes until it closes."""
    with socket.create_connection(("127.0.0.1", service.ports.rest), timeout=wait_s) as connection:
        connection.sendall(data)
        got = b""
        while block := connection.recv(65536):
            got += block
    return got


def head(*lines: str) -> bytes:
    return "\r\n".join(
        [f"POST {INFER} HTTP/1.1", "Host: x", "Authorization: Bearer key-alice", *lines, "", ""]
    ).encode()


RAW = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "many headers": head(*(f"X-{n}: 1" for n in range(5000))),
    "long header": head("X: " + "y" * 200_000),
    "long path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": head("Content-Length: 1", "Content-Length: 2"),
    "length and chunks": head("Content-Length: 4", "Transfer-Encoding: chunked"),
    "length no number": head("Content-Length: 4x"),
    "huge length": head("Content-Length: 99999999999999999999999"),
    "chunk no number": head("Transfer-Encoding: chunked") + b"zz\r\n",
    "less than announced": head("Content-Length: 1000") + b"{}",
    "chunks without end": head("Transfer-Encoding: chunked") + b"5\r\nabcde\r\n",
    "headers without end": b"GET /v2 HTTP/1.1\r\nHost: x\r\n",
    "nothing at all": b"",
    "path of raw bytes": b"GET /v2/\xff\xfe\x80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("data", RAW.values(), ids=RAW.keys())
def test_connections_that_break_the_rules_are_answered_and_closed(service: Service, data: bytes) -> None:
    got = raw(service, data)
    status = int(got.split(b" ", 2)[1])
    assert status in (400, 404, 413), got[:200]
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize("rubbish", [b"RUBBISH\r\n\r\n", b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 200_000])
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_sound_before_rubbish_is_answered(service: Service, rubbish: bytes, count: int) -> None:
    """Requests that are sent one after the other without waiting, and then what is none."""
    body = json.dumps(request()).encode()
    got = raw(service, (head(f"Content-Length: {len(body)}") + body) * count + rubbish)
    assert [each[:3] for each in got.split(b"HTTP/1.1 ")[1 : count + 1]] == [b"200"] * count, got[:300]
    assert got.count(b"HTTP/1.1 ") <= count + 1


@pytest.mark.parametrize("start", [b"GET /", b"GET /v2 HTTP/1.1\r\nX: ", b"GET /v2 HTTP/1.1\r\nX"])
def test_a_line_without_end_fills_no_memory(service: Service, start: bytes) -> None:
    """The parser tells of a line when it is over: what came before that is counted as well."""
    sent, begin = 0, time.monotonic()
    with socket.create_connection(("127.0.0.1", service.ports.rest), timeout=10) as connection:
        connection.sendall(start)
        try:
            while sent < 64 << 20 and not select.select([connection], [], [], 0)[0]:
                sent += connection.send(b"y" * 65536)
        except OSError:
            pass
        got = connection.recv(65536)
    assert got.startswith(b"HTTP/1.1 400"), got
    assert b"longer than" in got
    assert sent < 64 << 20
    assert time.monotonic() - begin < service.settings.limits.header_timeout_s


@pytest.mark.parametrize("cut", [3, 40, 200, 500])
def test_clients_that_leave_are_no_trouble(service: Service, cut: int) -> None:
    body = json.dumps(request()).encode()
    data = head(f"Content-Length: {len(body)}") + body
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", service.ports.rest)) as connection:
            connection.sendall(data[:cut])


def test_an_inference_is_cancelled_when_its_client_leaves(service: Service) -> None:
    body = json.dumps(request()).encode()
    service.engine.gate.clear()
    try:
        with socket.create_connection(("127.0.0.1", service.ports.rest)) as connection:
            connection.sendall(head(f"Content-Length: {len(body)}") + body)
            deadline = time.monotonic() + 10
            while service.parts.plane.in_flight == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert service.parts.plane.in_flight == 1
        while service.parts.plane.in_flight and time.monotonic() < deadline:
            time.sleep(0.01)
        assert service.parts.plane.in_flight == 0
    finally:
        service.engine.gate.set()


def test_more_in_flight_than_the_limit_are_told_when_to_come_back(service: Service) -> None:
    service.engine.gate.clear()

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=30)) as client:
            asked = [
                asyncio.create_task(client.post(service.url + INFER, json=request(), headers=bearer("alice")))
                for _ in range(24)
            ]
            while sum(each.done() for each in asked) < 8:
                await asyncio.sleep(0.05)
            service.engine.gate.set()
            return await asyncio.gather(*asked)

    answers = asyncio.run(flood())
    assert sorted(each.status_code for each in answers) == [200] * 16 + [429] * 8
    for each in answers:
        if each.status_code == 429:
            refused(each, 429)
            assert int(each.headers["retry-after"]) >= 1


def test_slow_connections_keep_nobody_else_out(service: Service) -> None:
    """500 over REST and 50 over gRPC that send a beginning and no more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, FILES[1]), FILES[1]))  # theirs and ours, in one process
    try:
        _slow_connections(service, 500, 50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, FILES)


FILES = resource.getrlimit(resource.RLIMIT_NOFILE)


def _slow_connections(service: Service, rest: int, rpc: int) -> None:
    slow = [socket.create_connection(("127.0.0.1", service.ports.rest)) for _ in range(rest)]
    slow_rpc = [socket.create_connection(("127.0.0.1", service.ports.grpc)) for _ in range(rpc)]
    try:
        for each in slow:
            each.sendall(b"POST /v2/models/small/infer HTTP/1.1\r\nHost: x\r\n")
        for each in slow_rpc:
            each.sendall(b"PRI * HTTP/2.0\r\n")
        begin = time.monotonic()
        assert service.ask("POST", INFER, json=request()).status_code == 200
        assert call(service, "ModelInfer", message().SerializeToString())
        assert time.monotonic() - begin < 5
        time.sleep(service.settings.limits.header_timeout_s)
        for each in slow:
            each.settimeout(10)
            assert each.recv(12) == b"HTTP/1.1 400"
    finally:
        for each in [*slow, *slow_rpc]:
            each.close()


def call(service: Service, name: str, data: bytes, key: str | None = "alice", timeout: float = 30) -> bytes:
    with grpc.insecure_channel(service.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        method = channel.unary_unary(f"/{SERVICE}/{name}")
        return bytes(method(data, timeout=timeout, metadata=tuple(bearer(key).items())))


def message(**changes: Any) -> Any:
    made = MESSAGES["ModelInferRequest"](model_name="small", raw_input_contents=[image().tobytes()])
    made.inputs.add(**{"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], **changes})
    return made


def with_contents(**values: Any) -> Any:
    made = message()
    del made.raw_input_contents[:]
    for name, each in values.items():
        getattr(made.inputs[0].contents, name).extend(each)
    return made


def doubled() -> Any:
    made = message()
    made.inputs.add().CopyFrom(made.inputs[0])
    made.raw_input_contents.append(image().tobytes())
    return made


def with_raw(*contents: bytes) -> Any:
    made = message()
    del made.raw_input_contents[:]
    made.raw_input_contents.extend(contents)
    return made


BAD_MESSAGES: dict[str, Any] = {
    "no message": b"\xff\xff\xff\xff",
    "empty": MESSAGES["ModelInferRequest"](model_name="small"),
    "type": message(datatype="FP32"),
    "no type": message(datatype="TENSOR"),
    "shape": message(shape=[1, 3, 12, 13]),
    "negative": message(shape=[-1, 3, 12, 12]),
    "wraps": message(shape=[1 << 62, 4]),
    "name": message(name="zz"),
    "twice": doubled(),
    "short": with_raw(image().tobytes()[1:]),
    "long": with_raw(image().tobytes() + b"x"),
    "two raws": with_raw(image().tobytes(), b""),
    "wrong list": with_contents(fp32_contents=[1.0] * 432),
    "two lists": with_contents(int_contents=[1] * 432, fp32_contents=[1.0]),
    "too few": with_contents(int_contents=[1] * 431),
    "out of range": with_contents(int_contents=[128] * 432),
}


@pytest.mark.parametrize("bad", BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys())
def test_wrong_messages_are_refused(service: Service, bad: Any) -> None:
    data = bad if isinstance(bad, bytes) else bad.SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        call(service, "ModelInfer", data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
    assert caught.value.details()


def test_codes_of_other_refusals(service: Service) -> None:
    sound = message().SerializeToString()
    absent = MESSAGES["ModelInferRequest"](model_name="secret").SerializeToString()
    cases = [
        ("ModelInfer", sound, None, grpc.StatusCode.UNAUTHENTICATED),
        ("ModelInfer", absent, "alice", grpc.StatusCode.NOT_FOUND),
        ("ModelInfer", sound, "admin", grpc.StatusCode.INVALID_ARGUMENT),
        ("SystemSharedMemoryStatus", b"", "alice", grpc.StatusCode.UNIMPLEMENTED),
        ("ModelInfer", bytes(service.settings.limits.body_bytes * 2), "alice", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ]
    for name, data, key, code in cases:
        with pytest.raises(grpc.RpcError) as caught:
            call(service, name, data, key)
        assert caught.value.code() is code, (name, caught.value)


def test_typed_contents_give_the_same_answer_as_raw_ones(service: Service) -> None:
    kinds = MESSAGES["ModelInferResponse"]
    raw_answer = kinds.FromString(call(service, "ModelInfer", message().SerializeToString()))
    typed = with_contents(int_contents=image().reshape(-1).tolist())
    typed_answer = kinds.FromString(call(service, "ModelInfer", typed.SerializeToString()))
    assert not typed_answer.raw_output_contents
    values = np.array(typed_answer.outputs[0].contents.fp32_contents, np.float32)
    assert values.tobytes() == raw_answer.raw_output_contents[0]


def test_deadlines_that_pass_cancel_what_waits(service: Service) -> None:
    service.engine.gate.clear()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            call(service, "ModelInfer", message().SerializeToString(), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(grpc.RpcError):
            call(service, "ModelInfer", message().SerializeToString(), timeout=0.001)
        deadline = time.monotonic() + 10
        while service.parts.plane.in_flight and time.monotonic() < deadline:
            time.sleep(0.01)
        assert service.parts.plane.in_flight == 0
    finally:
        service.engine.gate.set()


def test_no_request_crashed_the_server(service: Service) -> None:
    assert service.notes.crashes == []
