"""What ``dramatiq workers.inference`` serves: the batch actors of every pipeline.

One process: the embedded RocksDB has one owner (``--processes 1``). Settings are
found as everywhere: ``$PINQ_CONFIG``, ``./pinq.toml``, ``$PINQ_HOME``.
"""

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType

import dramatiq
from dramatiq.broker import Broker
from dramatiq.middleware import Middleware

from pinq import config
from pinq.errors import PinqError
from pinq.queue.succession import succeed_the_dead
from pinq.queue.urls import open_queue
from pinq.runtime import Worker
from pinq.store.urls import open_store

logger = logging.getLogger(__name__)

# Two signals within this time are one.
_TOGETHER_SECONDS = 5.0


class _Closing(Middleware):
    """Closes the store after dramatiq's threads have ended."""

    def after_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        _worker.close()
        _queue.close()
        _store.close()


def _stop_once() -> None:
    """Let a second SIGTERM that comes with the first one pass.

    A supervisor that signals the whole process group gives this process two: its
    own, and the one that dramatiq's main process hands on. dramatiq takes the
    second for an order to die at once.
    """
    polite = signal.getsignal(signal.SIGTERM)
    if not callable(polite):
        return
    first: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not first or time.monotonic() - first[0] > _TOGETHER_SECONDS:
            first.append(time.monotonic())
            polite(number, frame)

    signal.signal(signal.SIGTERM, stop)


def _end_when_failed() -> None:
    _worker.ended.wait()
    os.kill(os.getpid(), signal.SIGTERM)


try:
    _settings = config.load()
    _store = open_store(_settings.store, write=True)
    _queue = open_queue(_settings.queue)
    succeed_the_dead(_queue)
    _worker = Worker(_settings, _queue, _store)
except PinqError as error:
    logger.critical("%s", error)
    sys.exit(3)

broker = _worker.broker
broker.add_middleware(_Closing())
dramatiq.set_broker(broker)
if threading.current_thread() is threading.main_thread():
    _stop_once()


threading.Thread(target=_end_when_failed, name="pinq-fatal", daemon=True).start()
