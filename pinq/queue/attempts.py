"""How an attempt ends other than well: its error is kept, and the job is retried or dead."""

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import Row, insert, select, update

from pinq.errors import FailureClass
from pinq.queue import events, statements
from pinq.queue.controls import QueueRow
from pinq.queue.database import Transaction, each
from pinq.queue.model import Checkpoint, Dead, Failure, Retry, Snooze, Verdict
from pinq.queue.tables import DEAD, PENDING, job_errors, jobs

# Notes that workers append are for people; the newest are kept.
_STATUS_LIMIT = 4000


def appended(status: str, note: str) -> str:
    """A job's status with one more line."""
    return f"{status}\n{note}".strip("\n")[-_STATUS_LIMIT:] if note else status


def end(
    transaction: Transaction,
    queue: QueueRow,
    job: Row[Any],
    verdict: Verdict,
    now_ms: int,
) -> bool:
    """Do as a verdict says that is no success; returns whether the job is dead now.

    ``job`` is its row as it was leased.
    """
    changes: dict[str, Any] = {"status": appended(job.status, verdict.status)}
    if isinstance(verdict, Snooze):
        changes |= {
            "state": PENDING,
            "lease_id": None,
            "suspect": 0,
            "attempts": job.attempts - 1,
            "run_at_ms": now_ms + round(verdict.delay_seconds * 1000),
        }
        transaction.execute(update(jobs).where(jobs.c.id == job.id).values(changes))
        return False
    assert isinstance(verdict, Retry | Dead)
    if isinstance(verdict, Retry):
        changes |= {"run_at_ms": now_ms + round(verdict.delay_seconds * 1000)}
        if verdict.body is not None:
            changes |= {"body": verdict.body}
    ends = isinstance(verdict, Dead)
    return fail(transaction, queue, job, verdict.failure, now_ms, changes, ends=ends)


def fail(
    transaction: Transaction,
    queue: QueueRow,
    job: Row[Any],
    failure: Failure,
    now_ms: int,
    changes: dict[str, Any],
    *,
    ends: bool = False,
) -> bool:
    """Write down one failed attempt; returns whether the job is dead now.

    ``changes`` are made to the job besides; ``ends`` makes it dead whatever attempts it has
    left.
    """
    transaction.execute(
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
    changes = {"lease_id": None, "suspect": 0} | changes
    if dies:
        changes |= {"state": DEAD, "finished_at_ms": now_ms, "run_at_ms": job.run_at_ms}
        events.store(transaction, (events.dead(queue.name, queue.source, job, failure),), now_ms)
    else:
        changes |= {"state": PENDING}
    transaction.execute(update(jobs).where(jobs.c.id == job.id).values(changes))
    return dies


def take_back_expired(transaction: Transaction, queue: QueueRow) -> None:
    """End every expired lease of a queue; its jobs become suspects, or dead."""
    asked = {"queue": queue.id, "now": queue.now_ms}
    for lease_id, worker, ids in transaction.rows(statements.EXPIRED, asked):
        failure = Failure(FailureClass.WORKER_CRASH, f"the lease expired; its worker was {worker}")
        for job in held(transaction, lease_id, json.loads(ids)):
            fail(transaction, queue, job, failure, queue.now_ms, {"suspect": 1})
        transaction.run(statements.END_LEASE, {"lease": lease_id})


def held(transaction: Transaction, lease_id: int, ids: Collection[int]) -> list[Row[Any]]:
    """Those of the jobs that the lease holds, locked."""
    found = select(jobs).where(each(jobs.c.id, ids), jobs.c.lease_id == lease_id)
    return list(transaction.execute(found.order_by(jobs.c.id).with_for_update()).all())


def keep(transaction: Transaction, job: Row[Any], checkpoint: Checkpoint) -> bool:
    """Write down how far a leased job has come; returns whether it left its lease."""
    changes: dict[str, Any] = {"status": appended(job.status, checkpoint.status)}
    if checkpoint.body is not None:
        changes |= {"body": checkpoint.body}
    if checkpoint.progress is not None:
        changes |= {"progress": checkpoint.progress}
    leaves = checkpoint.run_at_ms is not None
    if leaves:
        changes |= {"state": PENDING, "lease_id": None, "suspect": 0, "attempts": 0}
        changes |= {"run_at_ms": checkpoint.run_at_ms}
    transaction.execute(update(jobs).where(jobs.c.id == job.id).values(changes))
    return leaves
