"""procrastinate on PostgreSQL: bulk defer, its worker woken by LISTEN.

Jobs carry the key, but no queueing lock: a lock a job is not to be had in bulk.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found]

from benchmarks.peers import work

_BATCH = 256
_CONCURRENCY = 16


class Procrastinate:
    """A queue in PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._app = App(connector=PsycopgConnector(conninfo=url, max_size=_CONCURRENCY + 2))
        self._noop = self._app.task(name="noop", queue="bench")(_noop)
        self._began = self._app.task(name="began", queue="bench")(_began)
        # Connections belong to the loop that made them, so there is one for all calls.
        self._runner = asyncio.Runner()
        self._runner.run(self._open())

    def set_up(self) -> None:
        self._runner.run(self._app.schema_manager.apply_schema_async())

    def enqueue(self, keys: Sequence[str]) -> None:
        async def enqueue() -> None:
            for batch in work.batches(keys, _BATCH):
                await self._noop.batch_defer_async(*({"key": key} for key in batch))

        self._runner.run(enqueue())

    def drain(self, count: int) -> float:
        start = time.perf_counter()
        self._runner.run(self._worker(wait=False))
        return time.perf_counter() - start

    def send(self, key: str) -> None:
        self._runner.run(self._began.defer_async(key=key))

    def work(self) -> None:
        self._runner.run(self._worker(wait=True))

    async def _open(self) -> None:
        await self._app.open_async()

    async def _worker(self, **options: Any) -> None:
        await self._app.run_worker_async(
            queues=["bench"], concurrency=_CONCURRENCY, install_signal_handlers=False, **options
        )


async def _noop(key: str) -> None:
    """A job."""


async def _began(key: str) -> None:
    work.began(key)


if __name__ == "__main__":
    work.main(Procrastinate, "procrastinate")
