"""What the queue runs reads by index, at a million pending and a million finished jobs.

The statements are caught on their way to the driver, so that they are those that it runs.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    String,
    case,
    cast,
    column,
    create_engine,
    event,
    insert,
    literal,
    make_url,
    select,
    text,
)

from pinq.errors import FailureClass
from pinq.queue.contract import Queue
from pinq.queue.database import Transaction
from pinq.queue.model import (
    Answer,
    Checkpoint,
    Dead,
    Failure,
    Filter,
    Lease,
    NewJob,
    Retry,
    Snooze,
    Succeeded,
)
from pinq.queue.tables import PENDING, SUCCEEDED, jobs, queues
from pinq.queue.urls import open_queue, upgrade

from ..servers import fresh_database

Q = "pins"
# Of each kind; a full scan of much fewer would be as bad, and is as good a test.
ROWS = int(os.environ.get("PINQ_PLAN_ROWS", "1_000_000"))
# Rows, blocks or steps that no verb needs as many of; a scan takes far more.
ENOUGH = 5_000
BUSY = Failure(FailureClass.FETCH_TRANSIENT, "the peer is busy")

_NUMBERS = {
    "sqlite": "WITH RECURSIVE numbers AS (SELECT 0 AS n UNION ALL SELECT n + 1 FROM numbers"
    f" WHERE n < {2 * ROWS - 1}) SELECT n FROM numbers",
    "postgresql": f"SELECT generate_series(0, {2 * ROWS - 1}) AS n",
    "mysql": f"SELECT seq AS n FROM seq_0_to_{2 * ROWS - 1}",
}

Statement = tuple[str, Any]


@dataclass
class Big:
    """A queue with very many jobs, and what its verbs ran there."""

    engine: Engine
    ran: dict[str, list[Statement]] = field(default_factory=dict)


_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_SERVERS = {"postgresql": "postgres_server", "mariadb": "mariadb_server"}


@pytest.fixture(scope="module", params=["sqlite", *_SERVERS])
def big(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Big]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('big')}/queue.db?synchronous=normal"
    else:
        url = fresh_database(request.getfixturevalue(_SERVERS[request.param]))
        upgrade(url)
    parsed = make_url(url)
    driver = _DRIVERS[parsed.drivername]
    engine = create_engine(parsed.set(drivername=driver).difference_update_query(["synchronous"]))
    found = Big(engine)
    with closing(open_queue(url)) as queue:
        queue.declare(Q, source="/pinq/pins")
        with engine.begin() as connection:
            fill(connection, queue.now_ms())
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if parsed.drivername != "sqlite":  # nobody has analyzed an embedded one
                table = "TABLE" if parsed.drivername == "mysql" else ""
                connection.exec_driver_sql(f"ANALYZE {table} {jobs.name}")
        run_verbs(queue, found.ran)
    yield found
    engine.dispose()


def fill(connection: Connection, now: int) -> None:
    """Insert the jobs, by the database itself; the indexes come after, which is quicker."""
    for index in jobs.indexes:
        index.drop(connection)
    queue = connection.execute(select(queues.c.id).where(queues.c.name == Q)).scalar_one()
    number = text(_NUMBERS[connection.dialect.name]).columns(column("n", BigInteger)).subquery().c.n
    # The finished ones came first; all are in the order of every index, which is quick.
    ended, nth = number < ROWS, number % ROWS
    values = {
        "queue_id": literal(queue),
        "job_key": cast(number + 1_000_000, String(128)),
        "state": case((ended, SUCCEEDED), else_=PENDING),
        "priority": 1 + nth // (ROWS // 9 + 1),
        "run_at_ms": literal(now - ROWS, BigInteger) + nth,
        "attempts": case((ended, 1), else_=0),
        "max_attempts": literal(5),
        **dict.fromkeys(("suspect", "generation", "forced", "verify"), literal(0)),
        "enqueued_at_ms": literal(now, BigInteger),
        "finished_at_ms": case((ended, literal(now - 200 * ROWS, BigInteger) + 200 * nth)),
        **dict.fromkeys(("uri", "etag", "status"), literal("")),
        **dict.fromkeys(("body", "progress"), literal(b"")),
    }
    connection.execute(insert(jobs).from_select([*values], select(*values.values())))
    for index in jobs.indexes:
        index.create(connection)


@contextmanager
def caught() -> Iterator[list[Statement]]:
    """What is run on the jobs meanwhile, each with its parameters."""
    statements: list[Statement] = []

    def note(statement: str, parameters: Any) -> None:
        if jobs.name in statement and not statement.lstrip().startswith("INSERT"):
            statements.append((statement, parameters))

    def note_expression(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        note(statement, parameters[0] if many else parameters)

    make = Transaction.__init__

    def make_noting(transaction: Transaction, *args: Any) -> None:
        make(transaction, *args)
        transaction._cursor = NotingCursor(transaction._cursor, note)

    event.listen(Engine, "before_cursor_execute", note_expression)
    try:
        with patch.object(Transaction, "__init__", make_noting):
            yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note_expression)


class NotingCursor:
    """A driver's cursor, and somebody who is told what it runs."""

    def __init__(self, cursor: Any, note: Callable[[str, Any], None]) -> None:
        self.cursor = cursor
        self.note = note

    def execute(self, statement: str, parameters: Any) -> None:
        self.note(statement, parameters)
        self.cursor.execute(statement, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cursor, name)


