"""What commands put on the terminal: one JSON object, or text and tables; progress on stderr for people only.

It must not know what the commands do. Nothing heavy is loaded before it is needed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, float], None]  # what is being done, share done of 0..1


class PipeClosedError(Exception):
    """Whoever read our output has seen enough."""


def _plain(value: Any) -> Any:
    """Numbers, lists and dictionaries that JSON knows; floats to 6 significant digits."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    elif hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.6g}")
    return value


def write(text: str) -> None:
    """Text to stdout as it is, and a new line."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise PipeClosedError from None


def write_json(report: Mapping[str, Any]) -> None:
    """The one JSON object of a command."""
    write(json.dumps(_plain(report), indent=2, allow_nan=False))


def console() -> Console:
    """A rich console on stdout; 80 columns where nobody sees it."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False, emoji=False, markup=False)


def show(*things: Any) -> None:
    """Print rich tables or plain text on stdout."""
    out = console()
    try:
        with out.capture() as captured:
            for thing in things:
                out.print(thing)
        sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
        sys.stdout.flush()
    except BrokenPipeError:
        raise PipeClosedError from None


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    left: int = 1,
    widest: Mapping[str, int] | None = None,
) -> Any:
    """A table whose first ``left`` columns are text, the others numbers; wide text is folded to fit the terminal.

    ``widest`` bounds the widths of some columns.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index < left else "right"
        width = (widest or {}).get(column)
        made.add_column(column, justify=justify, overflow="fold", no_wrap=index >= left, max_width=width)
    for row in rows:
        made.add_row(*(Text(cell(value)) for value in row))
    return made


def facts(title: str, pairs: Mapping[str, object]) -> Any:
    """A title, and names and values below each other."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="cyan", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        made.add_row(Text(name), Text(cell(value)))
    return Group(Text(title, style="bold"), made)


def cell(value: object) -> str:
    """A value as a person reads it: thousands set apart, floats to 4 digits."""
    if isinstance(value, bool) or value is None:
        return "-" if value is None else ("yes" if value else "no")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else 0
        return f"{value:,.{min(digits, 6)}f}"
    return str(value)


def one_line(text: str) -> str:
    """The text on one line, with characters that could play tricks on a terminal spelt out."""
    joined = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in joined)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar on stderr, if that is a terminal; otherwise calls go nowhere."""
    if not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0)

        def advance(what: str, share: float) -> None:
            bar.update(task, description=f"{title}: {what}"[:48], completed=min(max(share, 0.0), 1.0))

        yield advance
