"""A SQLite file set up for a queue: WAL, synced commits, explicit transactions.

The URL's query may set ``synchronous`` (``full``, the default, or ``normal``:
faster, and a power cut may undo the last commits) and ``busy_timeout_seconds``.
"""

import functools
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects.sqlite import insert

from pinq.errors import ConfigError, QueueError, QueueUnavailable, ReadOnlyHome, StorageFull
from pinq.queue import statements
from pinq.queue.clock import machine_clock
from pinq.queue.database import Database, Transaction
from pinq.queue.model import NewJob
from pinq.queue.sqlite_bell import FileBell
from pinq.queue.sqlite_checkpoints import Checkpoints
from pinq.queue.sqlite_lock import BEGIN_WRITING, WriteLock

# One a file and process, however often it is opened.
_write_locks: dict[Path, WriteLock] = {}
_write_locks_guard = threading.Lock()
# A fork opens its queues anew: what its parent's threads held here, nobody would give back.
os.register_at_fork(after_in_child=_write_locks.clear)

# How soon a file that somebody else is making is tried again.
_LOOK_SECONDS = 0.005
# Under this much free space a failed write is taken for a full disk.
_NO_SPACE_BYTES = 256 * 1024

_INSERT_JOB = f"""
INSERT INTO pinq_jobs ({statements.INSERTED})
VALUES (?, ?, 0, ?, ?, 0, ?, 0, 0, ?, ?, ?, ?, ?, ?, x'', ?)
ON CONFLICT (queue_id, job_key) DO NOTHING
"""

# Of what was inserted just now: an id is the greatest that there is, and one more.
_LAST_KEYS = """
SELECT job_key FROM pinq_jobs WHERE id > (SELECT max(id) FROM pinq_jobs) - :inserted
"""


