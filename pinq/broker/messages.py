"""A dramatiq message as a job, and a leased job as a message.

The job's key is the message's id, so that a message that is enqueued while it is pending
is one job; its body is the message as dramatiq encodes it. A delay is the job's time,
and an ``eta`` in the options only tells of it: there is no queue for delayed messages.

**Priority.** dramatiq's are any integers, 0 by default and the lowest first; the queue has
1 to 9, 5 by default and 1 first. An actor's ``priority`` of 0 is 5, and each step is a
step, up to the ends: -4 and below are 1, 4 and above are 9. The option ``job_priority``
(of an actor, or of a message) says it in the queue's terms. What a worker has in hand it
starts in dramatiq's order.

**Attempts.** Whether a message that failed is retried is for dramatiq's ``Retries`` to
decide, so the queue's own limit is out of reach. Only what kills its worker never comes to
``Retries``: the queue counts every lease, each retry writes down how many there were, and
what has been leased ``max_crashes`` times since without coming to an end is not started
again, but dead.
"""

import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

import dramatiq
from dramatiq.broker import MessageProxy

from pinq.errors import FailureClass
from pinq.queue.model import (
    Dead,
    Failure,
    LeasedJob,
    NewJob,
    Retry,
    Succeeded,
    Verdict,
)

Actor = dramatiq.Actor[Any, Any]
Actors = Mapping[str, Actor]

ACTOR_OPTIONS = frozenset({"job_priority", "max_crashes"})

_PRIORITY = 5
_MAX_CRASHES = 5
_OUT_OF_REACH = 1_000_000_000
# The option that says how many attempts had ended in order when it was written.
_ENDED = "pinq_attempts"
# What Retries keeps; a message that was dead and is requeued starts without.
_RETRIES_OPTIONS = ("retries", "traceback", "requeue_timestamp")


class _Again(NamedTuple):
    body: bytes
    delay_seconds: float


def new_job(message: dramatiq.Message[Any], actors: Actors) -> NewJob:
    """The job of a message that is enqueued."""
    return NewJob(
        message.message_id,
        f"actor:{message.actor_name}",  # so that jobs can be told, and chosen, by their actor
        priority=_job_priority(message, actors.get(message.actor_name)),
        run_at_ms=int(message.options.get("eta") or 0),
        max_attempts=_OUT_OF_REACH,
        body=message.encode(),
    )


def _job_priority(message: dramatiq.Message[Any], actor: Actor | None) -> int:
    chosen = _option("job_priority", message, actor)
    if chosen is not None:
        return int(chosen)
    return max(1, min(_PRIORITY + (0 if actor is None else actor.priority), 9))


class ActorMessage(MessageProxy):
    """A leased job as a message. Its verdict is that of the job's attempt."""

    def __init__(self, message: dramatiq.Message[Any], job: LeasedJob, token: str) -> None:
        super().__init__(message)
        self.job_id = job.id
        self.attempt = job.attempt
        self.token = token
        self.again: _Again | None = None

    def enqueue_again(self, message: dramatiq.Message[Any], delay_ms: int | None) -> None:
        """It was enqueued while in hand: its verdict is a retry, with the message as it is now."""
        marked = message.copy(options={_ENDED: self.attempt})
        self.again = _Again(marked.encode(), (delay_ms or 0) / 1000)

    def verdict(self) -> Verdict:
        """What dramatiq's acknowledgement, or rejection, means for the job."""
        if self.again is not None:
            failure = self._failure("enqueued again by its actor")
            return Retry(self.job_id, failure, self.again.delay_seconds, self.again.body)
        if self.failed:
            return Dead(self.job_id, self._failure("rejected"))
        return Succeeded(self.job_id)

    def _failure(self, otherwise: str) -> Failure:
        error = self._exception
        return Failure(FailureClass.ACTOR_ERROR, otherwise if error is None else told(error))


def told(error: BaseException) -> str:
    """An exception in words, even one that cannot be turned into a string."""
    return "".join(traceback.format_exception_only(error)).strip()


def received(job: LeasedJob, token: str, actors: Actors) -> ActorMessage | Dead:
    """The message of a leased job, or why it is not to be handed to an actor."""
    try:
        message: dramatiq.Message[Any] = dramatiq.Message.decode(job.body)
        crashes = _crashes(job, message.options)
        limit = _option("max_crashes", message, actors.get(message.actor_name))
        starts = crashes < (_MAX_CRASHES if limit is None else int(limit))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, no retry mends it
        return Dead(job.id, Failure(FailureClass.ACTOR_ERROR, told(error)))
    if not starts:
        why = f"not started again: {crashes} times its worker died, or lost its lease"
        return Dead(job.id, Failure(FailureClass.WORKER_CRASH, why))
    message.options.pop("eta", None)  # or dramatiq would wait for it, by this machine's clock
    return ActorMessage(message, job, token)


def _crashes(job: LeasedJob, options: dict[str, Any]) -> int:
    """How often it was leased and came to no end, since the last time that it did."""
    ended = int(options.get(_ENDED, 0))
    if job.attempt <= ended:  # it counts from 1 again: somebody has requeued it
        for name in (_ENDED, *_RETRIES_OPTIONS):
            options.pop(name, None)
        ended = 0
    return job.attempt - 1 - ended


def _option(name: str, message: dramatiq.Message[Any], actor: Actor | None) -> Any:
    """An option of the message, or else of its actor."""
    chosen = message.options.get(name)
    return actor.options.get(name) if chosen is None and actor is not None else chosen
