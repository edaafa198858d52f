"""`corepool evaluate`: the paper's experiments, their results as files, and one report.

It must not know what the experiments do.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corepool.cli import output
from corepool.cli.common import JsonOption

if TYPE_CHECKING:
    from corepool.evaluation.results import Finding

NAME = "evaluate"
REPORT, TABLE = "report.html", "report.md"


def command(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Experiments by name, or all.")],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where results go.")] = Path(
        "evaluation-out"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points, for a first look.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, arrivals and searches.")] = 0,
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="FILE.md", help="Also put the main claims between this document's marks."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", min=1, help="Processes; as many as there are processors if not given.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Repeat the paper's experiments; write results as JSON, plots, and one report to open offline."""
    from corepool.evaluation import markdown
    from corepool.evaluation.experiment import carry_out, choose
    from corepool.evaluation.lab import Lab
    from corepool.evaluation.report import render
    from corepool.evaluation.workers import crew, processors
    from corepool.files import replacing

    begin = time.perf_counter()
    chosen = choose(names)
    if into is not None:
        markdown.split(into)  # rather now than after all the work
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".models-", dir=out) as models,
        crew(partial(Lab, Path(models), quick, seed), jobs or processors()) as workers,
        output.progress("evaluate") as show,
    ):
        findings = carry_out(chosen, Lab(Path(models), quick, seed, crew=workers), out, show)
    again = f"corepool evaluate {' '.join(names)}{' --quick' if quick else ''}{f' --seed {seed}' if seed else ''}"
    with replacing(out / REPORT) as file:
        file.write(render(findings, again).encode())
    table = markdown.render(findings, again)
    with replacing(out / TABLE) as file:
        file.write(table.encode())
    if into is not None:
        markdown.insert(into, markdown.render(findings, again, main=True))
    report = _report(findings, out) | {"seconds": time.perf_counter() - begin}
    if json:
        output.write_json(report)
    else:
        _show(findings, out, report)


def _report(findings: list[Finding], out: Path) -> dict[str, Any]:
    return {
        "report": str(out / REPORT),
        "table": str(out / TABLE),
        "experiments": {
            each.name: {
                "results": str(out / f"{each.name}.json"),
                "plots": [str(out / plot.name) for plot in each.outcome.plots],
                "seconds": each.provenance["seconds"],
                "claims": [
                    {"claim": claim.claim, "theirs": claim.theirs, "ours": claim.ours, "verdict": claim.verdict}
                    for claim in each.outcome.claims
                ],
            }
            for each in findings
        },
    }


def _show(findings: list[Finding], out: Path, report: dict[str, Any]) -> None:
    for each in findings:
        rows = [(claim.claim, claim.theirs, claim.ours, claim.verdict) for claim in each.outcome.claims]
        if rows:
            widest = {"claim": 30, "theirs": 16, "ours": 16}
            output.show(output.table(each.title, ("claim", "theirs", "ours", ""), rows, left=4, widest=widest))
    output.show(f"{report['seconds']:.0f} s. Report: {out / REPORT}")
