"""What all experiments share: networks written and compiled once, and timing runs on the simulator.

It must not know what is being investigated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corepool.compiler.model import ModelPackage
from corepool.config import DdrConfig, HardwareConfig, preset
from corepool.device.base import Counters
from corepool.device.simulator import Simulator
from corepool.evaluation.anchors import NETWORKS
from corepool.runtime.session import Session

if TYPE_CHECKING:
    from corepool.compiler.static.graph import Graph
    from corepool.compiler.static.tiling import Options

Tell = Callable[[str, float], None]

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


def _light(package: ModelPackage) -> ModelPackage:
    """The package without its weights: only time is asked for."""
    return replace(package, weights=np.zeros(0, np.uint8))


@dataclass
class Lab:
    """Networks and packages, made when first asked for. ``folder`` holds ONNX files while the lab is in use."""

    folder: Path
    quick: bool = False
    seed: int = 0
    config: HardwareConfig = field(default_factory=lambda: preset("u200"))
    networks: tuple[str, ...] = NETWORKS
    _graphs: dict[tuple[str, bool], Graph] = field(default_factory=dict)
    _packages: dict[tuple[str, str, Options | None, bool], ModelPackage] = field(default_factory=dict)
    _timings: dict[tuple[int, str, tuple[int, ...]], Timing] = field(default_factory=dict)
    _simulators: dict[str, Simulator] = field(default_factory=dict)

    def onnx(self, name: str) -> Path:
        """The ONNX file of a network of the zoo, written from the seed."""
        from corepool.zoo import write

        path = self.folder / f"{name}.onnx"
        if not path.exists():
            write(name, path, seed=self.seed)
        return path

    def graph(self, name: str, fold_stem: bool = True) -> Graph:
        """The layer graph of a network."""
        from corepool.compiler.static.frontend.entry import import_model

        key = (name, fold_stem)
        if key not in self._graphs:
            self._graphs[key] = import_model(self.onnx(name), fold_stem=fold_stem).graph
        return self._graphs[key]

    def package(
        self, name: str, config: HardwareConfig | None = None, options: Options | None = None, fold_stem: bool = True
    ) -> ModelPackage:
        """A network compiled for a machine (default: the pool); without its weights, since only time is asked for."""
        from corepool.compiler.static.compile import compile_graph

        config = config or self.config
        key = (name, config.name, options, fold_stem)
        if key not in self._packages:
            made = compile_graph(self.graph(name, fold_stem), config, options=options).package
            self._packages[key] = _light(made)
        return self._packages[key]

    def adopt(self, name: str, package: ModelPackage) -> None:
        """Take over a package of the pool that was compiled elsewhere, so that it need not be made again."""
        self._packages.setdefault((name, self.config.name, None, True), _light(package))

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
