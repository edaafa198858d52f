"""The gRPC service of the protocol and its extensions, in the event loop of the REST server.

It must not know what requests mean: each call asks the data plane.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NoReturn, Protocol

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from corepool.errors import NotFoundError, RequestError, TooLargeError, TooManyRequestsError
from corepool.server.api import Access, Identity, ModelInfo
from corepool.server.context import TENANT_HEADER, RequestLog, acting_for, require_tenant
from corepool.server.dataplane import DataPlane, describe
from corepool.server.rpc.codec import parameters_of, read_request, write_response
from corepool.server.rpc.errors import code_of
from corepool.server.rpc.messages import CALLS, MESSAGES, SERVICE, STREAMS
from corepool.server.rpc.wire import check_size
from corepool.server.traces import ident_of, request_id
from corepool.server.turnstile import Pace, Turnstile


class Context(Protocol):
    """What calls need of grpc's context."""

    def peer(self) -> str: ...

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...

    def set_trailing_metadata(self, trailing_metadata: tuple[tuple[str, str], ...]) -> None: ...

    def time_remaining(self) -> float | None: ...

    async def abort(self, code: Any, details: str, trailing_metadata: tuple[tuple[str, str], ...]) -> NoReturn: ...


Call = Callable[[Any, Identity | None, Context], Awaitable[Any]]

PUBLIC = ("ServerLive", "ServerReady", "ServerMetadata")


def _decoded(name: str, data: bytes) -> Any:
    """A message from its bytes. Raises RequestError and TooLargeError."""
    kind = MESSAGES[CALLS[name][0]]
    check_size(data, kind.DESCRIPTOR)
    try:
        return kind.FromString(data)
    except DecodeError:
        raise RequestError(f"the request is no {CALLS[name][0]} message") from None


def handlers(plane: DataPlane, access: Access, log: RequestLog, turnstile: Turnstile) -> grpc.GenericRpcHandler:
    """All calls of the service."""
    calls, pace = _Calls(plane), Pace()
    made = {}
    for name, (_, answers) in CALLS.items():
        guarded = _Guarded(name, access, log, getattr(calls, name), turnstile, pace)
        # Calls of one request are taken as streams of one, which look the same to clients: the library reads a lone
        # request to its end before it calls anybody, but a stream's when it is asked to.
        kind, method = (
            (grpc.stream_stream_rpc_method_handler, guarded.stream)
            if name in STREAMS
            else (grpc.stream_unary_rpc_method_handler, guarded.unary)
        )
        made[name] = kind(method, response_serializer=MESSAGES[answers].SerializeToString)
    return grpc.method_handlers_generic_handler(SERVICE, made)


