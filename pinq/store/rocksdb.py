"""The store in a RocksDB folder.

**Who may open it.** One process owns a RocksDB and writes it
(``write=True``). Any number read beside it (``write=False``), each through a
*secondary*: a reader that follows the owner's log, sees what the owner has not
flushed yet, and writes nothing into the folder, so that it works on a read-only
home. A folder that isn't there yet reads as empty.

**What a put survives.** Its batch is appended to the write-ahead log, then
the log is synced. The two are separate calls because a synced write would hold the GIL for
the time of the fsync; this way threads also share one fsync.

**What damages say.** rocksdict raises bare ``Exception`` with RocksDB's
text; :func:`_translated` is the one place that reads it.

The options, with what was measured, stand in :func:`_options`.
"""

import json
import logging
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DbClosedError,
    DBCompressionType,
    DBPath,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBatch,
)

from pinq.errors import (
    ConfigError,
    PinqError,
    ReadOnlyHome,
    StorageFull,
    StoreCorrupt,
    StoreError,
    StoreOwned,
)
from pinq.store import keys
from pinq.store.contract import SignalKey, SignalValue

log = logging.getLogger(__name__)

T = TypeVar("T")
Versions = list[tuple[str, int]]

MIB = 1024 * 1024
WRITE_BUFFER_BYTES = 16 * MIB
BLOCK_CACHE_BYTES = 64 * MIB
MAX_OPEN_FILES = 256
SCAN_ROWS = 512
SCAN_BYTES = 4 * MIB
READ_ATTEMPTS = 5
RETRY_SECONDS = 0.005
_LINKED = re.compile(r"CURRENT|MANIFEST-\d+")


class RocksdbStore:
    """A :class:`~pinq.store.contract.Store` in the folder ``path``.

    Args:
        path: the RocksDB's folder; with ``write`` it is made if need be.
        write: own the store, rather than read it, beside its owner if it has one.

    Raises:
        StoreOwned: another process, or another object of this one, owns it.
        StoreCorrupt: its files are damaged.
        ReadOnlyHome: ``write`` was asked and the folder cannot be written.
        StorageFull: there is no space to open it.
    """

    def __init__(self, path: str | Path, *, write: bool) -> None:
        # RocksDB's lock is by name within a process, and taking it twice loses
        # it: so only ever one name for one folder.
        real = Path(os.path.realpath(path))
        self.path = real
        self._opened: _Opened = _Owned(real) if write else _Beside(real)

    def get(self, wanted: Sequence[SignalKey]) -> list[SignalValue | None]:
        """The value of each key, in order; ``None`` where there is none.

        Raises:
            StoreCorrupt: the store's files, or one of the values, are damaged.
        """
        if not wanted:
            return []
        raw_keys = [keys.encode_key(key) for key in wanted]
        return self._opened.read(
            lambda db: _decoded(wanted, _multi_get(db, raw_keys)), [None] * len(wanted)
        )

    def put(self, items: Sequence[tuple[SignalKey, SignalValue]]) -> None:
        """Write all items, or none. When this returns they survive a power cut.

        After :class:`StorageFull` the store goes on reading, and the first put
        once there is space works again.

        Raises:
            StorageFull: no space is left; nothing is promised about the items.
            ReadOnlyHome: the folder has become read-only.
            StoreCorrupt: the store's files are damaged.
            StoreError: the store was opened to read, or is closed.
        """
        rows = [(keys.encode_key(key), keys.encode_value(value)) for key, value in items]
        self._opened.put(rows, {(key.galaxy, key.signal, key.version) for key, _ in items})

    def versions(self, galaxy: str) -> Versions:
        """Every (signal, version) that has at least one value, ascending.

        Takes a seek for each, however many values there are.
        """
        return self._opened.read(lambda db: self._opened.versions(db, galaxy), [])

    def lookup(
        self, galaxy: str, signatures: Sequence[str], signals: Sequence[str] | None = None
    ) -> list[dict[str, tuple[int, SignalValue]]]:
        """For each signature the newest version stored of each signal, by name.

        ``signals`` limits the answer to those names.
        """

        def newest(db: Rdict) -> list[dict[str, tuple[int, SignalValue]]]:
            found: list[dict[str, tuple[int, SignalValue]]] = [{} for _ in signatures]
            stored: dict[str, list[int]] = defaultdict(list)
            for signal, version in reversed(self._opened.versions(db, galaxy)):
                if signals is None or signal in signals:
                    stored[signal].append(version)
            # The newest of every signal in one multi-get; older ones only for
            # what that didn't find.
            for age in range(max(map(len, stored.values()), default=0)):
                wanted = [
                    (answer, SignalKey(galaxy, signal, stored[signal][age], signature))
                    for signature, answer in zip(signatures, found, strict=True)
                    for signal in sorted(stored)
                    if age < len(stored[signal]) and signal not in answer
                ]
                if not wanted:
                    break
                asked = [key for _, key in wanted]
                values = _decoded(asked, _multi_get(db, [keys.encode_key(key) for key in asked]))
                for (answer, key), value in zip(wanted, values, strict=True):
                    if value is not None:
                        answer[key.signal] = (key.version, value)
            return found

        return self._opened.read(newest, [{} for _ in signatures])

    def scan(self, galaxy: str) -> Iterator[tuple[SignalKey, SignalValue]]:
        """Everything in a galaxy, in key order.

        Read in chunks, each as new as its own moment: not a snapshot, and no
        hindrance to writes or to ``close``.
        """
        prefix = keys.galaxy_prefix(galaxy)
        start = prefix
        nothing: list[tuple[bytes, bytes]] = []
        while rows := self._opened.read(partial(_chunk, prefix=prefix, start=start), nothing):
            for raw_key, raw_value in rows:
                key = keys.decode_key(raw_key)
                yield key, keys.decode_value(key, raw_value)
            start = rows[-1][0] + b"\0"

    def close(self) -> None:
        """Give up the store, once calls under way have ended; safe to call twice."""
        self._opened.close()


