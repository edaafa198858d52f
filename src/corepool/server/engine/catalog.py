"""Tenants' models: packages opened, their inputs and outputs described, which version answers.

It must not know leases, jobs or cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from corepool.compiler.model import ModelPackage
from corepool.compiler.tables import IFP_COLUMNS
from corepool.config import HardwareConfig
from corepool.device.base import STREAM_ALIGNMENT
from corepool.errors import CorepoolError, NotFoundError, PackageError
from corepool.hypervisor.model import MILLION, Model, to_ns
from corepool.isa.table import INSTRUCTION_BYTES
from corepool.runtime.host import Feed, HostPort
from corepool.runtime.tail import HostSteps, Tail, users_inputs
from corepool.server.api import ModelInfo, ModelState, TensorInfo

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip


@dataclass
class Loaded:
    """A package that is open. ``key`` names it in the hypervisor; another package under the same name and version has
    another key."""

    key: str
    package: ModelPackage
    config: HardwareConfig
    known: bool = False  # to the hypervisor
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _host: HostSteps | None = None

    @cached_property
    def ports(self) -> list[Feed | HostPort]:
        """What users send."""
        return users_inputs(self.package, self.config.channels)

    @cached_property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(port.name, DATATYPES[port.dtype], port.shape) for port in self.ports)

    @cached_property
    def outputs(self) -> tuple[TensorInfo, ...]:
        made = [HostPort.from_meta(entry, self.config.channels) for entry in self.package.meta["outputs"]]
        tail = self.host.tail
        if tail is None:
            return tuple(TensorInfo(port.name, "FP32", port.shape) for port in made)
        rest = [TensorInfo(port.name, "FP32", port.shape) for port in made if port.name not in tail.reads]
        return (*rest, *_made(tail, made))

    @property
    def host(self) -> HostSteps:
        """The host's steps, loaded when they are first needed. Raises PackageError if they cannot be."""
        with self._lock:
            if self._host is None:
                self._host = HostSteps.of(self.package)
            return self._host

    def check(self) -> None:
        """Read everything that inferences will rely on. Raises PackageError."""
        try:
            assert self.inputs
            assert self.outputs
            estimate(self.key, self.package, self.config)
        except (KeyError, TypeError, ValueError, IndexError, AssertionError, AttributeError) as error:
            raise PackageError(f"the package describes its model badly ({error!r}): compile it again") from None


def _made(tail: Tail, ports: list[HostPort]) -> list[TensorInfo]:
    """What the host's steps make; where the model leaves a size open, one run tells."""
    if all(isinstance(size, int) and size >= 0 for _, _, shape in tail.makes for size in shape):
        return [TensorInfo(name, DATATYPES.get(kind, "FP32"), tuple(shape)) for name, kind, shape in tail.makes]
    zeros: dict[str, Any] = {port.name: np.zeros(port.shape, port.dtype) for port in ports}
    return [TensorInfo(name, DATATYPES[str(a.dtype)], a.shape) for name, a in tail.run(zeros).items()]


def estimate(key: str, package: ModelPackage, config: HardwareConfig) -> Model:
    """What the hypervisor needs to know of a package, without linking it: times as the package predicts them, stream
    sizes at their upper bounds, layers in proportion to their work on one core."""
    counts = range(1, min(config.cores, len(package.meta["predicted_cycles"])) + 1)
    window = package.meta["window"]
    streams = tuple(int(package.stream_bound[n - 1]) * INSTRUCTION_BYTES for n in counts)
    spent = np.concatenate([[0], np.cumsum(package.ifps[:, IFP_COLUMNS.index("latency")], dtype=np.int64)])
    tilings = package.tilings[package.layers[:, 0] + package.choice[:, 0]]
    work = np.maximum(spent[tilings[:, 0] + tilings[:, 1]] - spent[tilings[:, 0]], 1)
    ends = np.cumsum(work) * MILLION // work.sum()
    return Model(
        name=key,
        latency_ns=tuple(to_ns(int(package.meta["predicted_cycles"][n - 1]), config) for n in counts),
        stream_bytes=streams,
        window_bytes=max(window["window_bytes"], window["streams_offset"] + max(streams))
        + STREAM_ALIGNMENT * len(streams),
        weight_bytes=window["weights_bytes"],
        state_bytes=max(window["streams_offset"] - window["weights_bytes"], 0),
        layer_ends=tuple(int(end) for end in ends),
    )


