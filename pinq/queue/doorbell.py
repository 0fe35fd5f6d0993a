"""Notice another process's commit to a SQLite file, quickly and for nothing.

``PRAGMA data_version`` tells whether anybody else has committed, but asking
often enough for a 5 ms start costs 2% of a core. So on Linux inotify rings when
the write-ahead log is written, and only then is the pragma asked: the log is
written a little before the commit is visible (the fsync lies between), so it is
asked repeatedly, ever more slowly, until it has changed. Elsewhere it is polled.
"""

import ctypes
import os
import select
import sqlite3
import sys
import threading
import time
from pathlib import Path

_IN_MODIFY = 0x2
_IN_CLOEXEC = 0o2000000
_IN_NONBLOCK = 0o4000

# Where there is no inotify: the price of a 5 ms start is about 1% of a core.
_POLL_SECONDS = 0.005
# With inotify: a safety net, should a ring be lost.
_SAFETY_SECONDS = 1.0
# How long after a write to the log its commit is expected.
_EXPECT_SECONDS = 2.0


def _watch(path: Path) -> int | None:
    """A file descriptor that is readable after ``path`` was written; None if unsupported."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
    if descriptor < 0:
        return None
    if libc.inotify_add_watch(descriptor, os.fsencode(path), _IN_MODIFY) < 0:
        os.close(descriptor)
        return None
    return descriptor


class Doorbell:
    """Counts commits to one SQLite database. Threads wait for the count to change."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._changed = threading.Condition()
        self._count = 1
        self._waiting = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._end_read, self._end_write = os.pipe()

    def wait(self, seen: int, timeout_seconds: float) -> int:
        """Block until the count is not ``seen``, or the timeout; return the count."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            if self._count != seen or timeout_seconds <= 0 or self._closed:
                return self._count
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._listen, name="pinq-doorbell", daemon=True
                )
                self._thread.start()
            self._waiting += 1
            self._changed.notify_all()
            try:
                while self._count == seen and not self._closed:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        break
                    self._changed.wait(remaining)
            finally:
                self._waiting -= 1
            return self._count

    def ring(self) -> None:
        """Say that this process has committed."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Wake everybody and end; safe to call twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        os.close(self._end_write)
        if self._thread is not None:
            self._thread.join()
        os.close(self._end_read)

    def _listen(self) -> None:
        connection = sqlite3.connect(self._database, isolation_level=None)
        descriptor = None
        try:
            # Reading makes the log exist, and an open connection keeps it there.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            descriptor = _watch(Path(f"{self._database}-wal"))
            self._follow(connection, descriptor)
        except (sqlite3.Error, OSError):
            # The queue's own next verb meets the same trouble and says so; until
            # then waiting degrades to the callers' timeouts.
            return
        finally:
            connection.close()
            if descriptor is not None:
                os.close(descriptor)

    def _follow(self, connection: sqlite3.Connection, descriptor: int | None) -> None:
        version = -1
        expect_until = 0.0
        pause = _POLL_SECONDS
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
            (now_version,) = connection.execute("PRAGMA data_version").fetchone()
            if now_version != version:
                self.ring()
                version = now_version
                expect_until = 0.0
            if descriptor is None:
                select.select([self._end_read], [], [], _POLL_SECONDS)
                continue
            expecting = time.monotonic() < expect_until
            pause = min(pause * 1.5, 0.01) if expecting else _SAFETY_SECONDS
            if descriptor in select.select([descriptor, self._end_read], [], [], pause)[0]:
                os.read(descriptor, 65536)
                expect_until = time.monotonic() + _EXPECT_SECONDS
                pause = 0.0003
