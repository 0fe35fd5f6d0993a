"""What is Redis's own: its restarts, its keys, its wake-ups, and how its troubles are told."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from pinq.errors import ConfigError, FailureClass, InvalidInput, QueueUnavailable, StorageFull
from pinq.queue.model import (
    Checkpoint,
    Controls,
    Dead,
    Event,
    Failure,
    Filter,
    NewJob,
    Retry,
    Snooze,
    State,
    Succeeded,
)
from pinq.queue.redis.queue import RedisQueue, open_redis

from ..conftest import MakeDisk, need
from ..servers import RedisServer, fresh_database

Q = "pins"
GONE = Failure(FailureClass.FETCH_GONE, "no such file")


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return fresh_database(redis_server)


@pytest.fixture
def queue(url: str) -> Iterator[RedisQueue]:
    queue = open_redis(url)
    yield queue
    queue.close()


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may kill and set; every write is synced."""
    need("redis")
    with RedisServer(tmp_path / "redis") as server:
        yield server


def add(queue: RedisQueue, count: int, start: int = 0) -> None:
    queue.enqueue(Q, [NewJob(f"k{n}", f"file:///{n}.jpg") for n in range(start, start + count)])


# --- restarts -------------------------------------------------------------------


def test_after_a_restart_nothing_is_lost_and_verbs_simply_work(own_server: RedisServer) -> None:
    queue = open_redis(own_server.url)
    add(queue, 10)
    held = queue.lease(Q, 3, 60, "w")
    assert held
    own_server.kill()
    with pytest.raises(QueueUnavailable, match=str(own_server.port)):
        queue.count(Q)
    own_server.start()
    done = queue.finish(held.token, [Succeeded(job.id) for job in held.jobs])
    assert done.succeeded == 3
    assert (queue.count(Q).pending, queue.count(Q).succeeded) == (7, 3)
    queue.close()


def test_a_waiter_hears_again_after_a_restart(own_server: RedisServer) -> None:
    queue, other = open_redis(own_server.url), open_redis(own_server.url)
    seen = queue.wait(queue.wait(0, 0), 10)
    own_server.kill()
    own_server.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        seen = queue.wait(seen, 0.2)
        with redis.Redis(port=own_server.port) as client:
            if client.pubsub_numsub("pinq:bell:0")[0][1]:
                break
    seen = queue.wait(0, 0)
    add(other, 1)
    assert queue.wait(seen, 20) != seen
    for each in (queue, other):
        each.close()


def test_a_crash_keeps_a_job_and_its_event_together(own_server: RedisServer) -> None:
    queue = open_redis(own_server.url)
    add(queue, 3000)
    reported: set[str] = set()

    def work() -> None:
        try:
            while held := queue.lease(Q, 7, 60, "w"):
                queue.finish(
                    held.token,
                    [Succeeded(job.id, Event("done", "/x", job.key, {})) for job in held.jobs],
                )
                reported.update(job.key for job in held.jobs)
        except QueueUnavailable:
            return

    worker = threading.Thread(target=work)
    worker.start()
    while len(reported) < 100:
        time.sleep(0.001)
    own_server.kill()
    worker.join()
    own_server.start()
    succeeded = {job.key for job in queue.scan(Filter(Q, states=[State.SUCCEEDED]))}
    announced = [event.subject for event in queue.unpublished(10_000)]
    assert sorted(announced) == sorted(succeeded)
    assert reported <= succeeded
    queue.close()


def test_scripts_that_the_server_forgot_are_loaded_again(
    queue: RedisQueue, client: redis.Redis
) -> None:
    add(queue, 1)
    client.script_flush()
    assert queue.lease(Q, 1, 60, "w") is not None


# --- keys -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [Q, "a{b}c", "}x", "ünïcode", "a:b", "%"])
def test_all_keys_of_a_queue_are_in_one_slot(
    queue: RedisQueue, client: redis.Redis, name: str
) -> None:
    queue.declare(name, source="/x", signals=["pdq@1"])
    queue.enqueue(name, [NewJob(f"k{n}", priority=n, body=b"b", status="s") for n in range(1, 10)])
    held = queue.lease(name, 6, 60, "w")
    assert held
    jobs = held.jobs
    queue.finish(held.token, [Succeeded(jobs[0].id), Dead(jobs[1].id, GONE)])
    queue.release(held.token, [jobs[2].id])
    queue.control(name, Controls(rate=1))
    keys = {key for key in client.scan_iter("pinq:*") if b"{" in key}
    assert len(keys) > 15
    assert len({key_slot(key) for key in keys}) == 1
    assert queue.queues() == [name]


