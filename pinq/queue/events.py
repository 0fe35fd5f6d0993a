"""The outbox's rows: stored in the transaction that ends a job, read by the relay."""

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row

from pinq.queue.model import Event, Failure, StoredEvent

JOB_DEAD = "pinq.job.dead"
# A message is kept for people to read; some libraries put a whole input into theirs.
MESSAGE_LIMIT = 2000

_INSERT = """
INSERT INTO outbox (id, type, source, subject, time_ms, data) VALUES (?, ?, ?, ?, ?, ?)
"""

_UNPUBLISHED = """
SELECT position, id, type, source, subject, time_ms, data FROM outbox ORDER BY position LIMIT ?
"""

_MARK = "DELETE FROM outbox WHERE position IN (SELECT value FROM json_each(?))"


def store(connection: Connection, events: Iterable[Event], now_ms: int) -> None:
    """Store events, each with an id that it keeps at every delivery."""
    rows = [
        (
            str(uuid.uuid4()),
            event.type,
            event.source,
            event.subject,
            now_ms,
            json.dumps(event.data, separators=(",", ":")),
        )
        for event in events
    ]
    if rows:
        connection.exec_driver_sql(_INSERT, rows)


def dead(queue: str, source: str, job: Row[Any], failure: Failure) -> Event:
    """What is announced of a job that died; ``job`` is its row as it was leased."""
    reason = {
        "class": failure.failure_class.value,
        "message": failure.message[:MESSAGE_LIMIT],
    }
    data = {"pipeline": queue, "attempt": job.attempts, "reason": reason, "uri": job.uri}
    return Event(type=JOB_DEAD, source=source, subject=job.key, data=data)


def unpublished(connection: Connection, limit: int) -> list[StoredEvent]:
    """The oldest events.

    SQLite commits one writer at a time, in the order of positions, so no event
    with a smaller position can still appear.
    """
    return [StoredEvent(*row) for row in connection.exec_driver_sql(_UNPUBLISHED, (limit,))]


def mark_published(connection: Connection, positions: Sequence[int]) -> None:
    """Published events leave the outbox; the sinks have them."""
    connection.exec_driver_sql(_MARK, (json.dumps(list(positions)),))
