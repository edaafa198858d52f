"""One tenant's model on some cores of a device: upload, link, run, and move to other cores while in use.

It must not know how devices execute streams or how packages are compiled.
"""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.linker import Linked, link
from corepool.compiler.model import ModelPackage
from corepool.config import HardwareConfig
from corepool.device.base import STREAM_ALIGNMENT, WINDOW_ALIGNMENT, Boundary, Completion, Counters, Device, Lease
from corepool.device.trace import Traced, write_trace
from corepool.errors import DeviceError, FaultError
from corepool.files import replacing
from corepool.isa.table import INSTRUCTION_BYTES
from corepool.runtime.context import NOBODY, Maps, Saved, Switch, fetch, load
from corepool.runtime.host import HostPort, check_inputs, unpack, unpack_float
from corepool.runtime.packing import Packer
from corepool.runtime.tail import HostSteps

Array = npt.NDArray[Any]


class Clock(Protocol):
    """Where host times come from; seconds that only grow."""

    def __call__(self) -> float: ...


@dataclass(frozen=True)
class Result:
    """One inference: outputs by ONNX name, the device's completion and its counters; ``raw`` holds the outputs as the
    device left them, for comparisons byte by byte. Without data (timing only) the outputs are empty."""

    outputs: dict[str, Array]
    completion: Completion
    counters: Counters
    raw: dict[str, bytes] = field(default_factory=dict)

    @property
    def ddr_bytes(self) -> int:
        """Bytes read from and written to all banks."""
        return sum(self.counters.bytes_read) + sum(self.counters.bytes_written)


@dataclass(frozen=True, slots=True)
class Served:
    """One inference as a server tells of it: the outputs that were asked for, and where the time went: host
    nanoseconds to lay out and upload the inputs, to run, to fetch and unpack the outputs, and for the steps that the
    host computes. ``cycles`` counts all runs of an inference that was suspended, ``completion`` is of the last."""

    outputs: dict[str, Array]
    completion: Completion
    counters: Counters
    cycles: int
    upload_ns: int
    compute_ns: int
    download_ns: int
    host_ns: int


@dataclass(frozen=True)
class Prepared:
    """A model linked for certain cores, ready to be placed; ``link_ms`` is what the dynamic compilation took."""

    cores: tuple[int, ...]
    linked: Linked
    link_ms: float


@dataclass(frozen=True)
class Placement:
    """What it took to bring a model onto its cores; host times in milliseconds."""

    cores: tuple[int, ...]
    link_ms: float
    upload_ms: float
    upload_bytes: int
    stream_bytes: int


