"""The first tables: queues, jobs, their errors, leases, the outbox, roles."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "queues",
        sa.Column("id", Id, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("signals", sa.Text, nullable=False, server_default=""),
        sa.Column("generation", sa.Integer, nullable=False, server_default="0"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", Id, primary_key=True),
        sa.Column("queue_id", Id, sa.ForeignKey("queues.id"), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("run_at_ms", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("suspect", sa.SmallInteger, nullable=False),
        sa.Column("lease_id", sa.BigInteger),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("force", sa.SmallInteger, nullable=False),
        sa.Column("verify", sa.SmallInteger, nullable=False),
        sa.Column("enqueued_at_ms", sa.BigInteger, nullable=False),
        sa.Column("finished_at_ms", sa.BigInteger),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("etag", sa.Text, nullable=False),
        sa.UniqueConstraint("queue_id", "key", name="jobs_key"),
    )
    op.create_index(
        "jobs_pending",
        "jobs",
        ["queue_id", "priority", "run_at_ms", "id"],
        sqlite_where=sa.text("state = 0"),
    )
    op.create_index(
        "jobs_retrying",
        "jobs",
        ["queue_id", "run_at_ms"],
        sqlite_where=sa.text("state = 0 AND attempts > 0"),
    )
    op.create_index("jobs_dead", "jobs", ["queue_id", "id"], sqlite_where=sa.text("state = 3"))
    op.create_table(
        "job_errors",
        sa.Column("id", Id, primary_key=True),
        sa.Column("job_id", Id, sa.ForeignKey("jobs.id"), nullable=False, index=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("class", sa.String(40), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("id", Id, primary_key=True),
        sa.Column("nonce", sa.String(32), nullable=False),
        sa.Column("queue_id", Id, sa.ForeignKey("queues.id"), nullable=False),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("job_ids", sa.Text, nullable=False),
        sa.Column("remaining", sa.Integer, nullable=False),
        sa.Column("solo", sa.SmallInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "outbox",
        sa.Column("position", Id, primary_key=True),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("type", sa.String(80), nullable=False),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "roles",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    for table in ("roles", "outbox", "leases", "job_errors", "jobs", "queues"):
        op.drop_table(table)
