"""Moving everything from one queue's database to another, in steps that may stop anywhere.

freeze the source → copy queues, jobs, leases, events → compare → note at the source that it
has gone → open the target.

Every step is durable and can be repeated, so a move that was stopped or killed goes on when it
is called again. It can be given up (``undo``) until the source has noted that all is gone; from
then on only the target may be opened. At no time can the same job be leased in both.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TypeVar

from pinq.errors import InvalidInput, QueueError
from pinq.failpoints import failpoint
from pinq.incarnation import has_died, incarnation
from pinq.queue.model import State, StoredEvent
from pinq.queue.transfer import (
    Arrival,
    Departure,
    JobRecord,
    LeaseRecord,
    Transferable,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

BATCH = 1000
"""Jobs or events that are taken in together."""

# And bytes: databases bound what one statement may bring.
_BATCH_BYTES = 4 * 1024 * 1024
# Who has it moves; the others must not publish or delete meanwhile.
_MOVER, _OTHERS = "move", ("relay", "upkeep")
_ROLE_SECONDS = 60.0
_RENEW_SECONDS = 10.0
_FOR_EVER_SECONDS = 3e9


@dataclass(frozen=True, slots=True)
class MoveProgress:
    """How many of the jobs are at the target."""

    moved: int
    jobs: int


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move did, in all its calls; ``resumed`` if this was not the first one.

    ``interrupted``: it was stopped, and goes on when it is called again. ``seconds`` and
    ``copied`` jobs are of this call.
    """

    origin: str
    target: str
    queues: int
    jobs: int
    leases: int
    events: int
    copied: int
    seconds: float
    resumed: bool
    interrupted: bool = False


def move(
    source: Transferable,
    target: Transferable,
    *,
    force: bool = False,
    batch: int = BATCH,
    on_progress: Callable[[MoveProgress], None] | None = None,
    stop: Event | None = None,
) -> Moved:
    """Move everything from ``source`` to ``target``, or go on with that.

    Args:
        force: also take jobs along that workers hold who may be alive. What they then
            finish is refused, and done again at the target.
        batch: so many jobs or events at once.
        on_progress: called after every step.
        stop: ends the move after a step, once set.

    Raises:
        InvalidInput: both are the same database, or a job cannot be kept in the target.
        QueueError: it would lose or mix something: the message says what.
    """
    with _Roles(source, target) as roles:
        return _Move(source, target, roles, batch, on_progress, stop).run(force=force)


def undo(source: Transferable, target: Transferable | None) -> None:
    """Give a move up: the source goes on as before, what the target has of it is deleted.

    Without a target, where it cannot be reached, the source alone is thawed.

    Raises:
        QueueError: there is no move, or it is too late.
    """
    with _Roles(source, target):
        departure = source.departure()
        if departure is None:
            raise QueueError(f"{source.address} is in no move: there is nothing to undo")
        if departure.gone:
            raise QueueError(
                f"{source.address} was moved to {departure.to}, which may have gone on since; "
                f"to go back, delete the queues of {source.address} and move them from there"
            )
        if target is not None and (arrival := target.arrival()) and arrival.id == departure.id:
            _discard(source, target)
        source.thaw()


class _Stopped(Exception):
    """Between two steps."""


