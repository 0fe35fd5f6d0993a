"""From a URL in the settings to an open queue."""

import logging
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qsl

from sqlalchemy import URL, exc, make_url

from pinq.errors import ConfigError, QueueUnavailable, ReadOnlyHome, SchemaMismatch
from pinq.queue import migrate
from pinq.queue.contract import Queue
from pinq.queue.database import Database
from pinq.queue.sql import SqlQueue
from pinq.queue.sqlite import SqliteDatabase
from pinq.queue.tables import REVISION

logger = logging.getLogger(__name__)

_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
_MYSQL = ("mysql", "mysql+pymysql", "mariadb", "mariadb+pymysql")
_REDIS = ("redis", "rediss", "redis+cluster", "rediss+cluster")


def open_queue(url: str, *, create: bool = True, clock: Callable[[], int] | None = None) -> Queue:
    """Open the queue at ``url``. An embedded one creates and upgrades itself; a server's
    is made and upgraded by ``pinq db upgrade`` only.

    Args:
        url: ``sqlite:///path``, ``postgresql://…``, ``mysql://…``, ``mariadb://…`` or
            ``redis://…``.
        create: whether to make an embedded database where there is none.
        clock: milliseconds since 1970; by default the server's, and on SQLite the machine's.

    Raises:
        ConfigError: the URL is not one of a queue, or the driver for it is not installed.
        QueueUnavailable: there is none and ``create`` is false, or it cannot be reached.
        SchemaMismatch: it was made by another version of pinq, or a server's not yet.
        ReadOnlyHome: it cannot be written.
    """
    if _scheme(url) in _REDIS:
        return _redis(url, clock)
    database = _database(url, clock, create=create)
    try:
        _prepare(database)
        return SqlQueue(database)
    except BaseException:
        database.close()
        raise


def queue_exists(url: str) -> bool:
    """Whether an embedded queue has been made at ``url``; servers are taken to have theirs."""
    return not _is_embedded(url) or _path(_parse(url)).exists()


def upgrade(url: str) -> str:
    """Create or upgrade the database; returns its revision. Redis needs none."""
    if _scheme(url) not in _REDIS:
        with closing(_database(url, None)) as database, database.write() as transaction:
            migrate.upgrade(transaction)
    return REVISION


def current(url: str) -> tuple[str | None, str]:
    """The database's revision (``None``: not made yet) and this code's."""
    if _scheme(url) in _REDIS:
        return REVISION, REVISION
    if not queue_exists(url):
        return None, REVISION
    with closing(_database(url, None)) as database, database.read() as transaction:
        return migrate.revision_of(transaction), REVISION


def _scheme(url: str) -> str:
    scheme, mark, _ = url.partition("://")
    if not mark:
        raise ConfigError(f"queue = {_hidden(url)} is not a URL such as sqlite:///.pinq/queue.db")
    if scheme not in ("sqlite", *_POSTGRESQL, *_MYSQL, *_REDIS):
        raise ConfigError(
            f"queue = {_hidden(url)}: pinq keeps queues in sqlite:///path, postgresql://, "
            f"mysql://, mariadb:// or redis://; {scheme!r} is not supported"
        )
    return scheme


def _is_embedded(url: str) -> bool:
    return _scheme(url) == "sqlite"


def _database(url: str, clock: Callable[[], int] | None, *, create: bool = True) -> Database:
    if _is_embedded(url):
        parsed = _parse(url)
        path = _path(parsed)
        if not create and not path.exists():
            raise QueueUnavailable(f"{path}: no queue is here yet; `pinq enqueue` makes one")
        return _open(parsed, path, clock)
    server = _parse_server(url)
    try:
        if _scheme(url) in _POSTGRESQL:
            from pinq.queue.postgresql import PostgresDatabase

            return PostgresDatabase(server, clock)
        from pinq.queue.mysql import MysqlDatabase

        return MysqlDatabase(server, clock)
    except ImportError as error:
        kind = "postgresql" if _scheme(url) in _POSTGRESQL else "mysql"
        raise ConfigError(f"queue = {_hidden(url)}: pip install 'pinq[{kind}]' ({error})") from None


def _parse_server(url: str) -> URL:
    try:
        server = make_url(url)
        _ = server.port
    except (exc.ArgumentError, ValueError):  # which would quote the password
        raise ConfigError(
            f"queue = {_hidden(url)} is not a URL; in a password, @ is spelled %40 and : %3A"
        ) from None
    if not server.database:
        raise ConfigError(
            f"queue = {_hidden(url)} names no database; for example {_scheme(url)}://host/pinq"
        )
    return server


def _hidden(url: str) -> str:
    url = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    return repr(re.sub(r"(?i)(passw(?:or)?d=)[^&]*", r"\1***", url))


def _redis(url: str, clock: Callable[[], int] | None) -> Queue:
    try:
        from pinq.queue.redis.queue import open_redis
    except ImportError as error:
        raise ConfigError(f"queue = {_hidden(url)}: pip install 'pinq[redis]' ({error})") from None
    return open_redis(url, clock=clock)


_QUERY = re.compile(r"\w+=[^/&]*(&\w+=[^/&]*)*\Z")


def _parse(url: str) -> URL:
    _, _, rest = url.partition("://")
    # Not by SQLAlchemy's make_url: a path is taken as it stands, whatever is in it.
    path, query = rest.removeprefix("/"), ""
    head, mark, tail = path.rpartition("?")
    if mark and _QUERY.match(tail):
        path, query = head, tail
    if not path or path == ":memory:":
        raise ConfigError(f"queue = {url!r} names no file; for example sqlite:///.pinq/queue.db")
    return URL.create("sqlite", database=path, query=dict(parse_qsl(query, keep_blank_values=True)))


def _path(parsed: URL) -> Path:
    return Path(parsed.database or "")


def _open(parsed: URL, path: Path, clock: Callable[[], int] | None) -> SqliteDatabase:
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
    return SqliteDatabase(parsed, clock)


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


def _prepare(database: Database) -> None:
    with database.read() as transaction:  # without the write lock, where all is well
        found = migrate.revision_of(transaction)
    if found == REVISION:
        return
    if not isinstance(database, SqliteDatabase):
        has = "holds no queue yet" if found is None else f"has schema revision {found!r}"
        raise SchemaMismatch(
            f"{database.name} {has}, and this pinq needs {REVISION!r}: run `pinq db upgrade`"
        )
    with database.write() as transaction:
        migrate.upgrade(transaction)
