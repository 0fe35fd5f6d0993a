"""The way of one batch: fetch, decode, infer, put, and the answer for each job.

The broker leased the batch and will finish it. Whatever goes wrong with one
image is that image's answer; an error of the store abandons the batch, which costs
no job an attempt.
"""

import logging
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pinq.broker import Batch
from pinq.config import MediaSettings, PipelineSettings
from pinq.errors import FailureClass, MediaError, PinqError
from pinq.failpoints import failpoint
from pinq.inference.engine import Engine
from pinq.media.decode import decode
from pinq.media.fetch import fetch
from pinq.media.signature import signature_of
from pinq.outbox.events import computed_event
from pinq.patience import patiently
from pinq.queue.model import Failure, LeasedJob
from pinq.signals.contract import Signal
from pinq.store.contract import SignalKey, SignalValue, Store

if TYPE_CHECKING:
    import torch

    from pinq.signals.contract import ImageInput

logger = logging.getLogger(__name__)

Images = Mapping["ImageInput", "torch.Tensor"]
LoadAll = Callable[
    [Callable[["_Work"], Images | Failure], Iterable["_Work"]], Iterable[Images | Failure]
]


class Processor:
    """Computes, stores and answers the batches of one pipeline.

    Args:
        name: the pipeline.
        pipeline: its settings.
        signals: its signals, loaded.
        engine: where they are computed.
        store: where they are put.
        media: limits on images.
        load_all: maps a function over a batch, in whatever threads fetch and decode.
        patience_seconds: how long a full disk is waited for.
        stop: set when the worker should not wait any more.
    """

    def __init__(
        self,
        name: str,
        pipeline: PipelineSettings,
        signals: Sequence[Signal],
        *,
        engine: Engine,
        store: Store,
        media: MediaSettings,
        load_all: LoadAll,
        patience_seconds: float,
        stop: threading.Event,
    ) -> None:
        self._name = name
        self._pipeline = pipeline
        self._signals = signals
        self._engine = engine
        self._store = store
        self._media = media
        self._load_all = load_all
        self._patience_seconds = patience_seconds
        self._stop = stop

    def process(self, batch: Batch) -> None:
        """Take a batch all the way to its answers."""
        try:
            self._process(batch)
        except PinqError as error:
            batch.abandon(error)

    def _process(self, batch: Batch) -> None:
        works = self._find_missing(batch.jobs)
        self._load(works)
        self._infer(works)
        self._put(works)
        for work in works:
            self._answer(batch, work)

    def _find_missing(self, jobs: Sequence[LeasedJob]) -> list["_Work"]:
        """What the store lacks of each job, at the current versions."""
        # What is forced is computed whatever is stored, even if that is damaged.
        keys = [self._key(job, s) for job in jobs if not job.force for s in self._signals]
        stored = iter(self._store.get(keys))
        works = []
        for job in jobs:
            work = _Work(job)
            for signal in self._signals:
                value = None if job.force else next(stored)
                if value is None:
                    work.missing.append(signal)
                elif job.attempt > 1 or value.computed_at_ms >= job.enqueued_at_ms:
                    # Stored for this job, by an attempt that died before it could say so.
                    work.computed[signal.name] = signal.version
            works.append(work)
        return works

    def _load(self, works: Sequence["_Work"]) -> None:
        """Fetch and decode."""
        loading = [work for work in works if work.missing]
        for work, loaded in zip(loading, self._load_all(self._load_one, loading), strict=True):
            if isinstance(loaded, Failure):
                work.failure = loaded
            else:
                work.images = loaded

    def _load_one(self, work: "_Work") -> Images | Failure:
        job = work.job
        try:
            fetched = fetch(job.uri, self._media)
            if job.verify and fetched.etag != job.etag:
                _verify(job, fetched.data)
            return decode(fetched.data, {signal.input for signal in work.missing}, self._media)
        except MediaError as error:
            return Failure(error.failure_class, str(error))

    def _infer(self, works: Sequence["_Work"]) -> None:
        """Each signal on all images that lack it."""
        for signal in self._signals:
            wanting = [work for work in works if work.images and signal in work.missing]
            answers = self._engine.compute(
                signal, [work.images[signal.input] for work in wanting if work.images]
            )
            for work, answer in zip(wanting, answers, strict=True):
                if isinstance(answer, Failure):
                    work.failure = answer
                else:
                    work.values.append((self._key(work.job, signal), answer))
                    work.computed[signal.name] = signal.version
        for work in works:
            work.images = None

    def _put(self, works: Sequence["_Work"]) -> None:
        """One synced write for the batch."""
        items = [item for work in works for item in work.values]
        if items:
            patiently(
                lambda: self._store.put(items),
                patience_seconds=self._patience_seconds,
                stop=self._stop,
            )
        failpoint("after_put")

    def _answer(self, batch: Batch, work: "_Work") -> None:
        job, failure = work.job, work.failure
        if failure is not None and failure.failure_class.permanent:
            batch.dead(job, failure)
        elif failure is not None:
            batch.retry(job, failure, backoff_seconds(self._pipeline, job.attempt))
        elif work.computed or self._pipeline.announce_unchanged:
            signals = work.computed or {s.name: s.version for s in self._signals}
            event = computed_event(
                source=self._pipeline.event_source,
                signature=job.key,
                pipeline=self._name,
                attempt=job.attempt,
                signals=signals,
                uri=job.uri,
            )
            batch.succeed(job, event)
        else:
            batch.succeed(job)

    def _key(self, job: LeasedJob, signal: Signal) -> SignalKey:
        return SignalKey(self._pipeline.galaxy, signal.name, signal.version, job.key)


class _Work:
    """One job on its way."""

    __slots__ = ("computed", "failure", "images", "job", "missing", "values")

    def __init__(self, job: LeasedJob) -> None:
        self.job = job
        self.missing: list[Signal] = []
        self.images: Images | None = None
        self.values: list[tuple[SignalKey, SignalValue]] = []
        self.computed: dict[str, int] = {}
        self.failure: Failure | None = None


def _verify(job: LeasedJob, data: bytes) -> None:
    signature = signature_of(data)
    if signature != job.key:
        raise MediaError(
            FailureClass.SIGNATURE_MISMATCH,
            f"{job.uri} has changed since it was enqueued: its signature is {signature} now; "
            "enqueue it again",
        )


def backoff_seconds(
    pipeline: PipelineSettings,
    attempt: int,
    jitter: Callable[[float, float], float] = random.uniform,
) -> float:
    """How long to wait after a failed attempt: exponential, half of it jitter.

    Source: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015
    ("equal jitter").
    """
    full = min(pipeline.backoff_max_seconds, pipeline.backoff_seconds * 2.0 ** (attempt - 1))
    return full / 2 + jitter(0.0, full / 2)
