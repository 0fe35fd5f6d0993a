"""Ordinary actors: takes acknowledgements to the queue and brings new messages back.

One thread speaks to the queue for all queues of the process. dramatiq's threads leave
their answers and go on; what has come together within a few milliseconds is one
transaction, in which the next jobs are leased too. So an acknowledgement is durable a few
milliseconds after ``ack`` has returned, and a crash in between costs one more execution,
as a crash a moment earlier would have.

How many jobs are held: one for each thread, and as many as were worked off in the last
tenth of a second, so that the threads find the next while the last are being committed.
Where jobs are slow that is none, and whoever else is idle gets them.

A second thread waits for the queue's bell. Neither is started before a worker is.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import dramatiq
from dramatiq.broker import Consumer, MessageProxy

from pinq.broker.holding import Holding
from pinq.broker.messages import ActorMessage, Actors, received
from pinq.errors import PinqError
from pinq.failpoints import failpoint
from pinq.patience import patiently
from pinq.queue.model import Answer, Exchange, Lease, LeasedJob, Verdict

logger = logging.getLogger(__name__)

# How long answers are gathered for one commit.
_GROUP_SECONDS = 0.003
# The work that is fetched ahead, at the speed at which the last was done, and its bound.
_AHEAD_SECONDS = 0.1
_MOST_AHEAD = 256
# A bell that is waited for this long lets a closing process go on soon.
_BELL_SECONDS = 0.25
# After an error that waiting does not mend.
_PAUSE_SECONDS = 3.0
# Due work was not leased: a suspect waits for its worker to be empty, or another was faster.
_BLOCKED_SECONDS = 0.02


@dataclass(slots=True)
class _HeldLease:
    """A lease whose jobs are messages in hand; ``remaining`` were not answered yet."""

    token: str
    jobs: Sequence[LeasedJob]
    remaining: int
    lost: bool = False


class Desk:
    """One queue's messages in this process: ready for dramatiq, or answered by it."""

    def __init__(self, queue_name: str) -> None:
        self.queue_name = queue_name
        self.prefetch = 1
        self.open = False
        self.ready: deque[ActorMessage] = deque()
        self.answers: dict[str, list[Verdict]] = {}
        self.exchanging = False
        # Leased, and not answered.
        self.held = 0
        # When to look for jobs next, by time.monotonic().
        self.look_at = math.inf
        self._rate = 0.0
        self._taken_at = time.monotonic()

    @property
    def settled(self) -> bool:
        return not (self.ready or self.answers or self.exchanging)

    def wanted(self, threads: int) -> int:
        """How many messages to hold, at the speed of late."""
        ahead = min(int(self._rate * _AHEAD_SECONDS), _MOST_AHEAD)
        return min(self.prefetch, threads) + ahead

    def take_answers(self) -> list[Answer]:
        """The answers to send now."""
        now = time.monotonic()
        since, self._taken_at = max(now - self._taken_at, 1e-6), now
        count = sum(map(len, self.answers.values()))
        weight = -math.expm1(-since / _AHEAD_SECONDS)
        self._rate += (count / since - self._rate) * weight
        taken = [Answer(token, verdicts) for token, verdicts in self.answers.items()]
        self.answers = {}
        return taken


