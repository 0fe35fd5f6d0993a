"""What every queue owes, on every backend: the sentences of pinq/queue/contract.py."""

import json
import math
import threading

import pytest

from pinq.errors import FailureClass, InvalidInput, QueueDraining, QueueError
from pinq.queue.contract import Queue
from pinq.queue.model import (
    Controls,
    Dead,
    Event,
    Failure,
    Filter,
    LeasedJob,
    NewJob,
    Outcome,
    Retry,
    State,
    Succeeded,
)

from ..conftest import FakeClock
from .conftest import Open, Q

GONE = Failure(FailureClass.FETCH_GONE, "no such file")
BUSY = Failure(FailureClass.FETCH_TRANSIENT, "the peer is busy")


def add(queue: Queue, *keys: str, **fields: int) -> list[Outcome]:
    jobs = [NewJob(key, f"file:///{key}.jpg", **fields) for key in keys]  # type: ignore[arg-type]
    return [answer.outcome for answer in queue.enqueue(Q, jobs)]


def lease(queue: Queue, limit: int = 10, worker: str = "w", seconds: float = 60) -> list[LeasedJob]:
    found = queue.lease(Q, limit, seconds, worker)
    return list(found.jobs) if found else []


def keys(jobs: list[LeasedJob]) -> list[str]:
    return [job.key for job in jobs]


def job(queue: Queue, key: str):  # type: ignore[no-untyped-def]
    return queue.lookup(Q, [key])[key]


def computed(key: str) -> Event:
    return Event("pinq.signal.computed", "/pinq/pins", key, {"signals": {"pdq": 1}})


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


# --- finish ---------------------------------------------------------------------


