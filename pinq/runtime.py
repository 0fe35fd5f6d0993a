"""Put the parts together from the settings, and run them.

Torch and the decoders are imported here and nowhere above, when a worker is
built: what only enqueues or looks up never pays for them.
"""

import gc
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import dramatiq

from pinq.broker import Batch, QueueBroker
from pinq.config import PipelineSettings, Settings, WorkerSettings
from pinq.errors import PinqError, QueueError
from pinq.incarnation import incarnation
from pinq.ingest.items import BadItem
from pinq.intake import Intake
from pinq.outbox.relay import Relay
from pinq.outbox.sinks.urls import open_sink
from pinq.queue.contract import Queue
from pinq.queue.model import Finished, Job, State
from pinq.queue.succession import succeed_the_dead
from pinq.queue.urls import open_queue
from pinq.signals.contract import Signal
from pinq.signals.registry import signals_for
from pinq.store.contract import Store
from pinq.store.urls import open_store
from pinq.upkeep import UpkeepMiddleware

logger = logging.getLogger(__name__)

_LOOKUP_BATCH = 1000
_EXAMPLES = 3
# dramatiq's threads look for a stop this often; it costs nothing measurable.
_WORKER_TIMEOUT_MS = 100
_POLL_SECONDS = 0.05
_SHORT_SWITCH_SECONDS = 0.0001


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is: images found (so far, while ``scanning``) and done, of those dead."""

    found: int
    scanning: bool
    done: int
    dead: int
    computed: int


@dataclass(frozen=True, slots=True)
class RunReport:
    """What became of the paths of a run.

    ``enqueued`` and ``duplicate`` count items; ``succeeded`` and ``dead`` are the
    final states of their distinct jobs. ``images_per_second`` is of what this
    run did. ``refused`` jobs were taken over by another worker meanwhile.
    """

    enqueued: int
    duplicate: int
    succeeded: int
    dead: int
    dead_by_class: Mapping[str, int]
    dead_examples: Mapping[str, tuple[Job, ...]]
    seconds: float
    images_per_second: float
    refused: int
    interrupted: bool
    skipped: Sequence[BadItem]


class Worker:
    """A worker in this process: a store it owns, a broker, and dramatiq's threads.

    Args:
        settings: everything.
        pipelines: which ones to work on; all by default.
        upkeep: whether to stand for election to upkeep, too.
        on_finished: told of every finish.
    """

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        store: Store,
        *,
        pipelines: Sequence[str] | None = None,
        upkeep: bool = True,
        on_finished: Callable[[Batch, Finished], None] | None = None,
    ) -> None:
        self.error: PinqError | None = None
        self.ended = threading.Event()
        self.counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._on_finished = on_finished
        self._stop_waiting = threading.Event()
        self._decoders = _decoders(settings.worker)
        self.broker = QueueBroker(
            queue,
            lease_seconds=settings.worker.lease_seconds,
            patience_seconds=settings.worker.patience_seconds,
            on_finished=self._finished,
            on_fatal=self._fatal,
            middleware=[],  # batches are not retried by dramatiq
        )
        if upkeep:
            self.broker.add_middleware(UpkeepMiddleware(settings))
        self._declare_actors(settings, queue, store, pipelines or tuple(settings.pipelines))
        self._threads = settings.worker.threads
        self._dramatiq: dramatiq.Worker | None = None

    def _declare_actors(
        self, settings: Settings, queue: Queue, store: Store, pipelines: Sequence[str]
    ) -> None:
        with _importing_torch():
            from pinq.inference.allocator import keep_freed_memory
            from pinq.inference.engine import Engine
            from pinq.processing import Processor

        keep_freed_memory()
        names = {name for p in pipelines for name in settings.pipeline(p).signals}
        signals = {signal.name: signal for signal in signals_for(settings, sorted(names))}
        engine = Engine(list(signals.values()), settings.worker)
        for name in pipelines:
            pipeline = settings.pipeline(name)
            chosen = [signals[signal] for signal in pipeline.signals]
            declare(queue, name, pipeline, chosen)
            processor = Processor(
                name,
                pipeline,
                chosen,
                engine=engine,
                store=store,
                media=settings.media,
                load_all=map if self._decoders is None else self._decoders.map,
                patience_seconds=settings.worker.patience_seconds,
                stop=self._stop_waiting,
            )
            declare_actor = dramatiq.actor(
                actor_name=f"infer.{name}",
                queue_name=name,
                broker=self.broker,
                batch_size=settings.worker.batch_size,
            )
            declare_actor(processor.process)

    def start(self) -> None:
        """Start dramatiq's threads in this process."""
        self._dramatiq = dramatiq.Worker(
            self.broker, worker_threads=self._threads, worker_timeout=_WORKER_TIMEOUT_MS
        )
        self._dramatiq.start()

    def stop(self) -> None:
        """Finish the batches being worked on, release the others, end the threads."""
        if self._dramatiq is not None:
            self._dramatiq.stop()
            self._dramatiq = None
        self.close()

    def close(self) -> None:
        """End what the worker started itself; for use where dramatiq runs the threads."""
        self.broker.close()
        self._stop_waiting.set()
        if self._decoders is not None:
            self._decoders.shutdown()
        logger.info(
            "worker.stopped %s",
            " ".join(f"{name}={self.counts[name]}" for name in _COUNTED),
        )

    def _finished(self, batch: Batch, finished: Finished) -> None:
        with self._counting:
            self.counts.update(
                succeeded=finished.succeeded,
                retried=finished.retried,
                dead=finished.dead,
                refused=len(finished.refused),
            )
        if self._on_finished is not None:
            self._on_finished(batch, finished)

    def _fatal(self, error: PinqError) -> None:
        self.error = self.error or error
        self._stop_waiting.set()
        self.ended.set()


