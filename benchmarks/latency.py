"""One image at a time: from the call that enqueues it to its start, its values, its event.

An idle worker, an idle relay and a program that enqueues (:mod:`benchmarks.observer`) are three
processes on one home. 200 photographs come 50 ms apart, and 200 more after 10 idle seconds.
``start`` is when the worker takes the image in hand (:mod:`benchmarks.timed_worker`),
``readable`` when a look-up in the enqueuing process finds its values, ``announced`` when a
whole segment of the event files holds its event: a segment is closed after about a second. All
three begin with the call, so that signing the file and the synced commit are in them;
``start_after_commit`` begins when the call has returned.

The baseline of ``readable`` is the bare loop, one photograph at a time, in one process: no
queue, no store, nobody to tell.

Then the queue alone, beside other people's (:mod:`benchmarks.peers`): ``latency.queue``, from
the call that enqueues a no-op job in one process to its start in an idle worker's, at random
moments; ``after_idle`` is after ten seconds each in which nothing happened.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Goal, median, percentile
from benchmarks.observer import WARM_UP
from benchmarks.options import Options
from benchmarks.peers import PeerLatency, run_peers_for_latency
from benchmarks.photographs import photographs
from benchmarks.processes import PINQ, PYTHON, environment, run, scratch, started, warm
from benchmarks.servers import servers

_SERIES = ("latency", "latency.after_idle")
# Those whose median pinq's should be at most.
_QUICK_PEERS = ("pgqueuer", "huey")
# "No worse after ten idle seconds", but for noise.
_NO_WORSE = Goal(ratio_at_most=1.1)


def measure(options: Options) -> list[Figure]:
    """Both series, and the bare loop before and after."""
    count, idle = (6, 0.5) if options.quick else (200, 10.0)
    megapixels = (0.1, 0.3) if options.quick else (0.3, 12.0)
    folder = photographs(WARM_UP + 2 * count, megapixels=megapixels)
    warm(sorted(folder.iterdir()))
    bare = _bare(folder)
    options.say(f"latency: {count} photographs 50 ms apart, twice")
    series, starts = _observe(folder, count, idle)
    if not options.quick:
        bare += _bare(folder)
    figures = []
    for name, sights in zip(_SERIES, series, strict=True):
        figures += _figures(name, sights, starts, bare)
    if options.peers:
        figures += _beside_peers(options)
    return figures


def _beside_peers(options: Options) -> Iterator[Figure]:
    count, idle_count, idle_seconds = (10, 2, 0.5) if options.quick else (100, 15, 10.0)
    with servers(options.say) as running:
        results = run_peers_for_latency(running, count, idle_count, idle_seconds, say=options.say)
    options.say("\n".join(_table(results)))
    quick = [each for each in results if each.peer.slug in _QUICK_PEERS]
    best = min(quick, key=lambda each: median(each.idle), default=None)
    for each in results:
        what = f"latency.queue.{each.peer.slug}"
        against = best if each.peer.is_pinq else None
        yield Figure(
            f"{what}.median",
            median(each.idle),
            "ms",
            median(against.idle) if against else None,
            f"{against.peer.name} on {against.peer.backend}" if against else "",
            Goal(ratio_at_most=1) if against else None,
        )
        yield Figure(f"{what}.p99", percentile(each.idle, 99), "ms")
        yield Figure(
            f"{what}.after_idle.median",
            median(each.after_idle),
            "ms",
            median(each.idle),
            "without the idle time",
            _NO_WORSE if each.peer.is_pinq else None,
        )


def _table(results: Sequence[PeerLatency]) -> Iterator[str]:
    """All systems side by side, the quickest first."""
    line = "{:<16}{:<12}{:>10}{:>10}{:>24}"
    yield line.format("system", "on", "median ms", "p99 ms", "after idling, median")
    for each in sorted(results, key=lambda each: median(each.idle)):
        late, after = percentile(each.idle, 99), median(each.after_idle)
        figures = [f"{ms:.1f}" for ms in (median(each.idle), late, after)]
        yield line.format(each.peer.name, each.peer.backend, *figures)


def _bare(folder: Path) -> list[float]:
    ran = run([PYTHON, "-m", "benchmarks.bare_loop", "single", str(folder)])
    milliseconds: list[float] = json.loads(ran.stdout)["milliseconds"]
    return milliseconds


def _observe(
    folder: Path, count: int, idle_seconds: float
) -> tuple[list[list[dict[str, Any]]], dict[str, int]]:
    """What the observer saw of each series, and when the worker began each signature."""
    with scratch() as place:
        home, times = place / "home", place / "times.json"
        env = environment()
        at_home = ["--home", str(home)]
        worker = [PYTHON, "-m", "benchmarks.timed_worker", str(times), *at_home, "worker"]
        with (
            started(worker, log=place / "worker.log", cwd=place, env=env),
            started([PINQ, *at_home, "relay"], log=place / "relay.log", cwd=place, env=env),
        ):
            # The observer's first images wait for the worker; it need not be ready.
            time.sleep(0.5)
            observer = [PYTHON, "-m", "benchmarks.observer", str(home), str(folder)]
            ran = run([*observer, str(count), str(idle_seconds)], cwd=place)
        return json.loads(ran.stdout), json.loads(times.read_text())


def _figures(
    name: str, sights: list[dict[str, Any]], starts: dict[str, int], bare: list[float]
) -> list[Figure]:
    def since(begin: str, end: str) -> list[float]:
        ends = [starts[sight["signature"]] if end == "start" else sight[end] for sight in sights]
        return [(at - sight[begin]) / 1e6 for at, sight in zip(ends, sights, strict=True)]

    figures = []
    waits = {
        "start": since("called", "start"),
        "readable": since("called", "readable"),
        "announced": since("called", "announced"),
        "start_after_commit": since("returned", "start"),
        "enqueue_call": since("called", "returned"),
    }
    for what, milliseconds in waits.items():
        middle, late = median(milliseconds), percentile(milliseconds, 99)
        baselines: tuple[float | None, float | None] = (None, None)
        if what == "readable":
            baselines = (median(bare), percentile(bare, 99))
        against = "bare loop, one by one" if what == "readable" else ""
        goal = Goal(value_at_most=5) if what == "start_after_commit" else None
        figures += [
            Figure(f"{name}.{what}.median", middle, "ms", baselines[0], against, goal),
            Figure(f"{name}.{what}.p99", late, "ms", baselines[1], against),
        ]
    figures.append(Figure(f"{name}.start.first", waits["start"][0], "ms"))
    return figures
