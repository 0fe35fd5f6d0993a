"""What a queue shows of its jobs, and changes of many at once: by filter."""

import json

import pytest

from pinq.errors import FailureClass, InvalidInput
from pinq.queue.contract import Queue
from pinq.queue.model import (
    Dead,
    Failure,
    Filter,
    NewJob,
    Outcome,
    Retry,
    State,
    Succeeded,
)

from ..conftest import FakeClock
from .conftest import Q
from .steps import BUSY, GONE, add, job, keys, lease

# --- views ------------------------------------------------------------------------


def test_scan_pages_through_everything_in_order_of_arrival(queue: Queue) -> None:
    add(queue, *(f"k{n}" for n in range(25)))
    queue.enqueue("other", [NewJob("z", "file:///z")])
    found = queue.lease(Q, 3, 60, "w")
    assert found
    queue.finish(found.token, [Dead(one.id, GONE) for one in found.jobs])
    assert [one.key for one in queue.scan(Filter(Q), batch=7)] == [f"k{n}" for n in range(25)]
    assert len(list(queue.scan(batch=7))) == 26
    dead = list(queue.scan(Filter(Q, states=[State.DEAD]), batch=2))
    assert [one.key for one in dead] == ["k0", "k1", "k2"]
    assert all(one.errors[0].message == "no such file" for one in dead)


def test_count_tells_the_states_apart(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a", "b", "c", "d")
    add(queue, "future", run_at_ms=clock() + 1000)
    found = queue.lease(Q, 3, 60, "w")
    assert found
    queue.finish(found.token, [Succeeded(found.jobs[0].id), Dead(found.jobs[1].id, GONE)])
    counts = queue.count(Q)
    assert (counts.pending, counts.scheduled, counts.leased) == (2, 1, 1)
    assert (counts.succeeded, counts.dead) == (1, 1)
    assert counts.dead_by_class == {"fetch_gone": 1}


def test_unfinished_can_leave_out_what_is_scheduled_but_not_what_is_retried(
    queue: Queue, clock: FakeClock
) -> None:
    assert not queue.unfinished([Q, "nobody"])
    add(queue, "future", run_at_ms=clock() + 60_000)
    assert queue.unfinished([Q])
    assert not queue.unfinished([Q], scheduled=False)
    add(queue, "a")
    assert queue.unfinished([Q], scheduled=False)
    found = queue.lease(Q, 1, 60, "w")
    assert found
    assert queue.unfinished([Q], scheduled=False)
    queue.finish(found.token, [Retry(found.jobs[0].id, BUSY, 30)])
    assert queue.unfinished([Q], scheduled=False)


def test_requeue_gives_dead_jobs_all_their_attempts_again(queue: Queue) -> None:
    add(queue, "a", "b", "c")
    found = queue.lease(Q, 3, 60, "w")
    assert found
    queue.finish(found.token, [Dead(one.id, GONE) for one in found.jobs])
    assert queue.requeue(Filter(Q, ["b", "nobody"])) == 1
    assert job(queue, "b").attempts == 0
    assert len(job(queue, "b").errors) == 1, "its history stays"
    assert queue.requeue(Filter(Q)) == 2
    assert queue.requeue(Filter(Q)) == 0
    assert queue.count(Q).pending == 3


def test_requeue_of_very_many_works_in_steps(queue: Queue) -> None:
    everything = [f"k{n}" for n in range(2500)]
    add(queue, *everything)
    found = queue.lease(Q, 2500, 60, "w")
    assert found
    queue.finish(found.token, [Dead(one.id, GONE) for one in found.jobs])
    assert queue.requeue(Filter(Q, everything)) == 2500


# --- filters ----------------------------------------------------------------------


@pytest.fixture
def mixed(queue: Queue, clock: FakeClock) -> Queue:
    """Jobs of every kind, in two queues."""
    queue.enqueue("other", [NewJob("elsewhere", "file:///elsewhere.jpg")])
    add(queue, "low", priority=9)
    add(queue, "later", run_at_ms=clock.ms + 60_000)
    add(queue, "gone", "refused", "retried", "held", "done")
    found = queue.lease(Q, 5, 600, "w")
    assert found and keys(list(found.jobs)) == ["gone", "refused", "retried", "held", "done"]
    gone, refused, retried, _held, done = (one.id for one in found.jobs)
    queue.finish(
        found.token,
        [
            Dead(gone, GONE),
            Dead(refused, Failure(FailureClass.REFUSED, "too large")),
            Retry(retried, BUSY, 0),
            Succeeded(done),
        ],
    )
    return queue


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), "elsewhere low later gone refused retried held done"),
        (Filter("other"), "elsewhere"),
        (Filter("unheard of"), ""),
        (Filter(Q, ["low", "elsewhere", "nobody"]), "low"),
        (Filter(keys=[]), ""),
        (Filter(states=[State.DEAD]), "gone refused"),
        (Filter(states=[State.LEASED, State.SUCCEEDED]), "held done"),
        (Filter(states=[]), ""),
        (Filter(priorities=[9, 1]), "low"),
        (Filter(error_class="fetch_gone"), "gone"),
        (Filter(error_class="fetch_transient"), "retried"),
        (Filter(scheduled=True), "later"),
        (Filter(Q, scheduled=False), "low gone refused retried held done"),
        (Filter(uri="*/re*"), "refused retried"),
        (Filter(uri="file:///?one.jpg"), "gone done"),
        (Filter(uri="file:///[gd]one.jpg"), ""),
        (Filter(uri="FILE:*"), ""),
        (Filter(uri="done"), ""),
        (Filter(Q, states=[State.PENDING], priorities=[5], scheduled=False), "retried"),
    ],
)
def test_a_filter_means_the_jobs_that_match_all_of_it(
    mixed: Queue, wanted: Filter, expected: str
) -> None:
    assert [one.key for one in mixed.scan(wanted, batch=2)] == expected.split()


