"""Ordinary dramatiq actors on QueueBroker: what dramatiq's brokers promise, on every queue."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import QueueJoinTimeout, QueueNotFound
from dramatiq.middleware import CurrentMessage, GroupCallbacks, Middleware, Shutdown, TimeLimit
from dramatiq.rate_limits.backends import StubBackend as RateStubBackend
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from pinq.broker import Batch, QueueBroker
from pinq.errors import FailureClass, QueueError
from pinq.queue.contract import Queue
from pinq.queue.model import Answer, Controls, Exchange, Filter, Job, NewJob, State
from pinq.queue.urls import open_queue

Q = "default"
SOON = 20_000  # milliseconds: a generous bound, never waited out where all is well
Start = Callable[..., dramatiq.Worker]


@pytest.fixture
def queue(queue_url: str) -> Iterator[Queue]:
    queue = open_queue(queue_url)
    yield queue
    queue.close()


@pytest.fixture
def broker(queue: Queue) -> Iterator[QueueBroker]:
    broker = QueueBroker(queue)
    yield broker
    broker.close()


@pytest.fixture
def start(broker: QueueBroker) -> Iterator[Start]:
    workers: list[dramatiq.Worker] = []

    def start_one(threads: int = 2, **options: Any) -> dramatiq.Worker:
        workers.append(
            dramatiq.Worker(broker, worker_threads=threads, worker_timeout=20, **options)
        )
        workers[-1].start()
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.stop()


def only_job(queue: Queue) -> Job:
    (job,) = queue.scan()
    return job


def fail() -> None:
    raise ValueError("a bug")


def declared(broker: QueueBroker, work: Callable[..., Any], **options: Any) -> Any:
    """An actor that makes its first retry at once, unless told otherwise."""
    options = {"actor_name": "work", "min_backoff": 1, **options}
    return dramatiq.actor(broker=broker, **options)(work)


class Ran:
    """What actors were called with, in order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._called = threading.Condition()

    def __call__(self, *args: Any) -> None:
        with self._called:
            self.calls.append(args[0] if len(args) == 1 else args)
            self._called.notify_all()

    def until(self, count: int) -> None:
        with self._called:
            assert self._called.wait_for(lambda: len(self.calls) >= count, SOON / 1000)


# --- sending and running ------------------------------------------------------------------


def test_a_message_that_was_sent_is_run_once(broker: QueueBroker, start: Start) -> None:
    ran = Ran()
    actor = declared(broker, ran)
    start()
    for number in range(50):
        actor.send(number)
    broker.join(Q, timeout=SOON)
    assert sorted(ran.calls) == list(range(50))


def test_sending_returns_the_message_and_its_job_is_committed(
    broker: QueueBroker, queue: Queue
) -> None:
    actor = declared(broker, fail)
    message = actor.send_with_options(args=(1,), kwargs={"b": "ü"}, note="n")
    assert (message.args, message.kwargs, message.options) == ((1,), {"b": "ü"}, {"note": "n"})
    job = only_job(queue)
    assert (job.key, job.state, job.body) == (message.message_id, State.PENDING, message.encode())


def test_messages_sent_together_are_each_a_job(
    broker: QueueBroker, start: Start, queue: Queue
) -> None:
    ran = Ran()
    one = declared(broker, ran)
    two = declared(broker, ran, actor_name="two", queue_name="second")
    sent = broker.enqueue_many([one.message(1), two.message(2), one.message(3)])
    assert {message.message_id for message in sent} == {job.key for job in queue.scan()}
    start()
    broker.join(Q, timeout=SOON)
    broker.join("second", timeout=SOON)
    assert sorted(ran.calls) == [1, 2, 3]


def test_many_actors_share_a_queue(broker: QueueBroker, start: Start) -> None:
    ran = Ran()
    actors = [
        declared(broker, lambda n=number: ran(n), actor_name=f"a{number}") for number in range(5)
    ]
    start()
    for actor in actors:
        actor.send()
    broker.join(Q, timeout=SOON)
    assert sorted(ran.calls) == list(range(5))


