"""What an experiment hands back, and how it becomes a JSON file: numbers, tables, claims, plots, where they came from.

It must not know any experiment, nor how a report looks.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from corepool import __version__
from corepool.config import HardwareConfig
from corepool.files import replacing

PACKAGES = ("numpy", "numba", "onnx", "onnxruntime", "matplotlib")


@dataclass(frozen=True)
class Table:
    """Rows of equal length under headings; the first column is text."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture (PNG) with a file name of its own and a sentence that says what to see."""

    name: str
    caption: str
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Claim:
    """Something that the paper says or that we set out to reach, beside what we found.

    ``verdict`` is one of "reached", "beaten", "missed", "differs", "open"; ``reason`` says why where they differ.
    ``main`` claims stand in the short table, too.
    """

    claim: str
    source: str
    theirs: str
    ours: str
    verdict: str
    reason: str = ""
    main: bool = False


VERDICTS = ("beaten", "reached", "differs", "missed", "open")


@dataclass
class Outcome:
    """Everything that an experiment found."""

    data: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """An outcome with its experiment's name, title, question, and where it came from."""

    name: str
    title: str
    question: str
    outcome: Outcome
    provenance: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write ``NAME.json`` and the plots. Raises OSError."""
        found = self.outcome
        report = {
            "experiment": self.name,
            "title": self.title,
            "question": self.question,
            "provenance": self.provenance,
            "claims": [asdict(claim) for claim in found.claims],
            "tables": [asdict(table) for table in found.tables],
            "plots": {plot.name: plot.caption for plot in found.plots},
            "notes": found.notes,
            "data": found.data,
        }
        with replacing(folder / f"{self.name}.json") as file:
            file.write((json.dumps(plain(report), indent=1, allow_nan=False) + "\n").encode())
        for plot in found.plots:
            with replacing(folder / plot.name) as file:
                file.write(plot.png)


def plain(value: Any) -> Any:
    """Numbers, lists and dictionaries that JSON knows; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def provenance(config: HardwareConfig, seed: int, quick: bool, took: Mapping[str, Any]) -> dict[str, Any]:
    """Commit, configuration, seed, versions and machine of a run, and what it ``took``: ``seconds`` and others."""
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "changed_since": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".")),
        "config": asdict(config) | {"fingerprint": config.fingerprint()},
        "seed": seed,
        "quick": quick,
        **took,
        "versions": {"corepool": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
    }


def _git(*arguments: str) -> str:
    """What git says about the source, or nothing where there is none."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean of at least one value."""
    return sum(values) / len(values)


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 if all are equal, 1/n if one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
