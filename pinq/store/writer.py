"""A store's folder, opened to write: by its owner, of whom there is one.

**What a put survives.** Its batch is appended to the write-ahead log, then
the log is synced. The two are separate calls because a synced write would hold the GIL for
the time of the fsync; this way threads also share one fsync.

**After a full disk.** RocksDB, once a write failed, refuses all others until it
is reopened. So the next put reopens it, if there is space.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rocksdict import Cache, Rdict, WriteBatch

from pinq.errors import PinqError, StorageFull
from pinq.store import owner
from pinq.store.faults import full, refuse_headless, translated
from pinq.store.gate import Gate
from pinq.store.options import BLOCK_CACHE_BYTES, MIB, options

log = logging.getLogger(__name__)

T = TypeVar("T")


class Writer:
    """The folder ``path``, made if need be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._gate = Gate(path)
        self._cache = Cache(BLOCK_CACHE_BYTES)
        self._db: Rdict | None = None
        self._writable = False
        self._open()

    def read(self, action: Callable[[Rdict], T], empty: T) -> T:
        """What ``action`` finds. ``empty`` is for a folder not there yet, which this one is."""
        del empty
        if self._db is None:
            self._mend(0)
        with self._database() as db:
            return action(db)

    def put(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Write all rows or none, durably."""
        if not rows:
            return
        size = sum(len(key) + len(value) for key, value in rows)
        if not self._writable:
            self._mend(size)
        try:
            self._write(rows)
        except StorageFull:
            # Space may have come back since the write that failed.
            self._mend(size)
            self._write(rows)

    def close(self) -> None:
        """Give the folder up, once calls under way have ended."""
        with self._gate.closing() as first:
            if first:
                owner.withdraw(self._path)
                self._close()

    @contextmanager
    def _database(self) -> Iterator[Rdict]:
        with self._gate.shared(), translated(self._path):
            if self._db is None:  # a full disk let it be closed and not opened again
                raise full(self._path)
            yield self._db

    def _write(self, rows: list[tuple[bytes, bytes]]) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in rows:
            batch.put(key, value)
        with self._database() as db:
            try:
                db.write(batch)
                db.flush_wal(True)
            except Exception:
                self._writable = False
                raise

    def _mend(self, size: int) -> None:
        """Reopen after a failed write, unless another thread just did."""
        with self._gate.alone():
            if self._writable:
                return
            # Opening rewrites the log as a table. Without room for that, better
            # keep what is open: it still reads.
            log_bytes = sum(f.stat().st_size for f in self._path.glob("*.log"))
            free_bytes = shutil.disk_usage(self._path).free
            if self._db is not None and free_bytes < log_bytes + size + MIB:
                raise full(self._path)
            self._close()
            self._open()

    def _open(self) -> None:
        with translated(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            refuse_headless(self._path)
            self._db = Rdict(str(self._path), options(self._cache))
        self._writable = True
        owner.announce(self._path)

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is None:
            return
        try:
            with translated(self._path):
                db.close()
        except PinqError as error:
            # Closing flushes; what could not be flushed is in the synced log.
            log.warning("closing the store %s: %s", self._path, error)
