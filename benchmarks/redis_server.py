"""A Redis of the benchmarks' own: in a scratch folder, on a free port, ended by its id."""

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from benchmarks.processes import Background, Broken, started

PROGRAM = shutil.which("redis-server")


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A server that runs; its CPU time is known once it has ended."""

    url: str
    client: redis.Redis
    process: Background


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """Start one that logs what it is told (``appendonly``, synced once a second)."""
    if PROGRAM is None:
        raise Broken("redis-server is not installed; on Debian and Ubuntu: apt install redis")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PROGRAM, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    command += ["--appendonly", "yes", "--save", ""]
    with started(command, log=folder / "redis.log", cwd=folder, env=dict(os.environ)) as process:
        client = redis.Redis(host="127.0.0.1", port=port)
        deadline = time.monotonic() + 10
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if not process.running() or time.monotonic() > deadline:
                    raise Broken(f"redis-server did not start:\n{process.told()}") from None
                time.sleep(0.02)
        try:
            yield RedisServer(f"redis://127.0.0.1:{port}", client, process)
        finally:
            client.close()
