"""`corepool demo`: four tenants share one card, classify photos at the same time, and get new cores while they run.

It must not know how networks are compiled or executed; it tells the story and checks it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corepool.cli import devices, output
from corepool.cli.common import JsonOption, hardware
from corepool.cli.signals import safe_point
from corepool.errors import ConfigError, DeviceError, InputError

if TYPE_CHECKING:
    from corepool.compiler.model import ModelPackage
    from corepool.config import HardwareConfig
    from corepool.device.base import Device
    from corepool.device.trace import Traced
    from corepool.runtime.session import Placement, Result
    from corepool.runtime.sharing import Frame, Tenant

NAME = "demo"

NETWORK = "mobilenet_v2"
CALIBRATION_IMAGES = 16
MAX_FRAMES = 100
SLOW_START_S = 12  # a warm start takes 4 s up to here

FRAMES = {devices.SIMULATOR: 4, devices.RTL: 1}
SIDES = {devices.SIMULATOR: 224, devices.RTL: 96}  # the hardware's Verilog runs some thousand times slower than a card

WHAT = {devices.SIMULATOR: "", devices.RTL: ", the hardware's own Verilog; a frame takes a while"}


@dataclass
class Phase:
    """How the cores were dealt for a while, and the frames that ended in it."""

    dealt: list[range]
    frames: list[Frame]


@dataclass
class Story:
    """Everything that happened, for the report and the picture."""

    photos: list[str]
    phases: list[Phase]
    placements: list[Placement]
    redeal_ms: float
    redeal_cycle: int
    traces: list[Traced]


def command(
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where files go.")] = Path("demo-out"),
    frames: Annotated[
        int | None,
        typer.Option(metavar="K", help="Frames of each tenant before the cores are re-dealt. Default: 4; 1 with rtl."),
    ] = None,
    config: Annotated[str, typer.Option(help="Hardware configuration.")] = "u200",
    device: devices.DeviceOption = devices.SIMULATOR,
    side: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Height and width of the images. Default: 224; 96 with rtl.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compile MobileNetV2, let tenants share a card, and re-deal its cores while they run."""
    from corepool.runtime.session import save_trace
    from corepool.runtime.sharing import shares

    begin = time.perf_counter()
    devices.check_device(device)
    frames = FRAMES[device] if frames is None else frames
    side = SIDES[device] if side is None else side
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError(f"--frames must be 1 to {MAX_FRAMES}, not {frames}")
    if side % 32 or not 32 <= side <= 224:
        raise InputError(f"--side must be a multiple of 32 from 32 to 224, not {side}")
    chosen = hardware(config)
    try:
        shares(chosen.cores)
    except ValueError as error:
        raise ConfigError(f"the demo needs several tenants: {error}; choose another --config") from None
    say = _Teller(quiet=json, begin=begin)
    opened = devices.open_device(device, chosen, say.say)
    say.apart_s = time.perf_counter() - begin
    out.mkdir(parents=True, exist_ok=True)
    package, compile_s = _compile(out, chosen, side, say)
    say.say(f"what executes the streams: {device}{WHAT[device]}")
    story = _play(opened, package, chosen, frames, side, say)
    report = _report(story, chosen, package, device) | {"static_compile_s": compile_s, "first_result_s": say.first_s}
    lines = [f"Outputs before and after are equal, byte for byte, for all {len(story.photos)} tenants."]
    if device != devices.SIMULATOR:
        report["simulator"] = difference = _on_simulator(story, package, chosen, side)
        lines.append(
            "The simulator makes the same bytes of the same streams; its cycles differ by "
            f"{difference['most_cycles_apart']} at most."
        )
    picture, trace = out / "cores.png", out / "trace.json"
    _draw(picture, story, chosen, report)
    report |= {"side": side, "picture": str(picture)}
    lines.append(f"Cores over time: {picture}")
    if any(traced.timelines for traced in story.traces):
        save_trace(trace, chosen, story.traces)
        report["trace"] = str(trace)
        lines.append(f"What every unit did when: {trace} (open it in ui.perfetto.dev)")
    report["seconds"] = time.perf_counter() - begin
    if json:
        output.write_json(report)
    else:
        output.show(*lines)


