"""Sends of several threads share a commit."""

import threading
import time
from collections.abc import Sequence

import pytest

from pinq.broker.sending import Sending
from pinq.errors import InvalidInput
from pinq.queue.model import Enqueued, NewJob, Outcome, State


class Slow:
    """An ``enqueue`` whose first call goes on when told."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, queue_name: str, jobs: Sequence[NewJob]) -> list[Enqueued]:
        self.calls.append([job.key for job in jobs])
        self.entered.set()
        assert self.go.wait(20)
        if any(job.key == "bad" for job in jobs):
            raise InvalidInput("bad")
        return [Enqueued(job.key, Outcome.ENQUEUED, State.PENDING) for job in jobs]


def send_together(enqueue: Slow, keys: Sequence[str]) -> dict[str, str]:
    """Send a job, and the others while it is being committed; what each was told."""
    sending = Sending(enqueue)
    told: dict[str, str] = {}

    def send(key: str) -> None:
        try:
            (answer,) = sending.send("q", [NewJob(key)])
            told[key] = answer.key
        except InvalidInput as error:
            told[key] = f"error {error}"

    threads = [threading.Thread(target=send, args=(key,)) for key in ("first", *keys)]
    threads[0].start()
    assert enqueue.entered.wait(20)
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 20
    while len(sending._waiting.get("q", ())) < len(keys):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    enqueue.go.set()
    for thread in threads:
        thread.join(20)
    return told


def test_those_who_come_during_a_commit_share_the_next() -> None:
    enqueue = Slow()
    told = send_together(enqueue, ["a", "b", "c"])
    assert [sorted(call) for call in enqueue.calls] == [["first"], ["a", "b", "c"]]
    assert told == {key: key for key in ("first", "a", "b", "c")}


@pytest.mark.parametrize("keys", [["bad"], ["a", "bad", "c"]])
def test_each_meets_its_own_error_only(keys: list[str]) -> None:
    told = send_together(Slow(), keys)
    assert told.pop("bad") == "error bad"
    assert told == {key: key for key in told}
