"""The audit log can only grow at its end and lose its oldest rows, whoever writes to the database.

It must not import the tables of today.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

KEPT = 100_000

SQLITE = (
    """CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
    f"""CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
    WHEN old.id > (SELECT max(id) FROM audit) - {KEPT}
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
)

POSTGRESQL = (
    f"""CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' AND old.id <= (SELECT max(id) FROM audit) - {KEPT} THEN
            RETURN old;
        END IF;
        RAISE EXCEPTION 'the audit log is append-only';
    END $$""",
    """CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_append_only()""",
)


def upgrade() -> None:
    for statement in SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRESQL:
        op.execute(statement)
