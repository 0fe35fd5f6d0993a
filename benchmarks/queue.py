"""The queue alone: enqueue, lease and finish in batches of 256, every commit synced.

Against :mod:`benchmarks.bare_queue`. Both make their jobs from the same list of keys, in the
same process, on new files on the same disk; rounds take turns, and the best round of each
counts. Verbs are timed apart as well.

Then beside other people's queues (:mod:`benchmarks.peers`), pinq on every backend, each with
processes of its own: no-op jobs keyed by a signature, through enqueue, run and acknowledgement.
Those that share a server come one after the other, and the median round of each counts.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bare_queue import BareQueue
from benchmarks.figures import Figure, Goal
from benchmarks.options import Options
from benchmarks.peers import PINQ, Peer, PeerResult, run_peers
from benchmarks.processes import Broken, scratch
from benchmarks.servers import servers
from pinq.outbox.events import computed_event
from pinq.queue.model import NewJob, Succeeded
from pinq.queue.urls import open_queue

BATCH = 256
# Of pinq on a backend, against the best of these peers.
_AGAINST: dict[str, tuple[Sequence[str], Goal]] = {
    "pinq_sqlite": (
        ("pgqueuer", "procrastinate", "dramatiq", "rq", "huey", "litequeue"),
        Goal(ratio_at_least=4),
    ),
    "pinq_postgresql": (("pgqueuer",), Goal(ratio_at_least=2)),
    "pinq_redis": (("dramatiq",), Goal(ratio_at_least=10)),
}
_SIGNALS = {"color": 1, "pdq": 1, "quality": 1}

Item = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Round:
    """Seconds that each verb took over all batches."""

    enqueue: float
    lease: float
    finish: float

    @property
    def seconds(self) -> float:
        return self.enqueue + self.lease + self.finish


def _items(count: int) -> list[Item]:
    """Key, URI and etag of made-up images."""
    return [
        (
            hashlib.blake2b(index.to_bytes(8, "big"), digest_size=16).hexdigest(),
            f"file:///srv/photographs/{index % 1000:03d}/{index:08d}.jpg",
            f"{index}-1700000000000000000",
        )
        for index in range(count)
    ]


def _batches(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def pinq_round(path: Path, items: Sequence[Item], with_events: bool) -> _Round:
    """All jobs through pinq's queue."""
    now = time.perf_counter
    enqueue = lease = finish = 0.0
    with closing(open_queue(f"sqlite:///{path}")) as queue:
        queue.declare("bench", source="/pinq/bench")
        for batch in _batches(items):
            start = now()
            jobs = [NewJob(key, uri, verify=True, etag=etag) for key, uri, etag in batch]
            queue.enqueue("bench", jobs)
            enqueue += now() - start
        ended = 0
        while True:
            start = now()
            leased = queue.lease("bench", BATCH, 60.0, "bench")
            lease += now() - start
            if leased is None:
                break
            start = now()
            if with_events:
                verdicts = [
                    Succeeded(
                        job.id,
                        computed_event(
                            source="/pinq/bench",
                            signature=job.key,
                            pipeline="bench",
                            attempt=job.attempt,
                            signals=_SIGNALS,
                            uri=job.uri,
                        ),
                    )
                    for job in leased.jobs
                ]
            else:
                verdicts = [Succeeded(job.id) for job in leased.jobs]
            ended += queue.finish(leased.token, verdicts).succeeded
            finish += now() - start
    if ended != len(items):
        raise Broken(f"pinq's queue ended {ended} of {len(items)} jobs")
    return _Round(enqueue, lease, finish)


def bare_round(path: Path, items: Sequence[Item], with_events: bool) -> _Round:
    """All jobs through the bare loop."""
    now = time.perf_counter
    enqueue = lease = finish = 0.0
    with closing(BareQueue(path)) as queue:
        for batch in _batches(items):
            start = now()
            queue.enqueue(batch)
            enqueue += now() - start
        ended = 0
        while True:
            start = now()
            token, rows = queue.lease(BATCH)
            lease += now() - start
            if not rows:
                break
            start = now()
            events = [
                (
                    row[1],
                    {"pipeline": "bench", "attempt": row[4], "signals": _SIGNALS, "uri": row[2]},
                )
                for row in (rows if with_events else ())
            ]
            ended += queue.finish(token, [row[0] for row in rows], events)
            finish += now() - start
    if ended != len(items):
        raise Broken(f"the bare loop ended {ended} of {len(items)} jobs")
    return _Round(enqueue, lease, finish)


