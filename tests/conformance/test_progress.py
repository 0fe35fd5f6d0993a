"""What a job carries, and how far it has come: body, status, progress, snooze, checkpoint."""

import pytest

from pinq.errors import FailureClass, InvalidInput
from pinq.queue.contract import Queue
from pinq.queue.model import (
    Checkpoint,
    Dead,
    Failure,
    Filter,
    Job,
    Lease,
    NewJob,
    Retry,
    Snooze,
    State,
    Succeeded,
)

from ..conftest import FakeClock
from .conftest import Open, Q

ANY_BYTES = bytes(range(256))
BUSY = Failure(FailureClass.FETCH_TRANSIENT, "the peer is busy")


def lease(queue: Queue, limit: int = 10, worker: str = "w") -> Lease:
    found = queue.lease(Q, limit, 60, worker)
    assert found is not None
    return found


def job(queue: Queue, key: str) -> Job:
    return queue.lookup(Q, [key])[key]


def test_a_body_of_any_bytes_reaches_the_worker_and_the_onlooker(queue: Queue) -> None:
    queue.enqueue(Q, [NewJob("a", body=ANY_BYTES), NewJob("b")])
    assert {j.key: j.body for j in lease(queue).jobs} == {"a": ANY_BYTES, "b": b""}
    assert job(queue, "a").body == ANY_BYTES


def test_a_large_body_is_kept_whole(queue: Queue) -> None:
    queue.enqueue(Q, [NewJob("a", body=ANY_BYTES * 4096)])
    assert lease(queue).jobs[0].body == ANY_BYTES * 4096


def test_jobs_are_found_by_a_pattern_of_their_body(queue: Queue) -> None:
    bodies = {"a": b'{"actor": "send_50%"}', "b": b"send\x00_50%\xff", "c": b"SEND", "d": b"[x]|"}
    queue.enqueue(Q, [NewJob(key, body=body) for key, body in bodies.items()])

    def found(pattern: bytes) -> str:
        return "".join(j.key for j in queue.scan(Filter(queue=Q, body=pattern)))

    assert found(b"*send*") == "ab"
    assert found(b"send\x00*") == "b"
    assert found(b"*_50%*") == "ab" and found(b"*x50%*") == ""
    assert found(b"?end") == "" and found(b"?END") == "c"
    assert found(b"[x]|") == "d"
    assert found(b"*\xff") == "b"


def test_a_status_grows_line_by_line_whatever_the_verdict(queue: Queue) -> None:
    queue.enqueue(Q, [NewJob("a", status="made by hand"), NewJob("b"), NewJob("c", max_attempts=1)])
    held = lease(queue)
    a, b, c = held.jobs
    verdicts = [
        Snooze(a.id, 0, "not yet"),
        Retry(b.id, BUSY, 0, status="busy"),
        Dead(c.id, BUSY, "hopeless"),
    ]
    assert queue.finish(held.token, verdicts).refused == []
    held = lease(queue)
    done = [Succeeded(j.id, status="done") for j in held.jobs]
    assert queue.finish(held.token, done).succeeded == 2
    assert job(queue, "a").status == "made by hand\nnot yet\ndone"
    assert job(queue, "b").status == "busy\ndone"
    assert job(queue, "c").status == "hopeless"


def test_a_status_keeps_its_newest_lines(queue: Queue) -> None:
    queue.enqueue(Q, [NewJob("a")])
    for turn in range(6):
        held = lease(queue)
        queue.finish(held.token, [Snooze(held.jobs[0].id, 0, f"{turn}" * 1000)])
    status = job(queue, "a").status
    assert len(status) < 5000 and status.endswith("5" * 1000) and "0" not in status


def test_a_snoozed_job_comes_back_later_with_its_attempt(queue: Queue, clock: FakeClock) -> None:
    queue.enqueue(Q, [NewJob("a", max_attempts=1)])
    for _ in range(3):
        held = lease(queue)
        assert held.jobs[0].attempt == 1
        finished = queue.finish(held.token, [Snooze(held.jobs[0].id, 30)])
        assert (finished.snoozed, finished.dead, finished.retried) == (1, 0, 0)
        assert queue.lease(Q, 1, 60, "w") is None
        assert queue.next_due_ms(Q) == clock.ms + 30_000
        clock.advance(30)
    assert job(queue, "a").errors == ()
    assert queue.unpublished(10) == []


