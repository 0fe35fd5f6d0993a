"""Enqueue, step by step."""

from collections.abc import Sequence

from sqlalchemy import delete, update

from pinq.errors import QueueDraining
from pinq.queue import controls, statements
from pinq.queue.database import Transaction
from pinq.queue.model import Enqueued, NewJob, Outcome, State
from pinq.queue.tables import DEAD, PENDING, STATE, SUCCEEDED, job_errors, queues
from pinq.queue.tables import jobs as jobs_table


def make(transaction: Transaction, queue: str, source: str, signals: str) -> None:
    """Make a queue, unless it is there."""
    transaction.database.insert_missing(
        transaction, queues, name=queue, source=source, signals=signals
    )


def enqueue(
    transaction: Transaction, queue: str, jobs: Sequence[NewJob], force: bool
) -> list[Enqueued]:
    """Add jobs, in the caller's transaction; one answer an item."""
    found = controls.find_and_keep(transaction, queue)
    if found is None:
        make(transaction, queue, f"/pinq/{queue}", "")
        found = controls.find_and_keep(transaction, queue)
        assert found is not None
    if found.draining:
        raise QueueDraining(
            f"queue {queue!r} is draining and takes no more jobs; "
            f"`pinq queues resume {queue}` ends that"
        )
    now = found.now_ms
    first = {job.key: job for job in reversed(jobs)}
    distinct = jobs if len(first) == len(jobs) else [job for job in jobs if first[job.key] is job]
    keys = transaction.database.insert_jobs(transaction, found.id, now, distinct, forced=force)
    if len(keys) == len(jobs):
        transaction.ring()
        return [Enqueued(job.key, Outcome.ENQUEUED, State.PENDING) for job in jobs]
    new = set(keys)
    others = [key for key in first if key not in new]
    known = _known(transaction, found.id, others) if others else {}
    answers: list[Enqueued] = []
    for job in jobs:
        if job.key in new:
            new.remove(job.key)
            known[job.key] = (0, PENDING, 0)
            answers.append(Enqueued(job.key, Outcome.ENQUEUED, State.PENDING))
            continue
        id_, state, generation = known[job.key]
        stale = state == SUCCEEDED and generation != found.generation
        again = stale or (force and state in (SUCCEEDED, DEAD))
        if again and _rerun(transaction, id_, state, job, now, force):
            known[job.key] = (id_, PENDING, generation)
            answers.append(Enqueued(job.key, Outcome.RERUN, State.PENDING))
        else:
            answers.append(Enqueued(job.key, Outcome.DUPLICATE, STATE[state]))
    transaction.ring()
    return answers


def _known(
    transaction: Transaction, queue_id: int, keys: Sequence[str]
) -> dict[str, tuple[int, int, int]]:
    asked = {"queue": queue_id, "keys": list(keys)}
    return {
        key: (id_, state, generation)
        for key, id_, state, generation in transaction.rows(statements.EXISTING, asked)
    }


def _rerun(
    transaction: Transaction, id_: int, state: int, job: NewJob, now: int, force: bool
) -> bool:
    """Make a job that has ended pending, as new; false if somebody else just did."""
    fresh = (
        update(jobs_table)
        .where(jobs_table.c.id == id_, jobs_table.c.state == state)
        .values(
            state=PENDING,
            priority=job.priority,
            run_at_ms=job.run_at_ms or now,
            attempts=0,
            max_attempts=job.max_attempts,
            suspect=0,
            forced=int(force),
            verify=int(job.verify),
            enqueued_at_ms=now,
            finished_at_ms=None,
            uri=job.uri,
            etag=job.etag,
            body=job.body,
            progress=b"",
            status=job.status,
        )
    )
    if not transaction.execute(fresh).rowcount:
        return False
    transaction.execute(delete(job_errors).where(job_errors.c.job_id == id_))
    return True
