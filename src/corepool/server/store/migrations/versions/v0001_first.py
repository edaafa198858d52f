"""The first schema: tenants, keys, leases, models, journal, idempotency, audit, meta.

It must not import the tables of today.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def text(name: str, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text(), nullable=nullable)


def texts(*names: str) -> "list[sa.Column[str]]":
    return [text(name) for name in names]


def number(name: str, nullable: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def real(name: str) -> "sa.Column[float]":
    return sa.Column(name, sa.Float(53), nullable=True)


def serial() -> "sa.Column[int]":
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("id", kind, primary_key=True, autoincrement=False)


def upgrade() -> None:
    key = sa.PrimaryKeyConstraint
    op.create_table("meta", text("name"), text("value"), text("seal"), key("name"))
    op.create_table(
        "tenants",
        *(text("name"), number("quota_cores"), number("priority"), real("requests_per_s")),
        *(number(name, nullable=True) for name in ("burst", "body_bytes", "in_flight")),
        text("seal"),
        key("name"),
    )
    op.create_table("keys", *texts("key_id", "tenant", "hash", "label", "state", "created_at", "seal"), key("key_id"))
    op.create_table(
        "leases",
        *(text("tenant"), text("name"), number("minimum"), number("maximum"), text("sharing"), text("switching")),
        *(real("ttl_s"), text("state"), number("epoch"), text("cores"), text("model", nullable=True)),
        *(text("extra"), text("seal")),
        key("tenant", "name"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"]),
    )
    op.create_table(
        "models",
        *texts("tenant", "name", "version", "sha256", "extra", "seal"),
        key("tenant", "name", "version"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"]),
    )
    op.create_table(
        "journal",
        *(serial(), text("kind"), text("tenant"), text("lease"), number("epoch"), text("payload"), text("state")),
        text("seal"),
    )
    op.create_index("journal_state", "journal", ["state"])
    op.create_table(
        "idempotency",
        *(text("tenant"), text("key"), number("number"), text("digest"), text("answer"), text("seal")),
        key("tenant", "key"),
    )
    op.create_table(
        "audit", serial(), *texts("at", "actor", "tenant", "source", "action", "target", "outcome", "detail", "seal")
    )
