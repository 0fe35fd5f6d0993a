"""What the peers' programs have in common: how they are called, and what they print.

``python -m benchmarks.peers.NAME MODE URL …`` runs in the peers' own environment:

* ``set-up URL``: tables, where the peer needs any.
* ``throughput URL JOBS``: enqueue so many, then run and acknowledge them all; prints how long
  each took, as JSON.
* ``worker URL``: run jobs for ever; when each begins goes to the file ``$PEER_STARTS``.
* ``send URL COUNT IDLE_COUNT IDLE_SECONDS``: enqueue one job at a time, at random moments, each
  once the one before has begun; then others after an idle time each. Prints when, as JSON.

Only the standard library here: pinq itself is not installed in that environment.
"""

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

_FIRST_JOBS = 64
_WARM_UP = 5
_PATIENCE_SECONDS = 60.0
Item = TypeVar("Item")


class Contestant(Protocol):
    """A peer at work on the queue of one URL."""

    def set_up(self) -> None:
        """Make its tables, if it needs any."""

    def enqueue(self, keys: Sequence[str]) -> None:
        """Enqueue a no-op job a key, the quickest documented way."""

    def drain(self, count: int) -> float:
        """Run and acknowledge what is enqueued: the seconds from a ready worker to the last."""

    def send(self, key: str) -> None:
        """Enqueue one job that tells when it :func:`began`."""

    def work(self) -> None:
        """Run jobs until killed."""


def keys(count: int) -> list[str]:
    """Signatures of made-up images."""
    return [
        hashlib.blake2b(index.to_bytes(8, "big"), digest_size=16).hexdigest()
        for index in range(count)
    ]


def batches(items: Iterable[Item], size: int) -> Iterable[list[Item]]:
    """Lists of ``size`` items, the last one shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def began(key: str) -> None:
    """Called by a job as its first deed."""
    now = time.time_ns()
    os.write(_starts(), f"{key} {now}\n".encode())


@cache
def _starts() -> int:
    return os.open(os.environ["PEER_STARTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def main(make: Callable[[str], Contestant], package: str) -> None:
    """Do what the command line says."""
    mode, url, *numbers = sys.argv[1:]
    contestant = make(url)
    told: object = None
    if mode == "set-up":
        contestant.set_up()
    elif mode == "throughput":
        told = {"version": version(package), **_throughput(contestant, int(numbers[0]))}
    elif mode == "worker":
        contestant.work()
    elif mode == "send":
        told = _send(contestant, int(numbers[0]), int(numbers[1]), float(numbers[2]))
    if told is not None:
        print(json.dumps(told), flush=True)


def _throughput(contestant: Contestant, jobs: int) -> dict[str, float]:
    wanted = keys(_FIRST_JOBS + jobs)
    first, wanted = wanted[:_FIRST_JOBS], wanted[_FIRST_JOBS:]
    # Connections, statements and modules are there once everything has been done once.
    contestant.enqueue(first)
    contestant.drain(len(first))
    start = time.perf_counter()
    contestant.enqueue(wanted)
    enqueue = time.perf_counter() - start
    work = contestant.drain(jobs)
    return {
        "jobs": jobs,
        "enqueue_seconds": enqueue,
        "work_seconds": work,
        "seconds": enqueue + work,
        "jobs_per_second": jobs / (enqueue + work),
    }


def _send(
    contestant: Contestant, count: int, idle_count: int, idle_seconds: float
) -> dict[str, list[dict[str, str | int]]]:
    dice = random.Random(1)
    wanted = iter(keys(_WARM_UP + count + idle_count))

    def series(count: int, pause_seconds: float) -> list[dict[str, str | int]]:
        sent: list[dict[str, str | int]] = []
        for key in islice(wanted, count):
            # Not in step with any polling.
            time.sleep(pause_seconds + dice.uniform(0.05, 0.25))
            before = _size()
            called = time.time_ns()
            contestant.send(key)
            sent.append({"key": key, "called": called, "returned": time.time_ns()})
            _await_another(before)
        return sent

    series(_WARM_UP, 0.0)
    return {"idle": series(count, 0.0), "after_idle": series(idle_count, idle_seconds)}


def _await_another(before: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _size() == before:
        if time.monotonic() > deadline:
            raise TimeoutError("the worker does not begin the job")
        time.sleep(0.002)


def _size() -> int:
    path = Path(os.environ["PEER_STARTS"])
    return path.stat().st_size if path.exists() else 0
