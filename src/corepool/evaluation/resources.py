"""Experiment resources: area of the pool beside vendors' cores and a large core, from synthesis.

It must not estimate: what has not been synthesised is not there. Results are those that the package holds; synthesis
itself takes many minutes and is a command of its own.
"""

from __future__ import annotations

from typing import Any

from corepool.config import preset
from corepool.errors import InputError
from corepool.evaluation.anchors import AREA, AREA_SOURCE, DEMO, U200, U200_SOURCE
from corepool.evaluation.lab import Lab
from corepool.evaluation.results import Claim, Outcome, Table
from corepool.evaluation.workers import Tell
from corepool.hardware.areas import ECP5, groups, load, summary
from corepool.hardware.synth import Area, sources

EQUAL_PEAK = {"16 x B512": ("B512", 16), "2 x B4096": ("B4096", 2)}
COLUMNS = ("design", "MACs a cycle", "LUT", "FF", "BRAM36", "DSP", "URAM")
GOAL_DSP = 160  # of one core of u200


def run(lab: Lab, tell: Tell) -> Outcome:
    """Our areas from the results of synthesis beside the vendor's."""
    tell("area", 0.0)
    results, notes = {}, []
    for name in ("u200", "tiny", "large-core", ECP5):
        try:
            results[name] = load(name)
        except InputError:
            notes.append(f"There is no result of synthesis called {name}, so nothing is said about it.")
    for name, result in results.items():
        if result["sources"] != sources():
            notes.append(f"{name} was synthesised at commit {result['commit'][:12]}; the hardware has changed since.")
    tables, claims, vendor_ratio = [], [], _vendor_ratio()
    if "u200" in results:
        claims += _claims(results["u200"], vendor_ratio)
    else:
        claims.append(
            Claim("Area of u200", "goal of this project", f"{GOAL_DSP} DSP a core at most", "not synthesised", "open")
        )
    tables.append(_beside(results))
    if "u200" in results:
        tables.append(_parts(results["u200"]))
    if ECP5 in results:
        claims.append(_ecp5(results[ECP5]))
    data: dict[str, Any] = {
        "synthesis": {
            name: {key: value for key, value in result.items() if key != "modules"} for name, result in results.items()
        },
        "vendor": {name: list(values) for name, values in AREA.items()},
        "vendor_ratio": vendor_ratio,
    }
    if "u200" in results:
        data["u200"] = {"groups": groups(results["u200"]), "summary": summary(results["u200"], preset("u200").cores)}
    notes.append(
        "Yosys maps plainly. Additions of three operands, adders before multipliers, registers inside of DSP blocks: "
        "vendors' tools use all that, it does not. Its counts are upper bounds."
    )
    return Outcome(data, tables, claims=claims, notes=notes)


def _vendor_ratio() -> dict[str, float]:
    few, many = (
        [count * value for value in AREA[core]] for core, count in (EQUAL_PEAK["2 x B4096"], EQUAL_PEAK["16 x B512"])
    )
    names = ("macs", "lut", "ff", "bram36", "dsp")
    return dict(zip(names, (b / a for a, b in zip(few, many, strict=True)), strict=True))


def _row(name: str, macs: int | None, area: Area) -> tuple[Any, ...]:
    return (name, macs, *(round(area[key], 1) for key in ("lut", "ff", "bram36", "dsp", "uram")))


def _beside(results: dict[str, Any]) -> Table:
    """Cores and pools, ours and the vendor's."""
    rows: list[tuple[Any, ...]] = []
    if "u200" in results:
        config, parts = preset("u200"), summary(results["u200"], preset("u200").cores)
        rows.append(_row("a core of u200", config.macs_per_cycle, parts["core"]))
        rows.append(_row("what a single core needs besides", None, parts["shared"]))
        rows.append(_row("what virtualisation adds to a core", None, parts["virtual"]))
        rows.append(_row("u200, 16 cores, whole", config.cores * config.macs_per_cycle, parts["pool"]))
    if "large-core" in results:
        rows.append(_row("one core of large", preset("large").macs_per_cycle, results["large-core"]["total"]))
    if "tiny" in results:
        config = preset("tiny")
        pool = summary(results["tiny"], config.cores)["pool"]
        rows.append(_row("tiny, whole", config.cores * config.macs_per_cycle, pool))
    rows += [(name, *values, None) for name, values in AREA.items()]
    for name, (core, count) in EQUAL_PEAK.items():
        rows.append((name, *(count * value for value in AREA[core]), None))
    note = f"B512, B1024, B4096: {AREA_SOURCE}. Ours: Yosys, UltraScale+; memories in UltraRAM where they fill it."
    return Table("Areas", COLUMNS, rows, note)


