"""A SQLite engine set up for a queue: WAL, synced commits, explicit transactions.

The URL's query may set ``synchronous`` (``full``, the default, or ``normal``:
faster, and a power cut may undo the last commits) and ``busy_timeout_seconds``.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc

from pinq.errors import ConfigError, QueueError, QueueUnavailable, ReadOnlyHome, StorageFull

# One writer at a time inside a process: SQLite would let the others spin and sleep.
_write_locks: dict[Path, threading.Lock] = {}
_write_locks_guard = threading.Lock()

_FULL, _BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _CANTOPEN, _NOTADB = 13, 5, 6, 8, 10, 11, 14, 26
# Under this much free space a failed write is taken for a full disk.
_NO_SPACE_BYTES = 256 * 1024


class SqliteDatabase:
    """Connections to one file; ``read`` and ``write`` open a transaction."""

    def __init__(self, url: URL) -> None:
        self.path = Path(url.database or "")
        query = dict(url.query)
        synchronous = str(query.pop("synchronous", "full")).lower()
        if synchronous not in ("full", "normal", "extra"):
            raise ConfigError(f"queue: synchronous={synchronous} is not full, extra or normal")
        try:
            busy_seconds = float(str(query.pop("busy_timeout_seconds", "10")))
        except ValueError:
            raise ConfigError("queue: busy_timeout_seconds is not a number") from None
        if query:
            raise ConfigError(
                f"queue: unknown option {sorted(query)[0]!r}; "
                "SQLite takes synchronous and busy_timeout_seconds"
            )
        self.busy_seconds = busy_seconds
        with _write_locks_guard:
            self._writing = _write_locks.setdefault(self.path, threading.Lock())
        self._engine = self._create_engine(synchronous)

    def _create_engine(self, synchronous: str) -> Engine:
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            connect_args={"timeout": self.busy_seconds, "check_same_thread": False},
            pool_size=8,
            max_overflow=32,
        )

        @event.listens_for(engine, "connect")
        def _on_connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # transactions begin where we say
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={synchronous}")
            cursor.execute("PRAGMA cache_size=-32768")
            cursor.execute("PRAGMA temp_store=MEMORY")
            # Fewer checkpoints: each syncs the database, not only the log.
            cursor.execute("PRAGMA wal_autocheckpoint=4000")
            cursor.close()

        @event.listens_for(engine, "begin")
        def _on_begin(connection: Connection) -> None:
            # A transaction that reads and then writes must take the lock at
            # once: the upgrade of a deferred one that loses a race fails, and
            # no timeout helps.
            writing = connection.get_execution_options().get("writing")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

        return engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction: one snapshot."""
        with self._translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The write transaction; committed and synced on leaving, or rolled back."""
        with self._translated(), self._writing, self._engine.connect() as connection:
            connection = connection.execution_options(writing=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the driver's errors into pinq's."""
        try:
            yield
        except exc.DBAPIError as error:
            raise self._explained(error) from error

    def _explained(self, error: exc.DBAPIError) -> Exception:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        said = f"{self.path}: {error.orig}"
        if code == _FULL or (code in (_IOERR, _CANTOPEN) and self._disk_is_full()):
            return StorageFull(
                f"{said}: no space left for the queue; nothing of this step was kept. "
                "Free some space and run again"
            )
        if code in (_BUSY, _LOCKED):
            return QueueUnavailable(
                f"{said}: another process has held the queue's lock for over "
                f"{self.busy_seconds:g} s; find it with `fuser {self.path}`, or try again"
            )
        if code == _READONLY or (code == _CANTOPEN and not os.access(self.path.parent, os.W_OK)):
            return ReadOnlyHome(
                f"{said}: the queue cannot be written; make {self.path.parent} writable, "
                "or choose another --home"
            )
        if code == _CANTOPEN:
            return QueueUnavailable(
                f"{said}: is {self.path.parent} a folder that pinq may use? Choose another --home"
            )
        if code in (_CORRUPT, _NOTADB):
            return QueueError(
                f"{said}: the file is damaged, or no SQLite database. Keep a copy, restore a "
                "backup, or move it away: stored signals stay, and enqueuing again skips them"
            )
        return QueueError(said)

    def _disk_is_full(self) -> bool:
        try:
            disk = os.statvfs(self.path.parent)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize < _NO_SPACE_BYTES
