"""What an engineer would build by hand: dramatiq on Redis, one image a message.

The same decoder and signals as pinq's, and one thread of torch's each; the values go into a
Redis hash an image. ``dramatiq benchmarks.hand_built`` works; ``python -m
benchmarks.hand_built FOLDER`` sends the messages. ``$HAND_BUILT_REDIS`` names the server.
Left out of what pinq does: deduplication, fencing, events, an order, anything readable about
a job once its message is gone; Redis syncs its log once a second, not at every commit.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pinq.inference.engine import Engine
    from pinq.signals.contract import Signal

DONE = "hand-built:done"
_URL = os.environ.get("HAND_BUILT_REDIS", "redis://127.0.0.1:6379")

broker = RedisBroker(url=_URL)  # type: ignore[no-untyped-call]
client = redis.Redis.from_url(_URL)
_signals: "Sequence[Signal]" = ()
_engine: "Engine | None" = None


class _Loading(Middleware):
    """Loads the signals when a worker starts; the sender needs none."""

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        global _signals, _engine
        from pinq.config import BUILTIN_SIGNALS, WorkerSettings, load
        from pinq.inference.engine import Engine
        from pinq.signals.registry import signals_for

        _signals = signals_for(load(), BUILTIN_SIGNALS)
        _engine = Engine(_signals, WorkerSettings(device="cpu", torch_threads=1))


broker.add_middleware(_Loading())
dramatiq.set_broker(broker)


@dramatiq.actor
def compute(path: str) -> None:
    """One image to its signals."""
    from pinq.config import MediaSettings
    from pinq.media.decode import decode
    from pinq.media.fetch import fetch, path_to_uri
    from pinq.queue.model import Failure

    assert _engine is not None
    media = MediaSettings()
    data = fetch(path_to_uri(Path(path)), media).data
    images = decode(data, {signal.input for signal in _signals}, media)
    row: dict[Any, Any] = {}
    for signal in _signals:
        (answer,) = _engine.compute(signal, [images[signal.input]])
        if isinstance(answer, Failure):
            raise RuntimeError(answer.message)
        row[signal.name] = answer.data
        row.update(
            {f"{signal.name}.{key}": str(each).encode() for key, each in answer.meta.items()}
        )
    pipeline = client.pipeline()
    pipeline.hset(f"hand-built:{path}", mapping=row)
    pipeline.incr(DONE)
    pipeline.execute()


if __name__ == "__main__":
    for file in sorted(Path(sys.argv[1]).iterdir()):
        compute.send(str(file))