def measure(options: Options) -> list[Figure]:
    """Without events, and with one a job."""
    items = _items(2_000 if options.quick else 51_200)
    rounds = 1 if options.quick else options.rounds or 5
    figures = []
    for with_events in (False, True):
        done = _in_turn({"pinq": pinq_round, "bare": bare_round}, items, with_events, rounds)
        pinq, bare = (min(done[name], key=lambda r: r.seconds) for name in ("pinq", "bare"))
        what = "queue.with_events" if with_events else "queue"
        goal = None if with_events else Goal(ratio_at_least=0.7)
        count = len(items)
        figures.append(
            Figure(
                f"{what}.jobs_per_second",
                count / pinq.seconds,
                "jobs/s",
                count / bare.seconds,
                "bare sqlite3 loop",
                goal,
            )
        )
        figures += [
            Figure(
                f"{what}.{verb}.jobs_per_second",
                count / getattr(pinq, verb),
                "jobs/s",
                count / getattr(bare, verb),
                "bare sqlite3 loop",
            )
            for verb in ("enqueue", "lease", "finish")
        ]
        options.say(f"{what}: {count / pinq.seconds:,.0f} jobs/s, bare {count / bare.seconds:,.0f}")
    if options.peers:
        figures += _beside_peers(len(items), options)
    return figures


def _beside_peers(count: int, options: Options) -> Iterator[Figure]:
    rounds = 1 if options.quick else options.rounds or 5
    with servers(options.say) as running:
        results = run_peers(running, count, rounds, say=options.say)
    of_peers: dict[Peer, list[PeerResult]] = {}
    for result in results:
        of_peers.setdefault(result.peer, []).append(result)
    middle = {
        peer: sorted(done, key=lambda each: each.jobs_per_second)[len(done) // 2]
        for peer, done in of_peers.items()
    }
    options.say("\n".join(_table(middle)))
    by_slug = {peer.slug: (peer, result.jobs_per_second) for peer, result in middle.items()}
    for slug, (peer, rate) in by_slug.items():
        if peer.is_pinq:
            names, goal = _AGAINST.get(slug, ((), None))
            others = [by_slug[name] for name in names if name in by_slug]
        else:
            others, goal = [by_slug[own] for own in (_own(peer),) if own in by_slug], None
        other, baseline = max(others, key=lambda each: each[1], default=(None, None))
        yield Figure(
            f"queue.systems.{slug}.jobs_per_second",
            rate,
            "jobs/s",
            baseline,
            f"{other.name} on {other.backend}" if other else "",
            goal if other else None,
        )


def _own(peer: Peer) -> str:
    """pinq's own name on the same backend."""
    return next((own.slug for own in PINQ if own.kind == peer.kind), "")


def _table(middle: Mapping[Peer, PeerResult]) -> Iterator[str]:
    """All systems side by side, the quickest first."""
    rates = {peer.slug: result.jobs_per_second for peer, result in middle.items()}
    line = "{:<24}{:<12}{:>10}{:>10}{:>10}{:>8}{:>20}"
    yield line.format(
        "system", "on", "enqueue/s", "work/s", "jobs/s", "jobs", "of pinq on the same"
    )
    for peer, result in sorted(middle.items(), key=lambda pair: -pair[1].jobs_per_second):
        own = rates.get(_own(peer))
        yield line.format(
            f"{peer.name} {result.version}",
            peer.backend,
            f"{result.jobs / result.enqueue_seconds:,.0f}",
            f"{result.jobs / result.work_seconds:,.0f}",
            f"{result.jobs_per_second:,.0f}",
            result.jobs,
            f"{result.jobs_per_second / own:.3f}" if own else "",
        )


def _in_turn(
    contenders: dict[str, Callable[[Path, Sequence[Item], bool], _Round]],
    items: Sequence[Item],
    with_events: bool,
    rounds: int,
) -> dict[str, list[_Round]]:
    done: dict[str, list[_Round]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            with scratch() as folder:
                done[name].append(contender(folder / "queue.db", items, with_events))
    return done