def test_a_queue_with_a_backlog_does_not_hold_up_another(broker: QueueBroker, start: Start) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        assert go.wait(20)

    ran = Ran()
    first = declared(broker, slow, actor_name="slow", queue_name="slow")
    second = declared(broker, ran, queue_name="quick")
    broker.enqueue_many([first.message() for _ in range(50)])
    start(threads=8)
    assert entered.wait(20)
    # Every thread may be at work on the first queue: then one must come free.
    second.send(1)
    go.set()
    ran.until(1)


def test_a_worker_may_be_told_to_serve_some_queues_only(
    broker: QueueBroker, start: Start, queue: Queue
) -> None:
    ran = Ran()
    one = declared(broker, ran, actor_name="one", queue_name="one")
    two = declared(broker, ran, actor_name="two", queue_name="two")
    two.send(2)
    start(queues={"one"})
    one.send(1)
    broker.join("one", timeout=SOON)
    assert ran.calls == [1]
    assert queue.count("two").pending == 1


def test_arguments_may_be_large(broker: QueueBroker, start: Start) -> None:
    ran = Ran()
    declared(broker, ran).send("x" * 1_000_000)
    start()
    broker.join(Q, timeout=SOON)
    assert len(ran.calls[0]) == 1_000_000


def test_an_actor_may_send_from_within(broker: QueueBroker, start: Start) -> None:
    ran = Ran()
    child = declared(broker, ran, actor_name="child")
    parent = declared(broker, lambda: [child.send(n) for n in range(3)] and None)
    start()
    parent.send()
    broker.join(Q, timeout=SOON)
    assert sorted(ran.calls) == [0, 1, 2]


def test_a_message_that_is_enqueued_twice_while_it_waits_is_one_job(
    broker: QueueBroker, queue: Queue
) -> None:
    message = declared(broker, fail).message()
    broker.enqueue(message)
    broker.enqueue(message)
    assert only_job(queue).key == message.message_id


def test_a_message_that_is_done_runs_again_when_it_is_enqueued_again(
    broker: QueueBroker, start: Start
) -> None:
    ran = Ran()
    message = declared(broker, ran).send(1)
    start()
    broker.join(Q, timeout=SOON)
    broker.enqueue(message)
    broker.join(Q, timeout=SOON)
    assert ran.calls == [1, 1]


