"""What an operator tells a queue: pause, drain, limits, delete."""

import math

import pytest

from pinq.errors import InvalidInput, QueueDraining, QueueError
from pinq.queue.contract import Queue
from pinq.queue.model import (
    Controls,
    Dead,
    Filter,
    NewJob,
    Outcome,
    Retry,
    State,
    Succeeded,
)

from ..conftest import FakeClock
from .conftest import Open, Q
from .steps import BUSY, GONE, add, job, keys, lease

# --- controls -------------------------------------------------------------------


def test_a_new_queue_has_no_limits(queue: Queue) -> None:
    assert queue.controls(Q) == queue.controls("unheard of") == Controls()


def test_what_a_queue_was_told_is_known_to_all(queue: Queue, open_again: Open) -> None:
    told = Controls(paused=True, draining=True, rate=0.5, in_flight=3)
    queue.control(Q, told)
    assert open_again().controls(Q) == told


@pytest.mark.parametrize(
    "told", [Controls(rate=0), Controls(rate=-1.0), Controls(in_flight=0), Controls(rate=math.inf)]
)
def test_a_limit_that_admits_nothing_is_refused(queue: Queue, told: Controls) -> None:
    with pytest.raises(InvalidInput, match="above zero"):
        queue.control(Q, told)
    with pytest.raises(InvalidInput, match="above zero"):
        queue.control(Q, Controls(rate=math.nan))
    assert queue.controls(Q) == Controls()


def test_a_queue_that_is_not_there_cannot_be_told_anything(queue: Queue) -> None:
    with pytest.raises(InvalidInput, match="unheard"):
        queue.control("unheard of", Controls(paused=True))


def test_a_paused_queue_leases_nothing_and_what_is_leased_goes_on(queue: Queue) -> None:
    add(queue, "a", "b")
    held = queue.lease(Q, 1, 60, "w")
    assert held
    queue.control(Q, Controls(paused=True))
    assert queue.lease(Q, 1, 60, "w") is None
    assert queue.next_due_ms(Q) == held.expires_at_ms
    assert queue.renew(held.token, 60)
    assert queue.finish(held.token, [Succeeded(held.jobs[0].id)]).succeeded == 1
    assert queue.next_due_ms(Q) is None
    assert add(queue, "c") == [Outcome.ENQUEUED]
    queue.control(Q, Controls())
    assert keys(lease(queue)) == ["b", "c"]


