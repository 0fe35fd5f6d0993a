"""The relay, against an outbox in memory and a clock that moves only when it waits."""

import errno
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from pinq.errors import QueueUnavailable, ReadOnlyHome, SinkError, StorageFull
from pinq.outbox import relay as relay_module
from pinq.outbox.relay import Relay
from pinq.outbox.sinks.contract import CloudEvent
from pinq.queue.contract import Queue
from pinq.queue.model import StoredEvent


class World:
    """A clock, and what happens when it reaches a time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.plans: list[tuple[float, Callable[[], object]]] = []

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Do it so many seconds after the start."""
        self.plans.append((1000.0 + seconds, action))

    def advance(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        end = self.now + seconds
        assert end < 20_000, "nothing ends this run"
        while not until():
            due = [plan for plan in self.plans if plan[0] <= end]
            if not due:
                self.now = end
                return
            plan = min(due, key=lambda one: one[0])
            self.plans.remove(plan)
            self.now = max(self.now, plan[0])
            plan[1]()

    @property
    def elapsed(self) -> float:
        return round(self.now - 1000.0, 3)

    def pause(self, event: threading.Event, seconds: float) -> object:
        self.advance(seconds, event.is_set)
        return event.is_set()


class Outbox:
    """The verbs of a queue that a relay uses."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events: list[StoredEvent] = []
        self.marked: list[str] = []
        self.role: tuple[str, float] | None = None
        self.commits = 1
        self.elections = 0
        self.reads = 0
        self.count = 0
        self.trouble: dict[str, Exception] = {}

    def add(self, subject: str = "s", count: int = 1) -> None:
        for _ in range(count):
            self.count += 1
            self.events.append(
                StoredEvent(
                    position=self.count,
                    id=f"event-{self.count}",
                    type="pinq.signal.computed",
                    source="/pinq/g",
                    subject=subject,
                    time_ms=self.now_ms(),
                    data=json.dumps({"number": self.count}),
                )
            )
        self.commits += 1

    def now_ms(self) -> int:
        return int(self.world.now * 1000)

    def unpublished(self, limit: int) -> list[StoredEvent]:
        self._maybe("unpublished")
        self.reads += 1
        return self.events[:limit]

    def mark_published(self, positions: Sequence[int]) -> None:
        self._maybe("mark_published")
        self.marked += [event.id for event in self.events if event.position in positions]
        self.events = [event for event in self.events if event.position not in positions]
        self.commits += 1

    def elect(self, role: str, holder: str, seconds: float) -> bool:
        self._maybe("elect")
        self.elections += 1
        assert role == "relay"
        if self.role and self.role[0] != holder and self.role[1] > self.world.now:
            return False
        self.role = (holder, self.world.now + seconds)
        self.commits += 1
        return True

    def resign(self, role: str, holder: str) -> None:
        if self.role and self.role[0] == holder:
            self.role = None

    def wait(self, seen: int, timeout_seconds: float) -> int:
        self.world.advance(timeout_seconds, lambda: self.commits != seen)
        return self.commits

    def _maybe(self, verb: str) -> None:
        if verb in self.trouble:
            raise self.trouble[verb]


class Collector:
    """A sink that keeps what it gets, and refuses when told to."""

    def __init__(self, world: World, linger_seconds: float = 0.0, max_events: int = 100) -> None:
        self.world = world
        self.linger_seconds = linger_seconds
        self.max_events = max_events
        self.batches: list[list[str]] = []
        self.times: list[float] = []
        self.tries: list[float] = []
        self.trouble: Exception | None = None

    def publish(self, events: Sequence[CloudEvent]) -> None:
        self.tries.append(self.world.elapsed)
        if self.trouble:
            raise self.trouble
        assert 0 < len(events) <= self.max_events
        self.batches.append([event["id"] for event in events])
        self.times.append(self.world.elapsed)

    def close(self) -> None: ...

    @property
    def ids(self) -> list[str]:
        return [event for batch in self.batches for event in batch]


def ids(*numbers: int) -> list[str]:
    return [f"event-{number}" for number in numbers]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def outbox(world: World) -> Outbox:
    return Outbox(world)


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def relay(outbox: Outbox, *sinks: Collector, holder: str = "me", **options: Any) -> Relay:
    return Relay(
        cast(Queue, outbox),
        sinks,
        holder=holder,
        monotonic=lambda: outbox.world.now,
        pause=outbox.world.pause,
        **options,
    )


# Publishing


def test_until_empty_publishes_everything_in_order_without_lingering(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world, linger_seconds=1.0, max_events=4)
    outbox.add(count=10)
    assert relay(outbox, sink).run(stop, until_empty=True) == 10
    assert sink.ids == outbox.marked == ids(*range(1, 11))
    assert world.elapsed == 0
    assert outbox.role is None


def test_events_linger_as_long_as_the_sink_asks_and_go_together(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world, linger_seconds=1.0)
    for moment in (5.0, 5.2, 5.9, 6.5):
        world.at(moment, outbox.add)
    world.at(30, stop.set)
    assert relay(outbox, sink).run(stop) == 4
    assert sink.batches == [ids(1, 2, 3), ids(4)]
    assert sink.times == [pytest.approx(6.0, abs=0.01), pytest.approx(7.5, abs=0.01)]


def test_a_full_batch_does_not_linger(world: World, outbox: Outbox, stop: threading.Event) -> None:
    sink = Collector(world, linger_seconds=1.0, max_events=5)
    world.at(5.0, lambda: outbox.add(count=7))
    world.at(30, stop.set)
    assert relay(outbox, sink).run(stop) == 7
    assert sink.batches == [ids(1, 2, 3, 4, 5), ids(6, 7)]
    assert sink.times == [5.0, pytest.approx(6.0, abs=0.01)]


def test_a_sink_that_does_not_linger_gets_events_at_once_beside_one_that_does(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    slow, quick = Collector(world, linger_seconds=1.0), Collector(world)
    for moment in (5.0, 5.4):
        world.at(moment, outbox.add)
    world.at(30, stop.set)
    assert relay(outbox, slow, quick).run(stop) == 2
    assert quick.times == [5.0, 5.4]
    assert slow.batches == [ids(1, 2)]
    assert slow.times == [pytest.approx(6.0, abs=0.01)]


def test_an_event_from_before_the_clock_was_set_back_does_not_wait_for_it(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world, linger_seconds=1.0)
    outbox.add()
    outbox.events = [replace(outbox.events[0], time_ms=outbox.now_ms() + 3_600_000)]
    world.at(1.0, stop.set)
    assert relay(outbox, sink).run(stop) == 1
    assert sink.times == [0.0]


def test_events_without_any_sink_are_marked(outbox: Outbox, stop: threading.Event) -> None:
    outbox.add(count=3)
    assert relay(outbox).run(stop, until_empty=True) == 3


def test_an_idle_hour_costs_few_reads_and_elections(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    world.at(3600, stop.set)
    assert relay(outbox, Collector(world, linger_seconds=1.0)).run(stop) == 0
    assert outbox.elections <= 3600 / 5 + 1
    assert outbox.reads <= 2 * outbox.elections + 2  # its own renewal rings too


# Ending


def test_finish_ends_the_lingering_at_once(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world, linger_seconds=1.0)
    running = relay(outbox, sink)
    world.at(5.0, outbox.add)
    world.at(5.3, running.finish)
    assert running.run(stop) == 1
    assert sink.times == [5.3]
    assert outbox.role is None


def test_finish_ends_an_idle_relay_soon(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    running = relay(outbox, Collector(world))
    world.at(2.5, running.finish)
    assert running.run(stop) == 0
    assert world.elapsed <= 2.7


def test_finish_before_run_publishes_what_is_there(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    running = relay(outbox, Collector(world, linger_seconds=1.0))
    outbox.add(count=2)
    running.finish()
    assert running.run(stop) == 2


def test_stop_publishes_what_is_there_without_lingering_and_resigns(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world, linger_seconds=1.0)
    world.at(5.0, outbox.add)
    world.at(5.3, stop.set)
    assert relay(outbox, sink).run(stop) == 1
    assert world.elapsed <= 5.5
    assert outbox.role is None


def test_stop_does_not_wait_for_a_sink_in_trouble(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world)
    sink.trouble = SinkError("down")
    outbox.add()
    world.at(100.0, stop.set)
    assert relay(outbox, sink).run(stop) == 0
    assert world.elapsed <= 100.2
    assert outbox.role is None
    assert len(outbox.events) == 1


# Trouble


def test_a_failing_sink_is_tried_again_ever_more_slowly_and_nothing_is_lost(
    world: World, outbox: Outbox, stop: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Collector(world)
    sink.trouble = SinkError("the broker is away")
    outbox.add(count=3)
    world.at(300.0, lambda: setattr(sink, "trouble", None))
    world.at(400.0, stop.set)
    assert relay(outbox, sink).run(stop) == 3
    assert sink.ids == ids(1, 2, 3)
    gaps = [later - sooner for sooner, later in zip(sink.tries, sink.tries[1:], strict=False)]
    assert 0.1 <= gaps[0] <= 0.2
    assert all(15 <= gap <= 30.1 for gap in gaps[8:])
    assert len(sink.tries) < 40
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(sink.tries) - 1
    assert "the broker is away" in lines[0]


def test_a_sink_that_has_accepted_is_not_asked_again_for_another_that_has_not(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    good, bad = Collector(world), Collector(world)
    bad.trouble = SinkError("down")
    outbox.add(count=2)
    world.at(3.0, lambda: outbox.add(count=1))
    world.at(20.0, lambda: setattr(bad, "trouble", None))
    world.at(60.0, stop.set)
    assert relay(outbox, good, bad).run(stop) == 3
    assert good.ids == bad.ids == outbox.marked == ids(1, 2, 3)


@pytest.mark.parametrize("verb", ["unpublished", "mark_published", "elect"])
def test_an_unavailable_queue_is_tried_again_and_no_sink_gets_an_event_twice(
    world: World, outbox: Outbox, stop: threading.Event, verb: str
) -> None:
    sink = Collector(world)
    outbox.add(count=2)
    outbox.trouble[verb] = QueueUnavailable("locked")
    world.at(8.0, outbox.trouble.clear)
    world.at(60.0, stop.set)
    assert relay(outbox, sink).run(stop) == 2
    assert sink.ids == outbox.marked == ids(1, 2)


def test_a_disk_full_for_a_while_is_waited_out(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world)
    sink.trouble = StorageFull("full")
    outbox.add()
    world.at(20.0, lambda: setattr(sink, "trouble", None))
    assert relay(outbox, sink, patience_seconds=30).run(stop, until_empty=True) == 1


def test_a_disk_that_stays_full_ends_the_relay_with_that_error_and_the_role_is_free(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world)
    sink.trouble = StorageFull("no space for events")
    outbox.add()
    with pytest.raises(StorageFull, match="no space for events"):
        relay(outbox, sink, patience_seconds=30).run(stop)
    assert 30 <= world.elapsed <= 61
    assert outbox.role is None
    assert len(outbox.events) == 1


def test_trouble_that_patience_outlasted_does_not_count_against_the_next(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world)
    for moment in range(0, 200, 40):
        world.at(moment, lambda: setattr(sink, "trouble", StorageFull("full")))
        world.at(moment, outbox.add)
        world.at(moment + 15, lambda: setattr(sink, "trouble", None))
    world.at(300.0, stop.set)
    assert relay(outbox, sink, patience_seconds=30).run(stop) == 5


def test_a_sink_that_stays_down_is_waited_for_until_nothing_more_will_come(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world)
    sink.trouble = SinkError("down")
    outbox.add()
    running = relay(outbox, sink, patience_seconds=30)
    world.at(1000.0, running.finish)
    with pytest.raises(SinkError, match="down"):
        running.run(stop)
    assert 1000 <= world.elapsed <= 1000.2


def test_an_operating_system_out_of_space_counts_as_a_full_disk(
    world: World, outbox: Outbox, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(name: str) -> None:
        if name == "before_publish":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(relay_module, "failpoint", no_space)
    outbox.add()
    with pytest.raises(StorageFull):
        relay(outbox, Collector(world)).run(stop)


def test_what_waiting_does_not_mend_ends_the_relay_at_once(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world)
    sink.trouble = ReadOnlyHome("read-only")
    outbox.add()
    with pytest.raises(ReadOnlyHome):
        relay(outbox, sink).run(stop)
    assert world.elapsed == 0
    assert outbox.role is None


# Crashes and others


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize(
    ("point", "twice"), [("before_publish", False), ("after_publish", True), ("before_mark", True)]
)
def test_events_not_marked_when_a_relay_dies_are_published_again_with_the_same_ids(
    world: World,
    outbox: Outbox,
    stop: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    twice: bool,
) -> None:
    def die(name: str) -> None:
        if name == point:
            raise Killed

    sink = Collector(world)
    outbox.add(count=3)
    monkeypatch.setattr(relay_module, "failpoint", die)
    with pytest.raises(Killed):
        relay(outbox, sink, holder="dead").run(stop)
    monkeypatch.undo()
    assert relay(outbox, sink, holder="next").run(stop, until_empty=True) == 3
    assert sink.batches == [ids(1, 2, 3)] * (2 if twice else 1)


def test_a_relay_stands_by_while_another_works_and_takes_over_when_its_lease_ends(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    outbox.role = ("other", world.now + 10)
    sink = Collector(world)
    outbox.add()
    world.at(60.0, stop.set)
    assert relay(outbox, sink).run(stop) == 1
    assert 10 <= sink.times[0] <= 12.1


def test_commits_do_not_make_a_relay_that_stands_by_ask_for_the_role_more_often(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    outbox.role = ("other", world.now + 1000)
    for tick in range(1000):
        world.at(tick / 10, outbox.add)
    world.at(100.0, stop.set)
    assert relay(outbox, Collector(world)).run(stop) == 0
    assert outbox.elections <= 52


def test_until_empty_waits_for_the_other_relay_to_empty_the_outbox(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    outbox.role = ("other", world.now + 1000)
    outbox.add()
    world.at(3.0, lambda: outbox.mark_published([1]))
    assert relay(outbox, Collector(world)).run(stop, until_empty=True) == 0
    assert 3.0 <= world.elapsed <= 3.2
    assert outbox.role == ("other", 2000.0)


def test_a_relay_that_lost_its_role_meanwhile_stands_by(
    world: World, outbox: Outbox, stop: threading.Event
) -> None:
    sink = Collector(world)

    def overtake() -> None:
        outbox.role = ("other", world.now + 1000)
        outbox.add()

    world.at(7.0, overtake)
    world.at(20.0, outbox.add)
    world.at(40.0, stop.set)
    relay(outbox, sink).run(stop)
    # It can't know before it asks again: the event of the seventh second is its last.
    assert sink.ids == ids(1)
    assert outbox.role == ("other", 2007.0)
