"""What a sink owes."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

CloudEvent = Mapping[str, Any]


class Sink(Protocol):
    """Somewhere events go.

    ``linger_seconds`` is how long the relay may let an event wait so that more
    of them go in one ``publish``; ``max_events`` ends the waiting early.
    """

    linger_seconds: float
    max_events: int

    def publish(self, events: Sequence[CloudEvent]) -> None:
        """Deliver events in order; when this returns, the sink has them for good.

        Raises:
            SinkError: they were not accepted (some may have been); they will be
                published again, with the same ids.
            StorageFull: there is no space.
        """

    def close(self) -> None:
        """Give the sink up; safe to call twice."""
