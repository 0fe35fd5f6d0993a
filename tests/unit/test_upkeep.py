"""Upkeep, on a queue whose clock moves only when told."""

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import dramatiq
import pytest

from pinq.broker import QueueBroker
from pinq.config import PeriodicSettings, PipelineSettings, RetentionSettings, Settings
from pinq.errors import FailureClass, QueueUnavailable
from pinq.queue.contract import Queue
from pinq.queue.model import Controls, Dead, Failure, Filter, NewJob, State, Succeeded
from pinq.queue.urls import open_queue
from pinq.upkeep import ROLE, Upkeep

from ..conftest import FakeClock

MINUTELY = PeriodicSettings(cron="* * * * *", uri="https://host/{tick}.jpg", pipeline="pins")
MESSAGE = PeriodicSettings(
    cron="* * * * *", actor="dump", queue="tasks", args=("daily", 3), kwargs={"deep": True}
)
GONE = Failure(FailureClass.FETCH_GONE, "no such file")
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def clock() -> FakeClock:
    clock = FakeClock()
    clock.ms = round(datetime(2026, 5, 1, 2, 58, 30, tzinfo=UTC).timestamp() * 1000)
    return clock


@pytest.fixture
def queue(tmp_path: Path, clock: FakeClock) -> Iterator[Queue]:
    queue = open_queue(f"sqlite:///{tmp_path}/queue.db?synchronous=normal", clock=clock)
    queue.declare("pins", source="/pinq/pins", signals=["pdq@1"])
    yield queue
    queue.close()


class Flaky:
    """A queue, some verbs of which raise, or tell."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.trouble: dict[str, Exception] = {}
        self.before: dict[str, Callable[[], object]] = {}

    def __getattr__(self, verb: str) -> Any:
        if verb in self.trouble:
            raise self.trouble[verb]
        self.before.get(verb, lambda: None)()
        return getattr(self._queue, verb)


def settings_of(
    retention: RetentionSettings = RetentionSettings(),  # noqa: B008 - frozen
    **periodic: PeriodicSettings,
) -> Settings:
    pipelines = {"pins": PipelineSettings(galaxy="pins", priority=3, max_attempts=2)}
    return Settings(
        home=Path("/nowhere"),
        queue="",
        store="",
        events=(),
        retention=retention,
        pipelines=MappingProxyType(pipelines),
        periodic=MappingProxyType(periodic),
    )


Make = Callable[..., Upkeep]


@pytest.fixture
def make(queue: Queue, clock: FakeClock) -> Make:
    """Makes an upkeep whose seconds pass as the queue's do."""

    def make_one(
        holder: str = "a",
        retention: RetentionSettings = RetentionSettings(),  # noqa: B008 - frozen
        of: object = queue,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
        **periodic: PeriodicSettings,
    ) -> Upkeep:
        return Upkeep(
            cast(Queue, of),
            settings_of(retention, **periodic),
            holder=holder,
            monotonic=lambda: clock.ms / 1000,
            pause=pause,
        )

    return make_one


def keys(queue: Queue) -> list[str]:
    return [job.key for job in queue.scan()]


def end_all(queue: Queue, name: str = "pins", *, dead: bool = False) -> None:
    while held := queue.lease(name, 1000, 60, "w"):
        queue.finish(
            held.token, [Dead(job.id, GONE) if dead else Succeeded(job.id) for job in held.jobs]
        )


def walk(upkeep: Upkeep, clock: FakeClock, seconds: float) -> None:
    """Let time pass, with a look whenever it asked for one."""
    until = clock.ms + seconds * 1000
    while clock.ms <= until:
        clock.advance(max(upkeep.step(), 0.001))


# --- periodic jobs ----------------------------------------------------------------


