"""litequeue on SQLite: put, pop and done, one message at a time, in one thread.

It has no worker, hence no latency of its own, and no bulk put. As it sets up its database
(``synchronous=NORMAL``), commits are not synced: a power cut loses the last of them.
"""

import time
from collections.abc import Sequence

from litequeue import LiteQueue as Queue  # type: ignore[import-not-found]

from benchmarks.peers import work


class LiteQueue:
    """A queue in a file."""

    def __init__(self, url: str) -> None:
        self._queue = Queue(url.removeprefix("sqlite:///"))

    def set_up(self) -> None:
        """Done by the constructor."""

    def enqueue(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._queue.put(key)

    def drain(self, count: int) -> float:
        start = time.perf_counter()
        done = 0
        while (message := self._queue.pop()) is not None:
            self._queue.done(message.message_id)
            done += 1
        if done != count:
            raise RuntimeError(f"{done} of {count} messages came")
        return time.perf_counter() - start

    def send(self, key: str) -> None:
        raise NotImplementedError

    def work(self) -> None:
        raise NotImplementedError


if __name__ == "__main__":
    work.main(LiteQueue, "litequeue")
