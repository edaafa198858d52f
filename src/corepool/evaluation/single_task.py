"""Experiment single-task: one image at a time on 1 to 16 cores, four networks, and the ways of tiling; and a stream.

It must not know how tilings are found.
"""

from __future__ import annotations

from typing import Any

from corepool.evaluation import anchors, plots
from corepool.evaluation.anchors import PAPER, TITLES
from corepool.evaluation.lab import Lab, Need, Timing
from corepool.evaluation.results import Claim, Outcome, Plot, Table
from corepool.evaluation.streams import study
from corepool.evaluation.tilings import WAYS, need_of, timing
from corepool.evaluation.workers import Tell

Sweep = dict[str, dict[int, dict[str, float]]]  # network, cores: figures


def needs(lab: Lab) -> list[Need]:
    every = [Need(name) for name in lab.networks]
    return every + [need_of(name, way) for name in _compared(lab) for way in WAYS]


def run(lab: Lab, tell: Tell) -> Outcome:
    """Frames per second, share of peak, speed-up and DDR bytes."""
    lab.prepare(needs(lab), lambda what, share: tell(what, 0.6 * share))
    sweep = _sweep(lab, lambda what, share: tell(what, 0.6 + 0.15 * share))
    stream = study(lab, lambda what, share: tell(what, 0.75 + 0.1 * share))
    ways = _ways(lab, lambda what, share: tell(what, 0.85 + 0.15 * share))
    return Outcome(
        data={
            "cores": {name: {str(n): row for n, row in rows.items()} for name, rows in sweep.items()},
            "stream": stream.data,
            "tilings": ways,
        },
        tables=[
            _ladder(lab, ways),
            *_scaling_tables(sweep),
            *stream.tables,
            *_way_tables(ways),
            _beside(lab, sweep),
        ],
        plots=[_ladder_plot(lab, ways), _scaling_plot(lab, sweep)],
        claims=[*_claims(lab, sweep, stream.claims), *_way_claims(lab, ways)],
        notes=[
            "One image at a time, batch 1, simulated cycle by cycle at 300 MHz with DDR at 0.75 of its peak; "
            "cores in as few banks as possible. Share of peak counts useful multiply-accumulates only.",
            "Ways of tiling: in the first four, tiles are dealt in whole parts of one direction, on a plain array (4 "
            "pixels of a row, no folding), as in the paper; within a part tiles are as small as memories demand. The "
            "linker tells the banks that need a result by rows and channels only, which parts by width cannot use.",
            "The vendor's figures are end to end on real boards, host included; ours are the card alone.",
        ],
    )


def _sweep(lab: Lab, tell: Tell) -> Sweep:
    """Every network on every number of cores as the compiler does best."""
    counts = lab.counts()
    pairs = [(name, n) for name in lab.networks for n in counts]
    taken = lab.each(_alone, [(f"{TITLES[name]}, {n} cores", (name, n)) for name, n in pairs], tell)
    timings = dict(zip(pairs, taken, strict=True))
    sweep: Sweep = {}
    for name, n in pairs:
        here = timings[name, n]
        share = lab.share(lab.package(name), here, n)
        sweep.setdefault(name, {})[n] = _row(lab, here, share, timings[name, counts[0]], n)
    return sweep


def _alone(lab: Lab, item: tuple[str, int]) -> Timing:
    name, n = item
    return lab.timing(lab.package(name), range(n))


def _row(lab: Lab, timing: Timing, share: float, one: Timing, n: int) -> dict[str, float]:
    return {
        "cycles": timing.cycles,
        "fps": lab.fps(timing),
        "share_of_peak": share,
        "speed_up": one.cycles / timing.cycles,
        "scaling": one.cycles / timing.cycles / n,
        "ddr_bytes": timing.ddr_bytes,
        "array_active": timing.steps / (n * timing.cycles),
    }


def _lost(row: dict[str, float]) -> str:
    """Where the peak went, by the array's own counter."""
    active, share = row["array_active"], row["share_of_peak"]
    return (
        f"The arrays take operands in {100 * active:.0f}% of all cycles (else they wait: memory, fill, drain, uneven "
        f"tiles, SYNC), and {100 * min(share / active, 1):.0f}% of their multipliers do useful work then."
    )


def _why_scaling(sweep: Sweep, name: str, n: int) -> str:
    """What n cores do more of than one: bytes moved for an image, and cycles in which arrays wait."""
    row, one = sweep[name][n], sweep[name][1]
    held = [TITLES[each] for each, rows in sweep.items() if min(r["scaling"] for r in rows.values()) >= 0.9]
    return (
        f"{n} cores move {row['ddr_bytes'] / one['ddr_bytes']:.2f} times the bytes of one, each with the share of "
        "its bank that isolation gives it (a quarter of the bank, whatever the others do): weights are loaded by every "
        "core that needs them, results are written to every bank that reads them. Joint loads in a bank would be the "
        f"next lever. {_lost(row)} Of one core: {100 * one['array_active']:.0f}%. At or above the goal for all n: "
        f"{', '.join(held) or 'none'}."
    )


