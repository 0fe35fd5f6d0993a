"""What a queue owes: the verbs, what each takes, returns, raises, and what is atomic.

Every verb is one transaction, except where it says otherwise. What a verb reports has
been committed and survives a crash (on SQLite, with every commit synced; on a server as its
settings have it). Verbs are safe to call from several threads and processes.

A job has one identity, (queue, key), and at most one row. A *lease* is a claim
on a batch of jobs; its token fences every later word about them: a holder that
was too slow is told so and changes nothing.

Time is the queue's own (``now_ms``): the server's, where there is a server. A caller's
clock decides nothing, unless the caller names a time of day.

Any verb raises :class:`~pinq.errors.QueueUnavailable` when the database cannot
be reached or stays locked, and :class:`~pinq.errors.StorageFull` when there is no
space. Nothing of the verb has happened then, with one exception that no queue can avoid: a
connection that is lost while a commit is on its way leaves open whether it arrived. Every
verb can be called again in that case, and says what it finds: duplicates, or refusals.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from pinq.queue.model import (
    EVERYTHING,
    Answer,
    Checkpoint,
    Controls,
    Counts,
    Enqueued,
    Exchange,
    Filter,
    Finished,
    Job,
    Lease,
    NewJob,
    Page,
    StoredEvent,
    Verdict,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Queue(Protocol):
    """A durable queue of jobs, and the outbox of events written with them."""

    def declare(self, queue: str, *, source: str, signals: Iterable[str] | None = None) -> None:
        """Make a queue, or update it.

        ``source`` is the origin of the events that the queue itself writes (a
        job that dies because its lease expired for the last time). ``signals``
        are what its workers compute now, as ``name@version``; ``None`` leaves
        what an earlier call said.
        """

    def queues(self) -> list[str]:
        """The names of all queues, sorted."""

    def controls(self, queue: str) -> Controls:
        """What the queue was told last; the defaults where there is no such queue."""

    def control(self, queue: str, controls: Controls) -> None:
        """Pause, drain or limit a queue, or end that; every worker obeys from now on.

        What is leased goes on. A paused queue still takes back expired leases.

        Raises:
            InvalidInput: there is no such queue, or a limit is not above zero.
        """

    def drop(self, queue: str, *, force: bool = False) -> int:
        """Delete a queue and the jobs in it; returns how many. Its events stay in the outbox.

        Not one transaction: it pauses and drains the queue, then deletes in batches. Called
        again after a crash, it goes on. Leases on its jobs are lost.

        Raises:
            QueueError: it holds jobs that have not succeeded, and ``force`` is not set.
        """

    def enqueue(
        self,
        queue: str,
        jobs: Sequence[NewJob],
        *,
        force: bool = False,
        connection: "Connection | None" = None,
    ) -> list[Enqueued]:
        """Add jobs; one answer an item, in order.

        A key that has no job is ``enqueued``. A live job, or a dead one, is a
        ``duplicate``. A succeeded one is a ``duplicate`` too, unless the signals
        declared for the queue have changed since it finished: then it is
        ``rerun``. ``force`` reruns whatever is not live, and has the worker compute
        what is stored already. A key that comes twice
        in one call is a duplicate the second time. All or nothing.

        ``connection`` is the caller's own, to the same database, in a transaction that the
        caller ends: the jobs exist when that commits. On SQLite it must have begun with
        ``BEGIN IMMEDIATE``.

        Raises:
            QueueDraining: the queue takes no more jobs.
            InvalidInput: a job's priority is not 1 to 9, or its ``max_attempts`` not above
                zero; or a connection was given to a queue that is in no SQL database.
        """

    def lease(self, queue: str, limit: int, seconds: float, worker: str) -> Lease | None:
        """Claim up to ``limit`` due jobs for ``seconds``; ``None`` when there are none.

        In order of priority (1 first), then due time, then arrival, and no more than
        the queue's controls admit. Each job's attempt is counted here. ``worker`` is
        the caller's incarnation.

        First, leases of this queue that have expired are taken back: their jobs
        gain a ``worker_crash`` error and become pending again, or dead if that
        was their last attempt, and are marked as suspects. A suspect is leased
        alone, and only to a worker that holds nothing else, which then gets
        nothing else until it has answered: an image that kills its worker
        spends only its own attempts.
        """

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
        """Finish what was leased earlier and lease the next, in one transaction.

        ``limit`` counts over all ``queues``: the jobs with the highest priority are taken,
        then by due time, whichever queue they are in, and there is one lease a queue. Each
        queue's controls hold. Answers are taken as ``finish`` takes them, and come first.
        ``dry_run`` shows the leases that the call would give (their tokens are empty) and
        changes nothing; it takes no answers, and sees expired leases as still held.

        Where the queues are in different slots of a Redis cluster, each queue's part is atomic
        by itself.

        Raises:
            InvalidInput: answers to a dry run.
        """

    def renew(self, token: str, seconds: float) -> bool:
        """Let the lease expire ``seconds`` from now; false when it is lost."""

    def holders(self) -> list[str]:
        """The workers that hold leases, and the holders of roles."""

    def expire(self, holder: str) -> int:
        """End every lease and role of a holder that is known to have died, as if its time were up.

        Returns how many leases that were. A holder that lives after all is refused, once
        somebody else has leased from the queue, as with any lease that was lost.
        """

    def finish(self, token: str, verdicts: Sequence[Verdict]) -> Finished:
        """End attempts, and store their events, in one transaction.

        Jobs that the token does not hold are refused and reported. A ``Retry``
        of a job on its last attempt makes it dead. Each dead job stores a
        ``pinq.job.dead`` event. A ``Snooze`` gives the attempt back. Jobs of the lease that
        no verdict names stay leased.
        """

    def checkpoint(
        self, token: str, checkpoints: Sequence[Checkpoint], *, seconds: float | None = None
    ) -> Sequence[int]:
        """Write down how far jobs have come; returns the ids that the token does not hold.

        A later attempt gets the body and the progress as they were left here. With
        ``seconds`` the lease is renewed too. A checkpoint with ``run_at_ms`` ends the job's
        place in the lease, as a verdict does.
        """

    def release(self, token: str, ids: Sequence[int] | None = None) -> int:
        """Give jobs back (all that the token holds, by default); their attempt is not counted.

        Returns how many were given back.
        """

    def lookup(self, queue: str, keys: Sequence[str]) -> dict[str, Job]:
        """The jobs of those keys, with their errors; absent keys are left out."""

    def page(self, wanted: Filter = EVERYTHING, *, after: str = "", limit: int = 1000) -> Page:
        """The next jobs that ``wanted`` means, with their errors, in order of arrival.

        ``after`` is an earlier page's continuation. A job that stays as it is, is on one
        page, whatever happens to others between the pages.

        Raises:
            InvalidInput: ``after`` is not a continuation.
        """

    def scan(self, wanted: Filter = EVERYTHING, *, batch: int = 1000) -> Iterator[Job]:
        """All such jobs, read by the page.

        Not a snapshot: a job that changes meanwhile is seen before or after.
        """

    def group(self, by: str, wanted: Filter = EVERYTHING) -> dict[str, int]:
        """How many such jobs there are by ``state``, ``queue``, ``priority`` or ``error``.

        ``error`` is the class of the last failure; ``none`` where there was none. Most first.

        Raises:
            InvalidInput: ``by`` is something else.
        """

    def count(self, queue: str) -> Counts:
        """How many jobs are in each state."""

    def unfinished(self, queues: Iterable[str], *, scheduled: bool = True) -> bool:
        """Whether any job is pending or leased; cheap however many there are.

        ``scheduled=False`` leaves out jobs that have not been tried and are not due.
        """

    def requeue(self, wanted: Filter, *, rate: float | None = None, dry_run: bool = False) -> int:
        """Make the dead ones of these jobs pending again, with all their attempts.

        With ``rate``, so many fall due a second, beginning now. Returns how many;
        ``dry_run`` only counts. In bounded transactions: after a crash call it again.

        Raises:
            InvalidInput: the rate is not above zero.
        """

    def cancel(self, wanted: Filter, *, dry_run: bool = False) -> int:
        """Make the pending and leased ones of these jobs dead, as ``cancelled``, with their events.

        Whoever holds one is refused when it answers. Returns and is bounded as ``requeue``.
        """

    def delete(self, wanted: Filter, *, dry_run: bool = False) -> int:
        """Delete these jobs, and all that is known of them; no events.

        Whoever holds one is refused when it answers. Returns and is bounded as ``requeue``.
        """

    def prune(self, *, succeeded_seconds: float, dead_seconds: float, limit: int = 250) -> int:
        """Delete jobs that succeeded, or died, longer ago than that; no more than ``limit``.

        Returns how many; fewer than ``limit`` when none are left. No events.
        """

    def next_due_ms(self, queue: str) -> int | None:
        """When ``lease`` could next find something: a job falls due and the queue's controls
        admit it, or a lease expires. ``None``: not before somebody changes something.
        """

    def now_ms(self) -> int:
        """The queue's clock."""

    def wait(self, seen: int, timeout_seconds: float) -> int:
        """Block until anybody has committed since ``seen``, or the timeout.

        Returns the number to pass as ``seen`` next time; pass 0 at first, read
        the queue, then wait. A change between the reading and the waiting is
        not missed. It may return early without a change.
        """

    def unpublished(self, limit: int) -> list[StoredEvent]:
        """The oldest events that are not marked published, in order per subject."""

    def mark_published(self, positions: Sequence[int | str]) -> None:
        """These were accepted by every sink; they are not delivered again."""

    def elect(self, role: str, holder: str, seconds: float) -> bool:
        """Become or stay the only holder of ``role`` for ``seconds``; false if another is."""

    def resign(self, role: str, holder: str) -> None:
        """Give a role up, if held."""

    def close(self) -> None:
        """Close connections; safe to call twice."""