def run_verbs(queue: Queue, ran: dict[str, list[Statement]]) -> None:
    """Each verb once, on what is there, and what it ran."""
    key = str(1_000_000 + ROWS + ROWS // 2)
    given: list[Lease] = []

    def lease(limit: int = 64, worker: str = "w") -> None:
        found = queue.lease(Q, limit, 600, worker)
        assert found and len(found.jobs) <= limit
        given.append(found)

    def exchange() -> None:
        told = Answer(given[0].token, [Succeeded(job.id) for job in given[0].jobs])
        exchanged = queue.exchange([Q, "another"], 64, 600, "w", answers=[told])
        assert exchanged.finished[0].succeeded == 64
        given[0] = exchanged.leases[0]

    def finish() -> None:
        a, b, c, d, *_ = (job.id for job in given[0].jobs)
        verdicts = [Succeeded(a, status="x"), Retry(b, BUSY, 1), Snooze(c, 1), Dead(d, BUSY)]
        assert not queue.finish(given[0].token, verdicts).refused

    def checkpoint() -> None:
        *_, last, snoozed = (job.id for job in given[0].jobs)
        told = [Checkpoint(last, b"x"), Checkpoint(snoozed, run_at_ms=1)]
        assert not queue.checkpoint(given[0].token, told, seconds=9)

    verbs: dict[str, Callable[[], object]] = {
        "next_due_ms": lambda: queue.next_due_ms(Q),
        "unfinished": lambda: queue.unfinished([Q]),
        "unfinished now": lambda: queue.unfinished([Q], scheduled=False),
        "enqueue": lambda: queue.enqueue(Q, [NewJob(name) for name in (key, "new", "newer")]),
        "lease": lease,
        "exchange": exchange,
        "finish": finish,
        "checkpoint": checkpoint,
        "release": lambda: queue.release(given[0].token),
        "lose a lease": lambda: lease(8, "dies"),
        "take it back": lambda: queue.expire("dies") and lease(64, "next"),
        "lookup": lambda: queue.lookup(Q, [key, "1000000"]),
        "cancel by key": lambda: queue.cancel(Filter(Q, [key])),
        "prune": lambda: queue.prune(succeeded_seconds=ROWS / 10, dead_seconds=ROWS),
        "prune nothing": lambda: queue.prune(succeeded_seconds=ROWS, dead_seconds=ROWS),
    }
    assert [*verbs] == VERBS
    for verb, run in verbs.items():
        with caught() as statements:
            run()
        assert statements, f"{verb} ran nothing"
        ran[verb] = statements
    queue.release(given[-1].token)  # no lease is left that would answer `unfinished`


VERBS = [
    "next_due_ms",
    "unfinished",
    "unfinished now",
    "enqueue",
    "lease",
    "exchange",
    "finish",
    "checkpoint",
    "release",
    "lose a lease",
    "take it back",
    "lookup",
    "cancel by key",
    "prune",
    "prune nothing",
]


# --- plans ------------------------------------------------------------------------


@dataclass
class Step:
    """One step of a plan, as far as it reads the jobs."""

    what: str
    index: str | None
    scans: bool
    sorts: bool = False


def plan(connection: Connection, statement: Statement) -> list[Step]:
    """How the database would run a statement."""
    sql, parameters = statement
    return {"sqlite": _sqlite, "postgresql": _postgresql, "mysql": _mariadb}[
        connection.dialect.name
    ](connection, sql.strip(), parameters)


def _sqlite(connection: Connection, sql: str, parameters: Any) -> list[Step]:
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)
    return [
        Step(
            detail,
            detail.partition("INDEX ")[2].partition(" ")[0] or None,
            scans=detail.startswith("SCAN") and jobs.name in detail,
            sorts="TEMP B-TREE" in detail,
        )
        for *_, detail in rows
        if jobs.name in detail or "TEMP B-TREE" in detail
    ]