def _compared(lab: Lab) -> tuple[str, ...]:
    """The networks whose ways of tiling are compared."""
    return lab.networks[-1:] if lab.quick else lab.networks


def _ways(lab: Lab, tell: Tell) -> dict[str, dict[str, dict[str, float]]]:
    """By network, way of tiling and number of cores: frames per second."""
    counts = [4, lab.config.cores] if lab.quick else lab.counts()
    pairs = [(name, way) for name in _compared(lab) for way in WAYS]
    items = [(f"{TITLES[name]}, {WAYS[way][0]}", (name, way, tuple(counts))) for name, way in pairs]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (name, way), rates in zip(pairs, lab.each(_rates, items, tell), strict=True):
        found.setdefault(name, {})[way] = rates
    return found


def _rates(lab: Lab, item: tuple[str, str, tuple[int, ...]]) -> dict[str, float]:
    name, way, counts = item
    return {str(n): lab.fps(timing(lab, name, way, n)) for n in counts}


def _ladder(lab: Lab, ways: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Every way on all cores, beside its roofline."""
    top = str(lab.config.cores)
    rows: list[tuple[Any, ...]] = []
    for way, (title, _) in WAYS.items():
        cells: list[Any] = []
        for name, row in ways.items():
            cells += [row[way][top], anchors.ROOFLINE[way][name] if way in anchors.ROOFLINE else None]
        rows.append((title, *cells))
    columns = ["tiling"]
    for name in ways:
        columns += [TITLES[name], "roofline"]
    title = f"frames/s on {top} cores by way of tiling"
    return Table(title, tuple(columns), rows, f"Roofline: {anchors.ROOFLINE_SOURCE}.")


def _way_tables(ways: dict[str, dict[str, dict[str, float]]]) -> list[Table]:
    tables = []
    for name, row in ways.items():
        counts = list(next(iter(row.values())))
        rows: list[tuple[Any, ...]] = [(WAYS[way][0], *(rates[n] for n in counts)) for way, rates in row.items()]
        tables.append(
            Table(f"{TITLES[name]}: frames/s by way of tiling and number of cores", ("tiling", *counts), rows)
        )
    return tables


def _ladder_plot(lab: Lab, ways: dict[str, dict[str, dict[str, float]]]) -> Plot:
    made, axes = plots.figure(1, len(ways), width=max(3.1 * len(ways), 5.0) + 0.6, height=3.6)
    for place, (name, row) in enumerate(ways.items()):
        for index, (way, rates) in enumerate(row.items()):
            counts = [int(n) for n in rates]
            plots.line(axes[place], index, counts, list(rates.values()), way, markersize=3)
        axes[place].set(title=TITLES[name], xlabel="cores", ylim=(0, None))
        board = anchors.AMD[anchors.AMD_EQUAL_PEAK][1][name]
        axes[place].axhline(board, color="#999999", linestyle=":", label="vendor, equal peak")
    axes[0].set_ylabel("frames/s")
    plots.legend(made, axes[0], 0 if len(ways) > 1 else 4)
    caption = (
        "One image: frames per second by number of cores under every way of tiling; dotted: ZCU104, measured by AMD."
    )
    return Plot("single-task-tilings.png", caption, plots.png(made))


def _way_claims(lab: Lab, ways: dict[str, dict[str, dict[str, float]]]) -> list[Claim]:
    """What the paper's two tilings leave on the table."""
    top = str(lab.config.cores)
    claims = []
    for name, row in ways.items():
        two, best = row["paper"][top], row["best"][top]
        roof = anchors.ROOFLINE["paper"][name]
        claims.append(
            Claim(
                f"{TITLES[name]} on {top} cores: ours over the paper's two tilings on the same machine",
                f"{PAPER}: tiling by width and by channel",
                f"{two:.1f} frames/s",
                f"{best:.1f} ({best / two:.2f}x)",
                "beaten" if best > two else "missed",
                f"Width and channel alone leave cores idle on odd sizes; their roofline is {roof:g} frames/s, and "
                "parts by width are written to all banks here.",
            )
        )
    return claims


def _scaling_tables(sweep: Sweep) -> list[Table]:
    tables = []
    for what, title, factor in (
        ("fps", "frames/s by number of cores", 1.0),
        ("scaling", "Speed-up over one core, divided by the number of cores", 1.0),
        ("share_of_peak", "Share of the peak of the cores used, %", 100.0),
        ("array_active", "Cycles in which the arrays take operands, %", 100.0),
        ("ddr_bytes", "DDR traffic of one image, MiB", 1 / (1 << 20)),
    ):
        counts = list(next(iter(sweep.values())))
        rows: list[tuple[Any, ...]] = [
            (TITLES[name], *(factor * rows[n][what] for n in counts)) for name, rows in sweep.items()
        ]
        tables.append(Table(title, ("network", *(str(n) for n in counts)), rows))
    return tables


def _beside(lab: Lab, sweep: Sweep) -> Table:
    """Ours beside the roofline and the vendor, the latter also scaled to our peak by their efficiency."""
    peak = 2e-12 * lab.config.cores * lab.config.macs_per_cycle * lab.config.clock_hz
    top = lab.config.cores
    rows: list[tuple[Any, ...]] = [
        (f"corepool, {top} cores (simulated)", peak, *(rows[top]["fps"] for rows in sweep.values())),
        (
            "roofline on paper, all features",
            peak,
            *(anchors.ROOFLINE["best"][name] for name in sweep),
        ),
    ]
    for board, (tops, rates) in anchors.AMD.items():
        scaled = [rates[name] * peak / tops if name in rates else None for name in sweep]
        rows.append((f"{board}, measured", tops, *(rates.get(name) for name in sweep)))
        rows.append((f"{board}, per our peak", peak, *scaled))
    columns = ("design", "peak TOPS", *(TITLES[name] for name in sweep))
    note = f"Vendor: {anchors.AMD_SOURCE}. Roofline: {anchors.ROOFLINE_SOURCE}, pixels flattened, stem folded."
    return Table("frames/s beside others", columns, rows, note)


def _scaling_plot(lab: Lab, sweep: Sweep) -> Plot:
    made, (left, right) = plots.figure(1, 2)
    for index, (name, rows) in enumerate(sweep.items()):
        counts = list(rows)
        plots.line(left, index, counts, [rows[n]["speed_up"] for n in counts], TITLES[name])
        plots.line(right, index, counts, [100 * rows[n]["share_of_peak"] for n in counts], TITLES[name])
    left.plot([1, lab.config.cores], [1, lab.config.cores], color="#999999", linestyle=":", label="perfect")
    left.set(xlabel="cores", ylabel="speed-up over one core", title="Speed-up")
    right.set(xlabel="cores", ylabel="% of the peak of these cores", title="Share of peak", ylim=(0, 100))
    left.legend(fontsize=8)
    caption = "Speed-up of one image over one core, and the share of the peak that useful multiplications reach."
    return Plot("single-task-scaling.png", caption, plots.png(made))


def _claims(lab: Lab, sweep: Sweep, stream: list[Claim]) -> list[Claim]:
    claims = []
    top = lab.config.cores
    for name, rows in sweep.items():
        first, then = anchors.GOALS[name]
        fps = rows[top]["fps"]
        verdict = "beaten" if fps >= then else "reached" if fps >= first else "missed"
        roof = anchors.ROOFLINE["best"][name]
        reason = "" if fps >= first else f"{100 * fps / roof:.0f}% of the roofline. {_lost(rows[top])}"
        claims.append(
            Claim(
                f"{TITLES[name]}, one image on {top} cores, frames/s",
                "goal of this project",
                f">= {first:g}, then {then:g}",
                f"{fps:.1f} ({100 * rows[top]['share_of_peak']:.0f}% of peak)",
                verdict,
                reason,
                main=True,
            )
        )
    worst = min((row["scaling"], name, n) for name, rows in sweep.items() for n, row in rows.items())
    claims.append(
        Claim(
            "Scaling of one image at a time: speed-up over one core on n cores, least of all networks and n",
            "goal of this project",
            f">= {anchors.GOAL_SCALING:.2f} n",
            f"{worst[0]:.2f} n ({TITLES[worst[1]]}, {worst[2]} cores)",
            "reached" if worst[0] >= anchors.GOAL_SCALING else "missed",
            "" if worst[0] >= anchors.GOAL_SCALING else _why_scaling(sweep, worst[1], worst[2]),
            main=True,
        )
    )
    claims += stream
    for name, rows in sweep.items():
        board = anchors.AMD[anchors.AMD_EQUAL_PEAK][1][name]
        fps = rows[top]["fps"]
        claims.append(
            Claim(
                f"{TITLES[name]} beside the vendor's static cores of equal peak, frames/s",
                f"{anchors.AMD_SOURCE}: {anchors.AMD_EQUAL_PEAK}",
                f"{board:g}",
                f"{fps:.1f} ({fps / board:.2f}x)",
                "beaten" if fps >= board else "missed",
                "theirs is measured end to end on a board, two images at a time; ours is simulated, the card alone",
            )
        )
    return claims
