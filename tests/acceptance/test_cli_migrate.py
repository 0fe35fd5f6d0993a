"""``pinq migrate``: from the embedded queue to a server, as a person does it."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.conftest import PHOTOS, Pinq
from tests.servers import PostgresServer, RedisServer, fresh_database

HERE = "sqlite:///.pinq/queue.db"


@pytest.fixture
def photos(tmp_path: Path) -> int:
    (tmp_path / "photos").mkdir()
    some = sorted(PHOTOS.glob("*.jpg"))[:4]
    for photo in some:
        shutil.copy(photo, tmp_path / "photos")
    return len(some)


def test_a_queue_moves_to_a_server_and_its_work_goes_on_there(
    pinq: Pinq, photos: int, tmp_path: Path, redis_server: RedisServer
) -> None:
    there = fresh_database(redis_server)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no picture")
    assert pinq("run", "photos").code == 1
    (tmp_path / "more").mkdir()
    shutil.copy(sorted(PHOTOS.glob("*.jpg"))[5], tmp_path / "more")
    assert pinq("enqueue", "more").code == 0
    assert pinq("queues", "limit", "default", "--in-flight", "7").code == 0
    before = pinq("queues", "ls", "--json").records
    jobs = pinq("jobs", "ls", "--json").records

    moved = pinq("migrate", HERE, there)
    assert moved.code == 0, moved.err
    first, origin, target = moved.out.splitlines()
    assert first.startswith(f"1 queues, {photos + 2} jobs, 0 leases and 0 unpublished events moved")
    assert origin.startswith("From     sqlite:////") and "paused and draining" in origin
    assert target == f'To       {there}: set it as "queue" in pinq.toml, then start the workers'

    ended = pinq("enqueue", "more")
    assert (ended.code, "is draining" in ended.err) == (3, True)
    (tmp_path / "pinq.toml").write_text(f'queue = "{there}"\n')
    assert pinq("queues", "ls", "--json").records == before
    assert pinq("jobs", "ls", "--json").records == jobs
    assert pinq("worker", "--until-empty").code == 0
    (shown,) = pinq("queues", "ls", "--json").records
    assert (shown["succeeded"], shown["pending"], shown["in_flight"]) == (photos + 1, 0, 7)

    # Called again it has nothing to do, and says so.
    (again,) = pinq("migrate", HERE, there, "--json").records
    assert (again["resumed"], again["interrupted"]) == (True, False)
    (still,) = pinq("queues", "ls", "--json").records
    assert still == shown
    undone = pinq("migrate", HERE, there, "--undo")
    assert (undone.code, "was moved to" in undone.err) == (3, True)


def test_an_interrupted_move_is_resumed_or_given_up(
    pinq: Pinq,
    photos: int,
    tmp_path: Path,
    environment: dict[str, str],
    program: str,
    redis_server: RedisServer,
) -> None:
    there = fresh_database(redis_server)
    assert pinq("enqueue", "photos").code == 0
    words = ("migrate", HERE, there, "--batch", "1")

    def interrupted() -> int:
        armed = environment | {"PINQ_FAILPOINTS": "move_after_jobs=stop@2"}
        with subprocess.Popen(
            [program, *words], cwd=tmp_path, env=armed, stderr=subprocess.DEVNULL
        ) as process:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGCONT)
            return process.wait(60)

    assert interrupted() == 130
    assert pinq("queues", "ls", "--json").records[0]["paused"]
    assert pinq(*words, "--undo").out.startswith("Given up: sqlite:////")
    assert not pinq("queues", "ls", "--json").records[0]["paused"]
    assert interrupted() == 130
    (moved,) = pinq(*words, "--json").records
    assert (moved["jobs"], moved["resumed"], moved["interrupted"]) == (photos, True, False)


def test_what_cannot_be_moved_is_told_without_passwords(
    pinq: Pinq, photos: int, postgres_server: PostgresServer
) -> None:
    assert pinq("enqueue", "photos").code == 0
    for words, code, told in (
        ((HERE, HERE), 2, "FROM and TO are the same database"),
        (("sqlite:///none.db", HERE), 3, "no queue is here yet"),
        ((HERE, "redis://:s3cret@127.0.0.1:1"), 3, "is Redis running"),
        ((HERE, "mongo://me:s3cret@host/db"), 2, "is not supported"),
        ((HERE, "postgresql://me:s3cret@127.0.0.1:1/db"), 3, "is the server running"),
        ((HERE, fresh_database(postgres_server)), 3, "run `pinq db upgrade`"),
        ((HERE,), 2, "Missing argument 'TO'"),
    ):
        ended = pinq("migrate", *words)
        assert (ended.code, ended.out) == (code, "")
        assert told in ended.err
        assert "s3cret" not in ended.err
    (shown,) = pinq("queues", "ls", "--json").records
    assert not shown["paused"]
