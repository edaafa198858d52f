"""`corepool top`: a live view of a running server's card: cores by tenant, banks, queues, re-deals.

It must not know how the server counts.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corepool.cli import output
from corepool.cli.client import DEFAULT_URL, Client, KeyOption, UrlOption
from corepool.cli.common import JsonOption
from corepool.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

NAME = "top"
PATH = "/v2/corepool/status"
REDEALS = 5
TENANTS = 12
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
STATES = {"free": ".", "tainted": "!", "clearing": "~", "programming": "~"}  # of others, who has them


def command(
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    interval: Annotated[float, typer.Option("--interval", help="Seconds between two looks.")] = 1.0,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Watch a server's cores, banks and queues (with an operator's key); Ctrl-C ends it."""
    if not 0.1 <= interval <= 3600:
        raise InputError(f"--interval is 0.1 to 3600 seconds, not {interval}")
    with Client(url, key, timeout_s=30.0) as client:
        status = client.ask("GET", PATH)
        if json:
            output.write_json(status)
        elif once or not sys.stdout.isatty():
            output.show(render(status, None, 0.0))
        else:
            _live(client, status, interval)


def _live(client: Client, status: dict[str, Any], interval: float) -> None:
    from rich.live import Live

    from corepool.cli.signals import safe_point

    with Live(render(status, None, 0.0), screen=True, auto_refresh=False) as live:
        before, at = status, time.monotonic()
        while True:
            until = time.monotonic() + interval
            while time.monotonic() < until:
                safe_point()
                time.sleep(0.05)
            now, status = time.monotonic(), client.ask("GET", PATH)
            live.update(render(status, before, now - at), refresh=True)
            before, at = status, now


def render(status: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> Any:
    """The view; rates need what was ``before``, so many seconds ago. Fits terminals from 60 columns on."""
    from rich.console import Group
    from rich.text import Text

    letters = _letters(status)
    held = sum(each["state"] != "free" for each in status["cores"])
    ready = "ready" if status["ready"] else "not ready"
    parts: list[RenderableType] = [
        Text(f"corepool {status['config']}: {held} of {len(status['cores'])} cores in use, {ready}"),
        Text(""),
        _cores(status, before, seconds, letters),
        Text(""),
        _tenants(status, before, seconds, letters),
    ]
    waiting = [each for each in status["leases"] if each["state"] == "queued"]
    parts += [Text(f"queued: {_clean(each['tenant'])}/{_clean(each['name'])} wants {each['minimum']}"
                   f"..{each['maximum']} cores, {each['position']} before it{_wait(each)}", no_wrap=True,
                   overflow="ellipsis") for each in waiting[:REDEALS]]  # fmt: skip
    for each in status["redeals"][:REDEALS]:
        text = (f"{each['ago_s']:7.1f} s ago: {_clean(each['lease'])} {each['before']} -> {each['after']} cores in "
                f"{each['seconds'] * 1e3:.2f} ms")  # fmt: skip
        parts.append(Text(text, no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _letters(status: dict[str, Any]) -> dict[str, str]:
    """A letter for each tenant that has cores or work; "+" when letters run out."""
    names = sorted({each["tenant"] for each in status["cores"]} - {""})
    return {name: LETTERS[index] if index < len(LETTERS) else "+" for index, name in enumerate(names)}


def _cores(status: dict[str, Any], before: dict[str, Any] | None, seconds: float, letters: dict[str, str]) -> Any:
    """One line for each bank: its cores by tenant, how busy they are, its traffic."""
    table = _table("bank", "cores", "busy", "read", "written")
    old = {each["bank"]: each for each in (before or {"banks": []})["banks"]}
    for bank in status["banks"]:
        mine = [each for each in status["cores"] if each["bank"] == bank["bank"]]
        marks = " ".join(STATES.get(each["state"]) or letters.get(each["tenant"], "?") for each in mine)
        busy = sum(each["busy_ratio"] for each in mine) / max(len(mine), 1)
        flow = [_rate(bank[name], old.get(bank["bank"], {}).get(name), seconds) for name in
                ("read_bytes", "written_bytes")]  # fmt: skip
        table.add_row(str(bank["bank"]), marks, f"{busy:.0%}", *flow)
    return table


def _tenants(status: dict[str, Any], before: dict[str, Any] | None, seconds: float, letters: dict[str, str]) -> Any:
    table = _table("", "tenant", "cores", "quota", "waiting", "done/s" if before else "done")
    old = {each["tenant"]: each["succeeded"] for each in (before or {"tenants": []})["tenants"]}
    rows = sorted(status["tenants"], key=lambda each: (-each["cores"], -each["pending"], each["tenant"]))
    for each in rows[:TENANTS]:
        name, done = each["tenant"], each["succeeded"]
        speed = f"{(done - old.get(name, done)) / seconds:.1f}" if before and seconds else str(done)
        table.add_row(letters.get(name, ""), _clean(name), *(str(each[k]) for k in ("cores", "quota_cores", "pending")),
                      speed)  # fmt: skip
    if len(rows) > TENANTS:
        table.add_row("", f"and {len(rows) - TENANTS} more", "", "", "", "")
    return table


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        words = column in ("", "cores", "tenant") and not (column == "cores" and "tenant" in columns)
        table.add_column(column, justify="left" if words else "right", no_wrap=True, overflow="ellipsis",
                         max_width=24 if column == "tenant" else None)  # fmt: skip
    return table


def _rate(now: int, before: int | None, seconds: float) -> str:
    if before is None or not seconds:
        return _size(now)
    return f"{_size(max(now - before, 0) / seconds)}/s"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _wait(lease: dict[str, Any]) -> str:
    wait = lease["predicted_wait_s"]
    return "" if wait is None else f", about {wait:.1f} s"


def _clean(text: str) -> str:
    return output.printable(text)
