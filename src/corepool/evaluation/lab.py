"""What all experiments share: networks written and compiled once, and timing runs on the simulator.

It must not know what is being investigated.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from corepool.compiler.dynamic import link
from corepool.compiler.model import ModelPackage
from corepool.config import DdrConfig, HardwareConfig, preset
from corepool.device.base import Counters
from corepool.device.simulator import Simulator
from corepool.evaluation.anchors import NETWORKS
from corepool.evaluation.neighbours import Attack, Neighbours
from corepool.evaluation.workers import Crew, Tell, in_turn
from corepool.files import replacing
from corepool.hypervisor.backends import measure, packed
from corepool.runtime.session import Session

if TYPE_CHECKING:
    from corepool.compiler.static.graph import Graph
    from corepool.compiler.static.tiling import Options

Item = TypeVar("Item")
Result = TypeVar("Result")
Shape = tuple[int, ...]

SLOW_TO_COMPILE = ("inception_v3", "resnet50", "vgg16")  # they are begun first, so that processors end together

# Single static cores of 4096 MACs with the memories and the bandwidth of the whole card.
_WIDE = HardwareConfig(
    name="large 4x32x32",
    cores=1,
    banks=1,
    pixels=4,
    channels=32,
    feature_bytes=4 << 20,
    weight_bytes=2 << 20,
    result_bytes=512 << 10,
    parameter_bytes=256 << 10,
    burst_bytes=4096,
    ddr=DdrConfig(line_bytes=256),
)


def large_cores() -> dict[str, HardwareConfig]:
    """The static single cores that stand against the pool, by array shape."""
    return {"16x16x16": preset("large"), "4x32x32": _WIDE}


@dataclass(frozen=True)
class Timing:
    """One inference: cycles, bytes between DDR and cores, and busy cycles of the array over all cores."""

    cycles: int
    ddr_bytes: int
    steps: int

    @classmethod
    def of(cls, counters: Counters) -> Timing:
        moved = sum(counters.bytes_read) + sum(counters.bytes_written)
        return cls(counters.cycles, moved, sum(counters.steps))


class Need(NamedTuple):
    """A package that an experiment will ask for: network, machine (None: the pool), options."""

    name: str
    config: HardwareConfig | None = None
    options: Options | None = None


@dataclass(frozen=True)
class StaticCost:
    """Static compilation of an ONNX file, warm: reading and compiling in seconds, the package in bytes."""

    import_s: float
    compile_s: float
    compile_cpu_s: float
    package_bytes: int
    weight_bytes: int
    layers: int
    code: int

    @property
    def seconds(self) -> float:
        return self.import_s + self.compile_s


@dataclass
class Lab:
    """Networks and packages, made when first asked for. ``folder`` holds ONNX files, and packages without weights by
    what they were made of, while the lab is in use; the labs of a ``crew`` share it."""

    folder: Path
    quick: bool = False
    seed: int = 0
    config: HardwareConfig = field(default_factory=lambda: preset("u200"))
    networks: tuple[str, ...] = NETWORKS
    crew: Crew | None = None
    _graphs: dict[str, Graph] = field(default_factory=dict)
    _import_s: dict[str, float] = field(default_factory=dict)
    _packages: dict[str, ModelPackage] = field(default_factory=dict)
    _timings: dict[tuple[int, str, tuple[int, ...]], Timing] = field(default_factory=dict)
    _simulators: dict[str, Simulator] = field(default_factory=dict)
    _warm: bool = False

    def each(
        self, function: Callable[[Lab, Item], Result], items: Sequence[tuple[str, Item]], tell: Tell
    ) -> list[Result]:
        """``function(lab, item)`` of every item (with a text for ``tell``), by the crew if there is one; in order."""
        if self.crew is None:
            return in_turn(self, function, items, tell)
        return self.crew.each(function, items, tell)

    def prepare(self, needs: Iterable[Need], tell: Tell) -> None:
        """Compile what is not there yet: first networks for the pool."""
        missing = {self._path(need): need for need in needs}
        chosen = [need for path, need in missing.items() if not path.exists()]
        if self.crew is not None and not self._warm and chosen:
            # The first time on a machine compiler and simulator are compiled themselves: one process each does that
            # for all, and files are written meanwhile.
            self._warm = True
            names = dict.fromkeys(need.name for need in chosen)
            warming: list[tuple[str, Callable[[Lab], object]]] = [
                ("warming up the compiler", _warm_compiler),
                ("warming up the simulator", _warm_simulator),
            ]
            warming += [(f"writing {name}", partial(Lab.onnx, name=name)) for name in names]
            self.each(_do, warming, lambda what, share: tell(what, 0.2 * share))
        slow = {name: place for place, name in enumerate(SLOW_TO_COMPILE)}
        chosen.sort(key=lambda need: (slow.get(need.name, len(slow)), need.options is None))
        first = [need for need in chosen if need == Need(need.name)]
        then = [need for need in chosen if need not in first]
        for part, begin, end in ((first, 0.2, 0.7), (then, 0.7, 1.0)):
            items = [(f"compiling {need.name}", need) for need in part]
            self.each(_compile, items, lambda what, s, a=begin, b=end: tell(what, a + (b - a) * s))  # type: ignore[misc]

    def onnx(self, name: str) -> Path:
        """The ONNX file of a network of the zoo, written from the seed."""
        from corepool.zoo import write

        path = self.folder / f"{name}.onnx"
        if not path.exists():
            write(name, path, seed=self.seed)
        return path

    def graph(self, name: str) -> Graph:
        """The layer graph of a network."""
        from corepool.compiler.static.frontend.entry import import_model

        if name not in self._graphs:
            path = self.onnx(name)
            begin = time.perf_counter()
            self._graphs[name] = import_model(path).graph
            self._import_s[name] = time.perf_counter() - begin
        return self._graphs[name]

    def package(self, name: str, config: HardwareConfig | None = None, options: Options | None = None) -> ModelPackage:
        """A network compiled for a machine (default: the pool); without its weights, since only time is asked for."""
        need = Need(name, config, options)
        path = self._path(need)
        if path.name not in self._packages:
            if not path.exists():
                self.compile(need)
            self._packages[path.name] = ModelPackage.open(path, config or self.config)
        return self._packages[path.name]

    def static_cost(self, name: str) -> StaticCost:
        """What compiling a network for the pool took."""
        path = self._path(Need(name))
        if not path.exists():
            self.compile(Need(name))
        return StaticCost(**json.loads(path.with_suffix(".json").read_text()))

    def _path(self, need: Need) -> Path:
        """Where a package is, by what it is made of."""
        options = None if need.options is None else asdict(need.options)
        made_of = [need.name, self.seed, (need.config or self.config).fingerprint(), options]
        return self.folder / f"{need.name}-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]}.cpk"

    def compile(self, need: Need) -> None:
        """Compile, and leave the package without weights, and what it took, in the folder."""
        from corepool.compiler.static.compile import compile_graph

        self.warm_up()
        config, graph = need.config or self.config, self.graph(need.name)
        begin, cpu = time.perf_counter(), time.process_time()
        package = compile_graph(graph, config, options=need.options).package
        took, worked = time.perf_counter() - begin, time.process_time() - cpu
        path, weights = self._path(need), package.weights.nbytes
        fresh = path.with_name(f"fresh-{path.name}")
        replace(package, weights=np.zeros(0, np.uint8)).save(fresh, config)
        read = self._import_s.get(need.name, 0.0)
        size = fresh.stat().st_size + weights
        cost = StaticCost(read, took, worked, size, weights, len(package.layers), len(package.code))
        with replacing(path.with_suffix(".json")) as file:
            file.write(json.dumps(asdict(cost)).encode())
        fresh.replace(path)  # now it counts as made

    def warm_up(self) -> None:
        """Load both compilers, and compile their own code the first time on a machine: before any clock runs."""
        if not self._warm:
            from corepool.compiler.static import compile_model
            from corepool.evaluation.small import small_network

            self._warm = True
            path = small_network(self.folder, self.seed)
            compile_model(path, self.config).save(path.with_suffix(".cpk"))
            # As opened: code compiled for arrays in memory is not that for those of a file, which cannot be written.
            link(ModelPackage.open(path.with_suffix(".cpk"), self.config), range(self.config.cores), self.config)

    def simulator(self, config: HardwareConfig | None = None) -> Simulator:
        """An idle simulator without data; the same one for every call with the same machine."""
        config = config or self.config
        if config.name not in self._simulators:
            self._simulators[config.name] = Simulator(config, data=False)
        return self._simulators[config.name]

    def timing(self, package: ModelPackage, cores: Sequence[int], config: HardwareConfig | None = None) -> Timing:
        """One inference alone on the given cores, cycle by cycle."""
        config = config or self.config
        key = (id(package), config.name, tuple(cores))
        if key not in self._timings:
            with Session(self.simulator(config), package, cores, data=False) as session:
                self._timings[key] = Timing.of(session.run(None).counters)
        return self._timings[key]

    def latencies(self, name: str, chosen: Sequence[Shape], tell: Tell) -> dict[Shape, int]:
        """Nanoseconds of one inference on idle cores of each shape, measured once and kept in the folder."""
        path = self._path(Need(name)).with_suffix(".latencies.json")
        known: dict[Shape, int] = {}
        if path.exists():
            known = {tuple(shape): taken for shape, taken in json.loads(path.read_text())}
        missing = [shape for shape in chosen if shape not in known]
        if missing:
            measured = self.each(_measure, [(f"measuring {name}", (name, shape)) for shape in missing], tell)
            known |= dict(zip(missing, measured, strict=True))
            with replacing(path) as file:
                file.write(json.dumps([[list(shape), taken] for shape, taken in known.items()]).encode())
        return {shape: known[shape] for shape in chosen}

    def packed(self) -> list[Shape]:
        """The shapes of 1 .. all cores in as few banks as possible."""
        return [packed(n, self.config.cores_per_bank) for n in range(1, self.config.cores + 1)]

    def fps(self, timing: Timing, config: HardwareConfig | None = None) -> float:
        """Frames per second of one image after the other."""
        return (config or self.config).clock_hz / timing.cycles

    def share(self, package: ModelPackage, timing: Timing, cores: int, config: HardwareConfig | None = None) -> float:
        """Useful multiply-accumulates over what so many cores could do meanwhile."""
        config = config or self.config
        return float(package.meta["macs"] / (timing.cycles * cores * config.macs_per_cycle))

    def counts(self) -> list[int]:
        """The numbers of cores (or tasks) that a sweep visits: all of them, or a few for a quick look."""
        return [1, 2, 4, 7, 8, 12, 16] if self.quick else list(range(1, self.config.cores + 1))


def _compile(lab: Lab, need: Need) -> None:
    lab.compile(need)


def _do(lab: Lab, item: Callable[[Lab], object]) -> None:
    item(lab)


def _warm_compiler(lab: Lab) -> None:
    lab.warm_up()


def _warm_simulator(lab: Lab) -> None:
    """The simulator's code, by streams that need no compiler."""
    neighbours = Neighbours.hostile(lab.simulator(), range(2), Attack("both", group=2))
    neighbours.poke()
    neighbours.pass_time(1000)
    for lease in neighbours.leases:
        lab.simulator().stop(lease)
    neighbours.close()


def _measure(lab: Lab, item: tuple[str, Shape]) -> int:
    name, shape = item
    return measure(lab.simulator(), lab.package(name), [shape])[shape]
