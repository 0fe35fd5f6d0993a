"""The queue as this process has it, and this process's name to the queue."""

import os
import threading
from dataclasses import dataclass

from pinq.errors import QueueError
from pinq.incarnation import incarnation
from pinq.queue.contract import Queue
from pinq.queue.urls import open_queue


@dataclass(frozen=True, slots=True)
class _Opened:
    pid: int
    queue: Queue
    worker: str


class Connection:
    """A queue that its caller opened, or a URL that is opened on first use.

    A process that was forked since opens the URL for itself, and has a name of its own:
    neither connections nor leases may be shared with the parent.
    """

    def __init__(self, queue: Queue | None, url: str | None, worker: str | None) -> None:
        if (queue is None) == (url is None):
            raise QueueError("QueueBroker takes a queue or a url, one of the two")
        self._given = queue
        self._url = url
        self._name = worker
        self._opened: _Opened | None = None
        self._opening = threading.Lock()
        # Closing a parent's SQLite connection here could drop the parent's locks.
        self._inherited: list[_Opened] = []

    @property
    def queue(self) -> Queue:
        return self._current().queue

    @property
    def worker(self) -> str:
        return self._current().worker

    def close(self) -> None:
        """Close the queue if it was opened here; the next use opens it again."""
        with self._opening:
            opened, self._opened = self._opened, None
            if opened is None:
                return
            if opened.pid != os.getpid():
                self._inherited.append(opened)
            elif self._given is None:
                opened.queue.close()

    def _current(self) -> _Opened:
        opened = self._opened
        if opened is None or opened.pid != os.getpid():
            opened = self._open()
        return opened

    def _open(self) -> _Opened:
        with self._opening:
            if self._opened is not None:
                if self._opened.pid == os.getpid():
                    return self._opened
                self._inherited.append(self._opened)
            queue = self._given if self._url is None else open_queue(self._url)
            assert queue is not None
            self._opened = _Opened(os.getpid(), queue, self._name or incarnation())
            return self._opened