def test_a_paused_queue_takes_back_what_expired(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a")
    lease(queue, seconds=10)
    queue.control(Q, Controls(paused=True))
    clock.advance(11)
    assert lease(queue) == []
    assert job(queue, "a").state is State.PENDING
    assert queue.next_due_ms(Q) is None


def test_a_draining_queue_takes_no_jobs_and_is_worked_off(queue: Queue) -> None:
    add(queue, "a")
    queue.control(Q, Controls(draining=True))
    for key in ("a", "b"):
        with pytest.raises(QueueDraining, match="pinq queues resume pins"):
            add(queue, key)
    found = queue.lease(Q, 10, 60, "w")
    assert found
    queue.finish(found.token, [Retry(found.jobs[0].id, BUSY, 0)])
    found = queue.lease(Q, 10, 60, "w")
    assert found
    queue.finish(found.token, [Dead(found.jobs[0].id, GONE)])
    assert queue.requeue(Filter(Q)) == 1
    queue.control(Q, Controls())
    assert add(queue, "b") == [Outcome.ENQUEUED]


def test_no_more_are_leased_at_once_than_the_limit(queue: Queue, clock: FakeClock) -> None:
    add(queue, *"abcdef")
    queue.control(Q, Controls(in_flight=3))
    first = queue.lease(Q, 2, 60, "w1")
    assert first
    assert len(lease(queue, 10, "w2", seconds=10)) == 1
    assert lease(queue, 10, "w3") == []
    assert queue.next_due_ms(Q) == clock.ms + 10_000
    queue.finish(first.token, [Succeeded(first.jobs[0].id)])
    due_ms = queue.next_due_ms(Q)
    assert due_ms is not None and due_ms <= clock.ms
    assert len(lease(queue, 10, "w3")) == 1
    clock.advance(11)  # w2 died
    assert len(lease(queue, 10, "w4")) == 1
    queue.control(Q, Controls(in_flight=1))
    assert lease(queue, 10, "w5") == []


def test_no_more_are_leased_in_a_second_than_the_rate(queue: Queue, clock: FakeClock) -> None:
    add(queue, *(f"k{n}" for n in range(40)))
    queue.control(Q, Controls(rate=4))
    assert len(lease(queue, 100, seconds=10_000)) == 4
    assert lease(queue, 100) == []
    assert queue.next_due_ms(Q) == clock.ms + 250
    clock.advance(0.249)
    assert lease(queue, 100) == []
    clock.advance(0.001)
    assert len(lease(queue, 100, "another", seconds=10_000)) == 1
    leased = 5
    for _ in range(33):
        clock.advance(0.1)
        leased += len(lease(queue, 100, seconds=10_000))
    assert leased == 5 + 13  # 3.3 s at 4 a second
    clock.advance(3600)
    assert len(lease(queue, 100)) == 4  # no more is saved up than a second's worth


def test_a_rate_may_be_a_fraction(queue: Queue, clock: FakeClock) -> None:
    add(queue, *"abc")
    queue.control(Q, Controls(rate=0.1))
    assert keys(lease(queue)) == ["a"]
    clock.advance(9.999)
    assert lease(queue) == []
    assert queue.next_due_ms(Q) == clock.ms + 1
    clock.advance(0.001)
    assert keys(lease(queue)) == ["b"]


def test_a_rate_is_changed_while_it_runs(queue: Queue, clock: FakeClock) -> None:
    add(queue, *(f"k{n}" for n in range(40)))
    queue.control(Q, Controls(rate=1))
    assert len(lease(queue)) == 1
    queue.control(Q, Controls(rate=1, paused=True))
    queue.control(Q, Controls(rate=1))
    assert lease(queue) == []  # a pause does not fill the bucket
    queue.control(Q, Controls(rate=3))
    assert len(lease(queue)) == 3
    queue.control(Q, Controls())
    assert len(lease(queue, 10)) == 10


def test_a_clock_that_goes_back_gives_no_tokens_and_takes_none(
    queue: Queue, clock: FakeClock
) -> None:
    add(queue, *"abcdef")
    queue.control(Q, Controls(rate=2))
    assert len(lease(queue, 10)) == 2
    assert lease(queue, 10) == []
    clock.advance(-3600)
    add(queue, *"ghi")
    assert lease(queue, 10) == []
    clock.advance(0.5)
    assert keys(lease(queue, 10)) == ["g"]
    assert lease(queue, 10) == []
    clock.advance(0.5)
    assert keys(lease(queue, 10)) == ["h"]


def test_what_a_limit_keeps_back_is_leased_once_it_is_lifted_elsewhere(
    queue: Queue, open_again: Open
) -> None:
    add(queue, "a")
    queue.control(Q, Controls(paused=True))
    assert lease(queue) == []
    seen = queue.wait(0, 0)
    open_again().control(Q, Controls())
    assert queue.wait(seen, 20) != seen
    assert keys(lease(queue)) == ["a"]


# --- deleting a queue -----------------------------------------------------------


def test_a_queue_with_work_is_not_deleted(queue: Queue) -> None:
    for state in ("pending", "leased", "dead"):
        add(queue, state)
    found = queue.lease(Q, 3, 60, "w")
    assert found
    queue.release(found.token, [found.jobs[0].id])
    queue.finish(found.token, [Dead(found.jobs[2].id, GONE)])
    with pytest.raises(QueueError, match="drain"):
        queue.drop(Q)
    assert queue.count(Q).pending == queue.count(Q).leased == queue.count(Q).dead == 1
    assert queue.controls(Q) == Controls()


def test_a_queue_is_deleted_by_force_and_its_leases_are_lost(queue: Queue) -> None:
    queue.enqueue("other", [NewJob("a", "file:///a")])
    add(queue, *(f"k{n}" for n in range(2500)))
    held = queue.lease(Q, 10, 60, "w")
    assert held
    queue.finish(held.token, [Dead(held.jobs[0].id, GONE)])
    assert queue.drop(Q, force=True) == 2500
    assert queue.queues() == ["other"]
    assert not queue.renew(held.token, 60)
    assert queue.finish(held.token, [Succeeded(held.jobs[1].id)]).refused == [held.jobs[1].id]
    assert [event.type for event in queue.unpublished(10)] == ["pinq.job.dead"]
    assert queue.drop(Q) == 0
    add(queue, "k1")
    assert job(queue, "k1").errors == ()
    assert queue.count("other").pending == 1


def test_a_queue_whose_jobs_all_succeeded_is_deleted(queue: Queue) -> None:
    add(queue, "a")
    found = queue.lease(Q, 1, 60, "w")
    assert found
    queue.finish(found.token, [Succeeded(found.jobs[0].id)])
    assert queue.drop(Q) == 1
    assert queue.queues() == []
