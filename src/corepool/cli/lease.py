"""`corepool lease`: leases of cores at a running server.

It must not know how cores are dealt.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from corepool.cli import output
from corepool.cli.client import DEFAULT_URL, Client, KeyOption, TenantOption, UrlOption, quoted
from corepool.cli.common import JsonOption, group
from corepool.errors import InputError

app = group("lease", "Leases of cores: create, list, resize, keep alive, release.")

PATH = "/v2/corepool/leases"
Name = Annotated[str, typer.Argument(metavar="NAME", help="The lease's name.")]
Cores = Annotated[
    str,
    typer.Option("--cores", metavar="N|MIN..MAX", help="A number of cores, or the fewest and the most, as in 2..8."),
]


def bounds(text: str) -> dict[str, int]:
    """What --cores says. Raises InputError."""
    low, dots, high = text.partition("..")
    parts = (low, high) if dots else (low,)
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise InputError(f"--cores must be a number, or two as in 2..8, not {text!r}")
    return {"minimum": int(low), "maximum": int(high)} if dots else {"cores": int(low)}


def show(row: dict[str, Any], json: bool) -> None:
    """One lease."""
    output.answer(json, row, f"{row['tenant']}/{row['name']}: {tell(row)}")


def tell(row: dict[str, Any]) -> str:
    """A lease's state in words."""
    if row["state"] == "queued":
        wait = row["predicted_wait_s"]
        text = f"queued, {row['position']} before it"
        return text if wait is None else f"{text}, its cores come in about {wait:.1f} s"
    listed = ", ".join(map(str, row["cores"])) or "none"
    return f"{row['state']}, {len(row['cores'])} cores ({listed}) of {row['minimum']}..{row['maximum']}"


@app.command(name="create")
def create(
    name: Name,
    cores: Cores = "1",
    sharing: Annotated[str, typer.Option("--sharing", help="private, or public: fixed and exclusive.")] = "private",
    switching: Annotated[str, typer.Option("--switching", help="task, or layer: cores move between layers.")] = "task",
    ttl: Annotated[float | None, typer.Option("--ttl", help="Seconds to live without a heartbeat.")] = None,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    tenant: TenantOption = None,
    json: JsonOption = False,
) -> None:
    """Lease cores, or queue for them: the answer tells position and predicted wait."""
    body = {"name": name, **bounds(cores), "sharing": sharing, "switching": switching}
    if ttl is not None:
        body["ttl_s"] = ttl
    with Client(url, key, tenant) as client:
        show(client.ask("POST", PATH, json=body), json)


@app.command(name="list")
def list_(
    url: UrlOption = DEFAULT_URL, key: KeyOption = None, tenant: TenantOption = None, json: JsonOption = False
) -> None:
    """All leases, held and queued."""
    with Client(url, key, tenant) as client:
        rows = client.ask("GET", PATH)
    shown = [[row["tenant"], row["name"], tell(row), row["model"]] for row in rows]
    columns = ("tenant", "lease", "state", "model")
    output.answer(json, {"leases": rows}, output.table("Leases", columns, shown, left=4))


@app.command(name="resize")
def resize(
    name: Name,
    cores: Cores,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    tenant: TenantOption = None,
    json: JsonOption = False,
) -> None:
    """Give a lease more or fewer cores while it is used."""
    with Client(url, key, tenant) as client:
        show(client.ask("PATCH", f"{PATH}/{quoted(name)}", json=bounds(cores)), json)


@app.command(name="heartbeat")
def heartbeat(
    name: Name, url: UrlOption = DEFAULT_URL, key: KeyOption = None, tenant: TenantOption = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Keep a lease with a time to live alive."""
    with Client(url, key, tenant) as client:
        show(client.ask("POST", f"{PATH}/{quoted(name)}/heartbeat"), json)


@app.command(name="release")
def release(
    name: Name, url: UrlOption = DEFAULT_URL, key: KeyOption = None, tenant: TenantOption = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Give the cores back; inferences that run end first."""
    with Client(url, key, tenant) as client:
        client.ask("DELETE", f"{PATH}/{quoted(name)}")
    output.answer(json, {"name": name, "released": True}, f"lease {name} is released")
