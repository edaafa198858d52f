"""What commands put on the terminal: one JSON object, or text and tables; progress on stderr for people only.

It must not know what the commands do. Nothing heavy is loaded before it is needed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from corepool.cli.signals import safe_point

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


def _put(text: str) -> None:
    safe_point()
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise PipeClosedError from None


def write(text: str) -> None:
    """Text to stdout and a new line; characters that could play tricks on a terminal are spelt out."""
    _put("\n".join(printable(line) for line in text.split("\n")) + "\n")


def write_json(report: Mapping[str, Any]) -> None:
    """The one JSON object of a command."""
    _put(json.dumps(_plain(report), indent=2, allow_nan=False) + "\n")


def show(*things: Any) -> None:
    """Print tables, facts or plain text on stdout; tables fit the terminal, 80 columns where there is none."""
    from rich.console import Console

    for thing in things:
        if isinstance(thing, str):
            write(thing)  # not broken into lines: a terminal does that, and paths can still be copied
            continue
        out = Console(highlight=False, soft_wrap=False, emoji=False, markup=False)
        with out.capture() as captured:
            out.print(thing)
        _put("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def answer(json: bool, value: Any, *things: Any) -> None:
    """What a verb has to say: one JSON object, or what ``show`` prints."""
    if json:
        write_json(value)
    else:
        show(*things)


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    left: int = 1,
    widest: Mapping[str, int] | None = None,
) -> Any:
    """A table whose first ``left`` columns are aligned to the left, the others to the right.

    Wide text is folded to fit the terminal, numbers never are: where there is no room for a table, rows become lists.
    ``widest`` bounds the widths of some columns. A cell may be a list of lines.
    """
    from corepool.cli.layout import Sheet

    return Sheet(printable(title), columns, [[cell(value) for value in row] for row in rows], left, widest or {})


def facts(title: str, pairs: Mapping[str, object]) -> Any:
    """A title, and names and values below each other."""
    from corepool.cli.layout import Facts

    return Facts(printable(title), [(name, cell(value)) for name, value in pairs.items()])


def cell(value: object) -> str:
    """A value as a person reads it: thousands set apart, floats to 4 digits; a list gives one line for each item."""
    if isinstance(value, bool) or value is None:
        return "-" if value is None else ("yes" if value else "no")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else 0
        return f"{value:,.{min(digits, 6)}f}"
    if isinstance(value, list | tuple):
        return "\n".join(cell(each) for each in value)
    return printable(str(value))


def printable(text: str) -> str:
    """The text with every character that could play tricks on a terminal spelt out, line breaks among them."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_line(text: str) -> str:
    """The text on one line, with characters that could play tricks on a terminal spelt out."""
    return printable(" ".join(text.split()))


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar on stderr, if that is a terminal; otherwise nothing is shown. Each call is a safe point to end."""
    if not sys.stderr.isatty():
        yield lambda what, share: safe_point()
        safe_point()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(title), total=1.0)

        def advance(what: str, share: float) -> None:
            safe_point()
            text = printable(f"{title}: {what}")[:48]
            bar.update(task, description=text, completed=min(max(share, 0.0), 1.0))

        yield advance
    safe_point()
