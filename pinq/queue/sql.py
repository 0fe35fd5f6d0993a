"""The queue on SQLite.

The statements of the hot path (enqueue, lease, finish) go to the driver as
they stand, with a batch as one JSON array or one ``executemany``: a parameter a
row through the expression compiler would cost half the speed. All else is
SQLAlchemy Core.

How fencing works: a job's row names its lease by ``lease_id``, ids of leases are
never reused, and a token is a lease's id with a nonce. Whatever ends, releases or
takes back a job clears its ``lease_id``, so a stale token matches no row.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from pinq.errors import QueueDraining
from pinq.queue import attempts, controls, events, roles, statements
from pinq.queue.doorbell import Doorbell
from pinq.queue.model import (
    Dead,
    Enqueued,
    Finished,
    Lease,
    LeasedJob,
    NewJob,
    Outcome,
    Retry,
    State,
    StoredEvent,
    Succeeded,
    Verdict,
)
from pinq.queue.operating import OperatedQueue
from pinq.queue.sqlite import SqliteDatabase
from pinq.queue.tables import (
    DEAD,
    PENDING,
    STATE,
    SUCCEEDED,
    job_errors,
    jobs,
    queues,
)


def machine_clock() -> int:
    """This machine's time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class SqlQueue(OperatedQueue):
    """:class:`pinq.queue.contract.Queue` on SQLite."""

    def __init__(
        self, database: SqliteDatabase, *, clock: Callable[[], int] = machine_clock
    ) -> None:
        super().__init__(database, Doorbell(database.path), clock)
        self._idle: set[str] = set()

    # --- queues ---------------------------------------------------------------

    def declare(self, queue: str, *, source: str, signals: Iterable[str] | None = None) -> None:
        with self._database.write() as connection:
            row = connection.execute(select(queues).where(queues.c.name == queue)).one_or_none()
            if row is None:
                connection.execute(
                    insert(queues).values(
                        name=queue, source=source, signals=",".join(sorted(signals or ()))
                    )
                )
                return
            changes: dict[str, Any] = {}
            if row.source != source:
                changes["source"] = source
            if signals is not None and row.signals != (text := ",".join(sorted(signals))):
                changes["signals"] = text
                # What was unknown until now is no change: nothing has been computed.
                changes["generation"] = row.generation + (1 if row.signals else 0)
            if changes:
                connection.execute(update(queues).where(queues.c.id == row.id).values(changes))

    def queues(self) -> list[str]:
        with self._database.read() as connection:
            return list(connection.execute(select(queues.c.name).order_by(queues.c.name)).scalars())

    # --- enqueue --------------------------------------------------------------

    def enqueue(self, queue: str, jobs: Sequence[NewJob], *, force: bool = False) -> list[Enqueued]:
        if not jobs:
            return []
        with self._database.write() as connection:
            found = controls.find(connection, queue)
            if found is None:
                connection.execute(insert(queues).values(name=queue, source=f"/pinq/{queue}"))
                found = controls.find(connection, queue)
                assert found is not None
            if found.draining:
                raise QueueDraining(
                    f"queue {queue!r} is draining and takes no more jobs; "
                    f"`pinq queues resume {queue}` ends that"
                )
            now = self._clock()
            existing = {
                key: (id_, state, generation)
                for key, id_, state, generation in connection.exec_driver_sql(
                    statements.EXISTING, (found.id, json.dumps([job.key for job in jobs]))
                )
            }
            answers: list[Enqueued] = []
            new: list[tuple[Any, ...]] = []
            for job in jobs:
                known = existing.get(job.key)
                if known is None:
                    existing[job.key] = (0, PENDING, 0)
                    new.append(
                        (
                            found.id,
                            job.key,
                            job.priority,
                            job.run_at_ms or now,
                            job.max_attempts,
                            int(force),
                            int(job.verify),
                            now,
                            job.uri,
                            job.etag,
                        )
                    )
                    answers.append(Enqueued(job.key, Outcome.ENQUEUED, State.PENDING))
                    continue
                id_, state, generation = known
                stale = state == SUCCEEDED and generation != found.generation
                if stale or (force and state in (SUCCEEDED, DEAD)):
                    self._rerun(connection, id_, job, now, force)
                    existing[job.key] = (id_, PENDING, generation)
                    answers.append(Enqueued(job.key, Outcome.RERUN, State.PENDING))
                else:
                    answers.append(Enqueued(job.key, Outcome.DUPLICATE, STATE[state]))
            if new:
                connection.exec_driver_sql(statements.INSERT, new)
        return answers

    def _rerun(self, connection: Connection, id_: int, job: NewJob, now: int, force: bool) -> None:
        connection.execute(delete(job_errors).where(job_errors.c.job_id == id_))
        connection.execute(
            update(jobs)
            .where(jobs.c.id == id_)
            .values(
                state=PENDING,
                priority=job.priority,
                run_at_ms=job.run_at_ms or now,
                attempts=0,
                max_attempts=job.max_attempts,
                suspect=0,
                force=int(force),
                verify=int(job.verify),
                enqueued_at_ms=now,
                finished_at_ms=None,
                uri=job.uri,
                etag=job.etag,
            )
        )

    # --- lease ----------------------------------------------------------------

    def lease(self, queue: str, limit: int, seconds: float, worker: str) -> Lease | None:
        if queue in self._idle:
            # Nothing was there last time: look before taking the write lock.
            due = self.next_due_ms(queue)
            if due is None or due > self._clock():
                return None
        lease = self._lease(queue, limit, seconds, worker)
        (self._idle.add if lease is None else self._idle.discard)(queue)
        return lease

    def _lease(self, queue: str, limit: int, seconds: float, worker: str) -> Lease | None:
        with self._database.write() as connection:
            found = controls.find(connection, queue)
            if found is None:
                return None
            now = self._clock()  # after the lock is held, however long that took
            attempts.take_back_expired(connection, queue, found.id, found.source, now)
            held, solo = connection.exec_driver_sql(
                "SELECT count(*), max(solo) FROM leases WHERE worker = ?", (worker,)
            ).one()
            if solo:
                return None
            limit = controls.admitted(connection, found, limit, now)
            if not limit:
                return None
            rows = connection.exec_driver_sql(
                statements.CANDIDATES, {"queue": found.id, "now": now, "limit": limit}
            ).all()
            if not rows:
                return None
            solo = rows[0][-1]
            if solo and held:
                return None  # until what this worker holds is answered
            rows = rows[:1] if solo else _until_suspect(rows)
            ids = json.dumps([row[0] for row in rows])
            nonce = secrets.token_hex(8)
            expires_at_ms = now + round(seconds * 1000)
            lease_id = connection.exec_driver_sql(
                "INSERT INTO leases"
                " (nonce, queue_id, worker, expires_at_ms, job_ids, remaining, solo)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (nonce, found.id, worker, expires_at_ms, ids, len(rows), solo),
            ).lastrowid
            connection.exec_driver_sql(statements.CLAIM, (lease_id, ids))
            controls.spend(connection, found, len(rows), now)
        return Lease(
            token=f"{lease_id}-{nonce}",
            queue=queue,
            expires_at_ms=expires_at_ms,
            jobs=tuple(LeasedJob._make(row[:-1]) for row in rows),
        )

    def next_due_ms(self, queue: str) -> int | None:
        with self._database.read() as connection:
            found = controls.find(connection, queue)
            if found is None:
                return None
            expiry: int | None = connection.exec_driver_sql(
                statements.NEXT_EXPIRY, {"queue": found.id}
            ).scalar()
            admits = controls.admits_at_ms(connection, found, self._clock())
            if admits is None:
                return expiry
            due: int | None = connection.exec_driver_sql(
                statements.NEXT_DUE, {"queue": found.id}
            ).scalar()
            times = [expiry, None if due is None else max(due, admits)]
            return min((time for time in times if time is not None), default=None)

    # --- answers --------------------------------------------------------------

    def renew(self, token: str, seconds: float) -> bool:
        lease_id, nonce = _parse(token)
        with self._database.write() as connection:
            changed = connection.exec_driver_sql(
                "UPDATE leases SET expires_at_ms = ? WHERE id = ? AND nonce = ?",
                (self._clock() + round(seconds * 1000), lease_id, nonce),
            ).rowcount
        return bool(changed)

    def holders(self) -> list[str]:
        with self._database.read() as connection:
            found = connection.exec_driver_sql(
                "SELECT worker FROM leases UNION SELECT holder FROM roles"
            )
            return list(found.scalars())

    def expire(self, holder: str) -> int:
        with self._database.write() as connection:
            roles.expire(connection, holder, self._clock())
            return connection.exec_driver_sql(
                "UPDATE leases SET expires_at_ms = ? WHERE worker = ?", (self._clock(), holder)
            ).rowcount

    def finish(self, token: str, verdicts: Sequence[Verdict]) -> Finished:
        lease_id, nonce = _parse(token)
        by_id = {verdict.id: verdict for verdict in verdicts}
        successes = [v for v in by_id.values() if isinstance(v, Succeeded)]
        failures = [v for v in by_id.values() if not isinstance(v, Succeeded)]
        retried = dead = 0
        with self._database.write() as connection:
            row = connection.exec_driver_sql(
                "SELECT l.remaining, q.name, q.source, q.generation FROM leases l"
                " JOIN queues q ON q.id = l.queue_id WHERE l.id = ? AND l.nonce = ?",
                (lease_id, nonce),
            ).one_or_none()
            if row is None:
                return Finished(refused=sorted(by_id))
            remaining, queue, source, generation = row
            now = self._clock()
            accepted: set[int] = set()
            if successes:
                accepted.update(
                    connection.exec_driver_sql(
                        statements.SUCCEED,
                        (now, generation, json.dumps([v.id for v in successes]), lease_id),
                    )
                    .scalars()
                    .all()
                )
                events.store(
                    connection, (v.event for v in successes if v.event and v.id in accepted), now
                )
            for job in self._held(connection, lease_id, [v.id for v in failures]):
                verdict = by_id[job.id]
                assert not isinstance(verdict, Succeeded)
                ends = isinstance(verdict, Dead)
                retry_at = (
                    now + round(verdict.delay_seconds * 1000)
                    if isinstance(verdict, Retry)
                    else None
                )
                died = attempts.fail(
                    connection, queue, source, job, verdict.failure, now, retry_at, ends=ends
                )
                dead, retried = dead + died, retried + (not died)
                accepted.add(job.id)
            self._shrink(connection, lease_id, remaining - len(accepted))
        self._doorbell.ring()
        return Finished(
            succeeded=len(accepted) - retried - dead,
            retried=retried,
            dead=dead,
            refused=sorted(by_id.keys() - accepted),
        )

    def release(self, token: str, ids: Sequence[int] | None = None) -> int:
        lease_id, nonce = _parse(token)
        with self._database.write() as connection:
            row = connection.exec_driver_sql(
                "SELECT job_ids, remaining FROM leases WHERE id = ? AND nonce = ?",
                (lease_id, nonce),
            ).one_or_none()
            if row is None:
                return 0
            released = connection.exec_driver_sql(
                "UPDATE jobs SET state = 0, lease_id = NULL, attempts = attempts - 1"
                " WHERE id IN (SELECT value FROM json_each(?)) AND lease_id = ?",
                (row.job_ids if ids is None else json.dumps(list(ids)), lease_id),
            ).rowcount
            self._shrink(connection, lease_id, row.remaining - released)
        self._doorbell.ring()
        return released

    def _held(
        self, connection: Connection, lease_id: int, ids: Sequence[int]
    ) -> Sequence[Row[Any]]:
        if not ids:
            return ()
        held = select(jobs).where(jobs.c.id.in_(ids), jobs.c.lease_id == lease_id)
        return connection.execute(held.order_by(jobs.c.id)).all()

    def _shrink(self, connection: Connection, lease_id: int, remaining: int) -> None:
        if remaining:
            connection.exec_driver_sql(
                "UPDATE leases SET remaining = ? WHERE id = ?", (remaining, lease_id)
            )
        else:
            connection.exec_driver_sql("DELETE FROM leases WHERE id = ?", (lease_id,))

    # --- what is left ---------------------------------------------------------

    def unfinished(self, names: Iterable[str], *, scheduled: bool = True) -> bool:
        statement = statements.UNFINISHED if scheduled else statements.UNFINISHED_NOW
        with self._database.read() as connection:
            for name in names:
                found = controls.find(connection, name)
                if found is None:
                    continue
                asked = {"queue": found.id}
                if not scheduled:
                    asked["now"] = self._clock()
                if connection.exec_driver_sql(statement, asked).scalar():
                    return True
        return False

    # --- time -----------------------------------------------------------------

    def now_ms(self) -> int:
        return self._clock()

    def wait(self, seen: int, timeout_seconds: float) -> int:
        return self._doorbell.wait(seen, timeout_seconds)

    # --- outbox ---------------------------------------------------------------

    def unpublished(self, limit: int) -> list[StoredEvent]:
        with self._database.read() as connection:
            return events.unpublished(connection, limit)

    def mark_published(self, positions: Sequence[int]) -> None:
        with self._database.write() as connection:
            events.mark_published(connection, positions)

    # --- roles ----------------------------------------------------------------

    def elect(self, role: str, holder: str, seconds: float) -> bool:
        with self._database.write() as connection:
            return roles.elect(connection, role, holder, seconds, self._clock())

    def resign(self, role: str, holder: str) -> None:
        with self._database.write() as connection:
            roles.resign(connection, role, holder)

    def close(self) -> None:
        self._doorbell.close()
        self._database.close()


def _parse(token: str) -> tuple[int, str]:
    lease_id, _, nonce = token.partition("-")
    return int(lease_id), nonce


def _until_suspect(rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    for index, row in enumerate(rows):
        if row[-1]:
            return rows[:index]
    return rows