class _Teller:
    """Tells a person what happens as it happens, with seconds since the start; silent for `--json`."""

    def __init__(self, quiet: bool, begin: float) -> None:
        self.quiet = quiet
        self._begin = begin
        self.apart_s = 0.0  # spent before the simulator's compiled code was needed
        self.first_s: float | None = None

    def say(self, text: str) -> None:
        safe_point()
        if not self.quiet:
            output.write(f"[{time.perf_counter() - self._begin:6.1f} s]  {text}")

    def warmed(self) -> None:
        """Explain the wait, if compiled code was not there yet."""
        if time.perf_counter() - self._begin - self.apart_s > SLOW_START_S:
            self.say("first run on this machine: the simulator is compiled once, which takes about half a minute")

    def show(self, *things: Any) -> None:
        if not self.quiet:
            output.show(*things)

    def result(self, text: str) -> None:
        if self.first_s is None:
            self.first_s = time.perf_counter() - self._begin
        self.say(text)


def _compile(out: Path, config: HardwareConfig, side: int, say: _Teller) -> tuple[ModelPackage, float]:
    """Write the network with its trained weights, compile it with photos for calibration, and open the package."""
    import numpy as np

    from corepool import zoo
    from corepool.compiler.model import ModelPackage
    from corepool.files import replacing
    from corepool.zoo import photos

    model, samples, compiled = out / f"{NETWORK}.onnx", out / "calibration.npz", out / f"{NETWORK}.cpk"
    say.say(f"writing {model} (trained ImageNet weights)")
    zoo.write(NETWORK, model, side=side)
    with replacing(samples) as file:
        np.savez(file, input=photos.calibration(CALIBRATION_IMAGES, image_side=side))
    say.say(f"compiling for {config.name}: once, for any number of cores")
    from corepool.compiler.static import compile_model

    begin = time.perf_counter()
    with output.progress("compiling") as show:
        made = compile_model(model, config, samples, show)
    made.save(compiled)
    seconds = time.perf_counter() - begin
    package = ModelPackage.open(compiled, config)
    say.say(
        f"compiled in {seconds:.1f} s: {len(package.meta['layers'])} layers, {package.meta['macs'] / 1e9:.2f} GMAC, "
        f"{package.size / 2**20:.1f} MiB"
    )
    return package, seconds


def _play(device: Device, package: ModelPackage, config: HardwareConfig, frames: int, side: int, say: _Teller) -> Story:
    """Both phases, with the re-deal between them. Raises DeviceError if any tenant's outputs ever differ."""
    from corepool.compiler.dynamic.linker import link
    from corepool.runtime.session import Session, redeal
    from corepool.runtime.sharing import Tenant, serve, shares
    from corepool.zoo import photos

    before, after = shares(config.cores)
    names = _photos(len(before))
    for cores in (*before, *after):  # the first calls load compiled code; times shown are those of warm ones
        link(package, cores, config)
    say.warmed()
    tenants = []
    for index, (photo, cores) in enumerate(zip(names, before, strict=True)):
        image = photos.preprocess(photos.load(photo), side)
        session = Session(device, package, cores)
        cycles = package.meta["predicted_cycles"][len(cores) - 1]
        tenants.append(Tenant("ABCDEFGH"[index], session, {session.inputs[0].name: image}, cycles))
    say.say(f"{len(tenants)} tenants with {_sizes(before)} cores, all at the same time")
    traces: list[Traced] = []
    first = Phase(before, serve(tenants, frames=frames, seen=_watcher(say, tenants, names, traces)))
    horizon = max(frame.end_cycle for frame in first.frames) - min(frame.start_cycle for frame in first.frames)
    say.show("", _phase_table(f"with {_sizes(before)} cores", first, names, config))
    cycle, begin = device.cycle, time.perf_counter()
    placements = redeal([tenant.session for tenant in tenants], after)
    redeal_ms = (time.perf_counter() - begin) * 1e3
    say.show("", _redeal_table(placements, before, redeal_ms))
    for tenant, cores in zip(tenants, after, strict=True):
        tenant.frame_cycles = package.meta["predicted_cycles"][len(cores) - 1]
    second = Phase(after, serve(tenants, horizon_cycles=horizon, seen=_watcher(None, tenants, names, traces)))
    say.show("", _phase_table(f"with {_sizes(after)} cores", second, names, config), "")
    _check_equal(tenants, [*first.frames, *second.frames])
    for tenant in tenants:
        tenant.session.close()
    return Story(names, [first, second], placements, redeal_ms, cycle, traces)


