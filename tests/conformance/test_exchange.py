"""Several queues at once, answers in the same call, and dry runs."""

import pytest

from pinq.errors import FailureClass, InvalidInput
from pinq.queue.contract import Queue
from pinq.queue.model import (
    Answer,
    Controls,
    Dead,
    Event,
    Exchange,
    Failure,
    NewJob,
    Retry,
    State,
    Succeeded,
)

from ..conftest import FakeClock

GONE = Failure(FailureClass.FETCH_GONE, "no such file")


@pytest.fixture
def both(queue: Queue) -> Queue:
    for name, jobs in (("x", ["x5", "x1", "x9"]), ("y", ["y5", "y1", "y7"])):
        queue.enqueue(name, [NewJob(key, priority=int(key[1])) for key in jobs])
    return queue


def keys(exchange: Exchange) -> list[str]:
    return [job.key for lease in exchange.leases for job in lease.jobs]


def test_the_jobs_of_highest_priority_are_taken_whichever_queue_they_are_in(both: Queue) -> None:
    taken = both.exchange(["x", "y"], 3, 60, "w")
    assert sorted(keys(taken)) == ["x1", "x5", "y1"]
    assert [lease.queue for lease in taken.leases] == ["x", "y"]
    assert sorted(keys(both.exchange(["y", "x"], 10, 60, "w"))) == ["x9", "y5", "y7"]
    assert not both.exchange(["x", "y"], 10, 60, "w").leases


def test_each_lease_is_finished_by_its_own_token(both: Queue) -> None:
    first, second = both.exchange(["x", "y"], 6, 60, "w").leases
    assert first.token != second.token
    finished = both.finish(second.token, [Succeeded(job.id) for job in second.jobs])
    assert finished.succeeded == 3
    assert both.count(second.queue).succeeded == 3


def test_earlier_leases_are_answered_in_the_same_call(both: Queue) -> None:
    x, y = both.exchange(["x", "y"], 2, 60, "w").leases
    event = Event("pinq.signal.computed", "/pinq/x", "x1", {})
    answers = [
        Answer(x.token, [Succeeded(x.jobs[0].id, event)]),
        Answer(y.token, [Dead(y.jobs[0].id, GONE)]),
    ]
    done = both.exchange(["x", "y"], 2, 60, "w", answers=answers)
    assert [(f.succeeded, f.dead) for f in done.finished] == [(1, 0), (0, 1)]
    assert sorted(keys(done)) == ["x5", "y5"]
    assert sorted(e.subject for e in both.unpublished(10)) == ["x1", "y1"]
    assert both.lookup("y", ["y1"])["y1"].state is State.DEAD


def test_stale_answers_are_refused_and_the_rest_goes_on(both: Queue, clock: FakeClock) -> None:
    (x,) = both.exchange(["x"], 1, 60, "w").leases
    both.release(x.token)
    done = both.exchange(["y"], 1, 60, "w", answers=[Answer(x.token, [Succeeded(x.jobs[0].id)])])
    assert list(done.finished[0].refused) == [x.jobs[0].id]
    assert keys(done) == ["y1"]


def test_answers_may_come_without_asking_for_more(both: Queue) -> None:
    (x,) = both.exchange(["x"], 1, 60, "w").leases
    done = both.exchange([], 0, 60, "w", answers=[Answer(x.token, [Succeeded(x.jobs[0].id)])])
    assert done.finished[0].succeeded == 1 and not done.leases


def test_each_queue_keeps_its_own_limits(both: Queue) -> None:
    both.control("x", Controls(in_flight=1))
    both.control("y", Controls(paused=True))
    assert keys(both.exchange(["x", "y", "unknown"], 10, 60, "w")) == ["x1"]


def test_a_suspect_of_either_queue_is_leased_alone(both: Queue, clock: FakeClock) -> None:
    both.exchange(["y"], 1, 60, "dying")
    clock.advance(61)
    both.control("x", Controls(paused=True))
    assert keys(both.exchange(["x", "y"], 10, 60, "w")) == ["y1"]
    both.control("x", Controls())
    assert keys(both.exchange(["x", "y"], 10, 60, "w")) == [], "not beside a suspect"


def test_a_dry_run_shows_what_would_be_leased_and_changes_nothing(both: Queue) -> None:
    both.control("x", Controls(rate=1.0))
    for _ in range(3):
        shown = both.exchange(["x", "y"], 2, 60, "w", dry_run=True)
        assert sorted(keys(shown)) == ["x1", "y1"]
        assert {lease.token for lease in shown.leases} == {""}
    assert both.holders() == []
    assert both.lookup("x", ["x1"])["x1"].attempts == 0
    assert sorted(keys(both.exchange(["x", "y"], 2, 60, "w"))) == ["x1", "y1"]


def test_a_dry_run_takes_no_answers(both: Queue) -> None:
    (x,) = both.exchange(["x"], 1, 60, "w").leases
    with pytest.raises(InvalidInput, match="dry run"):
        both.exchange(["y"], 1, 60, "w", answers=[Answer(x.token, [])], dry_run=True)


def test_what_the_answers_make_due_is_leased_in_the_same_call(queue: Queue) -> None:
    queue.enqueue("x", [NewJob("only")])
    (x,) = queue.exchange(["x"], 5, 60, "w").leases
    assert queue.lease("x", 5, 60, "w") is None
    again = Answer(x.token, [Retry(x.jobs[0].id, GONE, 0)])
    assert keys(queue.exchange(["x"], 5, 60, "w", answers=[again])) == ["only"]


@pytest.mark.parametrize("names", [["x", "y"], ["y", "x"]])
def test_what_expired_in_one_queue_is_held_no_more_in_the_others(
    queue: Queue, clock: FakeClock, names: list[str]
) -> None:
    queue.enqueue("y", [NewJob("waits")])
    queue.enqueue("x", [NewJob("lost", priority=1)])
    assert queue.lease("x", 1, 1, "w") is not None
    clock.advance(2)
    assert keys(queue.exchange(names, 5, 60, "w")) == ["lost"], "a suspect, alone"