def test_an_images_job_is_enqueued_when_it_falls_due_and_not_before(
    make: Make, queue: Queue, clock: FakeClock
) -> None:
    entry = PeriodicSettings(cron="0 3 * * *", uri="https://host/{tick}.jpg", pipeline="pins")
    upkeep = make(cam=entry)
    walk(upkeep, clock, 89)
    assert clock.ms % 60_000 == 0, "it looks again the moment it falls due"
    assert keys(queue) == []
    upkeep.step()
    (job,) = queue.scan()
    assert (job.queue, job.key) == ("pins", "cam-20260501T0300")
    assert job.uri == "https://host/20260501T0300.jpg"
    assert (job.priority, job.max_attempts) == (3, 2), "as its pipeline has it"
    walk(upkeep, clock, HOUR)
    assert len(keys(queue)) == 1


def test_an_entrys_priority_comes_before_its_pipelines(make: Make, queue: Queue) -> None:
    entry = PeriodicSettings(cron="* * * * *", uri="https://host/x", pipeline="pins", priority=9)
    make(cam=entry).step()
    (job,) = queue.scan()
    assert job.priority == 9


def test_an_actor_gets_its_message(make: Make, queue: Queue) -> None:
    make(dump=MESSAGE).step()
    got: list[tuple[object, ...]] = []
    done = threading.Event()
    broker = QueueBroker(queue, worker="test")

    def dump(kind: str, level: int, *, deep: bool) -> None:
        got.append((kind, level, deep))
        done.set()

    dramatiq.actor(actor_name="dump", queue_name="tasks", broker=broker)(dump)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=20)
    worker.start()
    assert done.wait(20)
    worker.stop()
    broker.close()
    assert got == [("daily", 3, True)]
    (job,) = queue.scan()
    assert (job.key, job.state) == ("dump-20260501T0258", State.SUCCEEDED)


def test_a_messages_priority_is_the_jobs(make: Make, queue: Queue) -> None:
    entry = PeriodicSettings(cron="* * * * *", actor="dump", queue="tasks", priority=2)
    make(dump=entry).step()
    (job,) = queue.scan()
    assert job.priority == 2


def test_only_the_elected_one_fires(make: Make, queue: Queue, clock: FakeClock) -> None:
    first, second = make("a", cam=MINUTELY), make("b", cam=MINUTELY)
    first.step()
    queue.delete(Filter(queue="pins"))
    assert second.step() > 1
    assert keys(queue) == []


def test_a_tick_that_the_dead_left_unfired_is_fired_by_the_next_one_elected(
    make: Make, queue: Queue, clock: FakeClock
) -> None:
    dying = Flaky(queue)
    first, second = make("a", of=dying, cam=MINUTELY), make("b", cam=MINUTELY)
    walk(first, clock, 15)
    second.step()
    dying.trouble["enqueue"] = QueueUnavailable("and it is gone")
    clock.ms = round(datetime(2026, 5, 1, 2, 59, tzinfo=UTC).timestamp() * 1000)
    with pytest.raises(QueueUnavailable):
        first.step()
    assert keys(queue) == ["cam-20260501T0258"]
    walk(second, clock, 40)
    assert keys(queue) == ["cam-20260501T0258", "cam-20260501T0259"]


def test_two_who_both_believe_to_be_elected_fire_a_tick_once(
    make: Make, queue: Queue, clock: FakeClock
) -> None:
    first, second = make("a", cam=MINUTELY), make("b", cam=MINUTELY)
    for _ in range(4):
        first.step()
        queue.resign(ROLE, "a")
        second.step()
        queue.resign(ROLE, "b")
        clock.advance(30)
    assert keys(queue) == [f"cam-20260501T02{minute}" for minute in (58, 59)] + [
        "cam-20260501T0300"
    ]


def test_a_tick_whose_job_has_ended_is_not_fired_again_though_signals_have_changed(
    make: Make, queue: Queue
) -> None:
    make("a", cam=MINUTELY).step()
    end_all(queue)
    queue.resign(ROLE, "a")
    queue.declare("pins", source="/pinq/pins", signals=["pdq@2"])
    make("b", cam=MINUTELY).step()
    (job,) = queue.scan()
    assert job.state is State.SUCCEEDED


