"""What the queue asks of an SQL database, and how its statements are spelled for each.

A statement is written once, with named parameters (``:now``) and a few words that stand
for what databases spell differently:

=====================  ===================================================================
``= EACH :ids``        one of a list of numbers: one parameter a batch
``= EACH TEXT :keys``  the same of strings
``BY INDEX name``      says which index to read, where the planner must be told
``LOCKED``             at a SELECT's end: lock its rows, waiting for whoever holds them
``UNLOCKED``           lock those rows that nobody else holds, and leave out the others
``KEPT``               lock them against being deleted
``NOW``                the time of the database's clock, in milliseconds
``?``                  a parameter by place, for many rows
=====================  ===================================================================
"""

import functools
import json
import random
import re
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeAlias, TypeVar

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    CursorResult,
    Engine,
    String,
    Table,
    bindparam,
    event,
    exc,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from pinq.errors import InvalidInput, QueueUnavailable
from pinq.queue import statements
from pinq.queue.bell import Bell
from pinq.queue.model import NewJob

if TYPE_CHECKING:
    Executed = CursorResult[*tuple[Any, ...]]
Row: TypeAlias = tuple[Any, ...]

P = ParamSpec("P")
T = TypeVar("T")

_NO_VALUES: Mapping[str, Any] = MappingProxyType({})
_REDO = 20
_IDLE_SECONDS = 0.5
_LONG_IDLE_SECONDS = 60.0
_REDO_PAUSE_SECONDS = 0.005


class Conflict(QueueUnavailable):
    """Two transactions stood in each other's way; this one was undone and can be redone."""


def redone(verb: Callable[P, T]) -> Callable[P, T]:
    """Have a verb that met a conflict done again: a deadlock has one loser, who did nothing."""

    @functools.wraps(verb)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(_REDO):
            try:
                return verb(*args, **kwargs)
            except Conflict:
                time.sleep(random.uniform(0, _REDO_PAUSE_SECONDS))
        return verb(*args, **kwargs)

    return again


