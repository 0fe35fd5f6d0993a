"""A queue as plain dicts, obviously right and slow: what every backend is compared with.

It answers as the contract says. Where the contract leaves a choice (the token of a lease, the
ids of jobs, how soon a clock that went back is noticed) it takes what the real queue chose, and
checks that it was allowed.
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from pinq.errors import FailureClass, InvalidInput, QueueDraining, QueueError
from pinq.queue.model import (
    Answer,
    Checkpoint,
    Controls,
    Counts,
    Dead,
    Enqueued,
    Exchange,
    Filter,
    Finished,
    Job,
    JobError,
    Lease,
    LeasedJob,
    NewJob,
    Outcome,
    Retry,
    Snooze,
    State,
    Succeeded,
    Verdict,
)

from ..conftest import FakeClock

LIVE = (State.PENDING, State.LEASED)


@dataclass
class Row:
    """One job."""

    queue: str
    key: str
    arrival: int
    enqueued_at_ms: int
    id: int = -1
    asked: NewJob = field(default_factory=lambda: NewJob(""))
    state: State = State.PENDING
    run_at_ms: int = 0
    attempts: int = 0
    body: bytes = b""
    progress: bytes = b""
    status: str = ""
    force: bool = False
    suspect: bool = False
    token: str | None = None
    generation: int = 0
    finished_at_ms: int | None = None
    errors: list[JobError] = field(default_factory=list)

    def leave(self, run_at_ms: int | None = None) -> None:
        """Be pending again, and nobody's; at another time, if one is given."""
        self.state, self.token = State.PENDING, None
        self.run_at_ms = self.run_at_ms if run_at_ms is None else run_at_ms

    def end(self, state: State, now: int) -> None:
        self.state, self.token, self.suspect, self.finished_at_ms = state, None, False, now

    def note(self, status: str) -> None:
        """Another line of the status."""
        self.status = "\n".join(line for line in (self.status, status) if line)

    def seen(self) -> Job:
        """As an onlooker sees it; the wording of errors is the backend's."""
        return Job(
            id=self.id,
            queue=self.queue,
            key=self.key,
            uri=self.asked.uri,
            state=self.state,
            priority=self.asked.priority,
            run_at_ms=self.run_at_ms,
            attempts=self.attempts,
            max_attempts=self.asked.max_attempts,
            enqueued_at_ms=self.enqueued_at_ms,
            finished_at_ms=self.finished_at_ms,
            body=self.body,
            progress=self.progress,
            status=self.status,
            errors=tuple(self.errors),
        )

    def leased(self) -> LeasedJob:
        """As a worker gets it that leases it now."""
        return LeasedJob(
            id=self.id,
            key=self.key,
            uri=self.asked.uri,
            verify=self.asked.verify,
            etag=self.asked.etag,
            force=self.force,
            enqueued_at_ms=self.enqueued_at_ms,
            attempt=self.attempts + 1,
            max_attempts=self.asked.max_attempts,
            priority=self.asked.priority,
            body=self.body,
            progress=self.progress,
        )


class Bucket:
    """The tokens of a rate limit: between ``least`` and ``most`` of them.

    When the clock goes back a queue may notice at once, or only when it next leases. The two
    meet again when the bucket is full.
    """

    def __init__(self, rate: float, now: int) -> None:
        self.rate = rate
        self.full = max(1.0, rate)
        self.least, self.least_at = self.full, now
        self.most, self.most_at = self.full, now

    def _filled(self, level: float, since: int, now: int) -> float:
        return min(self.full, level + max(0, now - since) * self.rate / 1000)

    def tick(self, now: int) -> None:
        self.most, self.most_at = self._filled(self.most, self.most_at, now), now

    def levels(self, now: int) -> tuple[float, float]:
        return self._filled(self.least, self.least_at, now), self.most

    def spend(self, count: int, now: int) -> None:
        self.least, self.least_at = max(0, self.levels(now)[0] - count), now
        self.most = max(0, self.most - count)

    def look(self, now: int) -> None:
        self.least_at = min(self.least_at, now)


@dataclass
class ModelQueue:
    """What is known of a queue itself."""

    source: str
    signals: frozenset[str] = frozenset()
    generation: int = 0
    controls: Controls = field(default_factory=Controls)
    bucket: Bucket | None = None


@dataclass
class ModelLease:
    queue: str
    worker: str
    expires_at_ms: int
    solo: bool


