"""MySQL 8.0.19 and later, MariaDB 10.6 and later, by PyMySQL: ``SKIP LOCKED``, and a polled
bell, since neither tells anybody of a commit.
"""

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import pymysql
from sqlalchemy import URL, Table, create_engine
from sqlalchemy.dialects.mysql import insert

from pinq.errors import (
    ConfigError,
    InvalidInput,
    QueueError,
    QueueUnavailable,
    SchemaMismatch,
    StorageFull,
)
from pinq.queue import statements
from pinq.queue.bell import Bell
from pinq.queue.database import Conflict, Database, Transaction, look_after_idling
from pinq.queue.model import NewJob

_CONNECT = {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60, "charset": "utf8mb4"}
# A start within 5 ms, in the middle, for a twentieth of a core (the server's share
# with it) while somebody waits.
_POLL_SECONDS = 0.003
_INSERT_ROWS = 500

_COLUMNS = statements.INSERTED + ", lease_id"
_ROW = "(" + ", ".join(["%s"] * len(_COLUMNS.split(","))) + ")"
_RING = "INSERT INTO pinq_bell VALUES (1, 1) ON DUPLICATE KEY UPDATE rings = rings + 1"


class MysqlDatabase(Database):
    """Connections to one MySQL or MariaDB database."""

    words: ClassVar = {
        r"= EACH (?:TEXT )?:(\w+)": r"IN %(\1)s",
        r"\bNOW\b": "CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)",
        r"BY INDEX (\w+)": r"FORCE INDEX (\1_by_state)",
        r"\bLOCKED\b": "FOR UPDATE",
        r"\bUNLOCKED\b": "FOR UPDATE SKIP LOCKED",
        r"\bKEPT\b": "LOCK IN SHARE MODE",
        r":(\w+)": r"%(\1)s",
        r"\?": "%s",
    }

    def __init__(self, url: URL, clock: Callable[[], int] | None = None) -> None:
        self.name = url.set(query={}).render_as_string()
        self.dialect = url.get_backend_name()
        engine = create_engine(
            url.set(drivername=f"{self.dialect}+pymysql"),
            connect_args={
                **_CONNECT,
                "init_command": "SET SESSION innodb_lock_wait_timeout = 10",
            },
            pool_size=8,
            max_overflow=32,
            isolation_level="READ COMMITTED",
        )
        look_after_idling(engine)
        super().__init__(engine, clock)
        self.bell = _PolledBell(self._connect_to_poll)

    def tell(self, transaction: Transaction, *, commits: bool) -> None:
        transaction.run(_RING)

    def holds(self, transaction: Transaction, table: str) -> bool:
        asked = {"table": table}
        found = (
            "SELECT count(*) FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = :table"
        )
        return bool(transaction.value(found, asked))

    def _connect_to_poll(self) -> "pymysql.Connection[Any]":
        arguments, options = self._engine.dialect.create_connect_args(self._engine.url)
        return pymysql.connect(*arguments, **{**_CONNECT, **options}, autocommit=True)

    # --- spelling -----------------------------------------------------------------

    def bound_list(self, values: list[Any]) -> list[Any]:
        """PyMySQL spells lists out, but not an empty one.

        MariaDB reads the whole table for an UPDATE with a subquery instead.
        """
        return values or [None]

    def insert_jobs(
        self,
        transaction: Transaction,
        queue_id: int,
        now_ms: int,
        jobs: Collection[NewJob],
        *,
        forced: bool,
    ) -> Collection[str]:
        # Rows of this call are known by a mark that no lease has: ids are positive.
        mark = -secrets.randbits(62) - 1
        rows = [
            (
                queue_id,
                job.key,
                0,
                job.priority,
                job.run_at_ms or now_ms,
                0,
                job.max_attempts,
                0,
                0,
                int(forced),
                int(job.verify),
                now_ms,
                job.uri,
                job.etag,
                job.body,
                b"",
                job.status,
                mark,
            )
            for job in jobs
        ]
        for start in range(0, len(rows), _INSERT_ROWS):
            some = rows[start : start + _INSERT_ROWS]
            transaction.connection.exec_driver_sql(
                f"INSERT INTO pinq_jobs ({_COLUMNS}) VALUES {', '.join([_ROW] * len(some))}"
                " ON DUPLICATE KEY UPDATE state = state",
                tuple(value for row in some for value in row),
            )
        marked = {"queue": queue_id, "mark": mark, "keys": [job.key for job in jobs]}
        inserted = (
            "SELECT job_key FROM pinq_jobs WHERE queue_id = :queue"
            " AND job_key = EACH TEXT :keys AND lease_id = :mark"
        )
        return transaction.column(inserted, marked)

    def insert_missing(self, transaction: Transaction, table: Table, **values: Any) -> None:
        adding = insert(table).values(**values)
        transaction.execute(adding.on_duplicate_key_update(name=table.c.name))

    def changed(
        self, transaction: Transaction, update: str, where: str, values: Any
    ) -> Sequence[int]:
        ids = transaction.column(f"SELECT id FROM pinq_jobs {where} LOCKED", values)
        if ids:
            transaction.run(f"{update} {where}", values)
        return ids

    # --- errors -------------------------------------------------------------------

    def explain(self, error: BaseException | None, *, lost: bool) -> Exception:
        arguments = getattr(error, "args", ())
        code = arguments[0] if arguments and isinstance(arguments[0], int) else 0
        said = f"{self.name}: {error}"
        if code in (1213, 1205, 1452, 1020):  # deadlock, lock wait, a queue just deleted, changed
            return Conflict(said)
        if code in (1021, 1114, 1026, 3):
            return StorageFull(f"{said}: no space left for the queue; free some and run again")
        if code == 1146:
            return SchemaMismatch(f"{said}: run `pinq db upgrade`")
        if code in (1290, 1792, 1836):
            return QueueUnavailable(f"{said}: the server takes no writes; is it a replica?")
        if code in (1044, 1045, 1049, 1130, 1698):
            return ConfigError(f"{said}: check the queue's URL, user and password")
        if isinstance(error, pymysql.DataError) or code in (1366, 1406, 1264):
            return InvalidInput(said)
        if lost or isinstance(error, pymysql.OperationalError | pymysql.InterfaceError):
            return QueueUnavailable(f"{said}: is the server running? It is tried again by workers")
        return QueueError(said)


class _PolledBell(Bell):
    """Asks, while somebody waits, whether the count of commits has grown."""

    def __init__(self, connect: Callable[[], "pymysql.Connection[Any]"]) -> None:
        super().__init__()
        self._connect = connect

    def listen(self) -> None:
        rings: Any = -1
        with self._connect() as connection, connection.cursor() as cursor:
            while self.wanted():
                cursor.execute("SELECT rings FROM pinq_bell")
                now_rings = cursor.fetchone()
                if now_rings != rings:
                    self.ring()
                    rings = now_rings
                self.pause(_POLL_SECONDS)
