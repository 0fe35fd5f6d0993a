"""What can go wrong with a RocksDB, as pinq's exceptions.

rocksdict raises bare ``Exception`` with RocksDB's text; :func:`translated` is
the one place that reads it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pinq.errors import (
    ConfigError,
    PinqError,
    ReadOnlyHome,
    StorageFull,
    StoreCorrupt,
    StoreError,
    StoreOwned,
)
from pinq.store import owner


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise what RocksDB and the system say of the store ``path`` as pinq's exceptions."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, OSError):
            raise
        raise _fault(path, str(error)) from error


def refuse_headless(path: Path) -> None:
    """RocksDB, finding no ``CURRENT``, would start anew and delete the tables there.

    Raises:
        StoreCorrupt: ``path`` is such a folder.
    """
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
            raise _corrupt(path, f"it has data ({name}) but no file CURRENT")


def full(path: Path) -> StorageFull:
    """The exception for a store that finds no space."""
    return StorageFull(
        f"no space left for the store {path}; free some, then run the same command again"
    )


def _fault(path: Path, text: str) -> PinqError:
    lower = text.lower()

    def says(*signs: str) -> bool:
        return any(sign in lower for sign in signs)

    # "previous error": after a failed write RocksDB refuses all others.
    if says("no space left", "quota exceeded", "previous error"):
        return full(path)
    if says("read-only file system", "permission denied"):
        return ReadOnlyHome(
            f"the store {path} cannot be opened: {text}; change its permissions, or "
            "choose another home with --home"
        )
    if says("lock file", "lock hold by current process"):
        return StoreOwned(owner.describe(path))
    if says("corrupt", "no such file", "try again"):
        return _corrupt(path, text)
    if says("not a directory", "file exists"):
        return ConfigError(f"the store {path} is not a folder; check `store` in the settings")
    if says("too many open files"):
        return StoreError(f"the store {path}: {text}; raise the limit with `ulimit -n 4096`")
    return StoreError(f"the store {path}: {text}")


def _corrupt(path: Path, text: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"the store {path} is damaged: {text}; move that folder away, then "
        "`pinq enqueue --force` computes its signals again"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
