"""Random verbs, in a queue and in the model of one: both must answer the same, always.

``PINQ_EXAMPLES`` asks for more of them than the usual run has; ``PINQ_SEED`` for those of an
earlier run, which prints its own when it fails.
"""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, cycle
from typing import Any, ClassVar

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pinq.errors import FailureClass, PinqError
from pinq.queue.contract import Queue
from pinq.queue.model import (
    Answer,
    Checkpoint,
    Controls,
    Dead,
    Event,
    Exchange,
    Failure,
    Filter,
    Finished,
    Job,
    Lease,
    NewJob,
    Retry,
    Snooze,
    State,
    StoredEvent,
    Succeeded,
    Verdict,
)

from ..conftest import FakeClock
from .conftest import Open
from .model import Model

# By the scheme of its URL, what a backend does in half a minute.
EXAMPLES = {"sqlite": 60, "postgresql": 40, "mysql": 20, "redis": 60}
MANY = 10_000
KEYS = "abcdef"
WORKERS = ["one", "two", "three"]
GONE = Failure(FailureClass.FETCH_GONE, "no such file")
BUSY = Failure(FailureClass.FETCH_TRANSIENT, "the peer is busy")
COMPUTED = Event("pinq.signal.computed", "", "", {})

Nth = tuple[bool, int]

which = st.integers(0, 1)
where = st.none() | which
key = st.sampled_from(KEYS)
keys = st.lists(key, min_size=1, max_size=5)
worker = st.sampled_from(WORKERS)
# A quarter of a second, so that rates of 1/2, 1, 2 and 4 jobs a second fill exactly.
seconds = st.sampled_from([0, 0.25, 0.5, 1, 1.75, 3, 6])
status = st.sampled_from(["", "", "seen", "näher"])
body = st.sampled_from([b"", b"a", b"ab\xff\x00", b"[*\n?", b"a" * 30])
wanted = st.builds(
    Filter,
    # Seldom everything: there would be nothing left to work on.
    keys=st.one_of(*[st.lists(key, max_size=2)] * 3, st.none()),
    states=st.none() | st.lists(st.sampled_from(State), max_size=2),
    priorities=st.none() | st.lists(st.integers(1, 9), max_size=4),
    error_class=st.none() | st.sampled_from([*FailureClass]).map(str),
    uri=st.none() | st.sampled_from(["*", "file:///a*", "*/?.jpg", "", "*[ab]*"]),
    body=st.none() | st.sampled_from([b"", b"*", b"a*", b"?", b"*\xff?", b"[*"]),
    scheduled=st.none() | st.booleans(),
)
controls = st.builds(
    Controls,
    paused=st.sampled_from([False, False, False, True]),
    draining=st.sampled_from([False, False, False, True]),
    rate=st.none() | st.sampled_from([0.5, 1, 2, 4]),
    in_flight=st.none() | st.integers(1, 4),
)
# Which of the leases, the last one first: of those that hold something, or of all there were.
nth = st.tuples(st.sampled_from([True, True, False]), st.integers(0, 3))
# What becomes of the jobs of a lease, in turn; ``None`` is nothing yet. The id, and whose event
# it is, are put in later.
fates = st.lists(
    st.one_of(
        st.builds(Succeeded, st.just(0), st.sampled_from([COMPUTED, None]), status),
        st.builds(Retry, st.just(0), st.just(BUSY), seconds, st.none() | body, status),
        st.builds(Snooze, st.just(0), seconds, status),
        st.builds(Dead, st.just(0), st.just(GONE), status),
        st.none(),
    ),
    min_size=1,
    max_size=4,
)