def _parts(result: dict[str, Any]) -> Table:
    rows = [_row(name, None, area) for name, area in sorted(groups(result).items(), key=lambda item: -item[1]["lut"])]
    return Table("Parts of u200, all 16 cores together", ("part", *COLUMNS[1:]), rows)


def _claims(result: dict[str, Any], vendor_ratio: dict[str, float]) -> list[Claim]:
    parts = summary(result, preset("u200").cores)
    core, virtual, shared = parts["core"], parts["virtual"], parts["shared"]
    lut, flops, bram, dsp = AREA["B512"][1:]
    alone = {key: core[key] + shared[key] for key in core}
    use = {key: parts["pool"][key] / have for key, have in U200.items()}
    return [
        Claim(
            "A pool of 16 cores of 512 operations a cycle, four to a bank of memory, on one U200",
            DEMO,
            "built and run",
            ", ".join(f"{100 * share:.0f}% of its {key.upper()}" for key, share in use.items()),
            "reached" if max(use.values()) <= 1 else "missed",
            f"Synthesised, not placed or run on a card: none was at hand. {U200_SOURCE}.",
        ),
        Claim(
            "DSP blocks of a core of u200",
            "goal of this project",
            f"{GOAL_DSP} at most",
            f"{core['dsp']:.0f}",
            "reached" if core["dsp"] <= GOAL_DSP else "missed",
            "Two INT8 products share a DSP48E2 in the array; the rest are requantisation and addresses.",
        ),
        Claim(
            "A core of 256 MACs beside the vendor's",
            AREA_SOURCE,
            f"B512: {lut:,} LUT, {flops:,} FF, {bram} BRAM36, {dsp} DSP",
            f"{core['lut']:,.0f} LUT, {core['ff']:,.0f} FF, {core['bram36']:.1f} BRAM36, {core['uram']:.0f} URAM, "
            f"{core['dsp']:.0f} DSP",
            "differs",
            "B512 clocks its DSP blocks twice as fast as the rest, so it needs half as many.",
        ),
        Claim(
            "What virtualisation adds to a single core",
            "goal of this project: to be told",
            "no goal was set",
            f"{100 * virtual['lut'] / alone['lut']:.1f}% LUT, {100 * virtual['ff'] / alone['ff']:.1f}% FF, "
            f"{virtual['dsp']:.0f} DSP, {virtual['bram36']:.0f} BRAM36",
            "differs",
            "Leases, window checks, ports, owners, slots, buffers for other banks: over a core and what it needs.",
        ),
        Claim(
            "What a pool of small cores costs in area at equal peak",
            AREA_SOURCE,
            f"{vendor_ratio['lut']:.1f}x LUT, {vendor_ratio['ff']:.1f}x FF, {vendor_ratio['bram36']:.1f}x BRAM, "
            f"{vendor_ratio['dsp']:.1f}x DSP",
            f"{parts['pool']['lut'] / (2 * AREA['B4096'][1]):.1f}x LUT, "
            f"{parts['pool']['ff'] / (2 * AREA['B4096'][2]):.1f}x FF, "
            f"{parts['pool']['dsp'] / (2 * AREA['B4096'][4]):.1f}x DSP",
            "differs",
            "Ours: the whole u200 pool, virtualisation included, over two of the vendor's large cores.",
        ),
    ]


def _ecp5(result: dict[str, Any]) -> Claim:
    use = result["used"]["lut4"] / result["available"]["lut4"]
    return Claim(
        f"The pool {result['config']} on an ECP5-85K",
        "goal of this project",
        "places, routes, bitstream written, largest clock told",
        f"{result['megahertz']} MHz, {100 * use:.0f}% of the LUTs, {result['bitstream_bytes']:,} bytes of bitstream",
        "reached",
    )
