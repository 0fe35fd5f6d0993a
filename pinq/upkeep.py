"""Keeps a queue on time and tidy: periodic jobs are enqueued, old jobs are deleted.

Every worker process has an :class:`Upkeep`, by :class:`UpkeepMiddleware`. One of them all holds
the role ``upkeep`` and works; the others stand by. Time is the queue's.

**Once a tick.** The key of a tick's job names the tick, so it is one job however often it is
fired: by two who both believe to be elected, or by the next one elected, which looks back for
what an earlier one left undone when it died. That is why a job that has ended is kept for
longer than anybody looks back.

**Beside the leases.** Old jobs are deleted in small transactions, with a pause after each that
is as long as it took: others get at least every second turn.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import dramatiq
from dramatiq.broker import Broker
from dramatiq.middleware import Middleware

from pinq.broker.broker import QueueBroker
from pinq.broker.messages import new_job
from pinq.config import PeriodicSettings, PipelineSettings, Settings, load
from pinq.errors import ConfigError, InvalidInput, QueueDraining
from pinq.periodic import Schedule
from pinq.queue.contract import Queue
from pinq.queue.model import NewJob, Outcome

logger = logging.getLogger(__name__)

ROLE = "upkeep"
# Whoever dies is succeeded within a lease and a stand-by: well within the time looked back.
_LEASE_SECONDS = 30.0
_STANDBY_SECONDS = 10.0
# From its last look on, a process makes up for what it missed, when the queue was away say;
# at its first look for a little, and never for more than jobs that have ended are kept.
_LOOK_BACK_MS = 60_000
_LONGEST_LOOK_BACK_MS = 240_000
_SHORTEST_KEPT_SECONDS = 300.0
_LONGEST_KEPT_SECONDS = 100 * 365.25 * 86_400

_PRUNE_EVERY_SECONDS = 60.0
_BATCH = 250
_SHORTEST_PAUSE_SECONDS = 0.02

_BACKOFF_FIRST_SECONDS = 0.5
_BACKOFF_LONGEST_SECONDS = 10.0


class Upkeep:
    """Looks after one queue, in a thread of its own, if this process is elected to.

    Args:
        queue: the queue; it stays open.
        settings: their ``retention`` and ``periodic``.
        holder: this process's name in the election, unlike any other's.
        monotonic: the clock, in seconds.
        pause: waits for an event to be set or so many seconds.
    """

    def __init__(
        self,
        queue: Queue,
        settings: Settings,
        *,
        holder: str,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._queue = queue
        self._pipelines = settings.pipelines
        self._periodic = {
            name: (entry, Schedule(entry.cron, entry.timezone))
            for name, entry in settings.periodic.items()
        }
        self._succeeded_seconds = _kept_seconds(settings.retention.succeeded_hours)
        self._dead_seconds = _kept_seconds(settings.retention.dead_hours)
        self._holder = holder
        self._monotonic = monotonic
        self._pause = pause
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._elected_until = 0.0
        self._prune_at = 0.0
        self._pruned = 0
        # By the queue's clock: every tick until then is fired, or another's to fire.
        self._looked_at_ms: int | None = None

    def start(self) -> None:
        """Begin, in a thread."""
        self._stop.clear()
        self._thread = threading.Thread(target=self.run, name="pinq-upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and give the role up; safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def run(self) -> None:
        """Look again and again until ``stop()``. No trouble ends it, or the worker."""
        failures = 0
        while not self._stop.is_set():
            try:
                seconds = self.step()
                failures = 0
            except Exception as error:  # noqa: BLE001 - whatever it is, the worker works on
                failures += 1
                seconds = _backoff(failures)
                logger.warning(
                    "upkeep.failed failures=%d retry_seconds=%.1f error=%s: %s",
                    failures,
                    seconds,
                    type(error).__name__,
                    error,
                )
            self._pause(self._stop, seconds)
        self._resign()

    def step(self) -> float:
        """Look once: stand for election; if elected fire what is due and delete one batch.

        Returns:
            In how many seconds to look again.
        """
        now_ms, now = self._queue.now_ms(), self._monotonic()
        if not self._elected(now):
            self._looked_at_ms = now_ms - _LOOK_BACK_MS
            return _STANDBY_SECONDS
        next_tick_at = now + (self._fire(now_ms) - now_ms) / 1000
        if self._monotonic() >= self._prune_at:
            self._prune()
        soonest = min(next_tick_at, self._prune_at, self._renewal_at())
        return max(soonest - self._monotonic(), _SHORTEST_PAUSE_SECONDS)

    # --- the election -------------------------------------------------------------

    def _renewal_at(self) -> float:
        return self._elected_until - _LEASE_SECONDS / 2

    def _elected(self, now: float) -> bool:
        """Whether this one holds the role; asks the queue only now and then."""
        if now < self._renewal_at():
            return True
        elected = self._queue.elect(ROLE, self._holder, _LEASE_SECONDS)
        if elected and not self._elected_until:
            logger.info("upkeep.elected holder=%s", self._holder)
        self._elected_until = now + _LEASE_SECONDS if elected else 0.0
        return elected

    def _resign(self) -> None:
        if not self._elected_until:
            return
        self._elected_until = 0.0
        try:
            self._queue.resign(ROLE, self._holder)
        except Exception as error:  # noqa: BLE001 - on the way out
            logger.warning("upkeep.resign_failed; the role runs out by itself error=%s", error)

    # --- periodic jobs ------------------------------------------------------------

    def _fire(self, now_ms: int) -> float:
        """Enqueue the jobs of the ticks since the last look; returns when the next tick is."""
        since_ms = now_ms - _LOOK_BACK_MS if self._looked_at_ms is None else self._looked_at_ms
        # A clock that was set back makes ticks come again; they are found fired.
        since_ms = max(min(since_ms, now_ms), now_ms - _LONGEST_LOOK_BACK_MS)
        next_ms = math.inf
        for name, (entry, schedule) in self._periodic.items():
            for tick_ms in schedule.ticks(since_ms):
                if tick_ms > now_ms:
                    next_ms = min(next_ms, tick_ms)
                    break
                self._fire_tick(name, entry, tick_ms)
        self._looked_at_ms = now_ms
        return next_ms

    def _fire_tick(self, name: str, entry: PeriodicSettings, tick_ms: int) -> None:
        job = tick_job(name, entry, tick_ms, self._pipelines)
        queue_name = entry.queue if entry.uri is None else entry.pipeline
        # Looked up first: to enqueue a job that has ended may run it again.
        if self._queue.lookup(queue_name, [job.key]):
            return
        try:
            if entry.uri is not None:
                source = self._pipelines[queue_name].event_source
                self._queue.declare(queue_name, source=source)
            (answer,) = self._queue.enqueue(queue_name, [job])
        except (QueueDraining, InvalidInput) as error:
            logger.warning("periodic.skipped key=%s error=%s", job.key, error)
            return
        if answer.outcome is Outcome.ENQUEUED:
            logger.info("periodic.fired key=%s queue=%s", job.key, queue_name)

    # --- retention ----------------------------------------------------------------

    def _prune(self) -> None:
        """Delete one batch, and say when to delete the next."""
        started = self._monotonic()
        deleted = self._queue.prune(
            succeeded_seconds=self._succeeded_seconds,
            dead_seconds=self._dead_seconds,
            limit=_BATCH,
        )
        ended = self._monotonic()
        self._pruned += deleted
        if deleted >= _BATCH:
            self._prune_at = ended + (ended - started)
            return
        self._prune_at = ended + _PRUNE_EVERY_SECONDS
        if self._pruned:
            logger.info("retention.pruned jobs=%d", self._pruned)
            self._pruned = 0


class UpkeepMiddleware(Middleware):
    """Gives each worker of a :class:`~pinq.broker.QueueBroker` an :class:`Upkeep` of its queue.

    Args:
        settings: their ``retention`` and ``periodic``; by default those of ``pinq.toml``, found
            as the command ``pinq`` finds it.

    Raises:
        ConfigError: the settings are wrong.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or load()
        self._upkeep: Upkeep | None = None

    def after_worker_boot(self, broker: Broker, worker: dramatiq.Worker) -> None:
        if not isinstance(broker, QueueBroker):
            raise ConfigError(
                f"UpkeepMiddleware keeps pinq's queues, not a {type(broker).__name__}'s"
            )
        self._upkeep = Upkeep(broker.queue, self._settings, holder=broker.worker)
        self._upkeep.start()

    def before_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        if self._upkeep is not None:
            self._upkeep.stop()
            self._upkeep = None


