"""What every HTTP request passes first and every answer last: limits of bodies, request ids, last-resort errors, log.

It must not know routes. Answers that come before the whole body has arrived close the connection, after a short while
in which the rest is thrown away: else many clients would see a reset instead of the answer. Who asked too often keeps
his connection if the rest is small: to make a new one costs more than to throw that away.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from corepool.errors import RequestError, TooLargeError, TooManyRequestsError, UnsupportedError
from corepool.server.context import RequestLog
from corepool.server.rest.errors import error_response
from corepool.server.traces import ident_of, request_id
from corepool.server.turnstile import Pace

Message = MutableMapping[str, Any]
Buffer = bytes | memoryview
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LINGER_S = 1.0  # how long the rest of a refused body is read and thrown away
THROWN_BYTES = 2 << 20  # so much of one is thrown away without closing the connection,
THROWN_S = 10.0  # if it comes within this time
TOO_MANY = 429
_SMALL = 1 << 16  # bytes of an answer that fit into buffers anyway


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bytes of a body, of an uploaded file, seconds in which a body must have arrived, and bytes of all bodies that are
    in memory at a time, and of one tenant's."""

    body_bytes: int = 64 << 20
    upload_bytes: int = 1 << 30
    body_timeout_s: float = 60.0
    upload_timeout_s: float = 3600.0
    held_bytes: int = 4 << 30
    tenant_held_bytes: int = 1 << 30


class _Room:
    """The memory that bodies take until they are answered, in all and by tenant."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._all = 0
        self._by_tenant: dict[str, int] = {}

    def take(self, tenant: str, count: int) -> None:
        """Raises TooManyRequestsError, and takes nothing, if there is no room."""
        own = self._by_tenant.get(tenant, 0) + count
        if own > self._limits.tenant_held_bytes:
            limit = self._limits.tenant_held_bytes
            raise TooManyRequestsError(f"requests of this tenant fill {limit} bytes already: wait for their answers")
        if self._all + count > self._limits.held_bytes:
            raise TooManyRequestsError(f"requests fill {self._limits.held_bytes} bytes already: try again soon")
        self._by_tenant[tenant] = own
        self._all += count

    def give_back(self, tenant: str, count: int) -> None:
        self._all -= count
        self._by_tenant[tenant] -= count
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]


class Gate:
    """ASGI middleware around the whole application. ``is_upload`` says of a scope whether its body is a file."""

    def __init__(
        self, app: Application, limits: BodyLimits, log: RequestLog, is_upload: Callable[[Scope], bool]
    ) -> None:
        self._app = app
        self._limits = limits
        self._log = log
        self._is_upload = is_upload
        self._room = _Room(limits)
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        if method == "HEAD":  # an answer without its body, which is the connection's matter
            scope = {**scope, "method": "GET"}
        if path.endswith("/") and path != "/":  # /v2 and /v2/ are one
            scope["path"] = path[:-1]
        scope["server_limit"] = self._limits.body_bytes
        upload = scope["is_upload"] = self._is_upload(scope)
        limits = self._limits
        passage = _Passage(
            scope,
            receive,
            send,
            limits.upload_bytes if upload else limits.body_bytes,
            limits.upload_timeout_s if upload else limits.body_timeout_s,
            self._room,
            self._pace,
        )
        request_id.set(passage.request_id)
        begin = time.perf_counter()
        try:
            passage.check_length()
            await self._app(scope, passage.receive, passage.send)
        except (TooLargeError, TooManyRequestsError, RequestError) as error:
            await passage.last_resort(error, scope)
        except Exception as error:
            self._log.crashed(passage.request_id, error)
            await passage.last_resort(error, scope)
        finally:
            passage.leave()
            source = (scope.get("client") or ("", 0))[0]
            spent = time.perf_counter() - begin
            tenant = scope.get("tenant", "")
            self._log.request(method, path, passage.status, spent, passage.request_id, source, tenant)


class _Passage:
    """One request on its way in and out."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, limit: int, timeout_s: float, room: _Room, pace: Pace
    ) -> None:
        self._receive = receive
        self._send = send
        self._scope = scope
        self._limit = limit
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self._length: bytes | None = None
        self._expects = False
        self._read = 0
        self._room = room
        self._pace = pace
        self._thrown = False  # the rest of the body, and the connection stays
        self._held: tuple[str, int] | None = None  # whose, and how many bytes of room
        given = ""
        for name, value in scope["headers"]:
            if name == b"content-length":
                self._length = value
            elif name == b"x-request-id":
                given = value.decode("latin-1")
            elif name == b"expect":
                self._expects = True
        chunked = self._length is None and any(name == b"transfer-encoding" for name, _ in scope["headers"])
        self._whole = not chunked and self._length in (None, b"0")
        self.status = 0
        self.request_id = ident_of(given)
        scope["request_id"] = self.request_id

    def check_length(self) -> None:
        """Raise TooLargeError for a body that is announced to be too large."""
        if self._length is not None and self._length.isdigit() and int(self._length[:20]) > self._limit:
            raise TooLargeError(f"the body has {self._length[:20].decode()} bytes; the limit is {self._limit}")

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        cycle = self._scope.get("cycle")
        if cycle is not None and not cycle.more_body:  # all of it is there: nobody waits
            message = await self._receive()
        else:
            message = await self._receive_in_time()
        if message["type"] == "http.request":
            self._expects = False
            self._read += len(message.get("body", b""))
            limit = min(self._limit, self._scope.get("body_limit", self._limit))  # the sender's own may be lower
            if self._read > limit:
                raise TooLargeError(f"the body is larger than the limit of {limit} bytes")
            if not self._scope["is_upload"]:  # files go to the disk as they come
                self._hold(len(message.get("body", b"")))
            self._whole = not message.get("more_body", False)
        return message

    async def _receive_in_time(self) -> Message:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            raise RequestError(f"the body did not arrive within {self._timeout_s:g} seconds") from None

    def _hold(self, count: int) -> None:
        whose, held = self._held or (self._scope.get("tenant", ""), 0)
        self._room.take(whose, count)
        self._held = whose, held + count

    def leave(self) -> None:
        """The request is over."""
        if self._held is not None:
            self._room.give_back(*self._held)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(b"x-request-id", self.request_id.encode())]
            if self.status == TOO_MANY:
                await self._slow_down()
            if not self._whole and not self._thrown:
                extra.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        elif not self._whole and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            if not await self._linger() and self._thrown:
                self._scope["cycle"].transport.close()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        if len(message.get("body", b"")) <= _SMALL:
            await self._send(message)
            return
        try:
            async with asyncio.timeout(self._timeout_s):  # for clients that never read their answer
                await self._send(message)
        except TimeoutError:
            raise RequestError(f"the answer was not read within {self._timeout_s:g} seconds") from None

    async def _slow_down(self) -> None:
        """Whoever is refused more often than he could have understood waits for that, and nothing of him is read."""
        cycle = self._scope.get("cycle")
        if cycle is not None and not self._whole and not self._expects and self._length is not None:
            left = int(self._length[:20]) - self._read if self._length.isdigit() else THROWN_BYTES + 1
            self._thrown = left <= THROWN_BYTES
        wait_s = self._pace.wait_s(self._scope.get("tenant") or str((self._scope.get("client") or ("",))[0]))
        if wait_s > 0:
            if cycle is not None:
                cycle.flow.pause_reading()
            await asyncio.sleep(wait_s)

    async def _linger(self) -> bool:
        """Throw away what still comes of the body, for a while. Returns whether it came to its end."""
        if self._expects:
            return False  # the client waits for a word before it sends; reading would be that word
        try:
            async with asyncio.timeout(THROWN_S if self._thrown else LINGER_S):
                while True:
                    message = await self._receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return bool(message["type"] == "http.request")
        except TimeoutError:
            return False

    async def last_resort(self, error: BaseException, scope: Scope) -> None:
        """Answer with an error if nothing was answered yet."""
        if not self.status:
            await error_response(error)(scope, self.receive, self.send)


