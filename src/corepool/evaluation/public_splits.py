"""Experiment public-splits: the authors' four ways to share a card among users of VGG16, all running at once.

It must not know how leases are scheduled: in a public cloud they are fixed.
"""

from __future__ import annotations

from typing import Any

from corepool.device.simulator import Simulator
from corepool.evaluation import plots
from corepool.evaluation.anchors import DEMO, TITLES
from corepool.evaluation.lab import Lab, Need
from corepool.evaluation.results import Claim, Outcome, Plot, Table
from corepool.evaluation.workers import Tell
from corepool.runtime.session import Session

NETWORK = "vgg16"
SPLITS = ((16,), (12, 4), (8, 4, 4), (4, 4, 4, 4))


def needs(lab: Lab) -> list[Need]:
    return [Need(NETWORK)]


def run(lab: Lab, tell: Tell) -> Outcome:
    """Frames per second of every user of every split, and alone on the same cores."""
    lab.prepare(needs(lab), lambda what, share: tell(what, 0.5 * share))
    package = lab.package(NETWORK)
    frames = 1 if lab.quick else 3
    items = [("/".join(_percent(n, lab) for n in split), (split, frames)) for split in SPLITS]
    found = lab.each(_together, items, lambda what, share: tell(what, 0.5 + 0.5 * share))
    cases: list[dict[str, Any]] = [
        {"cores": list(split), "users": users} for split, users in zip(SPLITS, found, strict=True)
    ]
    whole = cases[0]["users"][0]["fps"]
    rows: list[tuple[Any, ...]] = []
    for case in cases:
        for place, user in enumerate(case["users"]):
            shares = "/".join(_percent(n, lab) for n in case["cores"]) if place == 0 else ""
            alone = user["alone_fps"]
            rows.append((shares, place + 1, user["cores"], user["fps"], alone, user["deviation_cycles"]))
        rows.append(("", "all", sum(case["cores"]), sum(user["fps"] for user in case["users"]), None, None))
    columns = ("users' shares", "user", "cores", "frames/s", "frames/s alone", "deviation, cycles")
    worst = max(abs(user["deviation_cycles"]) for case in cases for user in case["users"])
    least = min(user["fps"] / (whole * user["cores"] / lab.config.cores) for case in cases for user in case["users"])
    reason = "Theirs was shown on a U200; no numbers are in its abstract. Ours is simulated on the model of that card."
    claims = [
        Claim(
            "A user's throughput does not depend on the others (four public cases)",
            DEMO,
            "isolated",
            f"{worst} cycles of deviation at most",
            "reached" if worst == 0 else "missed",
            reason,
            main=True,
        ),
        Claim(
            "Throughput of each user follows its share of the cores",
            DEMO,
            "proportional",
            f"at least {100 * least:.1f}% of its share of the whole card's rate",
            "reached" if least >= 0.97 else "differs",
            "Smaller leases do slightly better than proportional: they lose less to banks and uneven tiles.",
        ),
    ]
    return Outcome(
        {"network": NETWORK, "frames": frames, "cases": cases, "macs": package.meta["macs"]},
        [Table("VGG16, all users at once", columns, rows)],
        [_plot(lab, cases)],
        claims,
        [f"All users run at the same time, {frames} frames each, in one simulation of the whole card."],
    )


def _percent(cores: int, lab: Lab) -> str:
    return f"{100 * cores // lab.config.cores}%"


def _together(lab: Lab, item: tuple[tuple[int, ...], int]) -> list[dict[str, Any]]:
    """All users of a split at once, so many frames: slowest frame of each, and the same cores on an empty card."""
    split, frames = item
    package, device = lab.package(NETWORK), Simulator(lab.config, data=False)
    starts = [sum(split[:place]) for place in range(len(split))]
    leases = [range(start, start + n) for start, n in zip(starts, split, strict=True)]
    sessions = [Session(device, package, cores, data=False) for cores in leases]
    cycles: list[list[int]] = [[] for _ in sessions]
    for _ in range(frames):
        for session in sessions:
            session.start(None)
        for place, session in enumerate(sessions):
            cycles[place].append(session.finish().completion.cycles)
    for session in sessions:
        session.close()
    users = []
    for cores, taken in zip(leases, cycles, strict=True):
        alone = lab.timing(package, cores).cycles
        slowest = max(taken)
        users.append(
            {
                "cores": len(cores),
                "first_core": cores[0],
                "cycles": taken,
                "fps": lab.config.clock_hz / slowest,
                "alone_fps": lab.config.clock_hz / alone,
                "deviation_cycles": max(taken, key=lambda each: abs(each - alone)) - alone,
            }
        )
    return users


def _plot(lab: Lab, cases: list[dict[str, Any]]) -> Plot:
    made, (axes,) = plots.figure(width=8, height=3.2)
    for place, case in enumerate(cases):
        bottom = 0.0
        for index, user in enumerate(case["users"]):
            axes.barh(place, user["fps"], left=bottom, color=plots.COLOURS[index], edgecolor="white", height=0.62)
            text = f"user {index + 1}: {user['fps']:.1f}"
            axes.text(bottom + user["fps"] / 2, place, text, ha="center", va="center", color="white", fontsize=8)
            bottom += user["fps"]
    axes.set_yticks(range(len(cases)), ["/".join(_percent(n, lab) for n in case["cores"]) for case in cases])
    axes.invert_yaxis()
    axes.set(xlabel="frames/s of VGG16", title=f"Public cloud: {TITLES[NETWORK]}, users at once")
    axes.grid(False, axis="y")
    return Plot("public-splits.png", "Throughput of each user; every row is one split of the card.", plots.png(made))
