"""Bodies of inferences read from the socket straight to where they stay: a tensor is copied once, by the system.

It must not know requests, limits or what a body means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

LEAST_BYTES = 64 << 10  # of which the rest of a body must be, to be worth it
MOST_BYTES = 2 << 20  # of a body: room for the whole of it is set aside before anybody knows who sends it


class Cycle(RequestResponseCycle):
    """A request and its answer; a body that came this way is handed on as it is, as a memoryview. ``left`` is called if
    the client leaves before the answer is complete."""

    whole: memoryview | None = None
    left: Callable[[], None] | None = None

    async def receive(self) -> Any:
        message = await super().receive()
        if self.whole is not None and message["type"] == "http.request":
            whole, self.whole = self.whole, None
            return {**message, "body": whole}
        return message


class Rest(asyncio.BufferedProtocol):
    """Takes the place of a connection's protocol until the rest of a body is there, then calls ``done``."""

    def __init__(self, owner: asyncio.Protocol, room: memoryview, got: int, done: Callable[[], None]) -> None:
        self._owner = owner
        self._room = room
        self._got = got
        self._done = done

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room[self._got :]

    def buffer_updated(self, nbytes: int) -> None:
        self._got += nbytes
        if self._got == len(self._room):
            self._done()

    def eof_received(self) -> None:
        self._owner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()


def room_for(size: int) -> memoryview:
    """Memory that nobody has filled."""
    return np.empty(size, np.uint8).data


def hand_over(transport: Any, protocol: asyncio.BaseProtocol) -> None:
    """Have another protocol read from a connection that is not paused."""
    transport.set_protocol(protocol)
    transport.pause_reading()  # how a connection is read is settled when reading begins
    transport.resume_reading()
