"""Workers and servers that are killed in the middle of things, on every backend.

Whatever dies, in the end every job has succeeded, and has exactly one event row.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinq.errors import QueueUnavailable
from pinq.patience import patiently
from pinq.queue.model import NewJob, State
from pinq.queue.urls import open_queue, upgrade

from ..servers import MariadbServer, PostgresServer, RedisServer, fresh_database, missing

WORKER = Path(__file__).with_name("batch_worker.py")
Q = "pins"
JOBS = 3000
BATCH = 50

AnyServer = PostgresServer | MariadbServer | RedisServer
_KINDS = {"postgresql": PostgresServer, "mariadb": MariadbServer, "redis": RedisServer}


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], AnyServer]]:
    """Starts a server of the test's own, which may be killed."""
    started: list[AnyServer] = []

    def start(kind: str) -> AnyServer:
        if why := missing(_KINDS[kind].kind):
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
        server = _KINDS[kind](tmp_path_factory.mktemp(kind))
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


class Work:
    """Worker processes on one new queue, and the jobs that they are given meanwhile."""

    def __init__(self, url: str, workers: int) -> None:
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        self.url = url
        self.dice = random.Random(seed)
        self.workers: list[subprocess.Popen[str]] = []
        self.enqueued = 0
        upgrade(url)
        self.queue = open_queue(url)
        self.enqueue(BATCH)
        for _ in range(workers):
            self.start_worker()

    def start_worker(self) -> None:
        self.workers.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), self.url],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        )

    def kill_a_worker(self) -> None:
        victim = self.workers.pop(self.dice.randrange(len(self.workers)))
        victim.kill()
        victim.communicate()

    def enqueue(self, count: int) -> None:
        """As an upstream would: again when the answer got lost."""
        while count > 0:
            keys = [f"key-{self.enqueued + n:06d}" for n in range(min(BATCH, count))]
            try:
                self.queue.enqueue(Q, [NewJob(key, max_attempts=100) for key in keys])
            except QueueUnavailable:
                time.sleep(0.05)
                continue
            self.enqueued += len(keys)
            count -= len(keys)

    def finish(self) -> None:
        """Until the workers, two of them fresh, have ended; and all that must not be lost."""
        for _ in range(2):
            self.start_worker()
        for worker in self.workers:
            said, _ = worker.communicate(timeout=120)
            assert worker.returncode == 0, said
        jobs = list(self.queue.scan())
        assert Counter(job.state for job in jobs) == {State.SUCCEEDED: self.enqueued}
        assert len({job.key for job in jobs}) == self.enqueued
        events = Counter(event.subject for event in self.queue.unpublished(10 * self.enqueued))
        assert events == {job.key: 1 for job in jobs}
        assert self.queue.holders() == []
        self.queue.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_workers_killed_in_a_loop_lose_nothing(
    kind: str, tmp_path: Path, start_server: Callable[[str], AnyServer]
) -> None:
    url = f"sqlite:///{tmp_path}/queue.db"
    if kind != "sqlite":
        url = fresh_database(start_server(kind))
    work = Work(url, workers=3)
    for _ in range(8):
        work.enqueue(JOBS // 8)
        time.sleep(work.dice.uniform(0.1, 0.6))  # so that it strikes at any moment
        work.kill_a_worker()
        work.start_worker()
    work.finish()


@pytest.mark.parametrize("kind", list(_KINDS))
def test_a_server_killed_in_the_middle_loses_nothing(
    kind: str, start_server: Callable[[str], AnyServer]
) -> None:
    server = start_server(kind)
    work = Work(fresh_database(server), workers=2)
    for _ in range(3):
        work.enqueue(JOBS // 3)
        time.sleep(work.dice.uniform(0.0, 0.5))
        server.kill()
        with pytest.raises(QueueUnavailable, match=r"127\.0\.0\.1"):
            work.queue.enqueue(Q, [NewJob("never")])
        time.sleep(work.dice.uniform(0.0, 1.0))
        server.start()
    work.enqueue(BATCH)
    work.finish()


@pytest.mark.parametrize("kind", list(_KINDS))
def test_waiting_goes_on_after_the_server_was_restarted(
    kind: str, start_server: Callable[[str], AnyServer]
) -> None:
    server = start_server(kind)
    url = fresh_database(server)
    upgrade(url)
    waiting, other = open_queue(url), open_queue(url)
    other.declare(Q, source="/pinq/pins")
    waiting.wait(waiting.wait(0, 0), 0.1)  # it listens now
    server.kill()
    server.start()
    deadline = time.monotonic() + 30
    key = 0
    while True:  # the listener has come back once a commit is heard within moments
        seen = waiting.wait(0, 0)
        started = time.monotonic()
        key += 1
        try:
            other.enqueue(Q, [NewJob(f"key-{key}")])
        except QueueUnavailable:
            continue
        heard = waiting.wait(seen, 5.0) != seen
        if heard and time.monotonic() - started < 0.5:
            break
        assert time.monotonic() < deadline
    # As a worker would: its own connection may have died too recently to be looked at first.
    lease = patiently(
        lambda: waiting.lease(Q, 1, 60, "w"), patience_seconds=30, stop=threading.Event()
    )
    assert lease is not None
    waiting.close()
    other.close()
