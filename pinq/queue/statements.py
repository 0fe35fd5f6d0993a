"""The SQL of the hot path: a batch is one JSON array, or one ``executemany``."""

EXISTING = """
SELECT key, id, state, generation FROM jobs
WHERE queue_id = ? AND key IN (SELECT value FROM json_each(?))
"""

INSERT = """
INSERT INTO jobs (queue_id, key, state, priority, run_at_ms, attempts, max_attempts,
                  suspect, generation, force, verify, enqueued_at_ms, uri, etag)
VALUES (?, ?, 0, ?, ?, 0, ?, 0, 0, ?, ?, ?, ?, ?)
"""

# The columns of LeasedJob, and `suspect`. One seek of the index a priority: future
# jobs of a high priority are not waded through to reach the due ones of a low one.
CANDIDATES = " UNION ALL ".join(
    f"""SELECT * FROM (
    SELECT id, key, uri, verify, etag, force, enqueued_at_ms, attempts + 1, max_attempts, suspect
    FROM jobs INDEXED BY jobs_pending
    WHERE state = 0 AND queue_id = :queue AND priority = {priority} AND run_at_ms <= :now
    ORDER BY run_at_ms, id LIMIT :limit)"""
    for priority in range(1, 10)
)
CANDIDATES = f"SELECT * FROM ({CANDIDATES}) LIMIT :limit"

NEXT_DUE = " UNION ALL ".join(
    f"""SELECT * FROM (
    SELECT run_at_ms AS due FROM jobs INDEXED BY jobs_pending
    WHERE state = 0 AND queue_id = :queue AND priority = {priority}
    ORDER BY run_at_ms LIMIT 1)"""
    for priority in range(1, 10)
)
NEXT_DUE = f"SELECT min(due) FROM ({NEXT_DUE})"

NEXT_EXPIRY = "SELECT min(expires_at_ms) FROM leases WHERE queue_id = :queue"

# Leases are few; pending jobs are found by the first entry of an index.
UNFINISHED = """
SELECT EXISTS (SELECT 1 FROM leases WHERE queue_id = :queue)
    OR EXISTS (SELECT 1 FROM jobs INDEXED BY jobs_pending WHERE state = 0 AND queue_id = :queue)
"""

# The same without jobs that are scheduled and were never tried.
UNFINISHED_NOW = f"""
SELECT EXISTS (SELECT 1 FROM leases WHERE queue_id = :queue)
    OR EXISTS (SELECT 1 FROM jobs INDEXED BY jobs_retrying
               WHERE state = 0 AND attempts > 0 AND queue_id = :queue)
    OR ({NEXT_DUE}) <= :now
"""

CLAIM = """
UPDATE jobs SET state = 1, lease_id = ?, attempts = attempts + 1
WHERE id IN (SELECT value FROM json_each(?))
"""

SUCCEED = """
UPDATE jobs SET state = 2, lease_id = NULL, suspect = 0, finished_at_ms = ?, generation = ?
WHERE id IN (SELECT value FROM json_each(?)) AND lease_id = ?
RETURNING id
"""
