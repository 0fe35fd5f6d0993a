"""The queue on Redis.

Everything of one queue is in one slot (the keys are listed in ``jobs.lua``), and every verb is
one Lua script there, which Redis runs as a whole; scripts, not connections, keep the rules. What
is said of several queues at once, such as ``exchange`` of several, is a script a queue.

How fencing works: ``leased`` has the token of each job that is leased. Whatever ends, releases or
takes back a job takes it out of there, so that a stale token holds nothing.

Whether a worker holds another lease, or a suspect, a script knows of its own queue. The others are
asked before, as far as this object has given the worker leases of them: enough, since a worker is
one process, which opens its queue once.

Waiters are rung for by what makes work or ends it; not by a lease, a renewal, an election or
published events, which leave them nothing to do.
"""

import logging
import secrets
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pinq.errors import InvalidInput, PinqError, QueueDraining
from pinq.queue.admission import check
from pinq.queue.model import (
    Answer,
    Checkpoint,
    Dead,
    Enqueued,
    Exchange,
    Failure,
    Finished,
    Lease,
    LeasedJob,
    NewJob,
    Outcome,
    Retry,
    Snooze,
    StoredEvent,
    Succeeded,
    Verdict,
)
from pinq.queue.redis import outbox
from pinq.queue.redis.bell import Bell
from pinq.queue.redis.filters import STATES
from pinq.queue.redis.operating import OperatedRedisQueue, id_text, text
from pinq.queue.redis.server import RedisServer, packed, unpacked

if TYPE_CHECKING:
    from sqlalchemy import Connection

logger = logging.getLogger(__name__)

_OUTCOMES = (Outcome.ENQUEUED, Outcome.DUPLICATE, Outcome.RERUN)
# A message is kept for people to read; some libraries put a whole input into theirs.
_MESSAGE_LIMIT = 2000


def open_redis(url: str, *, clock: Callable[[], int] | None = None) -> "RedisQueue":
    """Open the queue on the server at ``url``; nothing needs to be set up there.

    Args:
        url: as :mod:`pinq.queue.redis.server` says.
        clock: milliseconds since 1970; the server's own where ``None``.

    Raises:
        ConfigError: the URL, or the password in it, is wrong.
        QueueUnavailable: the server cannot be reached.
        QueueError: it is too old.
    """
    return RedisQueue(RedisServer(url, clock))