def test_pages_go_on_where_they_ended_whatever_happens_between(queue: Queue) -> None:
    add(queue, *"abcdefg")
    first = queue.page(Filter(Q), limit=3)
    assert [one.key for one in first.jobs] == ["a", "b", "c"]
    assert first.continuation is not None
    queue.delete(Filter(Q, ["c", "d"]))
    add(queue, "h")
    second = queue.page(Filter(Q), after=first.continuation, limit=10)
    assert [one.key for one in second.jobs] == ["e", "f", "g", "h"]
    assert second.continuation is None
    with pytest.raises(InvalidInput, match="continuation"):
        queue.page(Filter(Q), after="x'")


def test_jobs_are_counted_in_groups(mixed: Queue) -> None:
    assert mixed.group("state") == {"pending": 4, "dead": 2, "leased": 1, "succeeded": 1}
    assert mixed.group("queue") == {Q: 7, "other": 1}
    assert mixed.group("priority", Filter(Q)) == {"5": 6, "9": 1}
    assert mixed.group("error", Filter(states=[State.DEAD])) == {"fetch_gone": 1, "refused": 1}
    assert mixed.group("error", Filter("other")) == {"none": 1}
    assert mixed.group("state", Filter("unheard of")) == {}
    with pytest.raises(InvalidInput, match="none of state, queue, priority, error"):
        mixed.group("uri")


# --- many jobs at once ------------------------------------------------------------


def test_a_dry_run_counts_and_changes_nothing(mixed: Queue) -> None:
    before = list(mixed.scan())
    assert mixed.requeue(Filter(), dry_run=True) == 2
    assert mixed.cancel(Filter(), dry_run=True) == 5
    assert mixed.delete(Filter(Q), dry_run=True) == 7
    assert list(mixed.scan()) == before


def test_a_requeue_takes_only_what_matches(mixed: Queue) -> None:
    assert mixed.requeue(Filter(error_class="refused")) == 1
    assert mixed.requeue(Filter(states=[State.SUCCEEDED, State.PENDING])) == 0
    assert job(mixed, "refused").state is State.PENDING
    assert job(mixed, "gone").state is State.DEAD


