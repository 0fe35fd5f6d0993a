"""The queue's tables, on every SQL database. ``migrations/`` makes them; a test holds the
two equal.

All names begin with ``pinq_``, so that the tables can stand in a database beside somebody
else's. ``REVISION`` is the Alembic revision that these definitions describe.

There are no foreign keys: a check a row is a third of what an enqueue costs PostgreSQL. A
queue is locked instead while something is put into it, and whoever deletes a job deletes its
errors first.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import DDL, SchemaItem

from pinq.queue.model import State

REVISION = "0001"
REVISION_TABLE = "pinq_revision"

# SQLite gives only an INTEGER PRIMARY KEY the rowid's speed.
Id = BigInteger().with_variant(Integer, "sqlite")
# MySQL's plain TEXT and BLOB end at 64 KiB.
LongText = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
Bytes = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")

PENDING, LEASED, SUCCEEDED, DEAD = range(4)
STATE = {
    PENDING: State.PENDING,
    LEASED: State.LEASED,
    SUCCEEDED: State.SUCCEEDED,
    DEAD: State.DEAD,
}
STATE_NUMBER = {state: number for number, state in STATE.items()}

metadata = MetaData()


def _table(name: str, *items: SchemaItem, **options: Any) -> Table:
    # Without its collation MySQL takes "A" and "a" for one key.
    return Table(
        name, metadata, *items, mysql_charset="utf8mb4", mysql_collate="utf8mb4_bin", **options
    )


NO_PARTIAL_INDEXES = ("mysql", "mariadb")


def _where(condition: str) -> dict[str, Any]:
    """Makes an index partial, where the database can: MySQL indexes all rows."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


queues = _table(
    "pinq_queues",
    Column("id", Id, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("source", String(200), nullable=False),
    Column("signals", LongText, nullable=False),
    # Grows by one whenever `signals` changes; a succeeded job remembers it.
    Column("generation", Integer, nullable=False, server_default="0"),
    Column("paused", SmallInteger, nullable=False, server_default="0"),
    Column("draining", SmallInteger, nullable=False, server_default="0"),
    # Jobs a second, and at once; no limit where null.
    Column("rate", Double),
    Column("in_flight", Integer),
    # What the rate's bucket held, and when.
    Column("allowance", Double, nullable=False, server_default="0"),
    Column("allowance_at_ms", BigInteger, nullable=False, server_default="0"),
)

jobs = _table(
    "pinq_jobs",
    Column("id", Id, primary_key=True),
    Column("queue_id", Id, nullable=False),
    Column("job_key", String(128), nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("run_at_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    # Its last lease expired: it may have killed its worker.
    Column("suspect", SmallInteger, nullable=False),
    Column("lease_id", BigInteger),
    Column("generation", Integer, nullable=False),
    Column("forced", SmallInteger, nullable=False),
    Column("verify", SmallInteger, nullable=False),
    Column("enqueued_at_ms", BigInteger, nullable=False),
    Column("finished_at_ms", BigInteger),
    Column("uri", LongText, nullable=False),
    Column("etag", LongText, nullable=False),
    Column("body", Bytes, nullable=False),
    Column("progress", Bytes, nullable=False),
    Column("status", LongText, nullable=False),
    UniqueConstraint("queue_id", "job_key", name="pinq_jobs_key"),
)


# A job is updated twice, each time as a new version of its row: with room for that on its page,
# nothing else need be found, and what is dead there is cleared away in passing.
event.listen(
    jobs,
    "after_create",
    DDL("ALTER TABLE pinq_jobs SET (fillfactor = 50)").execute_if(  # type: ignore[no-untyped-call]
        dialect="postgresql"
    ),
)


def _of_state(name: str, condition: str, *columns: Column[Any]) -> None:
    """An index over the jobs of a queue in a state: partial, or else with the state in it.

    Not both: PostgreSQL leaves a condition out that the index implies, and then cannot seek
    past the state's column.
    """
    partial = Index(name, jobs.c.queue_id, *columns, **_where(condition))
    partial.ddl_if(callable_=lambda *_, dialect, **__: dialect.name not in NO_PARTIAL_INDEXES)
    whole = Index(f"{name}_by_state", jobs.c.queue_id, jobs.c.state, *columns)
    whole.ddl_if(callable_=lambda *_, dialect, **__: dialect.name in NO_PARTIAL_INDEXES)


_of_state("pinq_jobs_pending", f"state = {PENDING}", jobs.c.priority, jobs.c.run_at_ms, jobs.c.id)
# What was tried before is due again: found among any number of jobs that are scheduled.
_of_state("pinq_jobs_retrying", f"state = {PENDING} AND attempts > 0", jobs.c.attempts)
# For retention, and for what an operator asks of the dead.
Index(
    "pinq_jobs_ended",
    jobs.c.state,
    jobs.c.finished_at_ms,
    **_where(f"state >= {SUCCEEDED}"),
)

job_errors = _table(
    "pinq_job_errors",
    Column("id", Id, primary_key=True),
    Column("job_id", Id, nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("class", String(40), nullable=False),
    Column("message", LongText, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
)

# One row a lease rather than an expiry a job: renewing is one row's update, and
# an expired lease is found without an index over jobs. Ids are random, so that an id in a
# job's row can mean only one lease.
leases = _table(
    "pinq_leases",
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("queue_id", Id, nullable=False),
    Column("worker", String(200), nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("job_ids", LongText, nullable=False),
    Column("remaining", Integer, nullable=False),
    Column("solo", SmallInteger, nullable=False),
)

outbox = _table(
    "pinq_outbox",
    Column("position", Id, primary_key=True),
    Column("id", String(36), nullable=False),
    Column("type", String(80), nullable=False),
    Column("source", String(200), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("data", LongText, nullable=False),
    sqlite_autoincrement=True,
)

roles = _table(
    "pinq_roles",
    Column("name", String(64), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)

# One row, counted up by whoever commits something that others may wait for; read by
# those who wait on MySQL, which tells nobody of a commit.
bell = _table(
    "pinq_bell",
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("rings", BigInteger, nullable=False),
)

jobs_and_queues = jobs.join(queues, queues.c.id == jobs.c.queue_id)
"""Jobs, each with its queue."""
