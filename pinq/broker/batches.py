"""Batch actors: one lease of up to ``batch_size`` jobs is one message.

A *batch actor* is an actor declared with ``batch_size``::

    @dramatiq.actor(broker=broker, queue_name="pins", batch_size=64)
    def infer(batch: Batch) -> None:
        for job in batch.jobs:
            batch.succeed(job)

The actor answers job by job, and acknowledging the message finishes the lease in one
transaction. Jobs that it left unanswered are released. If it raises, they are retried;
if what it raised is a PinqError (the store is full, say: no fault of the jobs), they are
released instead and the worker is told to end.

dramatiq's idle consumers back off; this one blocks in ``queue.wait`` instead and is awake
within milliseconds of a commit.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import dramatiq
from dramatiq.broker import Consumer, MessageProxy

from pinq.broker.holding import Holding
from pinq.errors import DeviceLost, FailureClass, PinqError
from pinq.failpoints import failpoint
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
                queue_name=batch.queue,
                actor_name=actor_name,
                args=(batch,),
                kwargs={},
                # TimeLimit's ten minutes are meant for one message's work.
                options={"time_limit": float("inf")},
            )
        )
        self.batch = batch


class Batches:
    """Leases batches, and finishes what was answered.

    ``on_finished`` is told of every finish, from worker threads.
    """

    def __init__(
        self, holding: Holding, on_finished: Callable[[Batch, Finished], None] | None
    ) -> None:
        self._holding = holding
        self._on_finished = on_finished
        # One batch a thread, and one more so that no thread waits for a lease.
        self._slots = threading.Semaphore(2)

    def start(self, threads: int) -> None:
        """Admit as many batches as ``threads`` need."""
        self._slots = threading.Semaphore(threads + 1)

    def lease(self, queue_name: str, limit: int, timeout_seconds: float) -> Batch | None:
        """The next batch, or ``None`` after the timeout or when stopping."""
        if self._holding.stopping.is_set():
            # dramatiq keeps asking while batches are finished; do not spin beside them.
            self._holding.closed.wait(timeout_seconds)
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
        self._holding.add(batch)
        failpoint("after_lease")
        return batch

    def _wait_for_lease(self, queue_name: str, limit: int, timeout_seconds: float) -> Lease | None:
        deadline = time.monotonic() + timeout_seconds
        holding, queue = self._holding, self._holding.queue
        while not holding.stopping.is_set():
            seen = queue.wait(0, 0)
            lease = holding.patiently(
                lambda: queue.lease(queue_name, limit, holding.lease_seconds, holding.worker)
            )
            remaining = deadline - time.monotonic()
            if lease is not None or remaining <= 0:
                return lease
            due_ms = holding.patiently(lambda: queue.next_due_ms(queue_name))
            if due_ms is not None:
                until_due = (due_ms - queue.now_ms()) / 1000
                remaining = min(remaining, max(until_due, _BLOCKED_SECONDS))
            queue.wait(seen, remaining)
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
                finished = self._holding.patiently(
                    lambda: self._holding.queue.finish(batch.token, answers)
                )
                failpoint("after_finish")
                if finished is not None:
                    self._report(batch, finished)
            self.give_back(batch)
        finally:
            if isinstance(batch.error, PinqError):
                self._holding.fail(batch.error)

    def give_back(self, batch: Batch) -> None:
        """Release the jobs that were not answered and forget the batch."""
        unanswered = [job.id for job in batch.unanswered()]
        try:
            if unanswered and not batch.held_back:
                self._holding.patiently(
                    lambda: self._holding.queue.release(batch.token, unanswered)
                )
        finally:
            if self._holding.remove(batch.token):
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
        if self._on_finished is not None:
            self._on_finished(batch, finished)


class BatchConsumer(Consumer):
    """Turns leases of one queue into messages for its batch actor."""

    def __init__(
        self, batches: Batches, actor: dramatiq.Actor[Any, Any], timeout_seconds: float
    ) -> None:
        self._batches = batches
        self._actor = actor
        self._timeout_seconds = timeout_seconds

    def __next__(self) -> MessageProxy | None:
        batch = self._batches.lease(
            self._actor.queue_name, self._actor.options["batch_size"], self._timeout_seconds
        )
        return BatchMessage(batch, self._actor.actor_name) if batch else None

    def ack(self, message: Any) -> None:
        self._batches.settle(message.batch)

    def nack(self, message: Any) -> None:
        self._batches.settle(message.batch)

    def requeue(self, messages: Iterable[Any]) -> None:
        for message in messages:
            self._batches.give_back(message.batch)