class SqliteDatabase(Database):
    """Connections to one file. There is one writer at a time, so nothing else is locked."""

    words: ClassVar = {
        r"= EACH (?:TEXT )?(:\w+)": r"IN (SELECT value FROM json_each(\1))",
        r"\bNOW\b": "0",  # it has no clock that counts: `clock` is the machine's
        r"BY INDEX (\w+)": r"INDEXED BY \1",
        r"\b(UN)?LOCKED\b|\bKEPT\b": "",
    }

    dialect = "sqlite"
    one_writer = True

    def __init__(self, url: URL, clock: Callable[[], int] | None = None) -> None:
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
            self._write_lock = _write_locks.setdefault(self.path, WriteLock(self.path))
        self.name = str(self.path)
        super().__init__(self._create_engine(synchronous), clock or machine_clock)
        # For writing there is one connection, whose cache of pages stays as it left it.
        self._writer = self._create_engine(synchronous, writes=True)
        self._checkpoints = Checkpoints(self.path)
        self.bell = FileBell(self.path)

    def _create_engine(self, synchronous: str, *, writes: bool = False) -> Engine:
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            connect_args={"timeout": self.busy_seconds, "check_same_thread": False},
            pool_size=1 if writes else 8,
            max_overflow=0 if writes else 32,
        )

        @event.listens_for(engine, "connect")
        def _on_connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # transactions begin where we say
            cursor = connection.cursor()
            write_ahead(cursor, self.busy_seconds)
            cursor.execute(f"PRAGMA synchronous={synchronous}")
            cursor.execute("PRAGMA cache_size=-32768")
            cursor.execute("PRAGMA temp_store=MEMORY")
            # Fewer checkpoints: each syncs the database, not only the log.
            cursor.execute("PRAGMA wal_autocheckpoint=4000")
            if writes:
                cursor.execute("PRAGMA busy_timeout=0")  # we wait for the lock in our own way
            cursor.close()
            connection.create_function("pinq_bytes_match", 2, _bytes_match, deterministic=True)

        event.listen(engine, "begin", self._begin_writing if writes else _begin_reading)
        return engine

    def _begin_writing(self, connection: Connection) -> None:
        cursor: Any = connection.connection.cursor()
        try:
            self._write_lock.begin(cursor, self.busy_seconds)
        except sqlite3.Error:
            connection.exec_driver_sql(BEGIN_WRITING)  # once more, as SQLAlchemy tells it
        finally:
            cursor.close()

    @contextmanager
    def connected_to_write(self) -> Iterator[Connection]:
        with self._write_lock.among_threads(), self._writer.connect() as connection:
            yield connection
            driver: Any = connection.connection.driver_connection
            self._checkpoints.committed(driver.total_changes)

    def close(self) -> None:
        self._checkpoints.close()
        super().close()
        self._writer.dispose()

    def holds(self, transaction: Transaction, table: str) -> bool:
        # Not by SQLAlchemy's inspector, which costs more than the rest of opening a queue.
        named = "SELECT count(*) FROM sqlite_master WHERE name = :table"
        return bool(transaction.value(named, {"table": table}))

    # --- spelling -----------------------------------------------------------------

    def bound_list(self, values: list[Any]) -> str:
        """A JSON array: SQLite has no other."""
        return json.dumps(values)

    def insert_jobs(
        self,
        transaction: Transaction,
        queue_id: int,
        now_ms: int,
        jobs: Collection[NewJob],
        *,
        forced: bool,
    ) -> Collection[str]:
        force = int(forced)
        inserted = transaction.run_many(
            _INSERT_JOB,
            [
                (
                    queue_id,
                    job.key,
                    job.priority,
                    job.run_at_ms or now_ms,
                    job.max_attempts,
                    force,
                    int(job.verify),
                    now_ms,
                    job.uri,
                    job.etag,
                    job.body,
                    job.status,
                )
                for job in jobs
            ],
        )
        if inserted == len(jobs):
            return [job.key for job in jobs]
        return transaction.column(_LAST_KEYS, {"inserted": inserted})

    def insert_missing(self, transaction: Transaction, table: Table, **values: Any) -> None:
        transaction.execute(insert(table).values(**values).on_conflict_do_nothing())

    # --- errors -------------------------------------------------------------------

    def explain(self, error: BaseException | None, *, lost: bool) -> Exception:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        said = f"{self.path}: {error}"
        if code == sqlite3.SQLITE_FULL or (
            code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and self._disk_is_full()
        ):
            return StorageFull(
                f"{said}: no space left for the queue; nothing of this step was kept. "
                "Free some space and run again"
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return QueueUnavailable(
                f"{said}: another process has held the queue's lock for over "
                f"{self.busy_seconds:g} s; find it with `fuser {self.path}`, or try again"
            )
        if code == sqlite3.SQLITE_READONLY or (
            code == sqlite3.SQLITE_CANTOPEN and not os.access(self.path.parent, os.W_OK)
        ):
            return ReadOnlyHome(
                f"{said}: the queue cannot be written; make {self.path.parent} writable, "
                "or choose another --home"
            )
        if code == sqlite3.SQLITE_CANTOPEN:
            return QueueUnavailable(
                f"{said}: is {self.path.parent} a folder that pinq may use? Choose another --home"
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
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


def write_ahead(cursor: sqlite3.Cursor, patience_seconds: float) -> None:
    """Have a database write to a log first; it stays so.

    Of two who switch a new file at once, SQLite tells one that it is busy, at once, whatever
    its timeout.

    Raises:
        sqlite3.OperationalError: it stayed busy, or another trouble.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _begin_reading(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


@functools.lru_cache(maxsize=16)
def _pattern(pattern: bytes) -> re.Pattern[bytes]:
    parts = {b"*": b".*", b"?": b"."}
    listed = (pattern[place : place + 1] for place in range(len(pattern)))
    return re.compile(b"".join(parts.get(each, re.escape(each)) for each in listed), re.DOTALL)


def _bytes_match(pattern: bytes, value: bytes) -> bool:
    return _pattern(pattern).fullmatch(value) is not None
