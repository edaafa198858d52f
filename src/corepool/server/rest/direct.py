"""How bytes come from a socket and leave to it: bodies of inferences straight to where they stay, answers in one piece.

It must not know requests, limits or what a body means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

LEAST_BYTES = 64 << 10  # of which the rest of a body must be, to be worth it
MOST_BYTES = 2 << 20  # of a body: room for the whole of it is set aside before anybody knows who sends it
HEAD_BYTES = 16 << 10  # are read at once between bodies: what comes with a head is copied several times
READ_BYTES = 256 << 10  # likewise within a body
TOGETHER_BYTES = 64 << 10  # of an answer that are sent with its head


class Outgoing:
    """A connection's way out. The head of an answer waits for the first piece of its body: each sending wakes the
    client, and takes longer than all of the writing."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._holding = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def hold(self) -> None:
        """What is written next waits for what is written then."""
        self._holding = True

    def write(self, data: bytes) -> None:
        if self._holding:
            self._head, self._holding = data, False
            return
        head, self._head = self._head, None
        if head is None:
            self._transport.write(data)
        elif len(data) <= TOGETHER_BYTES:
            self._transport.write(head + data)
        else:
            self._transport.write(head)
            self._transport.write(data)

    def close(self) -> None:
        if self._head is not None:
            self.write(b"")
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Cycle(RequestResponseCycle):
    """A request and its answer; a body that came straight is handed on as it is, as a memoryview. ``left`` is called if
    the client leaves before the answer is complete.

    The message that begins an answer may bring all of its body as ``whole``: then it is the only one. Its headers are
    sound, and the length is one of them."""

    whole: memoryview | None = None
    left: Callable[[], None] | None = None

    async def receive(self) -> Any:
        message = await super().receive()
        if self.whole is not None and message["type"] == "http.request":
            whole, self.whole = self.whole, None
            return {**message, "body": whole}
        return message

    async def send(self, message: Any) -> None:
        body = message.get("whole")
        if body is not None and not self.flow.write_paused:
            self._send_whole(message, body)
            return
        if message["type"] == "http.response.start" and self.scope["method"] != "HEAD":  # else nothing follows
            self.transport.hold()  # type: ignore[attr-defined]
        await super().send(message)
        if body is not None:
            await super().send({"type": "http.response.body", "body": body})

    def _send_whole(self, message: Any, body: bytes) -> None:
        """As two calls of ``send``, but everything that was to be found out of the headers is known."""
        if self.disconnected:
            return
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        content = [STATUS_LINE[message["status"]]]
        for name, value in (*self.default_headers, *message["headers"]):
            content += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            content.append(b"connection: close\r\n")
        content += (b"\r\n", body)
        self.transport.write(b"".join(content))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


class Connection(Protocol):
    """What a reader needs of a connection."""

    reader: Reader

    @property
    def within_body(self) -> bool: ...

    def connection_made(self, transport: Any) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Reader(asyncio.BufferedProtocol):
    """Reads for a connection: into ``shared``, from which all is copied at once; or, once it is told so, into a body's
    own memory. The connections of one event loop share."""

    def __init__(self, connection: Connection, shared: memoryview) -> None:
        self._connection = connection
        self._shared = shared
        self._room: memoryview | None = None
        self._got = 0
        self._done: Callable[[], None] = lambda: None
        connection.reader = self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def eof_received(self) -> None:
        self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def read_into(self, room: memoryview, got: int, done: Callable[[], None]) -> None:
        """From now on fill ``room`` from its byte ``got`` on; then call ``done`` and read as before."""
        self._room, self._got, self._done = room, got, done

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._room is not None:
            return self._room[self._got :]
        return self._shared if self._connection.within_body else self._shared[:HEAD_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        if self._room is None:
            self._connection.data_received(bytes(self._shared[:nbytes]))
            return
        self._got += nbytes
        if self._got == len(self._room):
            self._room = None
            self._done()


def room_for(size: int) -> memoryview:
    """Memory that nobody has filled."""
    return np.empty(size, np.uint8).data
