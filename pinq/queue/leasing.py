"""Lease, step by step."""

import json
import secrets
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from pinq.queue import attempts, controls, statements
from pinq.queue.controls import QueueRow
from pinq.queue.database import Row, Transaction
from pinq.queue.model import Lease, LeasedJob

# Of a due job, as ``statements.COLUMNS``.
_ORDER = itemgetter(LeasedJob._fields.index("priority"), -2, 0)


def find(transaction: Transaction, names: Sequence[str], worker: str) -> list[QueueRow]:
    """The queues to lease from, without expired leases, and what the worker holds then."""

    def look() -> list[QueueRow]:
        found = [controls.find_to_lease(transaction, name, worker) for name in names]
        return [controls.lock_if_limited(transaction, row, worker) for row in found if row]

    queues = look()
    expired = [
        queue
        for queue in queues
        if queue.first_expiry_ms is not None and queue.first_expiry_ms <= queue.now_ms
    ]
    for queue in expired:
        attempts.take_back_expired(transaction, queue)
    # What was taken back from one queue counts for the others, too.
    return look() if expired else queues


def choose(
    transaction: Transaction, queues: Sequence[QueueRow], limit: int
) -> list[tuple[QueueRow, Sequence[Row]]]:
    """What the worker, for whom the queues were found, may lease now, by queue."""
    if not queues or queues[-1].solo:
        return []
    held = queues[-1].held
    due: list[tuple[QueueRow, Row]] = []
    for queue in queues:
        admitted = controls.admitted(transaction, queue, limit)
        if admitted:
            rows = transaction.database.due(transaction, queue.id, queue.now_ms, admitted)
            due.extend((queue, job) for job in rows)
    if len(queues) > 1:
        due.sort(key=lambda found: _ORDER(found[1]))
    due = _until_suspect(due[:limit])
    if due and due[0][1][-1] and held:
        return []  # until what this worker holds is answered
    by_queue: dict[QueueRow, list[Row]] = {}
    for queue, job in due:
        by_queue.setdefault(queue, []).append(job)
    return list(by_queue.items())


def _until_suspect(due: list[tuple[QueueRow, Row]]) -> list[tuple[QueueRow, Row]]:
    """A suspect alone, or what comes before the first one."""
    for index, (_, job) in enumerate(due):
        if job[-1]:
            return due[: max(index, 1)]
    return due


def claim(
    transaction: Transaction,
    queue: QueueRow,
    rows: Sequence[Row],
    worker: str,
    expires_at_ms: int,
) -> str:
    """Give jobs of one queue to a worker; returns the lease's token."""
    ids = [row[0] for row in rows]
    lease = new_lease(queue.id, ids, worker, expires_at_ms, solo=rows[0][-1])
    claimed = {**lease, "ids": ids}
    transaction.database.run_both(transaction, statements.INSERT_LEASE, statements.CLAIM, claimed)
    return str(lease["lease"])


def new_lease(
    queue_id: int, ids: Sequence[int], worker: str, expires_at_ms: int, *, solo: int
) -> dict[str, Any]:
    """What ``statements.INSERT_LEASE`` takes, with an id that no other lease has had."""
    return {
        "lease": secrets.randbits(63),
        "queue": queue_id,
        "worker": worker,
        "expires": expires_at_ms,
        "listed": json.dumps(ids),
        "remaining": len(ids),
        "solo": solo,
    }


def as_lease(queue: QueueRow, rows: Sequence[Row], token: str, expires_at_ms: int) -> Lease:
    """What the worker is told."""
    leased = tuple(LeasedJob._make(row[:-2]) for row in rows)
    return Lease(token=token, queue=queue.name, expires_at_ms=expires_at_ms, jobs=leased)


def next_due_ms(transaction: Transaction, queue: str) -> tuple[int | None, int]:
    """When something could next be leased from a queue, and what time it is."""
    found = controls.find_to_lease(transaction, queue, "")
    if found is None:
        return None, 0
    expiry = found.first_expiry_ms
    admits = controls.admits_at_ms(transaction, found)
    if admits is None:
        return expiry, found.now_ms
    due: int | None = transaction.value(statements.NEXT_DUE, {"queue": found.id})
    times = [expiry, None if due is None else max(due, admits)]
    return min((time for time in times if time is not None), default=None), found.now_ms
