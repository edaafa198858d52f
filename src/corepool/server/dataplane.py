"""The protocol itself: what a client can ask of models, whatever transport it came by.

It must not know HTTP, gRPC or how tensors travel, nor engines beyond what api.Inference says.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from corepool import __version__
from corepool.errors import CorepoolError, NotFoundError, RequestError, TooManyRequestsError, UnavailableError
from corepool.server.api import Identity, Inference, Inferred, InferRequest, ModelInfo, ModelState, TensorInfo
from corepool.server.statistics import ModelStatistics, Statistics
from corepool.server.tensors import Array, datatype_of, shown

SERVER_NAME = "corepool"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "statistics",
    "schedule_policy",
)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the server says about itself."""

    name: str
    version: str
    extensions: tuple[str, ...]


class Observer(Protocol):
    """Who watches inferences, for metrics and logs. Called in the event loop; must be quick and never raise."""

    def started(self, who: Identity, request: InferRequest) -> None:
        """An inference was admitted."""

    def ended(self, who: Identity, request: InferRequest, outcome: Inferred | BaseException, total_ns: int) -> None:
        """It was answered, or failed with an error; asyncio.CancelledError if the client left."""


class Unwatched:
    """Nobody watches."""

    def started(self, who: Identity, request: InferRequest) -> None:
        pass

    def ended(self, who: Identity, request: InferRequest, outcome: Inferred | BaseException, total_ns: int) -> None:
        pass


class Catalogue(Protocol):
    """Models that could be loaded, and their loading; see corepool.server.repository."""

    def index(self, who: Identity) -> list[ModelInfo]: ...

    async def load(self, who: Identity, name: str, parameters: dict[str, Any]) -> None: ...

    async def unload(self, who: Identity, name: str) -> None: ...