class _Guarded:
    """A call with what goes before and after it: who asks, errors, the log."""

    def __init__(
        self, name: str, access: Access, log: RequestLog, call: Call, turnstile: Turnstile, pace: Pace
    ) -> None:
        self._name = name
        self._infers = name == "ModelInfer"
        self._access = access
        self._log = log
        self._call = call
        self._turnstile = turnstile
        self._pace = pace

    async def unary(self, requests: AsyncIterator[bytes], context: Context) -> Any:
        """The answer to the only request, which is not read before it is known who sends it and that he may."""
        begin, ident = time.perf_counter(), _ident(context)
        code, whose = grpc.StatusCode.CANCELLED, _Whose()
        request_id.set(ident)
        context.set_trailing_metadata((("x-request-id", ident),))
        try:
            answer = await self._only(requests, context, whose)
            code = grpc.StatusCode.OK
            return answer
        except Exception as error:
            code = code_of(error)
            if isinstance(error, TooManyRequestsError):
                await asyncio.sleep(self._pace.wait_s(whose.tenant or _source(context)))
            await self._fail(error, context, ident)
        finally:
            self._written(code, begin, ident, context, whose)

    async def _only(self, requests: AsyncIterator[bytes], context: Context, whose: _Whose) -> Any:
        if self._name in PUBLIC:  # such requests say nothing
            return await self._call(MESSAGES[CALLS[self._name][0]](), None, context)
        who = whose.now(await self._who(context))
        limit = self._access.admit(who, 0)
        if not self._infers or not who.tenant:
            return await self._answer(await _first(requests, limit), who, context, whose)
        self._turnstile.enter(who.tenant, self._access.in_flight_limit(who.tenant))
        try:
            done = await self._turnstile.read(who.tenant)
            try:
                data = await _first(requests, limit)
            finally:
                done()
            return await self._answer(data, who, context, whose)
        finally:
            self._turnstile.leave(who.tenant)

    async def stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        """One answer for each request, in order; what fails is told in the answer and ends nothing. The n-th request's
        id is the call's with -n behind it."""
        begin, call, count = time.perf_counter(), _ident(context)[:56], 0
        context.set_trailing_metadata((("x-request-id", call),))
        try:
            await self._who(context)
        except Exception as error:
            self._written(code_of(error), begin, call, context, _Whose())
            await self._fail(error, context, call)
        async for data in requests:
            begin, code, whose = time.perf_counter(), grpc.StatusCode.CANCELLED, _Whose()
            count += 1
            ident = f"{call}-{count}"
            request_id.set(ident)
            answer = MESSAGES["ModelStreamInferResponse"]()
            try:
                who = whose.now(await self._who(context))  # anew: the key may have been revoked meanwhile
                self._access.admit(who, len(data))
                answer.infer_response.CopyFrom(await self._answer(data, who, context, whose))
                answer.infer_response.parameters["triton_final_response"].bool_param = True  # each has one answer
                code = grpc.StatusCode.OK
            except Exception as error:
                code = code_of(error)
                if code is grpc.StatusCode.UNAUTHENTICATED:
                    await self._fail(error, context, ident)
                self._note(error, code, ident)
                answer.error_message = describe(error)
                answer.infer_response.id = whose.request_id
            finally:
                self._written(code, begin, ident, context, whose)
            yield answer

    def _written(self, code: grpc.StatusCode, begin: float, ident: str, context: Context, whose: _Whose) -> None:
        spent = time.perf_counter() - begin
        self._log.request("gRPC", self._name, code.value[0], spent, ident, _source(context), whose.tenant)

    async def _answer(self, data: bytes, who: Identity, context: Context, whose: _Whose) -> Any:
        request = _decoded(self._name, data)
        if self._name in STREAMS:
            whose.request_id = request.id
        return await self._call(request, who, context)

    async def _who(self, context: Context) -> Identity:
        given = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        who = await self._access.identify(given.get("authorization"), _source(context))
        tenant = given.get(TENANT_HEADER.lower())
        return who if tenant is None else acting_for(self._access, who, tenant)

    async def _fail(self, error: Exception, context: Context, ident: str) -> NoReturn:
        code = code_of(error)
        self._note(error, code, ident)
        trailing = [("x-request-id", ident)]
        if isinstance(error, TooManyRequestsError):
            trailing.append(("retry-after", str(max(1, round(error.retry_after_s)))))
        await context.abort(code, describe(error), tuple(trailing))

    def _note(self, error: Exception, code: grpc.StatusCode, ident: str) -> None:
        if code is grpc.StatusCode.INTERNAL:
            self._log.crashed(ident, error)


async def _first(requests: AsyncIterator[bytes], limit: int) -> bytes:
    """The only request of a call. Raises TooLargeError, and RequestError if there is none."""
    async for data in requests:
        if len(data) > limit:
            raise TooLargeError(f"the request has {len(data)} bytes; this key may send {limit}")
        return data
    raise RequestError("the call ended without a request")


class _Whose:
    """The tenant of a call and the request's own id, once they are known."""

    tenant = ""
    request_id = ""

    def now(self, who: Identity) -> Identity:
        """It is known who asks."""
        self.tenant = who.tenant
        return who


def _ident(context: Context) -> str:
    """The call's id: the client's, if it names one."""
    given = dict(context.invocation_metadata() or ()).get("x-request-id", "")
    return ident_of(given if isinstance(given, str) else "")