# A verb, how often it comes, and what it takes.
VERBS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "enqueue_plainly": (3, {"which": which, "keys": keys, "priority": st.integers(4, 6)}),
    "enqueue": (
        3,
        {
            "which": which,
            "keys": keys,
            "priorities": st.lists(st.integers(1, 9), min_size=1, max_size=3),
            "delay": st.none() | st.sampled_from([-2, -0.25, 0, 0.5, 2]),
            "attempts": st.integers(1, 3),
            "body": body,
            "status": status,
            "force": st.booleans(),
        },
    ),
    "lease": (
        6,
        {
            "which": which,
            "limit": st.integers(1, 4),
            "seconds": seconds | st.just(60),
            "worker": worker,
        },
    ),
    "exchange": (
        5,
        {
            "order": st.sampled_from([(0, 1), (1, 0), (0,), (1,)]),
            "limit": st.integers(1, 5),
            "seconds": seconds | st.just(60),
            "worker": worker,
            "answered": st.lists(st.tuples(nth, fates), max_size=2),
            "dry_run": st.sampled_from([False, False, True]),
        },
    ),
    "finish": (8, {"nth": nth, "fates": fates, "stranger": st.none() | nth}),
    "checkpoint": (
        4,
        {
            "nth": nth,
            "some": st.integers(1, 6),
            "body": st.none() | body,
            "progress": st.sampled_from([None, b"half", b"\x00\xff"]),
            "status": status,
            "leaves": st.none() | seconds,
            "seconds": st.none() | seconds,
        },
    ),
    "renew": (1, {"nth": nth, "seconds": seconds}),
    "release": (1, {"nth": nth, "some": st.none() | st.integers(1, 3)}),
    "expire": (3, {"worker": worker}),
    "time_passes": (
        4,
        {"seconds": seconds, "back": st.sampled_from([False, False, False, True])},
    ),
    "declare": (1, {"which": which, "changed": st.sampled_from([True, False, None])}),
    "control": (2, {"which": which, "controls": st.just(Controls()) | controls}),
    "requeue": (1, {"where": where, "rate": st.none() | st.sampled_from([0.5, 3])}),
    "change": (
        2,
        {
            "verb": st.sampled_from(["requeue", "cancel", "delete"]),
            "wanted": wanted,
            "where": where,
            "dry_run": st.booleans(),
        },
    ),
    "drop": (1, {"which": which, "force": st.sampled_from([False, False, True])}),
    "prune": (
        1,
        {"succeeded": seconds, "dead": seconds, "limit": st.sampled_from([1, 2, 250])},
    ),
    "publish": (1, {"some": st.integers(1, 5)}),
    "look": (1, {"wanted": wanted, "where": where, "batch": st.integers(1, 4)}),
}


