"""huey on SQLite: its consumer with one thread, polling every 5 ms, every commit synced.

It has no bulk enqueue. It takes a job off the queue before it runs it, so that a crash loses it.
"""

import time
from collections.abc import Sequence
from threading import Event

from huey import SqliteHuey  # type: ignore[import-not-found]
from huey.consumer import Consumer  # type: ignore[import-not-found]

from benchmarks.peers import work

_POLL_SECONDS = 0.005


class Huey:
    """A queue in a file."""

    def __init__(self, url: str) -> None:
        path = url.removeprefix("sqlite:///")
        self._huey = SqliteHuey(filename=path, fsync=True, results=False)
        self._left = 0
        self._done = Event()
        self._noop = self._huey.task(name="noop")(self._count)
        self._began = self._huey.task(name="began")(work.began)

    def set_up(self) -> None:
        """Done by the constructor."""

    def enqueue(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._noop(key)

    def drain(self, count: int) -> float:
        self._left = count
        self._done.clear()
        consumer = self._consumer()
        start = time.perf_counter()
        consumer.start()
        self._done.wait()
        seconds = time.perf_counter() - start
        consumer.stop(graceful=True)
        return seconds

    def send(self, key: str) -> None:
        self._began(key)

    def work(self) -> None:
        self._consumer().run()

    def _consumer(self) -> Consumer:
        # No backoff: the least latency that its settings give.
        return self._huey.create_consumer(
            workers=1,
            periodic=False,
            initial_delay=_POLL_SECONDS,
            max_delay=_POLL_SECONDS,
            backoff=1.0,
        )

    def _count(self, key: str) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()


if __name__ == "__main__":
    work.main(Huey, "huey")
