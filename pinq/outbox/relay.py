"""Publishes what waits in the outbox.

One relay at a time works on a queue: it holds the role ``relay``, renewed while
it lives; the others stand by. It reads the oldest unpublished events, hands them to
every sink, and marks them once all have them. An event that was published but
not marked when a relay died is published again, with the same id.
"""

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from pinq.errors import PinqError, QueueUnavailable, SinkError, StorageFull
from pinq.failpoints import failpoint
from pinq.outbox.events import cloud_event
from pinq.outbox.sinks.contract import Sink
from pinq.queue.contract import Queue
from pinq.queue.model import StoredEvent

logger = logging.getLogger(__name__)

ROLE = "relay"
# How soon `finish()` and `stop` are noticed where only the queue is listened to.
_SLICE_SECONDS = 0.1
_STANDBY_SECONDS = 2.0
_BACKOFF_FIRST_SECONDS = 0.2
_BACKOFF_LONGEST_SECONDS = 30.0


class Relay:
    """Moves events from the outbox to the sinks.

    Args:
        queue: whose outbox to empty.
        sinks: each gets every event, in order; a slow or failing one delays
            only the marking, not the others' delivery.
        holder: this relay's name in the election, unlike any other's.
        lease_seconds: after so long a dead relay is succeeded.
        patience_seconds: so long a full disk, or once nothing more comes any
            failure, is borne before the error is raised.
        monotonic: the clock, in seconds.
        pause: waits for an event to be set or so many seconds.
    """

    def __init__(
        self,
        queue: Queue,
        sinks: Sequence[Sink],
        *,
        holder: str,
        lease_seconds: float = 10.0,
        patience_seconds: float = 30.0,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._queue = queue
        self._sinks = tuple(sinks)
        self._holder = holder
        self._lease_seconds = lease_seconds
        self._patience_seconds = patience_seconds
        self._monotonic = monotonic
        self._pause = pause
        self._limit = max((sink.max_events for sink in self._sinks), default=1000)
        self._finishing = threading.Event()
        self._shortest_linger = min((sink.linger_seconds for sink in self._sinks), default=0.0)
        # Ids of events that a sink has accepted, but that aren't marked yet.
        self._accepted: list[set[str]] = [set() for _ in self._sinks]
        self._elected_until = 0.0
        self._candidate_at = 0.0
        self._seen = 0

    def finish(self) -> None:
        """Let ``run`` publish what is there without lingering, and return; from any thread."""
        self._finishing.set()

    def run(self, stop: threading.Event, *, until_empty: bool = False) -> int:
        """Publish events until ``stop`` is set.

        After ``finish()``, or with ``until_empty``, return when the outbox is
        empty, whoever emptied it. On ``stop``, what is there is published in
        one last pass, if that meets no trouble.

        Returns:
            How many events this relay published and marked.

        Raises:
            StorageFull: there was no space for ``patience_seconds``.
            SinkError, QueueUnavailable: likewise, and nothing more will come.
            PinqError: something that waiting doesn't mend.
        """
        if until_empty:
            self.finish()
        published = 0
        failures, failing_since = 0, 0.0
        try:
            while not stop.is_set():
                try:
                    done = self._step(stop)
                    if done is None:
                        return published
                    published += done
                    failures = 0
                    continue
                except (SinkError, StorageFull, QueueUnavailable, OSError) as error:
                    trouble = _as_pinq(error)
                now = self._monotonic()
                if not failures:
                    failing_since = now
                failures += 1
                lasted = now - failing_since
                if lasted >= self._patience_seconds and (
                    isinstance(trouble, StorageFull) or self._finishing.is_set()
                ):
                    raise trouble
                delay = _backoff(failures)
                logger.warning(
                    "publishing failed; trying again failures=%d retry_seconds=%.1f error=%s",
                    failures,
                    delay,
                    trouble,
                )
                self._back_off(stop, delay)
            return published + self._last_pass()
        finally:
            self._resign()

    def _step(self, stop: threading.Event) -> int | None:
        """One look at the outbox; how many were published, or None at the end."""
        if not self._elected():
            if self._finishing.is_set() and not self._queue.unpublished(1):
                return None
            self._listen(stop, self._candidate_at - self._monotonic())
            return 0
        events = self._queue.unpublished(self._limit)
        if not events:
            if self._finishing.is_set():
                return None
            self._listen(stop, self._renewal_at() - self._monotonic(), heed_finish=True)
            return 0
        published, waiting = self._deliver(events, linger=not self._finishing.is_set())
        if not published and waiting:
            if self._shortest_linger < waiting:
                self._listen(stop, waiting, heed_finish=True)
            else:
                # Every commit would ring, only to find that it's too early.
                self._linger(stop, waiting)
        return published

    def _deliver(self, events: Sequence[StoredEvent], *, linger: bool) -> tuple[int, float]:
        """Hand events to the sinks that are due, and mark what all have.

        Returns:
            How many were marked, and in how many seconds the first of the sinks
            that aren't due will be; 0 if all are.
        """
        waiting: list[float] = []
        now_ms = self._queue.now_ms()
        for sink, accepted in zip(self._sinks, self._accepted, strict=True):
            missing = [event for event in events if event.id not in accepted]
            if not missing:
                continue
            age_seconds = (now_ms - missing[0].time_ms) / 1000
            # A clock that was set back must not make events linger for long.
            early = 0 <= age_seconds < sink.linger_seconds and len(missing) < sink.max_events
            if linger and early:
                waiting.append(sink.linger_seconds - age_seconds)
                continue
            for start in range(0, len(missing), sink.max_events):
                part = missing[start : start + sink.max_events]
                failpoint("before_publish")
                sink.publish([cloud_event(event) for event in part])
                failpoint("after_publish")
                accepted.update(event.id for event in part)
        everywhere = [
            event for event in events if all(event.id in accepted for accepted in self._accepted)
        ]
        if everywhere:
            failpoint("before_mark")
            self._queue.mark_published([event.position for event in everywhere])
            for accepted in self._accepted:
                accepted.difference_update(event.id for event in everywhere)
            logger.info("events.published count=%d", len(everywhere))
        return len(everywhere), min(waiting, default=0.0)

    def _last_pass(self) -> int:
        try:
            if self._elected_until and self._elected():
                events = self._queue.unpublished(self._limit)
                return self._deliver(events, linger=False)[0]
        except (PinqError, OSError) as error:
            logger.warning("stopped; events wait in the outbox error=%s", error)
        return 0

    def _renewal_at(self) -> float:
        return self._elected_until - self._lease_seconds / 2

    def _elected(self) -> bool:
        """Whether this relay holds the role; asks the queue only now and then."""
        now = self._monotonic()
        if now < self._renewal_at():
            return True
        if not self._elected_until and now < self._candidate_at:
            return False
        if self._queue.elect(ROLE, self._holder, self._lease_seconds):
            self._elected_until = now + self._lease_seconds
            return True
        self._elected_until = 0.0
        self._candidate_at = now + _STANDBY_SECONDS
        for accepted in self._accepted:
            accepted.clear()  # another relay has the events in its hands
        return False

    def _resign(self) -> None:
        if not self._elected_until:
            return
        self._elected_until = 0.0
        try:
            self._queue.resign(ROLE, self._holder)
        except (PinqError, OSError) as error:
            logger.warning("the role runs out by itself error=%s", error)

    def _listen(self, stop: threading.Event, seconds: float, *, heed_finish: bool = False) -> None:
        """Wait for a commit."""
        until = self._monotonic() + seconds
        while not stop.is_set() and not (heed_finish and self._finishing.is_set()):
            remaining = until - self._monotonic()
            if remaining <= 0:
                return
            seen = self._queue.wait(self._seen, min(remaining, _SLICE_SECONDS))
            if seen != self._seen:
                self._seen = seen
                return

    def _linger(self, stop: threading.Event, seconds: float) -> None:
        """Wait out the time, or until ``finish()``."""
        until = self._monotonic() + seconds
        while not stop.is_set() and not self._finishing.is_set():
            remaining = until - self._monotonic()
            if remaining <= 0:
                return
            self._pause(self._finishing, min(remaining, _SLICE_SECONDS))

    def _back_off(self, stop: threading.Event, seconds: float) -> None:
        """Wait out the time; but ``finish()`` meanwhile asks for a try at once."""
        finishing = self._finishing.is_set()
        until = self._monotonic() + seconds
        while not stop.is_set() and self._finishing.is_set() == finishing:
            remaining = until - self._monotonic()
            if remaining <= 0:
                return
            self._pause(stop, min(remaining, _SLICE_SECONDS))


def _backoff(failures: int) -> float:
    longest = min(_BACKOFF_FIRST_SECONDS * 2.0 ** min(failures - 1, 30), _BACKOFF_LONGEST_SECONDS)
    return longest * random.uniform(0.5, 1.0)


def _as_pinq(error: Exception) -> PinqError:
    if isinstance(error, PinqError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return StorageFull(f"no space left while publishing events: {error}")
    return SinkError(f"publishing events: {error}")