class Machine(RuleBasedStateMachine):
    """Two queues and three workers; one of these has a connection of its own."""

    _numbers: ClassVar[Iterator[int]] = count()

    def __init__(self, opened: Sequence[Queue], clock: FakeClock) -> None:
        super().__init__()
        clock.ms = FakeClock().ms
        self.clock = clock
        self.model = Model(clock)
        self.real, other = opened
        self.of = dict(zip(WORKERS, (self.real, other, self.real), strict=True))
        number = next(self._numbers)
        self.names = [f"q{number}", f"r{number}"]
        self.leases: list[Lease] = []
        self.signals, self.turns = count(2), count()
        self.events: dict[str, StoredEvent] = {}

    @initialize(priority=st.integers(1, 9))
    def begin(self, priority: int) -> None:
        for name in self.names:
            self.same("declare", name, source=f"/pinq/{name}", signals=["pdq@1"])
            self.enqueue_plainly(self.names.index(name), list(KEYS), priority)

    # One rule, since Hypothesis leaves out half of the rules in an example: nothing much
    # happens in a queue that has no lease, or no finish.
    @rule(
        verb=st.sampled_from(
            [verb for verb, (often, _) in VERBS.items() for _ in range(often)]
        ).flatmap(lambda verb: st.tuples(st.just(verb), st.fixed_dictionaries(VERBS[verb][1])))
    )
    def do(self, verb: tuple[str, dict[str, Any]]) -> None:
        name, arguments = verb
        if "nth" not in arguments or self.leases:
            getattr(self, name)(**arguments)

    def same(self, verb: str, *args: Any, **kwargs: Any) -> None:
        """Have both do it: they answer the same, or refuse for the same reason."""
        answers = []
        for queue in (self.real, self.model):
            try:
                answers.append(getattr(queue, verb)(*args, **kwargs))
            except PinqError as error:
                answers.append(type(error))
        assert answers[0] == answers[1], f"{verb} answered {answers[0]}, not {answers[1]}"

    # --- producers --------------------------------------------------------------

    def enqueue_plainly(self, which: int, keys: list[str], priority: int) -> None:
        new = [NewJob(key, max_attempts=2, priority=priority) for key in keys]
        self._enqueue(which, new, force=True)

    def enqueue(
        self,
        which: int,
        keys: list[str],
        priorities: list[int],
        delay: float | None,
        attempts: int,
        body: bytes,
        status: str,
        force: bool,
    ) -> None:
        run_at = 0 if delay is None else self.clock.ms + round(delay * 1000)
        new = [
            NewJob(
                key,
                uri=f"file:///{key}.jpg",
                verify=key < "c",
                etag=key.upper(),
                priority=priority,
                run_at_ms=run_at,
                max_attempts=attempts,
                body=body,
                status=status,
            )
            for key, priority in zip(keys, cycle(priorities), strict=False)
        ]
        self._enqueue(which, new, force=force)

    def _enqueue(self, which: int, new: list[NewJob], *, force: bool) -> None:
        self.same("enqueue", self.names[which], new, force=force)
        if any(row.id < 0 for row in self.model.jobs.values()):
            for job in self.real.scan():
                row = self.model.jobs[job.queue, job.key]
                row.id = job.id if row.id < 0 else row.id

    # --- workers ----------------------------------------------------------------

    def lease(self, which: int, limit: int, seconds: float, worker: str) -> None:
        name = self.names[which]
        given = self.of[worker].lease(name, limit, seconds, worker)
        expected = self.model.lease(name, limit, seconds, worker, given)
        assert given == expected, f"lease gave {given}, not {expected}"
        self.leases += [given] if given else []

    def exchange(
        self,
        order: list[int],
        limit: int,
        seconds: float,
        worker: str,
        answered: list[tuple[Nth, list[Verdict | None]]],
        dry_run: bool,
    ) -> None:
        names = [self.names[which] for which in order]
        answers = [
            Answer(lease.token, self._verdicts(lease, fates))
            for lease, fates in ((self._nth(nth), fates) for nth, fates in answered if self.leases)
        ]
        asked = {"answers": () if dry_run else answers, "dry_run": dry_run}
        given = self.of[worker].exchange(names, limit, seconds, worker, **asked)
        expected = self.model.exchange(names, limit, seconds, worker, given, **asked)
        told, should = _answered(given), _answered(expected)
        assert told == should, f"exchange gave {told}, not {should}"
        self.leases += [] if dry_run else given.leases

    def _nth(self, nth: Nth) -> Lease:
        held, back = nth
        leases = [lease for lease in self.leases if not held or lease.token in self.model.leases]
        return (leases or self.leases)[-1 - back % len(leases or self.leases)]

    def _verdicts(self, lease: Lease, fates: list[Verdict | None]) -> list[Verdict]:
        told: list[Verdict] = []
        for job, fate in zip(lease.jobs, cycle(fates), strict=False):
            match fate:
                case Succeeded(event=event, status=status):
                    if event is not None:
                        event = replace(event, source=f"/pinq/{lease.queue}", subject=job.key)
                    told.append(Succeeded(job.id, event, status))
                case Retry() | Snooze() | Dead():
                    told.append(replace(fate, id=job.id))
        return told

    def finish(self, nth: Nth, fates: list[Verdict | None], stranger: Nth | None) -> None:
        lease = self._nth(nth)
        verdicts = self._verdicts(lease, fates)
        if stranger is not None:
            ours = {job.id for job in lease.jobs}
            theirs = self._verdicts(self._nth(stranger), fates)
            verdicts += [verdict for verdict in theirs if verdict.id not in ours]
        given, expected = (q.finish(lease.token, verdicts) for q in (self.real, self.model))
        assert _sorted(given) == expected, f"finish answered {given}, not {expected}"

    def checkpoint(
        self,
        nth: Nth,
        some: int,
        body: bytes | None,
        progress: bytes | None,
        status: str,
        leaves: float | None,
        seconds: float | None,
    ) -> None:
        lease = self._nth(nth)
        run_at = None if leaves is None else self.clock.ms + round(leaves * 1000)
        told = [Checkpoint(job.id, body, progress, status, run_at) for job in lease.jobs[:some]]
        refused, expected = (
            queue.checkpoint(lease.token, told, seconds=seconds)
            for queue in (self.real, self.model)
        )
        assert sorted(refused) == expected, f"checkpoint refused {refused}, not {expected}"

    def renew(self, nth: Nth, seconds: float) -> None:
        self.same("renew", self._nth(nth).token, seconds)

    def release(self, nth: Nth, some: int | None) -> None:
        lease = self._nth(nth)
        ids = None if some is None else [job.id for job in lease.jobs[:some]]
        self.same("release", lease.token, ids)

    def expire(self, worker: str) -> None:
        self.same("expire", worker)

    def time_passes(self, seconds: float, back: bool) -> None:
        self.clock.advance(-seconds if back else seconds)
        self.model.tick()

    # --- operators --------------------------------------------------------------

    def declare(self, which: int, changed: bool | None) -> None:
        name = self.names[which]
        known = self.model.queues.get(name)
        signals = known.signals if known else frozenset()
        if changed:
            signals = frozenset({f"pdq@{next(self.signals)}"})
        told = None if changed is None else sorted(signals)
        self.same("declare", name, source=f"/pinq/{name}", signals=told)

    def control(self, which: int, controls: Controls) -> None:
        self.same("control", self.names[which], controls)

    def _meant(self, wanted: Filter, where: int | None) -> Filter:
        return replace(wanted, queue=None if where is None else self.names[where])

    def change(self, verb: str, wanted: Filter, where: int | None, dry_run: bool) -> None:
        self.same(verb, self._meant(wanted, where), dry_run=dry_run)

    def requeue(self, where: int | None, rate: float | None) -> None:
        self.same("requeue", self._meant(Filter(), where), rate=rate)

    def drop(self, which: int, force: bool) -> None:
        self.same("drop", self.names[which], force=force)

    def prune(self, succeeded: float, dead: float, limit: int) -> None:
        pruned = self.real.prune(succeeded_seconds=succeeded, dead_seconds=dead, limit=limit)
        old = self.model.old(succeeded, dead)
        left = self._seen()
        gone = [row for at, row in self.model.jobs.items() if at not in left]
        assert pruned == len(gone) == min(limit, len(old))
        assert all(row in old for row in gone)
        self.model.forget(gone)

    def publish(self, some: int) -> None:
        events = self.real.unpublished(some)
        self.real.mark_published([event.position for event in events])
        for event in events:
            self.model.events.remove((event.source, event.type, event.subject))
            del self.events[event.id]

    def look(self, wanted: Filter, where: int | None, batch: int) -> None:
        wanted = self._meant(wanted, where)
        found = [job.id for job in self.real.scan(wanted, batch=batch)]
        assert found == [row.id for row in self.model.matching(wanted)]
        assert sum(self.real.group("state", wanted).values()) == len(found)
        for name in self.names:
            looked_up = self.real.lookup(name, [*KEYS, "nobody"]).items()
            assert {key: _plain(job) for key, job in looked_up} == self.model.lookup(name)

    # --- always -----------------------------------------------------------------

    @invariant()
    def are_the_same(self) -> None:
        self._see_the_same_jobs()
        self._know_the_same_of_what_is_left()
        self._store_each_event_once_by_one_id()

    def _seen(self) -> dict[tuple[str, str], Job]:
        return {(job.queue, job.key): _plain(job) for job in self.real.scan()}

    def _see_the_same_jobs(self) -> None:
        assert self._seen() == {at: row.seen() for at, row in self.model.jobs.items()}

    def _know_the_same_of_what_is_left(self) -> None:
        # Not all of both queues at each step, which would double the time.
        turn = next(self.turns)
        name, scheduled = self.names[turn % 2], turn % 4 < 2
        if turn % 3:
            self.same("unfinished", [name], scheduled=scheduled)
            self.same("unfinished", self.names, scheduled=not scheduled)
        else:
            assert self.real.count(name) == self.model.count(name)
            assert sorted(self.real.holders()) == self.model.holders()
        due, expected = self.real.next_due_ms(name), self.model.next_due_ms(name)
        if expected is None or due is None:
            assert due is expected is None
        elif expected >= 0:
            assert max(due, self.clock.ms) == max(expected, self.clock.ms)

    def _store_each_event_once_by_one_id(self) -> None:
        stored = self.real.unpublished(MANY)
        told = [(event.source, event.type, event.subject) for event in stored]
        assert _by_subject(told) == _by_subject(self.model.events)
        assert all(event in stored for event in self.events.values())
        self.events = {event.id: event for event in stored}
        assert len(self.events) == len(stored)

    def teardown(self) -> None:
        for name in self.names:
            self.real.drop(name, force=True)
        while events := self.real.unpublished(MANY):
            self.real.mark_published([event.position for event in events])