def test_what_fell_due_while_nobody_worked_is_made_up_for_only_if_it_was_just_now(
    make: Make, queue: Queue, clock: FakeClock
) -> None:
    make("a", cam=MINUTELY).step()
    clock.advance(HOUR)
    make("b", cam=MINUTELY).step()
    assert keys(queue) == ["cam-20260501T0258", "cam-20260501T0358"]


def test_a_worker_makes_up_for_some_minutes_without_its_queue(
    make: Make, queue: Queue, clock: FakeClock
) -> None:
    upkeep = make(cam=MINUTELY)
    upkeep.step()
    clock.advance(150)
    upkeep.step()
    assert keys(queue) == [f"cam-20260501T{hhmm}" for hhmm in ("0258", "0259", "0300", "0301")]
    clock.advance(HOUR)
    upkeep.step()
    assert len(keys(queue)) == 4 + 4, "but not for an hour"


def test_a_clock_that_is_set_back_fires_nothing_twice_and_goes_on(
    make: Make, queue: Queue, clock: FakeClock
) -> None:
    upkeep = make(cam=MINUTELY)
    walk(upkeep, clock, 300)
    end_all(queue)
    before = keys(queue)
    clock.advance(-240)
    walk(upkeep, clock, 200)
    assert keys(queue) == before
    walk(upkeep, clock, 120)
    assert len(keys(queue)) > len(before)


def test_a_clock_that_was_a_year_ahead_stops_nothing(
    make: Make, queue: Queue, clock: FakeClock
) -> None:
    upkeep = make(cam=MINUTELY)
    clock.advance(365 * DAY)
    upkeep.step()
    clock.advance(-365 * DAY)
    queue.delete(Filter(queue="pins"))
    walk(upkeep, clock, 120)
    assert keys(queue) == ["cam-20260501T0259", "cam-20260501T0300"]