def _source(context: Context) -> str:
    """The client's address without its port."""
    return str(context.peer()).partition(":")[2].rpartition(":")[0]


class _Calls:
    """Each call of the service by its name."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def ServerLive(self, request: Any, who: Identity | None, context: Context) -> Any:
        return MESSAGES["ServerLiveResponse"](live=self._plane.server_live())

    async def ServerReady(self, request: Any, who: Identity | None, context: Context) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self._plane.server_ready())

    async def ServerMetadata(self, request: Any, who: Identity | None, context: Context) -> Any:
        info = self._plane.server_metadata()
        return MESSAGES["ServerMetadataResponse"](name=info.name, version=info.version, extensions=info.extensions)

    async def ModelReady(self, request: Any, who: Identity | None, context: Context) -> Any:
        try:
            ready = self._plane.model_ready(_known(who), request.name, request.version or None)
        except NotFoundError:
            ready = False  # the answer has a place for it, and clients look there
        return MESSAGES["ModelReadyResponse"](ready=ready)

    async def ModelMetadata(self, request: Any, who: Identity | None, context: Context) -> Any:
        info = self._plane.model_metadata(_known(who), request.name, request.version or None)
        answer = MESSAGES["ModelMetadataResponse"](name=info.name, versions=info.versions, platform=info.platform)
        for field, tensors in (("inputs", info.inputs), ("outputs", info.outputs)):
            for each in tensors:
                getattr(answer, field).add(name=each.name, datatype=each.datatype, shape=each.shape)
        return answer

    async def ModelInfer(self, request: Any, who: Identity | None, context: Context) -> Any:
        asked = read_request(request, context.time_remaining())
        result = await self._plane.infer(require_tenant(_known(who)), asked)
        return write_response(request, asked, result)

    ModelStreamInfer = ModelInfer

    async def ModelConfig(self, request: Any, who: Identity | None, context: Context) -> Any:
        info = self._plane.config(_known(who), request.name, request.version or None)
        answer = MESSAGES["ModelConfigResponse"]()
        _fill_config(answer.config, info)
        return answer

    async def ModelStatistics(self, request: Any, who: Identity | None, context: Context) -> Any:
        answer = MESSAGES["ModelStatisticsResponse"]()
        for row in self._plane.statistics(_known(who), request.name or None, request.version or None):
            made = answer.model_stats.add(
                name=row.name,
                version=row.version,
                last_inference=row.last_inference_ms,
                inference_count=row.inference_count,
                execution_count=row.execution_count,
            )
            for stage, spent in row.stages.items():
                duration = getattr(made.inference_stats, stage)
                duration.count, duration.ns = spent.count, spent.ns
        return answer

    async def RepositoryIndex(self, request: Any, who: Identity | None, context: Context) -> Any:
        answer = MESSAGES["RepositoryIndexResponse"]()
        for row in self._plane.index(_known(who), request.ready):
            answer.models.add(name=row.name, version=row.version, state=row.state.value, reason=row.reason)
        return answer

    async def RepositoryModelLoad(self, request: Any, who: Identity | None, context: Context) -> Any:
        await self._plane.load(require_tenant(_known(who)), request.model_name, parameters_of(request))
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def RepositoryModelUnload(self, request: Any, who: Identity | None, context: Context) -> Any:
        await self._plane.unload(require_tenant(_known(who)), request.model_name)
        return MESSAGES["RepositoryModelUnloadResponse"]()


def _known(who: Identity | None) -> Identity:
    """Who asks, in calls that are not public."""
    assert who is not None
    return who


def _fill_config(config: Any, info: ModelInfo) -> None:
    config.name, config.platform, config.backend = info.name, info.platform, "corepool"
    config.version_policy.specific.versions.extend(int(each) for each in info.versions if each.isdigit())
    types = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    for field, tensors in (("input", info.inputs), ("output", info.outputs)):
        for each in tensors:
            name = "TYPE_STRING" if each.datatype == "BYTES" else f"TYPE_{each.datatype}"
            getattr(config, field).add(name=each.name, data_type=types[name].number, dims=each.shape)
