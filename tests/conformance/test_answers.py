"""What becomes of leased jobs: finished, renewed, released, expired."""

import json

from pinq.queue.contract import Queue
from pinq.queue.model import (
    Dead,
    Filter,
    Retry,
    State,
    Succeeded,
)

from ..conftest import FakeClock
from .conftest import Q
from .steps import BUSY, GONE, add, computed, job, keys, lease

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
    forged = found.token[:-3] + ("000" if found.token[-3:] != "000" else "111")
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
