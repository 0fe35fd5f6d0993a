"""The servers that other tests rely on: they start, survive a crash, and leave nothing behind."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import create_engine, text

from tests.conftest import need
from tests.servers import (
    KEPT_DATABASES,
    Kind,
    MariadbServer,
    PostgresServer,
    RedisServer,
    Server,
    fresh_database,
)

ROOT = Path(__file__).resolve().parents[2]
KINDS: dict[Kind, type[Server]] = {
    "postgres": PostgresServer,
    "mariadb": MariadbServer,
    "redis": RedisServer,
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    need(request.param)
    with KINDS[request.param](tmp_path_factory.mktemp(request.param)) as server:
        yield server


def _write(url: str, word: str) -> None:
    if url.startswith("redis"):
        redis.Redis.from_url(url).set("word", word)
        return
    engine = create_engine(_driven(url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE words (word VARCHAR(20))"))
        connection.execute(text("INSERT INTO words VALUES (:word)"), {"word": word})
    engine.dispose()


def _read(url: str) -> str:
    if url.startswith("redis"):
        return str(redis.Redis.from_url(url, decode_responses=True).get("word"))
    with create_engine(_driven(url)).connect() as connection:
        return str(connection.scalar(text("SELECT word FROM words")))


def _driven(url: str) -> str:
    drivers = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
    scheme, _, rest = url.partition("://")
    return f"{drivers[scheme]}://{rest}"


def test_what_was_committed_survives_a_crash(server: Server) -> None:
    url, before = fresh_database(server), server.pid
    _write(url, "kept")
    server.kill()
    server.start()
    assert _read(url) == "kept"
    assert server.pid != before


def test_what_was_committed_survives_a_stop(server: Server) -> None:
    url = fresh_database(server)
    _write(url, "kept")
    server.stop()
    server.start()
    assert _read(url) == "kept"


def test_a_fresh_database_is_empty_again_and_again(server: Server) -> None:
    urls: list[str] = []
    for number in range(KEPT_DATABASES + 1):
        urls.append(fresh_database(server))
        _write(urls[-1], str(number))
    assert len(set(urls)) == KEPT_DATABASES
    assert _read(urls[-1]) == str(KEPT_DATABASES)
    assert _read(urls[-2]) == str(KEPT_DATABASES - 1)


def test_a_crash_leaves_no_process(server: Server) -> None:
    family = _family(server)
    server.kill()
    try:
        assert not any(_running(pid) for pid in family)
    finally:
        server.start()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_server_does_not_outlive_who_started_it(kind: Kind, tmp_path: Path) -> None:
    need(kind)
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        f"from tests.servers import {KINDS[kind].__name__}\n"
        f"server = {KINDS[kind].__name__}(Path(sys.argv[1]))\n"
        "print(server.pid, server.folder, flush=True)\n"
        "time.sleep(600)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    pid, folder = starter.stdout.readline().split()
    assert _running(int(pid))
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    deadline = time.monotonic() + 20
    while _running(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shutil.rmtree(folder)  # as root, perhaps not in `tmp_path`


def _family(server: Server) -> list[int]:
    """The server's process and those that it started."""
    found = [server.pid]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == server.pid:
            found.append(int(stat.parent.name))
    return found


def _running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
