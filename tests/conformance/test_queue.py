"""What every queue owes, on every backend: the sentences of pinq/queue/contract.py."""

import threading

from pinq.queue.contract import Queue
from pinq.queue.model import (
    Dead,
    NewJob,
    Outcome,
    State,
    Succeeded,
)

from ..conftest import FakeClock
from .conftest import Open, Q
from .steps import GONE, add, computed, job, keys, lease

# --- enqueue --------------------------------------------------------------------


def test_a_key_is_enqueued_once(queue: Queue) -> None:
    assert add(queue, "a", "b", "a") == [Outcome.ENQUEUED, Outcome.ENQUEUED, Outcome.DUPLICATE]
    assert add(queue, "b", "c") == [Outcome.DUPLICATE, Outcome.ENQUEUED]
    assert queue.count(Q).pending == 3


def test_an_empty_enqueue_does_nothing(queue: Queue) -> None:
    assert queue.enqueue(Q, []) == []


def test_the_same_key_in_two_queues_is_two_jobs(queue: Queue) -> None:
    add(queue, "a")
    assert queue.enqueue("other", [NewJob("a", "file:///a")])[0].outcome is Outcome.ENQUEUED
    assert queue.queues() == ["other", Q]


def test_an_answer_tells_the_state_of_the_job(queue: Queue) -> None:
    add(queue, "live", "done", "dead")
    found = queue.lease(Q, 3, 60, "w")
    assert found
    _live, done, dead = found.jobs
    queue.finish(found.token, [Succeeded(done.id), Dead(dead.id, GONE)])
    answers = queue.enqueue(Q, [NewJob(k, "file:///x") for k in ("live", "done", "dead")])
    assert [a.state for a in answers] == [State.LEASED, State.SUCCEEDED, State.DEAD]
    assert {a.outcome for a in answers} == {Outcome.DUPLICATE}


def test_a_succeeded_job_reruns_once_its_queue_computes_other_signals(queue: Queue) -> None:
    add(queue, "a")
    found = queue.lease(Q, 1, 60, "w")
    assert found
    queue.finish(found.token, [Succeeded(found.jobs[0].id)])
    queue.declare(Q, source="/pinq/pins", signals=["pdq@1"])
    assert add(queue, "a") == [Outcome.DUPLICATE]
    queue.declare(Q, source="/pinq/pins", signals=["pdq@1", "color@1"])
    assert add(queue, "a") == [Outcome.RERUN]
    assert add(queue, "a") == [Outcome.DUPLICATE]
    (again,) = lease(queue)
    assert again.attempt == 1 and not again.force


def test_force_reruns_what_is_done_or_dead_but_not_what_is_live(queue: Queue) -> None:
    add(queue, "live", "done", "dead")
    found = queue.lease(Q, 3, 60, "w")
    assert found
    queue.finish(found.token, [Succeeded(found.jobs[1].id), Dead(found.jobs[2].id, GONE)])
    answers = queue.enqueue(
        Q, [NewJob(k, "file:///x") for k in ("live", "done", "dead")], force=True
    )
    assert [a.outcome for a in answers] == [Outcome.DUPLICATE, Outcome.RERUN, Outcome.RERUN]
    rerun = lease(queue)
    assert [j.force for j in rerun] == [True, True]
    assert job(queue, "dead").errors == ()


