"""How an attempt fails: its error is kept, and the job is retried or dead."""

import json
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from pinq.errors import FailureClass
from pinq.queue import events
from pinq.queue.model import Failure
from pinq.queue.tables import DEAD, PENDING, job_errors, jobs, leases


def fail(
    connection: Connection,
    queue: str,
    source: str,
    job: Row[Any],
    failure: Failure,
    now_ms: int,
    retry_at_ms: int | None,
    *,
    ends: bool = False,
) -> bool:
    """Write down one failed attempt; returns whether the job is dead now.

    ``job`` is its row as it was leased. ``retry_at_ms`` of ``None`` leaves its
    place in the queue; ``ends`` makes it dead whatever attempts it has left.
    """
    connection.execute(
        insert(job_errors).values(
            {
                "job_id": job.id,
                "attempt": job.attempts,
                "class": failure.failure_class.value,
                "message": failure.message[: events.MESSAGE_LIMIT],
                "at_ms": now_ms,
            }
        )
    )
    dies = ends or job.attempts >= job.max_attempts
    changes: dict[str, Any] = {"lease_id": None, "suspect": 0}
    if dies:
        changes |= {"state": DEAD, "finished_at_ms": now_ms}
        events.store(connection, (events.dead(queue, source, job, failure),), now_ms)
    else:
        changes |= {"state": PENDING}
        if retry_at_ms is not None:
            changes |= {"run_at_ms": retry_at_ms}
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(changes))
    return dies


def take_back_expired(
    connection: Connection, queue: str, queue_id: int, source: str, now_ms: int
) -> None:
    """End every expired lease of a queue; its jobs become suspects, or dead."""
    expired = connection.exec_driver_sql(
        "SELECT id, worker, job_ids FROM leases WHERE queue_id = ? AND expires_at_ms <= ?",
        (queue_id, now_ms),
    ).all()
    for lease_id, worker, ids in expired:
        failure = Failure(FailureClass.WORKER_CRASH, f"the lease expired; its worker was {worker}")
        lost = connection.execute(
            select(jobs).where(jobs.c.id.in_(json.loads(ids)), jobs.c.lease_id == lease_id)
        ).all()
        for job in lost:
            fail(connection, queue, source, job, failure, now_ms, None)
        connection.execute(
            update(jobs).where(jobs.c.id.in_([job.id for job in lost])).values(suspect=1)
        )
        connection.execute(delete(leases).where(leases.c.id == lease_id))