def test_a_queue_that_was_dropped_leaves_nothing_once_its_events_are_published(
    queue: RedisQueue, client: redis.Redis
) -> None:
    add(queue, 20)
    held = queue.lease(Q, 10, 60, "w")
    assert held
    queue.finish(held.token, [Dead(held.jobs[0].id, GONE)])
    queue.drop(Q, force=True)
    (event,) = queue.unpublished(10)
    assert queue.queues() == []
    queue.mark_published([event.position])
    assert client.keys("*") == []
    add(queue, 1)
    assert queue.queues() == [Q]


def test_queues_of_different_prefixes_do_not_see_each_other(url: str, queue: RedisQueue) -> None:
    add(queue, 1)
    other = open_redis(f"{url}?prefix=other")
    assert other.queues() == []
    other.close()


# --- waking up ------------------------------------------------------------------

_ENQUEUE = """
import sys, time
from pinq.queue.model import NewJob
from pinq.queue.redis.queue import open_redis
queue = open_redis(sys.argv[1])
queue.declare("pins", source="/x")
for line in sys.stdin:
    queue.enqueue("pins", [NewJob(line.strip())])
    print(time.monotonic_ns(), flush=True)
"""


def test_a_waiter_wakes_soon_after_another_process_enqueued(url: str, queue: RedisQueue) -> None:
    delays = []
    with subprocess.Popen(
        [sys.executable, "-c", _ENQUEUE, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin and other.stdout
        for number in range(11):
            seen = queue.wait(0, 0)
            while queue.wait(seen, 0.05) != seen:
                seen = queue.wait(0, 0)
            other.stdin.write(f"k{number}\n")
            other.stdin.flush()
            assert queue.wait(seen, 20) != seen
            woken = time.monotonic_ns()
            delays.append((woken - int(other.stdout.readline())) / 1e6)
        other.stdin.close()
    # 5 ms is the goal, which benchmarks measure; polling would be far above this.
    assert sorted(delays)[5] < 50


def test_closing_wakes_whoever_waits(queue: RedisQueue) -> None:
    seen = queue.wait(queue.wait(0, 0), 10)
    waiting = threading.Thread(target=queue.wait, args=(seen, 60))
    waiting.start()
    began = time.monotonic()
    queue.close()
    waiting.join(10)
    assert not waiting.is_alive() and time.monotonic() - began < 5


# --- troubles -------------------------------------------------------------------


def test_nobody_there_is_told_with_the_address() -> None:
    with pytest.raises(QueueUnavailable, match=r"127\.0\.0\.1:1/0.*is Redis running"):
        open_redis("redis://127.0.0.1:1/0")


def test_a_wrong_password_is_a_wrong_setting(own_server: RedisServer) -> None:
    with redis.Redis(port=own_server.port) as client:
        client.config_set("requirepass", "secret")
    for wrong in ("", ":wrong@"):
        with pytest.raises(ConfigError, match="password") as caught:
            open_redis(f"redis://{wrong}127.0.0.1:{own_server.port}")
        assert "wrong@" not in str(caught.value)
    open_redis(f"redis://:secret@127.0.0.1:{own_server.port}").close()


def test_a_database_that_is_not_there_is_a_wrong_setting(own_server: RedisServer) -> None:
    with pytest.raises(ConfigError, match="too large"):
        open_redis(f"redis://127.0.0.1:{own_server.port}/99")


def test_when_memory_is_short_nothing_comes_in_and_what_is_there_is_worked_off(
    own_server: RedisServer,
) -> None:
    queue = open_redis(own_server.url)
    add(queue, 10)
    held = queue.lease(Q, 4, 60, "w")
    assert held
    one, two, three, four = held.jobs
    with redis.Redis(port=own_server.port) as client:
        client.config_set("maxmemory", "1mb")
        with pytest.raises(StorageFull, match="maxmemory"):
            add(queue, 5, start=10)
        with pytest.raises(StorageFull, match="maxmemory"):
            queue.checkpoint(held.token, [Checkpoint(one.id, body=b"half")])
        assert queue.count(Q).pending == 6
        verdicts = [
            Retry(one.id, GONE, 0, body=b"half", status="later"),
            Dead(two.id, GONE),
            Snooze(three.id, 0),
            Succeeded(four.id, Event("done", "/x", four.key, {}), "done"),
        ]
        for verdict in verdicts:
            assert queue.finish(held.token, [verdict]).refused == []
        assert queue.lease(Q, 1, 60, "w") is not None
        assert queue.delete(Filter(Q, states=[State.DEAD])) == 1
        client.config_set("maxmemory", 0)
    assert len(queue.unpublished(10)) == 2
    queue.close()


def test_a_full_disk_is_full_storage_until_there_is_space(make_disk: MakeDisk) -> None:
    need("redis")
    disk = make_disk(8)
    with RedisServer(disk / "redis", appendfsync="everysec") as server:
        queue = open_redis(server.url)
        filler = disk / "filler"
        with pytest.raises(StorageFull, match="disk"), filler.open("wb") as file:
            for start in range(0, 100_000, 100):
                add(queue, 100, start)
                try:
                    file.write(bytes(200_000))
                    file.flush()
                except OSError:
                    time.sleep(0.05)
        filler.unlink(missing_ok=True)
        deadline = time.monotonic() + 20
        while True:
            try:
                queue.enqueue(Q, [NewJob("after")])
                break
            except StorageFull:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        queue.close()


def test_a_replica_cannot_be_written(own_server: RedisServer) -> None:
    queue = open_redis(own_server.url)
    with redis.Redis(port=own_server.port) as client:
        client.replicaof("127.0.0.1", "1")
    with pytest.raises(QueueUnavailable, match="primary"):
        add(queue, 1)
    queue.close()


def test_a_server_that_does_not_answer_is_given_up(own_server: RedisServer) -> None:
    queue = open_redis(f"{own_server.url}?timeout_seconds=0.2")
    with redis.Redis(port=own_server.port) as client:
        client.client_pause(1000)
    with pytest.raises(QueueUnavailable, match="timeout_seconds"):
        add(queue, 1)
    queue.close()


def test_settings_that_lose_jobs_are_warned_of_once(
    own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis(port=own_server.port) as client:
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            open_redis(own_server.url).close()
    warned = [record.getMessage().split()[0] for record in caplog.records]
    assert warned == ["queue.no_append_only_file", "queue.evicts"]


def test_a_connection_to_an_sql_database_is_refused(queue: RedisQueue) -> None:
    with pytest.raises(InvalidInput, match="SQL"):
        queue.enqueue(Q, [NewJob("a")], connection=object())  # type: ignore[arg-type]


# --- patterns and texts ---------------------------------------------------------------


def test_a_question_mark_is_one_character_of_a_uri_however_many_bytes(queue: RedisQueue) -> None:
    uris = {"two": "a\u00e9b", "four": "a\U0001f4ccb", "none": "ab", "twice": "a\u00e9\u00e9b"}
    queue.enqueue(Q, [NewJob(key, uri) for key, uri in uris.items()])
    assert [job.key for job in queue.scan(Filter(Q, uri="a?b"))] == ["two", "four"]
    assert [job.key for job in queue.scan(Filter(Q, uri="*\u00e9?"))] == ["two", "twice"]


def test_a_message_may_hold_what_no_encoding_knows(queue: RedisQueue) -> None:
    add(queue, 1)
    held = queue.lease(Q, 1, 60, "w")
    assert held
    message = 'no such file: \udcff\x00 "quoted"\n'
    queue.finish(held.token, [Dead(held.jobs[0].id, Failure(FailureClass.FETCH_GONE, message))])
    (job,) = queue.scan(Filter(Q))
    assert job.errors[0].message == message
    (event,) = queue.unpublished(1)
    assert json.loads(event.data)["reason"]["message"] == message


# --- how much at once -------------------------------------------------------------


def test_a_pattern_that_would_backtrack_is_answered_at_once(queue: RedisQueue) -> None:
    queue.enqueue(Q, [NewJob("a", "a" * 5000)])
    began = time.monotonic()
    assert list(queue.scan(Filter(Q, uri="*a" * 40 + "*b"))) == []
    assert time.monotonic() - began < 1