@dataclass
class Version:
    """One version of a tenant's model. ``loaded`` is None until it is first needed, or if it is not ready."""

    tenant: str
    name: str
    version: str
    sha256: str
    path: Path
    state: ModelState = ModelState.LOADING
    reason: str = ""
    loaded: Loaded | None = None
    window_bytes: int = 0
    told: tuple[tuple[Any, ...], ModelInfo] | None = None  # what users were told last, and what that was made of


class Catalog:
    """All versions. Methods may be called from any thread; they raise NotFoundError for what a tenant does not have."""

    def __init__(self, config: HardwareConfig, check: Callable[[str], Path]) -> None:
        self._config = config
        self._check = check  # by hash: the file, after a check of its content
        self._lock = threading.RLock()
        self._models: dict[tuple[str, str], dict[str, Version]] = {}
        self._count = 0

    def open(self, path: Path, name: str, version: str) -> Loaded:
        """Open and check a package for a model. Raises PackageError and ConfigMismatchError."""
        with self._lock:
            self._count += 1
            key = f"{name}:{version}#{self._count}"
        loaded = Loaded(key, ModelPackage.open(path, self._config), self._config)
        loaded.check()
        return loaded

    def put(self, version: Version) -> None:
        with self._lock:
            self._models.setdefault((version.tenant, version.name), {})[version.version] = version

    def forget(self, version: Version) -> None:
        with self._lock:
            held = self._models.get((version.tenant, version.name), {})
            if held.get(version.version) is version:
                del held[version.version]
            if not held:
                self._models.pop((version.tenant, version.name), None)

    def find(self, tenant: str, name: str, version: str | None = None) -> Version:
        """A version; without a number the highest that is ready, or else the highest."""
        with self._lock:
            held = self._models.get((tenant, name))
            if not held or (version is not None and version not in held):
                which = f"model {name!r}" + ("" if version is None else f" of version {version!r}")
                raise NotFoundError(f"there is no {which}")
            if version is not None:
                return held[version]
            if len(held) == 1:
                return next(iter(held.values()))
            ready = [each for each in held.values() if each.state is not ModelState.UNAVAILABLE]
            return max(ready or held.values(), key=lambda each: order_of(each.version))

    def all(self, tenant: str | None = None) -> list[Version]:
        with self._lock:
            found = [v for (whose, _), held in self._models.items() if tenant in (None, whose) for v in held.values()]
        return sorted(found, key=lambda each: (each.tenant, each.name, order_of(each.version)))

    def need(self, version: Version) -> Loaded:
        """The open package of a version; opens it if that has not been done yet. Raises PackageError."""
        loaded = version.loaded
        if loaded is not None:
            return loaded
        with self._lock:
            if version.loaded is None:
                try:
                    version.loaded = self.open(self._check(version.sha256), version.name, version.version)
                except CorepoolError as error:
                    version.state, version.reason = ModelState.UNAVAILABLE, str(error)
                    raise PackageError(f"model {version.name!r} cannot be used: {error}") from None
                version.state, version.reason = ModelState.READY, ""
            return version.loaded

    def info(self, version: Version) -> ModelInfo:
        """What users are told. Opens the package if need be; a broken one shows as not available."""
        if version.loaded is None and version.state is ModelState.LOADING:
            with suppress(PackageError):
                self.need(version)
        with self._lock:
            held = self._models.get((version.tenant, version.name), {version.version: version})
            versions = tuple(sorted(held, key=order_of))
        loaded = version.loaded
        told, key = version.told, (versions, version.state, version.reason, None if loaded is None else loaded.key)
        if told is not None and told[0] == key:
            return told[1]
        made = ModelInfo(
            version.name,
            version.version,
            versions,
            version.state,
            version.reason,
            inputs=() if loaded is None else loaded.inputs,
            outputs=() if loaded is None else loaded.outputs,
            tenant=version.tenant,
        )
        version.told = key, made
        return made


def order_of(version: str) -> tuple[int, int, str]:
    """Words first, then numbers in their order."""
    return (1, int(version), "") if version.isascii() and version.isdigit() else (0, 0, version)
