"""What a queue's database owes whoever moves it: to read all that it knows, and to take it in.

``moving.py`` puts the two halves together, a *source* and a *target*. Every verb may be
called again after a crash and finds what it did before. A record of a page is read as it
is; in between the source is *frozen*, so that nothing in it moves.

Both sides keep notes that survive a crash: the source a :class:`Departure`, with what its
queues were told before, the target an :class:`Arrival`, with how far the copy has come. The
first one that says ``gone`` decides: until then the source can be thawed, from then on the
queue is at the target.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pinq.queue.contract import Queue
from pinq.queue.model import Controls, JobError, State, StoredEvent


@dataclass(frozen=True, slots=True)
class QueueRecord:
    """A queue, without its jobs. ``signals`` are joined by commas; ``allowance`` is what the
    bucket of its rate held, and when.
    """

    name: str
    source: str
    signals: str
    generation: int
    controls: Controls
    allowance: float
    allowance_at_ms: int


class JobRecord(NamedTuple):
    """All that is known of a job, but for the lease that it may be in.

    ``place`` is where the source goes on after it. ``arrival`` grows in order of arrival, and
    is no other job's of the same queue. ``suspect`` is of jobs that wait: of a leased one its
    lease knows. ``generation`` counts for those that succeeded.
    """

    place: str
    arrival: int
    queue: str
    key: str
    state: State
    priority: int
    run_at_ms: int
    attempts: int
    max_attempts: int
    suspect: bool
    generation: int
    forced: bool
    verify: bool
    enqueued_at_ms: int
    finished_at_ms: int | None
    uri: str
    etag: str
    body: bytes
    progress: bytes
    status: str
    errors: tuple[JobError, ...]

    @property
    def weight(self) -> int:
        """About how many bytes it is."""
        return len(self.body) + len(self.progress) + len(self.uri) + len(self.status) + 200


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease, and the jobs that it still holds. Its token does not move."""

    queue: str
    worker: str
    expires_at_ms: int
    solo: bool
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Departure:
    """A source's note: which move it is in, where to, and whether all has gone there."""

    id: str
    to: str
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """A target's note: which move, from where, the last places that were taken in, and
    whether its queues were opened.
    """

    id: str
    origin: str
    jobs_after: str = ""
    events_after: str = ""
    opened: bool = False


class Transferable(Protocol):
    """A queue's database, as a source and as a target of a move."""

    @property
    def queue(self) -> Queue:
        """The queue in it, for everyday verbs."""

    @property
    def address(self) -> str:
        """For notes and messages; without a password."""

    # --- a source -------------------------------------------------------------

    def departure(self) -> Departure | None:
        """The note of the move that this database is the source of."""

    def freeze(self, departure: Departure) -> None:
        """Pause and drain all queues, keep what they were told, and part the leased jobs from
        their leases.

        On return nobody enqueues, leases or finishes any more: whoever was about to has done
        so, or is refused. Called again, it freezes queues that were made since.
        """

    def frozen(self) -> Mapping[str, bool]:
        """The queues that were frozen, and whether each is still as it was left."""

    def thaw(self) -> None:
        """Undo ``freeze``, and forget the move. Leases get new tokens."""

    def depart(self) -> None:
        """Note that all has gone."""

    def queue_records(self) -> Sequence[QueueRecord]:
        """The queues that are there, with what they were told before they were frozen."""

    def job_records(self, after: str, page: int) -> Iterator[JobRecord]:
        """The jobs after a place in order of arrival, read so many at once."""

    def lease_records(self) -> Sequence[LeaseRecord]:
        """The leases that jobs were parted from, and those that are held."""

    def event_records(self, after: str, page: int) -> Iterator[StoredEvent]:
        """The unpublished events after a position in order, read so many at once."""

    def event_count(self) -> int:
        """How many events are unpublished."""

    # --- a target -------------------------------------------------------------

    def arrival(self) -> Arrival | None:
        """The note of the move that this database is, or was last, the target of."""

    def expect(self, arrival: Arrival, records: Sequence[QueueRecord]) -> None:
        """Make the queues, paused and draining; note the move, unless it is known.

        A note of what has gone from here before is forgotten.
        """

    def adopt_jobs(self, records: Sequence[JobRecord]) -> None:
        """Take jobs in, those that there are already excepted, and note the last place.

        Leased ones stay out of anybody's reach until ``adopt_leases``.

        Raises:
            InvalidInput: one of them cannot be kept in this database.
        """

    def adopt_leases(self, records: Sequence[LeaseRecord]) -> None:
        """Lease those of the leases' jobs that are in no lease, under new tokens."""

    def adopt_events(self, events: Sequence[StoredEvent]) -> None:
        """Store events as they are, after all others, and note the last position."""

    def opened(self) -> None:
        """Note that the move is over."""

    def forget_arrival(self) -> None:
        """Forget the move, which was given up."""
