"""PgQueuer on PostgreSQL: bulk enqueue with deduplication by key, its worker woken by LISTEN."""

import asyncio
import time
from collections.abc import Sequence

import asyncpg  # type: ignore[import-not-found]
import uvloop  # type: ignore[import-not-found]
from pgqueuer import PgQueuer, Queries  # type: ignore[import-not-found]
from pgqueuer.db import AsyncpgDriver  # type: ignore[import-not-found]
from pgqueuer.models import Job  # type: ignore[import-not-found]

from benchmarks.peers import work

_BATCH = 256


class PgQueuerPeer:
    """A queue in PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._left = 0
        # Connections belong to the loop that made them, so there is one for all calls.
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._queries = self._runner.run(self._connect())

    def set_up(self) -> None:
        self._runner.run(self._queries.install())

    def enqueue(self, keys: Sequence[str]) -> None:
        async def enqueue() -> None:
            for batch in work.batches(keys, _BATCH):
                await self._queries.enqueue(
                    ["noop"] * len(batch),
                    [key.encode() for key in batch],
                    [0] * len(batch),
                    dedupe_key=batch,
                    on_conflict="skip",
                )

        self._runner.run(enqueue())

    def drain(self, count: int) -> float:
        return self._runner.run(self._drain(count))

    def send(self, key: str) -> None:
        self._runner.run(self._queries.enqueue("began", key.encode(), dedupe_key=key))

    def work(self) -> None:
        async def run() -> None:
            await (await self._worker()).run(batch_size=_BATCH)

        self._runner.run(run())

    async def _connect(self) -> Queries:
        return Queries(AsyncpgDriver(await asyncpg.connect(dsn=self._url)))

    async def _worker(self) -> PgQueuer:
        worker = PgQueuer((await self._connect()).driver)

        async def noop(job: Job) -> None:
            self._left -= 1

        async def began(job: Job) -> None:
            work.began(job.payload.decode())

        worker.entrypoint("noop")(noop)
        worker.entrypoint("began")(began)
        return worker

    async def _drain(self, count: int) -> float:
        self._left = count
        worker = await self._worker()
        start = time.perf_counter()
        running = asyncio.create_task(worker.run(batch_size=_BATCH))
        # Not by its own drain mode, which ends by a time-out after the last job.
        # The size is asked for only at the end: it counts rows.
        while self._left or await self._queries.queue_size():
            await asyncio.sleep(0.005)
        seconds = time.perf_counter() - start
        worker.shutdown.set()
        await running
        return seconds


if __name__ == "__main__":
    work.main(PgQueuerPeer, "pgqueuer")