def tick_job(
    name: str, entry: PeriodicSettings, tick_ms: int, pipelines: Mapping[str, PipelineSettings]
) -> NewJob:
    """The job of one tick of a periodic entry. Its key is the entry's name and the tick, in UTC."""
    tick = f"{datetime.fromtimestamp(tick_ms / 1000, UTC):%Y%m%dT%H%M}"
    key = f"{name}-{tick}"
    if entry.uri is not None:
        pipeline = pipelines[entry.pipeline]
        return NewJob(
            key,
            entry.uri.replace("{tick}", tick),
            priority=entry.priority or pipeline.priority,
            max_attempts=pipeline.max_attempts,
        )
    message = dramatiq.Message[object](
        queue_name=entry.queue,
        actor_name=entry.actor or "",
        args=entry.args,
        kwargs=dict(entry.kwargs),
        options={} if entry.priority is None else {"job_priority": entry.priority},
        message_id=key,
        message_timestamp=tick_ms,
    )
    return new_job(message, {})


def _kept_seconds(hours: float) -> float:
    return min(max(hours * 3600, _SHORTEST_KEPT_SECONDS), _LONGEST_KEPT_SECONDS)


def _backoff(failures: int) -> float:
    longest = min(_BACKOFF_FIRST_SECONDS * 2.0 ** min(failures - 1, 30), _BACKOFF_LONGEST_SECONDS)
    return longest * random.uniform(0.5, 1.0)
