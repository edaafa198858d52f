"""Lays out tables and lists of facts for terminals of any width. Text may be folded; a number never is, nor is it cut.

It must not know what they show; it is given cells as text that is safe to print.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

SHORTEST_FOLD = 14  # columns: words are broken only where that much is left of them
NUMBERS = re.compile(r"[-+\d.,%/x\s]*")  # sizes such as 3x224x224 among them


def _longest(text: str) -> int:
    """Length of the longest word."""
    return max((len(word) for word in text.split()), default=0)


@dataclass(frozen=True)
class Sheet:
    """A table: columns below their names; with names of several words broken; or, where both are too wide, row after
    row as lists."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int
    widest: Mapping[str, int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        unlimited = options.update(width=100_000)
        yield Text(self.title, style="bold")
        for broken in (False, True):
            if console.measure(self._table(broken, narrow=True), options=unlimited).maximum <= options.max_width:
                yield self._table(broken)
                return
        for row in self.rows:
            yield Text("")
            yield from _list(list(zip(self.columns, row, strict=True)), options.max_width)
        yield Text("")

    def _table(self, broken: bool, narrow: bool = False) -> Table:
        """``broken``: each word of a column's name on its own line; ``narrow``: each column as narrow as it may be."""
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(self.columns):
            cells = [row[index] for row in self.rows]
            head = "\n".join(column.split()) if broken else column
            number = all(NUMBERS.fullmatch(text) for text in cells)
            lines = [line for text in (head, *cells) for line in text.split("\n")]
            needed = max(map(len, lines)) if number else min(max(map(_longest, lines)), SHORTEST_FOLD)
            made.add_column(
                Text(head),
                justify="left" if index < self.left else "right",
                overflow="fold",
                no_wrap=number,
                width=needed if narrow else None,
                min_width=needed,
                max_width=None if number else self.widest.get(column),
            )
        for row in self.rows:
            made.add_row(*map(Text, row))
        return made


@dataclass(frozen=True)
class Facts:
    """A title, and names with their values."""

    title: str
    pairs: Sequence[tuple[str, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield Text(self.title, style="bold")
        yield from _list(self.pairs, options.max_width)


def _list(pairs: Sequence[tuple[str, str]], width: int) -> Iterator[RenderableType]:
    """Names and values beside each other, or below each other where values would become too narrow."""
    names = max((len(name) for name, _ in pairs), default=0)
    words = max((_longest(value) for _, value in pairs), default=0)
    if names + 1 + min(words, SHORTEST_FOLD) > width:
        for name, value in pairs:
            yield Text(name, style="cyan")
            yield Padding(Text(value, overflow="fold"), (0, 0, 0, 2))
        return
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="cyan", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(Text(name), Text(value))
    yield made
