"""Wait out what passes: a full disk, a database that is restarting or locked."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pinq.errors import QueueUnavailable, StorageFull

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


def patiently(verb: Callable[[], T], *, patience_seconds: float, stop: threading.Event) -> T:
    """Call ``verb`` until it neither finds the disk full nor the queue unavailable.

    Pauses grow exponentially, with jitter. After ``patience_seconds``, or once
    ``stop`` is set, the error is raised.
    """
    started = time.monotonic()
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return verb()
        except (QueueUnavailable, StorageFull) as error:
            waited = time.monotonic() - started
            if waited > patience_seconds or stop.is_set():
                raise
            logger.warning("waiting seconds=%.1f error=%s", waited, error)
        stop.wait(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
