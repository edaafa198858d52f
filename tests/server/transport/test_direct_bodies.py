"""Bodies that are read straight to where they stay: however they arrive, they mean what they mean when they come whole.

The bodies are JSON followed by spaces, so that they are large, and any byte that is lost, doubled or moved is noticed.
"""

import json
import socket
import time

import pytest

from .conftest import Service, image

INFER = "/v2/models/small/infer"


def body(seed: int, padding: int = 300_000, behind: bool = True) -> bytes:
    tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": image(seed).reshape(-1).tolist()}
    text, spaces = json.dumps({"id": str(seed), "inputs": [tensor]}).encode(), b" " * padding
    return text + spaces if behind else spaces + text


def request(content: bytes, key: str = "key-alice", path: str = INFER) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode() + content


class Caller:
    """A connection that is kept open."""

    def __init__(self, service: Service) -> None:
        self.socket = socket.create_connection(("127.0.0.1", service.ports.rest), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes, *cuts: int) -> None:
        """In pieces, with a pause between."""
        for first, last in zip((0, *cuts), (*cuts, len(data)), strict=True):
            self.socket.sendall(data[first:last])
            if last < len(data):
                time.sleep(0.05)

    def answer(self) -> tuple[int, dict]:
        status, length = int(self.file.readline().split()[1]), 0
        while (line := self.file.readline().strip()) != b"":
            name, _, value = line.partition(b": ")
            length = int(value) if name == b"content-length" else length
        return status, json.loads(self.file.read(length))

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()


def plain(service: Service, seed: int) -> list:
    """The same inference with a body that is too small to be taken this way."""
    answer = service.ask("POST", INFER, content=body(seed, 0))
    assert answer.status_code == 200
    return answer.json()["outputs"]


@pytest.mark.parametrize("behind", [True, False], ids=["text first", "text last"])
@pytest.mark.parametrize("cuts", [(), (60,), (400, 500), (1000, 1001, 250_000), (299_000,)])
def test_a_body_may_come_in_pieces(service: Service, cuts: tuple[int, ...], behind: bool) -> None:
    with Caller(service) as caller:
        for seed in (1, 2):  # on one connection
            caller.send(request(body(seed, behind=behind)), *cuts)
            status, said = caller.answer()
            assert (status, said["id"], said["outputs"]) == (200, str(seed), plain(service, seed))


def test_requests_may_follow_each_other_without_waiting(service: Service) -> None:
    sizes = (300_000, 0, 70_000, 900_000, 0, 1_000_000)  # some of them too small for this way
    with Caller(service) as caller:
        caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        for seed, size in enumerate(sizes):
            caller.send(request(body(seed, size)))
        for seed in range(len(sizes)):
            status, said = caller.answer()
            assert status == 200, (seed, said)
            assert (said["id"], said["outputs"]) == (str(seed), plain(service, seed))


def test_what_is_refused_before_its_body_is_there_closes_the_connection(service: Service) -> None:
    with Caller(service) as caller:
        data = request(body(1), key="nobody")
        caller.send(data[:150_000])
        status, said = caller.answer()
        assert status == 401, said
        assert caller.file.read() == b""


def test_what_is_wrong_with_the_whole_body_leaves_the_connection_open(service: Service) -> None:
    with Caller(service) as caller:
        caller.send(request(b"{" + b" " * 300_000))
        assert caller.answer()[0] == 400
        caller.send(request(body(3)))
        assert caller.answer()[0] == 200


@pytest.mark.parametrize("sent", [70_000, 200_000])
def test_clients_that_leave_within_a_body_are_no_trouble(service: Service, sent: int) -> None:
    for _ in range(5):
        with Caller(service) as caller:
            caller.send(request(body(1))[:sent])
    assert plain(service, 1)
    deadline = time.monotonic() + 10
    while service.parts.plane.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.parts.plane.in_flight == 0
