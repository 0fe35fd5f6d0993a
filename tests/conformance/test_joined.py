"""Enqueuing inside the caller's own transaction."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, event, text

from pinq.errors import InvalidInput
from pinq.queue.contract import Queue
from pinq.queue.model import NewJob, Outcome

from .conftest import Open, Q

on_sql = pytest.mark.parametrize("queue_url", ["sqlite", "postgresql", "mariadb"], indirect=True)

_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}


@pytest.fixture
def upstream(queue_url: str) -> Iterator[Engine]:
    """The caller's own engine, on the queue's database, with a table of the caller's."""
    scheme, rest = queue_url.split("://")
    engine = create_engine(f"{_DRIVERS.get(scheme, scheme)}://{rest}")
    if scheme == "sqlite":

        @event.listens_for(engine, "connect")
        def _on_connect(connection, _record):  # type: ignore[no-untyped-def]
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def _on_begin(connection):  # type: ignore[no-untyped-def]
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    yield engine
    engine.dispose()


@pytest.fixture
def uploads(queue: Queue, upstream: Engine) -> Engine:
    with upstream.begin() as connection:
        connection.execute(text("CREATE TABLE uploads (name VARCHAR(40))"))
    return upstream


def count(uploads: Engine) -> int:
    with uploads.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM uploads")).scalar_one()


@on_sql
def test_the_insert_and_its_job_are_committed_together(
    queue: Queue, uploads: Engine, open_again: Open
) -> None:
    with uploads.begin() as connection:
        connection.execute(text("INSERT INTO uploads VALUES ('a')"))
        answers = queue.enqueue(Q, [NewJob("a", body=b"\x00\xff")], connection=connection)
        assert [answer.outcome for answer in answers] == [Outcome.ENQUEUED]
    found = open_again().lease(Q, 1, 60, "w")
    assert found and found.jobs[0].body == b"\x00\xff"
    assert count(uploads) == 1


@on_sql
def test_a_caller_who_commits_as_he_goes_need_not_have_begun(queue: Queue, uploads: Engine) -> None:
    with uploads.connect() as connection:
        queue.enqueue(Q, [NewJob("a")], connection=connection)
        connection.commit()
        queue.enqueue(Q, [NewJob("b")], connection=connection)
    assert set(queue.lookup(Q, ["a", "b"])) == {"a"}


@on_sql
def test_when_the_caller_rolls_back_there_is_no_job(queue: Queue, uploads: Engine) -> None:
    with pytest.raises(RuntimeError, match="upstream"), uploads.begin() as connection:
        connection.execute(text("INSERT INTO uploads VALUES ('a')"))
        queue.enqueue(Q, [NewJob("a")], connection=connection)
        raise RuntimeError("upstream changed its mind")
    assert queue.lookup(Q, ["a"]) == {}
    assert count(uploads) == 0
    assert queue.enqueue(Q, [NewJob("a")])[0].outcome is Outcome.ENQUEUED


@on_sql
def test_nobody_sees_the_job_before_the_commit(queue: Queue, uploads: Engine) -> None:
    with uploads.begin() as connection:
        queue.enqueue(Q, [NewJob("a")], connection=connection)
        assert queue.lookup(Q, ["a"]) == {}
        again = queue.enqueue(Q, [NewJob("a")], connection=connection)
        assert again[0].outcome is Outcome.DUPLICATE
    assert "a" in queue.lookup(Q, ["a"])


@pytest.mark.parametrize("queue_url", ["postgresql", "mariadb"], indirect=True)
def test_a_connection_to_another_kind_of_database_is_refused(queue: Queue) -> None:
    with create_engine("sqlite://").connect() as connection, pytest.raises(InvalidInput):
        queue.enqueue(Q, [NewJob("a")], connection=connection)
    assert queue.lookup(Q, ["a"]) == {}
