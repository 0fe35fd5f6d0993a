"""pinq itself, on any backend: batches of 256, its worker waiting for a commit."""

import time
from collections.abc import Sequence
from functools import cached_property

from benchmarks.peers import work
from pinq.queue.contract import Queue
from pinq.queue.model import Answer, NewJob, Succeeded
from pinq.queue.urls import open_queue, upgrade

_BATCH = 256
_QUEUE = "bench"
_LEASE_SECONDS = 60.0


class Pinq:
    """A queue at a URL."""

    def __init__(self, url: str) -> None:
        self._url = url

    def set_up(self) -> None:
        upgrade(self._url)
        self._queue.declare(_QUEUE, source="/pinq/bench")

    def enqueue(self, keys: Sequence[str]) -> None:
        for batch in work.batches(keys, _BATCH):
            self._queue.enqueue(_QUEUE, [NewJob(key, f"file:///srv/{key}.jpg") for key in batch])

    def drain(self, count: int) -> float:
        start = time.perf_counter()
        done, answers = 0, list[Answer]()
        while True:
            # The next ones are leased by the call that acknowledges those before.
            told = self._queue.exchange([_QUEUE], _BATCH, _LEASE_SECONDS, "bench", answers=answers)
            done += sum(finished.succeeded for finished in told.finished)
            if not told.leases:
                break
            answers = [
                Answer(lease.token, [Succeeded(job.id) for job in lease.jobs])
                for lease in told.leases
            ]
        if done != count:
            raise RuntimeError(f"{done} of {count} jobs succeeded")
        return time.perf_counter() - start

    def send(self, key: str) -> None:
        self._queue.enqueue(_QUEUE, [NewJob(key, f"file:///srv/{key}.jpg")])

    def work(self) -> None:
        seen = 0
        while True:
            lease = self._queue.lease(_QUEUE, _BATCH, _LEASE_SECONDS, "bench")
            if lease is None:
                seen = self._queue.wait(seen, _LEASE_SECONDS)
                continue
            for job in lease.jobs:
                work.began(job.key)
            self._queue.finish(lease.token, [Succeeded(job.id) for job in lease.jobs])

    @cached_property
    def _queue(self) -> Queue:
        return open_queue(self._url)


if __name__ == "__main__":
    work.main(Pinq, "pinq")
