"""The broker that dramatiq sees."""

import math
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import dramatiq
from dramatiq.broker import Broker, Consumer
from dramatiq.errors import ConnectionFailed, QueueJoinTimeout, QueueNotFound
from dramatiq.middleware import Middleware, MiddlewareError, default_middleware

from pinq.broker.batches import Batch, BatchConsumer, Batches, BatchMessage
from pinq.broker.connection import Connection
from pinq.broker.courier import ActorConsumer, Courier
from pinq.broker.holding import Holding
from pinq.broker.messages import ACTOR_OPTIONS, Actor, new_job
from pinq.broker.sending import Sending
from pinq.errors import PinqError, QueueError
from pinq.patience import patiently
from pinq.queue.contract import Queue
from pinq.queue.model import Enqueued, Filter, Finished, NewJob, Outcome, State
from pinq.queue.succession import succeed_the_dead

Message = dramatiq.Message[Any]


class CannotStart(ConnectionFailed, MiddlewareError):
    """The queue cannot be opened. dramatiq's command ends with its code for that, 3."""


class _Lifecycle(Middleware):
    """Learns from dramatiq how many threads there are, what an actor raised, and the end."""

    def before_worker_boot(self, broker: Broker, worker: dramatiq.Worker) -> None:
        assert isinstance(broker, QueueBroker)
        try:
            broker.start(worker.worker_threads)
        except PinqError as error:
            raise CannotStart(str(error)) from error  # type: ignore[no-untyped-call]

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
        if not isinstance(message, BatchMessage):
            return
        if isinstance(exception, PinqError):
            message.batch.abandon(exception)
        elif exception is not None:
            message.batch.error = exception


