"""Turns at SQLite's write lock. Two locks of one file stand for two processes."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from pinq.queue.sqlite_lock import WriteLock

PATIENCE = 30.0


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS entries (who TEXT)")
    return connection


def enter(lock: WriteLock, connection: sqlite3.Connection, who: str) -> None:
    with lock.among_threads():
        lock.begin(connection.cursor(), PATIENCE)
        connection.execute("INSERT INTO entries VALUES (?)", (who,))
        connection.execute("COMMIT")


@pytest.fixture(params=["told", "untold"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database beside which a file for those who wait can be made, or cannot."""
    if request.param == "untold":
        (tmp_path / "queue.db-waiting").mkdir()
    return tmp_path / "queue.db"


def test_who_waits_gets_a_turn_beside_who_never_pauses(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    begun, over = threading.Event(), threading.Event()

    def never_pause() -> None:
        with closing(connect(path)) as busy:
            lock = WriteLock(path)
            while not over.is_set():
                enter(lock, busy, "busy")
                begun.set()

    with closing(connect(path)) as connection:
        thread = threading.Thread(target=never_pause)
        thread.start()
        try:
            assert begun.wait(PATIENCE)
            lock = WriteLock(path)
            for _ in range(10):
                enter(lock, connection, "waiting")
        finally:
            over.set()
            thread.join()
        waited = connection.execute("SELECT count(*) FROM entries WHERE who = 'waiting'")
        assert waited.fetchone() == (10,)


def test_a_lock_that_becomes_free_is_taken(path: Path) -> None:
    with closing(connect(path)) as holder, closing(connect(path)) as connection:
        holder.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.1, lambda: holder.execute("COMMIT"))
        timer.start()
        enter(WriteLock(path), connection, "waiting")
        timer.join()
        assert connection.execute("SELECT who FROM entries").fetchall() == [("waiting",)]


def test_patience_ends(path: Path) -> None:
    with closing(connect(path)) as holder, closing(connect(path)) as connection:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            WriteLock(path).begin(connection.cursor(), 0.05)
        holder.execute("COMMIT")
        enter(WriteLock(path), connection, "waiting")