def test_a_message_that_is_enqueued_while_another_process_runs_it_runs_once_more(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()
    message = declared(broker, ran).send(1)
    held = queue.lease(Q, 1, 60, "another")
    assert held is not None
    broker.enqueue(message)
    start()
    ran.until(1)
    assert queue.lookup(Q, [message.message_id])[message.message_id].state is State.LEASED


# --- delays and priorities ----------------------------------------------------------------


def test_a_delayed_message_runs_when_it_is_due_by_the_queues_clock(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()
    actor = declared(broker, lambda: ran(queue.now_ms()))
    start()
    sent_at = queue.now_ms()
    message = actor.send_with_options(delay=300)
    assert message.options["eta"] >= sent_at + 300
    broker.join(Q, timeout=SOON)
    assert ran.calls[0] >= sent_at + 300


def test_a_delayed_message_is_a_pending_job_like_any_other(
    broker: QueueBroker, queue: Queue
) -> None:
    actor = declared(broker, fail)
    before = queue.now_ms()
    actor.send_with_options(delay=3_600_000)
    job = only_job(queue)
    assert (job.queue, job.state) == (Q, State.PENDING)
    assert before + 3_600_000 <= job.run_at_ms <= queue.now_ms() + 3_600_000
    assert broker.get_declared_queues() == {Q}
    assert not broker.get_declared_delay_queues()


def test_delayed_messages_do_not_hold_up_those_that_are_due(
    broker: QueueBroker, start: Start
) -> None:
    ran = Ran()
    actor = declared(broker, ran)
    broker.enqueue_many([actor.message(0) for _ in range(20)], delay=3_600_000)
    start()
    actor.send(1)
    ran.until(1)
    assert ran.calls == [1]


def test_actors_of_higher_priority_are_leased_first(broker: QueueBroker, start: Start) -> None:
    ran = Ran()
    low = declared(broker, lambda: ran("low"), actor_name="low", priority=3)
    middle = declared(broker, lambda: ran("middle"), actor_name="middle")
    high = declared(broker, lambda: ran("high"), actor_name="high", priority=-3)
    for actor in (low, middle, high):
        actor.send()
    start(threads=1)
    broker.join(Q, timeout=SOON)
    assert ran.calls == ["high", "middle", "low"]


@pytest.mark.parametrize(
    ("priority", "job_priority"), [(-100, 1), (-4, 1), (-1, 4), (0, 5), (2, 7), (100, 9)]
)
def test_dramatiqs_priorities_are_steps_from_the_middle(
    broker: QueueBroker, queue: Queue, priority: int, job_priority: int
) -> None:
    declared(broker, fail, priority=priority).send()
    assert only_job(queue).priority == job_priority


def test_a_job_priority_may_be_said_outright(broker: QueueBroker, queue: Queue) -> None:
    actor = declared(broker, fail, priority=3, job_priority=2)
    actor.send()
    actor.send_with_options(job_priority=1)
    assert [job.priority for job in queue.scan()] == [2, 1]


# --- failures -----------------------------------------------------------------------------


def test_a_failed_message_is_retried_until_it_succeeds(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()

    def work() -> None:
        message = CurrentMessage.get_current_message()
        assert message is not None
        ran(message.options.get("retries", 0))
        if len(ran.calls) < 4:
            raise ValueError("not yet")

    broker.add_middleware(CurrentMessage())
    declared(broker, work, max_backoff=1).send()
    start()
    broker.join(Q, timeout=SOON)
    assert ran.calls == [0, 1, 2, 3]
    job = only_job(queue)
    assert (job.state, job.attempts, len(job.errors)) == (State.SUCCEEDED, 4, 3)


def test_a_retry_is_the_same_job_pending_again(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    message = declared(broker, fail, min_backoff=3_600_000).send()
    broker.declare_queue("unused")
    worker = start()
    settle(broker, queue, lambda job: job.attempts == 1 and job.state is State.PENDING)
    worker.stop()
    job = only_job(queue)  # there is no copy
    assert job.key == message.message_id
    assert job.run_at_ms > queue.now_ms() + 1_000_000
    assert [error.failure_class for error in job.errors] == [FailureClass.ACTOR_ERROR]
    assert job.errors[0].message == "ValueError: a bug"
    options = dramatiq.Message.decode(job.body).options
    assert options["retries"] == 1 and "ValueError: a bug" in options["traceback"]


def settle(broker: QueueBroker, queue: Queue, condition: Callable[[Job], bool]) -> None:
    """Wait until the only job is as it should be."""
    deadline = time.monotonic() + SOON / 1000
    seen = 0
    while not condition(only_job(queue)):
        assert time.monotonic() < deadline, only_job(queue)
        seen = queue.wait(seen, 0.1)


def test_a_message_out_of_retries_is_a_dead_letter(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    declared(broker, fail, max_retries=2, max_backoff=1).send()
    start()
    broker.join(Q, timeout=SOON)
    job = only_job(queue)
    assert (job.state, job.attempts) == (State.DEAD, 3)
    assert {(e.failure_class, e.message) for e in job.errors} == {
        (FailureClass.ACTOR_ERROR, "ValueError: a bug")
    }
    assert queue.count(Q).dead_by_class == {"actor_error": 1}


def test_no_limit_of_the_queue_ends_the_retries_of_a_message(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()

    def work() -> None:
        ran(0)
        if len(ran.calls) < 40:
            raise ValueError("not yet")

    declared(broker, work, max_retries=None, max_backoff=1).send()
    start()
    broker.join(Q, timeout=SOON)
    assert only_job(queue).state is State.SUCCEEDED
    assert len(ran.calls) == 40


def test_what_an_actor_throws_on_purpose_is_not_retried(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    declared(broker, fail, throws=ValueError).send()
    start()
    broker.join(Q, timeout=SOON)
    assert (only_job(queue).state, only_job(queue).attempts) == (State.DEAD, 1)


def test_an_actor_may_say_when_it_is_to_be_retried(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()

    def work() -> None:
        ran(queue.now_ms())
        if len(ran.calls) == 1:
            raise dramatiq.errors.Retry("later", delay=300)

    declared(broker, work, min_backoff=3_600_000).send()
    start()
    broker.join(Q, timeout=SOON)
    assert ran.calls[1] - ran.calls[0] >= 300


def test_the_actor_for_exhausted_retries_is_sent_a_message(
    broker: QueueBroker, start: Start
) -> None:
    ran = Ran()
    declared(broker, lambda message, retries: ran(retries["retries"]), actor_name="exhausted")
    declared(broker, fail, max_retries=1, max_backoff=1, on_retry_exhausted="exhausted").send()
    start()
    broker.join(Q, timeout=SOON)
    assert ran.calls == [1]


def test_a_dead_letter_that_is_requeued_has_all_its_retries_again(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()

    def work() -> None:
        ran(0)
        raise ValueError("a bug")

    declared(broker, work, max_retries=2, max_backoff=1).send()
    start()
    broker.join(Q, timeout=SOON)
    assert queue.requeue(Filter(states=[State.DEAD])) == 1
    broker.join(Q, timeout=SOON)
    assert len(ran.calls) == 6
    assert only_job(queue).state is State.DEAD


def test_without_retries_a_failed_message_is_done(queue: Queue) -> None:
    broker = QueueBroker(queue, middleware=[])
    dramatiq.actor(broker=broker, actor_name="work")(fail).send()
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=20)
    worker.start()
    broker.join(Q, timeout=SOON)
    worker.stop()
    broker.close()
    assert only_job(queue).state is State.SUCCEEDED


def test_an_actor_that_enqueues_its_own_message_runs_again(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()

    def work() -> None:
        ran(0)
        if len(ran.calls) < 3:
            broker.enqueue(CurrentMessage.get_current_message(), delay=1)  # type: ignore[arg-type]

    broker.add_middleware(CurrentMessage())
    declared(broker, work).send()
    start()
    broker.join(Q, timeout=SOON)
    assert len(ran.calls) == 3
    assert only_job(queue).state is State.SUCCEEDED


def test_a_message_for_an_unknown_actor_is_a_dead_letter(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    known = declared(broker, fail)
    message = known.message().copy()
    broker.enqueue(dramatiq.Message(Q, "nobody", (), {}, {}, message_id=message.message_id))
    start()
    broker.join(Q, timeout=SOON)
    job = only_job(queue)
    assert job.state is State.DEAD
    assert job.errors[0].message == "dramatiq.errors.ActorNotFound: nobody"


def test_a_job_that_is_no_message_is_a_dead_letter(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()
    actor = declared(broker, ran)
    queue.enqueue(Q, [NewJob("k", "file:///an/image.jpg")])
    start()
    actor.send(1)
    broker.join(Q, timeout=SOON)
    assert ran.calls == [1]
    job = queue.lookup(Q, ["k"])["k"]
    assert job.state is State.DEAD and "decode" in job.errors[0].message


# --- dramatiq's middleware ----------------------------------------------------------------


def test_a_message_that_is_too_old_is_a_dead_letter(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()
    declared(broker, ran, max_age=1).send_with_options(args=(1,), delay=50)
    start()
    broker.join(Q, timeout=SOON)
    job = only_job(queue)
    assert job.state is State.DEAD and not ran.calls
    assert "Message age limit exceeded" in job.errors[0].message


def test_an_actor_that_takes_too_long_is_interrupted(queue: Queue) -> None:
    broker = QueueBroker(queue, middleware=[TimeLimit(interval=10), dramatiq.middleware.Retries()])
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            time.sleep(0.001)

    declared(broker, work, time_limit=50, max_retries=0).send()
    broker.emit_after("process_boot")
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=20)
    worker.start()
    broker.join(Q, timeout=SOON)
    ended.set()
    worker.stop()
    broker.close()
    assert "TimeLimitExceeded" in only_job(queue).errors[0].message


def test_an_actor_that_asks_for_it_is_interrupted_by_a_shutdown_and_retried(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    entered = threading.Event()

    def work() -> None:
        entered.set()
        try:
            while True:
                time.sleep(0.001)
        except Shutdown:
            raise

    declared(broker, work, notify_shutdown=True).send()
    worker = start()
    assert entered.wait(20)
    worker.stop()
    job = only_job(queue)
    assert job.state is State.PENDING
    assert "Shutdown" in job.errors[0].message


def test_success_and_failure_call_back(broker: QueueBroker, start: Start) -> None:
    ran = Ran()
    declared(broker, lambda message, result: ran(("ok", result)), actor_name="ok")
    declared(broker, lambda message, error: ran(error["type"]), actor_name="no")
    declared(broker, lambda: 42, actor_name="good").send_with_options(on_success="ok")
    declared(broker, fail, max_retries=0).send_with_options(on_failure="no")
    start()
    broker.join(Q, timeout=SOON)
    assert sorted(ran.calls, key=str) == [("ok", 42), "ValueError"]


def test_a_pipeline_hands_each_result_on(broker: QueueBroker, start: Start) -> None:
    ran = Ran()
    add = declared(broker, lambda a, b: a + b, actor_name="add")
    keep = declared(broker, ran, actor_name="keep", queue_name="second")
    pipe = add.message(1, 2) | add.message(3) | keep.message()
    pipe.broker = broker
    pipe.run()
    start()
    for _ in range(2):
        broker.join(Q, timeout=SOON)
        broker.join("second", timeout=SOON)
    assert ran.calls == [6]


def test_results_are_stored_where_dramatiq_stores_them(queue: Queue) -> None:
    backend = StubBackend()
    broker = QueueBroker(queue)
    broker.add_middleware(Results(backend=backend))
    good = declared(broker, lambda a: a * 2, store_results=True)
    bad = declared(broker, fail, actor_name="bad", store_results=True, max_retries=0)
    worker = dramatiq.Worker(broker, worker_threads=2, worker_timeout=20)
    worker.start()
    results = dramatiq.group([good.message(n) for n in range(5)], broker=broker).run()
    assert sorted(results.get_results(block=True, timeout=SOON)) == [0, 2, 4, 6, 8]
    with pytest.raises(dramatiq.results.ResultFailure, match="a bug"):
        bad.send().get_result(backend=backend, block=True, timeout=SOON)
    worker.stop()
    broker.close()


def test_a_group_calls_back_when_all_of_it_is_done(broker: QueueBroker, start: Start) -> None:
    ran = Ran()
    broker.add_middleware(GroupCallbacks(RateStubBackend()))
    part = declared(broker, lambda n: None, actor_name="part")
    whole = declared(broker, ran)
    group = dramatiq.group([part.message(n) for n in range(4)], broker=broker)
    group.add_completion_callback(whole.message("done"))
    start()
    group.run()
    ran.until(1)
    broker.join(Q, timeout=SOON)
    assert ran.calls == ["done"]


def test_the_middleware_is_dramatiqs_own_and_is_told_what_dramatiq_tells(
    broker: QueueBroker, start: Start
) -> None:
    told: list[str] = []

    class Notes(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            told.append("enqueue")

        def after_ack(self, broker: Any, message: Any) -> None:
            told.append("ack")

        def after_nack(self, broker: Any, message: Any) -> None:
            told.append("nack")

    ours = [type(one) for one in broker.middleware]
    assert ours[1:] == [type(one) for one in StubBroker().middleware]
    broker.add_middleware(Notes())
    declared(broker, fail, max_retries=1, max_backoff=1).send()
    start(threads=1)
    broker.join(Q, timeout=SOON)
    assert told == ["enqueue", "enqueue", "ack", "nack"]


# --- waiting and emptying -----------------------------------------------------------------


def test_join_waits_until_the_acknowledgements_are_committed(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    actor = declared(broker, lambda: None)
    start()
    broker.enqueue_many([actor.message() for _ in range(100)])
    broker.join(Q, timeout=SOON)
    assert queue.count(Q).succeeded == 100


def test_join_waits_for_delayed_messages_and_gives_up_in_time(broker: QueueBroker) -> None:
    declared(broker, fail).send_with_options(delay=3_600_000)
    with pytest.raises(QueueJoinTimeout):
        broker.join(Q, timeout=50)


def test_an_undeclared_queue_is_neither_joined_nor_flushed_nor_consumed(
    broker: QueueBroker,
) -> None:
    for verb in (broker.join, broker.flush, broker.consume):
        with pytest.raises(QueueNotFound):
            verb("nowhere")


def test_flush_deletes_all_messages_of_a_queue_and_of_no_other(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    one = declared(broker, fail, max_retries=0, queue_name="one")
    two = declared(broker, fail, actor_name="two", queue_name="two")
    one.send()
    worker = start()
    broker.join("one", timeout=SOON)
    worker.stop()
    one.send()
    one.send_with_options(delay=3_600_000)
    two.send()
    broker.flush("one")
    assert [job.queue for job in queue.scan()] == ["two"]
    broker.flush_all()
    assert not list(queue.scan())


def test_a_message_that_is_flushed_while_it_runs_is_gone(
    broker: QueueBroker, queue: Queue, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    actor = declared(broker, lambda: broker.flush(Q))
    actor.send()
    worker = start()
    broker.join(Q, timeout=SOON)
    worker.stop()
    assert not list(queue.scan())
    assert "finish.refused" in caplog.text


# --- leases and acknowledgements ----------------------------------------------------------


def test_acknowledgements_are_committed_in_groups(
    broker: QueueBroker, queue: Queue, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    original = queue.exchange

    def exchange(*args: Any, answers: Sequence[Answer] = (), **options: Any) -> Exchange:
        if answers:
            answered.append(sum(len(answer.verdicts) for answer in answers))
        return original(*args, answers=answers, **options)

    monkeypatch.setattr(queue, "exchange", exchange)
    actor = declared(broker, lambda: None)
    broker.enqueue_many([actor.message() for _ in range(400)])
    start(threads=4)
    broker.join(Q, timeout=SOON)
    assert sum(answered) == 400
    assert len(answered) < 100


def test_a_lease_is_renewed_while_its_message_runs(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = threading.Semaphore(0)
    original = queue.renew

    def renew(token: str, seconds: float) -> bool:
        held = original(token, seconds)
        renewed.release()
        return held

    monkeypatch.setattr(queue, "renew", renew)
    broker = QueueBroker(queue, lease_seconds=0.6)

    def work() -> None:
        for _ in range(6):  # two leases long
            assert renewed.acquire(timeout=20)

    declared(broker, work).send()
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=20)
    worker.start()
    broker.join(Q, timeout=SOON)
    worker.stop()
    broker.close()
    job = only_job(queue)
    assert (job.state, job.attempts) == (State.SUCCEEDED, 1)


def test_an_acknowledgement_under_a_lost_lease_is_refused_and_reported(
    broker: QueueBroker, queue: Queue, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    ran = Ran()

    def work() -> None:
        message: Any = CurrentMessage.get_current_message()
        ran(message.attempt)
        if len(ran.calls) == 1:
            queue.release(message.token)

    broker.add_middleware(CurrentMessage())
    declared(broker, work).send()
    start(threads=1)
    broker.join(Q, timeout=SOON)
    assert ran.calls == [1, 1]  # released: the attempt was given back
    assert "finish.refused" in caplog.text


def test_a_stop_finishes_what_runs_and_gives_back_the_rest(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    entered, go = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        go.wait(20)

    actor = declared(broker, work)
    broker.enqueue_many([actor.message() for _ in range(40)])
    worker = start(threads=2)
    assert entered.wait(20)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    go.set()
    stopping.join()
    counts = queue.count(Q)
    assert counts.leased == 0
    assert 1 <= counts.succeeded <= 4 and counts.succeeded + counts.pending == 40
    assert all(job.attempts == 0 for job in queue.scan(Filter(states=[State.PENDING])))


def test_slow_messages_are_not_hoarded(broker: QueueBroker, queue: Queue, start: Start) -> None:
    entered = threading.Barrier(3)
    go = threading.Event()

    def work() -> None:
        if not go.is_set():
            entered.wait(20)
            go.wait(20)

    actor = declared(broker, work)
    broker.enqueue_many([actor.message() for _ in range(20)])
    start(threads=2)
    entered.wait(20)
    leased = queue.count(Q).leased
    go.set()
    broker.join(Q, timeout=SOON)
    assert leased == 2


def test_a_broker_serves_one_worker_after_another(broker: QueueBroker, start: Start) -> None:
    ran = Ran()
    actor = declared(broker, ran)
    for number in range(3):
        worker = start()
        actor.send(number)
        broker.join(Q, timeout=SOON)
        worker.stop()
    assert ran.calls == [0, 1, 2]


def test_a_message_that_kills_its_workers_is_dead_in_the_end(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()
    declared(broker, ran, max_crashes=3).send(1)
    for number in range(3):
        assert queue.lease(Q, 1, 60, f"w{number}") is not None
        queue.expire(f"w{number}")
    start()
    broker.join(Q, timeout=SOON)
    job = only_job(queue)
    assert job.state is State.DEAD and not ran.calls
    assert {error.failure_class for error in job.errors} == {FailureClass.WORKER_CRASH}


def test_failures_that_were_retried_are_no_crashes(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()

    def work() -> None:
        ran(0)
        if len(ran.calls) < 8:
            raise ValueError("not yet")

    declared(broker, work, max_backoff=1, max_crashes=2).send()
    start()
    broker.join(Q, timeout=SOON)
    assert only_job(queue).state is State.SUCCEEDED


def test_a_suspect_gets_its_turn_though_another_queue_is_busy(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ended = threading.Event()
    busy = declared(broker, lambda: ended.is_set() or busy.send(), queue_name="busy")

    def suspicious() -> None:
        ended.set()

    declared(broker, suspicious, actor_name="suspicious", queue_name="quiet").send()
    assert queue.lease("quiet", 1, 60, "w") is not None
    queue.expire("w")
    broker.enqueue_many([busy.message() for _ in range(20)])
    start(threads=2)
    assert ended.wait(20)
    broker.join("quiet", timeout=SOON)
    broker.join("busy", timeout=SOON)


def test_a_paused_queue_is_left_alone_until_it_is_resumed(
    broker: QueueBroker, queue: Queue, start: Start
) -> None:
    ran = Ran()
    actor = declared(broker, ran)
    actor.send(1)
    queue.control(Q, Controls(paused=True))
    start()
    with pytest.raises(QueueJoinTimeout):
        broker.join(Q, timeout=100)
    assert not ran.calls
    queue.control(Q, Controls())
    broker.join(Q, timeout=SOON)
    assert ran.calls == [1]


# --- beside batch actors ------------------------------------------------------------------


def test_an_actor_and_a_batch_actor_cannot_share_a_queue(broker: QueueBroker) -> None:
    declared(broker, fail)
    with pytest.raises(QueueError, match="'work' already"):
        declared(broker, fail, actor_name="batch", batch_size=4)


def test_a_batch_actor_is_sent_no_messages(broker: QueueBroker) -> None:
    batch = declared(broker, fail, batch_size=4)
    with pytest.raises(QueueError, match="pinq enqueue"):
        batch.send()


def test_a_broker_serves_actors_and_batch_actors_at_once(
    broker: QueueBroker, queue: Queue, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    ran = Ran()
    failed = threading.Event()

    def work(batch: Batch) -> None:
        if not failed.is_set():
            failed.set()
            raise ValueError("a bug")
        for job in batch.jobs:
            ran(job.key)
            batch.succeed(job)

    declared(broker, work, actor_name="batch", queue_name="images", batch_size=4)
    actor = declared(broker, ran)
    queue.enqueue("images", [NewJob("k")])
    actor.send(1)
    with caplog.at_level(logging.INFO):
        start()
        broker.join(Q, timeout=SOON)
        broker.join("images", timeout=SOON)
    assert sorted(ran.calls, key=str) == [1, "k"]
    # The queue's own retry: dramatiq's would have sent the batch as a message.
    errors = queue.lookup("images", ["k"])["k"].errors
    assert [error.failure_class for error in errors] == [FailureClass.MODEL_ERROR]
