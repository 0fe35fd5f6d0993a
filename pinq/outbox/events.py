"""What pinq announces, as CloudEvents 1.0.

``pinq.signal.computed``
    Signals of one image are in the store. Data: ``{pipeline, attempt, signals:
    {name: version}, uri}``.
``pinq.job.dead``
    A job will not be tried again. Data: ``{pipeline, attempt, reason: {class,
    message}, uri}``. The queue writes these itself, in the transaction that ends the job.

``source`` is ``/pinq/<galaxy>``, ``subject`` and ``partitionkey`` the
signature, ``id`` the same at every delivery.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pinq.queue.model import Event, StoredEvent

SIGNAL_COMPUTED = "pinq.signal.computed"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def computed_event(
    *,
    source: str,
    signature: str,
    pipeline: str,
    attempt: int,
    signals: Mapping[str, int],
    uri: str,
) -> Event:
    """Signals of one image were computed; ``signals`` are their versions by name."""
    return Event(
        type=SIGNAL_COMPUTED,
        source=source,
        subject=signature,
        data={
            "pipeline": pipeline,
            "attempt": attempt,
            "signals": dict(sorted(signals.items())),
            "uri": uri,
        },
    )


def cloud_event(stored: StoredEvent) -> dict[str, Any]:
    """An event of the outbox in CloudEvents' JSON form."""
    return {
        "specversion": "1.0",
        "id": stored.id,
        "source": stored.source,
        "type": stored.type,
        "subject": stored.subject,
        "time": _rfc3339(stored.time_ms),
        "datacontenttype": "application/json",
        "partitionkey": stored.subject,
        "data": json.loads(stored.data),
    }


def _rfc3339(time_ms: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=time_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