def test_a_requeue_at_a_rate_falls_due_bit_by_bit(queue: Queue, clock: FakeClock) -> None:
    add(queue, *(f"k{n}" for n in range(600)), max_attempts=1)
    found = queue.lease(Q, 600, 60, "w")
    assert found
    queue.finish(found.token, [Dead(one.id, GONE) for one in found.jobs])
    assert queue.requeue(Filter(Q), rate=100) == 600
    assert keys(lease(queue, 600)) == ["k0"]
    clock.advance(1)
    assert len(lease(queue, 600, "w2")) == 100
    clock.advance(5)
    assert len(lease(queue, 600, "w3")) == 499
    with pytest.raises(InvalidInput, match="above zero"):
        queue.requeue(Filter(Q), rate=0)


def test_what_is_cancelled_is_dead_announced_and_refused_to_its_holder(
    mixed: Queue, clock: FakeClock
) -> None:
    mixed.mark_published([event.position for event in mixed.unpublished(100)])
    found = mixed.lease(Q, 1, 60, "w2")
    assert found and found.jobs[0].key == "retried"
    assert mixed.cancel(Filter(Q)) == 4  # low, later, held, retried
    assert mixed.finish(found.token, [Succeeded(found.jobs[0].id)]).refused == [found.jobs[0].id]
    assert not mixed.renew(found.token, 60)
    assert mixed.count(Q).dead == 6 and mixed.count(Q).leased == 0
    assert job(mixed, "held").errors[-1].failure_class == "cancelled"
    told = mixed.unpublished(100)
    assert [event.subject for event in told] == ["low", "later", "retried", "held"]
    assert {event.type for event in told} == {"pinq.job.dead"}
    assert {json.loads(event.data)["reason"]["class"] for event in told} == {"cancelled"}
    clock.advance(700)  # the lease of the others expires, and finds nothing to take back
    assert lease(mixed) == []
    assert mixed.requeue(Filter(error_class="cancelled")) == 4
    assert len(lease(mixed)) == 4


def test_cancelling_one_job_of_a_lease_leaves_it_the_others(queue: Queue) -> None:
    add(queue, "a", "b")
    found = queue.lease(Q, 2, 60, "w")
    assert found
    assert queue.cancel(Filter(Q, ["a"])) == 1
    assert queue.renew(found.token, 60)
    finished = queue.finish(found.token, [Succeeded(one.id) for one in found.jobs])
    assert finished.succeeded == 1 and finished.refused == [found.jobs[0].id]
    assert job(queue, "a").state is State.DEAD
    assert not queue.renew(found.token, 60)


def test_what_is_deleted_is_forgotten_and_refused_to_its_holder(mixed: Queue) -> None:
    events = len(mixed.unpublished(100))
    found = mixed.lease(Q, 1, 60, "w2")
    assert found
    assert mixed.delete(Filter(Q)) == 7
    assert mixed.finish(found.token, [Succeeded(found.jobs[0].id)]).refused == [found.jobs[0].id]
    assert [one.key for one in mixed.scan()] == ["elsewhere"]
    assert len(mixed.unpublished(100)) == events
    assert add(mixed, "gone") == [Outcome.ENQUEUED]
    assert job(mixed, "gone").errors == ()


def test_thousands_are_changed_in_batches(queue: Queue) -> None:
    add(queue, *(f"k{n}" for n in range(1100)))
    assert queue.cancel(Filter(Q)) == 1100
    assert queue.requeue(Filter(Q, [f"k{n}" for n in range(1000)])) == 1000
    assert queue.delete(Filter(Q, states=[State.PENDING])) == 1000
    assert queue.count(Q).dead == 100


def test_the_last_page_has_no_continuation_even_if_it_is_full(queue: Queue) -> None:
    add(queue, "a", "b", "c", "d")
    first = queue.page(limit=2)
    assert first.continuation is not None
    last = queue.page(after=first.continuation, limit=2)
    assert [job.key for job in last.jobs] == ["c", "d"] and last.continuation is None