def _plain(job: Job) -> Job:
    """Without the wording of its errors, which is the backend's."""
    return replace(job, errors=tuple(replace(error, message="") for error in job.errors))


def _sorted(finished: Finished) -> Finished:
    return replace(finished, refused=sorted(finished.refused))


def _answered(given: Exchange) -> tuple[list[Finished], dict[str, Lease]]:
    """Which queue's lease comes first is not promised."""
    assert len({lease.queue for lease in given.leases}) == len(given.leases)
    finished = [_sorted(finished) for finished in given.finished]
    return finished, {lease.queue: lease for lease in given.leases}


def _by_subject(events: list[tuple[str, str, str]]) -> dict[tuple[str, str], list[str]]:
    """In order per subject, which is all that is promised."""
    found: dict[tuple[str, str], list[str]] = {}
    for source, type_, subject in events:
        found.setdefault((source, subject), []).append(type_)
    return found


def test_a_queue_does_as_its_model_does(queue_url: str, open_again: Open, clock: FakeClock) -> None:
    opened = [open_again(), open_again()]
    examples = int(os.environ.get("PINQ_EXAMPLES") or EXAMPLES[queue_url.partition(":")[0]])
    number = int(os.environ.get("PINQ_SEED") or random.SystemRandom().randrange(2**32))

    @seed(number)
    def machine() -> Machine:
        return Machine(opened, clock)

    print(f"again with PINQ_SEED={number} PINQ_EXAMPLES={examples}")
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            print_blob=True,
            derandomize=False,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