@contextmanager
def _importing_torch() -> Iterator[None]:
    """Import in here what is large, while other threads sign the first images.

    Torch's import makes half a million objects that stay: they are left out of garbage
    collection, then and later. And it holds the GIL for a second or two, in which a
    thread that signs would wait 5 ms for each of the few steps of a file.
    """
    was_enabled, interval = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(_SHORT_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.freeze()
        if was_enabled:
            gc.enable()


def _decoders(worker: WorkerSettings) -> ThreadPoolExecutor | None:
    """Threads that decode, where there are more cores than batches at work to keep busy.

    Otherwise a batch is decoded in its own thread: more threads than cores only get
    in each other's way.
    """
    cores = len(os.sched_getaffinity(0))
    threads = worker.decode_threads or (cores if cores > worker.threads else 0)
    return ThreadPoolExecutor(threads, "pinq-decode") if threads else None


_COUNTED = ("succeeded", "retried", "dead", "refused")


def declare(queue: Queue, name: str, pipeline: PipelineSettings, signals: Iterable[Signal]) -> None:
    """Make a pipeline's queue, or tell it what its workers compute now."""
    queue.declare(
        name,
        source=pipeline.event_source,
        signals=[f"{signal.name}@{signal.version}" for signal in signals],
    )


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Queue, Store]]:
    """The queue, and the store to write, closed in the end."""
    with ExitStack() as stack:
        store = open_store(settings.store, write=True)  # first: it tells who is here already
        stack.callback(store.close)
        queue = open_queue(settings.queue)
        stack.callback(queue.close)
        succeed_the_dead(queue)
        yield queue, store


def run_worker(
    settings: Settings,
    *,
    until_empty: bool = False,
    stop: threading.Event,
    pipelines: Sequence[str] | None = None,
) -> None:
    """Work until ``stop`` is set, or (``until_empty``) nothing is pending or leased.

    What is in paused queues is not waited for.

    Raises:
        PinqError: the worker had to end; what it held was released, or its
            leases will expire.
    """
    with opened(settings) as (queue, store):
        worker = Worker(settings, queue, store, pipelines=pipelines)
        worker.start()
        try:
            while not stop.is_set() and not worker.ended.is_set():
                if until_empty and not _has_work(queue, pipelines or tuple(settings.pipelines)):
                    break
                stop.wait(_POLL_SECONDS)
        finally:
            worker.stop()
    if worker.error is not None:
        raise worker.error


def _has_work(queue: Queue, pipelines: Sequence[str]) -> bool:
    """Whether anything is pending or leased; what a paused queue holds does not count."""
    return any(queue.unfinished([name]) and not queue.controls(name).paused for name in pipelines)


def run_relay(settings: Settings, *, until_empty: bool = False, stop: threading.Event) -> int:
    """Publish events until ``stop`` is set, or (``until_empty``) none is left.

    Returns how many were published.
    """
    with ExitStack() as stack:
        queue = open_queue(settings.queue)
        stack.callback(queue.close)
        succeed_the_dead(queue)
        relay = _relay(settings, queue, stack)
        return relay.run(stop, until_empty=until_empty)


def _relay(settings: Settings, queue: Queue, stack: ExitStack) -> Relay:
    sinks = []
    for url in settings.events:
        sinks.append(open_sink(url))
        stack.callback(sinks[-1].close)
    return Relay(
        queue, sinks, holder=incarnation(), patience_seconds=settings.worker.patience_seconds
    )


