"""Processes that work on one queue at once, by the real clock, on every backend."""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from pinq.errors import FailureClass
from pinq.queue.contract import Queue
from pinq.queue.model import (
    Event,
    Failure,
    Filter,
    LeasedJob,
    NewJob,
    Outcome,
    Retry,
    Snooze,
    State,
    Succeeded,
    Verdict,
)
from pinq.queue.urls import open_queue

# Not conftest's: a process would have to import pytest for it, which takes as long as all else.
Q = "pins"
PATIENCE_SECONDS = 120
BUSY = Failure(FailureClass.FETCH_TRANSIENT, "the peer is busy")

# What the processes share: they begin together, and work until nobody adds any more.
_together: Any = None
_last_words: Any = None


class Hold(NamedTuple):
    """One job of one lease, by the clock that all processes of a machine share."""

    key: str
    token: str
    since: float
    until: float
    became: str


def _share(together: Any, last_words: Any) -> None:
    global _together, _last_words
    _together, _last_words = together, last_words


@contextmanager
def processes(work: Callable[..., Any], *arguments: Sequence[Any]) -> Iterator[list[Future[Any]]]:
    """Run ``work`` in a process for each of the arguments; all have ended on leaving."""
    spawn = multiprocessing.get_context("spawn")
    shared = (spawn.Barrier(len(arguments) + 1), spawn.Event())
    with ProcessPoolExecutor(len(arguments), spawn, _share, shared) as pool:
        begun = [pool.submit(work, *each) for each in arguments]
        _share(*shared)
        try:
            _together.wait(PATIENCE_SECONDS)
            yield begun
        finally:
            _together.abort()
            _last_words.set()


def lease_and_finish(url: str, name: str, work_seconds: float) -> list[Hold]:
    """Work until everything is done; what this worker held, job by job."""
    dice, holds = random.Random(name), []
    with closing(open_queue(url)) as queue:
        _together.wait(PATIENCE_SECONDS)
        while True:
            lease = queue.lease(Q, 7, 60, name)
            if lease is None:
                if _last_words.is_set() and not queue.unfinished([Q]):
                    return holds
                time.sleep(0.01)
                continue
            since = time.monotonic()
            time.sleep(work_seconds)
            released = dice.random() < 0.1
            verdicts = [_verdict(job, dice.random()) for job in lease.jobs]
            until = time.monotonic()
            if released:
                queue.release(lease.token)
                refused = {verdict.id for verdict in verdicts}
            else:
                refused = set(queue.finish(lease.token, verdicts).refused)
            holds += [
                Hold(
                    job.key,
                    lease.token,
                    since,
                    until,
                    "released" if released else "refused" if job.id in refused else said,
                )
                for job, said in zip(lease.jobs, map(_name, verdicts), strict=True)
            ]


def _verdict(job: LeasedJob, luck: float) -> Verdict:
    if luck < 0.1:
        return Retry(job.id, BUSY, 0)
    if luck < 0.2:
        return Snooze(job.id, 0)
    return Succeeded(job.id, Event("pinq.signal.computed", "/pinq/pins", job.key, {}))


def _name(verdict: Verdict) -> str:
    return type(verdict).__name__.lower()


def worked_off(
    queue: Queue,
    url: str,
    count: int,
    work_seconds: float = 0,
    operate: Callable[[], None] = lambda: None,
) -> list[Hold]:
    """What so many workers held until the queue was empty, while somebody operates it."""
    workers = [(url, f"worker-{number}", work_seconds) for number in range(count)]
    with processes(lease_and_finish, *workers) as begun:
        operate()
        _last_words.set()
        holds = [hold for one in begun for hold in one.result(PATIENCE_SECONDS)]
    assert not queue.unfinished([Q])
    return holds


def once_each(keys: Sequence[str]) -> dict[str, int]:
    return dict.fromkeys(keys, 1)


def test_processes_never_hold_a_job_at_once_and_finish_each_exactly_once(queue_url: str) -> None:
    keys = [f"k{number}" for number in range(4000)]
    with closing(open_queue(queue_url)) as queue:
        queue.enqueue(Q, [NewJob(key, max_attempts=100) for key in keys])
        holds = worked_off(queue, queue_url, 8)
        assert Counter(hold.key for hold in holds if hold.became == "succeeded") == once_each(keys)
        assert not any(hold.became == "refused" for hold in holds)
        by_key = sorted(holds, key=lambda hold: (hold.key, hold.since))
        for one, other in pairwise(by_key):
            assert one.key != other.key or one.until < other.since, f"{one} overlaps {other}"
        assert queue.count(Q).succeeded == len(keys)
        events = queue.unpublished(2 * len(keys))
        assert Counter(event.subject for event in events) == once_each(keys)
        assert len({event.id for event in events}) == len(keys)
        counted = Counter(h.key for h in holds if h.became in ("succeeded", "retry"))
        assert {job.key: job.attempts for job in queue.scan(batch=5000)} == counted


def test_what_an_operator_cancels_and_requeues_meanwhile_is_finished_once_too(
    queue_url: str,
) -> None:
    keys = [f"k{number}" for number in range(1500)]
    dice = random.Random(1)
    changed: Counter[str] = Counter()

    with closing(open_queue(queue_url)) as queue:
        queue.enqueue(Q, [NewJob(key, max_attempts=100) for key in keys])

        def operate() -> None:
            for _ in range(20):
                changed["cancelled"] += queue.cancel(Filter(Q, dice.sample(keys, 100)))
                changed["requeued"] += queue.requeue(Filter(Q))

        holds = worked_off(queue, queue_url, 4, 0.02, operate)
        assert Counter(hold.key for hold in holds if hold.became == "succeeded") == once_each(keys)
        assert changed["cancelled"] == changed["requeued"] > 0
        assert queue.count(Q).succeeded == len(keys)
        events = queue.unpublished(10 * len(keys))
        told = Counter(event.type for event in events)
        assert told == {
            "pinq.signal.computed": len(keys),
            "pinq.job.dead": changed["cancelled"],
        }
        assert sum(hold.became == "refused" for hold in holds) <= changed["cancelled"]


def enqueue_some(url: str, seed: int) -> list[tuple[str, str]]:
    """Enqueue most of the keys, in an order of its own; what became of each."""
    keys = random.Random(seed).sample([f"k{number}" for number in range(1500)], 1000)
    with closing(open_queue(url)) as queue:
        _together.wait(PATIENCE_SECONDS)
        return [
            (answer.key, answer.outcome)
            for start in range(0, len(keys), 50)
            for answer in queue.enqueue(Q, [NewJob(key) for key in keys[start : start + 50]])
        ]


def test_processes_that_enqueue_the_same_keys_make_each_once(queue_url: str) -> None:
    with processes(enqueue_some, *((queue_url, seed) for seed in range(4))) as begun:
        answers = [answer for one in begun for answer in one.result(PATIENCE_SECONDS)]
    keys = sorted({key for key, _ in answers})
    made = Counter(key for key, outcome in answers if outcome is Outcome.ENQUEUED)
    assert made == once_each(keys)
    assert Counter(outcome for _, outcome in answers) == {
        Outcome.ENQUEUED: len(keys),
        Outcome.DUPLICATE: 4 * 1000 - len(keys),
    }
    with closing(open_queue(queue_url)) as queue:
        found = {job.key: job.state for job in queue.scan(Filter(Q), batch=5000)}
    assert found == dict.fromkeys(keys, State.PENDING)
