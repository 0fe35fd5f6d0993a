"""The work of ``pinq run`` without a queue, a store or events: what pinq is measured against.

``python -m benchmarks.bare_loop threads|processes|single FOLDER`` decodes every JPEG of a
folder with pinq's own decoder and computes the built-in signals on batches of 64 through
pinq's engine, by as many threads, or processes, as there are cores, each with one thread of
torch's. The values stay in memory. Nothing is hashed, kept on disk, retried or announced.
``single`` goes through the images one at a time, as a lone image goes through a worker.

On stdout, one JSON object: ``{"images", "work_seconds", "milliseconds": [an image each]}``.
"""

import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import CORES

if TYPE_CHECKING:
    from pinq.signals.contract import Signal

BATCH = 64


class Loop:
    """A decoder and the signals, loaded."""

    def __init__(self, torch_threads: int = 1) -> None:
        from pinq.config import BUILTIN_SIGNALS, MediaSettings, WorkerSettings, load
        from pinq.inference.engine import Engine
        from pinq.signals.registry import signals_for

        self._media = MediaSettings()
        self._signals: Sequence[Signal] = signals_for(load(), BUILTIN_SIGNALS)
        worker = WorkerSettings(device="cpu", torch_threads=torch_threads)
        self._engine: Engine = Engine(self._signals, worker)

    def compute(self, files: Sequence[Path]) -> int:
        """Decode and compute one batch; returns how many values there are."""
        from pinq.media.decode import decode
        from pinq.media.fetch import fetch, path_to_uri
        from pinq.queue.model import Failure

        inputs = {signal.input for signal in self._signals}
        images = [
            decode(fetch(path_to_uri(file), self._media).data, inputs, self._media)
            for file in files
        ]
        values = 0
        for signal in self._signals:
            answers = self._engine.compute(signal, [image[signal.input] for image in images])
            for answer in answers:
                if isinstance(answer, Failure):
                    raise RuntimeError(answer.message)
            values += len(answers)
        return values


def _batches(files: Sequence[Path], size: int = BATCH) -> Iterator[Sequence[Path]]:
    # Short last batches, so that no core waits long for the other's.
    size = max(1, min(size, -(-len(files) // CORES)))
    return (files[start : start + size] for start in range(0, len(files), size))


def _by_threads(files: Sequence[Path]) -> float:
    loop = Loop()
    batches = _batches(files)
    taking = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                with taking:
                    batch = next(batches, None)
                if batch is None:
                    return
                loop.compute(batch)
        except BaseException as error:  # noqa: BLE001 -- raised in the main thread
            errors.append(error)

    started = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(CORES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - started


_loop: Loop | None = None


def _load() -> None:
    global _loop
    _loop = Loop()


def _compute(batch: Sequence[Path]) -> int:
    assert _loop is not None
    return _loop.compute(batch)


def _by_processes(files: Sequence[Path]) -> float:
    # Forked before torch is imported, so each child imports it; the two at once.
    with multiprocessing.get_context("fork").Pool(CORES, initializer=_load) as pool:
        started = time.perf_counter()
        for _ in pool.imap_unordered(_compute, _batches(files)):
            pass
        seconds = time.perf_counter() - started
        pool.close()
        pool.join()
    return seconds


def _one_by_one(files: Sequence[Path]) -> list[float]:
    loop = Loop(torch_threads=max(1, CORES // 2))  # as a worker with its two threads
    loop.compute(files[:1])
    milliseconds = []
    for file in files:
        started = time.perf_counter()
        loop.compute([file])
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds


def main(kind: str, folder: str) -> None:
    """Run one kind of loop, and say how long the work took."""
    files = sorted(Path(folder).iterdir())
    each: list[float] = []
    if kind == "threads":
        seconds = _by_threads(files)
    elif kind == "processes":
        seconds = _by_processes(files)
    else:
        each = _one_by_one(files)
        seconds = sum(each) / 1000
    print(json.dumps({"images": len(files), "work_seconds": seconds, "milliseconds": each}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
