"""Events as log lines."""

import json
import logging
from collections.abc import Sequence

from pinq.outbox.sinks.contract import CloudEvent

logger = logging.getLogger("pinq.events")


class LogSink:
    """Writes each event as one line of JSON to the logger ``pinq.events``, at INFO, at once."""

    linger_seconds = 0.0
    max_events = 1000

    def __init__(self) -> None:
        # Whatever the level of other logs: whoever names this sink wants to see them.
        logger.setLevel(logging.INFO)

    def publish(self, events: Sequence[CloudEvent]) -> None:
        """Log the events in order."""
        for event in events:
            logger.info("%s", json.dumps(event, separators=(",", ":")))

    def close(self) -> None:
        """There is nothing to give up."""
