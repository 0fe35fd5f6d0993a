"""Upkeep by several at once, on every backend."""

import os
import random
import time
from collections import defaultdict
from dataclasses import replace
from itertools import count
from types import MappingProxyType

import pytest

from pinq import config
from pinq.config import PeriodicSettings, PipelineSettings, RetentionSettings, Settings
from pinq.queue.contract import Queue
from pinq.queue.model import NewJob, Succeeded
from pinq.upkeep import Upkeep

from ..conftest import FakeClock
from .conftest import Open, Q

HOUR_MS = 3_600_000
DAY = 86_400.0


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    default = config.load(home=tmp_path_factory.mktemp("home"))
    entries = {
        "image": PeriodicSettings(cron="*/10 * * * *", uri="https://host/{tick}", pipeline=Q),
        "message": PeriodicSettings(cron="*/10 * * * *", actor="dump", queue="tasks"),
    }
    return replace(
        default,
        pipelines=MappingProxyType({Q: PipelineSettings()}),
        periodic=MappingProxyType(entries),
    )


def test_each_tick_is_fired_once_whoever_dies(
    open_again: Open, clock: FakeClock, settings: Settings
) -> None:
    """Three at a time for an hour, in which jobs that have ended are deleted as soon as may be.

    Now and then one dies, and another comes.
    """
    seed = int(os.environ.get("PINQ_SEED", "1"))
    print(f"PINQ_SEED={seed}")
    chance = random.Random(seed)
    settings = replace(settings, retention=RetentionSettings(succeeded_hours=0, dead_hours=0))
    queue, *theirs = (open_again() for _ in range(4))
    clock.ms -= clock.ms % HOUR_MS
    start_ms, end_ms = clock.ms, clock.ms + HOUR_MS - 1
    enqueued_at_ms: dict[str, list[int]] = defaultdict(list)

    def upkeep_in(place: int, number: int) -> Upkeep:
        return Upkeep(
            theirs[place], settings, holder=f"u{number}", monotonic=lambda: clock.ms / 1000
        )

    def work() -> None:
        for name in (Q, "tasks"):
            while held := queue.lease(name, 10, 60, "w"):
                for job in held.jobs:
                    enqueued_at_ms[job.key].append(job.enqueued_at_ms)
                queue.finish(held.token, [Succeeded(job.id) for job in held.jobs])

    upkeeps = [upkeep_in(place, place) for place in range(3)]
    looks_at_ms = [clock.ms + chance.randrange(5000) for _ in range(3)]
    for number in count(3):
        place = min(range(3), key=looks_at_ms.__getitem__)
        clock.ms = max(clock.ms, looks_at_ms[place])
        if clock.ms > end_ms:
            break
        looks_at_ms[place] = clock.ms + round(upkeeps[place].step() * 1000)
        if chance.random() < 0.05:
            upkeeps[place] = upkeep_in(place, number)  # a role of the old one's runs out
        if chance.random() < 0.1:
            work()
    work()
    ticks_ms = {
        f"{name}-{time.strftime('%Y%m%dT%H%M', time.gmtime(tick_ms / 1000))}": tick_ms
        for tick_ms in range(start_ms, end_ms, 600_000)
        for name in settings.periodic
    }
    assert enqueued_at_ms.keys() == ticks_ms.keys()
    for key, tick_ms in ticks_ms.items():
        (at_ms,) = enqueued_at_ms[key]
        assert tick_ms <= at_ms < tick_ms + 60_000
    assert sum(1 for _ in queue.scan()) < len(ticks_ms), "the old ones are deleted"


def test_leases_go_on_while_thousands_of_old_jobs_are_deleted(
    queue: Queue, open_again: Open, clock: FakeClock, settings: Settings
) -> None:
    old = 2000
    queue.enqueue(Q, [NewJob(f"old{number}") for number in range(old)])
    while held := queue.lease(Q, 500, 60, "w"):
        queue.finish(held.token, [Succeeded(job.id) for job in held.jobs])
    clock.advance(2 * DAY)
    queue.enqueue(Q, [NewJob(f"new{number}") for number in range(50)])
    upkeep = Upkeep(open_again(), replace(settings, periodic={}), holder="u")
    waits = []
    upkeep.start()
    try:
        while queue.count(Q).succeeded:
            began = time.monotonic()
            lease = queue.lease(Q, 10, 60, "w")
            waits.append(time.monotonic() - began)
            assert lease
            queue.release(lease.token)
    finally:
        upkeep.stop()
    assert queue.count(Q).pending == 50
    assert len(waits) >= old / 250 / 2, "one for every other batch, at the least"
    assert max(waits) < 2.0
