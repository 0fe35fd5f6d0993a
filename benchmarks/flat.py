"""What a job costs with many others in the table: 10,000, a million, five million of them.

A job's cost is that of its share in 10,000 that are enqueued, leased and finished in batches
of 256. The others are pending (and due before them, so that leases find those) or finished;
they are copies, made by one SQL statement, of a job that went through the queue, each with a
key of its own. Rounds take turns; the best of each counts.

On SQLite, and on a PostgreSQL of the benchmark's own, every commit synced.
``python -m benchmarks.flat [URL…]`` takes others: ``postgresql://…``, whose user may create
databases (named ``pinq_flat_…``, and dropped at the end), or ``sqlite:///folder``.
"""

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Engine,
    NullPool,
    create_engine,
    func,
    insert,
    literal,
    make_url,
    select,
    text,
)

from benchmarks.figures import Figure, Goal, show
from benchmarks.options import Options
from benchmarks.processes import Broken, scratch
from pinq.queue.contract import Queue
from pinq.queue.model import NewJob, Succeeded
from pinq.queue.tables import jobs
from pinq.queue.urls import open_queue, upgrade
from tests.servers import PostgresServer, missing

BATCH = 256
_QUEUE = "bench"
_STATES = ("pending", "finished")
_FLAT = Goal(ratio_at_most=1.2)
# An hour ago, so that copies of a pending job are due, and are leased first.
_EARLIER_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Table:
    """A database of its own with so many jobs in one state."""

    backend: str
    state: str
    rows: int
    url: str