def test_a_retry_may_replace_the_body(queue: Queue) -> None:
    queue.enqueue(Q, [NewJob("a", body=b"first"), NewJob("b", body=b"kept")])
    held = lease(queue)
    a, b = held.jobs
    queue.finish(held.token, [Retry(a.id, BUSY, 0, body=b"second"), Retry(b.id, BUSY, 0)])
    assert [(j.key, j.body) for j in lease(queue).jobs] == [("a", b"second"), ("b", b"kept")]


def test_a_checkpoint_is_what_the_next_attempt_begins_with(
    queue: Queue, open_again: Open, clock: FakeClock
) -> None:
    queue.enqueue(Q, [NewJob("a", body=b"all"), NewJob("b", body=b"all")])
    held = lease(queue)
    a, b = held.jobs
    points = [Checkpoint(a.id, progress=ANY_BYTES, status="half"), Checkpoint(b.id, body=b"rest")]
    assert list(queue.checkpoint(held.token, points)) == []
    assert job(queue, "a").state is State.LEASED and job(queue, "a").progress == ANY_BYTES
    clock.advance(61)  # the worker dies
    again = open_again()
    found = [lease(again, worker="x").jobs[0] for _ in "a"]
    assert (found[0].progress, found[0].body, found[0].attempt) == (ANY_BYTES, b"all", 2)
    assert job(again, "a").status == "half"
    assert job(again, "b").body == b"rest"


def test_a_checkpoint_may_renew_the_lease(queue: Queue, clock: FakeClock) -> None:
    queue.enqueue(Q, [NewJob("a")])
    held = lease(queue)
    clock.advance(50)
    queue.checkpoint(held.token, [Checkpoint(held.jobs[0].id, progress=b"1")], seconds=60)
    clock.advance(50)
    assert queue.lease(Q, 1, 60, "other") is None
    assert queue.finish(held.token, [Succeeded(held.jobs[0].id)]).succeeded == 1


def test_a_checkpoint_may_return_a_job_to_pending_at_a_time(queue: Queue, clock: FakeClock) -> None:
    queue.enqueue(Q, [NewJob("cron", max_attempts=2), NewJob("other")])
    held = lease(queue)
    cron, other = held.jobs
    later = clock.ms + 3_600_000
    stage = Checkpoint(cron.id, body=b"stage 2", run_at_ms=later)
    assert list(queue.checkpoint(held.token, [stage])) == []
    assert job(queue, "cron").state is State.PENDING and job(queue, "cron").attempts == 0
    assert list(queue.finish(held.token, [Succeeded(cron.id)]).refused) == [cron.id]
    assert queue.finish(held.token, [Succeeded(other.id)]).succeeded == 1
    assert queue.lease(Q, 1, 60, "w") is None
    clock.advance(3600)
    (again,) = lease(queue).jobs
    assert (again.key, again.body, again.attempt) == ("cron", b"stage 2", 1)


def test_a_stale_checkpoint_changes_nothing_and_says_so(queue: Queue, clock: FakeClock) -> None:
    queue.enqueue(Q, [NewJob("a", body=b"x")])
    held = lease(queue)
    clock.advance(61)
    other = lease(queue, worker="other")
    point = Checkpoint(held.jobs[0].id, body=b"y", progress=b"z", status="s", run_at_ms=clock.ms)
    assert list(queue.checkpoint(held.token, [point], seconds=600)) == [held.jobs[0].id]
    left = job(queue, "a")
    assert (left.state, left.body, left.progress, left.status) == (State.LEASED, b"x", b"", "")
    assert queue.finish(other.token, [Succeeded(other.jobs[0].id)]).succeeded == 1


def test_a_rerun_begins_with_what_it_was_enqueued_with(queue: Queue) -> None:
    queue.enqueue(Q, [NewJob("a", body=b"old", status="old")])
    held = lease(queue)
    queue.checkpoint(held.token, [Checkpoint(held.jobs[0].id, progress=b"half")])
    queue.finish(held.token, [Succeeded(held.jobs[0].id)])
    queue.enqueue(Q, [NewJob("a", body=b"new")], force=True)
    (again,) = lease(queue).jobs
    assert (again.body, again.progress) == (b"new", b"")
    assert job(queue, "a").status == ""


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (NewJob("a", priority=0), "priority 0"),
        (NewJob("a", priority=10), "priority 10"),
        (NewJob("a", max_attempts=0), "attempts"),
        (NewJob(""), "key"),
        (NewJob("k" * 129), "key"),
    ],
)
def test_what_could_not_be_leased_is_refused_with_all_that_came_with_it(
    queue: Queue, bad: NewJob, word: str
) -> None:
    with pytest.raises(InvalidInput, match=word):
        queue.enqueue(Q, [NewJob("good"), bad])
    assert queue.lookup(Q, ["good"]) == {}
