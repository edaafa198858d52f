"""The rows of the durable store as typed values.

It must not know databases; it says what is kept, not how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]

OPEN = "open"
DONE = "done"
VOID = "void"

ACTIVE = "active"
REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant. ``priority``: higher goes first. None for a limit: the server's default holds."""

    name: str
    quota_cores: int
    priority: int = 0
    requests_per_s: float | None = None
    burst: int | None = None
    body_bytes: int | None = None
    in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An API key. ``tenant`` is empty for an operator's. ``hash`` is argon2id's; the secret itself is kept nowhere.

    ``state`` is "active" or "revoked"; ``created_at`` is UTC in ISO 8601, for people.
    """

    key_id: str
    tenant: str
    hash: str
    label: str = ""
    state: str = ACTIVE
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease as it shall be after a restart. ``ttl_s`` None: until released. ``extra``: whatever else its owner notes.

    Times are never stored: a restart gives every lease its whole time to live anew.
    """

    tenant: str
    name: str
    minimum: int
    maximum: int
    sharing: str = "private"
    switching: str = "task"
    ttl_s: float | None = None
    state: str = "active"
    epoch: int = 0
    cores: tuple[int, ...] = ()
    model: str | None = None
    extra: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One version of a tenant's model; the package lies in the package folder under its ``sha256``."""

    tenant: str
    name: str
    version: str
    sha256: str
    extra: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Intent:
    """An entry of the journal: what was about to be done. ``state``: "open", then "done" or "void" (given up)."""

    id: int
    kind: str
    tenant: str
    lease: str
    epoch: int
    payload: Json
    state: str = OPEN


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Who (``actor``: a key's id, ``tenant``, ``source``: an address) did what to what, when (UTC), with which outcome.

    ``id`` is 0 until stored. No secrets.
    """

    actor: str
    tenant: str
    action: str
    target: str = ""
    outcome: str = "ok"
    source: str = ""
    detail: str = ""
    at: str = ""
    id: int = 0
