"""What an operator does with a queue: look at its jobs, control it, change many at once."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row

from pinq.errors import InvalidInput
from pinq.queue import controls, selection, views
from pinq.queue.doorbell import Doorbell
from pinq.queue.model import EVERYTHING, Controls, Counts, Filter, Job, Page
from pinq.queue.sqlite import SqliteDatabase

# Jobs changed in one transaction by a verb that may change many; leases wait no longer.
_BATCH = 250


class OperatedQueue:
    """The operator's half of :class:`pinq.queue.contract.Queue`; workers' is ``sql.py``."""

    def __init__(
        self, database: SqliteDatabase, doorbell: Doorbell, clock: Callable[[], int]
    ) -> None:
        self._database = database
        self._doorbell = doorbell
        self._clock = clock

    # --- controls -------------------------------------------------------------

    def controls(self, queue: str) -> Controls:
        with self._database.read() as connection:
            found = controls.find(connection, queue)
            return found.controls if found else Controls()

    def control(self, queue: str, told: Controls) -> None:
        for limit in (told.rate, told.in_flight):
            if limit is not None and not 0 < limit < math.inf:
                raise InvalidInput(f"a limit of {limit} is not above zero; pause the queue instead")
        with self._database.write() as connection:
            found = controls.find(connection, queue)
            if found is None:
                raise InvalidInput(f"there is no queue {queue!r}")
            controls.change(connection, found, told, self._clock())
        self._doorbell.ring()

    def drop(self, queue: str, *, force: bool = False) -> int:
        with self._database.write() as connection:
            found = controls.find(connection, queue)
            if found is None:
                return 0
            controls.close(connection, found, force=force)
        total = 0
        while True:
            with self._database.write() as connection:
                deleted = controls.delete_some(connection, found)
            if not deleted:
                return total
            total += deleted

    # --- views ----------------------------------------------------------------

    def lookup(self, queue: str, keys: Sequence[str]) -> dict[str, Job]:
        with self._database.read() as connection:
            return {job.key: job for job in views.by_key(connection, queue, keys)}

    def page(self, wanted: Filter = EVERYTHING, *, after: str = "", limit: int = 1000) -> Page:
        with self._database.read() as connection:
            found = views.page(
                connection, wanted, self._clock(), after=_position(after), limit=limit
            )
        return Page(found, str(found[-1].id) if len(found) == limit else None)

    def scan(self, wanted: Filter = EVERYTHING, *, batch: int = 1000) -> Iterator[Job]:
        after: str | None = ""
        while after is not None:
            page = self.page(wanted, after=after, limit=batch)
            yield from page.jobs
            after = page.continuation

    def group(self, by: str, wanted: Filter = EVERYTHING) -> dict[str, int]:
        if by not in selection.GROUPS:
            raise InvalidInput(f"{by!r} is none of {', '.join(selection.GROUPS)}")
        with self._database.read() as connection:
            return selection.grouped(connection, wanted, by, self._clock())

    def count(self, queue: str) -> Counts:
        with self._database.read() as connection:
            return views.counts(connection, queue, self._clock())

    # --- many jobs at once ------------------------------------------------------

    def requeue(self, wanted: Filter, *, rate: float | None = None, dry_run: bool = False) -> int:
        if rate is not None and not 0 < rate < math.inf:
            raise InvalidInput(f"a rate of {rate} is not above zero")

        def change(connection: Connection, found: Sequence[Row[Any]], done: int) -> None:
            now, gap_ms = self._clock(), 1000 / rate if rate else 0
            due = [now + round((done + index) * gap_ms) for index in range(len(found))]
            selection.requeue(connection, found, due)

        return self._in_batches(wanted.within(selection.REQUEUED), change, dry_run)

    def cancel(self, wanted: Filter, *, dry_run: bool = False) -> int:
        def change(connection: Connection, found: Sequence[Row[Any]], _done: int) -> None:
            selection.cancel(connection, found, self._clock())

        return self._in_batches(wanted.within(selection.CANCELLED), change, dry_run)

    def delete(self, wanted: Filter, *, dry_run: bool = False) -> int:
        def change(connection: Connection, found: Sequence[Row[Any]], _done: int) -> None:
            selection.remove(connection, found)

        return self._in_batches(wanted, change, dry_run)

    def _in_batches(
        self,
        wanted: Filter,
        change: Callable[[Connection, Sequence[Row[Any]], int], None],
        dry_run: bool,
    ) -> int:
        if dry_run:
            with self._database.read() as connection:
                return selection.count(connection, wanted, self._clock())
        done, after, now = 0, 0, self._clock()
        while True:
            # Found without the write lock, however long that takes; then looked at again.
            with self._database.read() as connection:
                chosen = selection.some(wanted, now, after=after, limit=_BATCH)
                ids = [job.id for job in connection.execute(chosen)]
            if not ids:
                break
            with self._database.write() as connection:
                found = connection.execute(selection.still(wanted, now, ids)).all()
                change(connection, found, done)
            done, after = done + len(found), ids[-1]
        self._doorbell.ring()
        return done


def _position(continuation: str) -> int:
    if continuation and not continuation.isdecimal():
        raise InvalidInput(f"{continuation!a} is not a continuation that a page gave")
    return int(continuation or 0)
