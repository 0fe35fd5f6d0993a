"""A queue on each backend, for the one script that all must pass."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinq.queue.contract import Queue
from pinq.queue.urls import open_queue, upgrade

from ..conftest import FakeClock
from ..servers import fresh_database

Open = Callable[[], Queue]
Q = "pins"

# The fixture that starts each backend's server.
_SERVERS = {
    "postgresql": "postgres_server",
    "mariadb": "mariadb_server",
    "redis": "redis_server",
}


@pytest.fixture(params=["sqlite", *_SERVERS])
def queue_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty queue database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queue.db"
    url: str = fresh_database(request.getfixturevalue(_SERVERS[request.param]))
    upgrade(url)
    return url


@pytest.fixture
def open_again(queue_url: str, clock: FakeClock) -> Iterator[Open]:
    """Opens the same queue, as another process would."""
    opened: list[Queue] = []

    def open_one() -> Queue:
        opened.append(open_queue(queue_url, clock=clock))
        return opened[-1]

    yield open_one
    for queue in opened:
        queue.close()


@pytest.fixture
def queue(open_again: Open) -> Queue:
    queue = open_again()
    queue.declare(Q, source="/pinq/pins", signals=["pdq@1"])
    return queue