def _postgresql(connection: Connection, sql: str, parameters: Any) -> list[Step]:
    row = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", parameters).scalar_one()
    (explained,) = row if isinstance(row, list) else json.loads(row)
    nodes = list(_nodes(explained["Plan"]))
    return [
        Step(
            f"{node['Node Type']} {node.get('Relation Name', '')}",
            node.get("Index Name"),
            scans=node["Node Type"] == "Seq Scan" and node["Relation Name"] == jobs.name,
            sorts="Sort" in node["Node Type"],
        )
        for node in nodes
    ]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def _mariadb(connection: Connection, sql: str, parameters: Any) -> list[Step]:
    rows = connection.exec_driver_sql(f"EXPLAIN {sql}", parameters).mappings()
    return [
        Step(
            str(dict(row)),
            row["key"],
            scans=row["type"] in ("ALL", "index"),
            sorts="filesort" in (row["Extra"] or ""),
        )
        for row in rows
        if row["table"] == jobs.name
    ]


# --- work -------------------------------------------------------------------------


def work(connection: Connection, statement: Statement) -> int:
    """How many rows, or blocks of them, or steps of a program, a statement takes; undone."""
    sql, parameters = statement
    name = connection.dialect.name
    try:
        if name == "sqlite":
            return _sqlite_steps(connection, sql, parameters)
        if name == "postgresql":
            explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql.strip()}"
            row = connection.exec_driver_sql(explain, parameters).scalar_one()
            (explained,) = row if isinstance(row, list) else json.loads(row)
            return sum(explained["Plan"][f"Shared {how} Blocks"] for how in ("Hit", "Read"))
        connection.exec_driver_sql("FLUSH STATUS")
        connection.exec_driver_sql(sql, parameters)
        return sum(
            int(count)
            for _, count in connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'")
        )
    finally:
        connection.rollback()


def _sqlite_steps(connection: Connection, sql: str, parameters: Any) -> int:
    driver: Any = connection.connection.driver_connection
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 100

    driver.set_progress_handler(count, 100)
    try:
        connection.exec_driver_sql(sql, parameters)
    finally:
        driver.set_progress_handler(None, 0)
    return steps


def scanning(connection: Connection, statements: Sequence[Statement]) -> list[str]:
    """The statements that read all jobs."""
    return [
        f"{step.what}\n    in {sql.strip()}"
        for sql, parameters in statements
        for step in plan(connection, (sql, parameters))
        if step.scans
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_reads_no_jobs_but_those_that_it_needs(big: Big, verb: str) -> None:
    with big.engine.connect() as connection:
        assert scanning(connection, big.ran[verb]) == []
        for statement in big.ran[verb]:
            assert work(connection, statement) < ENOUGH, statement[0]


@pytest.mark.parametrize("verb", ["lease", "exchange", "take it back"])
def test_the_next_jobs_are_read_in_the_order_of_their_index(big: Big, verb: str) -> None:
    with big.engine.connect() as connection:
        steps = [step for statement in big.ran[verb] for step in plan(connection, statement)]
    assert any((step.index or "").startswith("pinq_jobs_pending") for step in steps)
    assert not any(step.sorts for step in steps), "no sorting of the backlog"


def test_the_guard_notices_a_scan(big: Big) -> None:
    scan = (f"SELECT count(*) FROM {jobs.name} WHERE uri = 'x'", ())
    with big.engine.connect() as connection:
        assert scanning(connection, [scan])
        assert work(connection, scan) > ENOUGH
