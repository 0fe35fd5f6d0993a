"""Whether the memory of ``pinq worker`` stays flat over 20,000 images.

Small distinct JPEGs, enqueued with signatures of the client's, and a worker that ends when
all are done; its resident memory is read all the while, and how many jobs have succeeded.
Flat means that the median over the last quarter of the jobs is within 5% and 20 MiB of the
second quarter's (the first quarter is left to fill buffers and caches).
"""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from benchmarks.figures import Figure, Goal, median
from benchmarks.options import Options
from benchmarks.photographs import thumbnails
from benchmarks.processes import PINQ, Broken, environment, run, scratch, started

_EVERY_SECONDS = 0.2
_MEBIBYTE = 1024 * 1024
_SPARE_MEBIBYTES = 20


def measure(options: Options) -> list[Figure]:
    """One worker from its start to its end."""
    count = 192 if options.quick else 20_000
    options.say(f"memory: making {count} small photographs")
    files = sorted(thumbnails(count).iterdir())
    with scratch() as folder:
        items = folder / "images.jsonl"
        with items.open("w") as out:
            for index, file in enumerate(files):
                out.write(json.dumps({"uri": str(file), "signature": f"thumbnail-{index}"}) + "\n")
        home = folder / "home"
        run([PINQ, "--home", str(home), "enqueue", "--from", str(items), "--json"], cwd=folder)
        options.say("memory: working")
        samples, seconds = _watch(home, folder, 0.02 if options.quick else _EVERY_SECONDS)
        if _finished(home) != count:
            raise Broken(f"the worker finished {_finished(home)} of {count} images")
    second = _median_between(samples, count / 4, count / 2)
    last = _median_between(samples, count * 3 / 4, count)
    peak = max(rss for _, rss in samples)
    options.say(f"memory: {count / seconds:.1f} images/s, start included; {len(samples)} samples")
    goal = Goal(value_at_most=round(second + _SPARE_MEBIBYTES, 1), ratio_at_most=1.05)
    return [
        Figure("memory.worker_rss", last, "MiB", second, "its own second quarter", goal),
        Figure("memory.worker_rss.peak", peak, "MiB", second, "its own second quarter"),
    ]


def _watch(home: Path, folder: Path, every_seconds: float) -> tuple[list[tuple[int, float]], float]:
    """(jobs finished, MiB) as time goes by, and how long it took."""
    samples = []
    begun = time.perf_counter()
    command = [PINQ, "--home", str(home), "worker", "--until-empty"]
    with started(command, log=folder / "worker.log", cwd=folder, env=environment()) as worker:
        while worker.running():
            samples.append((_finished(home), worker.resident_bytes() / _MEBIBYTE))
            time.sleep(every_seconds)
        if worker.code != 0:
            raise Broken(f"pinq worker failed:\n{worker.told()}")
    seconds = time.perf_counter() - begun
    return [(done, rss) for done, rss in samples if rss > 0], seconds


def _finished(home: Path) -> int:
    with closing(sqlite3.connect(f"file:{home / 'queue.db'}?mode=ro", uri=True)) as database:
        (count,) = database.execute("SELECT count(*) FROM pinq_jobs WHERE state = 2").fetchone()
    return int(count)


def _median_between(samples: list[tuple[int, float]], low: float, high: float) -> float:
    chosen = [rss for done, rss in samples if low < done <= high]
    # A run so short that no sample fell into a quarter has only its last word.
    return median(chosen or [samples[-1][1]])