class Courier:
    """The thread between dramatiq's threads and the queue."""

    def __init__(self, holding: Holding, actors: Actors) -> None:
        self._holding = holding
        self._actors = actors
        self._threads_served = 1
        self._desks: dict[str, Desk] = {}
        self._in_hand: dict[str, ActorMessage] = {}
        self._leases: dict[str, _HeldLease] = {}
        # A suspect of this desk waits until nothing is held; the others lease nothing.
        self._quiet_for: Desk | None = None
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._arrived = threading.Condition(lock)
        self._closing = False
        self._workers: list[threading.Thread] = []

    # --- the process's life -----------------------------------------------------

    def start(self, threads: int) -> None:
        """Serve so many of dramatiq's threads, from the first consumer on."""
        self._threads_served = threads

    def stop_leasing(self) -> None:
        """Give back what dramatiq has not been given; answers are taken to the queue as before."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Take the last answers to the queue and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        for thread in self._workers:
            thread.join(self._holding.patience_seconds)
        self._workers.clear()
        self._desks.clear()

    # --- dramatiq's side --------------------------------------------------------

    def open(self, queue_name: str, prefetch: int) -> Desk:
        """Begin to lease from a queue."""
        with self._changed:
            if not self._workers:
                self._start_threads()
            desk = self._desks.setdefault(queue_name, Desk(queue_name))
            desk.prefetch, desk.open, desk.look_at = prefetch, True, 0.0
            self._changed.notify()
            return desk

    def close_desk(self, desk: Desk) -> None:
        """Lease no more from its queue; returns when its answers are committed."""
        with self._changed:
            desk.open = False
            self._changed.notify()
            if self._workers:
                self._arrived.wait_for(lambda: desk.settled, self._holding.patience_seconds)

    def take(self, desk: Desk, timeout_seconds: float) -> ActorMessage | None:
        """The next message, or ``None`` after the timeout."""
        try:
            return desk.ready.popleft()
        except IndexError:
            pass
        with self._arrived:
            self._arrived.wait_for(lambda: desk.ready, timeout_seconds)
            return desk.ready.popleft() if desk.ready else None

    def answer(self, desk: Desk, message: ActorMessage) -> None:
        """Note the message's verdict; it is committed within milliseconds."""
        with self._changed:
            self._let_go(message)
            quiet = not any(other.answers for other in self._desks.values())
            desk.answers.setdefault(message.token, []).append(message.verdict())
            desk.held -= 1
            if quiet or not self._in_hand:
                self._changed.notify()

    def give_back(self, desk: Desk, messages: Iterable[ActorMessage]) -> None:
        """Release messages that were not begun; their attempts do not count."""
        ids: dict[str, list[int]] = {}
        with self._changed:
            for message in messages:
                self._let_go(message)
                desk.held -= 1
                ids.setdefault(message.token, []).append(message.job_id)
        for token, released in ids.items():
            self._holding.patiently(partial(self._holding.queue.release, token, released))
            self._ended(token, len(released))

    def enqueue_again(self, message: dramatiq.Message[object], delay_ms: int | None) -> bool:
        """Whether the message is in hand; then its verdict is a retry from now on."""
        with self._changed:
            held = self._in_hand.get(message.message_id)
            if held is None or held.queue_name != message.queue_name:
                return False
            held.enqueue_again(message, delay_ms)
            return True

    def _let_go(self, message: ActorMessage) -> None:
        if self._in_hand.get(message.message_id) is message:
            del self._in_hand[message.message_id]

    # --- the threads --------------------------------------------------------------

    def _start_threads(self) -> None:
        self._closing = False
        for work, name in ((self._run, "pinq-courier"), (self._listen, "pinq-bell")):
            self._workers.append(threading.Thread(target=work, name=name, daemon=True))
            self._workers[-1].start()

    def _listen(self) -> None:
        """Have all desks look for jobs whenever somebody has committed."""
        seen = 0
        while not self._closing:
            try:
                now = self._holding.queue.wait(seen, _BELL_SECONDS)
            except PinqError as error:
                logger.warning("bell.failed error=%s", error)
                self._holding.closed.wait(_PAUSE_SECONDS)
                continue
            if now != seen:
                seen = now
                with self._changed:
                    for desk in self._desks.values():
                        desk.look_at = 0.0
                    self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while (pause := self._due() - time.monotonic()) > 0:
                    self._changed.wait(min(pause, threading.TIMEOUT_MAX))
                desks = list(self._desks.values())
                if any(desk.answers for desk in desks):
                    # Unless all that is held is answered, more may come in a moment.
                    self._changed.wait_for(
                        lambda: self._closing or not self._in_hand, _GROUP_SECONDS
                    )
                closing = self._closing
            for desk in desks:
                self._serve(desk)
            if closing:
                return

    def _due(self) -> float:
        """When there is something to do, by ``time.monotonic()``."""
        desks = self._desks.values()
        if self._closing or any(desk.answers for desk in desks):
            return 0.0
        if any(desk.ready for desk in desks if self._shut(desk)):
            return 0.0
        return min((desk.look_at for desk in desks if self._room(desk) > 0), default=math.inf)

    def _shut(self, desk: Desk) -> bool:
        return self._closing or self._holding.stopping.is_set() or not desk.open

    def _room(self, desk: Desk) -> int:
        """How many more messages to lease."""
        if self._shut(desk) or self._quiet_for not in (None, desk):
            return 0
        return desk.wanted(self._threads_served) - desk.held

    def _serve(self, desk: Desk) -> None:
        with self._changed:
            answers = desk.take_answers()
            unwanted = list(desk.ready) if self._shut(desk) else []
            if unwanted:
                desk.ready.clear()
            looking = desk.look_at <= time.monotonic()
            room = max(0, self._room(desk)) if answers or looking else 0
            if room:
                desk.look_at = math.inf  # what the bell says from here on is news
            desk.exchanging = bool(answers or room or unwanted)
        if not desk.exchanging:
            return
        try:
            if answers or room:
                self._exchange(desk, answers, room)
            self.give_back(desk, unwanted)
        except Exception as error:  # noqa: BLE001 - the worker must go on, whatever it was
            logger.error("exchange.failed queue=%s error=%r", desk.queue_name, error)
            for answer in answers:
                self._ended(answer.token, len(answer.verdicts))
            desk.look_at = time.monotonic() + _PAUSE_SECONDS
        finally:
            with self._changed:
                desk.exchanging = False
                self._arrived.notify_all()

    def _exchange(self, desk: Desk, answers: Sequence[Answer], room: int) -> None:
        holding, queue = self._holding, self._holding.queue

        def exchange() -> Exchange:
            return queue.exchange(
                [desk.queue_name], room, holding.lease_seconds, holding.worker, answers=answers
            )

        failpoint("before_finish")
        # Other brokers' workers try for ever too; only a worker that ends gives up.
        exchanged = patiently(exchange, patience_seconds=math.inf, stop=holding.closed)
        failpoint("after_finish")
        for answer, finished in zip(answers, exchanged.finished, strict=True):
            self._ended(answer.token, len(answer.verdicts))
            if finished.refused:
                logger.warning(
                    "finish.refused queue=%s token=%s jobs=%d the lease was lost, or the jobs "
                    "cancelled or flushed",
                    desk.queue_name,
                    answer.token,
                    len(finished.refused),
                )
        for lease in exchanged.leases:
            self._receive(desk, lease)
        if room:
            self._look_again(desk, room, sum(len(lease.jobs) for lease in exchanged.leases))

    def _receive(self, desk: Desk, lease: Lease) -> None:
        held = _HeldLease(lease.token, lease.jobs, len(lease.jobs))
        self._leases[lease.token] = held
        self._holding.add(held)
        failpoint("after_lease")
        messages = [received(job, lease.token, self._actors) for job in lease.jobs]
        with self._changed:
            for message in messages:
                if isinstance(message, ActorMessage):
                    desk.held += 1
                    self._in_hand[message.message_id] = message
                    desk.ready.append(message)
                else:
                    logger.error("message.dead id=%d %s", message.id, message.failure.message)
                    desk.answers.setdefault(lease.token, []).append(message)
            self._arrived.notify_all()

    def _look_again(self, desk: Desk, room: int, got: int) -> None:
        """Say when to lease next, after ``got`` of the ``room`` jobs asked for."""
        if self._quiet_for is desk:
            self._quiet_for = None
        if got == room:
            desk.look_at = 0.0
            return
        queue = self._holding.queue
        due_ms = queue.next_due_ms(desk.queue_name)
        if due_ms is None:
            return
        seconds = (due_ms - queue.now_ms()) / 1000
        with self._changed:
            if seconds <= 0 and not got and self._quiet_for is None:
                self._quiet_for = desk
            desk.look_at = min(desk.look_at, time.monotonic() + max(seconds, _BLOCKED_SECONDS))

    def _ended(self, token: str, count: int) -> None:
        with self._changed:
            held = self._leases.get(token)
            if held is None:
                return
            held.remaining -= count
            if held.remaining <= 0:
                del self._leases[token]
                self._holding.remove(token)


class ActorConsumer(Consumer):
    """dramatiq's view of a desk. Its state outlives it: dramatiq may put another in its place."""

    def __init__(self, courier: Courier, desk: Desk, timeout_seconds: float) -> None:
        self._courier = courier
        self._desk = desk
        self._timeout_seconds = timeout_seconds

    def __next__(self) -> MessageProxy | None:
        return self._courier.take(self._desk, self._timeout_seconds)

    def ack(self, message: MessageProxy) -> None:
        assert isinstance(message, ActorMessage)
        self._courier.answer(self._desk, message)

    def nack(self, message: MessageProxy) -> None:
        self.ack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        self._courier.give_back(self._desk, [m for m in messages if isinstance(m, ActorMessage)])

    def close(self) -> None:
        self._courier.close_desk(self._desk)
