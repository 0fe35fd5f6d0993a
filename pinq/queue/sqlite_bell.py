"""Notice another process's commit to a SQLite file, quickly and for nothing.

``PRAGMA data_version`` tells whether anybody else has committed, but asking
often enough for a 5 ms start costs 2% of a core. So on Linux inotify rings when
the write-ahead log is written, and only then is the pragma asked: the log is
written a little before the commit is visible (the fsync lies between), so it is
asked repeatedly, ever more slowly, until it has changed. Elsewhere it is polled.
"""

import ctypes
import os
import sqlite3
import sys
import time
from pathlib import Path

from pinq.queue.bell import Bell

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


class FileBell(Bell):
    """Hears of commits to one SQLite database."""

    def __init__(self, database: Path) -> None:
        super().__init__()
        self._database = database

    def listen(self) -> None:
        connection = sqlite3.connect(self._database, isolation_level=None)
        descriptor = None
        try:
            # Reading makes the log exist, and an open connection keeps it there.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            descriptor = _watch(Path(f"{self._database}-wal"))
            self._follow(connection, descriptor)
        finally:
            connection.close()
            if descriptor is not None:
                os.close(descriptor)

    def _follow(self, connection: sqlite3.Connection, descriptor: int | None) -> None:
        version = -1
        expect_until = 0.0
        pause = _POLL_SECONDS
        while self.wanted():
            (now_version,) = connection.execute("PRAGMA data_version").fetchone()
            if now_version != version:
                self.ring()
                version = now_version
                expect_until = 0.0
            if descriptor is None:
                self.pause(_POLL_SECONDS)
                continue
            expecting = time.monotonic() < expect_until
            pause = min(pause * 1.5, 0.01) if expecting else _SAFETY_SECONDS
            if self.heard(descriptor, pause):
                os.read(descriptor, 65536)
                expect_until = time.monotonic() + _EXPECT_SECONDS
                pause = 0.0003
