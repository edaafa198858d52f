"""One HTML file that shows findings offline: claims beside our figures, tables, pictures inside.

It must not know any experiment, nor calculate anything.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from corepool.evaluation.anchors import DEMO, PAPER
from corepool.evaluation.results import Claim, Finding, Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; margin: 0 auto; max-width: 1080px;
  padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 1.2rem 0 0.2rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 0.2rem; border-top: 2px solid #1c1c1c; padding-top: 0.8rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 0.3rem; } p.question { font-style: italic; color: #444; margin: 0 0 1rem; }
nav { margin: 0.6rem 0 1.2rem; } nav a { margin-right: 0.9rem; white-space: nowrap; }
.scroll { overflow-x: auto; }
table.claims { table-layout: fixed; width: 100%; min-width: 52rem; } table.claims td { overflow-wrap: break-word; }
table { border-collapse: collapse; font-size: 0.86rem; margin: 0.3rem 0 0.4rem; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 1.5px solid #1c1c1c; padding: 0.25rem 0.7rem 0.25rem 0; vertical-align: bottom; }
td { border-bottom: 1px solid #dedede; padding: 0.22rem 0.7rem 0.22rem 0; vertical-align: top; }
table.numbers td:not(:first-child), table.numbers th:not(:first-child) { text-align: right; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: 0.86rem; max-width: 60rem; }
.verdict { display: inline-block; min-width: 4.3em; text-align: center; border-radius: 3px; padding: 0 0.4em;
  font-weight: 600; font-size: 0.8rem; }
.beaten, .reached { background: #d5efdf; color: #0b4f2b; } .missed { background: #f9d8d0; color: #7d1a05; }
.differs { background: #fbeecb; color: #664700; } .open { background: #e4e4e4; color: #333; }
footer { margin-top: 3rem; border-top: 1px solid #999; padding-top: 0.6rem; font-size: 0.82rem; color: #444; }
"""


def render(findings: Sequence[Finding], command: str) -> str:
    """The whole report as one HTML text without links to anything outside; ``command`` is what makes it again."""
    origin = findings[0].provenance
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>corepool: evaluation</title><style>{_STYLE}</style></head><body>",
        "<h1>corepool: evaluation</h1>",
        f"<p>Configuration {_text(origin['config']['name'])}, commit {_text(origin['commit'][:12])}"
        f"{' with later changes' if origin['changed_since'] else ''}, seed {origin['seed']}. "
        f"{'A quick look: fewer points than a full run. ' if origin['quick'] else ''}"
        f"Made by <code>{_text(command)}</code>. All rates are simulated cycles at the card's clock; "
        "host times were measured on the machine named at the end.</p>",
        "<nav>" + " ".join(f"<a href='#{each.name}'>{_text(each.title)}</a>" for each in findings) + "</nav>",
        _summary(findings),
        *(_section(each) for each in findings),
        _footer(findings),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _text(value: Any) -> str:
    return html.escape(str(value))


_HEADS = {"experiment": 9, "claim": 24, "theirs or goal": 13, "ours": 15, "": 8, "where it differs, why": 31}  # widths
_KINDS = ("What the paper says or its authors showed", "What this project set out to reach", "What others reached")


def _kind(claim: Claim) -> str:
    if PAPER in claim.source or DEMO in claim.source:
        return _KINDS[0]
    return _KINDS[1] if claim.source.startswith("goal") else _KINDS[2]


def _summary(findings: Sequence[Finding]) -> str:
    """Every claim of every experiment: those about the paper, goals, and others."""
    parts = []
    heads = "".join(f"<th style='width:{width}%'>{head}</th>" for head, width in _HEADS.items())
    for kind in _KINDS:
        rows = []
        for finding in findings:
            for index, claim in enumerate(each for each in finding.outcome.claims if _kind(each) == kind):
                first = f"<a href='#{finding.name}'>{_text(finding.name)}</a>" if index == 0 else ""
                rows.append(_claim(claim, first))
        if rows:
            table = f"<table class='claims'><tr>{heads}</tr>{''.join(rows)}</table>"
            parts.append(f"<h3>{kind}</h3><div class='scroll'>{table}</div>")
    return "<h2>Claims beside our figures</h2>" + "".join(parts) if parts else ""


def _claim(claim: Claim, first: str) -> str:
    cells = (
        first,
        f"{_text(claim.claim)}<br><span class='note'>{_text(claim.source)}</span>",
        _text(claim.theirs),
        f"<b>{_text(claim.ours)}</b>",
        f"<span class='verdict {claim.verdict}'>{claim.verdict}</span>",
        _text(claim.reason),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _section(finding: Finding) -> str:
    found = finding.outcome
    parts = [
        f"<section id='{finding.name}'><h2>{_text(finding.title)}</h2><p class='question'>{_text(finding.question)}</p>"
    ]
    parts += [f"<p>{_text(note)}</p>" for note in found.notes]
    for plot in found.plots:
        data = base64.b64encode(plot.png).decode()
        caption = _text(plot.caption)
        parts.append(
            f"<figure><img alt='{caption}' src='data:image/png;base64,{data}'>"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts += [_table(table) for table in found.tables]
    return "\n".join(parts) + "</section>"


def _table(table: Table) -> str:
    heads = "".join(f"<th>{_text(column)}</th>" for column in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in table.rows)
    note = f"<p class='note'>{_text(table.note)}</p>" if table.note else ""
    return (
        f"<h3>{_text(table.title)}</h3><div class='scroll'><table class='numbers'><tr>{heads}</tr>{rows}</table></div>"
        + note
    )


def cell(value: Any) -> str:
    """A value as a person reads it: thousands set apart, four digits of a fraction, a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:,.{min(digits, 4)}f}"
    return _text(value)


def _footer(findings: Sequence[Finding]) -> str:
    origin = findings[0].provenance
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    machine = origin["machine"]
    took = ", ".join(f"{each.name} {_took(each.provenance)}" for each in findings)
    before = origin.get("compiling_before")
    if before:
        took = f"compiling {_took(before)}, {took}"
    return (
        f"<footer>Machine: {_text(machine['processor'])}, {machine['cores']} cores, {_text(machine['system'])}. "
        f"Versions: {_text(versions)}. Configuration fingerprint {_text(origin['config']['fingerprint'])}. "
        f"Time (of processors): {_text(took)}.</footer>"
    )


def _took(times: Mapping[str, Any]) -> str:
    return f"{times['seconds']:.0f} s ({times['cpu_seconds']:.0f} s)"
