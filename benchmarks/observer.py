"""A program that enqueues images one by one and looks for what becomes of each.

``python -m benchmarks.observer HOME FOLDER COUNT IDLE_SECONDS``: with a :class:`pinq.Client`
that stays open, it enqueues COUNT images 50 ms apart, is idle, and enqueues COUNT others. All
the while it looks (every millisecond, while it waits for one) whether the values of an image
can be read, and whether a whole segment with its event is in the folder of events. Before
that, a few images so that every process has done everything once.

On stdout, JSON: for each series a list of images, ``{"signature", "called", "returned",
"readable", "announced"}``, in ns since 1970.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pinq import Client

APART_SECONDS = 0.05
WARM_UP = 4
_LOOK_SECONDS = 0.001
_PATIENCE_SECONDS = 60.0


@dataclass(slots=True)
class Sight:
    """When what was seen of one image; 0 is not yet."""

    signature: str
    called: int
    returned: int
    readable: int = 0
    announced: int = 0


class Observer:
    """Enqueues and looks."""

    def __init__(self, home: Path) -> None:
        self._client = Client(home=home)
        self._events = home / "events"
        self._segments: set[str] = set()
        self._unread: dict[str, Sight] = {}
        self._unannounced: dict[str, Sight] = {}

    def series(self, files: Sequence[Path]) -> list[Sight]:
        """Enqueue files 50 ms apart; return when all are readable and announced."""
        sights: list[Sight] = []
        due = time.monotonic()
        deadline = due + len(files) * APART_SECONDS + _PATIENCE_SECONDS
        waiting = list(reversed(files))
        while waiting or self._unread or self._unannounced:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(self._unread)} unread, {len(self._unannounced)} unannounced"
                )
            if waiting and time.monotonic() >= due:
                sights.append(self._enqueue(waiting.pop()))
                due += APART_SECONDS
            self._look()
            pause = max(0.0, due - time.monotonic()) if waiting else APART_SECONDS
            if self._unread or self._unannounced:
                pause = min(pause, _LOOK_SECONDS)
            time.sleep(pause)
        return sights

    def _enqueue(self, file: Path) -> Sight:
        called = time.time_ns()
        result = self._client.enqueue(file)
        sight = Sight(str(result.signature), called, time.time_ns())
        self._unread[sight.signature] = self._unannounced[sight.signature] = sight
        return sight

    def _look(self) -> None:
        if self._unread:
            found = self._client.lookup(list(self._unread))
            now = time.time_ns()
            for signature, signals in found.items():
                if signals:
                    self._unread.pop(signature).readable = now
        for segment in self._events.glob("*.jsonl"):
            if segment.name in self._segments:
                continue
            now = time.time_ns()
            self._segments.add(segment.name)
            for line in segment.read_text().splitlines():
                sight = self._unannounced.pop(json.loads(line)["subject"], None)
                if sight is not None:
                    sight.announced = now


def main(home: str, folder: str, count: int, idle_seconds: float) -> None:
    """Warm up, one series, idle, another."""
    files = sorted(Path(folder).iterdir())
    observer = Observer(Path(home))
    observer.series(files[:WARM_UP])
    time.sleep(min(idle_seconds, 2.0))
    first = observer.series(files[WARM_UP : WARM_UP + count])
    time.sleep(idle_seconds)
    second = observer.series(files[WARM_UP + count : WARM_UP + 2 * count])
    print(json.dumps([[asdict(sight) for sight in series] for series in (first, second)]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