def _photos(count: int) -> list[str]:
    """Photos for the tenants, animals and things before people."""
    from corepool.zoo import photos

    wanted = [name for name in ("cat", "coffee", "photographer", "officer") if name in photos.names()]
    names = wanted + [name for name in photos.names() if name not in wanted]
    return [names[index % len(names)] for index in range(count)]


def _watcher(
    say: _Teller | None, tenants: Sequence[Tenant], photos: Sequence[str], traces: list[Traced]
) -> Callable[[Frame], None]:
    """Keeps each tenant's first frame for the trace, and tells its answer as soon as it is there."""
    known = {tenant.name: (tenant, photo) for tenant, photo in zip(tenants, photos, strict=True)}
    waiting = set(known)

    def seen(frame: Frame) -> None:
        safe_point()
        if frame.tenant not in waiting:
            return
        waiting.remove(frame.tenant)
        tenant, photo = known[frame.tenant]
        traces.append(tenant.session.traced(f"tenant {frame.tenant} ({photo})"))
        if say is not None:
            best = top(frame.result, 1)[0]
            share = best["probability"] * 100
            say.result(f"tenant {frame.tenant}: {photo}.jpg shows: {best['name']} ({share:.0f} %)")

    return seen


def top(result: Result, count: int = 3) -> list[dict[str, Any]]:
    """The most probable ImageNet classes of a result (softmax of its first output): class, name, probability."""
    import numpy as np

    from corepool.zoo import labels

    logits = next(iter(result.outputs.values())).reshape(-1).astype(np.float64)
    powers = np.exp(logits - logits.max())
    shares = powers / powers.sum()
    best = np.argsort(-shares, kind="stable")[:count]
    names = labels.imagenet()
    return [{"class": int(i), "name": names[i], "probability": float(shares[i])} for i in best]


def _check_equal(tenants: Sequence[Tenant], frames: Sequence[Frame]) -> None:
    for tenant in tenants:
        first, *others = [frame.result.raw for frame in frames if frame.tenant == tenant.name]
        if not others or any(other != first for other in others):
            raise DeviceError(f"tenant {tenant.name}: outputs differ between frames; they must be equal byte for byte")


def _on_simulator(story: Story, package: ModelPackage, config: HardwareConfig, side: int) -> dict[str, Any]:
    """Repeat each tenant's first frame of each phase on a simulator. Raises DeviceError where bytes differ."""
    from corepool.device.simulator import Simulator
    from corepool.runtime.session import Session
    from corepool.zoo import photos

    simulator, apart = Simulator(config), []
    for phase in story.phases:
        for index, photo in enumerate(story.photos):
            frame = _of(phase, "ABCDEFGH"[index])[0]
            with Session(simulator, package, frame.cores) as session:
                image = photos.preprocess(photos.load(photo), side)
                result = session.run({session.inputs[0].name: image})
            if result.raw != frame.result.raw:
                raise DeviceError(f"tenant {frame.tenant}: the simulator's outputs differ; they must be equal")
            apart.append(abs(result.completion.cycles - frame.result.completion.cycles))
    return {"frames": len(apart), "byte_equal": True, "most_cycles_apart": max(apart)}


def _sizes(dealt: Sequence[range]) -> str:
    return "/".join(str(len(cores)) for cores in dealt)


def _span(cores: Sequence[int]) -> str:
    return f"{cores[0]}-{cores[-1]}" if len(cores) > 1 else str(cores[0])


def _of(phase: Phase, tenant: str) -> list[Frame]:
    return [frame for frame in phase.frames if frame.tenant == tenant]