async def read_body(receive: Receive) -> bytes:
    """The whole body. Raises what the gate's limits raise, and RequestError if the client left before its end."""
    return bytes(await read_buffer(receive))


async def read_buffer(receive: Receive) -> Buffer:
    """As ``read_body``, without a copy if it came in one piece."""
    message = await receive()
    if message["type"] != "http.request":
        raise RequestError("the client left before the end of the body")
    if not message.get("more_body", False):
        whole: Buffer = message.get("body", b"")
        return whole
    parts = [message.get("body", b"")]
    while message.get("more_body", False):
        message = await receive()
        if message["type"] != "http.request":
            raise RequestError("the client left before the end of the body")
        parts.append(message.get("body", b""))
    return b"".join(parts)


def unpacked(body: Buffer, encoding: str | None, limit: int) -> Buffer:
    """A body as it was before compression. Raises TooLargeError rather than unpack more than ``limit`` bytes,
    RequestError for data that are not what the header says, UnsupportedError for another encoding."""
    if encoding is None or encoding.lower() in ("identity", ""):
        return body
    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedError("bodies may be compressed with gzip or deflate only")
    unpack = zlib.decompressobj(wbits=47)  # either kind of header
    try:
        whole = unpack.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(f"the body is not {encoding.lower()} data: {error}") from None
    if len(whole) > limit:
        raise TooLargeError(f"the body is larger than the limit of {limit} bytes once unpacked")
    if not unpack.eof or unpack.unused_data:
        raise RequestError(f"the body is not sound {encoding.lower()} data: it is cut, or something follows it")
    return whole


def refuse_packed(encoding: str | None) -> None:
    """Raise RequestError for a compressed body where none is unpacked."""
    if encoding is not None and encoding.lower() not in ("identity", ""):
        raise RequestError("only the bodies of inferences may be compressed: send this one as it is")


async def until_gone(receive: Receive) -> None:
    """Return when the client has left; called after its whole body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
