"""dramatiq on Redis: its worker in one process, with sixteen threads: the quickest number of them.

It has no bulk enqueue, and its messages have no key: whoever sends one twice runs it twice.
"""

import time
from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers import work

THREADS = 16


class Dramatiq:
    """A queue in Redis."""

    def __init__(self, url: str) -> None:
        self._broker = RedisBroker(url=url)  # type: ignore[no-untyped-call]
        dramatiq.set_broker(self._broker)
        self._noop = dramatiq.actor(queue_name="bench")(_noop)
        self._began = dramatiq.actor(queue_name="bench")(work.began)

    def set_up(self) -> None:
        """Redis needs none."""

    def enqueue(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._noop.send(key)

    def drain(self, count: int) -> float:
        worker = dramatiq.Worker(self._broker, worker_threads=THREADS)
        start = time.perf_counter()
        worker.start()
        # A message counts until it is acknowledged.
        self._broker.join("bench", interval=10)
        seconds = time.perf_counter() - start
        worker.stop()
        return seconds

    def send(self, key: str) -> None:
        self._began.send(key)

    def work(self) -> None:
        dramatiq.Worker(self._broker, worker_threads=THREADS).start()
        while True:
            time.sleep(60)


def _noop(key: str) -> None:
    """A job."""


if __name__ == "__main__":
    work.main(Dramatiq, "dramatiq")
