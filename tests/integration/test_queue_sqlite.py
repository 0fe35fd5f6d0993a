"""What is SQLite's own: its schema, and how its troubles are told."""

import re
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL

from pinq.errors import (
    ConfigError,
    QueueError,
    QueueUnavailable,
    ReadOnlyHome,
    SchemaMismatch,
    StorageFull,
)
from pinq.queue.migrate import by_revisions, revision_of
from pinq.queue.migrate import upgrade as migrate
from pinq.queue.model import Event, NewJob, Succeeded
from pinq.queue.sqlite import SqliteDatabase, write_ahead
from pinq.queue.tables import REVISION, REVISION_TABLE, metadata
from pinq.queue.urls import current, network_file_system, open_queue, queue_exists, upgrade

from ..conftest import MakeDisk, remount


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/home/queue.db"


@pytest.fixture
def small_disk(make_disk: MakeDisk) -> Path:
    return make_disk(2)


def test_the_revisions_make_the_same_schema_as_the_tables(tmp_path: Path) -> None:
    made = {}
    for name, make in (
        ("revisions", lambda transaction: by_revisions(transaction, None)),
        ("tables", migrate),
    ):
        database = SqliteDatabase(URL.create("sqlite", database=str(tmp_path / name)))
        with database.write() as transaction:
            make(transaction)
        with database.read() as transaction:
            assert revision_of(transaction) == REVISION
            options = {"version_table": REVISION_TABLE, "include_object": _is_for_sqlite}
            context = MigrationContext.configure(transaction.connection, opts=options)
            assert compare_metadata(context, metadata) == []
            made[name] = {
                (kind, name): _normal(sql)
                for kind, name, sql in transaction.rows(
                    f"SELECT type, name, sql FROM sqlite_master WHERE name != '{REVISION_TABLE}'"
                )
            }
        database.close()
    assert made["revisions"] == made["tables"]
    assert any("WHERE state = 0" in sql for sql in made["tables"].values())


def _is_for_sqlite(_object: object, name: str | None, *_: object) -> bool:
    return not (name or "").endswith("_by_state")


def _normal(sql: str | None) -> str:
    """The columns and constraints of a table, in whatever order they were written."""
    parts = re.split(r",(?![^(]*\))", re.sub(r"\s+", " ", sql or "").replace("( ", "("))
    return ", ".join(sorted(part.strip(" ()") for part in parts))


def test_an_embedded_database_makes_itself_and_opens_again(url: str) -> None:
    assert not queue_exists(url)
    assert current(url) == (None, REVISION)
    open_queue(url).close()
    assert queue_exists(url)
    assert current(url) == (REVISION, REVISION)
    open_queue(url).close()


def test_many_processes_opening_a_new_database_at_once_all_succeed(url: str) -> None:
    script = f"from pinq.queue.urls import open_queue; open_queue({url!r}).close()"
    started = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
    assert [one.wait(60) for one in started] == [0, 0, 0, 0]


def test_a_queue_that_is_not_there_is_not_made_for_a_reader(url: str) -> None:
    with pytest.raises(QueueUnavailable, match="pinq enqueue"):
        open_queue(url, create=False)
    assert not queue_exists(url)


class BusyCursor:
    """What a cursor says while another process switches the same new file."""

    def __init__(self, times: int) -> None:
        self.times = times

    def execute(self, _statement: str) -> None:
        self.times -= 1
        if self.times >= 0:
            busy = sqlite3.OperationalError("database is locked")
            busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise busy


def test_who_meets_another_making_the_database_tries_again_but_not_for_ever() -> None:
    cursor: Any = BusyCursor(3)
    stubborn: Any = BusyCursor(1_000_000)
    write_ahead(cursor, 10)
    assert cursor.times == -1
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        write_ahead(stubborn, 0)


def test_a_database_of_a_development_version_is_refused_and_left_alone(url: str) -> None:
    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.executescript("CREATE TABLE alembic_version (v); CREATE TABLE job_errors (a)")
    with pytest.raises(SchemaMismatch, match="development version"):
        open_queue(url)
    made = database.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
    assert made == [("alembic_version",), ("job_errors",)]
    database.close()


def test_a_database_newer_than_the_code_is_refused(url: str) -> None:
    upgrade(url)
    database = sqlite3.connect(url.removeprefix("sqlite:///"))
    database.execute("UPDATE pinq_revision SET version_num = '9999'")
    database.commit()
    database.close()
    with pytest.raises(SchemaMismatch, match=r"'9999'.*newer pinq"):
        open_queue(url)


def test_somebody_elses_tables_beside_are_left_alone(url: str) -> None:
    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.executescript("CREATE TABLE jobs (a); CREATE TABLE alembic_version (v)")
    queue = open_queue(url)
    queue.enqueue("q", [NewJob("a", "file:///a")])
    queue.close()
    assert database.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (0,)
    database.close()


