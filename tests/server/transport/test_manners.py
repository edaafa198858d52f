"""What clients, proxies and load balancers ask beside the protocol: HEAD, other extensions, memory of bodies."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

from corepool.errors import TooManyRequestsError
from corepool.server.rest.gate import BodyLimits, Gate

from .conftest import Service, bearer, free_ports, image, running

HEADS = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/small", "/v2/models/small/ready", "/openapi.json"]


@pytest.mark.parametrize("path", HEADS)
def test_head_is_get_without_a_body(service: Service, path: str) -> None:
    got, head = service.ask("GET", path), service.ask("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == got.headers[name]
    assert service.notes.lines[-1][1]["method"] == "HEAD"


def test_head_of_what_is_not_there_and_of_what_is_changed(service: Service) -> None:
    assert service.ask("HEAD", "/v2/models/nothing").status_code == 404
    assert service.ask("HEAD", "/v2/models/small", key=None).status_code == 401
    assert service.ask("HEAD", "/v2/models/small/infer").status_code == 405
    assert service.ask("HEAD", "/v2/corepool/leases/none").status_code == 404
    assert service.ask("POST", "/v2/health/live").headers["allow"] == "GET, HEAD"
    assert service.ask("GET", "/v2/models/small/infer").headers["allow"] == "POST"


def test_a_connection_goes_on_after_head(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.ports.rest), 10) as client:
        client.sendall(b"HEAD /v2 HTTP/1.1\r\nhost: x\r\n\r\nGET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"{}"):
            block = client.recv(4096)
            assert block, answer
            answer += block
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"extensions" not in answer


def test_extensions_that_are_not_built_say_so(service: Service) -> None:
    client = over_http.InferenceServerClient(service.rest)
    for ask, words in (
        (lambda: client.get_system_shared_memory_status(headers=bearer("alice")), "shared memory"),
        (lambda: client.register_system_shared_memory("a", "/a", 8, headers=bearer("alice")), "shared memory"),
        (lambda: client.unregister_cuda_shared_memory(headers=bearer("alice")), "shared memory"),
        (lambda: client.get_trace_settings(headers=bearer("alice")), "trace settings"),
        (lambda: client.get_trace_settings("small", headers=bearer("alice")), "trace settings"),
        (lambda: client.update_log_settings({}, headers=bearer("alice")), "logging"),
    ):
        with pytest.raises(InferenceServerException, match=words) as refused:
            ask()
        assert refused.value.status() == "501"
    client.close()
    assert service.ask("POST", "/v2/models/small/generate", json={}).status_code == 501
    assert service.ask("GET", "/v2/models/small/other").status_code == 404


def test_a_stream_says_which_answer_is_the_last(service: Service) -> None:
    answers: list[Any] = []
    came = threading.Semaphore(0)

    def take(result: Any, error: Any) -> None:
        answers.append((result, error))
        came.release()

    tensor = over_grpc.InferInput("input", [1, 3, 12, 12], "INT8")
    tensor.set_data_from_numpy(image())
    with over_grpc.InferenceServerClient(service.grpc) as client:
        client.start_stream(take, headers=bearer("alice"))
        for number in range(3):
            client.async_stream_infer("small", [tensor], request_id=str(number), enable_empty_final_response=True)
        for _ in range(3):
            assert came.acquire(timeout=60)
        client.stop_stream()
    for number, (result, error) in enumerate(answers):
        assert error is None
        assert result.get_response().id == str(number)
        assert result.get_response().parameters["triton_final_response"].bool_param
        assert result.as_numpy("t1") is not None


def test_operators_are_told_whose_models_there_are(service: Service) -> None:
    def index(key: str, **headers: str) -> list[tuple[str | None, str, str]]:
        rows = service.ask("POST", "/v2/repository/index", key=key, headers=headers).json()
        return [(row.get("tenant"), row["name"], row["version"]) for row in rows if row["name"] in ("small", "secret")]

    everybody = [("alice", "small", "1"), ("alice", "small", "2"), ("bob", "secret", "1")]
    assert index("admin") == everybody
    assert index("alice") == [(None, name, version) for tenant, name, version in everybody if tenant == "alice"]
    assert index("admin", **{"corepool-tenant": "bob"}) == [(None, "secret", "1")]
    for _ in range(2):
        tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": image().reshape(-1).tolist()}
        assert service.ask("POST", "/v2/models/small/infer", json={"inputs": [tensor]}).status_code == 200
    own, all_of_them = (
        {
            (row["name"], row["version"]): row["inference_count"]
            for row in service.ask("GET", "/v2/models/stats", key=key).json()["model_stats"]
        }
        for key in ("alice", "admin")
    )
    assert own["small", "2"] >= 2
    assert all_of_them.items() >= own.items()


@pytest.fixture
def narrow(tmp_path: Any) -> Iterator[Service]:
    """A server that holds few bytes of bodies."""
    settings = free_ports()
    limits = settings.limits.model_copy(update={"held_bytes": 9_000_000, "tenant_held_bytes": 4_000_000})
    generator = running(tmp_path, settings.model_copy(update={"limits": limits}))
    made = next(generator)
    yield made
    generator.close()
    assert made.notes.crashes == []


def test_bodies_that_wait_fill_no_more_than_their_room(narrow: Service) -> None:
    def begin(key: str) -> socket.socket:
        """Most of a body of 3 MB."""
        client = socket.create_connection(("127.0.0.1", narrow.ports.rest), 10)
        head = f"POST /v2/repository/index HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-{key}\r\n"
        client.sendall(head.encode() + b"content-length: 3000000\r\n\r\n" + b" " * 2_999_990)
        return client

    index = "/v2/repository/index"
    small = b"{}" + b" " * 2_500_000
    with begin("alice") as held:
        deadline = time.monotonic() + 20
        while (answer := narrow.ask("POST", index, content=small)).status_code != 429:
            assert time.monotonic() < deadline, "the bodies of one tenant have no bound"
        assert answer.headers["retry-after"]
        assert "this tenant" in answer.json()["error"]
        assert narrow.ask("POST", index, key="bob", content=small).status_code == 200, "another tenant is not asked"
        held.sendall(b" " * 8 + b"{}")
        assert held.recv(100).startswith(b"HTTP/1.1 200")
    with begin("alice"):
        pass  # a client that leaves holds nothing
    deadline = time.monotonic() + 20
    while narrow.ask("POST", index, content=small).status_code != 200:
        assert time.monotonic() < deadline


def test_room_is_given_back_whatever_happens() -> None:
    limits = BodyLimits(held_bytes=100, tenant_held_bytes=60)
    outcomes: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["tenant"] = scope["path"]
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/crash":
            raise ValueError
        await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    class Log:
        def request(self, *values: Any) -> None:
            outcomes.append(values[2])

        def crashed(self, *values: Any) -> None:
            pass

    gate = Gate(app, limits, Log(), lambda scope: scope["path"] == "/upload")  # type: ignore[arg-type]

    async def ask(path: str, *pieces: int) -> None:
        blocks = [bytes(size) for size in pieces]

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            if not blocks:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": blocks.pop(0), "more_body": bool(blocks)}

        async def send(message: Any) -> None:
            await asyncio.sleep(0)

        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"transfer-encoding", b"chunked")]}
        await gate(scope, receive, send)

    async def work() -> None:
        random = np.random.default_rng(3)
        for _ in range(300):
            path = str(random.choice(["/a", "/b", "/crash", "/upload"]))
            await asyncio.gather(*(ask(path, *random.integers(1, 40, 3).tolist()) for _ in range(3)))
        assert {200, 429, 500} <= set(outcomes)
        outcomes.clear()
        await asyncio.gather(ask("/a", 30, 30), ask("/b", 20, 20), ask("/upload", 1000))
        assert outcomes == [200, 200, 200], "room was not given back"
        room = gate._room
        with pytest.raises(TooManyRequestsError):
            room.take("/a", 61)
        room.take("/a", 60)

    asyncio.run(work())


def test_an_upload_of_which_nothing_comes_is_refused(tmp_path: Any) -> None:
    settings = free_ports()
    limits = settings.limits.model_copy(update={"upload_timeout_s": 0.3})
    generator = running(tmp_path, settings.model_copy(update={"limits": limits}))
    made = next(generator)
    head = "PUT /v2/corepool/models/late/versions/1/model HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-alice\r\n"
    with socket.create_connection(("127.0.0.1", made.ports.rest), 30) as client, client.makefile("rb") as file:
        client.sendall(f"{head}content-length: 100\r\n\r\n".encode())
        said = file.read()
    assert said.startswith(b"HTTP/1.1 400"), said
    assert b"did not arrive" in said
    generator.close()
    assert made.notes.crashes == []