class RedisQueue(OperatedRedisQueue):
    """:class:`pinq.queue.contract.Queue` on Redis."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(server)
        self._bell = Bell(server.client, server.channel)
        # Worker to the queues in which it may hold leases.
        self._given: dict[str, set[str]] = {}
        self._leasing = threading.Lock()

    # --- queues ---------------------------------------------------------------

    def declare(self, queue: str, *, source: str, signals: Iterable[str] | None = None) -> None:
        told = False if signals is None else ",".join(sorted(signals))
        self._register(queue)
        if self._run("declare", queue, queue, source, told):
            self._register(queue)

    # --- enqueue --------------------------------------------------------------

    def enqueue(
        self,
        queue: str,
        jobs: Sequence[NewJob],
        *,
        force: bool = False,
        connection: "Connection | None" = None,
    ) -> list[Enqueued]:
        if connection is not None:
            raise InvalidInput("a queue on Redis takes part in no SQL transaction")
        if not jobs:
            return []
        check(jobs)
        rows = [_row(job, force) for job in jobs]
        said = self._run("enqueue", queue, force, False, rows)
        if said == b"absent":
            self._register(queue)
            said = self._run("enqueue", queue, force, queue, rows)
            self._register(queue)
        if said == b"draining":
            raise QueueDraining(
                f"queue {queue!r} is draining and takes no more jobs; "
                f"`pinq queues resume {queue}` ends that"
            )
        return [
            Enqueued(job.key, _OUTCOMES[number >> 2], STATES[number & 3])
            for job, number in zip(jobs, said, strict=True)
        ]

    # --- lease and finish -------------------------------------------------------

    def lease(self, queue: str, limit: int, seconds: float, worker: str) -> Lease | None:
        return self._exchange(queue, (), limit, seconds, worker)[1]

    def finish(self, token: str, verdicts: Sequence[Verdict]) -> Finished:
        said, _ = self._run(
            "exchange", _queue_of(token), uuid.uuid4().hex, [_answered(token, verdicts)], False
        )
        return _finished(said[0])

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
        if dry_run:
            if answers:
                raise InvalidInput("a dry run takes no answers")
            return Exchange((), self._shown(queues, limit, seconds, worker))
        if len(queues) == 1 and all(_queue_of(one.token) == queues[0] for one in answers):
            ended, lease = self._exchange(queues[0], answers, limit, seconds, worker)
            return Exchange(ended, [lease] if lease else [])
        finished = [self.finish(one.token, one.verdicts) for one in answers]
        leases: list[Lease] = []
        try:
            for queue, share in self._shares(queues, limit, seconds, worker).items():
                if (given := self.lease(queue, share, seconds, worker)) is not None:
                    leases.append(given)
        except PinqError as error:
            # What has been done is to be told. If the trouble lasts, the next call meets it.
            if not finished and not leases:
                raise
            logger.warning("queue.exchange_cut_short leases=%d error=%s", len(leases), error)
        return Exchange(finished, leases)

    def _exchange(
        self, queue: str, answers: Sequence[Answer], limit: int, seconds: float, worker: str
    ) -> tuple[list[Finished], Lease | None]:
        """One queue's part, in one script."""
        asked = [_answered(one.token, one.verdicts) for one in answers]
        with self._leasing:  # one thread at a time may learn that the worker holds a suspect
            want = self._want((queue,), limit, seconds, worker)
            said, given = self._run("exchange", queue, uuid.uuid4().hex, asked, want)
            if given:
                self._given.setdefault(worker, set()).add(queue)
        finished = list(map(_finished, said))
        if not given:
            return finished, None
        expires_at_ms, rows = given
        token = f"{queue}:{want['token']}"
        return finished, Lease(token, queue, expires_at_ms, tuple(map(_leased, rows)))

    def _want(
        self, queues: Sequence[str], limit: int, seconds: float, worker: str
    ) -> dict[str, Any]:
        held, solo = self._held_elsewhere(queues, worker)
        return {
            "worker": worker,
            "limit": limit,
            "ms": round(seconds * 1000),
            "token": secrets.token_hex(8),
            "held": held,
            "solo": solo,
        }

    def _held_elsewhere(self, queues: Sequence[str], worker: str) -> tuple[bool, bool]:
        """Whether a worker holds a lease, or one of a suspect, in another queue than these."""
        any_held = any_solo = False
        for queue in self._given.get(worker, set()).difference(queues):
            key_of = partial(self._server.key_of, queue)
            with self._server.translated():
                held = self._server.client.hexists(key_of("held"), worker)
                solo = self._server.client.hexists(key_of("solo"), worker)
            if not held:
                self._given[worker].discard(queue)
            any_held, any_solo = any_held or bool(held), any_solo or bool(solo)
        return any_held, any_solo

    def _offers(
        self, queues: Sequence[str], want: Mapping[str, Any], seed: str | bool
    ) -> list[tuple[str, Sequence[Any]]]:
        """What could be leased from several queues, the first first, up to the limit.

        A suspect is alone, or not there at all if the worker holds something.
        """
        offers: list[tuple[str, Sequence[Any]]] = []
        holds = False
        for queue in dict.fromkeys(queues):
            rows, held = self._run("offer", queue, seed, want)
            offers += [(queue, row) for row in rows]
            holds = holds or held
        offers.sort(key=lambda offer: (offer[1][0], int(offer[1][1]), offer[1][2]))
        suspects = (index for index, (_, row) in enumerate(offers) if row[_SUSPECT])
        first = next(suspects, len(offers))
        if first == 0:
            return [] if holds else offers[:1]
        return offers[: min(first, want["limit"])]

    def _shares(
        self, queues: Sequence[str], limit: int, seconds: float, worker: str
    ) -> Mapping[str, int]:
        """How many jobs to lease from each queue; expired leases are taken back."""
        # What is taken back from one queue decides what the worker may have of the others.
        self._offers(queues, self._want((), limit, seconds, worker), uuid.uuid4().hex)
        want = self._want((), limit, seconds, worker)
        return Counter(queue for queue, _ in self._offers(queues, want, uuid.uuid4().hex))

    def _shown(
        self, queues: Sequence[str], limit: int, seconds: float, worker: str
    ) -> Sequence[Lease]:
        """The leases that an exchange would give."""
        want = self._want((), limit, seconds, worker)
        found: dict[str, list[LeasedJob]] = {}
        for queue, row in self._offers(queues, want, False):
            found.setdefault(queue, []).append(_leased(row))
        expires_at_ms = self.now_ms() + want["ms"]
        return [Lease("", queue, expires_at_ms, tuple(jobs)) for queue, jobs in found.items()]

    # --- other words about a lease ------------------------------------------------

    def renew(self, token: str, seconds: float) -> bool:
        ms = round(seconds * 1000)
        return bool(self._run("renew", _queue_of(token), _nonce_of(token), ms))

    def checkpoint(
        self, token: str, checkpoints: Sequence[Checkpoint], *, seconds: float | None = None
    ) -> Sequence[int]:
        ms = False if seconds is None else round(seconds * 1000)
        rows = list(map(_checkpoint, checkpoints))
        refused = self._run("checkpoint", _queue_of(token), _nonce_of(token), ms, rows)
        return sorted(map(int, refused))

    def release(self, token: str, ids: Sequence[int] | None = None) -> int:
        given = False if ids is None else list(map(id_text, ids))
        return int(self._run("release", _queue_of(token), _nonce_of(token), given))

    def holders(self) -> list[str]:
        found: set[str] = set()
        with self._server.translated():
            for queue in self._names():
                workers: Any = self._server.client.hkeys(self._server.key_of(queue, "held"))
                found.update(map(text, workers))
            roles: Any = self._server.client.hvals(self._server.roles)
        found.update(text(role.partition(b" ")[2]) for role in roles)
        return sorted(found)

    def expire(self, holder: str) -> int:
        self._server.run("resign", self._server.roles, False, holder)
        return sum(self._run("expire", queue, holder) for queue in self._names())

    # --- what is left, and time -----------------------------------------------------

    def unfinished(self, names: Iterable[str], *, scheduled: bool = True) -> bool:
        return any(self._run("unfinished", name, scheduled) for name in names)

    def next_due_ms(self, queue: str) -> int | None:
        due = self._run("next_due", queue)
        return None if due is False else int(due)

    def now_ms(self) -> int:
        return self._server.now_ms()

    def wait(self, seen: int, timeout_seconds: float) -> int:
        return self._bell.wait(seen, timeout_seconds)

    # --- outbox ---------------------------------------------------------------

    def unpublished(self, limit: int) -> list[StoredEvent]:
        return outbox.unpublished(self._server, self._names(), limit)

    def mark_published(self, positions: Sequence[int | str]) -> None:
        for queue in outbox.mark_published(self._server, positions):
            self._forget_name(queue)

    # --- roles ----------------------------------------------------------------

    def elect(self, role: str, holder: str, seconds: float) -> bool:
        ms = round(seconds * 1000)
        return bool(self._server.run("elect", self._server.roles, role, holder, ms))

    def resign(self, role: str, holder: str) -> None:
        self._server.run("resign", self._server.roles, role, holder)

    def close(self) -> None:
        self._bell.close()
        self._server.close()


def _queue_of(token: str) -> str:
    queue, mark, _ = token.rpartition(":")
    if not mark:
        raise InvalidInput(f"{token!r} is no lease's token")
    return queue


def _nonce_of(token: str) -> str:
    return token.rpartition(":")[2]


def _or_false(value: object) -> object:
    return False if value is None else value


def _row(job: NewJob, force: bool) -> tuple[Any, ...]:
    """A job as ``enqueue.lua`` reads it."""
    fixed = (job.key, job.uri, job.verify, job.etag, force, job.priority, job.max_attempts)
    return (job.key, job.priority, job.run_at_ms, packed(fixed), job.body, job.status)


def _checkpoint(point: Checkpoint) -> tuple[Any, ...]:
    """A checkpoint as ``checkpoint.lua`` reads it."""
    left = map(_or_false, (point.body, point.progress, point.run_at_ms))
    return (id_text(point.id), point.status, *left)


def _answered(token: str, verdicts: Sequence[Verdict]) -> tuple[str, list[Any]]:
    """An answer as ``exchange.lua`` reads it; of two verdicts on one job the last counts."""
    return _nonce_of(token), [_verdict(v) for v in {v.id: v for v in verdicts}.values()]


def _finished(said: Sequence[Any]) -> Finished:
    """What ``answer`` in ``answering.lua`` returns."""
    succeeded, retried, snoozed, dead, refused = said
    return Finished(succeeded, retried, snoozed, dead, sorted(map(int, refused)))


def _verdict(verdict: Verdict) -> str | tuple[Any, ...]:
    """A verdict as ``answering.lua`` reads it."""
    match verdict:
        case Succeeded(id_, event, status):
            if event is None and not status:
                return id_text(id_)
            return (id_text(id_), "succeeded", status, event is not None and outbox.written(event))
        case Retry():
            delay_ms = round(verdict.delay_seconds * 1000)
            body = _or_false(verdict.body)
            return (
                id_text(verdict.id),
                "retry",
                verdict.status,
                *_failed(verdict.failure),
                delay_ms,
                body,
            )
        case Snooze():
            return (
                id_text(verdict.id),
                "snooze",
                verdict.status,
                round(verdict.delay_seconds * 1000),
            )
        case Dead():
            return (
                id_text(verdict.id),
                "dead",
                verdict.status,
                *_failed(verdict.failure),
                False,
                False,
            )


def _failed(failure: Failure) -> tuple[str, str]:
    return failure.failure_class.value, failure.message[:_MESSAGE_LIMIT]


# Where a row of ``offered`` in ``leasing.lua`` says that the job is a suspect.
_SUSPECT = 3


def _leased(row: Sequence[Any]) -> LeasedJob:
    _, _, id_, _, attempt, written, body, progress = row
    added, _, fixed = written.partition(b" ")
    key, uri, verify, etag, force, priority, most = unpacked(fixed)
    return LeasedJob(
        int(id_),
        key,
        uri,
        verify,
        etag,
        force,
        int(added),
        attempt,
        most,
        priority,
        body,
        progress,
    )
