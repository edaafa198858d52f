"""The part of switch-cost in which a running inference is stopped on the device and goes on on other cores.

It must not know the hypervisor; it stops and resumes through sessions, as the server does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import numpy as np

from corepool.compiler.model import ModelPackage
from corepool.evaluation.anchors import TITLES
from corepool.evaluation.lab import Lab
from corepool.evaluation.results import Table
from corepool.hypervisor.settings import Costs
from corepool.runtime.session import Session


@dataclass(frozen=True)
class Carried:
    """One inference that was stopped at a layer's end and went on on half of its cores.

    ``drain_cycles`` from the request to the stop; ``state_bytes`` read from the banks, ``loaded_bytes`` written to
    those of the new cores, ``weight_bytes`` if these hold none of its weights yet; ``cycles`` of both runs together,
    between those of an inference ``undisturbed`` on all cores and on ``half``.
    """

    next_layer: int
    drain_cycles: int
    state_bytes: int
    loaded_bytes: int
    stream_bytes: int
    weight_bytes: int
    clear_cycles: int
    link_ms: float
    cycles: int
    undisturbed: int
    half: int

    def micros(self, clock_hz: int, costs: Costs, relink_ms: float) -> dict[str, float]:
        """The parts of the switch in microseconds; transfers by the bus of ``costs``."""
        parts = {
            "drain": 1e6 * self.drain_cycles / clock_hz,
            "save": costs.transfer_ns(self.state_bytes) / 1e3,
            "clear": 1e6 * self.clear_cycles / clock_hz,
            "link": 1e3 * relink_ms,
            "streams": costs.transfer_ns(self.stream_bytes) / 1e3,
            "restore": costs.transfer_ns(self.loaded_bytes) / 1e3,
        }
        return parts | {"whole": sum(parts.values())}


def carry(lab: Lab, package: ModelPackage, tries: int) -> list[Carried]:
    """Stop an inference on all cores at moments drawn from the seed; each goes on on the upper half of them."""
    config, random = lab.config, Random(f"{lab.seed}/carried")
    every = range(config.cores)
    half = every[config.cores // 2 :]
    whole, alone = lab.timing(package, every).cycles, lab.timing(package, half).cycles
    device, found = lab.simulator(), []
    for _ in range(tries):
        with Session(device, package, every, data=False) as session:
            saved = None
            while saved is None:  # a moment in the last layer leaves nothing to carry
                session.start(None)
                session.advance(random.randrange(1, whole))
                if session.running:
                    session.stop()
                    saved = session.suspend()
            switch = session.resume(saved, half)
            last = session.finish().completion.cycles
        found.append(
            Carried(
                next_layer=saved.next_layer,
                drain_cycles=switch.drain_cycles,
                state_bytes=switch.saved_bytes,
                loaded_bytes=switch.loaded_bytes,
                stream_bytes=switch.stream_bytes,
                weight_bytes=int(package.meta["window"]["weights_bytes"]) * len({config.bank_of(c) for c in half}),
                clear_cycles=switch.clear_cycles,
                link_ms=switch.link_ms,
                cycles=saved.cycles + last,
                undisturbed=whole,
                half=alone,
            )
        )
    return found


def summary(found: list[Carried], clock_hz: int, costs: Costs, relink_ms: float) -> dict[str, Any]:
    """Means and largest values of the parts in microseconds, and every switch as it was."""
    rows = [each.micros(clock_hz, costs, relink_ms) for each in found]
    return {
        "mean_us": {part: float(np.mean([row[part] for row in rows])) for part in rows[0]},
        "max_us": {part: max(row[part] for row in rows) for part in rows[0]},
        "state_kib": float(np.mean([each.state_bytes for each in found])) / 1024,
        "switches": [asdict(each) for each in found],
    }


def table(data: dict[str, Any]) -> Table:
    """By network: what goes on between the request and the first instruction on other cores."""
    rows: list[tuple[Any, ...]] = []
    for name, row in data.items():
        mean, most = row["carried"]["mean_us"], row["carried"]["max_us"]
        rows.append((TITLES[name], *mean.values(), most["whole"], row["carried"]["state_kib"]))
    columns = (
        "network", "drain to layer's end", "read state", "clear", "link", "load streams", "write state", "in all, mean",
        "in all, max", "state, KiB",
    )  # fmt: skip
    note = (
        "Requests, stops and resumptions happen on the device, at random moments; transfers are arithmetic on an "
        "assumed PCIe rate. Weights are in the banks already."
    )
    title = "A running inference goes on on half of its cores, microseconds"
    return Table(title, columns, rows, note)