def test_a_file_that_is_no_database_is_said_to_be_damaged(url: str) -> None:
    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir()
    path.write_bytes(b"this is no database at all " * 200)
    with pytest.raises(QueueError, match="damaged"):
        open_queue(url)


def test_a_locked_database_says_so_and_nothing_happened(url: str) -> None:
    queue = open_queue(f"{url}?busy_timeout_seconds=0.2")
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(QueueUnavailable, match="lock"):
        queue.enqueue("q", [NewJob("a", "file:///a")])
    other.execute("ROLLBACK")
    other.close()
    assert queue.lookup("q", ["a"]) == {}
    queue.enqueue("q", [NewJob("a", "file:///a")])
    queue.close()


def test_a_full_disk_is_told_and_work_goes_on_once_there_is_space(small_disk: Path) -> None:
    queue = open_queue(f"sqlite:///{small_disk}/queue.db")
    filler = small_disk / "filler"
    enqueued = 0
    queue.enqueue("q", [NewJob("first", "file:///first")])
    lease = queue.lease("q", 1, 60, "w")
    assert lease
    with open(filler, "wb") as file, pytest.raises(OSError):  # noqa: PTH123
        while True:
            file.write(b"\0" * 65536)
            file.flush()
    with pytest.raises(StorageFull, match="no space"):
        for n in range(100_000):
            queue.enqueue("q", [NewJob(f"{n}-{i}", "file:///" + "x" * 400) for i in range(50)])
            enqueued += 50
    big = Event("t", "/s", "first", {"signals": "x" * 300_000})
    with pytest.raises(StorageFull):
        queue.finish(lease.token, [Succeeded(lease.jobs[0].id, big)])
    filler.unlink()
    assert queue.count("q").pending == enqueued
    assert queue.finish(lease.token, [Succeeded(lease.jobs[0].id)]).succeeded == 1
    queue.close()
    check = sqlite3.connect(small_disk / "queue.db")
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()


def test_a_read_only_file_system_is_told(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk}/home/queue.db"
    open_queue(url).close()
    remount(small_disk, "ro")
    with pytest.raises(ReadOnlyHome, match="--home"):
        open_queue(url).enqueue("q", [NewJob("a", "file:///a")])
    with pytest.raises(ReadOnlyHome, match="--home"):
        open_queue(f"sqlite:///{small_disk}/new/queue.db")


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ("oracle://localhost/x", "'oracle' is not supported"),
        ("postgresql://localhost", "names no database"),
        ("mysql://localhost:port/x", "is not a URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("nonsense", "not a URL"),
        ("sqlite:////tmp/x.db?mode=fast", "unknown option 'mode'"),
        ("sqlite:////tmp/x.db?synchronous=off", "synchronous"),
    ],
)
def test_a_url_that_is_none_is_refused(bad: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        open_queue(bad)


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ConfigError, match="--home"):
        open_queue(f"sqlite:///{tmp_path}/home/queue.db")


def test_every_commit_is_synced_unless_the_url_says_otherwise(url: str) -> None:
    queue = open_queue(url)
    with queue._database.read() as transaction:  # type: ignore[attr-defined]
        assert transaction.value("PRAGMA synchronous") == 2
        assert transaction.value("PRAGMA journal_mode") == "wal"
    queue.close()
    queue = open_queue(f"{url}?synchronous=normal")
    with queue._database.read() as transaction:  # type: ignore[attr-defined]
        assert transaction.value("PRAGMA synchronous") == 1
    queue.close()


def test_waiting_costs_under_a_hundredth_of_a_core(url: str) -> None:
    # In a process of its own: this one has other things to do.
    script = (
        "import sys, time\n"
        "from pinq.queue.urls import open_queue\n"
        "queue = open_queue(sys.argv[1])\n"
        "seen = queue.wait(queue.wait(0, 0), 0.2)\n"
        "before, started = time.process_time(), time.monotonic()\n"
        "queue.wait(seen, 2.0)\n"
        "print(time.process_time() - before, time.monotonic() - started)\n"
        "queue.close()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, url], capture_output=True, text=True, check=True
    )
    used, waited = map(float, ran.stdout.split())
    assert waited >= 1.9
    assert used < 0.02


def test_a_home_on_a_network_file_system_is_noticed(tmp_path: Path) -> None:
    mounts = (
        f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n"
        f"tmpfs {tmp_path}/t tmpfs rw 0 0"
    )
    assert network_file_system(tmp_path / "home", mounts) == "nfs4"
    assert network_file_system(tmp_path / "t" / "home", mounts) is None
    assert network_file_system(Path("/somewhere"), mounts) is None
    assert network_file_system(Path("/somewhere"), "") is None


def test_closing_wakes_whoever_waits(url: str) -> None:
    queue = open_queue(url)
    waiting = threading.Thread(target=lambda: queue.wait(queue.wait(0, 0), 60))
    waiting.start()
    time.sleep(0.05)
    queue.close()
    waiting.join(10)
    assert not waiting.is_alive()
