"""One HTTP connection: the limits that hold before a request is one, and its errors in the protocol's form.

It must not know requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from corepool.server.rest.direct import LEAST_BYTES, MOST_BYTES, READ_BYTES, Cycle, Outgoing, Reader, room_for
from corepool.server.rest.errors import error_body
from corepool.server.settings import Limits

LINGER_S = 1.0  # how long what still comes is read and thrown away
PIECE_BYTES = 1 << 20  # of a body are handed on at once
_REASONS = {400: "Bad Request", 503: "Service Unavailable"}


class RefusedError(Exception):
    """Stops the parser; the text goes to the client."""


def connections(limits: Limits, refused: Callable[[int], None]) -> Callable[..., Reader]:
    """Makes connections with these limits; ``refused`` is told the status of what never became a request."""

    shared = memoryview(bytearray(READ_BYTES))

    def connection(*args: Any, **named: Any) -> Reader:
        return Reader(_Connection(limits, refused, *args, **named), shared)

    return connection


class _Connection(HttpToolsProtocol):
    reader: Reader

    def __init__(self, limits: Limits, told: Callable[[int], None], *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.limits = limits
        self.told = told
        self._late: asyncio.TimerHandle | None = None
        self._within_head = False
        self._count = 0
        self._bytes = 0
        self._unparsed = 0
        self._rest = 0  # bytes that an inference's body still lacks, if it is one whose length is known
        self._complaint = ""
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = Outgoing(transport)  # type: ignore[assignment]
        if len(self.connections) > self.limits.connections:
            self._answer(503, f"{self.limits.connections} connections are open already: try again soon")
        else:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        if isinstance(self.cycle, Cycle) and self.cycle.disconnected and self.cycle.left is not None:
            self.cycle.left()

    def data_received(self, data: bytes) -> None:
        if self.parser is not None and not self._refused and not self.transport.is_closing():
            began_before = self._within_head
            super().data_received(data)
            if began_before and self._within_head:  # perhaps one endless line: the parser tells when it is over
                self._unparsed += len(data)
                if self._unparsed > self.limits.header_bytes:
                    self._answer(400, f"request line and headers are longer than {self.limits.header_bytes} bytes")
            if self._within_head and self._late is None and not self._refused:
                self._wait_for_headers()
            if self._rest >= LEAST_BYTES:
                self._read_directly()

    @property
    def within_body(self) -> bool:
        """Whether a body is under way."""
        return self.cycle is not None and self.cycle.more_body

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._count = self._bytes = self._rest = self._unparsed = 0
        self._within_head = True

    def on_url(self, url: bytes) -> None:
        self._take(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        if self._count > self.limits.headers:
            self._refuse(f"the request has more than {self.limits.headers} headers")
        self._take(len(name) + len(value))
        super().on_header(name, value)
        if len(name) == 14 and name.lower() == b"content-length" and value.isdigit():
            self._rest = int(value[:20])

    def on_headers_complete(self) -> None:
        self._within_head = False
        self._stop_waiting()
        super().on_headers_complete()
        self.cycle.__class__ = Cycle
        if self._rest > MOST_BYTES or not self.scope["path"].endswith("/infer"):
            self._rest = 0
        self.scope["cycle"] = self.cycle  # type: ignore[typeddict-unknown-key]

    def on_body(self, body: bytes) -> None:
        """Let the application wait until the whole body is there, or a good piece: each waking costs."""
        self._rest = max(self._rest - len(body), 0)
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) >= PIECE_BYTES:
            self.flow.pause_reading()
            self.cycle.message_event.set()

    def _read_directly(self) -> None:
        """Have the rest of the body written to where it stays."""
        cycle = self.cycle
        got = len(cycle.body)
        closing = self._refused or self.transport.is_closing() or self.flow.read_paused or cycle.response_complete
        if closing or not cycle.more_body or not isinstance(cycle, Cycle) or got >= PIECE_BYTES:
            return
        room = room_for(got + self._rest)
        room[:got], cycle.body = cycle.body, bytearray()
        self._rest = 0

        def done() -> None:
            self.parser = httptools.HttpRequestParser(self)  # the old one waits for a body that it will never see
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            if not cycle.response_complete:
                cycle.whole = room
                cycle.more_body = False
                cycle.message_event.set()

        self.reader.read_into(room, got, done)

    def send_400_response(self, msg: str) -> None:
        self._answer(400, self._complaint or "this is not a sound HTTP request")

    def _take(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self.limits.header_bytes:
            self._refuse(f"request line and headers are longer than {self.limits.header_bytes} bytes")

    def _refuse(self, text: str) -> None:
        self._complaint = text
        raise RefusedError(text)

    def _answer(self, status: int, text: str) -> None:
        """Answer without an application, and close. What came before and is sound is answered, and then the last."""
        self._stop_waiting()
        if self._refused or self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            self._refused, cycle.keep_alive = True, False
        elif cycle is None or cycle.response_complete or not cycle.response_started:
            body = error_body(text)
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self._refused = True
            if cycle is not None and not cycle.response_complete:  # this was its answer
                cycle.disconnected = True
                cycle.message_event.set()
            self.told(status)
            self.transport.write(head.encode() + body)
            # A connection that is closed while data wait to be read is reset, and the answer may be lost with it.
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()

    def _wait_for_headers(self) -> None:
        self._late = self.loop.call_later(self.limits.header_timeout_s, self._too_late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        self._answer(400, f"the headers did not arrive within {self.limits.header_timeout_s:g} seconds")
