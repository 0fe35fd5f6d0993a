"""What an operator has told a queue: pause, drain, limits; and the bucket that counts its rate.

The rate is a token bucket (Turner, "New directions in communications", IEEE
Communications Magazine, 1986) in the queue's row, so that all workers draw from one. It
holds at most a second's worth, and one job at least: over any time T no more than
``rate * T`` jobs are leased, and one bucket.
"""

import math
from typing import Any, NamedTuple

from sqlalchemy import delete, func, select, update

from pinq.errors import QueueError
from pinq.queue import statements
from pinq.queue.database import Transaction
from pinq.queue.model import Controls
from pinq.queue.tables import SUCCEEDED, jobs, leases, queues


class QueueRow(NamedTuple):
    """A queue as its row has it, and what time it was then."""

    id: int
    name: str
    source: str
    generation: int
    paused: int
    draining: int
    rate: float | None
    in_flight: int | None
    allowance: float
    allowance_at_ms: int
    now_ms: int
    # What only those know who found it to lease from: when its next lease expires, how many
    # leases the worker holds, and whether one of them is a suspect's.
    first_expiry_ms: int | None = None
    held: int = 0
    solo: int | None = None

    @property
    def controls(self) -> Controls:
        return Controls(bool(self.paused), bool(self.draining), self.rate, self.in_flight)


def find(transaction: Transaction, queue: str) -> QueueRow | None:
    """The queue of that name."""
    return _found(transaction, statements.FIND_QUEUE, name=queue)


def find_and_keep(transaction: Transaction, queue: str) -> QueueRow | None:
    """The queue of that name, which nobody deletes before the transaction ends."""
    return _found(transaction, statements.FIND_AND_KEEP_QUEUE, name=queue)


def of_id(transaction: Transaction, queue_id: int) -> QueueRow:
    """The queue with that id."""
    found = _found(transaction, statements.QUEUE_OF, id=queue_id)
    assert found is not None  # nobody deletes a queue that has leases
    return found


def find_to_lease(transaction: Transaction, queue: str, worker: str) -> QueueRow | None:
    """The queue of that name, with what decides what the worker may lease."""
    return _found(transaction, statements.QUEUE_FOR_LEASING, name=queue, worker=worker)


def lock_if_limited(transaction: Transaction, row: QueueRow, worker: str) -> QueueRow:
    """Where a queue has limits, whoever leases from it counts alone."""
    if row.rate is None and row.in_flight is None:
        return row
    locking = select(queues.c.id).where(queues.c.id == row.id)
    transaction.execute(locking.with_for_update(key_share=True))
    return find_to_lease(transaction, row.name, worker) or row


def _found(transaction: Transaction, statement: str, **asked: Any) -> QueueRow | None:
    row = transaction.row(statement, asked)
    if row is None:
        return None
    found, clock = QueueRow(*row), transaction.database.clock
    return found if clock is None else found._replace(now_ms=clock())


def change(transaction: Transaction, row: QueueRow, controls: Controls) -> None:
    """Write down what holds from now on; a new rate begins with a full bucket."""
    values = {
        "paused": int(controls.paused),
        "draining": int(controls.draining),
        "rate": controls.rate,
        "in_flight": controls.in_flight,
    }
    if controls.rate is not None and controls.rate != row.rate:
        values |= {"allowance": _bucket(controls.rate), "allowance_at_ms": row.now_ms}
    transaction.execute(update(queues).where(queues.c.id == row.id).values(values))


def admitted(transaction: Transaction, row: QueueRow, limit: int) -> int:
    """How many of ``limit`` jobs may be leased now."""
    if row.paused:
        return 0
    if row.in_flight is not None:
        limit = min(limit, row.in_flight - _leased(transaction, row.id))
    if row.rate is not None:
        limit = min(limit, math.floor(_allowance(row, row.rate)))
    return max(0, limit)


def follow_clock(transaction: Transaction, row: QueueRow) -> None:
    """Where the clock went back, let the bucket count on from here."""
    if row.rate is not None and row.now_ms < row.allowance_at_ms:
        spend(transaction, row, 0)


def spend(transaction: Transaction, row: QueueRow, count: int) -> None:
    """Take ``count`` leased jobs out of the bucket."""
    if row.rate is None:
        return
    transaction.execute(
        update(queues)
        .where(queues.c.id == row.id)
        .values(allowance=_allowance(row, row.rate) - count, allowance_at_ms=row.now_ms)
    )


def admits_at_ms(transaction: Transaction, row: QueueRow) -> int | None:
    """From when a job may be leased; ``None``: not before somebody changes something."""
    if row.paused:
        return None
    if row.in_flight is not None and _leased(transaction, row.id) >= row.in_flight:
        return None
    if row.rate is None or row.now_ms < row.allowance_at_ms:
        return 0
    lacking = 1 - _allowance(row, row.rate)
    return 0 if lacking <= 0 else row.now_ms + math.ceil(1000 * lacking / row.rate)


def holds_unfinished(transaction: Transaction, row: QueueRow) -> bool:
    """Whether any job has not succeeded."""
    some = select(jobs.c.id).where(jobs.c.queue_id == row.id, jobs.c.state != SUCCEEDED).limit(1)
    return transaction.execute(some).first() is not None


def close(transaction: Transaction, row: QueueRow, *, force: bool) -> None:
    """Let nothing in or out any more, before the queue is deleted.

    Raises:
        QueueError: there are unfinished jobs, and ``force`` is not set.
    """
    if not force and holds_unfinished(transaction, row):
        raise QueueError(
            f"queue {row.name!r} holds jobs that have not succeeded; drain it first, "
            "or delete it with force"
        )
    transaction.execute(update(queues).where(queues.c.id == row.id).values(paused=1, draining=1))
    transaction.execute(delete(leases).where(leases.c.queue_id == row.id))


def remove(transaction: Transaction, row: QueueRow) -> bool:
    """Delete a closed queue, if it holds nothing any more."""
    # Locked, so that nobody enqueues between the look and the deletion.
    transaction.execute(select(queues.c.id).where(queues.c.id == row.id).with_for_update())
    some = select(jobs.c.id).where(jobs.c.queue_id == row.id).limit(1)
    if transaction.execute(some).first() is not None:
        return False
    transaction.execute(delete(queues).where(queues.c.id == row.id))
    return True


def _leased(transaction: Transaction, queue_id: int) -> int:
    held = select(func.coalesce(func.sum(leases.c.remaining), 0))
    return int(transaction.execute(held.where(leases.c.queue_id == queue_id)).scalar_one())


def _bucket(rate: float) -> float:
    return max(1.0, rate)


def _allowance(row: QueueRow, rate: float) -> float:
    gained = max(0, row.now_ms - row.allowance_at_ms) * rate / 1000
    return min(_bucket(rate), row.allowance + gained)
