"""The claims of all experiments as one Markdown table, and as part of a document between two marked lines.

It must not know any experiment, nor calculate anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from corepool.errors import ConfigError
from corepool.evaluation.results import Finding
from corepool.files import replacing

BEGIN, END = "<!-- evaluation -->", "<!-- end of evaluation -->"


def render(findings: Sequence[Finding], command: str, main: bool = False) -> str:
    """A table of claims (``main`` ones only) beside our figures, and what it was made with and by which command."""
    lines = ["| experiment | claim | theirs or goal | ours | |", "|---|---|---|---|---|"]
    for finding in findings:
        claims = [claim for claim in finding.outcome.claims if claim.main or not main]
        for index, claim in enumerate(claims):
            name = finding.name if index == 0 else ""
            cells = (name, claim.claim, claim.theirs, claim.ours, claim.verdict)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    origin = findings[0].provenance
    changed = " with later changes" if origin["changed_since"] else ""
    quick = ", a quick look" if origin["quick"] else ""
    lines.append("")
    lines.append(
        f"Made by `{command}`: configuration {origin['config']['name']}, commit {origin['commit'][:12]}{changed}, "
        f"seed {origin['seed']}{quick}."
    )
    return "\n".join(lines) + "\n"


def split(path: Path) -> tuple[str, str]:
    """A document before and after what stands between the marked lines. Raises ConfigError if they are missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ConfigError(f"{path} has no lines {BEGIN} and {END}; put them where the table is to stand")
    return before, after


def insert(path: Path, table: str) -> None:
    """Put a table between the marked lines of a document. Raises ConfigError if they are missing."""
    before, after = split(path)
    with replacing(path) as file:
        file.write(f"{before}{BEGIN}\n{table}{END}{after}".encode())
