"""How answers leave: a head in one piece with a small body, none that is lost, none that waits for nothing."""

import asyncio
from typing import Any

import pytest

from corepool.server.rest.direct import TOGETHER_BYTES, Cycle, Outgoing


class Wire:
    """What a connection of the event loop is asked to send."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> str:
        return f"about {name}"


@pytest.fixture
def wire() -> Wire:
    return Wire()


def outgoing(wire: Any) -> Outgoing:
    return Outgoing(wire)


def test_a_head_leaves_with_its_body(wire: Wire) -> None:
    out = outgoing(wire)
    for number in range(2):  # one answer after the other
        out.hold()
        out.write(b"head")
        assert len(wire.sent) == number
        out.write(b"body")
        assert wire.sent[number:] == [b"headbody"]
    out.write(b"more")
    assert wire.sent[2:] == [b"more"]


def test_large_bodies_are_not_copied(wire: Wire) -> None:
    out, body = outgoing(wire), bytes(TOGETHER_BYTES + 1)
    out.hold()
    out.write(b"head")
    out.write(body)
    assert wire.sent == [b"head", body]


def test_a_head_whose_body_never_comes_leaves_at_the_end(wire: Wire) -> None:
    out = outgoing(wire)
    out.hold()
    out.write(b"head")
    out.close()
    assert wire.sent == [b"head"]
    assert out.is_closing()


def test_what_else_is_asked_goes_to_the_connection(wire: Wire) -> None:
    assert outgoing(wire).get_extra_info("peername") == "about peername"
    out = outgoing(wire)
    out.close()
    assert (wire.sent, wire.closed) == ([], True)


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("paused", [True, False])
def test_a_whole_answer_is_the_same_as_one_in_two_messages(keep_alive: bool, paused: bool) -> None:
    class Flow:
        write_paused = paused

        async def drain(self) -> None:
            self.write_paused = False

    def answer(*messages: dict[str, Any]) -> tuple[bytes, bool, bool, int]:
        wire, ended, event, always = Wire(), [], asyncio.Event(), [(b"date", b"today")]
        cycle = Cycle(
            {"method": "POST"}, outgoing(wire), Flow(), None, None, False, always, event, False, keep_alive,
            lambda: ended.append(1),
        )  # fmt: skip

        async def send() -> None:
            for message in messages:
                await cycle.send(message)

        asyncio.run(send())
        assert event.is_set()
        assert cycle.response_complete
        return b"".join(wire.sent), len(wire.sent) == 1, wire.closed, len(ended)

    begin = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3"), (b"x-y", b"z")]}
    whole = answer({**begin, "whole": b"abc"})
    assert whole == answer(begin, {"type": "http.response.body", "body": b"abc"})
    assert whole[0].startswith(b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 3\r\n")
    assert whole[0].endswith(b"\r\n\r\nabc")
    assert (b"connection: close" in whole[0], whole[2]) == (not keep_alive, not keep_alive)


def test_a_whole_answer_for_a_client_that_left_goes_nowhere() -> None:
    class Flow:
        write_paused = False

    wire = Wire()
    cycle = Cycle({"method": "POST"}, outgoing(wire), Flow(), None, None, False, [], None, False, True, None)
    cycle.disconnected = True
    asyncio.run(cycle.send({"type": "http.response.start", "status": 200, "headers": [], "whole": b"abc"}))
    assert not wire.sent
