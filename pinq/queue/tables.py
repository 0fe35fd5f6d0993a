"""The queue's tables. ``migrations/`` makes them; a test holds the two equal.

``REVISION`` is the Alembic revision that these definitions describe.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from pinq.queue.model import State

REVISION = "0002"

# SQLite gives only an INTEGER PRIMARY KEY the rowid's speed.
Id = BigInteger().with_variant(Integer, "sqlite")

PENDING, LEASED, SUCCEEDED, DEAD = range(4)
STATE = {
    PENDING: State.PENDING,
    LEASED: State.LEASED,
    SUCCEEDED: State.SUCCEEDED,
    DEAD: State.DEAD,
}
STATE_NUMBER = {state: number for number, state in STATE.items()}

metadata = MetaData()

queues = Table(
    "queues",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("source", String(200), nullable=False),
    Column("signals", Text, nullable=False, server_default=""),
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

jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("queue_id", Id, ForeignKey("queues.id"), nullable=False),
    Column("key", String(128), nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("run_at_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    # Its last lease expired: it may have killed its worker.
    Column("suspect", SmallInteger, nullable=False),
    Column("lease_id", BigInteger),
    Column("generation", Integer, nullable=False),
    Column("force", SmallInteger, nullable=False),
    Column("verify", SmallInteger, nullable=False),
    Column("enqueued_at_ms", BigInteger, nullable=False),
    Column("finished_at_ms", BigInteger),
    Column("uri", Text, nullable=False),
    Column("etag", Text, nullable=False),
    UniqueConstraint("queue_id", "key", name="jobs_key"),
)
_pending = text(f"state = {PENDING}")
Index(
    "jobs_pending",
    jobs.c.queue_id,
    jobs.c.priority,
    jobs.c.run_at_ms,
    jobs.c.id,
    sqlite_where=_pending,
)
_retrying = text(f"state = {PENDING} AND attempts > 0")
Index("jobs_retrying", jobs.c.queue_id, jobs.c.run_at_ms, sqlite_where=_retrying)
Index("jobs_dead", jobs.c.queue_id, jobs.c.id, sqlite_where=text(f"state = {DEAD}"))

job_errors = Table(
    "job_errors",
    metadata,
    Column("id", Id, primary_key=True),
    Column("job_id", Id, ForeignKey("jobs.id"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("class", String(40), nullable=False),
    Column("message", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
)

# One row a lease rather than an expiry a job: renewing is one row's update, and
# an expired lease is found without an index over jobs. Ids are never reused
# (AUTOINCREMENT), so that an id in a job's row can mean only one lease.
leases = Table(
    "leases",
    metadata,
    Column("id", Id, primary_key=True),
    Column("nonce", String(32), nullable=False),
    Column("queue_id", Id, ForeignKey("queues.id"), nullable=False),
    Column("worker", String(200), nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("job_ids", Text, nullable=False),
    Column("remaining", Integer, nullable=False),
    Column("solo", SmallInteger, nullable=False),
    sqlite_autoincrement=True,
)

outbox = Table(
    "outbox",
    metadata,
    Column("position", Id, primary_key=True),
    Column("id", String(36), nullable=False),
    Column("type", String(80), nullable=False),
    Column("source", String(200), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("data", Text, nullable=False),
    sqlite_autoincrement=True,
)

roles = Table(
    "roles",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)