class QueueBroker(Broker):
    """Serves dramatiq's actors from a :class:`~pinq.queue.contract.Queue`.

    Args:
        queue: where the jobs are; whoever opened it closes it.
        url: or where they are as a URL. Every process opens it on first use, and again
            after a fork.
        worker: this process's incarnation, unique to it; made up by default.
        lease_seconds: how long a lease lasts unless renewed; it is renewed every third of that.
        patience_seconds: how long a full disk or an unreachable queue is waited for
            before ``on_fatal`` is called.
        on_finished: told of every finish of a batch, from worker threads.
        on_fatal: told of an error that the worker should end with.
        middleware: dramatiq's default middleware if ``None``, as with other brokers. Batch
            actors need none.
    """

    def __init__(
        self,
        queue: Queue | None = None,
        *,
        url: str | None = None,
        worker: str | None = None,
        lease_seconds: float = 60.0,
        patience_seconds: float = 30.0,
        on_finished: Callable[[Batch, Finished], None] | None = None,
        on_fatal: Callable[[PinqError], None] | None = None,
        middleware: list[Middleware] | None = None,
    ) -> None:
        if middleware is None:
            middleware = [default() for default in default_middleware]
        super().__init__(middleware=[_Lifecycle(), *middleware])
        self.actor_options |= {"batch_size", *ACTOR_OPTIONS}
        self._connection = Connection(queue, url, worker)
        self._holding = Holding(
            self._connection,
            lease_seconds=lease_seconds,
            patience_seconds=patience_seconds,
            on_fatal=on_fatal,
        )
        self._batches = Batches(self._holding, on_finished)
        self._courier = Courier(self._holding, self.actors)
        self._sending = Sending(self._enqueue)
        self._batch_actors: dict[str, Actor] = {}
        self._working = False

    @property
    def queue(self) -> Queue:
        """The queue, open in this process."""
        return self._connection.queue

    @property
    def worker(self) -> str:
        """This process's incarnation: the name by which it leases."""
        return self._connection.worker

    # --- declarations -----------------------------------------------------------

    def declare_actor(self, actor: Actor) -> None:
        others = [
            other
            for other in self.actors.values()
            if other.queue_name == actor.queue_name and other.actor_name != actor.actor_name
        ]
        batches = [a for a in (actor, *others) if a.options.get("batch_size")]
        if others and batches:
            raise QueueError(
                f"queue {actor.queue_name!r} has the actor {others[0].actor_name!r} already: a "
                f"batch actor, as {batches[0].actor_name!r} is, has its queue for itself; "
                "give one of the two another queue_name"
            )
        if batches:
            self._batch_actors[actor.queue_name] = actor
        super().declare_actor(actor)

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    # --- sending ------------------------------------------------------------------

    def enqueue(self, message: Message, *, delay: int | None = None) -> Message:
        """Send a message; when this returns, it is committed.

        A message that a worker of this process has in hand is not sent: its job becomes
        pending again when it is acknowledged, in that transaction. So dramatiq's ``Retries``
        retries, and nothing is lost or doubled by a crash in between.

        Args:
            delay: milliseconds, by the queue's clock.

        Raises:
            QueueDraining: the queue takes no more jobs.
            QueueUnavailable: it cannot be reached; a worker waits for it first.
            StorageFull: there is no space.
        """
        if isinstance(message, BatchMessage):
            return message  # Retries asks for it; a batch's jobs are retried when it is settled
        self.emit_before("enqueue", message, delay)
        if not self._courier.enqueue_again(message, delay):
            (message,) = self._add(message.queue_name, [message], delay)
        self.emit_after("enqueue", message, delay)
        return message

    def enqueue_many(
        self, messages: Iterable[Message], *, delay: int | None = None
    ) -> list[Message]:
        """Send new messages, all that go to one queue in one transaction."""
        by_queue: dict[str, list[Message]] = {}
        for message in messages:
            self.emit_before("enqueue", message, delay)
            by_queue.setdefault(message.queue_name, []).append(message)
        sent = [m for name, some in by_queue.items() for m in self._add(name, some, delay)]
        for message in sent:
            self.emit_after("enqueue", message, delay)
        return sent

    def _add(self, queue_name: str, messages: list[Message], delay: int | None) -> list[Message]:
        if queue_name in self._batch_actors:
            raise QueueError(
                f"queue {queue_name!r} feeds the batch actor "
                f"{self._batch_actors[queue_name].actor_name!r}, which is not sent messages; "
                "enqueue jobs with pinq.Client or `pinq enqueue`"
            )
        if delay is not None:
            due = {"eta": self.queue.now_ms() + delay}
            messages = [message.copy(options=due) for message in messages]
        jobs = [new_job(message, self.actors) for message in messages]
        answers = self._sending.send(queue_name, jobs)
        running = [
            job._replace(key=f"{job.key}.{secrets.token_hex(4)}")
            for job, answer in zip(jobs, answers, strict=True)
            if answer.outcome is Outcome.DUPLICATE and answer.state is State.LEASED
        ]
        if running:  # at work elsewhere; whoever enqueues it means once more after this
            self._sending.send(queue_name, running)
        return messages

    def _enqueue(self, queue_name: str, jobs: Sequence[NewJob]) -> Sequence[Enqueued]:
        # By force: a message that was dead, or done, is sent again because somebody wants it.
        return patiently(
            lambda: self.queue.enqueue(queue_name, jobs, force=True),
            patience_seconds=self._holding.patience_seconds if self._working else 0,
            stop=self._holding.closed,
        )

    # --- looking on -----------------------------------------------------------------

    def join(self, queue_name: str, *, interval: int = 100, timeout: int | None = None) -> None:
        """Wait until no message of the queue is pending, delayed or unacknowledged.

        Args:
            interval: milliseconds after which to look again, should nobody ring.
            timeout: milliseconds.

        Raises:
            QueueJoinTimeout: when the timeout elapses.
            QueueNotFound: the queue was never declared.
        """
        self._check_declared(queue_name)
        deadline = math.inf if timeout is None else time.monotonic() + timeout / 1000
        while True:
            seen = self.queue.wait(0, 0)
            if not self.queue.unfinished([queue_name]):
                return
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise QueueJoinTimeout(queue_name)  # type: ignore[no-untyped-call]
            self.queue.wait(seen, min(interval / 1000, remaining))

    def flush(self, queue_name: str) -> None:
        """Delete all messages of the queue, dead letters too. One at work is refused its ack."""
        self._check_declared(queue_name)
        self.queue.delete(Filter(queue=queue_name))

    def flush_all(self) -> None:
        """Delete all messages of all declared queues."""
        for queue_name in self.get_declared_queues():
            self.flush(queue_name)

    def _check_declared(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)  # type: ignore[no-untyped-call]

    # --- the worker's life ------------------------------------------------------------

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> Consumer:
        self._check_declared(queue_name)
        actor = self._batch_actors.get(queue_name)
        if actor is not None:
            return BatchConsumer(self._batches, actor, timeout / 1000)
        return ActorConsumer(
            self._courier, self._courier.open(queue_name, prefetch), timeout / 1000
        )

    def start(self, threads: int) -> None:
        """Be a worker of so many threads: open the queue, renew what will be leased.

        Raises:
            PinqError: the queue cannot be opened, or not be reached.
        """
        self._working = True
        self._holding.start()
        self._batches.start(threads)
        self._courier.start(threads)
        patiently(
            lambda: succeed_the_dead(self.queue),
            patience_seconds=self._holding.patience_seconds,
            stop=self._holding.closed,
        )

    def stop_leasing(self) -> None:
        """Lease nothing more; what is held is finished or released."""
        self._holding.stopping.set()
        self._courier.stop_leasing()

    def close(self) -> None:
        """End the threads. A queue that was handed over stays open: who opened it closes it."""
        self._courier.close()
        self._holding.close()
        self._connection.close()
        self._working = False
