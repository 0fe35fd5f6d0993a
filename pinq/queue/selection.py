"""A ``Filter`` as SQL, and what is done to the jobs that it selects, a batch at a time."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    delete,
    func,
    literal_column,
    select,
    text,
    true,
    update,
)

from pinq.errors import FailureClass
from pinq.queue import attempts, controls
from pinq.queue.database import Transaction, each, matches
from pinq.queue.model import Failure, Filter, State
from pinq.queue.tables import (
    LEASED,
    PENDING,
    STATE_NUMBER,
    SUCCEEDED,
    job_errors,
    jobs,
    jobs_and_queues,
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


def matching(wanted: Filter, now_ms: int) -> ColumnElement[bool]:
    """The condition on ``jobs`` joined with ``queues``."""
    found: ColumnElement[bool] = true()
    if wanted.queue is not None:
        found &= queues.c.name == wanted.queue
    if wanted.keys is not None:
        found &= each(jobs.c.job_key, wanted.keys)
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
        found &= matches(jobs.c.uri, wanted.uri)
    if wanted.body is not None:
        found &= matches(jobs.c.body, wanted.body)
    if wanted.scheduled is not None:
        later = (jobs.c.state == PENDING) & (jobs.c.run_at_ms > now_ms)
        found &= later if wanted.scheduled else ~later
    return found


def some(wanted: Filter, now_ms: int, *, after: int, limit: int) -> Select[Any]:
    """The next such jobs in order of arrival, with their queue's name."""
    return (
        select(jobs, queues.c.name)
        .select_from(jobs_and_queues)
        .where(jobs.c.id > after, matching(wanted, now_ms))
        .order_by(jobs.c.id)
        .limit(limit)
    )


def still(wanted: Filter, now_ms: int, ids: Sequence[int]) -> Select[Any]:
    """Those of the jobs that match, as ``some`` gives them, locked."""
    chosen = some(wanted, now_ms, after=0, limit=len(ids)).where(each(jobs.c.id, ids))
    return chosen.with_for_update(of=jobs)


def count(transaction: Transaction, wanted: Filter, now_ms: int) -> int:
    """How many such jobs there are."""
    counted = select(func.count()).select_from(jobs_and_queues)
    return int(transaction.execute(counted.where(matching(wanted, now_ms))).scalar_one())


GROUPS: dict[str, Any] = {
    "state": jobs.c.state,
    "queue": queues.c.name,
    "priority": jobs.c.priority,
    "error": last_error,
}


def grouped(transaction: Transaction, wanted: Filter, by: str, now_ms: int) -> dict[str, int]:
    """How many such jobs there are by one of ``GROUPS``, most first."""
    named = GROUPS[by].label("named")
    chosen = select(named).select_from(jobs_and_queues).where(matching(wanted, now_ms)).subquery()
    rows = transaction.execute(
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


def requeue(transaction: Transaction, found: Sequence[Row[Any]], due_ms: Sequence[int]) -> None:
    """Make dead jobs pending, each due at its time, with all their attempts."""
    fresh = {"state": PENDING, "attempts": 0, "suspect": 0, "finished_at_ms": None}
    if len(set(due_ms)) == 1:
        ids = [job.id for job in found]
        transaction.execute(
            update(jobs).where(each(jobs.c.id, ids)).values(run_at_ms=due_ms[0], **fresh)
        )
        return
    for job, due in zip(found, due_ms, strict=True):
        transaction.execute(update(jobs).where(jobs.c.id == job.id).values(run_at_ms=due, **fresh))


def cancel(transaction: Transaction, found: Sequence[Row[Any]], now_ms: int) -> None:
    """Make pending and leased jobs dead; whoever holds one is refused when it answers."""
    known = {job.queue_id: controls.of_id(transaction, job.queue_id) for job in found}
    for job in found:
        queue = known[job.queue_id]
        attempts.fail(transaction, queue, job, _CANCELLED, now_ms, {}, ends=True)
    _forget(transaction, found)


def remove(transaction: Transaction, found: Sequence[Row[Any]]) -> None:
    """Delete jobs with their errors; whoever holds one is refused when it answers."""
    remove_ids(transaction, [job.id for job in found])
    _forget(transaction, found)


def remove_ids(transaction: Transaction, ids: Sequence[int]) -> None:
    """Delete jobs that nobody holds, with their errors."""
    if not ids:
        return  # MariaDB would read the whole table to find none
    transaction.execute(delete(job_errors).where(each(job_errors.c.job_id, ids)))
    transaction.execute(delete(jobs).where(each(jobs.c.id, ids)))


def hold_leases(transaction: Transaction, ids: Sequence[int]) -> None:
    """Lock the leases of jobs that are about to leave them, before the jobs.

    In the order in which whoever finishes locks them; else the two could wait for each
    other.
    """
    holding = select(jobs.c.lease_id).where(each(jobs.c.id, ids), jobs.c.state == LEASED)
    locking = select(leases.c.id).where(leases.c.id.in_(holding)).order_by(leases.c.id)
    transaction.execute(locking.with_for_update())


def ended(state: int, before_ms: int, limit: int) -> Select[Any]:
    """The ids of jobs that ended longer ago, locked, the oldest first."""
    # In the words of the partial index, too: SQLite does not see that one implies the other.
    of_state = jobs.c.state == literal_column(str(state))
    return (
        select(jobs.c.id)
        .where(text(f"state >= {SUCCEEDED}"), of_state, jobs.c.finished_at_ms < before_ms)
        .order_by(jobs.c.finished_at_ms)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )


def _forget(transaction: Transaction, found: Sequence[Row[Any]]) -> None:
    """Take jobs out of the leases that hold them."""
    held: dict[int, int] = {}
    for job in found:
        if job.state == LEASED:
            held[job.lease_id] = held.get(job.lease_id, 0) + 1
    for lease_id, gone in held.items():
        transaction.execute(
            update(leases)
            .where(leases.c.id == lease_id)
            .values(remaining=leases.c.remaining - gone)
        )
        transaction.execute(delete(leases).where(leases.c.id == lease_id, leases.c.remaining <= 0))
