"""A queue moves from any backend to any other, and nothing of it is lost or doubled."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import permutations
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from sqlalchemy import create_engine, text

from pinq.errors import FailureClass, InvalidInput, QueueDraining, QueueError, SchemaMismatch
from pinq.incarnation import incarnation
from pinq.queue.contract import Queue
from pinq.queue.model import (
    Checkpoint,
    Controls,
    Dead,
    Event,
    Failure,
    Filter,
    NewJob,
    Outcome,
    Retry,
    State,
    Succeeded,
)
from pinq.queue.moving import MoveProgress, move, undo
from pinq.queue.transfer import Transferable
from pinq.queue.transfers import open_transfer
from pinq.queue.urls import upgrade

from ..conftest import FakeClock
from ..servers import fresh_database
from .conftest import _SERVERS

BACKENDS = ("sqlite", *_SERVERS)
BYTES = bytes(range(256)) * 3
GONE = Failure(FailureClass.FETCH_GONE, "no such file: 🦜\n")
SLOW = Failure(FailureClass.FETCH_TRANSIENT, "timed out")

Make = Callable[[str], str]
OpenSide = Callable[[str], Transferable]


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """A new database of a backend."""
    made = 0

    def one(backend: str) -> str:
        nonlocal made
        made += 1
        if backend == "sqlite":
            return f"sqlite:///{tmp_path}/{made}/queue.db"
        url: str = fresh_database(request.getfixturevalue(_SERVERS[backend]))
        upgrade(url)
        return url

    return one


@pytest.fixture
def open_side(clock: FakeClock) -> Iterator[OpenSide]:
    with ExitStack() as opened:

        def one(url: str) -> Transferable:
            side = open_transfer(url, clock=clock)
            opened.enter_context(closing(side.queue))
            return side

        yield one


@pytest.fixture(scope="session")
def dead_worker() -> str:
    """The name of a process that has ended."""
    telling = "from pinq.incarnation import incarnation; print(incarnation())"
    told = subprocess.run([sys.executable, "-c", telling], capture_output=True, text=True)
    return told.stdout.strip()


# --- a rich source -------------------------------------------------------------------------


def fill(queue: Queue, clock: FakeClock, dead_worker: str) -> None:
    """Jobs in every state, with every kind of past."""
    queue.declare("pins", source="/pinq/galaxy", signals=["pdq@1"])
    queue.enqueue("pins", [NewJob(f"old{n}", uri=f"s3://b/{n}") for n in range(3)])
    finish_all(queue, clock, "pins")  # of an earlier generation
    queue.declare("pins", source="/pinq/galaxy", signals=["color@2", "pdq@1"])
    clock.advance(1)
    queue.enqueue(
        "pins",
        [
            NewJob("fresh", uri="file:///p/🦜 %00.jpg", verify=True, etag="12-34", body=BYTES),
            NewJob("gone", body=b"\0"),
            NewJob("slow", status="one\ntwo", max_attempts=3),
            NewJob("again"),
        ],
    )
    lease = queue.lease("pins", 9, 60, "w1")
    assert lease is not None
    fresh, gone, slow, again = (job.id for job in lease.jobs)
    announced = Event("pinq.signal.computed", "/pinq/galaxy", "fresh", {"signals": ["pdq@1", "é"]})
    clock.advance(1)
    queue.finish(
        lease.token,
        [
            Succeeded(fresh, announced, status="done"),
            Dead(gone, GONE),
            Retry(slow, SLOW, 30, body=b"changed\xff", status="three"),
            Dead(again, GONE),
        ],
    )
    queue.requeue(Filter(keys=["again"]))
    # Crawled was never declared. Its jobs arrive by turns with those of pins.
    for n in range(6):
        queue.enqueue("crawled", [NewJob(f"c{n}", priority=1 + n % 3, body=bytes([n]))])
        queue.enqueue("pins", [NewJob(f"c{n}", priority=1 + n % 3, uri=f"http://x/{n}")])
    queue.enqueue("crawled", [NewJob("later", run_at_ms=clock() + 3_600_000)])
    queue.enqueue("crawled", [NewJob("large", body=BYTES * 200, priority=9)])
    queue.enqueue("crawled", [NewJob("forced")], force=True)
    queue.enqueue("crawled", [NewJob("cancelled")])
    queue.cancel(Filter(keys=["cancelled"]))
    # Suspects: one waits, one is leased again, alone.
    queue.enqueue("suspicious", [NewJob(f"s{n}", max_attempts=2) for n in range(3)])
    assert queue.lease("suspicious", 2, 5, "crashed")
    clock.advance(6)
    alone = queue.lease("suspicious", 5, 600, dead_worker)
    assert alone is not None
    assert [job.key for job in alone.jobs] == ["s0"]
    # A lease that has answered for some of its jobs; one of the others is on its last attempt.
    queue.enqueue("held", [NewJob(f"h{n}", max_attempts=1 + n) for n in range(5)])
    held = queue.lease("held", 4, 300, dead_worker + "2")
    assert held is not None
    ids = [job.id for job in held.jobs]
    queue.checkpoint(held.token, [Checkpoint(ids[1], progress=BYTES, status="half")])
    queue.finish(held.token, [Succeeded(ids[2], Event("t", "s", "h2", {}))])
    queue.release(held.token, [ids[3]])
    # And what queues are told.
    queue.declare("empty", source="/pinq/empty", signals=[])
    queue.control("pins", Controls(rate=2.5))
    queue.control("crawled", Controls(in_flight=3))
    queue.control("empty", Controls(paused=True, draining=True))
    queue.lease("pins", 1, 200, dead_worker + "3")
    clock.advance(0.3)


def finish_all(queue: Queue, clock: FakeClock, name: str) -> None:
    while (lease := queue.lease(name, 5, 60, "w")) is not None:
        queue.finish(lease.token, [Succeeded(job.id) for job in lease.jobs])


# --- what is to be seen of it --------------------------------------------------------------


def seen(side: Transferable, *, controls: bool = True) -> dict[str, Any]:
    """All that an onlooker can see, and all that only a move reads."""
    queue, names = side.queue, side.queue.queues()
    jobs = list(queue.scan())
    looked_up = {
        name: queue.lookup(name, [job.key for job in jobs if job.queue == name]) for name in names
    }
    return {
        "jobs": [_without(job, "id") for job in jobs],
        "found": {n: sorted(map(str, found)) for n, found in looked_up.items()},
        "counts": {name: queue.count(name) for name in names},
        "errors": queue.group("error"),
        "controls": {name: queue.controls(name) for name in names} if controls else None,
        "events": [_without(event, "position") for event in queue.unpublished(10_000)],
        "queues": side.queue_records(),
        "records": [record[2:] for record in side.job_records("", 7)],
        "leases": sorted(side.lease_records(), key=lambda lease: (lease.queue, lease.worker)),
    }


def _without(record: Any, field: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__ if name != field}


def live_on(side: Transferable, clock: FakeClock) -> list[Any]:
    """What the queue does from here: everything is enqueued again, and worked off."""
    queue = side.queue
    told: list[Any] = []
    for name in queue.queues():
        try:
            keys = [job.key for job in queue.scan(Filter(queue=name))]
            told.append(queue.enqueue(name, [NewJob(key) for key in [*keys, "new"]]))
        except QueueDraining:
            told.append(name)
    names, last_ms = queue.queues(), clock() + 7_200_000
    while clock() < last_ms:
        leases = queue.exchange(names, 4, 60, "w").leases
        for lease in leases:
            told.append([(job.key, job.attempt, job.body, job.force) for job in lease.jobs])
            queue.finish(lease.token, [Succeeded(job.id) for job in lease.jobs])
        if not leases:
            due = [due for name in names if (due := queue.next_due_ms(name)) is not None]
            clock.ms = max(clock.ms + 1, min(due, default=last_ms))
    told += [(job.queue, job.key, job.state, job.attempts, job.errors) for job in queue.scan()]
    return told


@pytest.fixture(scope="session")
def life(tmp_path_factory: pytest.TempPathFactory, dead_worker: str) -> list[Any]:
    """How a queue lives on that was not moved."""
    clock = FakeClock()
    side = open_transfer(f"sqlite:///{tmp_path_factory.mktemp('life')}/q.db", clock=clock)
    with closing(side.queue):
        fill(side.queue, clock, dead_worker)
        return live_on(side, clock)


# --- moves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("origin", "target"), list(permutations(BACKENDS, 2)))
def test_everything_moves(
    origin: str,
    target: str,
    make: Make,
    open_side: OpenSide,
    clock: FakeClock,
    dead_worker: str,
    life: list[Any],
) -> None:
    source, sink = open_side(make(origin)), open_side(make(target))
    fill(source.queue, clock, dead_worker)
    before = seen(source)
    assert {State(job["state"]) for job in before["jobs"]} == set(State)
    moved = move(source, sink, batch=7)
    assert seen(sink) == before
    assert (moved.jobs, moved.copied, moved.leases) == (len(before["jobs"]),) * 2 + (3,)
    assert (moved.queues, moved.events) == (5, len(before["events"]))
    assert live_on(sink, clock) == life
    # The source is closed, and says where it went; nobody publishes there what is published here.
    assert all(now.paused and now.draining for now in map(source.queue.controls, ["pins", "held"]))
    departure = source.departure()
    assert departure is not None and departure.gone and departure.to == sink.address
    assert not source.queue.elect("relay", "a relay", 10)
    assert sink.queue.elect("relay", "a relay", 10)


def test_a_token_of_before_is_refused_on_both_sides(
    make: Make, open_side: OpenSide, clock: FakeClock, dead_worker: str
) -> None:
    for origin in BACKENDS:
        source, sink = open_side(make(origin)), open_side(make("sqlite"))
        source.queue.enqueue("pins", [NewJob("a"), NewJob("b")])
        lease = source.queue.lease("pins", 2, 60, dead_worker)
        assert lease is not None
        move(source, sink)
        ids = [job.id for job in lease.jobs]
        assert source.queue.finish(lease.token, [Succeeded(id_) for id_ in ids]).refused == ids
        assert not source.queue.renew(lease.token, 60)
        assert source.queue.release(lease.token) == 0
        assert source.queue.checkpoint(lease.token, [Checkpoint(ids[0], body=b"x")]) == ids[:1]
        if origin == "sqlite":
            assert not sink.queue.renew(lease.token, 60)
        clock.advance(61)
        assert source.queue.lease("pins", 2, 60, "w") is None  # paused, and not taken back
        again = sink.queue.lease("pins", 2, 60, "w")
        assert again is not None
        (error,) = sink.queue.lookup("pins", ["a"])["a"].errors
        assert error.message == f"the lease expired; its worker was {dead_worker}"
        assert [job.attempt for job in again.jobs] == [2]


def test_a_chain_of_moves_ends_where_it_began(
    make: Make, open_side: OpenSide, clock: FakeClock, dead_worker: str, life: list[Any]
) -> None:
    urls = [make(backend) for backend in BACKENDS]
    sides = [open_side(url) for url in urls]
    fill(sides[0].queue, clock, dead_worker)
    before = seen(sides[0])
    for index in range(len(sides)):
        here, there = sides[index], sides[(index + 1) % len(sides)]
        if there.departure() is not None:
            with pytest.raises(QueueError, match="is not empty: it holds"):
                move(here, there)
            for name in there.queue.queues():
                there.queue.drop(name, force=True)
            events = there.queue.unpublished(1000)
            there.queue.mark_published([event.position for event in events])
        move(here, there)
    assert seen(sides[0]) == before
    assert sides[0].queue.elect("relay", "a relay", 10)
    assert live_on(sides[0], clock) == life


# --- stopped and resumed -------------------------------------------------------------------


class Stopped(Exception):
    pass


class Frail:
    """A side that fails at the n-th call of either side: before it does anything, or after."""

    def __init__(self, side: Transferable, calls: list[int], last: int, *, after: bool) -> None:
        self._side, self._calls, self._last, self._after = side, calls, last, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._side, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._calls[0] += 1
            if self._calls[0] == self._last and not self._after:
                raise Stopped
            answer = found(*args, **kwargs)
            if self._calls[0] == self._last:
                raise Stopped
            return answer

        return call


STOPPED = [("sqlite", "redis"), ("redis", "sqlite"), ("postgresql", "mariadb")]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("origin", "target"), STOPPED)
def test_a_move_stopped_at_any_call_goes_on(
    origin: str,
    target: str,
    after: bool,
    make: Make,
    open_side: OpenSide,
    clock: FakeClock,
    dead_worker: str,
) -> None:
    source, sink = open_side(make(origin)), open_side(make(target))
    fill(source.queue, clock, dead_worker)
    before = seen(source)
    last, done = 1, False
    while not done:
        calls = [0]
        frail = [Frail(side, calls, last, after=after) for side in (source, sink)]
        try:
            moved = move(*frail, batch=9)
            done = True
        except Stopped:
            # The roles are given up, as a later process would find that they have expired.
            last += 1
    assert last > 20
    assert moved.resumed
    assert seen(sink) == before
    assert not sink.queue.holders() or "relay" not in sink.queue.holders()


class Stops:
    """Sets ``stop`` at the n-th step, from 0 on."""

    def __init__(self, at: int) -> None:
        self.stop = threading.Event()
        self.shown: list[MoveProgress] = []
        self._at = at

    def __call__(self, progress: MoveProgress) -> None:
        if len(self.shown) == self._at:
            self.stop.set()
        self.shown.append(progress)


def test_a_move_stopped_after_any_step_goes_on(make: Make, dead_worker: str) -> None:
    stop_at, interrupted = -1, True
    while interrupted:
        stop_at += 1
        with ExitStack() as opened:
            clock = FakeClock()
            source, sink = (open_transfer(make(one), clock=clock) for one in ("sqlite", "redis"))
            opened.enter_context(closing(source.queue))
            opened.enter_context(closing(sink.queue))
            fill(source.queue, clock, dead_worker)
            before = seen(source)
            stops = Stops(stop_at)
            moved = move(source, sink, batch=11, on_progress=stops, stop=stops.stop)
            interrupted = moved.interrupted
            if interrupted:
                assert len(stops.shown) == stop_at + 1
                with pytest.raises(QueueDraining):
                    source.queue.enqueue("pins", [NewJob("late")])
                assert sink.queue.controls("pins").paused
                again = move(source, sink, batch=11, on_progress=stops)
                assert (again.resumed, again.interrupted) == (True, False)
                # As much as there is, whichever call it was.
                assert moved.copied + again.copied == len(before["jobs"])
                progress = [shown.moved for shown in stops.shown if shown.jobs]
                assert progress == sorted(progress)
                assert progress[-1] == len(before["jobs"])
            assert seen(sink) == before
    assert stop_at > 5


def test_what_arrived_in_two_queues_at_one_moment_moves_once(
    make: Make, open_side: OpenSide
) -> None:
    url = make("redis")
    source, sink = open_side(url), open_side(make("sqlite"))
    with closing(redis.Redis.from_url(url)) as client:
        for name in ("a", "b"):
            source.queue.declare(name, source="/x")
            client.hset(f"pinq:{{{name}}}:queue", "last_id", 5 * 10**15)
            source.queue.enqueue(name, [NewJob(key) for key in ("x", "y", "z")])
            event = msgpack.packb((name, "t", "s", "x", "{}"))
            for number in (1, 2):
                client.xadd(
                    f"pinq:{{{name}}}:events", {"time_ms": 7, "event": event}, f"5-{number}"
                )
    for stop_at in (1, 1, 2, 4, 2, 2, 2, 99):
        stops = Stops(stop_at)
        moved = move(source, sink, batch=1, on_progress=stops, stop=stops.stop)
        assert moved.interrupted == (stop_at < 99)
    assert [(job.key, job.queue) for job in sink.queue.scan()] == [
        (key, name) for key in ("x", "y", "z") for name in ("a", "b")
    ]
    assert [event.id for event in sink.queue.unpublished(9)] == ["a", "b", "a", "b"]


POINTS = {
    "move_after_freeze": 1,
    "move_after_jobs": 3,
    "move_after_leases": 1,
    "move_after_events": 1,
    "move_after_depart": 1,
}


def test_a_move_killed_again_and_again_goes_on(
    make: Make, tmp_path: Path, dead_worker: str
) -> None:
    urls = make("mariadb"), make("redis")
    clock = FakeClock()
    with closing(open_transfer(urls[0], clock=clock).queue) as queue:
        fill(queue, clock, dead_worker)
    with closing((source := open_transfer(urls[0])).queue):
        before = seen(source)
    words = [sys.executable, "-m", "pinq", "migrate", *urls, "--batch", "5", "--json"]
    for point, nth in POINTS.items():
        armed = {**os.environ, "PINQ_FAILPOINTS": f"{point}=kill@{nth}"}
        killed = subprocess.run(words, env=armed, cwd=tmp_path, capture_output=True)
        assert killed.returncode == -signal.SIGKILL, (point, killed.stderr)
    last = subprocess.run(words, cwd=tmp_path, capture_output=True)
    assert last.returncode == 0, last.stderr
    assert b'"resumed": true' in last.stdout
    with closing((sink := open_transfer(urls[1])).queue):
        after = seen(sink)
    # Which of those that wait are due is a matter of the time.
    assert {**after, "counts": None} == {**before, "counts": None}


# --- given up ------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", BACKENDS)
@pytest.mark.parametrize("stop_at", [0, 7])
def test_a_move_given_up_leaves_the_source_as_it_was(
    origin: str,
    stop_at: int,
    make: Make,
    open_side: OpenSide,
    clock: FakeClock,
    dead_worker: str,
    life: list[Any],
) -> None:
    source, sink = (
        open_side(make(origin)),
        open_side(make("redis" if origin != "redis" else "sqlite")),
    )
    fill(source.queue, clock, dead_worker)
    before = seen(source)
    passed = 0

    def step(_: MoveProgress) -> None:
        nonlocal passed
        if passed == stop_at:
            raise Stopped
        passed += 1

    with pytest.raises(Stopped):
        move(source, sink, batch=7, on_progress=step)
    undo(source, sink)
    assert seen(source) == before
    assert source.departure() is None
    assert (sink.queue.queues(), sink.event_count(), sink.arrival()) == ([], 0, None)
    assert source.queue.elect("relay", "a relay", 1)
    source.queue.resign("relay", "a relay")
    assert live_on(source, clock) == life
    with pytest.raises(QueueError, match="nothing to undo"):
        undo(source, sink)


def test_a_move_can_be_given_up_without_its_target(
    make: Make, open_side: OpenSide, clock: FakeClock, dead_worker: str
) -> None:
    source, sink = open_side(make("sqlite")), open_side(make("sqlite"))
    fill(source.queue, clock, dead_worker)
    before = seen(source)
    stop = threading.Event()
    stop.set()
    assert move(source, sink, stop=stop).interrupted
    undo(source, None)
    assert seen(source) == before
    # What the target has is of a move that is no more.
    sink.queue.control("pins", Controls())
    sink.queue.enqueue("pins", [NewJob("x")])
    with pytest.raises(QueueError, match="is not empty: it holds 1 jobs"):
        move(source, sink)


def test_what_has_moved_cannot_be_undone(make: Make, open_side: OpenSide) -> None:
    source, sink = open_side(make("sqlite")), open_side(make("sqlite"))
    source.queue.enqueue("pins", [NewJob("a")])
    move(source, sink)
    with pytest.raises(QueueError, match=r"was moved to .*; to go back"):
        undo(source, sink)
    with pytest.raises(QueueError, match="was moved to"):
        move(source, open_side(make("sqlite")))
    # Called again it does nothing: the target lives.
    sink.queue.delete(Filter(keys=["a"]))
    sink.queue.control("pins", Controls(rate=3))
    assert move(source, sink).resumed
    assert not list(sink.queue.scan())
    assert sink.queue.controls("pins") == Controls(rate=3)


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_database_by_two_names_is_one(backend: str, make: Make, open_side: OpenSide) -> None:
    url = make(backend)
    other = url.replace("127.0.0.1", "localhost")
    if backend == "sqlite":
        folder = Path(url.removeprefix("sqlite:///")).parent
        folder.mkdir()
        folder.with_name("link").symlink_to(folder)
        other = f"sqlite:///{folder.with_name('link')}/queue.db"
    source = open_side(url)
    source.queue.enqueue("pins", [NewJob("a")])
    with pytest.raises(InvalidInput, match="are the same database"):
        move(source, open_side(other))
    assert source.queue.lease("pins", 1, 60, "w") is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_target_with_jobs_or_events_of_its_own_is_refused(
    backend: str, make: Make, open_side: OpenSide
) -> None:
    source, sink = open_side(make("sqlite")), open_side(make(backend))
    source.queue.enqueue("pins", [NewJob("a")])
    sink.queue.enqueue("other", [NewJob("b")])
    with pytest.raises(QueueError, match="it holds 1 jobs and 0 unpublished events"):
        move(source, sink)
    sink.queue.cancel(Filter())
    sink.queue.delete(Filter())
    with pytest.raises(QueueError, match="it holds 0 jobs and 1 unpublished events"):
        move(source, sink)
    assert not source.queue.controls("pins").paused
    assert not sink.queue.controls("other").paused
    assert source.departure() is None
    sink.queue.mark_published([event.position for event in sink.queue.unpublished(1)])
    move(source, sink)
    assert sink.queue.lookup("pins", ["a"])


def test_a_server_must_have_been_set_up(request: pytest.FixtureRequest) -> None:
    for backend in ("postgresql", "mariadb"):
        url = fresh_database(request.getfixturevalue(_SERVERS[backend]))
        with pytest.raises(SchemaMismatch, match="run `pinq db upgrade`"):
            open_transfer(url)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_living_worker_holds_moves_only_by_force(
    backend: str, make: Make, open_side: OpenSide, clock: FakeClock
) -> None:
    source, sink = open_side(make(backend)), open_side(make("sqlite"))
    me, elsewhere = incarnation(), "a worker of another machine"
    source.queue.enqueue("pins", [NewJob(f"j{n}") for n in range(3)])
    mine = source.queue.lease("pins", 1, 60, me)
    assert source.queue.lease("pins", 1, 30, elsewhere)
    assert mine is not None
    with pytest.raises(QueueError) as refused:
        move(source, sink)
    assert f"{me} (1 jobs, for 60 s)" in str(refused.value)
    assert f"{elsewhere} (1 jobs, for 30 s)" in str(refused.value)
    assert "--force" in str(refused.value)
    assert source.queue.renew(mine.token, 60)  # nothing was done
    clock.advance(40)
    with pytest.raises(QueueError) as refused:
        move(source, sink)
    assert elsewhere not in str(refused.value)
    moved = move(source, sink, force=True)
    assert moved.leases == 2
    done = source.queue.finish(mine.token, [Succeeded(mine.jobs[0].id)])
    assert done.refused == [mine.jobs[0].id]
    assert sink.queue.lookup("pins", ["j0"])["j0"].state is State.LEASED
    clock.advance(30)
    for _ in range(3):
        lease = sink.queue.lease("pins", 5, 60, "w")
        assert lease is not None
        sink.queue.finish(lease.token, [Succeeded(job.id) for job in lease.jobs])
    assert sink.queue.count("pins").succeeded == 3
    assert [job.attempts for job in sink.queue.scan()] == [2, 2, 1]


def test_a_relay_at_the_source_is_warned_of(
    make: Make, open_side: OpenSide, caplog: pytest.LogCaptureFixture, dead_worker: str
) -> None:
    source, sink = open_side(make("sqlite")), open_side(make("sqlite"))
    source.queue.elect("relay", incarnation(), 60)
    source.queue.elect("upkeep", dead_worker, 60)
    source.queue.enqueue("pins", [NewJob("a")])
    move(source, sink)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"move.role_is_held role=relay at={source.address}")


def test_two_do_not_move_at_once(make: Make, open_side: OpenSide, dead_worker: str) -> None:
    source, sink = open_side(make("sqlite")), open_side(make("redis"))
    source.queue.enqueue("pins", [NewJob("a")])

    def meanwhile(_: MoveProgress) -> None:
        with pytest.raises(QueueError, match="another `pinq migrate` works on"):
            move(source, open_side(make("sqlite")))
        with pytest.raises(QueueError, match="another `pinq migrate` works on"):
            undo(source, None)

    move(source, sink, on_progress=meanwhile)
    # One that was killed does not hold others up.
    source, sink = open_side(make("sqlite")), open_side(make("redis"))
    source.queue.elect("move", dead_worker, 60)
    move(source, sink)


def test_a_source_that_was_reopened_meanwhile_is_refused(make: Make, open_side: OpenSide) -> None:
    for origin in BACKENDS:
        source, sink = open_side(make(origin)), open_side(make("sqlite"))
        source.queue.enqueue("pins", [NewJob("a")])
        stop = threading.Event()
        stop.set()
        assert move(source, sink, stop=stop).interrupted
        with pytest.raises(QueueError, match=f"is being moved to {sink.address}"):
            move(source, open_side(make("sqlite")))
        source.queue.control("pins", Controls())
        with pytest.raises(QueueError, match=r"queue 'pins' of .* was resumed since"):
            move(source, sink)
        undo(source, sink)
        move(source, sink)


def test_what_is_changed_at_the_source_meanwhile_is_noticed(
    make: Make, open_side: OpenSide
) -> None:
    source, sink = open_side(make("sqlite")), open_side(make("redis"))
    source.queue.enqueue("pins", [NewJob(f"j{n}") for n in range(9)])

    def delete(progress: MoveProgress) -> None:
        if progress.moved == 9:
            source.queue.delete(Filter(keys=["j0"]))

    with pytest.raises(QueueError, match="pins: 8 pending jobs here, 9 there"):
        move(source, sink, on_progress=delete)
    assert sink.queue.controls("pins").paused
    undo(source, sink)
    assert not source.queue.controls("pins").paused


@pytest.mark.parametrize("origin", BACKENDS)
def test_a_queue_that_is_made_meanwhile_moves_too(
    origin: str, make: Make, open_side: OpenSide
) -> None:
    source, sink = open_side(make(origin)), open_side(make("sqlite"))
    source.queue.enqueue("pins", [NewJob(f"j{n}") for n in range(9)])

    def enqueue(progress: MoveProgress) -> None:
        if progress.moved == 9 and "late" not in source.queue.queues():
            source.queue.enqueue("late", [NewJob("l")])

    assert move(source, sink, batch=3, on_progress=enqueue).jobs == 10
    assert [job.key for job in sink.queue.scan()] == [f"j{n}" for n in range(9)] + ["l"]
    with pytest.raises(QueueDraining):
        source.queue.enqueue("late", [NewJob("m")])


@pytest.mark.parametrize("target", ["postgresql", "mariadb"])
def test_a_job_that_the_target_cannot_keep_is_named(
    target: str, make: Make, open_side: OpenSide
) -> None:
    source, sink = open_side(make("redis")), open_side(make(target))
    wrong = "\0" if target == "postgresql" else "\ud800"
    source.queue.enqueue("pins", [NewJob("a"), NewJob("b", uri=wrong), NewJob("c")])
    with pytest.raises(InvalidInput, match="job 'b' of queue 'pins' cannot be moved"):
        move(source, sink)
    source.queue.delete(Filter(keys=["b"]))
    assert move(source, sink).jobs == 2
    assert [job.key for job in sink.queue.scan()] == ["a", "c"]


@pytest.mark.parametrize("origin", ["postgresql", "mariadb"])
def test_a_transaction_that_saw_the_queue_open_is_waited_for(
    origin: str, make: Make, open_side: OpenSide
) -> None:
    url = make(origin)
    source, sink = open_side(url), open_side(make("sqlite"))
    source.queue.enqueue("pins", [NewJob("a")])
    scheme, _, rest = url.partition("://")
    driver = {"postgresql": "psycopg", "mysql": "pymysql"}[scheme]
    engine = create_engine(f"{scheme}+{driver}://{rest}", isolation_level="READ COMMITTED")
    mover = threading.Thread(target=move, args=(source, sink), daemon=True)
    with engine.connect() as connection, connection.begin():
        # As a worker does before it leases; it has not written anything yet.
        connection.execute(text("SELECT paused FROM pinq_queues"))
        mover.start()
        mover.join(1)
        assert mover.is_alive()
        connection.execute(text("UPDATE pinq_jobs SET status = 'in time'"))
    mover.join(30)
    assert not mover.is_alive()
    engine.dispose()
    assert sink.queue.lookup("pins", ["a"])["a"].status == "in time"
    assert sink.queue.enqueue("pins", [NewJob("b")])[0].outcome is Outcome.ENQUEUED
