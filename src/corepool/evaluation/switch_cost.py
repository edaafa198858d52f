"""Experiment switch-cost: from the wish for other cores to the first start on them, after a task or after a layer.

It must not know how the hypervisor moves cores; it watches what it does and when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from corepool.device.simulator import Simulator
from corepool.errors import HypervisorError
from corepool.evaluation import carried, plots
from corepool.evaluation.anchors import (
    FULL_RECONFIGURATION_MS,
    PAPER,
    PARTIAL_RECONFIGURATION_MS,
    RECONFIGURATION_SOURCE,
    TITLES,
)
from corepool.evaluation.costs import link_times
from corepool.evaluation.lab import Lab, Need, Shape
from corepool.evaluation.results import Claim, Outcome, Plot, Table
from corepool.evaluation.workers import Tell
from corepool.hypervisor import actions as ac
from corepool.hypervisor.backends import DeviceBackend, measured_model
from corepool.hypervisor.events import AddTenant, Event, LoadModel, RequestLease, SubmitJob, Switching
from corepool.hypervisor.model import Model, model_of
from corepool.hypervisor.runner import Runner
from corepool.hypervisor.settings import SECOND, Settings
from corepool.hypervisor.state import Hypervisor

HOLDER, COMER = "holder", "comer"


def needs(lab: Lab) -> list[Need]:
    return [Need(name) for name in lab.networks]


def run(lab: Lab, tell: Tell) -> Outcome:
    """A tenant holds the card and works without pause; another comes at a random moment and is to get half of it."""
    tries = 3 if lab.quick else 60
    lab.prepare(needs(lab), lambda what, share: tell(what, 0.2 * share))
    items = []
    for name in lab.networks:
        latencies = lab.latencies(name, lab.packed(), lambda what, share: tell(what, 0.2 + 0.1 * share))
        relink_ms = link_times(lab.package(name), lab.config.cores // 2, lab.config, 50).cpu_p50_ms
        items.append((TITLES[name], (name, latencies, relink_ms, tries)))
    rows = lab.each(_of_network, items, lambda what, share: tell(what, 0.3 + 0.7 * share))
    data: dict[str, Any] = dict(zip(lab.networks, rows, strict=True))
    return Outcome(
        {"tries": tries, "networks": data},
        [_table(data), _parts(data), carried.table(data)],
        [_plot(data)],
        _claims(data),
        [
            "A tenant works without pause on all cores; at a random moment a second one with the same network comes "
            f"and is to get half of them ({tries} moments). The hypervisor moves the cores on the cycle simulator: the "
            "wait is until the running inference or layer ends; then come clearing, linking and loading. At its very "
            "first coming the newcomer's weights must be written, too; later they are in its banks.",
            "Apart from that, running inferences are stopped at the next layer's end, their state is read, and they go "
            "on on half of the cores: what a switch by layer costs him who has to move.",
        ],
    )


def _of_network(lab: Lab, item: tuple[str, dict[Shape, int], float, int]) -> dict[str, Any]:
    """Switches after tasks and after layers, and inferences carried to other cores."""
    name, latencies, relink_ms, tries = item
    package, config = lab.package(name), lab.config
    model = measured_model(model_of(name, package, config), latencies, config.cores_per_bank)
    settings = Settings.of(config, relink_ns=int(relink_ms * 1e6))
    row: dict[str, Any] = {"relink_us": 1e3 * relink_ms, "inference_us": model.latency_ns[-1] / 1e3}
    for switching in Switching:
        first, *seen = _moments(lab, model, settings, switching, tries + 1)
        columns = {key: [each[key] for each in seen] for key in first}
        row[switching.value] = {
            key: {"mean": float(np.mean(values)), "max": float(np.max(values)), "first": first[key]}
            for key, values in columns.items()
        }
    costs, half = settings.costs, config.cores // 2
    row["clear_us"] = costs.clear_ns / 1e3
    row["streams_us"] = costs.transfer_ns(model.stream_bytes[half - 1]) / 1e3
    row["weights_us"] = costs.transfer_ns(2 * model.weight_bytes) / 1e3
    moved = carried.carry(lab, package, max(tries // 5, 2))
    row["carried"] = carried.summary(moved, config.clock_hz, costs, relink_ms)
    return row


def _moments(lab: Lab, model: Model, settings: Settings, switching: Switching, tries: int) -> list[dict[str, float]]:
    """Moments at which a newcomer's job comes, the card being the holder's; microseconds from then on.

    All in one run, so the newcomer's weights are in its banks from the second moment on.
    """
    random = Random(f"{lab.seed}/{switching.value}")
    latency = model.latency_ns[-1]
    spacing = 12 * latency + SECOND // 2
    bases = [SECOND + spacing * k for k in range(tries)]
    moments = [base + 2 * latency + random.randrange(latency) for base in bases]
    seen: list[_Moment] = [_Moment(moment) for moment in moments]

    def watch(event: Event, actions: list[ac.Action]) -> None:
        current = next((each for each in reversed(seen) if each.moment <= event.at), None)
        if current is not None:
            for action in actions:
                current.note(event.at, action)

    def events() -> Iterator[Event]:
        for name in (HOLDER, COMER):
            yield AddTenant(0, name, settings.cores)
            yield LoadModel(0, name, model)
            yield RequestLease(0, name, name, 0, settings.cores, model.window_bytes, switching=switching)
        for k, (base, moment) in enumerate(zip(bases, moments, strict=True)):
            for number in range(5):
                yield SubmitJob(base, HOLDER, HOLDER, 10 * k + number, model.name)
            yield SubmitJob(moment, COMER, COMER, 10 * k + 9, model.name)

    device = Simulator(lab.config, data=False)
    backend = DeviceBackend(device, {model.name: lab.package(model.name)}, remember=True)
    Runner(Hypervisor(settings), backend, watch).run(events())
    return [each.microseconds() for each in seen]


@dataclass
class _Moment:
    """What followed a moment: when the first cores were free to be cleared, and when both tenants began on theirs."""

    moment: int
    freed: int | None = None
    begun: dict[str, int] = field(default_factory=dict)

    def note(self, at: int, action: ac.Action) -> None:
        if isinstance(action, ac.Clear) and self.freed is None:
            self.freed = at
        elif isinstance(action, ac.Start) and self.freed is not None:
            self.begun.setdefault(action.lease, at)

    def microseconds(self) -> dict[str, float]:
        if self.freed is None or set(self.begun) != {HOLDER, COMER}:
            raise HypervisorError(f"the switch at {self.moment} ns did not come about; this is a fault of the program")
        return {
            "wait_us": (self.freed - self.moment) / 1e3,
            "newcomer_us": (self.begun[COMER] - self.moment) / 1e3,
            "holder_stands_us": (self.begun[HOLDER] - self.freed) / 1e3,
        }


def _table(data: dict[str, Any]) -> Table:
    rows: list[tuple[Any, ...]] = []
    for name, row in data.items():
        for switching in Switching:
            each = row[switching.value]
            rows.append(
                (
                    TITLES[name],
                    switching.value,
                    each["wait_us"]["mean"],
                    each["wait_us"]["max"],
                    each["holder_stands_us"]["mean"],
                    each["newcomer_us"]["mean"],
                    each["newcomer_us"]["max"],
                    each["newcomer_us"]["first"],
                )
            )
    columns = (
        "network", "switch after a", "wait, mean", "wait, max", "holder stands still", "newcomer starts, mean",
        "newcomer starts, max", "the very first time",
    )  # fmt: skip
    return Table("Microseconds from the wish on", columns, rows)


def _parts(data: dict[str, Any]) -> Table:
    rows: list[tuple[Any, ...]] = [
        (
            TITLES[name],
            row["clear_us"],
            row["relink_us"],
            row["streams_us"],
            row["weights_us"],
            row["inference_us"],
        )
        for name, row in data.items()
    ]
    columns = (
        "network",
        "clear",
        "link (processor time, p50)",
        "load streams",
        "weights to two banks",
        "one inference, 16 cores",
    )
    note = "Clearing and loading are arithmetic on the configuration and an assumed PCIe rate; linking was measured."
    return Table("The parts of a switch to half of the cores, microseconds", columns, rows, note)


def _plot(data: dict[str, Any]) -> Plot:
    made, (axes,) = plots.figure(width=8, height=3.7)
    series: dict[str, Sequence[float | None]] = {
        f"wait for the {switching.value} to end": [row[switching.value]["wait_us"]["mean"] for row in data.values()]
        for switching in Switching
    }
    series["clear, link, load"] = [row["clear_us"] + row["relink_us"] + row["streams_us"] for row in data.values()]
    plots.bars(axes, [TITLES[name] for name in data], series, "{:.0f}")
    low, high = (1e3 * each for each in PARTIAL_RECONFIGURATION_MS)
    axes.axhspan(low, high, color="#bbbbbb", alpha=0.5, label="partial reconfiguration")
    axes.set(yscale="log", ylabel="microseconds, mean", title="What a switch of cores waits for")
    plots.legend(made, axes)
    return Plot("switch-cost.png", "Mean waiting time until cores are free, and what follows then.", plots.png(made))


def _claims(data: dict[str, Any]) -> list[Claim]:
    work = max(row["clear_us"] + row["relink_us"] + row["streams_us"] for row in data.values()) / 1e3
    layer = max(row["layer"]["wait_us"]["mean"] for row in data.values())
    task = max(row["task"]["wait_us"]["mean"] for row in data.values())
    mean = max(row["carried"]["mean_us"]["whole"] for row in data.values())
    most = max(row["carried"]["max_us"]["whole"] for row in data.values())
    low, high = PARTIAL_RECONFIGURATION_MS
    return [
        Claim(
            "A switch of cores (clear, link, load) against a partial reconfiguration",
            RECONFIGURATION_SOURCE,
            f"{low:g}-{high:g} ms (full: {FULL_RECONFIGURATION_MS[0]:g}-{FULL_RECONFIGURATION_MS[1]:g} ms)",
            f"{work:.2f} ms at most",
            "beaten" if work < low else "missed",
            "Without weights, which a tenant that is new to a bank has to send once.",
            main=True,
        ),
        Claim(
            "Switching after a layer instead of after the task: mean wait, slowest network",
            f"{PAPER}: task-level and layer-level switches",
            "shorter",
            f"{layer:.0f} us instead of {task:.0f} us",
            "reached" if layer < task else "missed",
            _why_wait(data),
        ),
        Claim(
            "A running inference stopped at a layer's end goes on on other cores, all parts, slowest network",
            RECONFIGURATION_SOURCE,
            f"{low:g}-{high:g} ms",
            f"{mean / 1e3:.2f} ms on average, {most / 1e3:.2f} ms at most",
            "beaten" if most < 1e3 * low else "missed",
            "Stopped and resumed on the device; the state between two layers is what later layers read, and large "
            "where maps are.",
        ),
    ]


def _why_wait(data: dict[str, Any]) -> str:
    """By how much each network waits less."""
    gains = [f"{TITLES[n]} {row['task']['wait_us']['mean'] / max(row['layer']['wait_us']['mean'], 1e-3):.0f}x"
             for n, row in data.items()]  # fmt: skip
    return f"Shorter by: {', '.join(gains)}; as much as a network has layers between which cores meet."
