"""RQ on Redis: bulk enqueue, and the worker that does not fork a process a job.

Its usual worker forks, and is several times slower.
"""

import time
from collections.abc import Sequence

import redis
from rq import Queue, SimpleWorker  # type: ignore[import-not-found]

from benchmarks.peers import work

_BATCH = 256
# The worker imports jobs by name.
_NOOP = f"{__package__}.rq.noop"
_BEGAN = f"{work.__name__}.began"


class Rq:
    """A queue in Redis."""

    def __init__(self, url: str) -> None:
        self._connection = redis.Redis.from_url(url)
        self._queue = Queue("bench", connection=self._connection)

    def set_up(self) -> None:
        """Redis needs none."""

    def enqueue(self, keys: Sequence[str]) -> None:
        for batch in work.batches(keys, _BATCH):
            self._queue.enqueue_many(
                [Queue.prepare_data(_NOOP, (key,), job_id=key, description=key) for key in batch]
            )

    def drain(self, count: int) -> float:
        worker = self._worker()
        start = time.perf_counter()
        worker.work(burst=True, logging_level="WARNING")
        seconds = time.perf_counter() - start
        if left := self._queue.count + self._queue.failed_job_registry.count:
            raise RuntimeError(f"{left} of {count} jobs did not succeed")
        return seconds

    def send(self, key: str) -> None:
        self._queue.enqueue(_BEGAN, key, job_id=key, description=key)

    def work(self) -> None:
        self._worker().work(logging_level="WARNING")

    def _worker(self) -> SimpleWorker:
        return SimpleWorker([self._queue], connection=self._connection)


def noop(key: str) -> None:
    """A job."""


if __name__ == "__main__":
    work.main(Rq, "rq")
