"""From a URL in the settings to an open queue."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

from sqlalchemy import URL

from pinq.errors import ConfigError, QueueUnavailable, ReadOnlyHome
from pinq.queue import migrate
from pinq.queue.contract import Queue
from pinq.queue.sql import SqlQueue, machine_clock
from pinq.queue.sqlite import SqliteDatabase
from pinq.queue.tables import REVISION

logger = logging.getLogger(__name__)


def open_queue(url: str, *, create: bool = True, clock: Callable[[], int] = machine_clock) -> Queue:
    """Open the queue at ``url``; an embedded one creates and upgrades itself.

    Args:
        url: ``sqlite:///path``.
        create: whether to make the database where there is none.
        clock: milliseconds since 1970; SQLite has no clock of its own.

    Raises:
        ConfigError: the URL is not one of a queue.
        QueueUnavailable: there is none and ``create`` is false, or it is locked.
        SchemaMismatch: it was made by another version of pinq.
        ReadOnlyHome: it cannot be written.
    """
    parsed = _parse(url)
    path = Path(parsed.database or "")
    if not create and not path.exists():
        raise QueueUnavailable(f"{path}: no queue is here yet; `pinq enqueue` makes one")
    database = _open(parsed, path)
    try:
        _upgrade(database)
        return SqlQueue(database, clock=clock)
    except BaseException:
        database.close()
        raise


def queue_exists(url: str) -> bool:
    """Whether an embedded queue has been made at ``url``."""
    return Path(_parse(url).database or "").exists()


def upgrade(url: str) -> str:
    """Create or upgrade the database; returns its revision."""
    parsed = _parse(url)
    database = _open(parsed, Path(parsed.database or ""))
    try:
        _upgrade(database)
    finally:
        database.close()
    return REVISION


def current(url: str) -> tuple[str | None, str]:
    """The database's revision (``None``: not made yet) and this code's."""
    parsed = _parse(url)
    path = Path(parsed.database or "")
    if not path.exists():
        return None, REVISION
    database = SqliteDatabase(parsed)
    try:
        with database.read() as connection:
            return migrate.revision_of(connection), REVISION
    finally:
        database.close()


_QUERY = re.compile(r"\w+=[^/&]*(&\w+=[^/&]*)*\Z")


def _parse(url: str) -> URL:
    scheme, mark, rest = url.partition("://")
    if not mark:
        raise ConfigError(f"queue = {url!r} is not a URL such as sqlite:///.pinq/queue.db")
    if scheme != "sqlite":
        raise ConfigError(
            f"queue = {url!r}: pinq keeps queues in sqlite:///path; {scheme!r} is not supported"
        )
    # Not by SQLAlchemy's make_url: a path is taken as it stands, whatever is in it.
    path, query = rest.removeprefix("/"), ""
    head, mark, tail = path.rpartition("?")
    if mark and _QUERY.match(tail):
        path, query = head, tail
    if not path or path == ":memory:":
        raise ConfigError(f"queue = {url!r} names no file; for example sqlite:///.pinq/queue.db")
    return URL.create("sqlite", database=path, query=dict(parse_qsl(query, keep_blank_values=True)))


def _open(parsed: URL, path: Path) -> SqliteDatabase:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(
            f"{path.parent} is a file where a folder is needed; choose another --home"
        ) from None
    except OSError as error:
        raise ReadOnlyHome(
            f"{path.parent} cannot be made: {error.strerror}; choose another --home"
        ) from None
    if (kind := network_file_system(path.parent, _mounts())) is not None:
        logger.warning(
            "queue.on_network_file_system path=%s type=%s SQLite's log does not work there: "
            "keep the home on a local disk",
            path,
            kind,
        )
    return SqliteDatabase(parsed)


_NETWORK = re.compile(
    r"nfs|cifs|smb|9p|afs|ceph|glusterfs|lustre|fuse\.(sshfs|s3fs|gcsfuse|rclone)"
)


def network_file_system(folder: Path, mounts: str) -> str | None:
    """The type of the file system that ``folder`` is on, if it is one over a network.

    ``mounts`` is as in ``/proc/self/mounts``.
    """
    best, found = "", ""
    for line in mounts.splitlines():
        place, kind = line.split()[1:3]
        place = place.replace("\\040", " ")
        inside = folder.resolve().is_relative_to(place)
        if inside and len(place) >= len(best):
            best, found = place, kind
    return found if _NETWORK.match(found) else None


def _mounts() -> str:
    try:
        return Path("/proc/self/mounts").read_text("utf-8", "replace")
    except OSError:
        return ""


def _upgrade(database: SqliteDatabase) -> None:
    with database.read() as connection:  # without the write lock, where all is well
        if migrate.revision_of(connection) == REVISION:
            return
    with database.write() as connection:
        migrate.upgrade(connection, str(database.path))
