"""The queue on an SQL database: what producers and workers do with it.

The statements of the hot path (enqueue, lease, finish) go to the driver as they stand, a
batch as one parameter: a parameter a row through the expression compiler would cost half
the speed. All else is SQLAlchemy Core.

How fencing works: a job's row names its lease by ``lease_id``, a random number, which is
the token. Whatever ends, releases or takes back a job clears its ``lease_id``, so a stale
token matches no row.

Several workers at once: due jobs are locked as they are read, and those that somebody
else holds are left out (``SKIP LOCKED``); whatever changes the jobs of a lease locks the
lease first. SQLite has one writer at a time and needs neither.
"""

import json
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from pinq.errors import InvalidInput
from pinq.queue import (
    admission,
    answering,
    attempts,
    controls,
    enqueuing,
    events,
    leasing,
    roles,
    statements,
)
from pinq.queue.database import Database, redone
from pinq.queue.model import (
    Answer,
    Checkpoint,
    Enqueued,
    Exchange,
    Finished,
    Lease,
    NewJob,
    StoredEvent,
    Verdict,
)
from pinq.queue.operating import OperatedQueue
from pinq.queue.tables import queues

_NOTHING = Exchange((), ())


class SqlQueue(OperatedQueue):
    """:class:`pinq.queue.contract.Queue` on an SQL database."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._idle: set[str] = set()
        # What a worker holds decides what it may lease: one of its threads at a time.
        self._leasing = threading.Lock()

    # --- queues ---------------------------------------------------------------

    @redone
    def declare(self, queue: str, *, source: str, signals: Iterable[str] | None = None) -> None:
        with self._database.write() as transaction:
            enqueuing.make(transaction, queue, source, ",".join(sorted(signals or ())))
            named = select(queues).where(queues.c.name == queue).with_for_update(key_share=True)
            row = transaction.execute(named).one()
            changes: dict[str, Any] = {}
            if row.source != source:
                changes["source"] = source
            if signals is not None and row.signals != (text := ",".join(sorted(signals))):
                changes["signals"] = text
                # What was unknown until now is no change: nothing has been computed.
                changes["generation"] = row.generation + (1 if row.signals else 0)
            if changes:
                transaction.execute(update(queues).where(queues.c.id == row.id).values(changes))

    def queues(self) -> list[str]:
        with self._database.read() as transaction:
            named = select(queues.c.name).order_by(queues.c.name)
            return list(transaction.execute(named).scalars())

    # --- enqueue --------------------------------------------------------------

    def enqueue(
        self,
        queue: str,
        jobs: Sequence[NewJob],
        *,
        force: bool = False,
        connection: Connection | None = None,
    ) -> list[Enqueued]:
        admission.check(jobs)
        if not jobs:
            return []
        if connection is not None:
            with self._database.joined(connection) as transaction:
                return enqueuing.enqueue(transaction, queue, jobs, force)
        return self._enqueue_alone(queue, jobs, force)

    @redone
    def _enqueue_alone(self, queue: str, jobs: Sequence[NewJob], force: bool) -> list[Enqueued]:
        with self._database.write() as transaction:
            return enqueuing.enqueue(transaction, queue, jobs, force)

    # --- lease ----------------------------------------------------------------

    def lease(self, queue: str, limit: int, seconds: float, worker: str) -> Lease | None:
        leases = self.exchange([queue], limit, seconds, worker).leases
        return leases[0] if leases else None

    def exchange(
        self,
        queues: Sequence[str],
        limit: int,
        seconds: float,
        worker: str,
        *,
        answers: Sequence[Answer] = (),
        dry_run: bool = False,
    ) -> Exchange:
        named = list(dict.fromkeys(queues))
        if dry_run:
            if answers:
                raise InvalidInput("a dry run takes no answers")
            with self._database.read() as transaction:
                found = [controls.find_to_lease(transaction, name, worker) for name in named]
                known = [row for row in found if row is not None]
                chosen = leasing.choose(transaction, known, limit)
                return Exchange((), [leasing.as_lease(*pair, "", 0) for pair in chosen])
        # With answers not even that: they may make something due.
        likely = named if answers else [queue for queue in named if not self._is_idle(queue)]
        if not likely and not answers:
            return _NOTHING
        exchange = self._exchange(likely, limit, seconds, worker, answers)
        if limit and not exchange.leases:
            self._idle.update(likely)
        return exchange

    @redone
    def _exchange(
        self,
        queues: Sequence[str],
        limit: int,
        seconds: float,
        worker: str,
        answers: Sequence[Answer],
    ) -> Exchange:
        with self._leasing, self._database.write() as transaction:
            finished = [answering.finish(transaction, a.token, a.verdicts) for a in answers]
            known = leasing.find(transaction, queues, worker)
            for row in known:
                controls.follow_clock(transaction, row)
            claimed = []
            for row, rows in leasing.choose(transaction, known, limit):
                expires_at_ms = row.now_ms + round(seconds * 1000)
                token = leasing.claim(transaction, row, rows, worker, expires_at_ms)
                controls.spend(transaction, row, len(rows))
                claimed.append((row, rows, token, expires_at_ms))
            if answers:
                transaction.ring()
        # Out here, where nobody waits for it.
        return Exchange(finished, [leasing.as_lease(*one) for one in claimed])

    def _is_idle(self, queue: str) -> bool:
        """Where nothing was last time, look before waiting for the only writer's lock."""
        if queue not in self._idle or not self._database.one_writer:
            return False
        with self._database.read() as transaction:
            due, now = leasing.next_due_ms(transaction, queue)
        if due is None or due > now:
            return True
        self._idle.discard(queue)
        return False

    def next_due_ms(self, queue: str) -> int | None:
        with self._database.read() as transaction:
            return leasing.next_due_ms(transaction, queue)[0]

    # --- answers --------------------------------------------------------------

    @redone
    def renew(self, token: str, seconds: float) -> bool:
        with self._database.write() as transaction:
            return answering.renew(transaction, token, seconds)

    def holders(self) -> list[str]:
        with self._database.read() as transaction:
            return transaction.column(
                "SELECT worker FROM pinq_leases UNION SELECT holder FROM pinq_roles"
            )

    @redone
    def expire(self, holder: str) -> int:
        with self._database.write() as transaction:
            now = transaction.now_ms()
            roles.expire(transaction, holder, now)
            expired = transaction.run(
                "UPDATE pinq_leases SET expires_at_ms = :now WHERE worker = :holder",
                {"now": now, "holder": holder},
            )
            transaction.ring()
            return expired

    @redone
    def finish(self, token: str, verdicts: Sequence[Verdict]) -> Finished:
        with self._database.write() as transaction:
            finished = answering.finish(transaction, token, verdicts)
            transaction.ring()
        return finished

    @redone
    def checkpoint(
        self, token: str, checkpoints: Sequence[Checkpoint], *, seconds: float | None = None
    ) -> Sequence[int]:
        by_id = {checkpoint.id: checkpoint for checkpoint in checkpoints}
        with self._database.write() as transaction:
            lease = answering.found_lease(transaction, token)
            if lease is None:
                return sorted(by_id)
            remaining = lease.remaining
            for job in attempts.held(transaction, lease.id, list(by_id)):
                remaining -= attempts.keep(transaction, job, by_id.pop(job.id))
            if seconds is not None:
                answering.renew(transaction, token, seconds)
            answering.shrink(transaction, lease.id, remaining)
            transaction.ring()
        return sorted(by_id)

    @redone
    def release(self, token: str, ids: Sequence[int] | None = None) -> int:
        with self._database.write() as transaction:
            lease = answering.found_lease(transaction, token)
            if lease is None:
                return 0
            chosen = json.loads(lease.job_ids) if ids is None else list(ids)
            statement = f"{statements.RELEASE} {statements.HELD}"
            released = transaction.run(statement, {"ids": chosen, "lease": lease.id})
            answering.shrink(transaction, lease.id, lease.remaining - released)
            transaction.ring()
        return released

    # --- what is left ---------------------------------------------------------

    def unfinished(self, names: Iterable[str], *, scheduled: bool = True) -> bool:
        statement = statements.UNFINISHED if scheduled else statements.UNFINISHED_NOW
        with self._database.read() as transaction:
            now = 0 if scheduled else transaction.now_ms()
            for name in names:
                found = controls.find(transaction, name)
                if found is None:
                    continue
                asked = {"queue": found.id} if scheduled else {"queue": found.id, "now": now}
                if transaction.value(statement, asked):
                    return True
        return False

    # --- time -----------------------------------------------------------------

    def now_ms(self) -> int:
        return self._database.now_ms()

    def wait(self, seen: int, timeout_seconds: float) -> int:
        return self._database.bell.wait(seen, timeout_seconds)

    # --- outbox ---------------------------------------------------------------

    def unpublished(self, limit: int) -> list[StoredEvent]:
        with self._database.read() as transaction:
            return events.unpublished(transaction, limit)

    @redone
    def mark_published(self, positions: Sequence[int | str]) -> None:
        with self._database.write() as transaction:
            events.mark_published(transaction, positions)

    # --- roles ----------------------------------------------------------------

    @redone
    def elect(self, role: str, holder: str, seconds: float) -> bool:
        with self._database.write() as transaction:
            return roles.elect(transaction, role, holder, seconds, transaction.now_ms())

    @redone
    def resign(self, role: str, holder: str) -> None:
        with self._database.write() as transaction:
            roles.resign(transaction, role, holder)

    def close(self) -> None:
        self._database.close()
