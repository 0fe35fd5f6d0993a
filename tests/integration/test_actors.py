"""Ordinary actors as they are deployed: dramatiq's command, forks, processes that only send."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dramatiq
import pytest

from pinq.broker import QueueBroker
from pinq.errors import ConfigError, QueueError
from pinq.queue.contract import Queue
from pinq.queue.model import NewJob, Succeeded
from pinq.queue.urls import open_queue

DRAMATIQ = str(Path(sys.executable).with_name("dramatiq"))
PATIENCE = 60.0

MODULE = """
import os
import dramatiq
from pinq.broker import QueueBroker

broker = QueueBroker(url=os.environ["QUEUE"], lease_seconds=5)
dramatiq.set_broker(broker)

@dramatiq.actor(max_crashes=100)
def write(number):
    # One write of less than a page: whole, or not there.
    out = os.open(os.environ["OUT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(out, f"{number}\\n".encode())
    os.close(out)
"""


UPKEEP = """
from pinq.upkeep import UpkeepMiddleware

broker.add_middleware(UpkeepMiddleware())
dramatiq.actor(actor_name="report", queue_name="reports")(write.fn)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue.db"


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    queue = open_queue(url)
    yield queue
    queue.close()


def environment(folder: Path, url: str) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "QUEUE": url, "OUT": str(folder / "out"), "PYTHONPATH": root}


@contextmanager
def workers(folder: Path, url: str, module: str = MODULE) -> Iterator[subprocess.Popen[bytes]]:
    """dramatiq's command, in a process group of its own."""
    (folder / "jobs.py").write_text(module)
    command = [DRAMATIQ, "jobs", "--processes", "2", "--threads", "2"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(folder, url),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def written(folder: Path) -> list[int]:
    out = folder / "out"
    return [int(line) for line in out.read_text().split()] if out.exists() else []


def send(url: str, numbers: range) -> None:
    broker = QueueBroker(url=url)
    write = dramatiq.actor(broker=broker, actor_name="write")(lambda number: None)
    broker.enqueue_many([write.message(number) for number in numbers])
    broker.close()


def test_what_dramatiqs_command_had_in_hand_when_it_was_killed_is_done_by_the_next(
    tmp_path: Path, url: str, queue: Queue
) -> None:
    count = 3000
    send(url, range(count))
    deadline = time.monotonic() + PATIENCE
    for kills in range(1, 3):
        with workers(tmp_path, url) as running:
            while len(written(tmp_path)) < kills * count // 4:
                assert running.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    assert queue.unfinished(["default"])
    with workers(tmp_path, url) as running:
        seen = 0
        while queue.unfinished(["default"]):
            assert running.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            seen = queue.wait(seen, 0.1)
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait(PATIENCE) == 0
    assert set(written(tmp_path)) == set(range(count))
    assert queue.count("default").succeeded == count


SETTINGS = """
[retention]
succeeded_hours = 1

[periodic.tick]
cron = "* * * * *"
actor = "report"
queue = "reports"
args = [42]
"""


def test_a_worker_of_actors_alone_fires_periodic_messages_and_deletes_old_ones(
    tmp_path: Path, url: str
) -> None:
    two_hours_ago = time.time_ns() // 1_000_000 - 7_200_000
    with closing(open_queue(url, clock=lambda: two_hours_ago)) as past:
        past.enqueue("default", [NewJob("old")])
        lease = past.lease("default", 1, 60, "w")
        assert lease
        past.finish(lease.token, [Succeeded(job.id) for job in lease.jobs])
    (tmp_path / "pinq.toml").write_text(SETTINGS)
    with (
        closing(open_queue(url)) as queue,
        workers(tmp_path, url, module=f"{MODULE}\n{UPKEEP}") as running,
    ):
        deadline = time.monotonic() + PATIENCE
        # The minute that has just passed is made up for: no need to wait for the next.
        while queue.lookup("default", ["old"]) or not written(tmp_path):
            assert running.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait(PATIENCE) == 0
        keys = [job.key for job in queue.scan()]
    assert set(written(tmp_path)) == {42}
    assert len(written(tmp_path)) == len(keys), "two processes, one message a tick"
    assert all(key.startswith("tick-") for key in keys)


def test_dramatiqs_command_ends_where_the_queue_cannot_be_opened(tmp_path: Path) -> None:
    with workers(tmp_path, "nonsense://") as running:
        assert running.wait(PATIENCE) == 3
    assert "nonsense" in (tmp_path / "log").read_text()


def test_a_process_that_only_sends_starts_no_threads(url: str) -> None:
    before = threading.active_count()
    broker = QueueBroker(url=url)
    dramatiq.actor(broker=broker, actor_name="work")(lambda: None).send()
    assert threading.active_count() == before
    broker.close()


def test_a_fork_opens_the_queue_for_itself(url: str, queue: Queue) -> None:
    broker = QueueBroker(url=url)
    work = dramatiq.actor(broker=broker, actor_name="work")(lambda n: None)
    work.send(1)
    mine = broker.queue
    fork = multiprocessing.get_context("fork")
    told = fork.Queue()

    def child() -> None:
        work.send(2)
        told.put(broker.queue is not mine)

    process = fork.Process(target=child)
    process.start()
    assert told.get(timeout=PATIENCE)
    process.join(PATIENCE)
    assert process.exitcode == 0
    work.send(3)
    assert broker.queue is mine
    assert queue.count("default").pending == 3
    broker.close()


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    broker = QueueBroker(url=f"sqlite:///{tmp_path}/later/queue.db")
    dramatiq.actor(broker=broker, actor_name="work")(lambda: None)
    assert not (tmp_path / "later").exists()
    broker.close()


def test_a_closed_broker_opens_its_queue_again(url: str, queue: Queue) -> None:
    broker = QueueBroker(url=url)
    work = dramatiq.actor(broker=broker, actor_name="work")(lambda: None)
    for _ in range(2):
        work.send()
        broker.close()
    assert queue.count("default").pending == 2


def test_a_broker_is_given_a_queue_or_a_url(queue: Queue, url: str) -> None:
    with pytest.raises(QueueError, match="one of the two"):
        QueueBroker()
    with pytest.raises(QueueError, match="one of the two"):
        QueueBroker(queue, url=url)


def test_a_worker_does_not_start_on_a_queue_that_cannot_be_opened() -> None:
    broker = QueueBroker(url="nonsense://")
    dramatiq.actor(broker=broker, actor_name="work")(lambda: None)
    worker = dramatiq.Worker(broker)
    with pytest.raises(dramatiq.errors.ConnectionFailed, match="nonsense") as raised:
        worker.start()
    assert isinstance(raised.value.__cause__, ConfigError)
