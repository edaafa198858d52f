"""`make bench`: measures every figure that the README quotes, prints them beside their goals, and writes them as JSON.

Results go to bench/out/results.json with commit, machine, versions and seed. Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import figures

OUT = Path(__file__).parent / "out"


def main() -> int:
    """Run the chosen measurements, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=sorted(figures.MEASUREMENTS), help="some of the measurements")
    parser.add_argument("--readme", type=Path, help="also write the table between the markers of this Markdown file")
    parser.add_argument("--networks", nargs="*", choices=figures.NETWORKS, default=list(figures.NETWORKS))
    options = parser.parse_args()
    console = Console()
    OUT.mkdir(exist_ok=True)
    bench = figures.Bench(OUT, options.networks, console.log)
    rows = []
    for name in options.only or figures.MEASUREMENTS:
        console.rule(name)
        started = time.perf_counter()
        rows += figures.MEASUREMENTS[name](bench)
        console.log(f"{name}: {time.perf_counter() - started:.0f} s")
    table = Table(title="corepool figures")
    for heading in ("figure", "network", "goal", "measured", ""):
        table.add_column(heading, justify="right" if heading == "measured" else "left")
    for row in rows:
        table.add_row(row.figure, row.network, row.goal, row.shown, "[green]met" if row.met else "[red]missed")
    console.print(table)
    result = {**figures.provenance(), "rows": [row.as_json() for row in rows]}
    (OUT / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    if options.readme:
        write_table(options.readme, rows, result)
    console.print(f"written to {OUT / 'results.json'}")
    return 0 if all(row.met for row in rows) else 1


def write_table(path: Path, rows: list[figures.Row], result: dict[str, Any]) -> None:
    """Put the figures, a column for each network, between the marked lines of a Markdown file."""
    begin, end = "<!-- figures -->", "<!-- end of figures -->"
    text = path.read_text()
    networks = list(dict.fromkeys(row.network for row in rows))
    lines = [f"| | goal | {' | '.join(networks)} |", "|---" * (2 + len(networks)) + "|"]
    for figure in dict.fromkeys(row.figure for row in rows):
        cells = {row.network: row for row in rows if row.figure == figure}
        goals = dict.fromkeys(row.goal for row in cells.values() if row.goal != "-")
        shown = (cells[n].shown + ("" if cells[n].met else " (missed)") if n in cells else "" for n in networks)
        lines.append(f"| {figure} | {' / '.join(goals)} | {' | '.join(shown)} |")
    machine = result["machine"]
    lines.append(
        f"\nCommit {result['commit'][:12]}, {machine['cores']} cores of {machine['processor']}, seed {result['seed']}."
    )
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1] if end in rest else rest
    path.write_text(before + begin + "\n" + "\n".join(lines) + "\n" + end + after)


if __name__ == "__main__":
    sys.exit(main())
