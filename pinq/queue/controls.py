"""What an operator has told a queue: pause, drain, limits; and the bucket that counts its rate.

The rate is a token bucket (Turner, "New directions in communications", IEEE
Communications Magazine, 1986) in the queue's row, so that all workers draw from one. It
holds at most a second's worth, and one job at least: over any time T no more than
``rate * T`` jobs are leased, and one bucket.
"""

import math
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from pinq.errors import QueueError
from pinq.queue.model import Controls
from pinq.queue.tables import SUCCEEDED, job_errors, jobs, leases, queues

_DELETE_BATCH = 1000

_FIND = """
SELECT id, name, source, generation, paused, draining, rate, in_flight, allowance, allowance_at_ms
FROM queues WHERE name = ?
"""


class QueueRow(NamedTuple):
    """A queue as its row has it."""

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

    @property
    def controls(self) -> Controls:
        return Controls(bool(self.paused), bool(self.draining), self.rate, self.in_flight)


def find(connection: Connection, queue: str) -> QueueRow | None:
    """The queue of that name."""
    row = connection.exec_driver_sql(_FIND, (queue,)).one_or_none()
    return QueueRow._make(row) if row else None


def change(connection: Connection, row: QueueRow, controls: Controls, now_ms: int) -> None:
    """Write down what holds from now on; a new rate begins with a full bucket."""
    values = {
        "paused": int(controls.paused),
        "draining": int(controls.draining),
        "rate": controls.rate,
        "in_flight": controls.in_flight,
    }
    if controls.rate is not None and controls.rate != row.rate:
        values |= {"allowance": _bucket(controls.rate), "allowance_at_ms": now_ms}
    connection.execute(update(queues).where(queues.c.id == row.id).values(values))


def admitted(connection: Connection, row: QueueRow, limit: int, now_ms: int) -> int:
    """How many of ``limit`` jobs may be leased now."""
    if row.paused:
        return 0
    if row.in_flight is not None:
        limit = min(limit, row.in_flight - _leased(connection, row.id))
    if row.rate is not None:
        if now_ms < row.allowance_at_ms:
            spend(connection, row, 0, now_ms)  # the clock went back; count on from here
        limit = min(limit, math.floor(_allowance(row, row.rate, now_ms)))
    return max(0, limit)


def spend(connection: Connection, row: QueueRow, count: int, now_ms: int) -> None:
    """Take ``count`` leased jobs out of the bucket."""
    if row.rate is None:
        return
    connection.execute(
        update(queues)
        .where(queues.c.id == row.id)
        .values(allowance=_allowance(row, row.rate, now_ms) - count, allowance_at_ms=now_ms)
    )


def admits_at_ms(connection: Connection, row: QueueRow, now_ms: int) -> int | None:
    """From when a job may be leased; ``None``: not before somebody changes something."""
    if row.paused:
        return None
    if row.in_flight is not None and _leased(connection, row.id) >= row.in_flight:
        return None
    if row.rate is None or now_ms < row.allowance_at_ms:
        return 0
    lacking = 1 - _allowance(row, row.rate, now_ms)
    return 0 if lacking <= 0 else now_ms + math.ceil(1000 * lacking / row.rate)


def holds_unfinished(connection: Connection, row: QueueRow) -> bool:
    """Whether any job has not succeeded."""
    some = select(jobs.c.id).where(jobs.c.queue_id == row.id, jobs.c.state != SUCCEEDED).limit(1)
    return connection.execute(some).first() is not None


def close(connection: Connection, row: QueueRow, *, force: bool) -> None:
    """Let nothing in or out any more, before the queue is deleted.

    Raises:
        QueueError: there are unfinished jobs, and ``force`` is not set.
    """
    if not force and holds_unfinished(connection, row):
        raise QueueError(
            f"queue {row.name!r} holds jobs that have not succeeded; drain it first, "
            "or delete it with force"
        )
    connection.execute(update(queues).where(queues.c.id == row.id).values(paused=1, draining=1))
    connection.execute(delete(leases).where(leases.c.queue_id == row.id))


def delete_some(connection: Connection, row: QueueRow) -> int:
    """Delete a batch of a closed queue's jobs, in the end the queue; returns how many jobs."""
    chosen = select(jobs.c.id).where(jobs.c.queue_id == row.id).limit(_DELETE_BATCH)
    ids = list(connection.execute(chosen).scalars())
    if ids:
        connection.execute(delete(job_errors).where(job_errors.c.job_id.in_(ids)))
        connection.execute(delete(jobs).where(jobs.c.id.in_(ids)))
    else:
        connection.execute(delete(queues).where(queues.c.id == row.id))
    return len(ids)


def _leased(connection: Connection, queue_id: int) -> int:
    held = select(func.coalesce(func.sum(leases.c.remaining), 0))
    return int(connection.execute(held.where(leases.c.queue_id == queue_id)).scalar_one())


def _bucket(rate: float) -> float:
    return max(1.0, rate)


def _allowance(row: QueueRow, rate: float, now_ms: int) -> float:
    gained = max(0, now_ms - row.allowance_at_ms) * rate / 1000
    return min(_bucket(rate), row.allowance + gained)
