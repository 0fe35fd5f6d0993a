"""Notice another process's changes: scripts publish on a channel, a thread listens.

A message may be lost with the connection. So whenever the thread has begun to listen (again) it
rings once, and everybody looks; while it cannot listen it rings now and then, which makes waiting
a slow poll.
"""

import logging
import threading
import time

import redis

logger = logging.getLogger(__name__)

# After so long without a message the connection is tried; after twice that it is given up.
_PING_SECONDS = 15.0
_BACKOFF_FIRST_SECONDS = 0.05
_BACKOFF_LONGEST_SECONDS = 1.0
# The last two: what reading says when `close` takes the connection away under it.
_TROUBLES = (redis.RedisError, OSError, ValueError, AttributeError)


class Bell:
    """Counts changes to the queues of one server. Threads wait for the count to change."""

    def __init__(self, client: redis.Redis, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._changed = threading.Condition()
        self._count = 1
        self._closed = False
        self._thread: threading.Thread | None = None
        self._listening: redis.client.PubSub | None = None

    def wait(self, seen: int, timeout_seconds: float) -> int:
        """Block until the count is not ``seen``, or the timeout; return the count."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            if self._count != seen or timeout_seconds <= 0 or self._closed:
                return self._count
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pinq-bell", daemon=True)
                self._thread.start()
            while self._count == seen and not self._closed:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            return self._count

    def close(self) -> None:
        """Wake everybody and end; safe to call twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            listening = self._listening
        if listening is not None and listening.connection is not None:
            listening.connection.disconnect()  # under the thread's hands, which ends its reading
        if self._thread is not None:
            self._thread.join(timeout=1)

    def _ring(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def _run(self) -> None:
        backoff = _BACKOFF_FIRST_SECONDS
        while not self._closed:
            heard = self._count
            try:
                with self._client.pubsub() as listening:  # type: ignore[no-untyped-call]
                    listening.subscribe(self._channel)
                    self._listening = listening
                    self._follow(listening)
            except _TROUBLES as error:
                if self._closed:
                    return
                if self._count != heard:  # at least that it listens
                    backoff = _BACKOFF_FIRST_SECONDS
                elif backoff == _BACKOFF_LONGEST_SECONDS:
                    logger.debug("queue.polled; nothing can be heard error=%s", error)
            self._ring()
            with self._changed:
                if not self._closed:
                    self._changed.wait(backoff)
            backoff = min(backoff * 2, _BACKOFF_LONGEST_SECONDS)

    def _follow(self, listening: redis.client.PubSub) -> None:
        """Ring for each message, until the connection is lost."""
        pinged = False
        while not self._closed:
            message = listening.get_message(timeout=_PING_SECONDS)
            if message is not None:
                pinged = False
                if message["type"] != "pong":
                    self._ring()
            elif pinged:
                raise redis.ConnectionError("no answer to a ping")
            else:
                pinged = True
                listening.ping()
