"""PostgreSQL, by psycopg 3: rows locked with ``SKIP LOCKED``, waiters told by ``NOTIFY``."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import psycopg
from sqlalchemy import URL, Table, create_engine, event
from sqlalchemy.dialects.postgresql import insert

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
from pinq.queue.database import Conflict, Database, Row, Transaction, look_after_idling
from pinq.queue.model import NewJob
from pinq.queue.postgresql_arrays import register, typed

# A peer that is gone is noticed within half a minute, whatever the network does.
_CONNECT = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "pinq",
}
_CHANNEL = "pinq"
_HEARTBEAT_SECONDS = 30.0

_INSERT_JOBS = f"""
INSERT INTO pinq_jobs ({statements.INSERTED})
SELECT :queue, job_key, 0, priority, run_at_ms, 0, max_attempts, 0, 0,
       :forced, verify, :now, uri, etag, body, ''::bytea, status
FROM unnest(BINARY :keys::text[], BINARY :priorities::smallint[], BINARY :run_at::bigint[],
            BINARY :attempts::int[], BINARY :verify::smallint[], BINARY :uris::text[],
            BINARY :etags::text[], BINARY :bodies::bytea[], BINARY :notes::text[])
     AS new(job_key, priority, run_at_ms, max_attempts, verify, uri, etag, body, status)
ON CONFLICT (queue_id, job_key) DO NOTHING
RETURNING job_key
"""


class PostgresDatabase(Database):
    """Connections to one PostgreSQL database."""

    dialect = "postgresql"
    words: ClassVar = {
        # Of an array an index is always read; a join with its elements only where the planner
        # guesses right how many there are.
        r"= EACH TEXT (:\w+)": r"= ANY(BINARY \1::text[])",
        r"= EACH (:\w+)": r"= ANY(BINARY \1::bigint[])",
        r"\bNOW\b": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
        r"BY INDEX \w+": "",
        # NO KEY: whoever inserts a row that refers to the locked one need not wait.
        r"\bLOCKED\b": "FOR NO KEY UPDATE",
        r"\bUNLOCKED\b": "FOR NO KEY UPDATE SKIP LOCKED",
        r"\bKEPT\b": "FOR KEY SHARE",
        # Of lists: in text they are spelled element by element, with a regular expression.
        r"BINARY :(\w+)": r"%(\1)b",
        r"(?<![:\w]):(\w+)": r"%(\1)s",
        r"\?": "%s",
    }

    def __init__(self, url: URL, clock: Callable[[], int] | None = None) -> None:
        self.name = url.set(query={}).render_as_string()
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={k: v for k, v in _CONNECT.items() if k not in url.query},
            pool_size=8,
            max_overflow=32,
            isolation_level="READ COMMITTED",
        )
        look_after_idling(engine, psycopg.Connection.fileno)

        @event.listens_for(engine, "connect")
        def _on_connect(connection: Any, _record: Any) -> None:
            register(connection)

        super().__init__(engine, clock)
        # To look needs no transaction, and so two messages less.
        self._looking = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.bell = _NotifiedBell(self._connect_to_listen)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        with self.explained(), self._looking.connect() as connection:
            yield Transaction(connection, self)

    def tell(self, transaction: Transaction, *, commits: bool) -> None:
        # The driver sees that nothing is left to commit.
        transaction.run(f"NOTIFY {_CHANNEL}; COMMIT" if commits else f"NOTIFY {_CHANNEL}")

    def holds(self, transaction: Transaction, table: str) -> bool:
        asked = {"table": table}
        return transaction.value("SELECT to_regclass(:table)", asked) is not None

    def _connect_to_listen(self) -> psycopg.Connection[Any]:
        arguments, options = self._engine.dialect.create_connect_args(self._engine.url)
        return psycopg.connect(*arguments, **{**_CONNECT, **options}, autocommit=True)

    # --- spelling -----------------------------------------------------------------

    def bound(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        # Without parameters a message may hold several statements.
        return super().bound(values) or None

    def bound_list(self, values: list[Any]) -> list[Any]:
        return typed(values)

    def insert_jobs(
        self,
        transaction: Transaction,
        queue_id: int,
        now_ms: int,
        jobs: Collection[NewJob],
        *,
        forced: bool,
    ) -> Collection[str]:
        values = {
            "queue": queue_id,
            "forced": int(forced),
            "now": now_ms,
            "keys": [job.key for job in jobs],
            "priorities": [job.priority for job in jobs],
            "run_at": [job.run_at_ms or now_ms for job in jobs],
            "attempts": [job.max_attempts for job in jobs],
            "verify": [int(job.verify) for job in jobs],
            "uris": [job.uri for job in jobs],
            "etags": [job.etag for job in jobs],
            "bodies": [job.body for job in jobs],
            "notes": [job.status for job in jobs],
        }
        return transaction.column(_INSERT_JOBS, values)

    def run_both(
        self, transaction: Transaction, first: str, second: str, values: Mapping[str, Any]
    ) -> None:
        transaction.run(f"WITH first AS ({first}) {second}", values)

    def due(
        self, transaction: Transaction, queue_id: int, now_ms: int, limit: int
    ) -> Sequence[Row]:
        # In one message; SQLite would copy the rows, and MariaDB locks none of a derived table.
        asked = {"queue": queue_id, "now": now_ms, "limit": limit}
        return transaction.rows(statements.DUE, asked)

    def insert_missing(self, transaction: Transaction, table: Table, **values: Any) -> None:
        transaction.execute(insert(table).values(**values).on_conflict_do_nothing())

    # --- errors -------------------------------------------------------------------

    def explain(self, error: BaseException | None, *, lost: bool) -> Exception:
        code = getattr(error, "sqlstate", None) or ""
        said = f"{self.name}: {str(error).strip()}"
        if code in ("40P01", "40001", "23503"):  # deadlock, serialization, a queue just deleted
            return Conflict(said)
        if code == "53100":
            return StorageFull(f"{said}: no space left for the queue; free some and run again")
        if code == "42P01":
            return SchemaMismatch(f"{said}: run `pinq db upgrade`")
        if code == "25006":
            return QueueUnavailable(f"{said}: the server takes no writes; is it a standby?")
        if code.startswith("28") or code == "3D000" or "authentication failed" in said:
            return ConfigError(f"{said}: check the queue's URL, user and password")
        if code.startswith("22") or isinstance(error, psycopg.DataError):
            return InvalidInput(said)
        gone = lost or code.startswith(("08", "53", "57P"))
        if gone or (not code and isinstance(error, psycopg.OperationalError)):
            return QueueUnavailable(f"{said}: is the server running? It is tried again by workers")
        return QueueError(said)


class _NotifiedBell(Bell):
    """Hears of commits that end with ``NOTIFY``."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        super().__init__()
        self._connect = connect

    def listen(self) -> None:
        with self._connect() as connection:
            connection.add_notify_handler(lambda _: self.ring())  # it came with an answer
            connection.execute(f"LISTEN {_CHANNEL}")
            self.ring()  # what was committed before was not heard
            # By libpq's own verbs: psycopg's take longer than to wake the one who waits.
            libpq = connection.pgconn
            while self.wanted():
                libpq.consume_input()
                while libpq.notifies():
                    self.ring()
                if not self.heard(connection.fileno(), _HEARTBEAT_SECONDS):
                    connection.execute("SELECT 1")  # is it there still?
