"""Checkpoints beside whoever commits."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pinq.queue.contract import Queue
from pinq.queue.model import NewJob
from pinq.queue.urls import open_queue

PATIENCE = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def queue(path: Path) -> Iterator[Queue]:
    with closing(open_queue(f"sqlite:///{path}")) as queue:
        yield queue


def add(queue: Queue, count: int, name: str = "") -> None:
    queue.enqueue("q", [NewJob(f"{name}{number}") for number in range(count)])


def in_the_database(path: Path) -> int:
    """Jobs that are in the file itself, whatever the log says."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM pinq_jobs").fetchone()[0])
        except sqlite3.DatabaseError:  # not even the table yet, or it is being written
            return 0


def test_what_much_was_committed_reaches_the_database_meanwhile(path: Path, queue: Queue) -> None:
    add(queue, 3_000)
    deadline = time.monotonic() + PATIENCE
    while in_the_database(path) < 3_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_commits_little_starts_no_thread(queue: Queue) -> None:
    before = threading.active_count()
    add(queue, 10)
    assert threading.active_count() == before


def test_a_reader_who_needs_the_log_holds_up_nobody_but_the_checkpoint(
    path: Path, queue: Queue
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM pinq_jobs").fetchone()  # the log is needed still
        for name in "abc":
            add(queue, 2_000, name)
        assert queue.count("q").pending == 6_000
        other.execute("COMMIT")
    add(queue, 2_000, "d")
    deadline = time.monotonic() + PATIENCE
    while in_the_database(path) < 8_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
