"""Work for a store: a sequence of operations, one transaction each, and what a store must hold after each.

It must not know how the store keeps anything; the expectation is worked out in plain dictionaries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from corepool.server.store import OPEN, AuditRow, KeyRow, LeaseRow, ModelRow, Store, TenantRow

Op = tuple[Any, ...]
State = dict[str, Any]
WRITTEN = 1000  # operations of a writer that is killed
TENANTS = ("ann", "bob", "cy")


def empty() -> State:
    return {name: {} for name in ("tenants", "keys", "leases", "models", "open", "answers", "audit")} | {"epoch": 0}


def after(state: State, op: Op) -> State:
    """The state that follows."""
    new = {name: dict(each) if isinstance(each, dict) else each for name, each in state.items()}
    kind, *rest = op
    match kind:
        case "tenant":
            new["tenants"][rest[0]] = rest[1]
        case "key":
            new["keys"][rest[0]] = rest[1]
        case "lease":
            tenant, name, cores, key = rest
            new["epoch"] += 1
            new["leases"][f"{tenant}/{name}"] = [new["epoch"], list(cores)]
            new["answers"][f"{tenant}/{key}"] = {"epoch": new["epoch"]}
            new["audit"][len(new["audit"]) + 1] = f"lease {tenant}/{name}"
        case "drop":
            del new["leases"]["/".join(rest)]
        case "model":
            new["models"]["/".join(rest)] = "f" * 64
        case "intend":
            new["open"][rest[0]] = rest[1]
        case "done":
            del new["open"][rest[0]]
    return new


def apply(store: Store, op: Op) -> None:
    """Carry an operation out."""
    kind, *rest = op
    match kind:
        case "tenant":
            store.put_tenant(TenantRow(rest[0], rest[1]))
        case "key":
            store.put_key(KeyRow(rest[0], rest[1], "hash of " + rest[0]))
        case "lease":
            tenant, name, cores, key = rest
            with store.transaction() as t:
                epoch = t.next_epochs()
                t.put_lease(LeaseRow(tenant, name, 1, 16, epoch=epoch, cores=cores, extra={"note": "x" * 200}))
                t.remember(tenant, key, "digest", {"epoch": epoch})
                t.audit(AuditRow("op", tenant, "lease", f"{tenant}/{name}"))
        case "drop":
            store.delete_lease(*rest)
        case "model":
            store.put_model(ModelRow(*rest, "f" * 64))
        case "intend":
            assert store.intend("program", "ann", "l", 1, {"payload": rest[1]}) == rest[0]
        case "done":
            store.done(rest[0])


def look(store: Store, answers: State) -> State:
    """What a store holds, in the form of the expectation; ``answers`` names the idempotency keys to ask for."""
    found = empty() | {"epoch": store.epoch()}
    found["tenants"] = {row.name: row.quota_cores for row in store.tenants()}
    rows = store.keys()
    found["keys"] = {row.key_id: row.tenant for row in rows}
    found["leases"] = {f"{row.tenant}/{row.name}": [row.epoch, list(row.cores)] for row in store.leases()}
    found["models"] = {f"{row.tenant}/{row.name}/{row.version}": row.sha256 for row in store.models()}
    found["open"] = {entry.id: entry.payload["payload"] for entry in store.open_intents() if entry.state == OPEN}
    for name in answers["answers"]:
        answer = store.recall(*name.split("/"), "digest")
        if answer is not None:
            found["answers"][name] = answer
    found["audit"] = {row.id: f"{row.action} {row.target}" for row in store.audits()}
    return found


@cache
def work(seed: int, count: int) -> list[Op]:
    """Operations that all succeed, in this order."""
    rng = np.random.default_rng(seed)
    state, ops, entry = empty(), [], 0
    for number in range(count):
        kinds = ["tenant", "key", "intend"]
        if state["tenants"]:
            kinds += ["lease", "lease", "lease", "model"]
        kinds += ["drop"] * bool(state["leases"]) + ["done"] * bool(state["open"])
        op: Op
        match str(rng.choice(kinds)):
            case "tenant":
                op = ("tenant", str(rng.choice(TENANTS)), int(rng.integers(1, 17)))
            case "key":
                op = ("key", f"key{rng.integers(20)}", str(rng.choice(TENANTS)))
            case "lease":
                cores = tuple(int(n) for n in rng.choice(16, rng.integers(0, 5), replace=False))
                tenant = str(rng.choice(sorted(state["tenants"])))
                op = ("lease", tenant, f"l{rng.integers(6)}", cores, f"k{number}")
            case "model":
                op = ("model", str(rng.choice(sorted(state["tenants"]))), f"m{rng.integers(4)}", "1")
            case "drop":
                op = ("drop", *str(rng.choice(sorted(state["leases"]))).split("/"))
            case "done":
                op = ("done", int(rng.choice(sorted(state["open"]))))
            case _:
                entry += 1
                op = ("intend", entry, int(rng.integers(1000)))
        ops.append(op)
        state = after(state, op)
    return ops


def states(ops: list[Op]) -> list[State]:
    """What holds after 0, 1, 2, ... operations."""
    found = [empty()]
    for op in ops:
        found.append(after(found[-1], op))
    return found


def write_until_killed(url: str | None, folder: Path, seed: int, done: int) -> None:
    """Tell one's process id, open the store, say "o", and go on with the work after ``done`` operations, saying "a"
    for each one acknowledged. All on standard output."""
    os.write(1, f"{os.getpid()}\n".encode())
    store = Store(url, folder, ballast_bytes=0)
    os.write(1, b"o")
    for op in work(seed, WRITTEN)[done:]:
        apply(store, op)
        os.write(1, b"a")


def raise_writers() -> None:
    """For each line of standard input, "seed done url folder", let a child work there, and say "x" at its end.

    The url is "-" for SQLite.
    """
    import alembic.command  # noqa: F401  loaded once, so that children begin at once

    for line in sys.stdin:
        seed, done, url, folder = line.rstrip("\n").split(" ", 3)
        work(int(seed), WRITTEN)  # worked out once, for all children
        child = os.fork()
        if child == 0:
            try:
                write_until_killed(None if url == "-" else url, Path(folder), int(seed), int(done))
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        os.write(1, b"x")


def rows_of(store: Store) -> Iterator[State]:
    """All rows as they are, for comparisons of a store with itself."""
    for rows in (store.tenants(), store.keys(), store.leases(), store.models(), store.open_intents(), store.audits()):
        yield from (asdict(row) for row in rows)


if __name__ == "__main__":
    raise_writers()
