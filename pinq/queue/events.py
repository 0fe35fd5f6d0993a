"""The outbox's rows: stored in the transaction that ends a job, read by the relay."""

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row, delete, select

from pinq.queue import statements
from pinq.queue.database import Transaction, each
from pinq.queue.model import Event, Failure, StoredEvent
from pinq.queue.tables import outbox

JOB_DEAD = "pinq.job.dead"
# A message is kept for people to read; some libraries put a whole input into theirs.
MESSAGE_LIMIT = 2000


def store(transaction: Transaction, events: Iterable[Event], now_ms: int) -> None:
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
        transaction.run_many(statements.INSERT_EVENT, rows)


def dead(queue: str, source: str, job: Row[Any], failure: Failure) -> Event:
    """What is announced of a job that died; ``job`` is its row as it was leased."""
    reason = {
        "class": failure.failure_class.value,
        "message": failure.message[:MESSAGE_LIMIT],
    }
    data = {"pipeline": queue, "attempt": job.attempts, "reason": reason, "uri": job.uri}
    return Event(type=JOB_DEAD, source=source, subject=job.job_key, data=data)


def unpublished(transaction: Transaction, limit: int) -> list[StoredEvent]:
    """The oldest events that are there.

    Not those after a position: a server hands positions out before it commits, so one with a
    smaller position may appear after a larger. Published events leave the table, so
    whatever is in it is yet to be published, and none is passed over.
    """
    oldest = select(outbox).order_by(outbox.c.position).limit(limit)
    return [StoredEvent(*row) for row in transaction.execute(oldest)]


def mark_published(transaction: Transaction, positions: Sequence[int | str]) -> None:
    """Published events leave the outbox; the sinks have them."""
    transaction.execute(delete(outbox).where(each(outbox.c.position, positions)))