def test_finish_ends_each_job_as_told_and_stores_its_event(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a", "b", "c")
    found = queue.lease(Q, 3, 60, "w")
    assert found
    a, b, c = found.jobs
    finished = queue.finish(
        found.token, [Succeeded(a.id, computed("a")), Retry(b.id, BUSY, 7.5), Dead(c.id, GONE)]
    )
    assert (finished.succeeded, finished.retried, finished.dead) == (1, 1, 1)
    assert finished.refused == []
    assert job(queue, "a").state is State.SUCCEEDED
    assert job(queue, "b").state is State.PENDING
    assert job(queue, "b").run_at_ms == clock() + 7500
    assert job(queue, "b").errors[0].failure_class == "fetch_transient"
    assert job(queue, "c").state is State.DEAD
    done, dead = queue.unpublished(10)
    assert (done.type, done.subject) == ("pinq.signal.computed", "a")
    assert (dead.type, dead.subject, dead.source) == ("pinq.job.dead", "c", "/pinq/pins")
    assert json.loads(dead.data) == {
        "pipeline": Q,
        "attempt": 1,
        "reason": {"class": "fetch_gone", "message": "no such file"},
        "uri": "file:///c.jpg",
    }


def test_a_retry_of_the_last_attempt_is_dead(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a", max_attempts=2)
    for attempt in (1, 2):
        found = queue.lease(Q, 1, 60, "w")
        assert found and found.jobs[0].attempt == attempt
        finished = queue.finish(found.token, [Retry(found.jobs[0].id, BUSY, 1)])
        clock.advance(2)
    assert finished.dead == 1
    dead = job(queue, "a")
    assert dead.state is State.DEAD
    assert [error.attempt for error in dead.errors] == [1, 2]
    assert [event.type for event in queue.unpublished(9)] == ["pinq.job.dead"]


def test_jobs_that_no_verdict_names_stay_leased(queue: Queue) -> None:
    add(queue, "a", "b")
    found = queue.lease(Q, 2, 60, "w")
    assert found
    queue.finish(found.token, [Succeeded(found.jobs[0].id)])
    assert job(queue, "b").state is State.LEASED
    assert queue.finish(found.token, [Succeeded(found.jobs[1].id)]).succeeded == 1
    assert not queue.unfinished([Q])


def test_a_stale_worker_cannot_finish_a_job_leased_again(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a")
    stale = queue.lease(Q, 1, 10, "slow")
    assert stale
    clock.advance(11)
    fresh = queue.lease(Q, 1, 10, "quick")
    assert fresh and fresh.jobs[0].attempt == 2
    refused = queue.finish(stale.token, [Succeeded(stale.jobs[0].id, computed("a"))])
    assert refused.refused == [stale.jobs[0].id] and refused.succeeded == 0
    assert job(queue, "a").state is State.LEASED
    assert queue.unpublished(9) == []
    assert not queue.renew(stale.token, 10)
    assert queue.release(stale.token) == 0
    assert queue.finish(fresh.token, [Succeeded(fresh.jobs[0].id, computed("a"))]).succeeded == 1
    again = queue.finish(fresh.token, [Dead(fresh.jobs[0].id, GONE)])
    assert again.refused == [fresh.jobs[0].id]
    assert job(queue, "a").state is State.SUCCEEDED


def test_a_token_finishes_only_its_own_jobs(queue: Queue) -> None:
    add(queue, "a", "b")
    one, two = queue.lease(Q, 1, 60, "w"), queue.lease(Q, 1, 60, "w")
    assert one and two
    finished = queue.finish(
        one.token, [Succeeded(one.jobs[0].id), Succeeded(two.jobs[0].id, computed("b"))]
    )
    assert finished.succeeded == 1 and finished.refused == [two.jobs[0].id]
    assert queue.unpublished(9) == []


def test_an_expired_lease_that_nobody_took_over_still_finishes(
    queue: Queue, clock: FakeClock
) -> None:
    add(queue, "a")
    found = queue.lease(Q, 1, 10, "w")
    assert found
    clock.advance(60)
    assert queue.finish(found.token, [Succeeded(found.jobs[0].id)]).succeeded == 1


def test_a_made_up_token_changes_nothing(queue: Queue) -> None:
    add(queue, "a")
    found = queue.lease(Q, 1, 60, "w")
    assert found
    forged = found.token.split("-")[0] + "-0000000000000000"
    assert queue.finish(forged, [Succeeded(found.jobs[0].id)]).refused == [found.jobs[0].id]


# --- renew, release, expiry -------------------------------------------------------


def test_a_renewed_lease_does_not_expire(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a")
    found = queue.lease(Q, 1, 10, "w")
    assert found
    for _ in range(5):
        clock.advance(9)
        assert queue.renew(found.token, 10)
        assert lease(queue, worker="other") == []
    assert queue.finish(found.token, [Succeeded(found.jobs[0].id)]).succeeded == 1


def test_a_released_job_gets_its_attempt_back(queue: Queue) -> None:
    add(queue, "a", "b")
    found = queue.lease(Q, 2, 60, "w")
    assert found
    assert queue.release(found.token, [found.jobs[0].id]) == 1
    assert job(queue, "a").attempts == 0
    assert queue.release(found.token) == 1
    assert [j.attempt for j in lease(queue)] == [1, 1]


def test_an_expired_lease_is_found_by_whoever_leases_next(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a")
    lease(queue, seconds=10, worker="died")
    assert queue.next_due_ms(Q) == clock() + 10_000
    clock.advance(10)
    (again,) = lease(queue, worker="next")
    assert again.attempt == 2
    (error,) = job(queue, "a").errors
    assert error.failure_class == "worker_crash" and "died" in error.message


def test_the_last_expiry_makes_a_job_dead_and_announces_it(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a", max_attempts=1)
    lease(queue, seconds=10)
    clock.advance(11)
    assert lease(queue) == []
    assert job(queue, "a").state is State.DEAD
    (event,) = queue.unpublished(9)
    assert json.loads(event.data)["reason"]["class"] == "worker_crash"


def test_a_job_that_lost_its_worker_is_leased_alone(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a", "b", "c")
    lease(queue, 2, seconds=10, worker="died")
    clock.advance(11)
    alone = queue.lease(Q, 10, 60, "next")
    assert alone and keys(list(alone.jobs)) == ["a"]
    assert lease(queue, worker="next") == [], "nothing else while it holds a suspect"
    other = queue.lease(Q, 10, 60, "another")
    assert other and keys(list(other.jobs)) == ["b"]
    queue.finish(alone.token, [Succeeded(alone.jobs[0].id)])
    assert keys(lease(queue, worker="next")) == ["c"]


def test_a_suspect_waits_until_its_worker_holds_nothing_else(
    queue: Queue, clock: FakeClock
) -> None:
    add(queue, "suspect")
    lease(queue, seconds=10, worker="died")
    add(queue, "x", priority=1)
    busy = queue.lease(Q, 1, 60, "busy")
    assert busy and busy.jobs[0].key == "x"
    clock.advance(11)
    assert lease(queue, worker="busy") == []
    queue.finish(busy.token, [Succeeded(busy.jobs[0].id)])
    assert keys(lease(queue, worker="busy")) == ["suspect"]


def test_a_suspect_that_answered_is_one_no_more(queue: Queue, clock: FakeClock) -> None:
    add(queue, "a", "b")
    lease(queue, 1, seconds=10, worker="died")
    clock.advance(11)
    alone = queue.lease(Q, 10, 60, "w")
    assert alone and len(alone.jobs) == 1
    queue.finish(alone.token, [Retry(alone.jobs[0].id, BUSY, 0)])
    assert len(lease(queue)) == 2


def test_a_poisonous_job_spends_only_its_own_attempts(queue: Queue, clock: FakeClock) -> None:
    add(queue, "poison", *(f"k{n}" for n in range(20)), max_attempts=3)
    deaths = 0
    while queue.unfinished([Q]):
        found = queue.lease(Q, 8, 10, f"worker-{deaths}")
        if found is None:
            clock.advance(1)
        elif any(one.key == "poison" for one in found.jobs):
            deaths += 1
            clock.advance(11)  # the worker died
        else:
            queue.finish(found.token, [Succeeded(one.id) for one in found.jobs])
    assert deaths == 3
    assert job(queue, "poison").state is State.DEAD
    assert queue.count(Q).succeeded == 20
    assert all(one.attempts <= 2 for one in queue.scan(Filter(Q, states=[State.SUCCEEDED])))


def test_a_holder_that_died_is_succeeded_at_once(queue: Queue) -> None:
    add(queue, "a", "b")
    dead = queue.lease(Q, 1, 600, "dead")
    lives = queue.lease(Q, 1, 600, "lives")
    assert dead and lives
    assert queue.elect("relay", "dead", 600)
    assert sorted(queue.holders()) == ["dead", "lives"]
    assert queue.expire("dead") == 1
    (again,) = lease(queue, worker="next")
    assert (again.key, again.attempt) == ("a", 2)
    assert queue.elect("relay", "next", 600)
    assert queue.finish(lives.token, [Succeeded(lives.jobs[0].id)]).succeeded == 1
    assert queue.finish(dead.token, [Succeeded(dead.jobs[0].id)]).refused
    assert queue.expire("nobody") == 0


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
    assert queue.next_due_ms(Q) is not None and queue.next_due_ms(Q) <= clock.ms
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
