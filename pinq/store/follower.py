"""A store's folder, read beside its owner.

A *secondary* follows the owner's log and sees what the owner has not flushed
yet. rocksdict writes a small file into the folder it is told to open, even as
a secondary. So it is told to open a scratch folder, where ``CURRENT`` and the
manifests are links, and to find logs and tables in the real one.
"""

import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rocksdict import AccessType, Cache, DBPath, Rdict

from pinq.errors import StoreCorrupt, StoreError
from pinq.store.faults import refuse_headless, translated
from pinq.store.gate import Gate
from pinq.store.options import BLOCK_CACHE_BYTES, options

T = TypeVar("T")

READ_ATTEMPTS = 5
RETRY_SECONDS = 0.005
_LINKED = re.compile(r"CURRENT|MANIFEST-\d+")


class Follower:
    """The folder ``path``, in which nothing is written; it need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._gate = Gate(path)
        self._lock = threading.Lock()
        self._db: Rdict | None = None
        self._identity: tuple[int, int] | None = None
        with translated(Path(tempfile.gettempdir())):
            self._scratch = Path(tempfile.mkdtemp(prefix="pinq-store-"))
        self._mirror = self._scratch
        self._cleanup = weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        try:
            self.read(lambda _: None, None)
        except BaseException:
            self._cleanup()
            raise

    def read(self, action: Callable[[Rdict], T], empty: T) -> T:
        """What ``action`` finds in the folder as of now, or ``empty`` if it isn't there."""
        with self._gate.shared():
            for left in reversed(range(READ_ATTEMPTS)):
                try:
                    with translated(self._path):
                        db = self._follow()
                        return empty if db is None else action(db)
                except StoreCorrupt:
                    # The owner may have replaced a file between two looks at
                    # it; damage stays.
                    if not left:
                        raise
                    with self._lock:
                        self._db = None
                    time.sleep(RETRY_SECONDS)
        raise AssertionError  # the last attempt returned or raised

    def put(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Refuse."""
        raise StoreError(f"{self._path} was opened to read; open it with write=True to put")

    def close(self) -> None:
        """Let go of the folder, once calls under way have ended."""
        with self._gate.closing() as first:
            if first:
                db, self._db = self._db, None
                if db is not None:
                    db.close()
                self._cleanup()

    def _follow(self) -> Rdict | None:
        """The folder as of now; ``None`` while there is no store in it."""
        with self._lock:
            try:
                found = self._path.stat()
            except FileNotFoundError:
                self._db = None
                return None
            identity = (found.st_dev, found.st_ino)
            if self._db is None or identity != self._identity:
                # Other threads may still read through the former: it is let
                # go, and closes with the last of them.
                self._db = None
                refuse_headless(self._path)
                if (self._path / "CURRENT").exists():
                    self._db = self._open()
                    self._identity = identity
            else:
                self._link()
                self._db.try_catch_up_with_primary()
            return self._db

    def _open(self) -> Rdict:
        self._mirror = Path(tempfile.mkdtemp(prefix="mirror-", dir=self._scratch))
        self._link()
        opts = options(Cache(BLOCK_CACHE_BYTES // 2))
        opts.create_if_missing(False)
        opts.set_wal_dir(str(self._path))
        opts.set_db_paths([DBPath(str(self._path), 2**60)])
        # A secondary passes over files that are missing or damaged as if what
        # they hold had never been stored; opening read-only does not.
        Rdict(str(self._mirror), opts, access_type=AccessType.read_only(False)).close()
        self._link()
        secondary = AccessType.secondary(str(self._scratch / "log"))
        return Rdict(str(self._mirror), opts, access_type=secondary)

    def _link(self) -> None:
        """Let ``CURRENT``, and the manifest it names now, be found in the mirror."""
        manifest = (self._path / "CURRENT").read_bytes().decode("ascii", "replace").strip()
        for name in ("CURRENT", manifest):
            link = self._mirror / name
            if _LINKED.fullmatch(name) and not link.is_symlink():
                link.symlink_to(self._path / name)
