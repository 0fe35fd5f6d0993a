"""``pinq worker``, telling when it took each image in hand.

``python -m benchmarks.timed_worker TIMES ARGUMENTS…`` is ``pinq ARGUMENTS…`` with one hook: the
time (ns since 1970) at which the way of a batch begins, for each of its signatures, is noted in
memory and written to the file TIMES, as JSON, at the end.
"""

import atexit
import json
import sys
import time
from pathlib import Path

from pinq.broker import Batch
from pinq.cli.main import main
from pinq.processing import Processor


def _install(started: dict[str, int]) -> None:
    original = Processor.process

    def process(self: Processor, batch: Batch) -> None:
        now = time.time_ns()
        for job in batch.jobs:
            started.setdefault(job.key, now)
        original(self, batch)

    Processor.process = process  # type: ignore[method-assign]


if __name__ == "__main__":
    times: dict[str, int] = {}
    _install(times)
    atexit.register(lambda: Path(sys.argv[1]).write_text(json.dumps(times)))
    main(sys.argv[2:])
