"""Batch actors on QueueBroker, through dramatiq's own Worker."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dramatiq
import pytest

from pinq.broker import Batch, QueueBroker
from pinq.errors import FailureClass, PinqError, QueueError, StorageFull, StoreError
from pinq.queue.contract import Queue
from pinq.queue.model import Failure, Filter, Finished, Lease, NewJob, State
from pinq.queue.urls import open_queue

Q = "pins"
Work = Callable[[Batch], None]


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    queue = open_queue(f"sqlite:///{tmp_path}/queue.db")
    yield queue
    queue.close()


class Running:
    """A worker that is running, and what it told."""

    def __init__(self, queue: Queue, work: Work, *, threads: int = 2, batch_size: int = 4) -> None:
        self.finished: list[Finished] = []
        self.fatal: list[PinqError] = []
        self.settled = threading.Condition()
        self.broker = QueueBroker(
            queue,
            worker="test",
            lease_seconds=0.6,
            patience_seconds=0.2,
            on_finished=self._on_finished,
            on_fatal=self._on_fatal,
        )
        dramatiq.actor(actor_name="work", queue_name=Q, broker=self.broker, batch_size=batch_size)(
            work
        )
        self.worker = dramatiq.Worker(self.broker, worker_threads=threads, worker_timeout=20)
        self.worker.start()

    def _on_finished(self, batch: Batch, finished: Finished) -> None:
        with self.settled:
            self.finished.append(finished)
            self.settled.notify_all()

    def _on_fatal(self, error: PinqError) -> None:
        with self.settled:
            self.fatal.append(error)
            self.settled.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        with self.settled:
            assert self.settled.wait_for(condition, 20)

    def stop(self) -> None:
        self.worker.stop()
        self.broker.close()


@pytest.fixture
def start(queue: Queue) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start_one(work: Work, **options: int) -> Running:
        running.append(Running(queue, work, **options))
        return running[-1]

    yield start_one
    for one in running:
        one.stop()


def add(queue: Queue, count: int) -> None:
    queue.enqueue(Q, [NewJob(f"k{n}", f"file:///{n}") for n in range(count)])


def succeed_all(batch: Batch) -> None:
    for job in batch.jobs:
        batch.succeed(job)


def test_one_lease_is_one_message_and_each_job_is_answered_on_its_own(
    queue: Queue, start: Callable[..., Running]
) -> None:
    sizes = []

    def work(batch: Batch) -> None:
        sizes.append(len(batch.jobs))
        for job in batch.jobs:
            if job.key == "k0":
                batch.dead(job, Failure(FailureClass.UNDECODABLE, "bad"))
            elif job.key == "k1":
                batch.retry(job, Failure(FailureClass.FETCH_TRANSIENT, "busy"), 60)
            else:
                batch.succeed(job)

    add(queue, 4)
    running = start(work)
    running.until(lambda: len(running.finished) == 1)
    assert sizes == [4]
    counts = queue.count(Q)
    assert (counts.succeeded, counts.dead, counts.pending) == (2, 1, 1)


def test_an_idle_worker_starts_what_another_process_enqueues(
    queue: Queue, start: Callable[..., Running], tmp_path: Path
) -> None:
    running = start(succeed_all)
    other = open_queue(f"sqlite:///{tmp_path}/queue.db")
    add(other, 1)
    running.until(lambda: len(running.finished) == 1)
    other.close()


def test_jobs_left_unanswered_are_released_without_costing_an_attempt(
    queue: Queue, start: Callable[..., Running]
) -> None:
    seen = threading.Event()
    attempts = []

    def work(batch: Batch) -> None:
        attempts.extend(job.attempt for job in batch.jobs)
        if len(attempts) > 3:
            succeed_all(batch)
            seen.set()

    add(queue, 1)
    start(work)
    assert seen.wait(20)
    assert set(attempts) == {1}


def test_an_actor_that_raises_costs_its_unanswered_jobs_an_attempt(
    queue: Queue, start: Callable[..., Running]
) -> None:
    def work(batch: Batch) -> None:
        batch.succeed(batch.jobs[0])
        raise ValueError("a bug")

    add(queue, 2)
    running = start(work)
    running.until(lambda: len(running.finished) == 1)
    failed = queue.lookup(Q, ["k1"])["k1"]
    assert failed.state is State.PENDING and failed.attempts == 1
    assert failed.errors[0].message == "ValueError: a bug"
    assert queue.lookup(Q, ["k0"])["k0"].state is State.SUCCEEDED


def test_an_error_of_the_store_blames_no_job_and_ends_the_worker(
    queue: Queue, start: Callable[..., Running]
) -> None:
    def work(batch: Batch) -> None:
        raise StoreError("the store is gone")

    add(queue, 2)
    running = start(work)
    running.until(lambda: bool(running.fatal))
    running.stop()
    assert [job.attempts for job in queue.scan()] == [0, 0]
    assert queue.count(Q).pending == 2


def test_a_lease_is_renewed_while_its_batch_runs(
    queue: Queue, start: Callable[..., Running]
) -> None:
    released = threading.Event()

    def work(batch: Batch) -> None:
        released.wait(1.5)  # two and a half leases long
        succeed_all(batch)

    add(queue, 2)
    running = start(work)
    running.until(lambda: len(running.finished) == 1)
    assert running.finished[0].succeeded == 2
    assert [job.attempts for job in queue.scan()] == [1, 1]


def test_a_stop_finishes_the_batch_in_hand_and_releases_the_rest(
    queue: Queue, start: Callable[..., Running]
) -> None:
    entered, go = threading.Event(), threading.Event()

    def work(batch: Batch) -> None:
        entered.set()
        go.wait(20)
        succeed_all(batch)

    add(queue, 40)
    running = start(work, threads=1, batch_size=4)
    assert entered.wait(20)
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    go.set()
    stopping.join()
    counts = queue.count(Q)
    assert counts.leased == 0
    assert counts.succeeded + counts.pending == 40 and counts.succeeded <= 8
    assert all(job.attempts == 0 for job in queue.scan(Filter(states=[State.PENDING])))


def test_a_stopping_consumer_does_not_spin(queue: Queue) -> None:
    broker = QueueBroker(queue, worker="test", lease_seconds=60, patience_seconds=1)
    dramatiq.actor(actor_name="work", queue_name=Q, broker=broker, batch_size=4)(succeed_all)
    consumer = broker.consume(Q, timeout=60_000)
    broker.stop_leasing()
    asking = threading.Thread(target=next, args=(consumer,))
    asking.start()
    asking.join(0.1)
    assert asking.is_alive()  # dramatiq would ask again at once
    broker.close()
    asking.join(20)
    assert not asking.is_alive()


def test_no_more_is_leased_than_the_threads_need(
    queue: Queue, start: Callable[..., Running]
) -> None:
    go = threading.Event()
    entered = threading.Barrier(3)

    def work(batch: Batch) -> None:
        if not go.is_set():
            entered.wait(20)
            go.wait(20)
        succeed_all(batch)

    add(queue, 40)
    running = start(work, threads=2, batch_size=2)
    entered.wait(20)
    leased = queue.count(Q).leased
    go.set()
    running.until(lambda: sum(f.succeeded for f in running.finished) == 40)
    assert leased <= 6  # two in work, one ahead


def test_a_stale_finish_is_reported(queue: Queue, start: Callable[..., Running]) -> None:
    def work(batch: Batch) -> None:
        queue.release(batch.token)
        succeed_all(batch)

    add(queue, 1)
    running = start(work, threads=1)
    running.until(lambda: bool(running.finished))
    assert len(running.finished[0].refused) == 1
    assert queue.count(Q).succeeded == 0


def test_a_full_disk_is_waited_out_and_then_ends_the_worker(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, start: Callable[..., Running]
) -> None:
    original = queue.lease
    calls = []

    def lease(*args: object) -> Lease | None:
        calls.append(1)
        if len(calls) < 3:
            raise StorageFull("no space")
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(queue, "lease", lease)
    add(queue, 1)
    running = start(succeed_all)
    running.until(lambda: bool(running.finished or running.fatal))
    assert running.finished, "it came back within the patience"


def test_a_queue_feeds_one_batch_actor(queue: Queue) -> None:
    broker = QueueBroker(queue, worker="test")
    dramatiq.actor(actor_name="one", queue_name=Q, broker=broker, batch_size=1)(succeed_all)
    with pytest.raises(QueueError, match="already"):
        dramatiq.actor(actor_name="two", queue_name=Q, broker=broker, batch_size=1)(succeed_all)
