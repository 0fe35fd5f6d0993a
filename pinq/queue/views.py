"""What an onlooker reads of the jobs: queries that change nothing."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select

from pinq.queue import selection
from pinq.queue.database import Transaction, each
from pinq.queue.model import Counts, Filter, Job, JobError, State
from pinq.queue.tables import STATE, job_errors, jobs, jobs_and_queues, queues


def by_key(transaction: Transaction, queue: str, keys: Sequence[str]) -> list[Job]:
    """The jobs of ``keys`` in one queue, with their errors."""
    # In no order: asked for one, a planner may read the whole table in it.
    named = select(jobs, queues.c.name).select_from(jobs_and_queues).where(queues.c.name == queue)
    found = transaction.execute(named.where(each(jobs.c.job_key, keys))).all()
    return _with_errors(transaction, found)


def page(
    transaction: Transaction, wanted: Filter, now_ms: int, *, after: int, limit: int
) -> list[Job]:
    """The next ``limit`` such jobs in order of arrival, with their errors."""
    chosen = selection.some(wanted, now_ms, after=after, limit=limit)
    return _with_errors(transaction, transaction.execute(chosen).all())


def counts(transaction: Transaction, queue: str, now_ms: int) -> Counts:
    """How many jobs of a queue are in each state."""
    whole = Filter(queue=queue)
    by_state = selection.grouped(transaction, whole, "state", now_ms)
    scheduled = Filter(queue=queue, states=(State.PENDING,), scheduled=True)
    dead = Filter(queue=queue, states=(State.DEAD,))
    return Counts(
        **{state.value: by_state.get(state, 0) for state in State},
        scheduled=selection.count(transaction, scheduled, now_ms),
        dead_by_class=selection.grouped(transaction, dead, "error", now_ms),
    )


def _with_errors(transaction: Transaction, rows: Sequence[Row[Any]]) -> list[Job]:
    errors: dict[int, list[JobError]] = {}
    for error in transaction.execute(
        select(job_errors)
        .where(each(job_errors.c.job_id, [row.id for row in rows]))
        .order_by(job_errors.c.id)
    ).mappings():
        errors.setdefault(error["job_id"], []).append(
            JobError(error["class"], error["message"], error["at_ms"], error["attempt"])
        )
    return [
        Job(
            id=row.id,
            queue=row.name,
            key=row.job_key,
            uri=row.uri,
            state=STATE[row.state],
            priority=row.priority,
            run_at_ms=row.run_at_ms,
            attempts=row.attempts,
            max_attempts=row.max_attempts,
            enqueued_at_ms=row.enqueued_at_ms,
            finished_at_ms=row.finished_at_ms,
            body=bytes(row.body),
            progress=bytes(row.progress),
            status=row.status,
            errors=tuple(errors.get(row.id, ())),
        )
        for row in rows
    ]
