"""What can be loaded, and its loading: a tenant's own uploads before the operator's repository, compiled when needed.

It must not know transports. It is the data plane's Catalogue.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from corepool.errors import NotFoundError, RequestError
from corepool.server.api import Identity, ModelInfo, Models, ModelState
from corepool.server.compilations import FAILED, QUEUED, RUNNING, Compilations, Compiling
from corepool.server.repository import (
    CALIBRATION,
    SOURCES,
    ModelConfig,
    ModelFolder,
    Source,
    check_version,
    read_config,
)
from corepool.server.tensors import shown
from corepool.server.uploads import STAMP, Uploads, no_model

# What clients made for Triton write into configurations.
OF_OTHERS = frozenset(
    {*("backend", "platform", "runtime", "default_model_filename", "max_batch_size", "input", "output", "parameters")}
    | {*("version_policy", "instance_group", "dynamic_batching", "optimization", "model_warmup", "response_cache")}
)
BUILT = "package.cpk"


class Library:
    """``catalogue`` is the operator's repository or None; ``built`` is where packages made from it are kept."""

    def __init__(
        self,
        uploads: Uploads,
        catalogue: ModelFolder | None,
        built: Path,
        compilations: Compilations,
        models: Models,
        config: str,
    ) -> None:
        self.uploads = uploads
        self.compilations = compilations
        self._catalogue = catalogue
        self._built = built
        self._models = models
        self._config = config

    def index(self, who: Identity) -> list[ModelInfo]:
        """Versions that could be loaded, as they are before that."""
        folders = [self.uploads.folder(who.tenant)] if who.tenant else []
        if self._catalogue is not None:
            folders.append(self._catalogue)
        found: dict[str, list[ModelInfo]] = {}
        for folder in folders:
            for name in folder.names():
                if name not in found:
                    sources = folder.sources(name)
                    found[name] = [self._row(who, source, tuple(sources)) for source in sources.values()]
        return [row for rows in found.values() for row in rows]

    def _row(self, who: Identity, source: Source, versions: tuple[str, ...]) -> ModelInfo:
        state, reason = ModelState.UNAVAILABLE, "not loaded"
        last = self.compilations.latest(who.tenant, source.name, source.version)
        if last is not None and last.state in (QUEUED, RUNNING):
            state, reason = ModelState.LOADING, f"compiling, {last.progress:.0%}"
        elif last is not None and last.state == FAILED:
            before = (self._place(source) / STAMP).is_file()
            reason = f"{'not loaded; the latest upload was ' if before else ''}not compiled: {last.error}"
        return ModelInfo(source.name, source.version, versions, state, reason, tenant=who.tenant)

    async def load(self, who: Identity, name: str, parameters: dict[str, Any]) -> None:
        """Compile what has to be and load it. Files and a configuration may come along, as Triton's clients send
        them. Raises NotFoundError, RequestError, ModelError and what the engine raises."""
        config = _config_of(parameters)
        await self._put_files(who, name, parameters)
        folder = self._folder_of(who, name)
        for source in folder.chosen(name, config):
            package = await self.package(who, source)
            await asyncio.to_thread(self._models.load_package, who, name, source.version, str(package))

    async def unload(self, who: Identity, name: str) -> None:
        """Unload all versions. Raises NotFoundError for a model that is not there; one that is not loaded is fine."""
        try:
            await asyncio.to_thread(self._models.unload, who, name)
        except NotFoundError:
            self._folder_of(who, name)

    def _folder_of(self, who: Identity, name: str) -> ModelFolder:
        own = self.uploads.folder(who.tenant)
        if own.sources(name):
            return own
        if self._catalogue is not None and self._catalogue.sources(name):
            return self._catalogue
        raise NotFoundError(no_model(name))

    def source(self, who: Identity, name: str, version: str) -> Source:
        """A tenant's own version. Raises NotFoundError."""
        found = self.uploads.folder(who.tenant).sources(name).get(version)
        if found is None:
            raise NotFoundError(no_model(name, version))
        return found

    async def package(self, who: Identity, source: Source) -> Path:
        """The compiled package of a version, made now if need be."""
        place = self._place(source)
        stamp = await asyncio.to_thread(_digest, source, self._config)
        if _stamped(place, stamp):
            return place / BUILT
        return await self.compilations.wait(self._compile(who, source, place, stamp))

    async def upload(self, who: Identity, name: str, version: str, body: AsyncIterator[bytes], load: bool) -> Compiling:
        """Store a model's file and begin to compile it. If it cannot be compiled, the file that was there before, and
        could be, takes its place again."""
        await self.uploads.put_model(who.tenant, name, version, body)
        earlier = self.compilations.latest(who.tenant, name, version)
        if earlier is not None:
            await self.compilations.stop(earlier)
        return await self.compile(who, self.source(who, name, version), load)

    async def remove(self, who: Identity, name: str, version: str | None = None) -> None:
        """Unload a tenant's own model, or one version of it, and delete its files. Raises NotFoundError."""
        if not self.uploads.folder(who.tenant).sources(name):
            raise NotFoundError(no_model(name, version))
        for each in self.compilations.all(who.tenant):
            if each.source.name == name and version in (None, each.source.version):
                await self.compilations.stop(each)
        with contextlib.suppress(NotFoundError):
            await asyncio.to_thread(self._models.unload, who, name, version)
        await asyncio.to_thread(self.uploads.remove, who.tenant, name, version)

    def forget(self, tenant: str) -> None:
        """A tenant was removed: stop its compilations, delete its files."""
        self.compilations.cancel_all(tenant)
        self.uploads.forget(tenant)

    async def compile(self, who: Identity, source: Source, load: bool) -> Compiling:
        """Begin to compile a version; with ``load`` it is loaded as soon as it is ready."""
        stamp = await asyncio.to_thread(_digest, source, self._config)
        return self._compile(who, source, self._place(source), stamp, load)

    def _compile(self, who: Identity, source: Source, place: Path, stamp: str, load: bool = False) -> Compiling:
        uploaded = place.is_relative_to(self.uploads.root)

        def finish(made: Path) -> Path:
            if uploaded and not place.is_dir():
                raise NotFoundError(no_model(source.name, source.version))  # removed meanwhile, or its tenant was
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            (place / STAMP).unlink(missing_ok=True)
            made.replace(place / BUILT)
            (place / STAMP).write_text(stamp, encoding="utf-8")
            if uploaded:
                self.uploads.prove(place)
            if load:
                self._models.load_package(who, source.name, source.version, str(place / BUILT))
            return place / BUILT

        def give_up() -> None:
            if uploaded and _digest(source, self._config) == stamp:  # else something else was uploaded meanwhile
                self.uploads.restore(place)

        return self.compilations.start(who.tenant, source, finish, give_up)

    def _place(self, source: Source) -> Path:
        """Where a version's package is kept: beside an upload, apart from the operator's folder."""
        folder = source.path.parent
        return folder if folder.is_relative_to(self.uploads.root) else self._built / source.name / source.version

    async def _put_files(self, who: Identity, name: str, parameters: dict[str, Any]) -> None:
        files = []
        for key, content in parameters.items():
            if key.startswith("file:"):
                version, _, file = key.removeprefix("file:").partition("/")
                if file not in (*SOURCES, CALIBRATION):
                    raise RequestError(f"{shown(key)}: files are <version>/{', '.join((*SOURCES, CALIBRATION))}")
                files.append((check_version(version), file, _decoded(key, content)))
        for version, file, data in files:
            put = self.uploads.put_calibration if file == CALIBRATION else self.uploads.put_model
            await put(who.tenant, name, version, _whole(data))


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _decoded(key: str, content: Any) -> bytes:
    """A file's content: bytes, or a text in base 64."""
    if isinstance(content, bytes):
        return content
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise RequestError(f"{shown(key)} must be a file in base 64") from None


