"""A dramatiq broker over pinq's queue.

A *batch actor* is an actor declared with ``batch_size``::

    @dramatiq.actor(broker=broker, queue_name="pins", batch_size=64)
    def infer(batch: Batch) -> None:
        for job in batch.jobs:
            batch.succeed(job)

Its consumer wraps one lease of up to ``batch_size`` jobs as one message; the
actor answers job by job, and acknowledging the message finishes the lease in
one transaction. Jobs that it left unanswered are released. If it raises, they
are retried; if what it raised is a PinqError (the store is full, say: no fault of
the jobs), they are released instead and the worker is told to end.

dramatiq's idle consumers back off; this one blocks in ``queue.wait`` instead
and is awake within milliseconds of a commit.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import dramatiq
from dramatiq.broker import Broker, Consumer, MessageProxy
from dramatiq.middleware import Middleware

from pinq.errors import DeviceLost, FailureClass, PinqError, QueueError
from pinq.failpoints import failpoint
from pinq.patience import patiently
from pinq.queue.contract import Queue
from pinq.queue.model import (
    Dead,
    Event,
    Failure,
    Finished,
    Lease,
    LeasedJob,
    Retry,
    Succeeded,
    Verdict,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# While a suspect job waits for its worker to be empty, the queue has due work
# that may not be leased yet; look again after this long, or at the next commit.
_BLOCKED_SECONDS = 0.02


class Batch:
    """The jobs of one lease, and the answers given so far.

    ``lost`` turns true when the lease could not be renewed: what is answered
    from then on will be refused, so a long actor may stop early.
    """

    def __init__(self, lease: Lease) -> None:
        self.queue = lease.queue
        self.token = lease.token
        self.jobs = lease.jobs
        self.lost = False
        self.error: BaseException | None = None
        self.held_back = False
        self.leased_at = time.monotonic()
        self._answers: dict[int, Verdict] = {}

    def succeed(self, job: LeasedJob, event: Event | None = None) -> None:
        """The job is done."""
        self._answers[job.id] = Succeeded(job.id, event)

    def retry(self, job: LeasedJob, failure: Failure, delay_seconds: float) -> None:
        """The attempt failed; another may not."""
        self._answers[job.id] = Retry(job.id, failure, delay_seconds)

    def dead(self, job: LeasedJob, failure: Failure) -> None:
        """The job failed for good."""
        self._answers[job.id] = Dead(job.id, failure)

    def abandon(self, error: PinqError) -> None:
        """Something failed that no job is to blame for; the worker should end.

        What was not answered is released, unless the device is lost: then one of
        the jobs may have done it, so their leases are left to expire, which costs
        an attempt and has them leased alone.
        """
        self.error = error
        self.held_back = isinstance(error, DeviceLost)

    def answers(self) -> list[Verdict]:
        """One verdict a job answered."""
        return list(self._answers.values())

    def unanswered(self) -> list[LeasedJob]:
        """The jobs not answered yet."""
        return [job for job in self.jobs if job.id not in self._answers]

    def __repr__(self) -> str:
        return f"<{len(self.jobs)} jobs of {self.queue}, lease {self.token}>"


class BatchMessage(MessageProxy):
    """A lease as a dramatiq message."""

    def __init__(self, batch: Batch, actor_name: str) -> None:
        super().__init__(
            dramatiq.Message(
                queue_name=batch.queue, actor_name=actor_name, args=(batch,), kwargs={}, options={}
            )
        )
        self.batch = batch


class _Lifecycle(Middleware):
    """Learns from dramatiq how many threads there are, what an actor raised, and the end."""

    def before_worker_boot(self, broker: Broker, worker: dramatiq.Worker) -> None:
        assert isinstance(broker, QueueBroker)
        broker.start(worker.worker_threads)

    def before_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        assert isinstance(broker, QueueBroker)
        broker.stop_leasing()

    def after_process_message(
        self,
        broker: Broker,
        message: Any,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        if isinstance(exception, PinqError):
            message.batch.abandon(exception)
        elif exception is not None:
            message.batch.error = exception


class QueueBroker(Broker):
    """Serves batch actors from a :class:`~pinq.queue.contract.Queue`.

    Args:
        queue: where the jobs are.
        worker: this process's incarnation, unique to it.
        lease_seconds: how long a lease lasts unless renewed; it is renewed every third of that.
        patience_seconds: how long a full disk or an unreachable queue is waited for
            before ``on_fatal`` is called.
        on_finished: told of every finish, from worker threads.
        on_fatal: told of an error that the worker should end with.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        worker: str,
        lease_seconds: float = 60.0,
        patience_seconds: float = 30.0,
        on_finished: Callable[[Batch, Finished], None] | None = None,
        on_fatal: Callable[[PinqError], None] | None = None,
        middleware: list[Middleware] | None = None,
    ) -> None:
        super().__init__(middleware=[_Lifecycle(), *(middleware or ())])
        self.actor_options.add("batch_size")
        self.queue = queue
        self.worker = worker
        self.lease_seconds = lease_seconds
        self.patience_seconds = patience_seconds
        self.on_finished = on_finished
        self.on_fatal = on_fatal
        self._batch_actors: dict[str, dramatiq.Actor[Any, Any]] = {}
        # One batch a thread, and one more so that no thread waits for a lease.
        self._slots = threading.Semaphore(2)
        self._held: dict[str, Batch] = {}
        self._held_lock = threading.Lock()
        self._stopping = threading.Event()
        self._closed = threading.Event()
        self._heartbeat: threading.Thread | None = None

    # --- dramatiq's side ------------------------------------------------------

    def declare_actor(self, actor: dramatiq.Actor[Any, Any]) -> None:
        if not actor.options.get("batch_size"):
            raise QueueError(
                f"actor {actor.actor_name!r} has no batch_size: QueueBroker serves batch actors; "
                "declare it with @dramatiq.actor(..., batch_size=64)"
            )
        other = self._batch_actors.get(actor.queue_name)
        if other is not None and other.actor_name != actor.actor_name:
            raise QueueError(
                f"queue {actor.queue_name!r} has the batch actor {other.actor_name!r} already; "
                "a queue feeds one"
            )
        self._batch_actors[actor.queue_name] = actor
        super().declare_actor(actor)

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> Consumer:
        return BatchConsumer(self, self._batch_actors[queue_name], timeout / 1000)

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> Any:
        raise QueueError(
            "batch actors are not sent messages; enqueue jobs with pinq.Client or `pinq enqueue`"
        )

    def close(self) -> None:
        """End the heartbeat. The queue stays open: whoever opened it closes it."""
        self._closed.set()
        if self._heartbeat is not None:
            self._heartbeat.join()

    # --- the worker's life ----------------------------------------------------

    def start(self, threads: int) -> None:
        """Begin renewing leases, and admit as many batches as ``threads`` need."""
        self._slots = threading.Semaphore(threads + 1)
        self._heartbeat = threading.Thread(target=self._renew, name="pinq-heartbeat", daemon=True)
        self._heartbeat.start()

    def stop_leasing(self) -> None:
        """Lease nothing more; what is held is finished or released."""
        self._stopping.set()

    def _renew(self) -> None:
        while not self._closed.wait(self.lease_seconds / 3):
            with self._held_lock:
                held = [batch for batch in self._held.values() if not batch.lost]
            for batch in held:
                try:
                    if self.queue.renew(batch.token, self.lease_seconds):
                        continue
                except PinqError as error:
                    logger.warning("lease.renew_failed token=%s error=%s", batch.token, error)
                    continue
                with self._held_lock:
                    batch.lost = batch.token in self._held  # else just answered
                if batch.lost:
                    logger.warning("lease.lost token=%s jobs=%d", batch.token, len(batch.jobs))

    # --- the consumers' side --------------------------------------------------

    def lease(self, queue_name: str, limit: int, timeout_seconds: float) -> Batch | None:
        """The next batch, or ``None`` after the timeout or when stopping."""
        if self._stopping.is_set():
            # dramatiq keeps asking while batches are finished; do not spin beside them.
            self._closed.wait(timeout_seconds)
            return None
        if not self._slots.acquire(timeout=timeout_seconds):
            return None
        lease = None
        try:
            lease = self._wait_for_lease(queue_name, limit, timeout_seconds)
        finally:
            if lease is None:
                self._slots.release()
        if lease is None:
            return None
        batch = Batch(lease)
        with self._held_lock:
            self._held[batch.token] = batch
        failpoint("after_lease")
        return batch

    def _wait_for_lease(self, queue_name: str, limit: int, timeout_seconds: float) -> Lease | None:
        deadline = time.monotonic() + timeout_seconds
        while not self._stopping.is_set():
            seen = self.queue.wait(0, 0)
            lease = self.patiently(
                lambda: self.queue.lease(queue_name, limit, self.lease_seconds, self.worker)
            )
            remaining = deadline - time.monotonic()
            if lease is not None or remaining <= 0:
                return lease
            due_ms = self.patiently(lambda: self.queue.next_due_ms(queue_name))
            if due_ms is not None:
                until_due = (due_ms - self.queue.now_ms()) / 1000
                remaining = min(remaining, max(until_due, _BLOCKED_SECONDS))
            self.queue.wait(seen, remaining)
        return None

    def settle(self, batch: Batch) -> None:
        """Finish what was answered, release what was not."""
        if batch.error is not None and not isinstance(batch.error, PinqError):
            failure = Failure(
                FailureClass.MODEL_ERROR, f"{type(batch.error).__name__}: {batch.error}"
            )
            for job in batch.unanswered():
                batch.retry(job, failure, delay_seconds=2.0**job.attempt)
        try:
            failpoint("before_finish")
            if answers := batch.answers():
                finished = self.patiently(lambda: self.queue.finish(batch.token, answers))
                failpoint("after_finish")
                if finished is not None:
                    self._report(batch, finished)
            self.give_back(batch)
        finally:
            if isinstance(batch.error, PinqError):
                self.fail(batch.error)

    def give_back(self, batch: Batch) -> None:
        """Release the jobs that were not answered and forget the batch."""
        unanswered = [job.id for job in batch.unanswered()]
        try:
            if unanswered and not batch.held_back:
                self.patiently(lambda: self.queue.release(batch.token, unanswered))
        finally:
            with self._held_lock:
                held = self._held.pop(batch.token, None)
            if held is not None:
                self._slots.release()

    def _report(self, batch: Batch, finished: Finished) -> None:
        if finished.refused:
            logger.warning(
                "finish.refused token=%s jobs=%d the lease was lost, another worker has them",
                batch.token,
                len(finished.refused),
            )
        logger.info(
            "batch.finished queue=%s jobs=%d succeeded=%d retried=%d dead=%d seconds=%.3f",
            batch.queue,
            len(batch.jobs),
            finished.succeeded,
            finished.retried,
            finished.dead,
            time.monotonic() - batch.leased_at,
        )
        if self.on_finished is not None:
            self.on_finished(batch, finished)

    def patiently(self, verb: Callable[[], T]) -> T | None:
        """Call a verb, waiting out a full disk or an unreachable queue.

        An error that stays is fatal: it is reported and ``None`` is returned; what
        the worker holds is taken back when its leases expire.
        """
        try:
            return patiently(verb, patience_seconds=self.patience_seconds, stop=self._closed)
        except PinqError as error:
            self.fail(error)
            return None

    def fail(self, error: PinqError) -> None:
        """Report an error that no job is to blame for, and lease nothing more."""
        self._stopping.set()
        logger.error("worker.failed error=%s", error)
        if self.on_fatal is not None:
            self.on_fatal(error)


class BatchConsumer(Consumer):
    """Turns leases of one queue into messages for its batch actor."""

    def __init__(
        self, broker: QueueBroker, actor: dramatiq.Actor[Any, Any], timeout_seconds: float
    ) -> None:
        self._broker = broker
        self._actor = actor
        self._timeout_seconds = timeout_seconds

    def __next__(self) -> MessageProxy | None:
        batch = self._broker.lease(
            self._actor.queue_name, self._actor.options["batch_size"], self._timeout_seconds
        )
        return BatchMessage(batch, self._actor.actor_name) if batch else None

    def ack(self, message: Any) -> None:
        self._broker.settle(message.batch)

    def nack(self, message: Any) -> None:
        self._broker.settle(message.batch)

    def requeue(self, messages: Iterable[Any]) -> None:
        for message in messages:
            self._broker.give_back(message.batch)
