"""SQLite's one write lock, taken in turns by processes that all want it.

SQLite itself looks for a taken lock ever less often, down to ten times a second, and mostly
finds it taken again by whoever has just given it back: beside four busy workers a caller waits
for seconds. So we look more often, and whoever has had the lock for a while gives way to those
who wait. They say so by a lock (``flock``, which ends with its process) on a file beside the
database. A turn lasts for many transactions, for each begins with cold caches.
"""

import fcntl
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A transaction that reads and then writes must take the lock at once: the upgrade of a
# deferred one that loses a race fails, and no timeout helps.
BEGIN_WRITING = "BEGIN IMMEDIATE"

# How soon a taken lock is tried again, at first and in the end: to look takes the CPU from
# whoever has it.
_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 0.0005, 0.004
# For how long one process may take the lock again and again; a longer pause ends its turn.
_TURN_SECONDS = 0.05
_PAUSE_SECONDS = 0.005
# It then leaves the lock alone for long enough to be found free.
_GIVE_WAY_SECONDS = _LOOK_SECONDS


class WriteLock:
    """The write lock of one SQLite file, as this process has it: by one thread at a time."""

    def __init__(self, database: Path) -> None:
        self._waiting_room = Path(f"{database}-waiting")
        self._thread = threading.Lock()
        self._turn_began = self._released = 0.0

    @contextmanager
    def among_threads(self) -> Iterator[None]:
        """Keep this process's other threads waiting: SQLite would let them spin and sleep."""
        with self._thread:
            try:
                yield
            finally:
                self._released = time.monotonic()

    def begin(self, cursor: sqlite3.Cursor, patience_seconds: float) -> None:
        """Begin a transaction that writes; the connection's own timeout is 0.

        Raises:
            sqlite3.OperationalError: the lock did not become free (``SQLITE_BUSY``), or another
                trouble.
        """
        now = time.monotonic()
        if now - self._released > _PAUSE_SECONDS:
            self._turn_began = now
        elif now - self._turn_began > _TURN_SECONDS:
            if self._somebody_waits():
                time.sleep(_GIVE_WAY_SECONDS)
            self._turn_began = time.monotonic()
        if not _begun(cursor):
            self._wait(cursor, time.monotonic() + patience_seconds)
            self._turn_began = time.monotonic()

    def _wait(self, cursor: sqlite3.Cursor, deadline: float) -> None:
        room = _opened(self._waiting_room, os.O_CREAT)
        try:
            told, look = False, _FIRST_LOOK_SECONDS
            while time.monotonic() < deadline:
                told = told or (room is not None and _locked(room, fcntl.LOCK_SH))
                time.sleep(look * random.uniform(0.5, 1.0))
                look = min(1.5 * look, _LOOK_SECONDS)
                if _begun(cursor):
                    return
        finally:
            if room is not None:
                os.close(room)
        cursor.execute(BEGIN_WRITING)  # to be told why not

    def _somebody_waits(self) -> bool:
        room = _opened(self._waiting_room)
        if room is None:
            return False
        try:
            return not _locked(room, fcntl.LOCK_EX)
        finally:
            os.close(room)


def _begun(cursor: sqlite3.Cursor) -> bool:
    try:
        cursor.execute(BEGIN_WRITING)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _opened(path: Path, flags: int = 0) -> int | None:
    """None where there is no such file, or none can be made: then nobody gives way."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o666)
    except OSError:
        return None


def _locked(file: int, how: int) -> bool:
    # Never waiting: whoever has the other lock may have been stopped.
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