class _Move:
    """One call of ``move``."""

    def __init__(
        self,
        source: Transferable,
        target: Transferable,
        roles: "_Roles",
        batch: int,
        on_progress: Callable[[MoveProgress], None] | None,
        stop: Event | None,
    ) -> None:
        self._source, self._target, self._roles = source, target, roles
        self._batch = batch
        self._on_progress = on_progress
        self._stop = stop
        self._moved = self._jobs = self._copied = 0

    def run(self, *, force: bool) -> Moved:
        began = time.monotonic()
        departure = self._source.departure()
        resumed = departure is not None
        if departure is None:
            self._refuse_target()
            _refuse_held(self._source, force=force)
            self._roles.take_back(self._target)
            departure = Departure(uuid.uuid4().hex, self._target.address)
        else:
            self._refuse_other(departure)
        interrupted = False
        try:
            if not departure.gone:
                self._copy(departure)
                self._compare()
                self._source.depart()
                failpoint("move_after_depart")
            self._step()
            self._open(departure)
        except _Stopped:
            interrupted = True
        return Moved(
            origin=self._source.address,
            target=self._target.address,
            queues=len(self._source.queue_records()),
            jobs=_count(self._source),
            leases=len(self._source.lease_records()),
            events=self._source.event_count(),
            copied=self._copied,
            seconds=time.monotonic() - began,
            resumed=resumed,
            interrupted=interrupted,
        )

    # --- refusals -------------------------------------------------------------

    def _refuse_target(self) -> None:
        target = self._target
        moving = target.departure()
        if moving is not None and not moving.gone:
            raise QueueError(f"{target.address} is itself being moved, to {moving.to}")
        jobs, events = _count(target), target.event_count()
        if jobs or events:
            raise QueueError(
                f"{target.address} is not empty: it holds {jobs:,} jobs and {events:,} unpublished "
                "events that did not come from this move; choose another database, or empty it "
                "(`pinq queues delete`, and `pinq relay` publishes events)"
            )

    def _refuse_other(self, departure: Departure) -> None:
        """Go on only with the move that was begun, from where it was left."""
        source, target, arrival = self._source, self._target, self._target.arrival()
        if arrival is None or arrival.id != departure.id:
            if departure.gone:
                raise QueueError(f"{source.address} was moved to {departure.to} before")
            if departure.to != target.address:
                raise QueueError(
                    f"{source.address} is being moved to {departure.to}: go on with that, or give "
                    "it up with --undo"
                )
            self._refuse_target()
        if not departure.gone:
            self._refuse_reopened()

    def _refuse_reopened(self) -> None:
        for name, closed in self._source.frozen().items():
            if not closed:
                raise QueueError(
                    f"queue {name!r} of {self._source.address} was resumed since the move began, "
                    "so what was copied may be stale: give the move up with --undo, begin anew"
                )

    # --- steps ----------------------------------------------------------------

    def _copy(self, departure: Departure) -> None:
        source, target = self._source, self._target
        self._jobs = _count(source)
        while True:
            source.freeze(departure)
            failpoint("move_after_freeze")
            target.expect(Arrival(departure.id, source.address), source.queue_records())
            self._moved = _count(target)
            self._step()
            self._copy_jobs()
            if source.frozen().keys() >= set(source.queue.queues()):
                break
        target.adopt_leases(source.lease_records())
        failpoint("move_after_leases")
        self._step()
        self._copy_events()
        self._refuse_reopened()

    def _copy_jobs(self) -> None:
        known = self._source.frozen().keys()
        records = self._source.job_records(self._arrival().jobs_after, self._batch)
        for some in _batches(records, self._batch):
            if not {record.queue for record in some} <= known:
                return  # first, that queue is to be frozen
            try:
                self._target.adopt_jobs(some)
            except InvalidInput:
                self._adopt_singly(some)
            self._moved += len(some)
            self._copied += len(some)
            failpoint("move_after_jobs")
            self._step()

    def _adopt_singly(self, records: Sequence[JobRecord]) -> None:
        """To tell which one it is that the target does not take."""
        for record in records:
            try:
                self._target.adopt_jobs([record])
            except InvalidInput as error:
                raise InvalidInput(
                    f"job {record.key!a} of queue {record.queue!a} cannot be moved: {error}. "
                    "Delete it at the source and go on, or give the move up with --undo"
                ) from error

    def _copy_events(self) -> None:
        events = self._source.event_records(self._arrival().events_after, self._batch)
        for some in _batches(events, self._batch):
            self._target.adopt_events(some)
            failpoint("move_after_events")
            self._step()

    def _compare(self) -> None:
        """Are as many there as here? Others may have deleted or published, if not we were they."""
        source, target = self._source, self._target
        lacking = []
        for name in source.queue.queues():
            here, there = source.queue.count(name), target.queue.count(name)
            for state in State:
                pair = getattr(here, state.value), getattr(there, state.value)
                ended = state in (State.SUCCEEDED, State.DEAD)
                if pair[0] != pair[1] and not (ended and not self._roles.alone):
                    lacking.append(f"{name}: {pair[0]:,} {state} jobs here, {pair[1]:,} there")
        events = source.event_count(), target.event_count()
        if events[0] != events[1] and self._roles.alone:
            lacking.append(f"{events[0]:,} unpublished events here, {events[1]:,} there")
        if lacking:
            raise QueueError(
                f"{target.address} does not hold what {source.address} does, and was not opened: "
                f"{'; '.join(lacking)}. Has somebody changed jobs meanwhile? "
                "Give the move up with --undo, and begin anew"
            )

    def _open(self, departure: Departure) -> None:
        if self._arrival().opened:
            return
        # Nobody is to publish there what is published here.
        self._roles.leave(self._source, _left(departure))
        for record in self._source.queue_records():
            self._target.queue.control(record.name, record.controls)
        self._target.opened()

    def _arrival(self) -> Arrival:
        arrival = self._target.arrival()
        assert arrival is not None
        return arrival

    def _step(self) -> None:
        self._roles.renew()
        if self._on_progress is not None:
            self._on_progress(MoveProgress(self._moved, self._jobs))
        if self._stop is not None and self._stop.is_set():
            raise _Stopped