class Model:
    """The verbs of :class:`pinq.queue.contract.Queue`."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.queues: dict[str, ModelQueue] = {}
        self.jobs: dict[tuple[str, str], Row] = {}
        self.leases: dict[str, ModelLease] = {}
        # (source, type, subject) in order
        self.events: list[tuple[str, str, str]] = []
        self._arrivals = 0

    def tick(self) -> None:
        """The clock was moved."""
        for queue in self.queues.values():
            if queue.bucket:
                queue.bucket.tick(self.clock())

    # --- queues ---------------------------------------------------------------

    def declare(self, queue: str, *, source: str, signals: Iterable[str] | None = None) -> None:
        known = self.queues.setdefault(queue, ModelQueue(source))
        known.source = source
        if signals is not None and known.signals != frozenset(signals):
            known.generation += 1 if known.signals else 0
            known.signals = frozenset(signals)

    def control(self, queue: str, told: Controls) -> None:
        if queue not in self.queues:
            raise InvalidInput
        known = self.queues[queue]
        if told.rate != known.controls.rate:
            known.bucket = Bucket(told.rate, self.clock()) if told.rate is not None else None
        known.controls = told

    def drop(self, queue: str, *, force: bool = False) -> int:
        mine = [row for row in self.jobs.values() if row.queue == queue]
        if not force and any(row.state is not State.SUCCEEDED for row in mine):
            raise QueueError
        self.queues.pop(queue, None)
        self.forget(mine)
        return len(mine)

    # --- enqueue --------------------------------------------------------------

    def enqueue(self, queue: str, jobs: Sequence[NewJob], *, force: bool = False) -> list[Enqueued]:
        if not jobs:
            return []
        known = self.queues.setdefault(queue, ModelQueue(f"/pinq/{queue}"))
        if known.controls.draining:
            raise QueueDraining
        return [self._enqueue(queue, known, job, force) for job in jobs]

    def _enqueue(self, queue: str, known: ModelQueue, job: NewJob, force: bool) -> Enqueued:
        now = self.clock()
        old = self.jobs.get((queue, job.key))
        if old is None:
            self._arrivals += 1
            row, outcome = Row(queue, job.key, self._arrivals, now), Outcome.ENQUEUED
        else:
            changed = old.state is State.SUCCEEDED and old.generation != known.generation
            if old.state in LIVE or not (force or changed):
                return Enqueued(job.key, Outcome.DUPLICATE, old.state)
            row, outcome = Row(queue, job.key, old.arrival, now, old.id), Outcome.RERUN
        row.asked, row.force, row.body, row.status = job, force, job.body, job.status
        row.run_at_ms = job.run_at_ms or now
        self.jobs[queue, job.key] = row
        return Enqueued(job.key, outcome, State.PENDING)

    # --- lease ----------------------------------------------------------------

    def lease(
        self, queue: str, limit: int, seconds: float, worker: str, seen: Lease | None
    ) -> Lease | None:
        given = self.exchange([queue], limit, seconds, worker, Exchange((), [seen] if seen else []))
        return given.leases[0] if given.leases else None

    def exchange(
        self,
        queues: Sequence[str],
        limit: int,
        seconds: float,
        worker: str,
        seen: Exchange,
        *,
        answers: Sequence[Answer] = (),
        dry_run: bool = False,
    ) -> Exchange:
        """``seen`` is what the real queue gave, for its tokens."""
        if dry_run and answers:
            raise InvalidInput
        finished = [self.finish(answer.token, answer.verdicts) for answer in answers]
        known = [queue for queue in queues if queue in self.queues]
        if not dry_run:
            self._take_back_expired(known)
        given = {lease.queue: lease for lease in seen.leases}
        leases: list[Lease] = []
        room = {queue: self._room(queue, given.get(queue), dry_run) for queue in known}
        picked = self._pick(room, limit, worker)
        for queue in known:
            rows = [row for row in picked if row.queue == queue]
            if not rows:
                continue
            token = given[queue].token if queue in given else "the real queue gave none"
            expires = self.clock() + round(seconds * 1000)
            if dry_run:
                token, expires = "", given[queue].expires_at_ms if queue in given else 0
            leases.append(Lease(token, queue, expires, tuple(row.leased() for row in rows)))
            if not dry_run:
                self.leases[token] = ModelLease(queue, worker, expires, rows[0].suspect)
                self._claim(queue, token, rows)
        return Exchange(finished, leases)

    def _claim(self, queue: str, token: str, rows: Sequence[Row]) -> None:
        for row in rows:
            row.state, row.token, row.attempts = State.LEASED, token, row.attempts + 1
        if bucket := self.queues[queue].bucket:
            bucket.spend(len(rows), self.clock())

    def _pick(self, room: dict[str, int], limit: int, worker: str) -> list[Row]:
        mine = [lease for lease in self.leases.values() if lease.worker == worker]
        if any(lease.solo for lease in mine):
            return []
        due = [row for queue in room for row in self._due(queue)]
        picked: list[Row] = []
        for row in sorted(due, key=lambda row: (row.asked.priority, row.run_at_ms, row.arrival)):
            if not room[row.queue] or len(picked) == limit:
                continue
            if row.suspect:
                return picked or ([] if mine else [row])
            picked.append(row)
            room[row.queue] -= 1
        return picked

    def _due(self, queue: str) -> list[Row]:
        now = self.clock()
        mine = [row for row in self.jobs.values() if row.queue == queue]
        return [row for row in mine if row.state is State.PENDING and row.run_at_ms <= now]

    def _room(self, queue: str, given: Lease | None, dry_run: bool) -> int:
        """How many jobs the queue's controls admit now."""
        known, now = self.queues[queue], self.clock()
        room = len(self.jobs)
        if known.controls.paused:
            return 0
        if known.controls.in_flight is not None:
            room = max(0, known.controls.in_flight - self.count(queue).leased)
        if known.bucket:
            if self._due(queue) and not dry_run:
                known.bucket.look(now)
            least, most = map(math.floor, known.bucket.levels(now))
            room = min(room, max(least, min(most, len(given.jobs) if given else 0)))
        return room

    def _take_back_expired(self, queues: Collection[str]) -> None:
        for token, lease in list(self.leases.items()):
            if lease.queue in queues and lease.expires_at_ms <= self.clock():
                for row in self._held(token):
                    self._fail(row, FailureClass.WORKER_CRASH)
                    row.suspect = row.state is State.PENDING
                self._tidy()

    def next_due_ms(self, queue: str) -> int | None:
        """Any time in the past is as good as another; -1 where a bucket is not surely known."""
        if queue not in self.queues:
            return None
        known, now = self.queues[queue], self.clock()
        held = [lease.expires_at_ms for lease in self.leases.values() if lease.queue == queue]
        pending = [r.run_at_ms for r in self._in(queue) if r.state is State.PENDING]
        limit = known.controls.in_flight
        full = limit is not None and self.count(queue).leased >= limit
        if pending and not known.controls.paused and not full:
            admits = 0
            if known.bucket:
                least, most = known.bucket.levels(now)
                if least != most or known.bucket.least_at > now:
                    return -1
                admits = now + max(0, math.ceil(1000 * (1 - least) / known.bucket.rate))
            held.append(max(min(pending), admits))
        return min(held, default=None)

    # --- answers --------------------------------------------------------------

    def _held(self, token: str) -> list[Row]:
        return [row for row in self.jobs.values() if row.token == token]

    def _tidy(self) -> None:
        """A lease with no jobs left in it is over."""
        holding = {row.token for row in self.jobs.values()}
        self.leases = {t: lease for t, lease in self.leases.items() if t in holding}

    def _fail(
        self, row: Row, why: FailureClass, retry_at: int | None = None, *, ends: bool = False
    ) -> bool:
        """One failed attempt; whether the job is dead now."""
        now = self.clock()
        row.errors.append(JobError(why.value, "", now, row.attempts))
        row.suspect = False
        if ends or row.attempts >= row.asked.max_attempts:
            row.end(State.DEAD, now)
            self.events.append((self.queues[row.queue].source, "pinq.job.dead", row.key))
            return True
        row.leave(retry_at)
        return False

    def finish(self, token: str, verdicts: Sequence[Verdict]) -> Finished:
        now, held = self.clock(), {row.id: row for row in self._held(token)}
        succeeded = retried = snoozed = dead = 0
        for verdict in verdicts:
            if (row := held.get(verdict.id)) is None:
                continue
            row.note(verdict.status)
            match verdict:
                case Succeeded(event=event):
                    row.end(State.SUCCEEDED, now)
                    row.generation = self.queues[row.queue].generation
                    self.events += [(event.source, event.type, event.subject)] if event else []
                    succeeded += 1
                case Snooze(delay_seconds=delay):
                    row.attempts, row.suspect = row.attempts - 1, False
                    row.leave(now + round(delay * 1000))
                    snoozed += 1
                case Dead(failure=failure):
                    dead += self._fail(row, failure.failure_class, ends=True)
                case Retry(failure=failure, delay_seconds=delay, body=body):
                    row.body = row.body if body is None else body
                    died = self._fail(row, failure.failure_class, now + round(delay * 1000))
                    dead, retried = dead + died, retried + (not died)
        self._tidy()
        refused = sorted({verdict.id for verdict in verdicts} - held.keys())
        return Finished(succeeded, retried, snoozed, dead, refused)

    def checkpoint(
        self, token: str, checkpoints: Sequence[Checkpoint], *, seconds: float | None = None
    ) -> Sequence[int]:
        held = {row.id: row for row in self._held(token)}
        if seconds is not None:
            self.renew(token, seconds)
        for one in checkpoints:
            if (row := held.get(one.id)) is None:
                continue
            row.body = row.body if one.body is None else one.body
            row.progress = row.progress if one.progress is None else one.progress
            row.note(one.status)
            if one.run_at_ms is not None:
                row.attempts, row.suspect = 0, False
                row.leave(one.run_at_ms)
        self._tidy()
        return sorted({one.id for one in checkpoints} - held.keys())

    def release(self, token: str, ids: Sequence[int] | None = None) -> int:
        released = [row for row in self._held(token) if ids is None or row.id in ids]
        for row in released:
            row.attempts -= 1
            row.leave()
        self._tidy()
        return len(released)

    def renew(self, token: str, seconds: float) -> bool:
        if token in self.leases:
            self.leases[token].expires_at_ms = self.clock() + round(seconds * 1000)
        return token in self.leases

    def expire(self, holder: str) -> int:
        theirs = [lease for lease in self.leases.values() if lease.worker == holder]
        for lease in theirs:
            lease.expires_at_ms = self.clock()
        return len(theirs)

    def holders(self) -> list[str]:
        return sorted({lease.worker for lease in self.leases.values()})

    # --- what an onlooker sees --------------------------------------------------

    def _in(self, queue: str) -> list[Row]:
        return [row for row in self.jobs.values() if row.queue == queue]

    def lookup(self, queue: str) -> dict[str, Job]:
        return {row.key: row.seen() for row in self._in(queue)}

    def count(self, queue: str) -> Counts:
        rows = self._in(queue)
        states = [row.state for row in rows]
        last = [row.errors[-1].failure_class for row in rows if row.state is State.DEAD]
        return Counts(
            pending=states.count(State.PENDING),
            scheduled=len(self.matching(Filter(queue, scheduled=True))),
            leased=states.count(State.LEASED),
            succeeded=states.count(State.SUCCEEDED),
            dead=states.count(State.DEAD),
            dead_by_class={name: last.count(name) for name in last},
        )

    def unfinished(self, queues: Iterable[str], *, scheduled: bool = True) -> bool:
        now = self.clock()
        return any(
            row.state in LIVE
            and (scheduled or row.state is State.LEASED or row.attempts or row.run_at_ms <= now)
            for queue in queues
            for row in self._in(queue)
        )

    def matching(self, wanted: Filter) -> list[Row]:
        """The jobs that a filter means, in order of arrival."""
        found = [row for row in self.jobs.values() if self._matches(wanted, row)]
        return sorted(found, key=lambda row: row.arrival)

    def _matches(self, wanted: Filter, row: Row) -> bool:
        later = row.state is State.PENDING and row.run_at_ms > self.clock()
        last = row.errors[-1].failure_class if row.errors else None
        return (
            wanted.queue in (None, row.queue)
            and (wanted.keys is None or row.key in wanted.keys)
            and (wanted.states is None or row.state in wanted.states)
            and (wanted.priorities is None or row.asked.priority in wanted.priorities)
            and wanted.error_class in (None, last)
            and (wanted.uri is None or _fits(wanted.uri, row.asked.uri))
            # Latin-1 has a character for every byte.
            and (
                wanted.body is None or _fits(*(b.decode("latin1") for b in (wanted.body, row.body)))
            )
            and wanted.scheduled in (None, later)
        )

    # --- many jobs at once ------------------------------------------------------

    def requeue(self, wanted: Filter, *, rate: float | None = None, dry_run: bool = False) -> int:
        chosen = self.matching(wanted.within([State.DEAD]))
        for index, row in enumerate([] if dry_run else chosen):
            row.leave(self.clock() + (round(index * 1000 / rate) if rate else 0))
            row.attempts, row.finished_at_ms = 0, None
        return len(chosen)

    def cancel(self, wanted: Filter, *, dry_run: bool = False) -> int:
        chosen = self.matching(wanted.within(LIVE))
        for row in [] if dry_run else chosen:
            self._fail(row, FailureClass.CANCELLED, ends=True)
        self._tidy()
        return len(chosen)

    def delete(self, wanted: Filter, *, dry_run: bool = False) -> int:
        chosen = self.matching(wanted)
        self.forget([] if dry_run else chosen)
        return len(chosen)

    def old(self, succeeded_seconds: float, dead_seconds: float) -> list[Row]:
        """What ``prune`` may delete."""
        ages = {State.SUCCEEDED: succeeded_seconds, State.DEAD: dead_seconds}
        return [
            row
            for row in self.jobs.values()
            if row.finished_at_ms is not None
            and row.finished_at_ms < self.clock() - ages[row.state] * 1000
        ]

    def forget(self, rows: Iterable[Row]) -> None:
        for row in rows:
            del self.jobs[row.queue, row.key]
        self._tidy()


def _fits(pattern: str, text: str) -> bool:
    wild = {"*": ".*", "?": "."}
    parts = (wild.get(letter, re.escape(letter)) for letter in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None
