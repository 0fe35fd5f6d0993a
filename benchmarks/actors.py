"""Ordinary dramatiq actors, one message at a time: sent, run and acknowledged.

An actor that does nothing, dramatiq's default middleware, four threads in one process. The
messages are sent one by one (``send``, each committed when it returns), then a worker is
started and all of them are waited for. Against dramatiq's own Redis broker, on the same Redis
server, which logs to disk and syncs once a second; on SQLite every commit is synced. Each
round is a process of its own; rounds take turns, and the best of each counts.

``python -m benchmarks.actors BROKER URL COUNT`` is one round.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.figures import Figure, Goal
from benchmarks.options import Options
from benchmarks.processes import PYTHON, run, scratch
from pinq.broker import QueueBroker
from tests.servers import RedisServer, fresh_database, missing

_THREADS = 4
_POLL_MS = 10
_PATIENCE_MS = 300_000

_BROKERS: dict[str, Callable[[str], QueueBroker | RedisBroker]] = {
    "pinq": lambda url: QueueBroker(url=url),
    "dramatiq": lambda url: RedisBroker(url=url),  # type: ignore[no-untyped-call]
}


@dataclass(frozen=True, slots=True)
class _Round:
    """Seconds to send all messages, one by one, and to run and acknowledge them."""

    send: float
    work: float

    @property
    def seconds(self) -> float:
        return self.send + self.work


def work_off(broker: QueueBroker | RedisBroker, count: int) -> _Round:
    """Send so many messages, and have them run."""
    actor = dramatiq.actor(broker=broker, actor_name="nothing")(lambda number: None)
    broker.emit_after("process_boot")
    started = time.perf_counter()
    for number in range(count):
        actor.send(number)
    sent = time.perf_counter()
    worker = dramatiq.Worker(broker, worker_threads=_THREADS)
    worker.start()
    broker.join("default", interval=_POLL_MS, timeout=_PATIENCE_MS)
    done = time.perf_counter()
    worker.stop()
    broker.close()
    return _Round(sent - started, done - sent)


def _one_round(broker: str, url: str, count: int) -> _Round:
    said = run([PYTHON, "-m", "benchmarks.actors", broker, url, str(count)])
    return _Round(**json.loads(said.stdout))


def measure(options: Options) -> list[Figure]:
    """All in turn, so often."""
    rounds = 1 if options.quick else options.rounds or 3
    count = 200 if options.quick else 5_000
    done: dict[str, list[_Round]] = {"sqlite": [], "redis": [], "dramatiq": []}
    with scratch() as place:
        server = None
        if (reason := missing("redis")) is None:
            server = RedisServer(place / "redis", appendfsync="everysec")
        else:
            options.say(f"without Redis: {reason}")
        try:
            for number in range(rounds):
                options.say(f"actors: round {number + 1} of {rounds}")
                file = f"sqlite:///{Path(place)}/{number}.db"
                done["sqlite"].append(_one_round("pinq", file, count))
                if server is not None:
                    done["redis"].append(_one_round("pinq", fresh_database(server), count))
                    done["dramatiq"].append(_one_round("dramatiq", fresh_database(server), count))
        finally:
            if server is not None:
                server.kill()
    return [figure for name in ("sqlite", "redis") for figure in _figures(name, done, count)]


def _figures(name: str, done: dict[str, list[_Round]], count: int) -> list[Figure]:
    """One contender's rates: end to end, and each half."""
    if not done[name]:
        return []
    goal = Goal(ratio_at_least=2.0) if name == "redis" else None
    figures = []
    parts: dict[str, Callable[[_Round], float]] = {
        "": lambda r: r.seconds,
        ".send": lambda r: r.send,
        ".work": lambda r: r.work,
    }
    for what, seconds in parts.items():
        against = min((seconds(r) for r in done["dramatiq"]), default=None)
        figures.append(
            Figure(
                f"actors.{name}{what}.jobs_per_second",
                count / min(seconds(r) for r in done[name]),
                "jobs/s",
                None if against is None else count / against,
                "dramatiq with its own Redis broker",
                None if what else goal,
            )
        )
    return figures


if __name__ == "__main__":
    chosen, url, count = sys.argv[1:]
    done = work_off(_BROKERS[chosen](url), int(count))
    print(json.dumps({"send": done.send, "work": done.work}))
