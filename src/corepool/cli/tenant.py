"""`corepool tenant`: tenants, their keys and quotas, at a running server.

It must not know how the server keeps them.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from corepool.cli import output
from corepool.cli.client import DEFAULT_URL, Client, KeyOption, UrlOption, quoted
from corepool.cli.common import JsonOption, group
from corepool.errors import InputError

app = group("tenant", "Tenants of a running server: add, list, keys, quota, remove (with an operator's key).")

PATH = "/v2/corepool/tenants"
Name = Annotated[str, typer.Argument(metavar="NAME", help="The tenant's name.")]
Quota = Annotated[int | None, typer.Option("--cores", help="Cores that all its leases together may have.")]
Priority = Annotated[int | None, typer.Option("--priority", help="Larger goes first where cores are short.")]
Rate = Annotated[float | None, typer.Option("--requests-per-s", help="Requests a second.")]
InFlight = Annotated[int | None, typer.Option("--in-flight", help="Inferences under way at a time.")]


def _limits(cores: int | None, priority: int | None, rate: float | None, in_flight: int | None) -> dict[str, Any]:
    given = {"quota_cores": cores, "priority": priority, "requests_per_s": rate, "in_flight": in_flight}
    return {name: value for name, value in given.items() if value is not None}


@app.command(name="add")
def add(
    name: Name,
    cores: Annotated[int, typer.Option("--cores", help="Cores that all its leases together may have.")] = 4,
    priority: Priority = None,
    requests_per_s: Rate = None,
    in_flight: InFlight = None,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Add a tenant. Its key is shown this once; without --json it is all that stdout gets."""
    with Client(url, key) as client:
        made = client.ask("POST", PATH, json={"name": name, **_limits(cores, priority, requests_per_s, in_flight)})
    output.answer(json, made, made["key"])


@app.command(name="list")
def list_(url: UrlOption = DEFAULT_URL, key: KeyOption = None, json: JsonOption = False) -> None:
    """All tenants; with a tenant's key, itself."""
    with Client(url, key) as client:
        rows = client.ask("GET", PATH)
    columns = ("tenant", "cores", "priority", "requests/s", "in flight")
    names = ("name", "quota_cores", "priority", "requests_per_s", "in_flight")
    shown = [[row[name] for name in names] for row in rows]
    output.answer(json, {"tenants": rows}, output.table("Tenants", columns, shown))


@app.command(name="quota")
def quota(
    name: Name,
    cores: Quota = None,
    priority: Priority = None,
    requests_per_s: Rate = None,
    in_flight: InFlight = None,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Change what a tenant may have; without options, show it."""
    changes = _limits(cores, priority, requests_per_s, in_flight)
    with Client(url, key) as client:
        path = f"{PATH}/{quoted(name)}"
        row = client.ask("PATCH", path, json=changes) if changes else client.ask("GET", path)
    output.answer(json, row, output.facts(name, {each: value for each, value in row.items() if each != "name"}))


@app.command(name="key")
def key_(
    name: Annotated[str, typer.Argument(metavar="[TENANT]", help="The tenant; empty for operators.")] = "",
    rotate: Annotated[str | None, typer.Option("--rotate", metavar="KEY-ID", help="Replace this key.")] = None,
    revoke: Annotated[str | None, typer.Option("--revoke", metavar="KEY-ID", help="End this key.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List keys instead of making one.")] = False,
    label: Annotated[str, typer.Option("--label", help="What the new key is for.")] = "",
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Make, rotate, revoke or list keys. A new key is shown this once."""
    if (rotate is not None) + (revoke is not None) + show > 1:
        raise InputError("give one of --rotate, --revoke and --list")
    path = f"{PATH}/{quoted(name)}/keys" if name else "/v2/corepool/operators/keys"
    with Client(url, key) as client:
        rows = [] if rotate is None and revoke is None and not show else client.ask("GET", path)
        if show:
            columns = ("key id", "label", "state", "created")
            shown = [[row.get(each) for each in ("key_id", "label", "state", "created_at")] for row in rows]
            output.answer(json, {"keys": rows}, output.table(f"Keys of {name or 'operators'}", columns, shown, left=4))
            return
        changed = rotate if revoke is None else revoke
        if changed is not None and changed not in {row["key_id"] for row in rows}:
            raise InputError(f"there is no key {changed!r} of {name or 'operators'}: --list shows which there are")
        if revoke is not None:
            client.ask("DELETE", f"/v2/corepool/keys/{quoted(revoke)}")
            made: dict[str, Any] = {"key_id": revoke, "revoked": True}
        elif rotate is not None:
            made = client.ask("POST", f"/v2/corepool/keys/{quoted(rotate)}/rotate")
        else:
            made = client.ask("POST", path, json={"label": label})
    output.answer(json, made, made["key"] if revoke is None else f"key {revoke} is revoked")


@app.command(name="remove")
def remove(name: Name, url: UrlOption = DEFAULT_URL, key: KeyOption = None, json: JsonOption = False) -> None:
    """Remove a tenant that holds no leases and no models."""
    with Client(url, key) as client:
        client.ask("DELETE", f"{PATH}/{quoted(name)}")
    output.answer(json, {"name": name, "removed": True}, f"tenant {name} is removed")