class _Roles:
    """This process's roles in both databases while it moves.

    Attributes:
        alone: whether nobody else prunes jobs or publishes events meanwhile.

    Raises:
        InvalidInput: both are the same database.
        QueueError: another process moves it.
    """

    def __init__(self, source: Transferable, target: Transferable | None) -> None:
        self._me = incarnation()
        self._sides = [source] if target is None else [source, target]
        self._held: list[tuple[Transferable, str]] = []
        self._renewed = time.monotonic()
        self.alone = True

    def __enter__(self) -> "_Roles":
        try:
            self._take()
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up()

    def _take(self) -> None:
        for side in self._sides:
            if self._me in side.queue.holders():
                raise InvalidInput(f"FROM and TO are the same database, {side.address}")
            _end_dead_roles(side)
            if not self._elect(side, _MOVER):
                raise QueueError(
                    f"another `pinq migrate` works on {side.address}; if it was killed, this can "
                    f"go on in {_ROLE_SECONDS:g} s"
                )
            departure = side.departure()
            if departure is None or not departure.gone:
                self._take_others(side)

    def _take_others(self, side: Transferable) -> None:
        for role in _OTHERS:
            if not self._elect(side, role):
                self.alone = False
                logger.warning(
                    "move.role_is_held role=%s at=%s stop the workers and relays there: "
                    "an event that they publish meanwhile may be published again",
                    role,
                    side.address,
                )

    def take_back(self, side: Transferable) -> None:
        """Take the roles where they were nobody's, since all had gone."""
        if (departure := side.departure()) is not None:
            side.queue.resign("relay", _left(departure))
            self._take_others(side)

    def _elect(self, side: Transferable, role: str) -> bool:
        elected = side.queue.elect(role, self._me, _ROLE_SECONDS)
        if elected:
            self._held.append((side, role))
        return elected

    def renew(self) -> None:
        """To be called often."""
        if time.monotonic() < self._renewed + _RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        for side, role in self._held:
            if not side.queue.elect(role, self._me, _ROLE_SECONDS) and role == _MOVER:
                raise QueueError(f"another `pinq migrate` has taken over at {side.address}")

    def leave(self, side: Transferable, holder: str) -> None:
        """Let the relay's role be nobody's for ever."""
        if (side, "relay") in self._held:
            side.queue.resign("relay", self._me)
        side.queue.elect("relay", holder, _FOR_EVER_SECONDS)

    def _give_up(self) -> None:
        for side, role in self._held:
            side.queue.resign(role, self._me)
        self._held = []


def _left(departure: Departure) -> str:
    """Who holds the relay's role in a database from which all has gone."""
    return f"moved-{departure.id}"


def _end_dead_roles(side: Transferable) -> None:
    """Of processes that hold no leases: those are to expire as they would have."""
    workers = {record.worker for record in side.lease_records()}
    for holder in side.queue.holders():
        if holder not in workers and has_died(holder):
            side.queue.expire(holder)


def _refuse_held(source: Transferable, *, force: bool) -> None:
    now_ms = source.queue.now_ms()
    held: dict[str, list[LeaseRecord]] = {}
    for record in source.lease_records():
        if record.expires_at_ms > now_ms and not has_died(record.worker):
            held.setdefault(record.worker, []).append(record)
    if not held or force:
        return
    told = ", ".join(
        f"{worker} ({sum(len(lease.keys) for lease in leases):,} jobs, for "
        f"{(max(lease.expires_at_ms for lease in leases) - now_ms) / 1000:.0f} s)"
        for worker, leases in held.items()
    )
    raise QueueError(
        f"workers hold jobs in {source.address}: {told}. Stop them, which gives their jobs back, "
        "or wait for the leases of dead ones to expire. Or use --force: their jobs are taken along "
        "as they are, what they still finish is refused, and is done again at the target"
    )


def _discard(source: Transferable, target: Transferable) -> None:
    """Delete what a target has taken in."""
    for record in source.queue_records():
        target.queue.drop(record.name, force=True)
    mine = {event.id for event in source.event_records("", BATCH)}
    for some in _batches(target.event_records("", BATCH), BATCH):
        target.queue.mark_published([event.position for event in some if event.id in mine])
    target.forget_arrival()


def _count(side: Transferable) -> int:
    counts = map(side.queue.count, side.queue.queues())
    return sum(one.pending + one.leased + one.succeeded + one.dead for one in counts)


Record = TypeVar("Record", JobRecord, StoredEvent)


def _batches(records: Iterable[Record], most: int) -> Iterator[list[Record]]:
    """So many records at a time, or fewer where they are large."""
    batch: list[Record] = []
    weight = 0
    for record in records:
        batch.append(record)
        weight += record.weight if isinstance(record, JobRecord) else len(record.data)
        if len(batch) == most or weight >= _BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch
