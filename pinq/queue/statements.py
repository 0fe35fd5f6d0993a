"""The SQL of the hot path, in the words of ``database.py``."""

QUEUE = (
    "id, name, source, generation, paused, draining, rate, in_flight, allowance, allowance_at_ms,"
    " NOW AS now_ms"
)

FIND_QUEUE = f"SELECT {QUEUE} FROM pinq_queues WHERE name = :name"

# Shared, so that nobody deletes the queue before what is put in it is committed.
FIND_AND_KEEP_QUEUE = f"{FIND_QUEUE} KEPT"

QUEUE_OF = f"SELECT {QUEUE} FROM pinq_queues WHERE id = :id"

# With all that decides what a worker may lease, in one message.
QUEUE_FOR_LEASING = f"""
SELECT {QUEUE},
    (SELECT min(expires_at_ms) FROM pinq_leases WHERE queue_id = q.id) AS first_expiry_ms,
    (SELECT count(*) FROM pinq_leases WHERE worker = :worker) AS held,
    (SELECT max(solo) FROM pinq_leases WHERE worker = :worker) AS solo
FROM pinq_queues q WHERE name = :name
"""

EXISTING = """
SELECT job_key, id, state, generation FROM pinq_jobs
WHERE queue_id = :queue AND job_key = EACH TEXT :keys
"""

INSERTED = (
    "queue_id, job_key, state, priority, run_at_ms, attempts, max_attempts, suspect, generation,"
    " forced, verify, enqueued_at_ms, uri, etag, body, progress, status"
)
"""The columns of a new job."""

# The columns of LeasedJob, then those that decide what is leased together.
COLUMNS = (
    "id, job_key, uri, verify, etag, forced, enqueued_at_ms, attempts + 1 AS attempt,"
    " max_attempts, priority, body, progress, run_at_ms, suspect"
)

PENDING_OF = "FROM pinq_jobs BY INDEX pinq_jobs_pending WHERE queue_id = :queue AND state = 0"

DUE_OF = f"""
SELECT {COLUMNS} {PENDING_OF} AND priority = {{priority}} AND run_at_ms <= :now
ORDER BY run_at_ms, id LIMIT :limit UNLOCKED
"""
"""The due jobs of one priority."""


def _any_priority(one: str) -> str:
    """One seek of the index a priority.

    Future jobs of a high priority are not waded through to reach the due ones of a low one.
    """
    return " UNION ALL ".join(
        f"SELECT * FROM ({one.format(priority=priority)}) AS p{priority}"
        for priority in range(1, 10)
    )


# A plan that reads on only as far as is needed: the outer LIMIT ends it, and rows that are
# not read are not locked.
DUE = f"SELECT * FROM ({_any_priority(DUE_OF)}) AS due LIMIT :limit"

_FIRST_DUE_OF = f"""
SELECT run_at_ms AS due {PENDING_OF} AND priority = {{priority}} ORDER BY run_at_ms, id LIMIT 1
"""

NEXT_DUE = f"SELECT min(due) FROM ({_any_priority(_FIRST_DUE_OF)}) AS firsts"

DUE_PRIORITIES = " UNION ALL ".join(
    f"SELECT {priority} FROM (SELECT id {PENDING_OF} AND priority = {priority}"
    f" AND run_at_ms <= :now LIMIT 1) AS p{priority}"
    for priority in range(1, 10)
)

# Leases are few; pending jobs are found by the first entry of an index. In its order, or
# PostgreSQL hopes to meet one soon in the table, and reads past all that have finished.
UNFINISHED = f"""
SELECT EXISTS (SELECT 1 FROM pinq_leases WHERE queue_id = :queue)
    OR EXISTS (SELECT 1 FROM (
        SELECT id {PENDING_OF} ORDER BY priority, run_at_ms, id LIMIT 1) AS p)
"""

# The same without jobs that are scheduled and were never tried.
UNFINISHED_NOW = f"""
SELECT EXISTS (SELECT 1 FROM pinq_leases WHERE queue_id = :queue)
    OR EXISTS (SELECT 1 FROM (
        SELECT id FROM pinq_jobs BY INDEX pinq_jobs_retrying
        WHERE queue_id = :queue AND state = 0 AND attempts > 0 ORDER BY attempts LIMIT 1) AS r)
    OR ({NEXT_DUE}) <= :now
"""

EXPIRED = """
SELECT id, worker, job_ids FROM pinq_leases
WHERE queue_id = :queue AND expires_at_ms <= :now UNLOCKED
"""

INSERT_LEASE = """
INSERT INTO pinq_leases (id, queue_id, worker, expires_at_ms, job_ids, remaining, solo)
VALUES (:lease, :queue, :worker, :expires, :listed, :remaining, :solo)
"""

CLAIM = """
UPDATE pinq_jobs SET state = 1, lease_id = :lease, attempts = attempts + 1
WHERE id = EACH :ids
"""

RENEW = "UPDATE pinq_leases SET expires_at_ms = :expires WHERE id = :lease"

# Whatever changes a lease's jobs holds its row first, so that no two do at once.
FIND_LEASE = """
SELECT id, remaining, job_ids, queue_id,
    (SELECT generation FROM pinq_queues q WHERE q.id = queue_id) AS generation, NOW AS now_ms
FROM pinq_leases WHERE id = :lease LOCKED
"""

SUCCEED = """
UPDATE pinq_jobs
SET state = 2, lease_id = NULL, suspect = 0, finished_at_ms = :now, generation = :generation
"""

RELEASE = "UPDATE pinq_jobs SET state = 0, lease_id = NULL, attempts = attempts - 1"

HELD = "WHERE id = EACH :ids AND lease_id = :lease"

SHRINK = "UPDATE pinq_leases SET remaining = :remaining WHERE id = :lease"

END_LEASE = "DELETE FROM pinq_leases WHERE id = :lease"

INSERT_EVENT = """
INSERT INTO pinq_outbox (id, type, source, subject, time_ms, data) VALUES (?, ?, ?, ?, ?, ?)
"""