class Session:
    """A model on a device. Opens a lease of the cores, uploads and links; ``close`` gives the cores back.

    Raises PackageError for a package that was made for another configuration, DeviceError for cores that cannot be had,
    LinkError if the model cannot be dealt to so many cores.
    """

    def __init__(
        self,
        device: Device,
        package: ModelPackage,
        cores: Sequence[int],
        *,
        data: bool = True,
        clock: Clock = time.perf_counter,
        host: HostSteps | None = None,
    ) -> None:
        """``host``: the host's steps if they are loaded already; sessions of one model may share them."""
        self.device = device
        self._package = package
        self._data = data
        self._clock = clock
        meta, block = package.meta, device.config.channels
        self.inputs = [HostPort.from_meta(entry, block) for entry in meta["inputs"]]
        self.ports = [HostPort.from_meta(entry, block) for entry in meta["outputs"]]
        self._packers = [Packer(port) for port in self.inputs] if data else []
        self._host = (host or HostSteps.of(package)) if data else HostSteps()
        self._tail = self._host.tail
        self._first_s = 0.0  # what the host's first steps took
        self._begun_s = self._started_s = 0.0
        self._lease: Lease | None = None
        self._loaded: tuple[list[npt.NDArray[np.uint8]], int] = [], 0  # streams, and the layer that they begin with
        # Of each word of the window a bank that holds it; None while only the inputs are there.
        self._owner: npt.NDArray[np.int8] | None = None
        self._asked = self._spent = 0
        self.placement = self.place(self.prepare(cores))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores of the device that the model runs on, or last ran on."""
        return self.placement.cores

    def prepare(self, cores: Sequence[int]) -> Prepared:
        """Link the model for other cores; nothing changes yet, and the model may go on running meanwhile."""
        chosen = tuple(cores)
        begin = self._clock()
        linked = link(self._package, chosen, self.device.config)
        return Prepared(chosen, linked, (self._clock() - begin) * 1e3)

    def release(self) -> None:
        """Give the cores back (the device clears them); the session can be placed again."""
        if self._lease is not None:
            lease, self._lease = self._lease, None
            self.device.close_lease(lease)

    def place(self, prepared: Prepared) -> Placement:
        """Lease the cores that the model was linked for and upload weights and streams."""
        placement = self._place(prepared, 0)
        self._loaded = prepared.linked.streams, 0
        return placement

    def _place(self, prepared: Prepared, spare: int) -> Placement:
        """``spare``: bytes that later streams may need beyond those of now."""
        if self._lease is not None:
            raise DeviceError("the model is still on its cores: release them before placing it on others")
        begin = self._clock()
        window, weights = self._package.meta["window"], self._package.weights
        room = sum(-(-stream.nbytes // STREAM_ALIGNMENT) * STREAM_ALIGNMENT for stream in prepared.linked.streams)
        size = max(window["window_bytes"], window["streams_offset"] + max(room, spare))
        lease = self.device.open_lease(prepared.cores, -(-size // WINDOW_ALIGNMENT) * WINDOW_ALIGNMENT)
        try:
            if self._data:
                self.device.write(lease, 0, weights)
            self.device.load_streams(lease, prepared.linked.streams, window["streams_offset"])
        except BaseException:
            self.device.close_lease(lease)
            raise
        self._lease = lease
        self.placement = Placement(
            cores=prepared.cores,
            link_ms=prepared.link_ms,
            upload_ms=(self._clock() - begin) * 1e3,
            upload_bytes=weights.nbytes * len(lease.banks) * self._data + prepared.linked.stream_bytes,
            stream_bytes=prepared.linked.stream_bytes,
        )
        return self.placement

    def move(self, cores: Sequence[int]) -> Placement:
        """Go on on other cores: link, give the old cores back, take the new ones, upload."""
        prepared = self.prepare(cores)
        self.release()
        return self.place(prepared)

    @property
    def running(self) -> bool:
        """True from ``start`` until the inference has ended."""
        return self._lease is not None and self.device.running(self._lease)

    def start(self, inputs: Mapping[str, Array] | None) -> int:
        """Upload the inputs and start an inference; ``finish`` waits for it. ``None`` leaves the inputs as they are.

        Returns the device cycle at which it starts.

        Raises InputError that lists what is wrong with the inputs and what is expected.
        """
        lease = self._open()
        self._begun_s = self._clock()
        self._first_s = 0.0
        if inputs is not None and self._data:
            if self._host.head is not None:
                inputs = self._host.first(inputs)
                self._first_s = self._clock() - self._begun_s
            check_inputs(self.inputs, inputs, values=False)  # those are looked at as they are packed
            laid = [packer.pack(inputs[packer.port.name]) for packer in self._packers]
            for port, packed in zip(self.inputs, laid, strict=True):
                self.device.write(lease, port.offset, packed)
        if self._loaded[1] > 0:  # the streams begin in the middle: an inference was resumed
            linked = link(self._package, self.cores, self.device.config)
            self.device.load_streams(lease, linked.streams, self._package.meta["window"]["streams_offset"])
            self._loaded = linked.streams, 0
        self._owner = None
        begin = self.device.start(lease)
        self._spent = 0
        self._started_s = self._clock()
        return begin

    def stop(self, after: Boundary = Boundary.LAYER, passing: int = 0) -> int:
        """Ask the running inference to stop, see ``Device.stop``; ``suspend`` or ``finish`` then waits for it."""
        self._asked = self.device.stop(self._open(), after, passing)
        return self._asked

    def suspend(self) -> Saved | None:
        """Wait until the inference has stopped, read what it needs to go on, and give the cores back.

        None if it came to its end instead: ``finish`` then fetches its outputs. Raises FaultError as ``finish`` does.
        """
        lease = self._open()
        completion = self._wait(lease)
        if completion.stopped is None:
            return None
        streams, _ = self._loaded
        maps, config = Maps(self.device.config, self._package.meta["window"]), self.device.config
        layer = completion.stopped.layer + 1
        owner = self._inputs_owner(lease) if self._owner is None else self._owner
        maps.written(owner, streams, completion.syncs + 1)
        home = lease.cores[0]
        rest = link(self._package, [home], config, layer).streams
        live = maps.needed(rest, [config.bank_of(home)], self._finals(maps), config.bank_of(home))
        wanted = live[config.bank_of(home)] & (owner != NOBODY)
        places, data = fetch(self.device, lease, owner, wanted)
        self.release()
        return Saved(
            model=str(self._package.meta["model"]),
            next_layer=layer,
            places=places,
            data=data,
            drain_cycles=completion.end_cycle - min(max(self._asked, completion.start_cycle), completion.end_cycle),
            cycles=self._spent + completion.cycles,
        )

    def resume(self, saved: Saved, cores: Sequence[int]) -> Switch:
        """Go on with a suspended inference of this model on any cores; ``finish`` waits for its end.

        The result's completion is that of the last run. Raises DeviceError for a state of another model.
        """
        if saved.model != self._package.meta["model"]:
            raise DeviceError(f"the state is that of model {saved.model!r}, not of {self._package.meta['model']!r}")
        config, begin = self.device.config, self._clock()
        linked = link(self._package, tuple(cores), config, saved.next_layer)
        prepared = Prepared(tuple(cores), linked, (self._clock() - begin) * 1e3)
        bound = int(self._package.stream_bound[len(prepared.cores) - 1]) * INSTRUCTION_BYTES
        placement = self._place(prepared, bound + len(prepared.cores) * STREAM_ALIGNMENT)
        lease, maps = self._open(), Maps(config, self._package.meta["window"])
        banks = [config.bank_of(core) for core in prepared.cores]
        needed = maps.needed(linked.streams, banks, self._finals(maps), lease.home_bank)
        loaded = load(self.device, lease, saved, needed)
        self._loaded = linked.streams, saved.next_layer
        owner = self._owner = np.full(maps.words, NOBODY, np.int8)
        for bank, there in needed.items():
            owner[saved.places[there[saved.places]]] = bank
        self.device.start(lease)
        self._spent = saved.cycles
        return Switch(
            drain_cycles=saved.drain_cycles,
            saved_bytes=saved.bytes,
            loaded_bytes=loaded,
            weight_bytes=placement.upload_bytes - placement.stream_bytes,
            stream_bytes=placement.stream_bytes,
            clear_cycles=config.clear_cycles,
            link_ms=prepared.link_ms,
        )

    def _inputs_owner(self, lease: Lease) -> npt.NDArray[np.int8]:
        """Before the first layer only the inputs are there, in all banks."""
        maps = Maps(self.device.config, self._package.meta["window"])
        owner = np.full(maps.words, NOBODY, np.int8)
        for port in self.inputs:
            owner[maps.range(port.offset, port.bytes)] = lease.home_bank
        return owner

    def _finals(self, maps: Maps) -> npt.NDArray[np.bool_]:
        """The words of the outputs."""
        words = maps.none()
        for port in self.ports:
            words |= maps.range(port.offset, port.bytes)
        return words

    def advance(self, cycles: int) -> None:
        """Let device time pass until the inference has ended, but at most so many cycles."""
        lease = self._open()
        if self.device.running(lease):
            try:
                self.device.wait(lease, cycles)
            except DeviceError:
                if not self.device.running(lease):
                    raise

    def settle(self) -> None:
        """Have the device do all work up to the present now, rather than when somebody asks for its results."""
        self.device.read(self._open(), 0, 1)

    def finish(self, timeout_cycles: int | None = None) -> Result:
        """Wait for the inference and fetch its outputs. Raises FaultError if a fault stopped it."""
        lease = self._open()
        completion = self._whole(lease, timeout_cycles)
        counters = self.device.counters(lease)
        if not self._data:
            return Result({}, completion, counters)
        words = {port.name: self.device.read(lease, port.offset, port.bytes) for port in self.ports}
        raw = {name: data.tobytes() for name, data in words.items()}
        return Result(self._outputs(words), completion, counters, raw)

    def _wait(self, lease: Lease, timeout_cycles: int | None = None) -> Completion:
        completion = self.device.wait(lease, timeout_cycles)
        if completion.fault is not None:
            raise FaultError(f"the model was stopped by a fault: {completion.fault}")
        return completion

    def _whole(self, lease: Lease, timeout_cycles: int | None = None) -> Completion:
        """As ``_wait``, for an inference that was not stopped before its end."""
        completion = self._wait(lease, timeout_cycles)
        if completion.stopped is not None:
            raise DeviceError(f"the inference stopped after layer {completion.stopped.layer}: suspend and resume it")
        return completion

    def collect(self, wanted: Collection[str] | None = None) -> Served:
        """As ``finish``, with the outputs in ``wanted`` only (None: all), and timed. Raises FaultError as it does."""
        lease = self._open()
        completion = self._whole(lease)
        ended = self._clock()
        counters = self.device.counters(lease)
        words = {port.name: self.device.read(lease, port.offset, port.bytes) for port in self.ports}
        tail = self._tail
        fed = {} if tail is None else {port.name: unpack(port, words[port.name]) for port in self.ports}
        reads = set() if tail is None else tail.reads
        outputs = {port.name: unpack_float(port, words[port.name]) for port in self.ports if port.name not in reads}
        fetched = self._clock()
        if tail is not None:
            outputs |= tail.run(fed)
        made = self._clock()
        return Served(
            outputs if wanted is None else {name: outputs[name] for name in outputs if name in wanted},
            completion,
            counters,
            cycles=self._spent + completion.cycles,
            upload_ns=int((self._started_s - self._begun_s - self._first_s) * 1e9),
            compute_ns=int((ended - self._started_s) * 1e9),
            download_ns=int((fetched - ended) * 1e9),
            host_ns=int((made - fetched + self._first_s) * 1e9),
        )

    def traced(self, name: str) -> Traced:
        """What each instruction of the latest inference did when, for a trace; empty if the device does not tell."""
        timeline = getattr(self.device, "timeline", None)
        return Traced(name, [] if timeline is None else timeline(self._open()))

    def run(self, inputs: Mapping[str, Array] | None) -> Result:
        """Start and finish."""
        self.start(inputs)
        return self.finish()

    def _outputs(self, words: Mapping[str, npt.NDArray[np.uint8]]) -> dict[str, Array]:
        """ONNX outputs by name: ports dequantised to float32, and what the tail makes as it makes it."""
        if self._tail is None:
            return {port.name: unpack_float(port, words[port.name]) for port in self.ports}
        made = self._tail.run({port.name: unpack(port, words[port.name]) for port in self.ports})
        rest = [port for port in self.ports if port.name not in self._tail.reads]
        return {**{port.name: unpack_float(port, words[port.name]) for port in rest}, **made}

    def _open(self) -> Lease:
        if self._lease is None:
            raise DeviceError("the model is on no cores: it was closed or released")
        return self._lease

    def close(self) -> None:
        """Give the cores back. Closing twice does no harm."""
        self.release()


def warm(package: ModelPackage, config: HardwareConfig) -> None:
    """Do now what a first session of such a model would have to wait for: what links and lays out is compiled."""
    link(package, (0,), config)
    for entry in package.meta["inputs"]:
        port = HostPort.from_meta(entry, config.channels)
        Packer(port).pack(np.zeros(port.shape, port.dtype))


def save_trace(path: Path, config: HardwareConfig, runs: Sequence[Traced]) -> None:
    """Write a trace file (JSON for Chrome and Perfetto), whole or not at all. Raises OSError."""
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
        write_trace(text, config, runs)
        text.flush()
        text.detach()


def redeal(sessions: Sequence[Session], cores: Sequence[Sequence[int]]) -> list[Placement]:
    """Deal a device's cores anew among sessions, all at once: link all, release all, place all."""
    prepared = [session.prepare(chosen) for session, chosen in zip(sessions, cores, strict=True)]
    for session in sessions:
        session.release()
    return [session.place(each) for session, each in zip(sessions, prepared, strict=True)]