def measure(options: Options) -> list[Figure]:
    """SQLite; and PostgreSQL, but for a quick trial."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        urls = [f"sqlite:///{folder}/sqlite"]
        if not options.quick and (reason := missing("postgres")) is not None:
            options.say(f"left out: {reason}")
        elif not options.quick:
            server = stack.enter_context(PostgresServer(folder / "postgres"))
            urls.append(server.url)
        return [figure for url in urls for figure in measure_at(url, options)]


def measure_at(url: str, options: Options) -> list[Figure]:
    """One backend."""
    sizes = (100, 1_000) if options.quick else (10_000, 1_000_000, 5_000_000)
    count = 512 if options.quick else 10_000
    rounds = 1 if options.quick else options.rounds or 5
    best: dict[Table, float] = {}
    with _tables(url, sizes) as tables:
        for table in tables:
            start = time.perf_counter()
            _fill(table)
            seconds = time.perf_counter() - start
            options.say(
                f"flat: {table.backend}, {table.rows:,} {table.state}: filled in {seconds:.0f} s"
            )
        for number in range(rounds):
            for table in tables:
                us = _microseconds_per_job(table, number, count)
                best[table] = min(best.get(table, us), us)
                options.say(
                    f"flat: round {number + 1}, {table.backend}, "
                    f"{table.rows:,} {table.state}: {us:.1f} µs a job"
                )
    figures = []
    for table, us in best.items():
        few = next(t for t in tables if t.state == table.state)
        name = f"flat.{table.backend}.{table.state}.{table.rows}"
        if table is few:
            figures.append(Figure(name, us, "µs"))
        else:
            figures.append(Figure(name, us, "µs", best[few], f"{few.rows:,} rows", _FLAT))
    return figures


@contextmanager
def _tables(url: str, sizes: Sequence[int]) -> Iterator[list[Table]]:
    """Empty databases, one a state and size."""
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    wanted = [(state, rows) for state in _STATES for rows in sorted(sizes)]
    names = [f"pinq_flat_{state}_{rows}" for state, rows in wanted]
    with ExitStack() as stack:
        if backend == "sqlite":
            folder = Path(parsed.database or "")
            folder.mkdir(parents=True, exist_ok=True)
            place = stack.enter_context(TemporaryDirectory(dir=folder))
            urls = [f"sqlite:///{place}/{name}.db" for name in names]
        else:
            for name in names:
                drop = f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"
                stack.callback(_execute, url, drop)
                _execute(url, drop, f"CREATE DATABASE {name}")
            urls = [
                parsed.set(database=name).render_as_string(hide_password=False) for name in names
            ]
        yield [
            Table(backend, state, rows, place)
            for (state, rows), place in zip(wanted, urls, strict=True)
        ]


def _fill(table: Table) -> None:
    """One job goes its way; then it is copied."""
    upgrade(table.url)
    with closing(open_queue(table.url)) as queue:
        queue.declare(_QUEUE, source="/pinq/bench")
        queue.enqueue(_QUEUE, _jobs("first", 1))
        if table.state == "finished":
            _work(queue)
    with _engine(table.url).connect() as connection:
        sqlite = connection.dialect.name == "sqlite"
        if sqlite:
            # For this connection only: nothing is measured yet.
            connection.execute(text("PRAGMA synchronous=OFF"))
            connection.execute(text("PRAGMA cache_size=-1000000"))
        number = select(literal(2, BigInteger).label("n")).cte("number", recursive=True)
        number = number.union_all(select(number.c.n + 1).where(number.c.n < table.rows))
        # Spread evenly over all keys, so that a new key falls anywhere among them, and in the
        # order of arrival, which spares sorting them.
        place = number.c.n * (2**32 // table.rows)
        prefix: ColumnElement[str] = func.lpad(func.to_hex(place), 8, "0")
        if sqlite:
            prefix = func.printf("%08x", place)
        values = {
            **{column.name: column for column in jobs.c if column is not jobs.c.id},
            "job_key": prefix + "0" * 24,
            "run_at_ms": jobs.c.run_at_ms - _EARLIER_MS + number.c.n / 100,
        }
        copies = select(*values.values()).select_from(jobs.join(number, literal(True)))
        connection.execute(insert(jobs).from_select(list(values), copies))
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)" if sqlite else "CHECKPOINT"))
        connection.execute(text("ANALYZE" if sqlite else "VACUUM (ANALYZE)"))


def _engine(url: str) -> Engine:
    # VACUUM and CREATE DATABASE refuse to run in a transaction.
    parsed = make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return create_engine(parsed, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def _execute(url: str, *statements: str) -> None:
    with _engine(url).connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


def _microseconds_per_job(table: Table, number: int, count: int) -> float:
    """What one of ``count`` jobs costs, all of them enqueued, then as many leased and finished."""
    with closing(open_queue(table.url)) as queue:
        queue.lookup(_QUEUE, ["connected"])
        batches = [
            _jobs(f"{number}/{start}", min(BATCH, count - start))
            for start in range(0, count, BATCH)
        ]
        start = time.perf_counter()
        for batch in batches:
            queue.enqueue(_QUEUE, batch)
        done = _work(queue, count)
        seconds = time.perf_counter() - start
    if done != count:
        raise Broken(f"{table.backend}: {done} of {count} jobs succeeded")
    return 1e6 * seconds / count


def _work(queue: Queue, count: int = 1) -> int:
    done = 0
    while done < count:
        lease = queue.lease(_QUEUE, min(BATCH, count - done), 60.0, "bench")
        if lease is None:
            break
        done += queue.finish(lease.token, [Succeeded(job.id) for job in lease.jobs]).succeeded
    return done


def _jobs(name: str, count: int) -> list[NewJob]:
    return [
        NewJob(hashlib.blake2b(f"{name}/{n}".encode(), digest_size=16).hexdigest(), f"file:///{n}")
        for n in range(count)
    ]


def main(urls: Sequence[str]) -> None:
    """Measure at those URLs, or as the benchmark does."""
    options = Options()
    figures = [figure for url in urls for figure in measure_at(url, options)]
    figures = figures or measure(options)
    show(figures, "flat", Console(stderr=True))
    for figure in figures:
        print(figure.as_json())


if __name__ == "__main__":
    main(sys.argv[1:])