def run(
    settings: Settings,
    paths: Sequence[str],
    *,
    pipeline: str = "default",
    retry_dead: bool = False,
    on_progress: Callable[[RunProgress], None] | None = None,
    stop: threading.Event | None = None,
) -> RunReport:
    """Enqueue the images of ``paths``, compute them and announce them, in this process.

    Jobs of the pipeline that were enqueued earlier are worked on too. Jobs
    scheduled for later and never tried are left alone.

    Raises:
        PinqError: something other than an image failed; run again to go on.
    """
    chosen = settings.pipeline(pipeline)
    started = time.monotonic()
    with ExitStack() as stack:
        queue, store = stack.enter_context(opened(settings))
        if queue.controls(pipeline).paused:
            raise QueueError(
                f"pipeline {pipeline!r} is paused; `pinq queues resume {pipeline}` ends that"
            )
        # Before anything is enqueued: a signal that is new makes its images run again.
        declare(queue, pipeline, chosen, signals_for(settings, chosen.signals))
        intake = Intake(settings, queue, pipeline, paths, retry_dead)
        stack.callback(intake.stop)
        intake.start()
        relaying = _Relaying(settings, queue)
        relaying.start()
        stack.callback(relaying.finish)
        worker: Worker | None = None
        interrupted = False
        try:
            while True:
                scanning = intake.scanning  # before the look at the queue, or work is missed
                work = queue.unfinished([pipeline], scheduled=False)
                if not (scanning or work):
                    break
                if stop is not None and stop.is_set():
                    interrupted = True
                    break
                if intake.error or relaying.error or (worker and worker.error):
                    break
                if work and worker is None:
                    # Only now: where all is done already, torch need not be imported.
                    worker = Worker(settings, queue, store, pipelines=[pipeline], upkeep=False)
                    worker.start()
                if on_progress is not None:
                    on_progress(_progress(intake, worker))
                time.sleep(_POLL_SECONDS)
        finally:
            intake.stop()
            if worker is not None:
                worker.stop()
            relaying.finish()
        error = (worker and worker.error) or intake.error or relaying.error
        if error is not None:
            raise error
        if on_progress is not None:
            on_progress(_progress(intake, worker))
        return _report(queue, pipeline, intake, worker, time.monotonic() - started, interrupted)


class _Relaying:
    """A relay in a thread of its own."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self._stack = ExitStack()
        self._relay = _relay(settings, queue, self._stack)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pinq-relay")
        self.error: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Publish what is there, and end; safe to call twice."""
        self._relay.finish()
        self._thread.join()
        self._stack.close()

    def _run(self) -> None:
        try:
            self._relay.run(self._stop)
        except Exception as error:  # noqa: BLE001 - raised in the main thread
            self.error = error


def _progress(intake: Intake, worker: Worker | None) -> RunProgress:
    counts = worker.counts if worker else Counter[str]()
    succeeded, dead = counts["succeeded"], counts["dead"]
    return RunProgress(
        found=len(intake.signatures),
        scanning=intake.scanning,
        done=intake.ended_before + succeeded + dead,
        dead=intake.dead_before + dead,
        computed=succeeded,
    )


def _report(
    queue: Queue,
    pipeline: str,
    intake: Intake,
    worker: Worker | None,
    seconds: float,
    interrupted: bool,
) -> RunReport:
    succeeded = 0
    dead: Counter[str] = Counter()
    examples: dict[str, tuple[Job, ...]] = {}
    keys = list(intake.signatures)
    for start in range(0, len(keys), _LOOKUP_BATCH):
        for job in queue.lookup(pipeline, keys[start : start + _LOOKUP_BATCH]).values():
            if job.state is State.SUCCEEDED:
                succeeded += 1
            elif job.state is State.DEAD:
                reason = job.errors[-1].failure_class if job.errors else "unknown"
                dead[reason] += 1
                if dead[reason] <= _EXAMPLES:
                    examples[reason] = (*examples.get(reason, ()), job)
    counts = worker.counts if worker else Counter[str]()
    done = counts["succeeded"] + counts["dead"]
    return RunReport(
        enqueued=intake.enqueued,
        duplicate=intake.duplicate,
        succeeded=succeeded,
        dead=dead.total(),
        dead_by_class=dict(dead),
        dead_examples=examples,
        seconds=seconds,
        images_per_second=done / seconds if seconds else 0.0,
        refused=counts["refused"],
        interrupted=interrupted,
        skipped=tuple(intake.skipped),
    )
