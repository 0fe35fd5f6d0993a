"""A queue in one file, as a good engineer would write it by hand on ``sqlite3``.

The table has the columns of pinq's jobs that carry a job, the unique (queue, key) and the
partial index of what is pending in the order of leasing; rows go in by ``executemany``, a
claim is one ``UPDATE … RETURNING``, a finish one ``UPDATE``, every transaction begins
``IMMEDIATE``, and every commit is synced (WAL, ``synchronous=FULL``), as in pinq.

What it leaves out of pinq's promises: a lease's expiry, renewal and recovery; suspects that
are leased alone; a fence that reports what was refused (it only counts what it ended);
answers per item of an enqueue (``enqueued``, ``duplicate``, ``rerun``), and rerunning;
retries, errors and dead jobs; settings of a queue; names of queues that need not be known;
several threads and waiting; errors that say what to do; upgrades of the schema. With events,
a row an event in the same transaction, with an id.
"""

import json
import secrets
import sqlite3
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    queue_id INTEGER NOT NULL,
    key VARCHAR(128) NOT NULL,
    state SMALLINT NOT NULL,
    priority SMALLINT NOT NULL,
    run_at_ms BIGINT NOT NULL,
    attempts INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    lease_token TEXT,
    enqueued_at_ms BIGINT NOT NULL,
    finished_at_ms BIGINT,
    uri TEXT NOT NULL,
    etag TEXT NOT NULL,
    UNIQUE (queue_id, key)
);
CREATE INDEX jobs_pending ON jobs (queue_id, priority, run_at_ms, id) WHERE state = 0;
CREATE TABLE outbox (
    position INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    source TEXT NOT NULL,
    subject TEXT NOT NULL,
    time_ms BIGINT NOT NULL,
    data TEXT NOT NULL
);
"""

_INSERT = """
INSERT INTO jobs (queue_id, key, state, priority, run_at_ms, attempts, max_attempts,
                  enqueued_at_ms, uri, etag)
VALUES (1, ?, 0, ?, ?, 0, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""

_LEASE = """
UPDATE jobs SET state = 1, attempts = attempts + 1, lease_token = ?
WHERE id IN (SELECT id FROM jobs WHERE queue_id = 1 AND state = 0 AND run_at_ms <= ?
             ORDER BY priority, run_at_ms, id LIMIT ?)
RETURNING id, key, uri, etag, attempts, max_attempts
"""

_FINISH = """
UPDATE jobs SET state = 2, lease_token = NULL, finished_at_ms = ?
WHERE id IN (SELECT value FROM json_each(?)) AND lease_token = ?
"""

_EVENT = """
INSERT INTO outbox (id, type, source, subject, time_ms, data) VALUES (?, ?, ?, ?, ?, ?)
"""


class BareQueue:
    """Enqueue, lease and finish, and nothing else."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("PRAGMA cache_size=-32768")
        self._connection.executescript(_SCHEMA)

    def enqueue(self, jobs: Sequence[tuple[str, str, str]]) -> None:
        """Add jobs: key, URI and etag each."""
        now = time.time_ns() // 1_000_000
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_INSERT, [(key, 5, now, 5, now, uri, tag) for key, uri, tag in jobs])
        connection.execute("COMMIT")

    def lease(self, limit: int) -> tuple[str, list[tuple[Any, ...]]]:
        """A token, and up to ``limit`` jobs: id, key, URI, etag, attempts, most attempts."""
        token = secrets.token_hex(8)
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        now = time.time_ns() // 1_000_000
        rows = connection.execute(_LEASE, (token, now, limit)).fetchall()
        connection.execute("COMMIT")
        return token, rows

    def finish(
        self, token: str, ids: Sequence[int], events: Sequence[tuple[str, dict[str, Any]]] = ()
    ) -> int:
        """End jobs, and store events: subject and data each. Returns how many ended."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        now = time.time_ns() // 1_000_000
        ended = connection.execute(_FINISH, (now, json.dumps(ids), token)).rowcount
        if events:
            connection.executemany(
                _EVENT,
                [
                    (
                        str(uuid.uuid4()),
                        "pinq.signal.computed",
                        "/pinq/bench",
                        subject,
                        now,
                        json.dumps(data, separators=(",", ":")),
                    )
                    for subject, data in events
                ],
            )
        connection.execute("COMMIT")
        return ended

    def close(self) -> None:
        self._connection.close()
