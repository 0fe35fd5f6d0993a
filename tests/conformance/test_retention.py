"""Old jobs go, by state and age, a few at a time."""

from pinq.errors import FailureClass
from pinq.queue.contract import Queue
from pinq.queue.model import Dead, Failure, NewJob, Outcome, Succeeded

from ..conftest import FakeClock
from .conftest import Q

GONE = Failure(FailureClass.FETCH_GONE, "no such file")
DAY = 86_400.0


def end(queue: Queue, succeeded: int, dead: int, prefix: str = "") -> None:
    queue.enqueue(Q, [NewJob(f"{prefix}s{n}") for n in range(succeeded)])
    queue.enqueue(Q, [NewJob(f"{prefix}d{n}") for n in range(dead)])
    held = queue.lease(Q, succeeded + dead, 60, "w")
    assert held
    queue.finish(
        held.token,
        [
            Succeeded(job.id) if job.key.startswith(f"{prefix}s") else Dead(job.id, GONE)
            for job in held.jobs
        ],
    )


def prune(queue: Queue, limit: int = 250) -> int:
    return queue.prune(succeeded_seconds=DAY, dead_seconds=7 * DAY, limit=limit)


def test_each_state_has_its_own_age(queue: Queue, clock: FakeClock) -> None:
    end(queue, 2, 2)
    clock.advance(DAY)
    assert prune(queue) == 0
    clock.advance(1)
    assert prune(queue) == 2
    assert (queue.count(Q).succeeded, queue.count(Q).dead) == (0, 2)
    clock.advance(6 * DAY)
    assert prune(queue) == 2
    assert list(queue.scan()) == []


def test_no_more_than_the_limit_goes_at_once_and_the_oldest_first(
    queue: Queue, clock: FakeClock
) -> None:
    end(queue, 3, 0, "old")
    clock.advance(10)
    end(queue, 2, 0, "new")
    clock.advance(8 * DAY)
    assert prune(queue, limit=3) == 3
    assert sorted(job.key for job in queue.scan()) == ["news0", "news1"]
    assert prune(queue, limit=3) == 2
    assert prune(queue, limit=3) == 0


def test_what_is_not_ended_stays_however_old(queue: Queue, clock: FakeClock) -> None:
    queue.enqueue(Q, [NewJob("pending"), NewJob("leased", priority=1)])
    held = queue.lease(Q, 1, 60 * DAY, "w")
    assert held
    clock.advance(30 * DAY)
    assert prune(queue) == 0
    assert queue.finish(held.token, [Succeeded(held.jobs[0].id)]).succeeded == 1
    assert prune(queue) == 0, "it has only just succeeded"


def test_events_stay_until_they_are_published(queue: Queue, clock: FakeClock) -> None:
    end(queue, 0, 1)
    clock.advance(30 * DAY)
    assert prune(queue) == 1
    assert [event.subject for event in queue.unpublished(10)] == ["d0"]


def test_a_pruned_key_is_enqueued_as_new(queue: Queue, clock: FakeClock) -> None:
    end(queue, 1, 0)
    clock.advance(2 * DAY)
    prune(queue)
    (answer,) = queue.enqueue(Q, [NewJob("s0")])
    assert answer.outcome is Outcome.ENQUEUED
