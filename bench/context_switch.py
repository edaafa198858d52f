"""What a layer-level context switch costs: `python bench/context_switch.py`, on simulator or hardware.

An inference is stopped at random moments, its state is read, and it goes on on other cores; outputs must stay the same
to the byte. Cycles: from the request to the stop, for the state, weights and streams at the rate of the host's bus, and
for clearing. `--device rtl` compiles the pool's Verilog (config tiny by default).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import figures
from corepool import zoo
from corepool.compiler.model import ModelPackage
from corepool.compiler.static import compile_model
from corepool.config import HardwareConfig, preset
from corepool.device.base import Device
from corepool.device.simulator import Simulator
from corepool.hypervisor.settings import Costs
from corepool.runtime.session import Session
from corepool.zoo import photos

OUT = Path(__file__).parent / "out"
SEED = 0


def small(config: HardwareConfig) -> ModelPackage:
    """A network of three convolutions that fits the smallest pool."""
    from corepool.compiler.static.compile import compile_graph
    from corepool.compiler.static.graph import Conv, Graph, Port, Requant, Tensor

    rng = np.random.default_rng(SEED)
    channels = (3, 16, 24, 8)
    layers = []
    for place in range(3):
        inputs, outputs = channels[place : place + 2]
        weight = rng.integers(-127, 128, (outputs, inputs, 3, 3)).astype(np.int8)
        requant = Requant(
            np.zeros(outputs, np.int32), np.full(outputs, 40000, np.int64), np.full(outputs, 24, np.int64), 0
        )
        layers.append(Conv(name=f"layer{place}", input=f"t{place}", output=f"t{place + 1}", weight=weight,
                           requant=requant, padding=(1, 1, 1, 1)))  # fmt: skip
    axes = ((), ("c",), ("h",), ("w",))
    tensors = {f"t{place}": Tensor(f"t{place}", count, 20, 20, 0.05, 0) for place, count in enumerate(channels)}
    ends = [Port("image", "t0", (1, 3, 20, 20), axes, "float32")], [Port("map", "t3", (1, 8, 20, 20), axes, "float32")]
    return compile_graph(Graph("small", tensors, layers, *ends), config).package


def network(name: str, config: HardwareConfig, tell: Any) -> ModelPackage:
    """A network of the zoo, or the small one, compiled."""
    if name == "small":
        return small(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        tell(f"writing and compiling {name}")
        zoo.write(name, path)
        needs = name == "mobilenet_v2"  # the only one that is float
        return compile_model(path, config, Path(photos.__file__).parent if needs else None).package


def switch(
    device: Device, package: ModelPackage, cores: list[range], moment: int, inputs: Any
) -> dict[str, Any] | None:
    """Stop at ``moment`` (cycles from the start), go on on the other cores; None if no layer's end came any more."""
    with Session(device, package, cores[0]) as session:
        begin = session.start(inputs)
        session.advance(max(moment - (device.cycle - begin), 0))
        if not session.running:
            return None
        session.stop()
        saved = session.suspend()
        if saved is None:
            return None
        cost = session.resume(saved, cores[1])
        result = session.finish()
    return {
        "next_layer": saved.next_layer,
        "drain_cycles": cost.drain_cycles,
        "clear_cycles": cost.clear_cycles,
        "saved_bytes": cost.saved_bytes,
        "loaded_bytes": cost.loaded_bytes,
        "stream_bytes": cost.stream_bytes,
        "weight_bytes": cost.weight_bytes,
        "link_us": 1e3 * cost.link_ms,
        "cycles": saved.cycles + result.completion.cycles,
        "raw": result.raw,
    }


def main() -> int:
    """Measure, print and write bench/out/context_switch.json; 1 if an output differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("simulator", "rtl"), default="simulator")
    parser.add_argument("--config", default=None, help="u200 for the simulator, tiny for rtl")
    parser.add_argument("--network", default=None, choices=("small", *zoo.names()))
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--cores", type=int, nargs=2, default=None, help="before and after; all and half of them")
    options = parser.parse_args()
    console = Console()
    config = preset(options.config or ("tiny" if options.device == "rtl" else "u200"))
    name = options.network or ("small" if options.device == "rtl" else "mobilenet_v2")
    sizes = options.cores or [config.cores, max(config.cores // 2, 1)]
    cores = [range(sizes[0]), range(config.cores - sizes[1], config.cores)]
    package = network(name, config, console.log)
    device: Device = Simulator(config)
    if options.device == "rtl":
        from corepool.device.rtl import RtlDevice

        console.log(f"compiling the hardware of {config.name}: minutes, once")
        device = RtlDevice(config)
    rng = np.random.default_rng(SEED)
    inputs = {p["name"]: rng.normal(0, 1, p["shape"]).astype(p["dtype"]) for p in package.meta["inputs"]}
    with Session(Simulator(config), package, cores[0]) as session:
        whole = session.run(inputs)
    rows = []
    for moment in sorted(int(at) for at in rng.integers(0, whole.completion.cycles * 19 // 20, options.moments)):
        row = switch(device, package, cores, moment, inputs)
        if row is not None:
            row["same"] = row.pop("raw") == whole.raw
            rows.append({"moment": moment, **row})
            console.log(f"{len(rows)} of {options.moments}: stopped before layer {row['next_layer']}")
    costs, table = (
        Costs.of(config),
        Table(title=f"{name} on {config.name}, {sizes[0]} to {sizes[1]} cores, {options.device}"),
    )
    for heading in ("cycles", "median", "largest"):
        table.add_column(heading, justify="left" if heading == "cycles" else "right")
    parts = {
        "until the layer's end": [row["drain_cycles"] for row in rows],
        "reading the state": [_cycles(costs, config, row["saved_bytes"]) for row in rows],
        "clearing the cores": [row["clear_cycles"] for row in rows],
        "writing the state": [_cycles(costs, config, row["loaded_bytes"]) for row in rows],
        "writing the streams": [_cycles(costs, config, row["stream_bytes"]) for row in rows],
        "writing the weights (banks that lack them)": [_cycles(costs, config, row["weight_bytes"]) for row in rows],
        "linking on the host (wall time)": [int(row["link_us"] * config.clock_hz / 1e6) for row in rows],
    }
    for part, values in parts.items():
        table.add_row(part, f"{np.median(values):,.0f}", f"{max(values):,}")
    console.print(table)
    same = all(row["same"] for row in rows)
    console.print(f"{len(rows)} switches, outputs {'all equal' if same else 'NOT equal'} to those without a switch")
    OUT.mkdir(exist_ok=True)
    told = {**figures.provenance(), "seed": SEED, "network": name, "config": config.name, "device": options.device}
    path = OUT / f"context_switch_{options.device}.json"
    path.write_text(json.dumps({**told, "whole_cycles": whole.completion.cycles, "rows": rows}, indent=1) + "\n")
    console.print(f"written to {path}")
    return 0 if same and rows else 1


def _cycles(costs: Costs, config: HardwareConfig, size: int) -> int:
    return costs.transfer_ns(size) * config.clock_hz // 1_000_000_000


if __name__ == "__main__":
    sys.exit(main())