class _Opened(Protocol):
    """What the two ways of having the folder open have in common."""

    def read(self, action: Callable[[Rdict], T], empty: T) -> T: ...

    def put(self, rows: list[tuple[bytes, bytes]], named: set[tuple[str, str, int]]) -> None: ...

    def versions(self, db: Rdict, galaxy: str) -> Versions: ...

    def close(self) -> None: ...


class _Owned:
    """The folder, opened to write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._gate = _Gate(path)
        self._cache = Cache(BLOCK_CACHE_BYTES)
        self._versions: dict[str, set[tuple[str, int]]] = {}
        self._versions_lock = threading.Lock()
        # After a failed write RocksDB refuses all others until reopened.
        self._failed = False
        self._opened_times = 0
        self._db: Rdict | None = None
        self._open()

    def read(self, action: Callable[[Rdict], T], empty: T) -> T:
        del empty  # for the signature's sake: an owned folder always exists
        if self._db is None:
            self._mend(self._opened_times, 0)
        with self._gate.shared(), _translated(self._path):
            if self._db is None:
                raise StorageFull(_full(self._path))
            return action(self._db)

    def put(self, rows: list[tuple[bytes, bytes]], named: set[tuple[str, str, int]]) -> None:
        if not rows:
            return
        size = sum(len(key) + len(value) for key, value in rows)
        opened_times = self._opened_times
        if self._failed:
            self._mend(opened_times, size)
            opened_times = self._opened_times
        try:
            self._write(rows)
        except StorageFull:
            # Space may have come back since the write that failed.
            self._mend(opened_times, size)
            self._write(rows)
        with self._versions_lock:
            for galaxy, signal, version in named:
                if galaxy in self._versions:
                    self._versions[galaxy].add((signal, version))

    def versions(self, db: Rdict, galaxy: str) -> Versions:
        # Only the owner adds versions, so it need not look for them each time.
        with self._versions_lock:
            known = self._versions.get(galaxy)
            if known is None:
                known = set(_versions(db, galaxy))
                if known:
                    self._versions[galaxy] = known
            return sorted(known)

    def close(self) -> None:
        with self._gate.closing() as first:
            if not first:
                return
            # While the lock is still held: a later owner's file stays.
            with suppress(OSError):
                _owner_file(self._path).unlink()
            self._close_db()

    def _write(self, rows: list[tuple[bytes, bytes]]) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in rows:
            batch.put(key, value)
        with self._gate.shared(), _translated(self._path):
            if self._db is None:
                raise StorageFull(_full(self._path))
            try:
                self._db.write(batch)
                self._db.flush_wal(True)
            except Exception:
                self._failed = True
                raise

    def _mend(self, opened_times: int, size: int) -> None:
        """Reopen after a failed write, unless another thread just did."""
        with self._gate.alone():
            if self._opened_times != opened_times:
                return
            # Opening rewrites the log as a table. Without room for that, better
            # keep what is open: it still reads.
            log_bytes = sum(f.stat().st_size for f in self._path.glob("*.log"))
            if self._db is not None and _free_bytes(self._path) < log_bytes + size + MIB:
                raise StorageFull(_full(self._path))
            self._close_db()
            self._open()

    def _open(self) -> None:
        with _translated(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            _refuse_headless(self._path)
            self._db = Rdict(str(self._path), _options(self._cache))
        self._failed = False
        self._opened_times += 1
        _own(self._path)

    def _close_db(self) -> None:
        db, self._db = self._db, None
        if db is None:
            return
        try:
            with _translated(self._path):
                db.close()
        except PinqError as error:
            # Closing flushes; what could not be flushed is in the synced log.
            log.warning("closing the store %s: %s", self._path, error)


class _Beside:
    """The folder, read beside whoever owns it.

    rocksdict writes a small file into the folder it is told to open, even as a
    secondary. So it is told to open a scratch folder, where ``CURRENT`` and
    the manifests are links, and to find logs and tables in the real one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._gate = _Gate(path)
        self._lock = threading.Lock()
        self._db: Rdict | None = None
        self._identity: tuple[int, int] | None = None
        self._mirrors = 0
        with _translated(Path(tempfile.gettempdir())):
            self._scratch = Path(tempfile.mkdtemp(prefix="pinq-store-"))
        self._cleanup = weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        try:
            self.read(lambda _: None, None)
        except BaseException:
            self._cleanup()
            raise

    def read(self, action: Callable[[Rdict], T], empty: T) -> T:
        with self._gate.shared():
            for left in reversed(range(READ_ATTEMPTS)):
                try:
                    with _translated(self._path):
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

    def put(self, rows: list[tuple[bytes, bytes]], named: set[tuple[str, str, int]]) -> None:
        raise StoreError(f"{self._path} was opened to read; open it with write=True to put")

    def versions(self, db: Rdict, galaxy: str) -> Versions:
        return _versions(db, galaxy)

    def close(self) -> None:
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
                _refuse_headless(self._path)
                if (self._path / "CURRENT").exists():
                    self._db = self._open()
                    self._identity = identity
            else:
                self._link()
                self._db.try_catch_up_with_primary()
            return self._db

    def _open(self) -> Rdict:
        self._mirrors += 1
        self._mirror.mkdir()
        self._link()
        options = _options(Cache(BLOCK_CACHE_BYTES // 2))
        options.create_if_missing(False)
        options.set_wal_dir(str(self._path))
        options.set_db_paths([DBPath(str(self._path), 2**60)])
        # A secondary passes over files that are missing or damaged as if what
        # they hold had never been stored; opening read-only does not.
        Rdict(str(self._mirror), options, access_type=AccessType.read_only(False)).close()
        self._link()
        follower = AccessType.secondary(str(self._scratch / "log"))
        return Rdict(str(self._mirror), options, access_type=follower)

    @property
    def _mirror(self) -> Path:
        return self._scratch / f"mirror-{self._mirrors}"

    def _link(self) -> None:
        """Let ``CURRENT``, and the manifest it names now, be found in the mirror."""
        manifest = (self._path / "CURRENT").read_bytes().decode("ascii", "replace").strip()
        for name in ("CURRENT", manifest):
            link = self._mirror / name
            if _LINKED.fullmatch(name) and not link.is_symlink():
                link.symlink_to(self._path / name)


class _Gate:
    """Lets calls through side by side, and a reopening or closing only alone.

    Closing a RocksDB under a reader, or an iterator outliving it, is a crash of
    the process, not an exception.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._inside = 0
        self._shut = False
        self._closed = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            if self._closed:
                raise StoreError(f"the store {self._path} is closed")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            if self._closed:
                raise StoreError(f"the store {self._path} is closed")
            self._shut = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()

    @contextmanager
    def closing(self) -> Iterator[bool]:
        """Alone, for good; yields false when it is closed already."""
        try:
            with self.alone():
                yield True
                self._closed = True
        except StoreError:
            if not self._closed:
                raise
            yield False


def _options(cache: Cache) -> Options:
    """How pinq's RocksDB is set up: small and flat in memory, quick to open.

    Memory is two write buffers and the block cache, which the tables' indexes and
    filters share, whatever the store's size. Write buffers of 8, 16 and 32 MiB
    made no difference to puts beyond the noise; a larger one is a longer log to
    read back for who opens the store beside a busy owner (14 MB: 50 ms, twice).
    """
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_bloom_filter(10, False)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_format_version(5)

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_max_open_files(MAX_OPEN_FILES)
    options.set_level_compaction_dynamic_level_bytes(True)
    # A block that LZ4 cannot shrink by an eighth (random floats) is kept as it is.
    options.set_compression_type(DBCompressionType.lz4())
    # The default ends quietly at the first damaged record of the log, and all
    # after it would be lost without a word. This one forgives only a torn end,
    # which is what a crash leaves.
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_manifest_preallocation_size(64 * 1024)
    options.set_max_manifest_file_size(4 * MIB)
    options.set_skip_stats_update_on_db_open(True)
    # RocksDB's own diary: a few small files, and no periodic statistics.
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _multi_get(db: Rdict, raw_keys: list[bytes]) -> list[bytes | None]:
    asked: list[Any] = [*raw_keys]
    found: list[bytes | None] = db.get(asked)  # type: ignore[assignment]
    return found


def _decoded(
    wanted: Sequence[SignalKey], raw_values: Sequence[bytes | None]
) -> list[SignalValue | None]:
    return [
        None if raw is None else keys.decode_value(key, raw)
        for key, raw in zip(wanted, raw_values, strict=True)
    ]


def _versions(db: Rdict, galaxy: str) -> Versions:
    prefix = keys.galaxy_prefix(galaxy)
    found = []
    rows = db.iter()
    rows.seek(prefix)
    while rows.valid():
        raw = rows.key()
        if not raw.startswith(prefix):
            break
        key = keys.decode_key(raw)
        found.append((key.signal, key.version))
        rows.seek(keys.after(keys.version_prefix(galaxy, key.signal, key.version)))
    rows.status()  # an iterator that meets damage just ends
    return found


def _chunk(db: Rdict, prefix: bytes, start: bytes) -> list[tuple[bytes, bytes]]:
    chunk: list[tuple[bytes, bytes]] = []
    size = 0
    rows = db.iter()
    rows.seek(start)
    while rows.valid() and len(chunk) < SCAN_ROWS and size < SCAN_BYTES:
        key = rows.key()
        if not key.startswith(prefix):
            break
        value = rows.value()
        chunk.append((key, value))
        size += len(value)
        rows.next()
    rows.status()  # an iterator that meets damage just ends
    return chunk


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """rocksdict's exceptions as pinq's."""
    try:
        yield
    except DbClosedError as error:
        raise StoreError(f"the store {path} is closed") from error
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, OSError):
            raise
        raise _named(path, str(error)) from error


def _named(path: Path, text: str) -> PinqError:
    lower = text.lower()
    if "no space left" in lower or "quota exceeded" in lower or "previous error" in lower:
        return StorageFull(_full(path))
    if "read-only file system" in lower or "permission denied" in lower:
        return ReadOnlyHome(
            f"the store {path} cannot be opened: {text}; change its permissions, or "
            "choose another home with --home"
        )
    if "lock file" in lower or "lock hold by current process" in lower:
        return StoreOwned(_owned_text(path))
    if any(sign in lower for sign in ("corrupt", "no such file", "try again")):
        return StoreCorrupt(_damaged(path, text))
    if "not a directory" in lower or "file exists" in lower:
        return ConfigError(f"the store {path} is not a folder; check `store` in the settings")
    if "too many open files" in lower:
        return StoreError(f"the store {path}: {text}; raise the limit with `ulimit -n 4096`")
    return StoreError(f"the store {path}: {text}")


def _full(path: Path) -> str:
    return f"no space left for the store {path}; free some, then run the same command again"


def _damaged(path: Path, text: str) -> str:
    return (
        f"the store {path} is damaged: {text}; move that folder away, then "
        "`pinq enqueue --force` computes its signals again"
    )


def _refuse_headless(path: Path) -> None:
    """RocksDB, finding no ``CURRENT``, would start anew and delete the tables there."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return
    if "CURRENT" in names:
        return
    for name in names:
        if name.endswith(".sst") or (name.endswith(".log") and _size(path / name)):
            # The listing may be from before the owner's first moments ended.
            if (path / "CURRENT").exists():
                return
            raise StoreCorrupt(_damaged(path, f"it has data ({name}) but no file CURRENT"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


# Who owns a store is said by RocksDB's lock. The owner file beside the folder
# only tells others who that is, and is believed only where it can be true.


def _owner_file(path: Path) -> Path:
    return path.with_name(path.name + ".owner")


def _own(path: Path) -> None:
    target = _owner_file(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    text = json.dumps(
        {
            "pid": os.getpid(),
            "started": _start_of(os.getpid()),
            "host": socket.gethostname(),
            "command": shlex.join(sys.orig_argv)[:500],
            "since_ms": int(time.time() * 1000),
        }
    )
    try:
        aside.write_text(text + "\n", "utf-8")
        aside.replace(target)
    except OSError as error:
        log.warning("cannot say in %s who owns the store: %s", target, error)
        with suppress(OSError):
            aside.unlink()


def _owned_text(path: Path) -> str:
    advice = "wait for it to end, or stop it; look-ups and dumps work beside it"
    owner = _owner(path)
    if owner is None:
        return f"another process has the store {path} open to write; {advice}"
    pid, command, since_ms = owner["pid"], owner["command"], owner["since_ms"]
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(str(since_ms)) / 1000))
    who = "this very process" if pid == os.getpid() else f"process {pid}"
    return f"{who} ({command}) has had the store {path} open to write since {since}; {advice}"


def _owner(path: Path) -> dict[str, object] | None:
    """What the owner file says, unless the process it names is gone."""
    try:
        owner = json.loads(_owner_file(path).read_text("utf-8"))
        pid, here = int(owner["pid"]), owner["host"] == socket.gethostname()
        float(owner["since_ms"])
        if here and (not _alive(pid) or owner["started"] != _start_of(pid)):
            return None
        return {"pid": pid, "command": owner["command"], "since_ms": owner["since_ms"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _start_of(pid: int) -> str:
    """When a process began, to tell it from a later one with its number; "" if unknown."""
    try:
        # The command's name stands in parentheses and may hold anything.
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError, ValueError):
        return ""
