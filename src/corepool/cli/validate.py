"""`corepool validate`: attacks a running server's isolation and says of each attack whether it failed, as it must.

It must not know how isolation is built.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import typer

from corepool.cli import output
from corepool.cli.client import DEFAULT_URL, Client, KeyOption, UrlOption
from corepool.cli.common import JsonOption
from corepool.errors import AuthenticationError, CorepoolError

NAME = "validate"
PATH = "/v2/corepool"
EXIT_FAILED = 1


def command(url: UrlOption = DEFAULT_URL, key: KeyOption = None, json: JsonOption = False) -> None:
    """Attack the server's isolation (with an operator's key); exit code 1 if an attack succeeds.

    Attacks on memory and cores run on the server's device, in two cores leased for them; with the simulator, which
    gives each lease a device of its own, on one more such device. Those on keys and leases run as two tenants that are
    made for it and removed.
    """
    with Client(url, key) as client, output.progress("validate") as progress:
        progress("keys and leases", 0.1)
        rows = _as_tenants(client)
        progress("memory and cores", 0.4)
        answer = client.ask("POST", f"{PATH}/validate")
        rows += answer["attacks"]
    passed = all(row["passed"] for row in rows)
    if json:
        output.write_json({"passed": passed, "device": answer["device"], "attacks": rows})
    else:
        shown = [["pass" if row["passed"] else "FAIL", row["attack"], row["detail"]] for row in rows]
        output.show(output.table("Attacks", ("", "attack", "what was seen"), shown, left=3))
        output.write(f"Memory and cores: {answer['device']}.")
    if not passed:
        raise typer.Exit(EXIT_FAILED)


def _as_tenants(operator: Client) -> list[dict[str, Any]]:
    """Attacks by one tenant on another; both are removed in the end."""
    names = [f"validate-{secrets.token_hex(4)}-{side}" for side in "ab"]
    made: list[str] = []
    try:
        keys = []
        for name in names:
            keys.append(operator.ask("POST", f"{PATH}/tenants", json={"name": name, "quota_cores": 1}))
            made.append(name)
        return _attack(operator, names, keys)
    finally:
        for name in made:
            with Client(operator.url, operator.key, name) as acting:
                _quietly(lambda acting=acting: acting.ask("DELETE", f"{PATH}/leases/mine"))  # type: ignore[misc]
            _quietly(lambda name=name: operator.ask("DELETE", f"{PATH}/tenants/{name}"))  # type: ignore[misc]


def _attack(operator: Client, names: list[str], keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    with Client(operator.url, keys[0]["key"]) as owner, Client(operator.url, keys[1]["key"]) as thief:
        owner.ask("POST", f"{PATH}/leases", json={"name": "mine", "cores": 1})
        for what, method, body in (
            ("reads", "GET", None),
            ("resizes", "PATCH", {"cores": 1}),
            ("releases", "DELETE", None),
        ):
            more = {} if body is None else {"json": body}
            theirs = _refusal(lambda m=method, k=more: thief.ask(m, f"{PATH}/leases/mine", **k))  # type: ignore[misc]
            absent = _refusal(lambda m=method, k=more: thief.ask(m, f"{PATH}/leases/none", **k))  # type: ignore[misc]
            same = theirs is not None and absent is not None and theirs.replace("mine", "none") == absent
            rows.append(_row("foreign lease", same, f"{what} another tenant's lease: {theirs or 'it was let in'}"))
        still = {row["name"] for row in owner.ask("GET", f"{PATH}/leases")}
        seen = {row["tenant"] for row in thief.ask("GET", f"{PATH}/leases")} - {names[1]}
        rows.append(_row("foreign lease", "mine" in still, "its owner still has it" if still else "it is gone"))
        rows.append(_row("foreign lease", not seen, "another's leases are not listed" if not seen else f"sees {seen}"))
        text = _refusal(lambda: thief.ask("GET", f"{PATH}/leases", headers={"corepool-tenant": names[0]}))
        rows.append(_row("foreign lease", text is not None, f"acts for another tenant: {text or 'it was let in'}"))
        operator.ask("DELETE", f"{PATH}/keys/{keys[1]['key_id']}")
        stale = False
        try:
            thief.ask("GET", f"{PATH}/leases")
        except AuthenticationError:
            stale = True
        rows.append(_row("stale key", stale, "a key that worked is refused once it is revoked" if stale else "let in"))
    return rows


def _row(attack: str, passed: bool, detail: str) -> dict[str, Any]:
    return {"attack": attack, "passed": passed, "detail": detail}


def _refusal(call: Callable[[], Any]) -> str | None:
    """The server's words of refusal, None if there was none."""
    try:
        call()
    except CorepoolError as error:
        return str(error)
    return None


def _quietly(call: Callable[[], Any]) -> None:
    _refusal(call)
