"""Move what was committed from SQLite's log into the database, beside whoever commits.

SQLite has the commit that makes the log long do it, and wait until the disk has it. With
millions of jobs every key falls on another page, so that this costs as much as all the rest. A
thread that goes ahead leaves that commit little to do; what SQLite promises is not touched.
"""

import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

# So many changed rows are worth a look: each may be on a page of its own.
_ROWS = 1_000


class Checkpoints:
    """Checkpoints of one database while this process commits much."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._wanted = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None
        self._done = 0

    def committed(self, changed: int) -> None:
        """Told after each commit how many rows the connection has changed in its life."""
        if 0 <= changed - self._done < _ROWS:
            return
        self._done = changed
        self._wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pinq-checkpoints", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread; safe to call twice."""
        self._ended = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while self._wanted.wait() and not self._ended:
            self._wanted.clear()
            # A full disk, say. Whoever commits is told by its commit; the log only grows.
            with (
                suppress(sqlite3.Error),
                closing(sqlite3.connect(self._database, timeout=0)) as connection,
            ):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
