"""What an onlooker reads of the jobs: queries that change nothing."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from pinq.queue import selection
from pinq.queue.model import Counts, Filter, Job, JobError
from pinq.queue.selection import each
from pinq.queue.tables import (
    DEAD,
    LEASED,
    PENDING,
    STATE,
    SUCCEEDED,
    job_errors,
    jobs,
    queues,
)


def by_key(connection: Connection, queue: str, keys: Sequence[str]) -> list[Job]:
    """The jobs of ``keys`` in one queue, with their errors."""
    wanted = each(keys)
    named = _jobs().where(queues.c.name == queue, jobs.c.key.in_(wanted))
    return _with_errors(connection, connection.execute(named).all())


def page(
    connection: Connection, wanted: Filter, now_ms: int, *, after: int, limit: int
) -> list[Job]:
    """The next ``limit`` such jobs in order of arrival, with their errors."""
    chosen = selection.some(wanted, now_ms, after=after, limit=limit)
    return _with_errors(connection, connection.execute(chosen).all())


def counts(connection: Connection, queue: str, now_ms: int) -> Counts:
    """How many jobs of a queue are in each state."""
    of_queue = select(jobs).join(queues).where(queues.c.name == queue).subquery()
    by_state: dict[int, int] = dict(
        connection.execute(select(of_queue.c.state, func.count()).group_by(of_queue.c.state)).all()
    )
    scheduled = connection.execute(
        select(func.count()).where(of_queue.c.state == PENDING, of_queue.c.run_at_ms > now_ms)
    ).scalar_one()
    last = (
        select(func.max(job_errors.c.id).label("id"))
        .join(of_queue, of_queue.c.id == job_errors.c.job_id)
        .where(of_queue.c.state == DEAD)
        .group_by(job_errors.c.job_id)
        .subquery()
    )
    dead_by_class: dict[str, int] = dict(
        connection.execute(
            select(job_errors.c["class"], func.count())
            .join(last, last.c.id == job_errors.c.id)
            .group_by(job_errors.c["class"])
        ).all()
    )
    return Counts(
        pending=by_state.get(PENDING, 0),
        scheduled=scheduled,
        leased=by_state.get(LEASED, 0),
        succeeded=by_state.get(SUCCEEDED, 0),
        dead=by_state.get(DEAD, 0),
        dead_by_class=dead_by_class,
    )


def _jobs() -> Select[Any]:
    return select(jobs, queues.c.name).join(queues)


def _with_errors(connection: Connection, rows: Sequence[Row[Any]]) -> list[Job]:
    errors: dict[int, list[JobError]] = {}
    for error in connection.execute(
        select(job_errors)
        .where(job_errors.c.job_id.in_(each([row.id for row in rows])))
        .order_by(job_errors.c.id)
    ).mappings():
        errors.setdefault(error["job_id"], []).append(
            JobError(error["class"], error["message"], error["at_ms"], error["attempt"])
        )
    return [
        Job(
            id=row.id,
            queue=row.name,
            key=row.key,
            uri=row.uri,
            state=STATE[row.state],
            priority=row.priority,
            run_at_ms=row.run_at_ms,
            attempts=row.attempts,
            max_attempts=row.max_attempts,
            enqueued_at_ms=row.enqueued_at_ms,
            finished_at_ms=row.finished_at_ms,
            errors=tuple(errors.get(row.id, ())),
        )
        for row in rows
    ]
