"""The first tables: queues, jobs, their errors, leases, the outbox, roles, the bell."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
LongText = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
Bytes = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def create(name: str, *items: sa.schema.SchemaItem, **options: Any) -> None:
    op.create_table(name, *items, mysql_charset="utf8mb4", mysql_collate="utf8mb4_bin", **options)


def where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def of_state(name: str, condition: str, *columns: str) -> None:
    if op.get_bind().dialect.name in ("mysql", "mariadb"):
        op.create_index(f"{name}_by_state", "pinq_jobs", ["queue_id", "state", *columns])
    else:
        op.create_index(name, "pinq_jobs", ["queue_id", *columns], **where(condition))


def upgrade() -> None:
    create(
        "pinq_queues",
        sa.Column("id", Id, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("signals", LongText, nullable=False),
        # Grows by one whenever `signals` changes; a succeeded job remembers it.
        sa.Column("generation", sa.Integer, nullable=False, server_default="0"),
        sa.Column("paused", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("draining", sa.SmallInteger, nullable=False, server_default="0"),
        # Jobs a second, and at once; no limit where null.
        sa.Column("rate", sa.Double),
        sa.Column("in_flight", sa.Integer),
        # What the rate's bucket held, and when.
        sa.Column("allowance", sa.Double, nullable=False, server_default="0"),
        sa.Column("allowance_at_ms", sa.BigInteger, nullable=False, server_default="0"),
    )
    create(
        "pinq_jobs",
        sa.Column("id", Id, primary_key=True),
        sa.Column("queue_id", Id, nullable=False),
        sa.Column("job_key", sa.String(128), nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("run_at_ms", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        # Its last lease expired: it may have killed its worker.
        sa.Column("suspect", sa.SmallInteger, nullable=False),
        sa.Column("lease_id", sa.BigInteger),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("forced", sa.SmallInteger, nullable=False),
        sa.Column("verify", sa.SmallInteger, nullable=False),
        sa.Column("enqueued_at_ms", sa.BigInteger, nullable=False),
        sa.Column("finished_at_ms", sa.BigInteger),
        sa.Column("uri", LongText, nullable=False),
        sa.Column("etag", LongText, nullable=False),
        sa.Column("body", Bytes, nullable=False),
        sa.Column("progress", Bytes, nullable=False),
        sa.Column("status", LongText, nullable=False),
        sa.UniqueConstraint("queue_id", "job_key", name="pinq_jobs_key"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # A job is updated twice, each time as a new version of its row: there is room on its page.
        op.execute("ALTER TABLE pinq_jobs SET (fillfactor = 50)")
    of_state("pinq_jobs_pending", "state = 0", "priority", "run_at_ms", "id")
    # What was tried before is due again: found among any number of jobs that are scheduled.
    of_state("pinq_jobs_retrying", "state = 0 AND attempts > 0", "attempts")
    # For retention, and for what an operator asks of the dead.
    op.create_index(
        "pinq_jobs_ended", "pinq_jobs", ["state", "finished_at_ms"], **where("state >= 2")
    )
    create(
        "pinq_job_errors",
        sa.Column("id", Id, primary_key=True),
        sa.Column("job_id", Id, nullable=False, index=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("class", sa.String(40), nullable=False),
        sa.Column("message", LongText, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    # One row a lease rather than an expiry a job: renewing is one row's update, and
    # an expired lease is found without an index over jobs. Ids are random, so that an id in a
    # job's row can mean only one lease.
    create(
        "pinq_leases",
        sa.Column("id", Id, primary_key=True, autoincrement=False),
        sa.Column("queue_id", Id, nullable=False),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("job_ids", LongText, nullable=False),
        sa.Column("remaining", sa.Integer, nullable=False),
        sa.Column("solo", sa.SmallInteger, nullable=False),
    )
    create(
        "pinq_outbox",
        sa.Column("position", Id, primary_key=True),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("type", sa.String(80), nullable=False),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("data", LongText, nullable=False),
        sqlite_autoincrement=True,
    )
    create(
        "pinq_roles",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    )
    # One row, counted up by whoever commits something that others may wait for; read by
    # those who wait on MySQL, which tells nobody of a commit.
    create(
        "pinq_bell",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("rings", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    for table in (
        "pinq_bell",
        "pinq_roles",
        "pinq_outbox",
        "pinq_leases",
        "pinq_job_errors",
        "pinq_jobs",
        "pinq_queues",
    ):
        op.drop_table(table)
