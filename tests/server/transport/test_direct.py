"""How answers leave: a head in one piece with a small body, none that is lost, none that waits for nothing."""

from typing import Any

import pytest

from corepool.server.rest.direct import TOGETHER_BYTES, Outgoing


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
