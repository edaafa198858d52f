"""Experiment resources: area of the pool beside a large core, from synthesis.

It must not estimate: what has not been synthesised is not there.
"""

from __future__ import annotations

from typing import Any

from corepool.evaluation.anchors import AREA, AREA_SOURCE
from corepool.evaluation.lab import Lab, Tell
from corepool.evaluation.results import Claim, Outcome, Table

EQUAL_PEAK = {"16 x B512": ("B512", 16), "2 x B4096": ("B4096", 2)}


def run(lab: Lab, tell: Tell) -> Outcome:
    """The vendor's areas at equal peak; our own are not there yet."""
    tell("area", 0.0)
    rows: list[tuple[Any, ...]] = [(name, *values) for name, values in AREA.items()]
    for name, (core, count) in EQUAL_PEAK.items():
        rows.append((name, *(count * value for value in AREA[core])))
    few, many = (
        [count * value for value in AREA[core]] for core, count in (EQUAL_PEAK["2 x B4096"], EQUAL_PEAK["16 x B512"])
    )
    ratios = dict(
        zip(("macs", "lut", "ff", "bram36", "dsp"), (b / a for a, b in zip(few, many, strict=True)), strict=True)
    )
    rows.append(("16 x B512 over 2 x B4096", *ratios.values()))
    claim = Claim(
        "What a pool of small cores costs in area at equal peak",
        AREA_SOURCE,
        f"{ratios['lut']:.1f}x LUT, {ratios['ff']:.1f}x FF, {ratios['bram36']:.1f}x BRAM, {ratios['dsp']:.1f}x DSP",
        "not known",
        "open",
        "No synthesis results of the pool exist yet.",
    )
    columns = ("design", "MACs a cycle", "LUT", "FF", "BRAM36", "DSP")
    return Outcome(
        {"synthesis": None, "vendor": {name: list(values) for name, values in AREA.items()}, "vendor_ratio": ratios},
        [Table("The vendor's static cores", columns, rows, AREA_SOURCE)],
        claims=[claim],
        notes=["There are no synthesis results of this project's hardware yet, so nothing is said about its area."],
    )
