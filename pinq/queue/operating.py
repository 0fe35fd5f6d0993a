"""What an operator does with a queue: look at its jobs, control it, change many at once."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Row

from pinq.errors import InvalidInput
from pinq.queue import controls, selection, views
from pinq.queue.controls import QueueRow
from pinq.queue.database import Database, Transaction, redone
from pinq.queue.model import EVERYTHING, Controls, Counts, Filter, Job, Page
from pinq.queue.tables import DEAD, SUCCEEDED

# Jobs changed in one transaction by a verb that may change many; leases wait no longer.
_BATCH = 250


class OperatedQueue:
    """The operator's half of :class:`pinq.queue.contract.Queue`; workers' is ``sql.py``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- controls -------------------------------------------------------------

    def controls(self, queue: str) -> Controls:
        with self._database.read() as transaction:
            found = controls.find(transaction, queue)
            return found.controls if found else Controls()

    @redone
    def control(self, queue: str, told: Controls) -> None:
        for limit in (told.rate, told.in_flight):
            if limit is not None and not 0 < limit < math.inf:
                raise InvalidInput(f"a limit of {limit} is not above zero; pause the queue instead")
        with self._database.write() as transaction:
            found = controls.find(transaction, queue)
            if found is None:
                raise InvalidInput(f"there is no queue {queue!r}")
            controls.change(transaction, found, told)
            transaction.ring()

    def drop(self, queue: str, *, force: bool = False) -> int:
        found = self._closed(queue, force)
        total = 0
        while found is not None:
            total += self.delete(Filter(queue=queue))
            if self._removed(found):
                break
        return total

    @redone
    def _closed(self, queue: str, force: bool) -> QueueRow | None:
        with self._database.write() as transaction:
            found = controls.find(transaction, queue)
            if found is not None:
                controls.close(transaction, found, force=force)
            return found

    @redone
    def _removed(self, queue: QueueRow) -> bool:
        with self._database.write() as transaction:
            return controls.remove(transaction, queue)

    # --- views ----------------------------------------------------------------

    def lookup(self, queue: str, keys: Sequence[str]) -> dict[str, Job]:
        with self._database.read() as transaction:
            return {job.key: job for job in views.by_key(transaction, queue, keys)}

    def page(self, wanted: Filter = EVERYTHING, *, after: str = "", limit: int = 1000) -> Page:
        with self._database.read() as transaction:
            now = transaction.now_ms()
            found = views.page(transaction, wanted, now, after=_position(after), limit=limit + 1)
        shown = found[:limit]
        return Page(shown, str(shown[-1].id) if len(found) > limit else None)

    def scan(self, wanted: Filter = EVERYTHING, *, batch: int = 1000) -> Iterator[Job]:
        after: str | None = ""
        while after is not None:
            page = self.page(wanted, after=after, limit=batch)
            yield from page.jobs
            after = page.continuation

    def group(self, by: str, wanted: Filter = EVERYTHING) -> dict[str, int]:
        if by not in selection.GROUPS:
            raise InvalidInput(f"{by!r} is none of {', '.join(selection.GROUPS)}")
        with self._database.read() as transaction:
            return selection.grouped(transaction, wanted, by, transaction.now_ms())

    def count(self, queue: str) -> Counts:
        with self._database.read() as transaction:
            return views.counts(transaction, queue, transaction.now_ms())

    # --- many jobs at once ------------------------------------------------------

    def requeue(self, wanted: Filter, *, rate: float | None = None, dry_run: bool = False) -> int:
        if rate is not None and not 0 < rate < math.inf:
            raise InvalidInput(f"a rate of {rate} is not above zero")

        def change(transaction: Transaction, found: Sequence[Row[Any]], done: int) -> None:
            now, gap_ms = transaction.now_ms(), 1000 / rate if rate else 0
            due = [now + round((done + index) * gap_ms) for index in range(len(found))]
            selection.requeue(transaction, found, due)

        return self._in_batches(wanted.within(selection.REQUEUED), change, dry_run)

    def cancel(self, wanted: Filter, *, dry_run: bool = False) -> int:
        def change(transaction: Transaction, found: Sequence[Row[Any]], _done: int) -> None:
            selection.cancel(transaction, found, transaction.now_ms())

        return self._in_batches(wanted.within(selection.CANCELLED), change, dry_run)

    def delete(self, wanted: Filter, *, dry_run: bool = False) -> int:
        def change(transaction: Transaction, found: Sequence[Row[Any]], _done: int) -> None:
            selection.remove(transaction, found)

        return self._in_batches(wanted, change, dry_run)

    def _in_batches(
        self,
        wanted: Filter,
        change: Callable[[Transaction, Sequence[Row[Any]], int], None],
        dry_run: bool,
    ) -> int:
        with self._database.read() as transaction:
            now = transaction.now_ms()
            if dry_run:
                return selection.count(transaction, wanted, now)

        @redone
        def one_batch(ids: Sequence[int], done: int) -> int:
            with self._database.write() as transaction:
                selection.hold_leases(transaction, ids)
                found = transaction.execute(selection.still(wanted, now, ids)).all()
                change(transaction, found, done)
                transaction.ring()
            return len(found)

        done, after = 0, 0
        while True:
            # Found without any lock, however long that takes; then looked at again.
            with self._database.read() as transaction:
                chosen = selection.some(wanted, now, after=after, limit=_BATCH)
                ids = [job.id for job in transaction.execute(chosen)]
            if not ids:
                return done
            done, after = done + one_batch(ids, done), ids[-1]

    # --- retention ----------------------------------------------------------------

    @redone
    def prune(self, *, succeeded_seconds: float, dead_seconds: float, limit: int = 250) -> int:
        ids: list[int] = []
        with self._database.write() as transaction:
            now = transaction.now_ms()
            for state, seconds in ((SUCCEEDED, succeeded_seconds), (DEAD, dead_seconds)):
                before_ms = now - round(seconds * 1000)
                ended = selection.ended(state, before_ms, limit - len(ids))
                ids.extend(transaction.execute(ended).scalars())
            selection.remove_ids(transaction, ids)
        return len(ids)


def _position(continuation: str) -> int:
    if continuation and not continuation.isdecimal():
        raise InvalidInput(f"{continuation!a} is not a continuation that a page gave")
    return int(continuation or 0)