def look_after_idling(
    engine: Engine, socket_of: Callable[[Any], int | None] = lambda _connection: None
) -> None:
    """Have a connection that has been idle looked at before it is used.

    A server that was restarted, or a firewall, has closed it, and whoever uses it next would
    be told that the queue is unavailable. To ask the server costs a message; for a while it is
    enough that nothing has come by the connection's socket, where the driver tells which that
    is. Where one was lost, all others are looked at, too.
    """
    lost_at = 0.0

    @event.listens_for(engine, "invalidate")
    def _on_invalidate(_connection: Any, _record: Any, _error: BaseException | None) -> None:
        nonlocal lost_at
        lost_at = time.monotonic()

    @event.listens_for(engine, "checkin")
    def _on_checkin(_connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _on_checkout(connection: Any, record: Any, _proxy: Any) -> None:
        now = time.monotonic()
        used_at = record.info.get("used_at", now)
        idle = now - used_at
        if idle < _IDLE_SECONDS and used_at > lost_at:
            return
        try:
            if idle > _LONG_IDLE_SECONDS or not _is_silent(socket_of(connection)):
                engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise exc.InvalidatePoolError from error  # all that are as old go too


def _is_silent(socket: int | None) -> bool:
    """Whether nothing is to be read, which a close would be."""
    if socket is None:
        return False
    looking = select.poll()
    looking.register(socket, select.POLLIN)
    return not looking.poll(0)


class Database(ABC):
    """One SQL database: transactions, time, errors, and what has a spelling of its own."""

    name: str
    """For messages; without a password."""
    dialect: str
    one_writer = False
    """Whether writers wait for each other, so that it pays to look before writing."""
    bell: Bell
    words: ClassVar[Mapping[str, str]]
    """Expressions for the words above, and how they are spelled; applied in this order."""

    def __init__(self, engine: Engine, clock: Callable[[], int] | None) -> None:
        self._engine = engine
        self.clock = clock
        self._spelled: dict[str, str] = {}

    # --- transactions -----------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator["Transaction"]:
        """To look only."""
        with self.explained(), self._engine.connect() as connection, connection.begin():
            yield Transaction(connection, self)

    @contextmanager
    def write(self) -> Iterator["Transaction"]:
        """Committed and durable on leaving, or rolled back."""
        with self.explained(), self.connected_to_write() as connection:
            with connection.begin():
                transaction = Transaction(connection, self)
                yield transaction
                if transaction.rings:
                    self.tell(transaction, commits=True)
            if transaction.rings:
                self.bell.ring()

    def connected_to_write(self) -> AbstractContextManager[Connection]:
        """A connection for one transaction."""
        return self._engine.connect()

    @contextmanager
    def joined(self, connection: Connection) -> Iterator["Transaction"]:
        """Inside the caller's own transaction, which the caller ends."""
        if connection.dialect.name != self.dialect:
            raise InvalidInput(
                f"a connection to {connection.dialect.name} cannot join the queue in {self.name}"
            )
        if not connection.in_transaction():
            connection.begin()  # as SQLAlchemy's own verbs do
        with self.explained():
            transaction = Transaction(connection, self)
            yield transaction
            if transaction.rings:
                self.tell(transaction, commits=False)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn SQLAlchemy's errors into pinq's."""
        try:
            yield
        except exc.DBAPIError as error:
            raise self.explain(error.orig, lost=error.connection_invalidated) from error
        except exc.TimeoutError as error:
            raise QueueUnavailable(f"no connection to the queue became free: {error}") from error

    @abstractmethod
    def explain(self, error: BaseException | None, *, lost: bool) -> Exception:
        """The exception that says what happened and what to do.

        Args:
            error: the driver's.
            lost: whether its connection is of no more use.
        """

    def now_ms(self) -> int:
        """The time, outside of any transaction."""
        if self.clock is not None:
            return self.clock()
        with self.read() as transaction:
            return transaction.now_ms()

    def tell(  # noqa: B027 - SQLite need do nothing
        self, transaction: "Transaction", *, commits: bool
    ) -> None:
        """Have other processes told of this transaction's commit.

        Args:
            transaction: has nothing else to do.
            commits: whether it is committed next, so that a message may do both.
        """

    def close(self) -> None:
        """Close connections; safe to call twice."""
        self.bell.close()
        self._engine.dispose()

    @abstractmethod
    def holds(self, transaction: "Transaction", table: str) -> bool:
        """Whether the database has that table."""

    # --- spelling ---------------------------------------------------------------

    def spelled(self, statement: str) -> str:
        """A statement as this database's driver takes it."""
        known = self._spelled.get(statement)
        if known is None:
            known = statement
            for word, spelling in self.words.items():
                known = re.sub(word, spelling, known)
            self._spelled[statement] = known
        return known

    def bound(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """A statement's parameters as this database's driver takes them."""
        return {
            name: self.bound_list(value) if isinstance(value, list) else value
            for name, value in values.items()
        }

    @abstractmethod
    def bound_list(self, values: list[Any]) -> Any:
        """One of a statement's parameters, a list, as this database's driver takes it."""

    @abstractmethod
    def insert_jobs(
        self,
        transaction: "Transaction",
        queue_id: int,
        now_ms: int,
        jobs: Collection[NewJob],
        *,
        forced: bool,
    ) -> Collection[str]:
        """Insert jobs with distinct keys, except those that exist; the keys that are new."""

    @abstractmethod
    def insert_missing(self, transaction: "Transaction", table: Table, **values: Any) -> None:
        """Insert a row unless its name is there."""

    def run_both(
        self, transaction: "Transaction", first: str, second: str, values: Mapping[str, Any]
    ) -> None:
        """Run two statements that change different tables, in one message where that can be."""
        transaction.run(first, values)
        transaction.run(second, values)

    def changed(
        self, transaction: "Transaction", update: str, where: str, values: Mapping[str, Any]
    ) -> Sequence[int]:
        """Update jobs; the ids of those that there were."""
        return transaction.column(f"{update} {where} RETURNING id", values)

    def due(
        self, transaction: "Transaction", queue_id: int, now_ms: int, limit: int
    ) -> Sequence[Row]:
        """The next due jobs, as ``statements.COLUMNS``, locked against other workers."""
        asked = {"queue": queue_id, "now": now_ms, "limit": limit}
        rows: list[Row] = []
        for priority in transaction.column(statements.DUE_PRIORITIES, asked):
            asked["limit"] = limit - len(rows)
            one = statements.DUE_OF.format(priority=priority)
            rows.extend(transaction.rows(one, asked))
            if len(rows) == limit:
                break
        return rows


class Transaction:
    """A connection in a transaction, and what the database knows about it.

    ``execute`` takes SQLAlchemy's expressions. The other verbs take statements as they are
    written in ``statements.py`` and hand them to the driver's own cursor: by way of SQLAlchemy
    a call for a single job would take twice the time.
    """

    __slots__ = ("_cursor", "_driver", "connection", "database", "execute", "rings")

    def __init__(self, connection: Connection, database: Database) -> None:
        self.connection = connection
        self.database = database
        self.execute: Callable[..., Executed] = connection.execute
        self.rings = False
        self._driver = connection.dialect.loaded_dbapi
        self._cursor: Any = connection.connection.cursor()

    def run(self, statement: str, values: Mapping[str, Any] = _NO_VALUES) -> int:
        """Run a statement; how many rows it changed."""
        spelled, bound = self.database.spelled(statement), self.database.bound(values)
        self._call(self._cursor.execute, spelled, bound)
        return int(self._cursor.rowcount)

    def run_many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run a statement with parameters by place, once a row; how many rows it changed."""
        self._call(self._cursor.executemany, self.database.spelled(statement), rows)
        return int(self._cursor.rowcount)

    def rows(self, statement: str, values: Mapping[str, Any] = _NO_VALUES) -> Sequence[Row]:
        """Run a statement; the rows it gives."""
        self.run(statement, values)
        found: Sequence[Row] = self._call(self._cursor.fetchall)
        return found

    def row(self, statement: str, values: Mapping[str, Any] = _NO_VALUES) -> Row | None:
        """Run a statement; the first row it gives."""
        rows = self.rows(statement, values)
        return rows[0] if rows else None

    def column(self, statement: str, values: Mapping[str, Any] = _NO_VALUES) -> list[Any]:
        """Run a statement; the first value of each row."""
        return [row[0] for row in self.rows(statement, values)]

    def value(self, statement: str, values: Mapping[str, Any] = _NO_VALUES) -> Any:
        """Run a statement; the first value of the first row, or none."""
        row = self.row(statement, values)
        return None if row is None else row[0]

    def _call(self, verb: Callable[..., Any], *arguments: Any) -> Any:
        """Have the driver do something; its errors become pinq's."""
        try:
            return verb(*arguments)
        except self._driver.Error as error:
            proxy: Any = self.connection.connection
            lost = self.connection.dialect.is_disconnect(error, proxy, self._cursor)
            if lost:
                self.connection.invalidate(error)
            raise self.database.explain(error, lost=lost) from error
        except BaseException as error:
            if not isinstance(error, Exception):  # interrupted: half an answer may be read
                self.connection.invalidate(error)
            raise

    def now_ms(self) -> int:
        """The time as the database has it now, not when the transaction began."""
        if self.database.clock is not None:
            return self.database.clock()
        return int(self.value("SELECT NOW"))

    def ring(self) -> None:
        """Have those who wait told, once this is committed."""
        self.rings = True


# --- the same words, for SQLAlchemy's expressions ---------------------------------------


class _Each(FunctionElement[bool]):
    inherit_cache = True
    name = "each"


def each(column: ColumnElement[Any], values: Collection[Any]) -> ColumnElement[bool]:
    """Whether the column's value is in a list."""
    listed = list(values)
    return _Each(
        column,
        bindparam(None, json.dumps(listed), String),
        bindparam(None, listed, ARRAY(column.type)),
        bindparam(None, listed, column.type, expanding=True),
    )


@compiles(_Each, "sqlite")
def _each_sqlite(element: _Each, compiler: Any, **kw: Any) -> str:
    column, as_text, _, _ = (clause for clause in element.clauses)
    listed = compiler.process(as_text, **kw)
    return f"{compiler.process(column, **kw)} IN (SELECT value FROM json_each({listed}))"


@compiles(_Each, "postgresql")
def _each_postgresql(element: _Each, compiler: Any, **kw: Any) -> str:
    column, _, as_array, _ = (clause for clause in element.clauses)
    return f"{compiler.process(column, **kw)} = ANY({compiler.process(as_array, **kw)})"


@compiles(_Each, "mysql", "mariadb")
def _each_mysql(element: _Each, compiler: Any, **kw: Any) -> str:
    # Many parameters: MariaDB reads the whole table for an UPDATE with a subquery.
    column, _, _, as_many = (clause for clause in element.clauses)
    return f"{compiler.process(column, **kw)} IN {compiler.process(as_many, **kw)}"


class _Like(FunctionElement[bool]):
    inherit_cache = True
    name = "pattern"


class _LikeBytes(_Like):
    inherit_cache = True
    name = "bytes_pattern"


_TO_LIKE = {"*": "%", "?": "_", "%": "|%", "_": "|_", "|": "||"}


def matches(column: ColumnElement[Any], pattern: str | bytes) -> ColumnElement[bool]:
    """Whether the whole value is as the pattern: ``*`` is anything, ``?`` one character."""
    kind = column.type
    if isinstance(pattern, str):
        like = "".join(_TO_LIKE.get(each, each) for each in pattern)
        glob = pattern.replace("[", "[[]")  # GLOB knows [sets] too, ours does not
        return _Like(column, bindparam(None, glob, kind), bindparam(None, like, kind))
    text = "".join(_TO_LIKE.get(each, each) for each in pattern.decode("latin-1"))
    return _LikeBytes(
        column, bindparam(None, pattern, kind), bindparam(None, text.encode("latin-1"), kind)
    )


@compiles(_Like, "sqlite")
def _like_sqlite(element: _Like, compiler: Any, **kw: Any) -> str:
    column, glob, _ = element.clauses
    column, glob = compiler.process(column, **kw), compiler.process(glob, **kw)
    if isinstance(element, _LikeBytes):  # sqlite.py makes it: GLOB ends at a zero byte
        return f"pinq_bytes_match({glob}, {column})"
    return f"({column} GLOB {glob})"


@compiles(_Like)
def _like(element: _Like, compiler: Any, **kw: Any) -> str:
    column, _, like = element.clauses
    column, like = compiler.process(column, **kw), compiler.process(like, **kw)
    return f"({column} LIKE {like} ESCAPE '|')"