def _figures(phase: Phase, photos: Sequence[str], config: HardwareConfig) -> list[dict[str, Any]]:
    """Per tenant: cores, photo, answer, latency and frames/s in device time."""
    rows = []
    for index, (photo, cores) in enumerate(zip(photos, phase.dealt, strict=True)):
        frames = _of(phase, "ABCDEFGH"[index])
        cycles = sum(frame.end_cycle - frame.start_cycle for frame in frames) / len(frames)
        whole = (frames[-1].end_cycle - frames[0].start_cycle) / len(frames)
        rows.append(
            {
                "tenant": frames[0].tenant,
                "cores": list(cores),
                "photo": photo,
                "frames": len(frames),
                "top3": top(frames[-1].result),
                "latency_ms": cycles / config.clock_hz * 1e3,
                "fps": config.clock_hz / whole,
            }
        )
    return rows


def _phase_table(title: str, phase: Phase, photos: Sequence[str], config: HardwareConfig) -> Any:
    rows = [
        (
            row["tenant"],
            _span(row["cores"]),
            row["photo"],
            _named(row["top3"]),
            row["latency_ms"],
            row["fps"],
        )
        for row in _figures(phase, photos, config)
    ]
    columns = ("tenant", "cores", "photo", "the network sees", "latency ms", "frames/s")
    return output.table(title, columns, rows, left=4)


def _named(best: Sequence[dict[str, Any]]) -> list[str]:
    """Classes with their probabilities; the class number is added where two classes have the same name."""
    names = [each["name"] for each in best]
    return [
        f"{each['name']}{' (' + str(each['class']) + ')' if names.count(each['name']) > 1 else ''} "
        f"{each['probability'] * 100:.1f} %"
        for each in best
    ]


def _redeal_table(placements: Sequence[Placement], before: Sequence[range], whole_ms: float) -> Any:
    rows = [
        (
            "ABCDEFGH"[index],
            _span(before[index]),
            _span(placement.cores),
            f"{placement.link_ms:.3f}",
            f"{placement.upload_ms:.3f}",
            f"{placement.upload_bytes / 2**20:.2f}",
        )
        for index, (placement, _) in enumerate(zip(placements, before, strict=True))
    ]
    columns = ("tenant", "from cores", "to cores", "link ms", "upload ms", "upload MiB")
    return output.table(f"cores re-dealt in {whole_ms:.1f} ms, all tenants together", columns, rows, left=3)


def _report(story: Story, config: HardwareConfig, package: ModelPackage, device: str) -> dict[str, Any]:
    return {
        "model": package.meta["model"],
        "config": config.name,
        "device": device,
        "phases": [{"tenants": _figures(phase, story.photos, config)} for phase in story.phases],
        "redeal": {
            "total_ms": story.redeal_ms,
            "tenants": [
                {
                    "tenant": "ABCDEFGH"[index],
                    "cores": list(placement.cores),
                    "link_ms": placement.link_ms,
                    "upload_ms": placement.upload_ms,
                    "upload_bytes": placement.upload_bytes,
                    "stream_bytes": placement.stream_bytes,
                }
                for index, placement in enumerate(story.placements)
            ],
        },
        "byte_equal": True,
    }


def _draw(path: Path, story: Story, config: HardwareConfig, report: dict[str, Any]) -> None:
    from corepool.cli.picture import Mark, Span, draw

    origin = min(frame.start_cycle for phase in story.phases for frame in phase.frames)
    to_ms = 1e3 / config.clock_hz
    spans = [
        Span(
            frame.tenant,
            frame.cores,
            (frame.start_cycle - origin) * to_ms,
            (frame.end_cycle - origin) * to_ms,
            tuple(busy / frame.result.completion.cycles for busy in frame.result.counters.compute_busy),
        )
        for phase in story.phases
        for frame in phase.frames
    ]
    link_ms = max(placement.link_ms for placement in story.placements)
    mark = Mark(
        (story.redeal_cycle - origin) * to_ms,
        f"cores re-dealt: {link_ms:.2f} ms to link, {story.redeal_ms:.1f} ms for all tenants with uploads",
    )
    before, after = (phase["tenants"] for phase in report["phases"])
    labels = {
        one["tenant"]: f"{one['tenant']}: {one['photo']}, {len(one['cores'])} → {len(two['cores'])} cores, "
        f"{one['fps']:.0f} → {two['fps']:.0f} frames/s"
        for one, two in zip(before, after, strict=True)
    }
    title = f"MobileNetV2: {len(labels)} tenants on one {config.name} card"
    draw(path, spans, [mark], labels, cores=config.cores, cores_per_bank=config.cores_per_bank, title=title)