class DataPlane:
    """Everything in the protocol. Methods raise errors of corepool.errors; names that are not there and names of other
    tenants give the same NotFoundError."""

    def __init__(
        self,
        inference: Inference,
        catalogue: Catalogue,
        *,
        in_flight: int = 256,
        observer: Observer | None = None,
    ) -> None:
        self._inference = inference
        self._catalogue = catalogue
        self._limit = in_flight
        self._observer = observer or Unwatched()
        self._statistics = Statistics()
        self._running = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def at_home(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Inferences come from this event loop, and brief ones may be run in it; None: no more."""
        self._inference.at_home(None if loop is None else loop.call_soon_threadsafe)

    def server_live(self) -> bool:
        """The process answers and its engine has not died."""
        return self._inference.live()

    def server_ready(self) -> bool:
        """New requests are taken."""
        return not self._draining and self._inference.ready()

    def server_metadata(self) -> ServerInfo:
        return ServerInfo(SERVER_NAME, __version__, EXTENSIONS)

    def model_metadata(self, who: Identity, name: str, version: str | None = None) -> ModelInfo:
        """A model that is or was loaded, or could be. Raises NotFoundError."""
        try:
            return self._inference.model(who, name, version)
        except NotFoundError:
            for info in self._catalogue.index(who):
                if info.name == name and version in (None, info.version):
                    return info
            raise

    def model_ready(self, who: Identity, name: str, version: str | None = None) -> bool:
        """True if inferences of the model are taken. Raises NotFoundError."""
        return self.model_metadata(who, name, version).state is ModelState.READY and not self._draining

    def config(self, who: Identity, name: str, version: str | None = None) -> ModelInfo:
        """What a configuration is made of; raises UnavailableError for a model that was never loaded."""
        info = self.model_metadata(who, name, version)
        if not info.inputs:
            raise UnavailableError(f"model {shown(name)} is not loaded: load it first")
        return info

    def statistics(self, who: Identity, name: str | None = None, version: str | None = None) -> list[ModelStatistics]:
        """Rows of one version, of all versions of a model, or of all models. Raises NotFoundError."""
        if name is not None:
            self._inference.model(who, name, version)
        chosen = [
            info
            for info in self._inference.models(who)
            if name in (None, info.name) and version in (None, info.version)
        ]
        return [self._statistics.of(info.tenant or who.tenant, info) for info in chosen]

    def index(self, who: Identity, ready: bool = False) -> list[ModelInfo]:
        """All versions of all models of the tenant, loaded or not; with ``ready`` only those that can be used."""
        rows = [*self._catalogue.index(who), *self._inference.models(who)]  # what is loaded tells more
        found = {(info.tenant, info.name, len(info.version), info.version): info for info in rows}
        return [found[key] for key in sorted(found) if not ready or found[key].state is ModelState.READY]

    async def load(self, who: Identity, name: str, parameters: dict[str, Any] | None = None) -> None:
        """Make a model of the repository ready; it is when this returns."""
        self.refuse_when_draining()
        await self._catalogue.load(who, name, parameters or {})

    async def unload(self, who: Identity, name: str) -> None:
        """Forget all versions of a model and give its memory back."""
        self.refuse_when_draining()
        await self._catalogue.unload(who, name)

    async def infer(self, who: Identity, request: InferRequest) -> Inferred:
        """Run one inference. Cancelling cancels it."""
        self.refuse_when_draining()
        if self._running >= self._limit:
            raise TooManyRequestsError(f"{self._limit} requests are in flight already: try again soon", 1.0)
        try:
            info = self._inference.model(who, request.model, request.version)
        except NotFoundError:
            self.model_metadata(who, request.model, request.version)  # raises if there is none to load either
            raise UnavailableError(f"model {shown(request.model)} is not loaded: load it first") from None
        check_request(info, request)
        request.fits = info.inputs
        self._running += 1
        self._idle.clear()
        begin = time.perf_counter_ns()
        self._observer.started(who, request)
        try:
            result = await _answer(self._inference.submit(who, request))
        except BaseException as error:
            self._failed(who, request, info, error, time.perf_counter_ns() - begin)
            raise
        else:
            total = time.perf_counter_ns() - begin
            self._statistics.succeeded(who.tenant, result, total)
            self._observer.ended(who, request, result, total)
            return result
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _failed(
        self, who: Identity, request: InferRequest, info: ModelInfo, error: BaseException, total_ns: int
    ) -> None:
        self._statistics.failed(who.tenant, info.name, info.version, total_ns)
        self._observer.ended(who, request, error, total_ns)

    def forget(self, tenant: str, model: str | None = None) -> None:
        """Drop the statistics of a model that was removed, or of all models of a tenant that was."""
        self._statistics.forget(tenant, model)

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, wait for what is in flight; False if some was left after ``timeout_s`` seconds."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def in_flight(self) -> int:
        return self._running

    def refuse_when_draining(self) -> None:
        """Raise UnavailableError if nothing new is taken."""
        if self._draining:
            raise UnavailableError("the server is shutting down: ask another one")


async def _answer(future: Future[Inferred]) -> Inferred:
    """As ``asyncio.wrap_future`` does it, with fewer steps. Cancelling cancels the future."""
    if future.done():
        return future.result()
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def done(_: Future[Inferred]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(done)
    try:
        await waiter
    except asyncio.CancelledError:
        future.cancel()
        raise
    if future.cancelled():
        raise asyncio.CancelledError
    return future.result()


def check_request(info: ModelInfo, request: InferRequest) -> None:
    """Raise unless the model is ready and the request names its tensors with their types and shapes.

    UnavailableError or RequestError, which lists all that is wrong.
    """
    if info.state is not ModelState.READY:
        why = f": {info.reason}" if info.reason else ""
        raise UnavailableError(f"model {shown(info.name)} version {info.version} is {info.state.value}{why}")
    if (
        request.outputs is None
        and len(request.inputs) == len(info.inputs)
        and all(tensor.name in request.inputs and _fits(request.inputs[tensor.name], tensor) for tensor in info.inputs)
    ):
        return
    wrong: list[str] = []
    known = {tensor.name: tensor for tensor in info.inputs}
    wrong += [f"there is no input {shown(name)}" for name in request.inputs if name not in known]
    for name, tensor in known.items():
        array = request.inputs.get(name)
        if array is None:
            wrong.append(f"input {shown(name)} is missing")
        elif not _fits(array, tensor):
            have = f"{datatype_of(array)} {list(array.shape)}"
            wrong.append(f"input {shown(name)} is {have} instead of {tensor.datatype} {list(tensor.shape)}")
    if request.outputs is not None:
        made = {tensor.name for tensor in info.outputs}
        wrong += [f"there is no output {shown(name)}" for name in request.outputs if name not in made]
    if wrong:
        raise RequestError(f"model {shown(info.name)}: {'; '.join(wrong[:20])}")


def _fits(array: Array, tensor: TensorInfo) -> bool:
    return array.shape == tensor.shape and datatype_of(array) == tensor.datatype


def describe(error: BaseException) -> str:
    """The text for users: deliberate errors as they stand, nothing of others."""
    return str(error) if isinstance(error, CorepoolError) else "internal error; the server's log has the details"
