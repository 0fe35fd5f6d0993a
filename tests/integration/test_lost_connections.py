"""Connections that a server closed, or that a signal interrupted, are not used again."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from sqlalchemy import create_engine, make_url, text

from pinq.errors import QueueUnavailable
from pinq.queue import database
from pinq.queue.contract import Queue
from pinq.queue.model import NewJob
from pinq.queue.urls import open_queue, upgrade

from ..servers import fresh_database

Q = "pins"
_OTHERS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE application_name = 'pinq'"
    " AND datname = current_database()",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = DATABASE()"
    " AND id <> CONNECTION_ID()",
}
_CLOSE = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}"}
_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}


@pytest.fixture(params=["postgres_server", "mariadb_server"])
def url(request: pytest.FixtureRequest) -> str:
    made = fresh_database(request.getfixturevalue(request.param))
    upgrade(made)
    return made


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    queue = open_queue(url)
    queue.declare(Q, source="/pinq/pins")
    yield queue
    queue.close()


@pytest.fixture
def close_all(url: str) -> Iterator[Callable[[], int]]:
    """Has the server close the queue's connections; how many there were."""
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    engine = create_engine(parsed.set(drivername=_DRIVERS[backend]), isolation_level="AUTOCOMMIT")

    def close() -> int:
        with engine.connect() as connection:
            others = connection.execute(text(_OTHERS[backend])).scalars().all()
            for each in others:
                connection.execute(text(_CLOSE[backend].format(each)))
            deadline = time.monotonic() + 30
            while connection.execute(text(_OTHERS[backend])).first() is not None:
                assert time.monotonic() < deadline
        return len(others)

    yield close
    engine.dispose()


def test_a_connection_that_was_closed_while_idle_is_noticed(
    queue: Queue, close_all: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_IDLE_SECONDS", 0.0)
    queue.enqueue(Q, [NewJob("a")])
    assert close_all() == 1
    queue.enqueue(Q, [NewJob("b")])
    assert set(queue.lookup(Q, ["a", "b"])) == {"a", "b"}


def test_who_lost_one_connection_looks_at_the_others_first(
    queue: Queue, close_all: Callable[[], int]
) -> None:
    together = threading.Barrier(3)

    def enqueue(key: str) -> None:
        with queue._database.read():  # type: ignore[attr-defined]
            together.wait()  # so that each has a connection of its own
        queue.enqueue(Q, [NewJob(key)])

    threads = [threading.Thread(target=enqueue, args=(key,)) for key in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert close_all() == 3
    with pytest.raises(QueueUnavailable):
        queue.enqueue(Q, [NewJob("d")])
    for key in "efg":
        queue.enqueue(Q, [NewJob(key)])
    assert len(queue.lookup(Q, list("abcefg"))) == 6


def test_an_interrupted_call_leaves_no_half_read_connection(url: str, queue: Queue) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise Interrupted

    parsed = make_url(url)
    engine = create_engine(parsed.set(drivername=_DRIVERS[parsed.get_backend_name()]))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT * FROM pinq_queues FOR UPDATE"))
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupted):
                queue.enqueue(Q, [NewJob("waits for the queue's row")])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        engine.dispose()
    for key in "abc":
        queue.enqueue(Q, [NewJob(key)])
    assert queue.count(Q).pending == 3
