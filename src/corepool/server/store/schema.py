"""The tables, and the seal that each row carries so that a changed bit is noticed when it is read.

It must not know transactions, files or who uses the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    RowMapping,
    Table,
    Text,
)

from corepool.errors import RequestError, StoreError
from corepool.server.store.records import AuditRow, Intent, KeyRow, LeaseRow, ModelRow, TenantRow

R = TypeVar("R")

metadata = MetaData()
# SQLite numbers rows by itself only where the key's type is INTEGER.
Serial = BigInteger().with_variant(Integer, "sqlite")


def text(name: str, **options: Any) -> Column[str]:
    """A column of text that is never NULL unless ``nullable`` says so."""
    return Column(name, Text, **{"nullable": False, **options})


def number(name: str, **options: Any) -> Column[int]:
    """A column of 64-bit integers that is never NULL unless ``nullable`` says so."""
    return Column(name, BigInteger, **{"nullable": False, **options})


meta = Table("meta", metadata, text("name", primary_key=True), text("value"), text("seal"))

tenants = Table(
    "tenants",
    metadata,
    text("name", primary_key=True),
    number("quota_cores"),
    number("priority"),
    Column("requests_per_s", Float(53)),
    number("burst", nullable=True),
    number("body_bytes", nullable=True),
    number("in_flight", nullable=True),
    text("seal"),
)

keys = Table(
    "keys",
    metadata,
    text("key_id", primary_key=True),
    text("tenant"),
    text("hash"),
    text("label"),
    text("state"),
    text("created_at"),
    text("seal"),
)

leases = Table(
    "leases",
    metadata,
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    text("name"),
    number("minimum"),
    number("maximum"),
    text("sharing"),
    text("switching"),
    Column("ttl_s", Float(53)),
    text("state"),
    number("epoch"),
    text("cores"),
    text("model", nullable=True),
    text("extra"),
    text("seal"),
    PrimaryKeyConstraint("tenant", "name"),
)

models = Table(
    "models",
    metadata,
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    text("name"),
    text("version"),
    text("sha256"),
    text("extra"),
    text("seal"),
    PrimaryKeyConstraint("tenant", "name", "version"),
)

journal = Table(
    "journal",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=False),
    text("kind"),
    text("tenant"),
    text("lease"),
    number("epoch"),
    text("payload"),
    text("state"),
    text("seal"),
    Index("journal_state", "state"),
)

idempotency = Table(
    "idempotency",
    metadata,
    text("tenant"),
    text("key"),
    number("number"),
    text("digest"),
    text("answer"),
    text("seal"),
    PrimaryKeyConstraint("tenant", "key"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=False),
    text("at"),
    text("actor"),
    text("tenant"),
    text("source"),
    text("action"),
    text("target"),
    text("outcome"),
    text("detail"),
    text("seal"),
)


def canonical(value: Any) -> str:
    """JSON with one spelling for one value. Raises RequestError for what JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"a value cannot be stored as JSON: {error}") from None


def digest_of(value: Any) -> str:
    """64 bits over a JSON value."""
    return blake2b(canonical(value).encode(), digest_size=8).hexdigest()


def seal_of(table: Table, values: Mapping[str, Any]) -> str:
    """64 bits over the table's name and all columns of a row but the seal."""
    row = [table.name, *(values[column.name] for column in table.columns if column.name != "seal")]
    return digest_of(row)


def sealed(table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with their seal. Raises RequestError for text or numbers that a database cannot hold."""
    for name, value in values.items():
        if isinstance(value, str):
            require_text(f"{table.name}.{name}", value)
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise RequestError(f"{table.name}.{name}: {value} does not fit into 64 bits")
    return {**values, "seal": seal_of(table, values)}


def require_text(name: str, value: str) -> None:
    """Raise RequestError unless every database can hold the text."""
    if "\0" in value:
        raise RequestError(f"{name}: text must not hold NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{name}: the text is not valid Unicode") from None


def unsealed(table: Table, row: RowMapping) -> dict[str, Any]:
    """The values of a row as stored. Raises StoreError if the row is not as it was written."""
    values = dict(row)
    found = values.pop("seal", None)
    try:
        sound = found == seal_of(table, values)
    except (KeyError, RequestError):
        sound = False
    if not sound:
        raise StoreError(f"a row of table {table.name!r} is damaged: restore a backup")
    return values


class Shelf(Generic[R]):
    """How rows of one type go into one table and come out again. ``packed`` columns hold JSON."""

    def __init__(self, table: Table, kind: type[R], packed: tuple[str, ...] = ()) -> None:
        self.table = table
        self.kind = kind
        self.packed = packed
        self.names = tuple(each.name for each in fields(kind))  # type: ignore[arg-type]

    def encode(self, row: R) -> dict[str, Any]:
        """Column values of a row, sealed. Raises RequestError for what cannot be stored."""
        values = {name: getattr(row, name) for name in self.names}
        for name in self.packed:
            value = values[name]
            values[name] = canonical(list(value) if isinstance(value, tuple) else dict(value))
        return sealed(self.table, values)

    def decode(self, row: RowMapping) -> R:
        """A row from column values. Raises StoreError if it is damaged."""
        values = unsealed(self.table, row)
        for name in self.packed:
            value = json.loads(values[name])
            values[name] = tuple(value) if isinstance(value, list) else value
        return self.kind(**values)


TENANTS = Shelf(tenants, TenantRow)
KEYS = Shelf(keys, KeyRow)
LEASES = Shelf(leases, LeaseRow, ("cores", "extra"))
MODELS = Shelf(models, ModelRow, ("extra",))
JOURNAL = Shelf(journal, Intent, ("payload",))
AUDIT = Shelf(audit, AuditRow)
SHELVES: tuple[Shelf[Any], ...] = (TENANTS, KEYS, LEASES, MODELS, JOURNAL, AUDIT)
