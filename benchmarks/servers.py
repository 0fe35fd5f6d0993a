"""The servers that queues are measured on: all that can be started here, as people run them.

PostgreSQL and MariaDB sync every commit. Redis logs to disk and syncs once a second, which is
what those who keep jobs in it run.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.processes import scratch
from tests.servers import Kind, MariadbServer, PostgresServer, RedisServer, Server, missing


@contextmanager
def servers(say: Callable[[str], None]) -> Iterator[Mapping[Kind, Server]]:
    """Start them; those that are not installed are left out, and named."""
    running: dict[Kind, Server] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        start: dict[Kind, Callable[[Path], Server]] = {
            "postgres": PostgresServer,
            "mariadb": MariadbServer,
            "redis": partial(RedisServer, appendfsync="everysec"),
        }
        for kind, server in start.items():
            if (reason := missing(kind)) is not None:
                say(f"left out: {reason}")
                continue
            running[kind] = stack.enter_context(server(folder / kind))
        synced = ", ".join(f"{kind} ({_synced(kind)})" for kind in running)
        say(f"servers: {synced or 'none'}")
        yield running


def _synced(kind: Kind) -> str:
    return "log synced once a second" if kind == "redis" else "every commit synced"
