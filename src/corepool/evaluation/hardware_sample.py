"""The part of isolation that runs on the hardware itself: its Verilog, compiled, with four small cores on two banks.

It must not know how isolation is brought about, nor registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from corepool.compiler.model import ModelPackage
from corepool.compiler.static import compile_model
from corepool.config import preset
from corepool.device.base import Counters, Device
from corepool.device.rtl import RtlDevice
from corepool.device.rtl_build import compiled, shared_library
from corepool.device.simulator import Simulator
from corepool.errors import ToolError
from corepool.evaluation.lab import Lab
from corepool.evaluation.neighbours import KINDS, Attack, Neighbours
from corepool.evaluation.results import Claim, Table
from corepool.evaluation.small import small_network
from corepool.evaluation.workers import Tell
from corepool.runtime.session import Session

CONFIG = preset("tiny")
SLICE = 5_000  # cycles after which neighbours that have stopped are started again
Inputs = dict[str, np.ndarray[Any, Any]]
Run = tuple[int, dict[str, bytes], Counters]  # cycles, output bytes, counters


def _inputs(package: ModelPackage, seed: int) -> Inputs:
    random = np.random.default_rng(seed)
    return {
        entry["name"]: random.standard_normal(entry["shape"]).astype(np.float32) for entry in package.meta["inputs"]
    }


def _observe(device: Device, session: Session, inputs: Inputs, poke: Callable[[], None]) -> Run:
    """One inference, during which ``poke`` starts again whoever has stopped."""
    session.start(inputs)
    while session.running:
        poke()
        session.advance(SLICE)
    result = session.finish()
    return result.completion.cycles, result.raw, result.counters


def sample(lab: Lab, tell: Tell) -> list[dict[str, Any]] | str:
    """Victims on the hardware beside all kinds of neighbours, or why there is none.

    Compiling the hardware takes minutes, so a quick look uses it only if it is there.
    """
    if lab.quick and not compiled(CONFIG):
        return "The hardware has not been compiled here, which takes minutes; a run without --quick does it."
    try:
        shared_library(CONFIG, lambda what, share: tell(what, 0.5 * share))
    except ToolError as error:
        return f"The hardware could not be compiled: {error}"
    victims: Sequence[tuple[int, ...]] = ((0,), (1, 2), (0, 1, 3)) if not lab.quick else ((0,), (1, 2))
    items = [(f"hardware, victim with {len(cores)} cores", cores) for cores in victims]
    rows = lab.each(_of_victim, items, lambda what, share: tell(what, 0.5 + 0.5 * share))
    return [row for each in rows for row in each]


def _of_victim(lab: Lab, cores: tuple[int, ...]) -> list[dict[str, Any]]:
    """A victim beside every kind of neighbour that starts some cycles earlier."""
    package = compile_model(small_network(lab.folder, lab.seed), CONFIG).package
    inputs = _inputs(package, lab.seed)
    expected, _, _ = _beside(package, inputs, cores, "idle", 0, RtlDevice(CONFIG))
    simulated, _, _ = _beside(package, inputs, cores, "idle", 0, Simulator(CONFIG))
    rows = []
    for kind in ("busy", *KINDS):
        for phase in (0, 1, 333) if not lab.quick else (1,):
            device = RtlDevice(CONFIG)
            seen, restarts, moved = _beside(package, inputs, cores, kind, phase, device)
            cycles, raw, counters = seen
            rows.append(
                {
                    "cores": list(cores),
                    "neighbours": kind,
                    "phase": phase,
                    "cycles": cycles,
                    "deviation_cycles": cycles - expected[0],
                    "same_bytes": raw == expected[1],
                    "same_counters": counters == expected[2],
                    "as_simulated": seen == simulated,
                    "restarts": restarts,
                    "neighbour_bytes": moved,
                    "errors": device.errors(),
                }
            )
    return rows


def _beside(
    package: ModelPackage, inputs: Inputs, cores: Sequence[int], kind: str, phase: int, device: Device
) -> tuple[Run, int, int]:
    """One inference with neighbours on all other cores; how often these were started, and what hostile ones asked of
    the victim's banks in their latest runs, in bytes."""
    others = [core for core in range(CONFIG.cores) if core not in cores]
    if kind == "idle":
        neighbours = Neighbours.idle(device, others)
    elif kind == "busy":
        neighbours = Neighbours.busy(device, others, [package])
    else:
        neighbours = Neighbours.hostile(device, others, Attack(kind, pixels=64, stride=64, group=2))
    idle = kind == "idle"
    with Session(device, package, cores) as session:
        neighbours.poke(idle)
        neighbours.pass_time(phase)
        seen = _observe(device, session, inputs, lambda: neighbours.poke(idle))
        moved = neighbours.moved_bytes(sorted({CONFIG.bank_of(core) for core in cores}))
    neighbours.close()
    return seen, neighbours.restarts, moved


def claim(rows: list[dict[str, Any]] | str) -> Claim:
    """What the sample says, or why it is missing."""
    what, source = "The same on a sample of runs of the hardware itself", "goal of this project"
    if isinstance(rows, str):
        return Claim(what, source, "0 cycles", "not run", "open", rows)
    worst = max(abs(row["deviation_cycles"]) for row in rows)
    whole = all(row["same_bytes"] and row["same_counters"] and not row["errors"] for row in rows)
    same = all(row["as_simulated"] for row in rows)
    return Claim(
        what,
        source,
        "0 cycles",
        f"{worst} cycles in {len(rows)} runs, outputs and counters {'the same' if whole else 'not the same'}",
        "reached" if worst == 0 and whole else "missed",
        f"The Verilog of {CONFIG.name} ({CONFIG.cores} cores, {CONFIG.banks} banks), compiled; a run is one inference "
        f"of a small network. Cycles, bytes and counters are {'' if same else 'not '}those of the simulator.",
        main=True,
    )


def table(rows: list[dict[str, Any]] | str) -> list[Table]:
    """Largest deviation by victim and kind of neighbour; no table without runs."""
    if isinstance(rows, str):
        return []
    kinds = list(dict.fromkeys(row["neighbours"] for row in rows))
    victims = list(dict.fromkeys(tuple(row["cores"]) for row in rows))
    cells: list[tuple[Any, ...]] = []
    for cores in victims:
        mine = [row for row in rows if tuple(row["cores"]) == cores]
        worst = [max(abs(row["deviation_cycles"]) for row in mine if row["neighbours"] == kind) for kind in kinds]
        cells.append((", ".join(map(str, cores)), mine[0]["cycles"], *worst))
    title = f"On the hardware of {CONFIG.name}: largest deviation in cycles"
    return [Table(title, ("victim's cores", "its cycles", *kinds), cells)]
