"""Worker processes on one SQLite queue together, against one alone; and a caller beside them.

Each leases and finishes batches of 256, every commit synced, until nothing is left. The time is
from the word to go, given once all have done a batch, to the end of the last. Rounds take turns,
on a new file each; the best of each counts. Then, apart, another process enqueues one job after the
other while four are at work, and how long its calls take is told: they wait for the same lock.

``python -m benchmarks.together URL`` is such a worker.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from benchmarks.figures import Figure, Goal, median, percentile
from benchmarks.options import Options
from benchmarks.processes import PYTHON, ROOT, Broken, environment, scratch
from pinq.queue.contract import Queue
from pinq.queue.model import NewJob, Succeeded
from pinq.queue.urls import open_queue, upgrade

BATCH = 256
_QUEUE = "bench"
_PROCESSES = (1, 2, 4, 8)
# Of so many processes, against one: they take turns, and turns cost nothing.
_GOALS = {4: Goal(ratio_at_least=1.0)}
_PAUSE_SECONDS = 0.01


def measure(options: Options) -> list[Figure]:
    """SQLite, where processes cannot write at once."""
    count = 1_024 if options.quick else 102_400
    rounds = 1 if options.quick else options.rounds or 5
    best = dict.fromkeys(_PROCESSES, 0.0)
    for number in range(rounds):
        for processes in _PROCESSES:
            with _filled(count + processes * BATCH) as url:
                rate = count / _seconds(url, processes, count)
            best[processes] = max(best[processes], rate)
            options.say(f"together: round {number + 1}, {processes} processes: {rate:,.0f} jobs/s")
    calls: list[float] = []
    with _filled(count + 4 * BATCH) as url, closing(open_queue(url)) as queue:
        others = iter(range(2 * count, sys.maxsize))

        def enqueue() -> None:
            start = time.perf_counter()
            queue.enqueue(_QUEUE, [NewJob(f"{next(others):032x}")])
            calls.append(1e3 * (time.perf_counter() - start))

        _seconds(url, 4, count, meanwhile=enqueue)
    alone = best[1]
    return [
        Figure(
            f"together.{processes}_processes.jobs_per_second",
            rate,
            "jobs/s",
            None if processes == 1 else alone,
            "" if processes == 1 else "one process",
            _GOALS.get(processes),
        )
        for processes, rate in best.items()
    ] + [
        Figure("together.enqueue_beside_4.median", median(calls), "ms"),
        Figure("together.enqueue_beside_4.p99", percentile(calls, 99), "ms"),
        Figure("together.enqueue_beside_4.longest", max(calls), "ms"),
    ]


@contextmanager
def _filled(count: int) -> Iterator[str]:
    """The URL of a new queue with so many jobs."""
    with scratch() as folder:
        url = f"sqlite:///{folder}/queue.db"
        upgrade(url)
        with closing(open_queue(url)) as queue:
            queue.declare(_QUEUE, source="/pinq/bench")
            for start in range(0, count, BATCH):
                numbers = range(start, min(start + BATCH, count))
                queue.enqueue(_QUEUE, [NewJob(f"{n:032x}", f"file:///{n}.jpg") for n in numbers])
        yield url


def _seconds(
    url: str, processes: int, count: int, meanwhile: Callable[[], None] | None = None
) -> float:
    """How long it took them to work ``count`` jobs, or those and what ``meanwhile`` added."""
    workers = [
        subprocess.Popen(
            [PYTHON, "-m", "benchmarks.together", url],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        start = time.monotonic()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        while meanwhile and all(worker.poll() is None for worker in workers):
            meanwhile()
            time.sleep(_PAUSE_SECONDS)
        told = [(worker.communicate()[0] or "0 0").split() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    done = sum(int(jobs) for jobs, _ in told)
    if done < count:
        raise Broken(f"{processes} processes did {done} of {count} jobs")
    return max(float(ended) for _, ended in told) - start


def work(url: str) -> None:
    """A worker: does a batch, waits for the word, and says how many jobs it did, and when."""
    with closing(open_queue(url)) as queue:
        _one_batch(queue)
        print("ready", flush=True)
        sys.stdin.readline()
        done = 0
        while jobs := _one_batch(queue):
            done += jobs
        print(done, time.monotonic(), flush=True)


def _one_batch(queue: Queue) -> int:
    lease = queue.lease(_QUEUE, BATCH, 60.0, "bench")
    if lease is None:
        return 0
    return queue.finish(lease.token, [Succeeded(job.id) for job in lease.jobs]).succeeded


if __name__ == "__main__":
    work(sys.argv[1])
