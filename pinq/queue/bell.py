"""Wait for somebody's commit: a count that threads watch, and a thread that hears of others."""

import logging
import os
import select
import threading
import time
from abc import ABC, abstractmethod

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


class Bell(ABC):
    """Counts commits to one database. Threads wait for the count to change.

    A thread that listens to other processes is started with the first waiter, and is idle
    while nobody waits.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 1
        self._waiting = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        # Readable once the bell is closed: what a listener blocks on besides its source.
        self._end_read, self._end_write = os.pipe()

    def wait(self, seen: int, timeout_seconds: float) -> int:
        """Block until the count is not ``seen``, or the timeout; return the count."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            if self._count != seen or timeout_seconds <= 0 or self._closed:
                return self._count
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._listen_on, name="pinq-bell", daemon=True
                )
                self._thread.start()
            self._waiting += 1
            self._changed.notify_all()
            try:
                while self._count == seen and not self._closed:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        break
                    self._changed.wait(remaining)
            finally:
                self._waiting -= 1
            return self._count

    def ring(self) -> None:
        """Say that somebody has committed."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Wake everybody and end; safe to call twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        os.close(self._end_write)
        if self._thread is not None:
            self._thread.join()
        os.close(self._end_read)

    # --- for those who listen -----------------------------------------------------

    @abstractmethod
    def listen(self) -> None:
        """Call ``ring`` when others commit, until ``idle`` is false or the source fails.

        Raises:
            OSError, Exception: the source failed; ``listen`` is called again a little later.
        """

    def wanted(self) -> bool:
        """Block while nobody waits; false once the bell is closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return not self._closed

    def heard(self, source: int, timeout_seconds: float) -> bool:
        """Block until a file descriptor is readable, the timeout, or the end."""
        return source in select.select([source, self._end_read], [], [], timeout_seconds)[0]

    def pause(self, seconds: float) -> None:
        """Sleep, unless the bell is closed meanwhile."""
        select.select([self._end_read], [], [], seconds)

    def _listen_on(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while self.wanted():
            started = time.monotonic()
            try:
                self.listen()
            except Exception as error:  # noqa: BLE001 - drivers raise what they like
                # The queue's own next verb meets the same trouble and says so; until it
                # has passed, waiting degrades to the callers' timeouts.
                logger.debug("bell.lost error=%s", error)
            if time.monotonic() - started > _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            self.pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            self.ring()  # what was committed meanwhile was not heard
