"""Moving a queue out of an SQL database, and into one: ``transfer.py`` on SQL.

Its notes stand in a table of their own, made by the first move that needs it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Column, MetaData, String, Table, delete, func, insert, select, update

from pinq.errors import InvalidInput
from pinq.queue import controls, leasing, statements
from pinq.queue.database import Transaction, each, redone
from pinq.queue.model import Controls, JobError, State, StoredEvent
from pinq.queue.sql import SqlQueue
from pinq.queue.tables import (
    LEASED,
    STATE,
    STATE_NUMBER,
    LongText,
    job_errors,
    jobs,
    jobs_and_queues,
    leases,
    outbox,
    queues,
)
from pinq.queue.transfer import Arrival, Departure, JobRecord, LeaseRecord, QueueRecord

_metadata = MetaData()
_moves = Table(
    "pinq_moves",
    _metadata,
    Column("side", String(16), primary_key=True),
    Column("note", LongText, nullable=False),
    mysql_charset="utf8mb4",
    mysql_collate="utf8mb4_bin",
)
_FROM, _TO = "from", "to"

_INSERT_JOBS = f"""
INSERT INTO pinq_jobs ({statements.INSERTED}, finished_at_ms)
VALUES ({", ".join("?" * (len(statements.INSERTED.split(",")) + 1))})
"""
_INSERT_ERRORS = (
    "INSERT INTO pinq_job_errors (job_id, attempt, class, message, at_ms) VALUES (?, ?, ?, ?, ?)"
)

# A transaction that read a queue before it was closed may enqueue or lease after. It keeps
# the table until it ends: whoever has had the table alone has outlasted it. SQLite has one
# writer at a time, and needs none of this.
_BARRIER = {
    "postgresql": (
        "SET LOCAL lock_timeout = '20s'",
        "LOCK TABLE pinq_queues IN ACCESS EXCLUSIVE MODE",
    ),
    "mysql": (
        "SET SESSION lock_wait_timeout = 20",
        "LOCK TABLES pinq_queues WRITE",
        "UNLOCK TABLES",
    ),
}
_BARRIER["mariadb"] = _BARRIER["mysql"]

_Note = dict[str, Any]


class SqlTransfer:
    """:class:`pinq.queue.transfer.Transferable` on an SQL database."""

    def __init__(self, queue: SqlQueue) -> None:
        self.queue = queue
        self._database = queue._database

    @property
    def address(self) -> str:
        database = self._database
        embedded = database.dialect == "sqlite"
        return f"sqlite:///{Path(database.name).resolve()}" if embedded else database.name

    # --- a source -------------------------------------------------------------

    def departure(self) -> Departure | None:
        with self._database.read() as transaction:
            note = _read(transaction, _FROM)
        return Departure(note["id"], note["to"], note["gone"]) if note else None

    def freeze(self, departure: Departure) -> None:
        self._make_notes()
        self._close(departure)
        if barrier := _BARRIER.get(self._database.dialect, ()):
            with self._database.write() as transaction:
                for statement in barrier:
                    transaction.run(statement)
        self._part()

    @redone
    def _close(self, departure: Departure) -> None:
        with self._database.write() as transaction:
            note = _read(transaction, _FROM)
            if note is None:
                note = {**asdict(departure), "told": {}, "leases": []}
            known = select(queues.c.name, queues.c.paused, queues.c.draining).with_for_update()
            for name, paused, draining in transaction.execute(known).all():
                if name in note["told"]:
                    continue
                note["told"][name] = [bool(paused), bool(draining)]
                closing = update(queues).where(queues.c.name == name)
                transaction.execute(closing.values(paused=1, draining=1))
            _write(transaction, _FROM, note)
            transaction.ring()

    @redone
    def _part(self) -> None:
        with self._database.write() as transaction:
            note = _read(transaction, _FROM)
            assert note is not None
            transaction.execute(select(leases.c.id).order_by(leases.c.id).with_for_update())
            note["leases"] += [asdict(record) for record in _held(transaction)]
            for lease_id, ids in transaction.execute(select(leases.c.id, leases.c.job_ids)).all():
                mine = each(jobs.c.id, json.loads(ids)), jobs.c.lease_id == lease_id
                transaction.execute(update(jobs).where(*mine).values(lease_id=None))
            transaction.execute(delete(leases))
            _write(transaction, _FROM, note)

    def frozen(self) -> Mapping[str, bool]:
        with self._database.read() as transaction:
            note = _read(transaction, _FROM)
            shut = select(queues.c.name).where(queues.c.paused != 0, queues.c.draining != 0)
            closed = set(transaction.execute(shut).scalars())
        return {name: name in closed for name in note["told"]} if note else {}

    @redone
    def thaw(self) -> None:
        with self._database.write() as transaction:
            note = _read(transaction, _FROM)
            if note is None:
                return
            for name, (paused, draining) in note["told"].items():
                opening = update(queues).where(queues.c.name == name)
                transaction.execute(opening.values(paused=int(paused), draining=int(draining)))
            for record in note["leases"]:
                _give(transaction, LeaseRecord(**record))
            transaction.execute(delete(_moves).where(_moves.c.side == _FROM))
            transaction.ring()

    @redone
    def depart(self) -> None:
        with self._database.write() as transaction:
            _write(transaction, _FROM, {**(_read(transaction, _FROM) or {}), "gone": True})

    def queue_records(self) -> Sequence[QueueRecord]:
        with self._database.read() as transaction:
            note = _read(transaction, _FROM)
            rows = transaction.execute(select(queues).order_by(queues.c.name)).all()
        told = note["told"] if note else {}
        records = []
        for row in rows:
            paused, draining = told.get(row.name, (bool(row.paused), bool(row.draining)))
            records.append(
                QueueRecord(
                    name=row.name,
                    source=row.source,
                    signals=row.signals,
                    generation=row.generation,
                    controls=Controls(paused, draining, row.rate, row.in_flight),
                    allowance=row.allowance,
                    allowance_at_ms=row.allowance_at_ms,
                )
            )
        return records

    def job_records(self, after: str, page: int) -> Iterator[JobRecord]:
        last = int(after or 0)
        while True:
            next_ones = (
                select(jobs, queues.c.name).select_from(jobs_and_queues).where(jobs.c.id > last)
            )
            with self._database.read() as transaction:
                rows = transaction.execute(next_ones.order_by(jobs.c.id).limit(page)).all()
                errors = _errors(transaction, [row.id for row in rows])
            for row in rows:
                yield _job(row, tuple(errors.get(row.id, ())))
            if len(rows) < page:
                return
            last = rows[-1].id

    def lease_records(self) -> Sequence[LeaseRecord]:
        with self._database.read() as transaction:
            note = _read(transaction, _FROM)
            held = _held(transaction)
        return [_lease(record) for record in note["leases"]] + held if note else held

    def event_records(self, after: str, page: int) -> Iterator[StoredEvent]:
        last = int(after or 0)
        while True:
            next_ones = select(outbox).where(outbox.c.position > last).order_by(outbox.c.position)
            with self._database.read() as transaction:
                rows = transaction.execute(next_ones.limit(page)).all()
            for row in rows:
                yield StoredEvent(*row)
            if len(rows) < page:
                return
            last = rows[-1].position

    def event_count(self) -> int:
        with self._database.read() as transaction:
            counted = transaction.execute(select(func.count()).select_from(outbox))
            return int(counted.scalar_one())

    # --- a target -------------------------------------------------------------

    def arrival(self) -> Arrival | None:
        with self._database.read() as transaction:
            note = _read(transaction, _TO)
        return Arrival(**note) if note else None

    def expect(self, arrival: Arrival, records: Sequence[QueueRecord]) -> None:
        self._make_notes()
        self._expect(arrival, records)

    @redone
    def _expect(self, arrival: Arrival, records: Sequence[QueueRecord]) -> None:
        with self._database.write() as transaction:
            for record in records:
                fields = {"source": record.source, "signals": record.signals}
                self._database.insert_missing(transaction, queues, name=record.name, **fields)
                values = {
                    **fields,
                    "generation": record.generation,
                    "paused": 1,
                    "draining": 1,
                    "rate": record.controls.rate,
                    "in_flight": record.controls.in_flight,
                    "allowance": record.allowance,
                    "allowance_at_ms": record.allowance_at_ms,
                }
                named = queues.c.name == record.name
                transaction.execute(update(queues).where(named).values(values))
            transaction.execute(delete(_moves).where(_moves.c.side == _FROM))
            note = _read(transaction, _TO)
            if note is None or note["id"] != arrival.id:
                _write(transaction, _TO, asdict(arrival))

    def adopt_jobs(self, records: Sequence[JobRecord]) -> None:
        try:
            self._adopt_jobs(records)
        except UnicodeEncodeError as error:
            raise InvalidInput(f"{self.address} keeps only text that is Unicode: {error}") from None

    @redone
    def _adopt_jobs(self, records: Sequence[JobRecord]) -> None:
        by_queue: dict[str, list[JobRecord]] = {}
        for record in records:
            by_queue.setdefault(record.queue, []).append(record)
        with self._database.write() as transaction:
            known = {name: controls.find(transaction, name) for name in by_queue}
            ids = {name: row.id for name, row in known.items() if row is not None}
            there = {
                name: _ids(transaction, ids[name], [record.key for record in some])
                for name, some in by_queue.items()
            }
            new = [record for record in records if record.key not in there[record.queue]]
            if new:
                rows = [_row(ids[record.queue], record) for record in new]
                transaction.run_many(_INSERT_JOBS, rows)
            _adopt_errors(transaction, ids, [record for record in new if record.errors])
            _go_on(transaction, jobs_after=records[-1].place)

    def adopt_leases(self, records: Sequence[LeaseRecord]) -> None:
        for record in records:
            self._adopt_lease(record)

    @redone
    def _adopt_lease(self, record: LeaseRecord) -> None:
        with self._database.write() as transaction:
            _give(transaction, record)

    @redone
    def adopt_events(self, events: Sequence[StoredEvent]) -> None:
        rows = [(e.id, e.type, e.source, e.subject, e.time_ms, e.data) for e in events]
        with self._database.write() as transaction:
            transaction.run_many(statements.INSERT_EVENT, rows)
            _go_on(transaction, events_after=str(events[-1].position))
            transaction.ring()

    @redone
    def opened(self) -> None:
        with self._database.write() as transaction:
            _go_on(transaction, opened=True)
            transaction.ring()

    @redone
    def forget_arrival(self) -> None:
        with self._database.write() as transaction:
            transaction.execute(delete(_moves).where(_moves.c.side == _TO))

    def _make_notes(self) -> None:
        # By itself: MySQL ends a transaction for it.
        with self._database.write() as transaction:
            _metadata.create_all(transaction.connection)


# --- notes --------------------------------------------------------------------------------


def _read(transaction: Transaction, side: str) -> _Note | None:
    if not transaction.database.holds(transaction, _moves.name):
        return None
    named = select(_moves.c.note).where(_moves.c.side == side)
    note = transaction.execute(named).scalar_one_or_none()
    return json.loads(note) if note else None


def _write(transaction: Transaction, side: str, note: _Note) -> None:
    transaction.execute(delete(_moves).where(_moves.c.side == side))
    transaction.execute(insert(_moves).values(side=side, note=json.dumps(note)))


def _go_on(transaction: Transaction, **changes: Any) -> None:
    note = _read(transaction, _TO)
    assert note is not None
    _write(transaction, _TO, asdict(replace(Arrival(**note), **changes)))


# --- jobs ---------------------------------------------------------------------------------


def _job(row: Any, errors: tuple[JobError, ...]) -> JobRecord:
    state = STATE[row.state]
    return JobRecord(
        place=str(row.id),
        arrival=row.id,
        queue=row.name,
        key=row.job_key,
        state=state,
        priority=row.priority,
        run_at_ms=row.run_at_ms,
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        suspect=bool(row.suspect) and state is State.PENDING,
        generation=row.generation if state is State.SUCCEEDED else 0,
        forced=bool(row.forced),
        verify=bool(row.verify),
        enqueued_at_ms=row.enqueued_at_ms,
        finished_at_ms=row.finished_at_ms,
        uri=row.uri,
        etag=row.etag,
        body=bytes(row.body),
        progress=bytes(row.progress),
        status=row.status,
        errors=errors,
    )


def _row(queue_id: int, record: JobRecord) -> tuple[Any, ...]:
    """A job as ``_INSERT_JOBS`` takes it."""
    return (
        queue_id,
        record.key,
        STATE_NUMBER[record.state],
        record.priority,
        record.run_at_ms,
        record.attempts,
        record.max_attempts,
        int(record.suspect),
        record.generation,
        int(record.forced),
        int(record.verify),
        record.enqueued_at_ms,
        record.uri,
        record.etag,
        record.body,
        record.progress,
        record.status,
        record.finished_at_ms,
    )


def _ids(transaction: Transaction, queue_id: int, keys: Sequence[str]) -> dict[str, int]:
    """The ids of the jobs that there are of some keys."""
    asked = {"queue": queue_id, "keys": list(keys)}
    return {key: id_ for key, id_, *_ in transaction.rows(statements.EXISTING, asked)}


def _errors(transaction: Transaction, ids: Sequence[int]) -> dict[int, list[JobError]]:
    found: dict[int, list[JobError]] = {}
    named = select(job_errors).where(each(job_errors.c.job_id, ids)).order_by(job_errors.c.id)
    for _, job_id, attempt, failure_class, message, at_ms in transaction.execute(named):
        found.setdefault(job_id, []).append(JobError(failure_class, message, at_ms, attempt))
    return found


def _adopt_errors(
    transaction: Transaction, queue_ids: Mapping[str, int], records: Sequence[JobRecord]
) -> None:
    keys: dict[str, list[str]] = {}
    for record in records:
        keys.setdefault(record.queue, []).append(record.key)
    ids = {name: _ids(transaction, queue_ids[name], some) for name, some in keys.items()}
    rows = [
        (ids[record.queue][record.key], e.attempt, e.failure_class, e.message, e.at_ms)
        for record in records
        for e in record.errors
    ]
    if rows:
        transaction.run_many(_INSERT_ERRORS, rows)


# --- leases -------------------------------------------------------------------------------


def _held(transaction: Transaction) -> list[LeaseRecord]:
    """The leases that are held, and what they still hold."""
    found = []
    every = (
        select(leases, queues.c.name)
        .join(queues, queues.c.id == leases.c.queue_id)
        .order_by(leases.c.id)
    )
    for lease in transaction.execute(every).all():
        mine = each(jobs.c.id, json.loads(lease.job_ids)), jobs.c.lease_id == lease.id
        keys = transaction.execute(select(jobs.c.job_key).where(*mine).order_by(jobs.c.id))
        found.append(
            LeaseRecord(
                queue=lease.name,
                worker=lease.worker,
                expires_at_ms=lease.expires_at_ms,
                solo=bool(lease.solo),
                keys=tuple(keys.scalars()),
            )
        )
    return found


def _lease(note: _Note) -> LeaseRecord:
    return LeaseRecord(**{**note, "keys": tuple(note["keys"])})


def _give(transaction: Transaction, record: LeaseRecord) -> None:
    """Lease those of the jobs that are in no lease."""
    queue = controls.find(transaction, record.queue)
    if queue is None:
        return
    parted = (
        select(jobs.c.id)
        .where(jobs.c.queue_id == queue.id, each(jobs.c.job_key, record.keys))
        .where(jobs.c.state == LEASED, jobs.c.lease_id.is_(None))
    )
    ids = list(transaction.execute(parted.order_by(jobs.c.id)).scalars())
    if not ids:
        return
    solo = int(record.solo)
    lease = leasing.new_lease(queue.id, ids, record.worker, record.expires_at_ms, solo=solo)
    transaction.run(statements.INSERT_LEASE, lease)
    leased = {"lease_id": lease["lease"], "suspect": solo}
    transaction.execute(update(jobs).where(each(jobs.c.id, ids)).values(leased))