def _config_of(parameters: dict[str, Any]) -> ModelConfig | None:
    """The configuration that comes with a request to load, as JSON; Triton's own settings mean nothing here."""
    text = parameters.get("config")
    if text is None:
        return None
    from pydantic_core import from_json

    try:
        values = from_json(text)
    except (ValueError, TypeError) as error:
        raise RequestError(f"config must be JSON: {error}") from None
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key not in OF_OTHERS}
    return read_config(values, "config")


def _digest(source: Source, config: str) -> str:
    """Stands for everything that a package is made from."""
    state = hashlib.sha256(f"{config}\0{source.path.name}\0".encode())
    files = [source.path]
    if source.calibration is not None:
        folder = source.calibration
        files += sorted(folder.iterdir()) if folder.is_dir() else [folder]
    if source.path.suffix == ".onnx":  # weights may lie beside it
        files += sorted(
            each for each in source.path.parent.iterdir() if each.suffix not in (".cpk", ".sha256", ".part")
        )
    for file in dict.fromkeys(files):
        if file.is_file():
            state.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    state.update(block)
    return state.hexdigest()


def _stamped(place: Path, stamp: str) -> bool:
    try:
        return (place / BUILT).is_file() and (place / STAMP).read_text(encoding="utf-8") == stamp
    except OSError:
        return False
