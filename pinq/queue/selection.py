"""A ``Filter`` as SQL, and what is done to the jobs that it selects, a batch at a time."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    delete,
    func,
    literal_column,
    select,
    true,
    update,
)

from pinq.errors import FailureClass
from pinq.queue import attempts
from pinq.queue.model import Failure, Filter, State
from pinq.queue.tables import (
    LEASED,
    PENDING,
    STATE_NUMBER,
    job_errors,
    jobs,
    leases,
    queues,
)

_CANCELLED = Failure(FailureClass.CANCELLED, "cancelled by an operator")

last_error = (
    select(job_errors.c["class"])
    .where(job_errors.c.job_id == jobs.c.id)
    .order_by(job_errors.c.id.desc())
    .limit(1)
    .correlate(jobs)
    .scalar_subquery()
)
"""The class of a job's last failure."""


def each(values: Sequence[Any]) -> Select[Any]:
    """A list as a subquery: one parameter however long it is."""
    return select(func.json_each(json.dumps(list(values))).table_valued("value").c.value)


def matching(wanted: Filter, now_ms: int) -> ColumnElement[bool]:
    """The condition on ``jobs`` joined with ``queues``."""
    found: ColumnElement[bool] = true()
    if wanted.queue is not None:
        found &= queues.c.name == wanted.queue
    if wanted.keys is not None:
        found &= jobs.c.key.in_(each(wanted.keys))
    if wanted.states is not None:
        # Spelled out: only a literal lets SQLite use the partial index of a state.
        numbers: list[ColumnElement[int]] = [
            literal_column(str(STATE_NUMBER[state])) for state in wanted.states
        ]
        found &= jobs.c.state == numbers[0] if len(numbers) == 1 else jobs.c.state.in_(numbers)
    if wanted.priorities is not None:
        found &= jobs.c.priority.in_(wanted.priorities)
    if wanted.error_class is not None:
        found &= last_error == wanted.error_class
    if wanted.uri is not None:
        # GLOB knows [sets] too, which a pattern of ours does not.
        found &= jobs.c.uri.op("GLOB")(wanted.uri.replace("[", "[[]"))
    if wanted.scheduled is not None:
        later = (jobs.c.state == PENDING) & (jobs.c.run_at_ms > now_ms)
        found &= later if wanted.scheduled else ~later
    return found


def some(wanted: Filter, now_ms: int, *, after: int, limit: int) -> Select[Any]:
    """The next such jobs in order of arrival, with their queue's name and event source."""
    return (
        select(jobs, queues.c.name, queues.c.source)
        .join(queues)
        .where(jobs.c.id > after, matching(wanted, now_ms))
        .order_by(jobs.c.id)
        .limit(limit)
    )


def still(wanted: Filter, now_ms: int, ids: Sequence[int]) -> Select[Any]:
    """Those of the jobs that match, as ``some`` gives them."""
    return some(wanted, now_ms, after=0, limit=len(ids)).where(jobs.c.id.in_(each(ids)))


def count(connection: Connection, wanted: Filter, now_ms: int) -> int:
    """How many such jobs there are."""
    counted = select(func.count()).select_from(jobs.join(queues))
    return int(connection.execute(counted.where(matching(wanted, now_ms))).scalar_one())


GROUPS: dict[str, Any] = {
    "state": jobs.c.state,
    "queue": queues.c.name,
    "priority": jobs.c.priority,
    "error": last_error,
}


def grouped(connection: Connection, wanted: Filter, by: str, now_ms: int) -> dict[str, int]:
    """How many such jobs there are by one of ``GROUPS``, most first."""
    named = GROUPS[by].label("named")
    chosen = select(named).select_from(jobs.join(queues)).where(matching(wanted, now_ms)).subquery()
    rows = connection.execute(
        select(chosen.c.named, func.count().label("found"))
        .group_by(chosen.c.named)
        .order_by(func.count().desc(), chosen.c.named)
    )
    names = {number: str(state) for state, number in STATE_NUMBER.items()}
    return {
        names[value] if by == "state" else "none" if value is None else str(value): found
        for value, found in rows
    }


# --- what is done to them -----------------------------------------------------------------

REQUEUED, CANCELLED = (State.DEAD,), (State.PENDING, State.LEASED)
"""The states in which a job can be requeued, or cancelled."""


def requeue(connection: Connection, found: Sequence[Row[Any]], due_ms: Sequence[int]) -> None:
    """Make dead jobs pending, each due at its time, with all their attempts."""
    fresh = {"state": PENDING, "attempts": 0, "suspect": 0, "finished_at_ms": None}
    if len(set(due_ms)) == 1:
        ids = [job.id for job in found]
        connection.execute(
            update(jobs).where(jobs.c.id.in_(each(ids))).values(run_at_ms=due_ms[0], **fresh)
        )
        return
    for job, due in zip(found, due_ms, strict=True):
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(run_at_ms=due, **fresh))


def cancel(connection: Connection, found: Sequence[Row[Any]], now_ms: int) -> None:
    """Make pending and leased jobs dead; whoever holds one is refused when it answers."""
    for job in found:
        attempts.fail(connection, job.name, job.source, job, _CANCELLED, now_ms, None, ends=True)
    _forget(connection, found)


def remove(connection: Connection, found: Sequence[Row[Any]]) -> None:
    """Delete jobs with their errors; whoever holds one is refused when it answers."""
    ids = [job.id for job in found]
    connection.execute(delete(job_errors).where(job_errors.c.job_id.in_(each(ids))))
    connection.execute(delete(jobs).where(jobs.c.id.in_(each(ids))))
    _forget(connection, found)


def _forget(connection: Connection, found: Sequence[Row[Any]]) -> None:
    """Take jobs out of the leases that hold them."""
    held: dict[int, int] = {}
    for job in found:
        if job.state == LEASED:
            held[job.lease_id] = held.get(job.lease_id, 0) + 1
    for lease_id, gone in held.items():
        connection.execute(
            update(leases)
            .where(leases.c.id == lease_id)
            .values(remaining=leases.c.remaining - gone)
        )
        connection.execute(delete(leases).where(leases.c.id == lease_id, leases.c.remaining <= 0))
