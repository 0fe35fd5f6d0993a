"""The intake of a run: finds, signs and enqueues images, in a thread of its own."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from pinq.config import Settings
from pinq.ingest.items import BadItem, Ready
from pinq.ingest.paths import discover
from pinq.ingest.signing import prepare
from pinq.patience import patiently
from pinq.queue.contract import Queue
from pinq.queue.model import Filter, State

_ENQUEUE_BATCH = 256


@dataclass
class Intake:
    """Finds, signs and enqueues the images of a run, in a thread of its own.

    ``scanning`` turns false when all is enqueued, or ``error`` ended it.
    ``ended_before`` counts the jobs that were done already, ``dead_before`` the dead of them.
    """

    settings: Settings
    queue: Queue
    pipeline: str
    paths: Sequence[str]
    retry_dead: bool
    scanning: bool = True
    error: Exception | None = None
    enqueued: int = 0
    duplicate: int = 0
    ended_before: int = 0
    dead_before: int = 0
    signatures: dict[str, None] = field(default_factory=dict)
    skipped: list[BadItem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pinq-intake")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the batch in hand; safe to call twice."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            batch: list[Ready] = []
            for item in prepare(discover(self.paths, formats=self.settings.media.formats)):
                if self._stop.is_set():
                    return
                if isinstance(item, BadItem):
                    self.skipped.append(item)
                    continue
                batch.append(item)
                # The first ones at once, so that work starts while the rest is read.
                if len(batch) >= min(_ENQUEUE_BATCH, max(16, self.enqueued)):
                    self._enqueue(batch)
                    batch = []
            self._enqueue(batch)
        except Exception as error:  # noqa: BLE001 - raised in the main thread
            self.error = error
        finally:
            self.scanning = False

    def _enqueue(self, batch: Sequence[Ready]) -> None:
        pipeline = self.settings.pipeline(self.pipeline)
        jobs = [
            item.job(priority=pipeline.priority, max_attempts=pipeline.max_attempts)
            for item in batch
        ]
        answers = patiently(
            lambda: self.queue.enqueue(self.pipeline, jobs),
            patience_seconds=self.settings.worker.patience_seconds,
            stop=self._stop,
        )
        dead = [answer.key for answer in answers if answer.state is State.DEAD]
        if dead and self.retry_dead:
            self.queue.requeue(Filter(self.pipeline, dead))
        for answer in answers:
            new = answer.key not in self.signatures
            self.signatures[answer.key] = None
            if answer.outcome == "duplicate":
                self.duplicate += 1
            else:
                self.enqueued += 1
            if new and answer.state is State.SUCCEEDED:
                self.ended_before += 1
            if new and answer.state is State.DEAD and not self.retry_dead:
                self.ended_before += 1
                self.dead_before += 1
