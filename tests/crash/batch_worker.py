"""A worker process whose batch actor does nothing but announce: ``batch_worker.py URL``.

It ends by itself once nothing is pending or leased.
"""

import sys
import threading

import dramatiq

from pinq.broker import Batch, QueueBroker
from pinq.errors import PinqError, QueueUnavailable
from pinq.incarnation import incarnation
from pinq.patience import patiently
from pinq.queue.model import Event
from pinq.queue.urls import open_queue

QUEUE = "pins"
PATIENCE_SECONDS = 60.0


def main(url: str) -> int:
    never = threading.Event()
    queue = patiently(lambda: open_queue(url), patience_seconds=PATIENCE_SECONDS, stop=never)
    errors: list[PinqError] = []
    broker = QueueBroker(
        queue,
        worker=incarnation(),
        lease_seconds=1.0,
        patience_seconds=PATIENCE_SECONDS,
        on_fatal=errors.append,
        middleware=[],
    )

    @dramatiq.actor(broker=broker, queue_name=QUEUE, batch_size=16)
    def announce(batch: Batch) -> None:
        for job in batch.jobs:
            batch.succeed(job, Event("pinq.signal.computed", "/pinq/pins", job.key, {}))

    worker = dramatiq.Worker(broker, worker_threads=2, worker_timeout=100)
    worker.start()
    pause = threading.Event()
    while not errors:
        try:
            if not queue.unfinished([QUEUE]):
                break
        except QueueUnavailable:
            pass
        pause.wait(0.05)
    worker.stop()
    broker.close()
    queue.close()
    for error in errors:
        print(error, file=sys.stderr)
    return 3 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