def test_a_queue_that_drains_gets_nothing_and_the_others_do(
    make: Make, queue: Queue, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    queue.control("pins", Controls(draining=True))
    upkeep = make(cam=MINUTELY, dump=MESSAGE)
    upkeep.step()
    assert keys(queue) == ["dump-20260501T0258"]
    assert "periodic.skipped key=cam-20260501T0258" in caplog.text
    queue.control("pins", Controls())
    walk(upkeep, clock, 31)
    assert keys(queue) == ["dump-20260501T0258", "cam-20260501T0259", "dump-20260501T0259"]


# --- retention --------------------------------------------------------------------


def add(queue: Queue, count: int) -> None:
    queue.enqueue("pins", [NewJob(f"j{number}") for number in range(count)])


def states(queue: Queue) -> set[State]:
    return {job.state for job in queue.scan()}


def test_each_state_is_kept_as_long_as_the_settings_say(
    make: Make, queue: Queue, clock: FakeClock
) -> None:
    upkeep = make(retention=RetentionSettings(succeeded_hours=1, dead_hours=2))
    add(queue, 3)
    end_all(queue)
    queue.enqueue("pins", [NewJob("gone")])
    end_all(queue, dead=True)
    walk(upkeep, clock, HOUR - 70)
    assert states(queue) == {State.SUCCEEDED, State.DEAD}
    walk(upkeep, clock, 140)
    assert states(queue) == {State.DEAD}
    walk(upkeep, clock, HOUR)
    assert states(queue) == set()


def test_inf_keeps_for_ever(make: Make, queue: Queue, clock: FakeClock) -> None:
    forever = RetentionSettings(succeeded_hours=float("inf"), dead_hours=float("inf"))
    add(queue, 3)
    end_all(queue)
    clock.advance(20 * 365 * DAY)
    make(retention=forever).step()
    assert len(keys(queue)) == 3


@pytest.mark.parametrize("dead", [False, True])
def test_however_short_retention_is_a_ticks_job_stays_as_long_as_anybody_looks_back(
    make: Make, queue: Queue, clock: FakeClock, dead: bool
) -> None:
    at_once = RetentionSettings(succeeded_hours=0, dead_hours=0)
    daily = PeriodicSettings(cron="0 3 * * *", uri="https://host/x", pipeline="pins")
    standing_by = {delay: make(f"late{delay}", at_once, cam=daily) for delay in range(20, 600, 20)}
    queue.elect(ROLE, "somebody", 80)
    clock.advance(60)  # 02:59:30
    for upkeep in standing_by.values():
        upkeep.step()
    ran: list[str] = []
    for delay in range(20, 600, 20):
        clock.advance(20)
        # Of those elected one after the other some have just come, some have been away since.
        for upkeep in (make("new", at_once, cam=daily), standing_by[delay]):
            upkeep.step()
            for holder in queue.holders():
                queue.resign(ROLE, holder)
            ran += [job.key for job in queue.scan(Filter(states=[State.PENDING]))]
            end_all(queue, dead=dead)
    assert ran == ["cam-20260501T0300"]
    assert keys(queue) == []


def test_old_jobs_go_in_batches_with_pauses_as_long_as_these_took(
    make: Make, queue: Queue, clock: FakeClock
) -> None:
    slow = Flaky(queue)
    slow.before["prune"] = lambda: clock.advance(0.4)
    add(queue, 600)
    end_all(queue)
    clock.advance(2 * DAY)
    upkeep = make(of=slow)
    left, pauses = [], []
    for _ in range(3):
        pauses.append(round(upkeep.step(), 3))
        left.append(len(keys(queue)))
        clock.advance(pauses[-1] + 0.001)
    assert left == [350, 100, 0]
    assert pauses[:2] == [0.4, 0.4]
    assert pauses[2] > 10


def test_ticks_are_fired_between_batches(make: Make, queue: Queue, clock: FakeClock) -> None:
    add(queue, 2000)
    end_all(queue)
    clock.advance(2 * DAY)
    slow = Flaky(queue)
    slow.before["prune"] = lambda: clock.advance(20)
    walk(make(of=slow, cam=MINUTELY), clock, 210)
    fired = [key for key in keys(queue) if key.startswith("cam-")]
    assert fired == [f"cam-20260503T{hhmm}" for hhmm in ("0258", "0259", "0300", "0301")]
    assert 0 < len(keys(queue)) - len(fired) < 2000, "not done yet"


# --- the loop -----------------------------------------------------------------------


def test_no_trouble_ends_it(
    make: Make, queue: Queue, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    flaky = Flaky(queue)
    flaky.trouble["now_ms"] = QueueUnavailable("down")
    pauses: list[float] = []

    def pause(event: threading.Event, seconds: float) -> None:
        pauses.append(seconds)
        clock.advance(seconds)
        if len(pauses) == 10:
            flaky.trouble = {"prune": RuntimeError("unheard of")}
        if len(pauses) == 20:
            flaky.trouble = {"resign": QueueUnavailable("down again")}
            event.set()

    make(of=flaky, pause=pause, cam=MINUTELY).run()
    assert pauses[0] <= 0.5 < 5 <= pauses[9] <= 10
    assert keys(queue), "periodic jobs do not wait for retention"
    for line in ("QueueUnavailable: down", "RuntimeError: unheard of", "upkeep.resign_failed"):
        assert line in caplog.text


def test_the_role_is_given_up_in_the_end(make: Make, queue: Queue) -> None:
    first = make("a")
    first.start()
    queue_has(queue, "a")
    first.stop()
    first.stop()
    assert queue.elect(ROLE, "b", 60)


def queue_has(queue: Queue, holder: str) -> None:
    seen = 0
    for _ in range(200):
        if holder in queue.holders():
            return
        seen = queue.wait(seen, 0.1)
    raise AssertionError(f"{holder} was not elected")


def test_what_it_does_is_logged(
    make: Make, queue: Queue, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pinq.upkeep")
    add(queue, 300)
    end_all(queue)
    clock.advance(2 * DAY)
    walk(make(cam=MINUTELY), clock, 1)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "upkeep.elected holder=a",
        "periodic.fired key=cam-20260503T0258 queue=pins",
        "retention.pruned jobs=300",
    ]
