"""The data that crosses the queue's border. All times are milliseconds since 1970.

Frozen dataclasses; named tuples where a batch makes hundreds of them, since a
frozen dataclass takes five times as long to make.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from pinq.errors import FailureClass


class State(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    LEASED = "leased"
    SUCCEEDED = "succeeded"
    DEAD = "dead"


class Outcome(StrEnum):
    """What an enqueue did with one item."""

    ENQUEUED = "enqueued"
    DUPLICATE = "duplicate"
    RERUN = "rerun"


class NewJob(NamedTuple):
    """One item to enqueue.

    ``verify`` says that ``key`` is the digest of the bytes at ``uri``, so that a
    worker can tell when they have changed; ``etag`` is what a cheap look at the
    source said then (a file's size and mtime), so that it need not hash again.

    ``body`` is the caller's, opaque to the queue; ``status`` is a note for people, to which
    workers append. ``run_at_ms`` of 0 is at once; ``max_attempts`` counts the first.
    """

    key: str
    uri: str = ""
    verify: bool = False
    etag: str = ""
    priority: int = 5
    run_at_ms: int = 0
    max_attempts: int = 5
    body: bytes = b""
    status: str = ""


class Enqueued(NamedTuple):
    """The answer for one item; ``state`` is the job's state afterwards."""

    key: str
    outcome: Outcome
    state: State


class LeasedJob(NamedTuple):
    """One job of a lease. ``attempt`` counts from 1 and includes this one.

    ``force`` says that what is stored already is to be computed again. ``progress`` is what an
    earlier checkpoint left.
    """

    id: int
    key: str
    uri: str
    verify: bool
    etag: str
    force: bool
    enqueued_at_ms: int
    attempt: int
    max_attempts: int
    priority: int = 5
    body: bytes = b""
    progress: bytes = b""


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim on jobs of one queue until ``expires_at_ms``, under ``token``."""

    token: str
    queue: str
    expires_at_ms: int
    jobs: tuple[LeasedJob, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    failure_class: FailureClass
    message: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something to announce; the queue adds an id and the time when it stores it."""

    type: str
    source: str
    subject: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event in the outbox. ``id`` is the same at every delivery.

    ``position`` is the outbox's name for it, and means nothing elsewhere.
    """

    position: int | str
    id: str
    type: str
    source: str
    subject: str
    time_ms: int
    data: str


class Succeeded(NamedTuple):
    """The job is done; ``event`` is announced with it, ``status`` appended to the job's."""

    id: int
    event: Event | None = None
    status: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed; try again after ``delay_seconds``, or dead if it was the last.

    ``body`` replaces the job's, unless it is ``None``.
    """

    id: int
    failure: Failure
    delay_seconds: float
    body: bytes | None = None
    status: str = ""


@dataclass(frozen=True, slots=True)
class Snooze:
    """Not now: pending again after ``delay_seconds``, and the attempt is not counted."""

    id: int
    delay_seconds: float
    status: str = ""


@dataclass(frozen=True, slots=True)
class Dead:
    """The job failed for a reason that no retry mends."""

    id: int
    failure: Failure
    status: str = ""


Verdict = Succeeded | Retry | Snooze | Dead


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdicts on a lease's jobs, under its token."""

    token: str
    verdicts: Sequence[Verdict]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a leased job has come. ``None`` leaves what was there.

    ``status`` is appended. With ``run_at_ms`` the job leaves its lease and is pending until
    then, with all its attempts: a job that runs again and again, or in stages, each of which
    has its own attempts.
    """

    id: int
    body: bytes | None = None
    progress: bytes | None = None
    status: str = ""
    run_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What a finish did: how many jobs ended how, and which were refused.

    ``refused`` holds the ids of jobs that the token no longer holds; nothing of
    theirs was changed and none of their events were stored.
    """

    succeeded: int = 0
    retried: int = 0
    snoozed: int = 0
    dead: int = 0
    refused: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Exchange:
    """What an exchange did: one ``Finished`` an answer, in order, and the new leases."""

    finished: Sequence[Finished]
    leases: Sequence[Lease]


@dataclass(frozen=True, slots=True)
class JobError:
    """One failed attempt."""

    failure_class: str
    message: str
    at_ms: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job as an onlooker sees it."""

    id: int
    queue: str
    key: str
    uri: str
    state: State
    priority: int
    run_at_ms: int
    attempts: int
    max_attempts: int
    enqueued_at_ms: int
    finished_at_ms: int | None
    body: bytes = b""
    progress: bytes = b""
    status: str = ""
    errors: tuple[JobError, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, and where the next begin; ``continuation`` is ``None`` after the last."""

    jobs: Sequence[Job]
    continuation: str | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs are meant: those that match all that is given.

    ``error_class`` is that of the last failure. ``uri`` and ``body`` are patterns for the
    whole: ``*`` stands for anything, ``?`` for one character (of ``body``: one byte).
    ``scheduled`` chooses the pending jobs that are not yet due, or leaves them out.
    """

    queue: str | None = None
    keys: Sequence[str] | None = None
    states: Collection[State] | None = None
    priorities: Collection[int] | None = None
    error_class: str | None = None
    uri: str | None = None
    body: bytes | None = None
    scheduled: bool | None = None

    def within(self, states: Collection[State]) -> "Filter":
        """The same, of jobs in one of ``states``."""
        chosen = states if self.states is None else [s for s in states if s in self.states]
        return replace(self, states=tuple(chosen))


EVERYTHING = Filter()


@dataclass(frozen=True, slots=True)
class Controls:
    """What an operator has told a queue; it holds for all workers at once.

    ``paused``: nothing is leased. ``draining``: nothing is enqueued. ``rate``: at most so
    many jobs are leased a second, on average; ``in_flight``: at most so many are leased
    at once; ``None`` is no limit.
    """

    paused: bool = False
    draining: bool = False
    rate: float | None = None
    in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many jobs of a queue are in each state; ``scheduled`` are the pending not yet due."""

    pending: int = 0
    scheduled: int = 0
    leased: int = 0
    succeeded: int = 0
    dead: int = 0
    dead_by_class: Mapping[str, int] = field(default_factory=dict)