def test_concurrent_enqueues_of_the_same_keys_make_each_once(open_again: Open) -> None:
    outcomes: list[Outcome] = []
    lock = threading.Lock()

    def enqueue(queue: Queue) -> None:
        for start in range(0, 200, 20):
            mine = add(queue, *(f"k{n}" for n in range(start, start + 20)))
            with lock:
                outcomes.extend(mine)

    threads = [threading.Thread(target=enqueue, args=(open_again(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(Outcome.ENQUEUED) == 200
    assert outcomes.count(Outcome.DUPLICATE) == 600


# --- lease ----------------------------------------------------------------------


def test_jobs_come_by_priority_then_due_time_then_arrival(queue: Queue, clock: FakeClock) -> None:
    add(queue, "late", priority=5)
    clock.advance(1)
    add(queue, "later", "latest", priority=5)
    add(queue, "urgent", priority=1)
    add(queue, "early", priority=5, run_at_ms=clock() - 9000)
    assert keys(lease(queue)) == ["urgent", "early", "late", "later", "latest"]


def test_no_more_than_the_limit_is_leased(queue: Queue) -> None:
    add(queue, *"abcde")
    assert keys(lease(queue, 2)) == ["a", "b"]
    assert keys(lease(queue, 2)) == ["c", "d"]
    assert keys(lease(queue, 2)) == ["e"]
    assert lease(queue, 2) == []


def test_a_job_is_not_leased_before_its_time(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a", run_at_ms=clock() + 5000)
    assert lease(queue) == []
    assert queue.next_due_ms(Q) == clock() + 5000
    clock.advance(5)
    assert keys(lease(queue)) == ["a"]


def test_a_future_job_of_high_priority_does_not_hold_up_the_others(
    queue: Queue, clock: FakeClock
) -> None:
    add(queue, "future", priority=1, run_at_ms=clock() + 5000)
    add(queue, "now", priority=9)
    assert keys(lease(queue)) == ["now"]


def test_an_unknown_queue_has_nothing_to_lease(queue: Queue) -> None:
    assert queue.lease("nobody", 1, 60, "w") is None
    assert queue.next_due_ms("nobody") is None


def test_many_threads_lease_each_job_once(queue: Queue, open_again: Open) -> None:
    add(queue, *(f"k{n}" for n in range(300)))
    leased: list[str] = []
    lock = threading.Lock()

    def work(other: Queue, name: str) -> None:
        while mine := lease(other, 7, name):
            with lock:
                leased.extend(keys(mine))

    threads = [threading.Thread(target=work, args=(open_again(), f"w{n}")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leased) == 300 == len(set(leased))


# --- outbox, roles, waiting ---------------------------------------------------------


def test_events_are_read_in_order_until_they_are_marked(queue: Queue) -> None:
    add(queue, *"abcde")
    found = queue.lease(Q, 5, 60, "w")
    assert found
    queue.finish(found.token, [Succeeded(one.id, computed(one.key)) for one in found.jobs])
    first = queue.unpublished(3)
    assert [event.subject for event in first] == ["a", "b", "c"]
    assert queue.unpublished(3) == first, "unmarked events come again, with their ids"
    queue.mark_published([event.position for event in first])
    assert [event.subject for event in queue.unpublished(9)] == ["d", "e"]
    assert len({event.id for event in [*first, *queue.unpublished(9)]}) == 5


def test_a_role_has_one_holder_at_a_time(queue: Queue, open_again: Open, clock: FakeClock) -> None:
    other = open_again()
    assert queue.elect("relay", "one", 10)
    assert not other.elect("relay", "two", 10)
    assert queue.elect("relay", "one", 10), "the holder renews"
    clock.advance(11)
    assert other.elect("relay", "two", 10)
    assert not queue.elect("relay", "one", 10)
    queue.resign("relay", "one")  # not held: nothing
    other.resign("relay", "two")
    assert queue.elect("relay", "one", 10)


def test_a_waiter_wakes_at_anothers_commit(queue: Queue, open_again: Open) -> None:
    other = open_again()
    seen = queue.wait(0, 0)
    woken = threading.Event()
    waiting = threading.Thread(target=lambda: queue.wait(seen, 30) != seen and woken.set())
    waiting.start()
    add(other, "a")
    assert woken.wait(10)
    waiting.join()


def test_a_commit_between_reading_and_waiting_is_not_missed(queue: Queue, open_again: Open) -> None:
    other = open_again()
    queue.wait(queue.wait(0, 0), 0.05)  # the watch is set up
    for n in range(20):
        seen = queue.wait(0, 0)
        add(other, f"k{n}")
        assert queue.wait(seen, 10) != seen


def test_what_was_committed_is_there_after_opening_again(queue: Queue, open_again: Open) -> None:
    add(queue, "a", "b")
    found = queue.lease(Q, 1, 60, "w")
    assert found
    queue.finish(found.token, [Succeeded(found.jobs[0].id, computed("a"))])
    queue.close()
    again = open_again()
    assert job(again, "a").state is State.SUCCEEDED
    assert job(again, "b").state is State.PENDING
    assert len(again.unpublished(9)) == 1
